//! One session of a pull with one member.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    super::{
        chain::{BadRun, Expected, RunFault, check},
        dial::{Dialled, MemberFault},
        frames::{FRAME_MAX, Frame, Heads, LOGS_MAX, PullRequest, Run},
        have::Have,
        quiet::Quiet,
        reach::Members,
        status::PullStatus,
        stream::{self, FrameReader, at_slowest},
    },
    Delivery,
};
use crate::{
    identity::PeerId,
    log_store::{Line, Operation, Topic},
};

/// What stays between sessions.
///
/// # Invariants
/// - `have` is what was given to the reader: the next session begins there, so that each operation
///   is given exactly once.
pub(super) struct Session {
    pub(super) topic: Topic,
    pub(super) line: Option<Line>,
    pub(super) have: Have,
    pub(super) follow: bool,
    pub(super) verify_all: bool,
    pub(super) silent_after: Duration,
    pub(super) give: mpsc::Sender<Delivery>,
    pub(super) status: Arc<watch::Sender<PullStatus>>,
    pub(super) members: Arc<Members>,
}

/// A run on a blocking thread.
type Checking = JoinHandle<Result<Vec<Operation>, BadRun>>;

impl Session {
    /// Pulls from one member, until all is read, or nobody reads any more, or the member fails.
    pub(super) async fn run(
        &mut self,
        member: PeerId,
        dialled: Dialled,
    ) -> Result<(), MemberFault> {
        let Dialled { read, mut write } = dialled;
        self.status.send_modify(|it| it.sessions += 1);
        let mut stream = Incoming {
            reader: FrameReader::new(read, FRAME_MAX),
        };
        let line = self.ask(member, &mut stream, &mut write).await?;
        let mut checking: Option<Checking> = None;
        let mut quiet = Quiet::new(Instant::now());
        loop {
            // The next run comes in while the one before is checked.
            let frame = tokio::select! {
                biased;
                checked = finished(&mut checking) => {
                    checking = None;
                    if !self.take(checked?).await? {
                        return Ok(());
                    }
                    continue;
                }
                frame = stream.next(self.silent_after) => frame,
            };
            // Also before a failure is told: what has come whole is not asked for again.
            if let Some(checking) = checking.take() {
                let run = joined(checking.await)?;
                if !self.take(run).await? {
                    return Ok(());
                }
            }
            match decode(frame?).await? {
                Frame::Run(run) => {
                    quiet.broken();
                    checking = Some(self.check(run, line));
                }
                Frame::CaughtUp(_) => {
                    if !quiet.kept(Instant::now()) {
                        return Err(MemberFault::too_often());
                    }
                    let number = self.status.borrow().sessions;
                    let given = self.give.send(Delivery::CaughtUp(number)).await;
                    if given.is_err() || !self.follow {
                        return Ok(());
                    }
                    self.members.with(|it| it.answered());
                }
                Frame::Members(list) => {
                    if !quiet.spent(Instant::now()) {
                        return Err(MemberFault::too_often());
                    }
                    if self.members.with(|it| it.learn(list)) {
                        self.status.send_modify(|it| it.learned += 1);
                    }
                }
                Frame::Refused { why, text } => return Err(MemberFault::Denied { why, text }),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Says what is wanted, and hears what there is.
    async fn ask<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        member: PeerId,
        stream: &mut Incoming<R>,
        write: &mut W,
    ) -> Result<Line, MemberFault> {
        let request = PullRequest {
            topic: self.topic,
            line: self.line,
            follow: self.follow,
            have: self.have.known(),
        };
        let request = Frame::Pull(request).encode();
        stream::write(write, &request, self.silent_after).await?;
        // It may be on its way for as long as that.
        let silent_after = self.silent_after.saturating_add(at_slowest(request.len()));
        let heads = match decode(stream.next(silent_after).await?).await? {
            Frame::Heads(heads) => heads,
            Frame::Refused { why, text } => return Err(MemberFault::Denied { why, text }),
            other => return Err(unexpected(&other)),
        };
        if let Some(wanted) = self.line.filter(|it| *it != heads.line) {
            return Err(MemberFault::OtherLine {
                wanted,
                found: heads.line,
            });
        }
        let cut_off = self.cut_off(&heads);
        self.status.send_modify(|it| {
            it.member = Some(member);
            it.line = Some(heads.line);
            it.cut_off = cut_off;
            // What waits for the reader was announced by another member.
            let waiting = it.verified.saturating_sub(it.delivered);
            it.behind = Some(waiting.saturating_add(heads.operations));
        });
        Ok(heads.line)
    }

    /// How many logs have more than is here, of which nothing will come.
    fn cut_off(&self, heads: &Heads) -> u64 {
        let cut_off = heads.logs.iter().filter(|head| {
            let newest = self.have.newest(head.author, head.log);
            head.operations == 0 && newest.is_none_or(|(seq, _)| seq < head.last)
        });
        cut_off.count() as u64
    }

    fn check(&self, run: Run, line: Line) -> Checking {
        let (author, log) = (run.author, run.log);
        let newest = self.have.newest(author, log);
        let (topic, verify_all) = (self.topic, self.verify_all);
        let full = newest.is_none() && self.have.len() >= LOGS_MAX;
        tokio::task::spawn_blocking(move || {
            let expected = Expected {
                topic,
                line,
                newest,
                verify_all,
            };
            let checked = match full {
                true => Err(RunFault::TooManyLogs),
                false => check(run, &expected),
            };
            checked.map_err(|rule| BadRun { author, log, rule })
        })
    }

    /// Gives a run to the reader. False if nobody reads any more.
    async fn take(&mut self, run: Vec<Operation>) -> Result<bool, MemberFault> {
        let Some(newest) = run.last().cloned() else {
            return Ok(true);
        };
        let count = run.len() as u64;
        let bytes: u64 = run.iter().map(Operation::bytes).sum();
        let signatures = if self.verify_all { count } else { 1 };
        self.status.send_modify(|it| {
            it.verified += count;
            it.verified_bytes += bytes;
            it.signatures += signatures;
            let waiting = it.verified - it.delivered;
            // News that was not announced.
            it.behind = it.behind.map(|behind| behind.max(waiting));
            it.complete = false;
        });
        if self.give.send(Delivery::Run(run)).await.is_err() {
            return Ok(false);
        }
        self.have.advance(&newest);
        self.members.with(|it| it.progressed());
        Ok(true)
    }
}

/// The run that is being checked, once it is; never, if there is none.
async fn finished(checking: &mut Option<Checking>) -> Result<Vec<Operation>, MemberFault> {
    match checking {
        Some(checking) => joined(checking.await),
        None => std::future::pending().await,
    }
}

fn joined(
    checked: Result<Result<Vec<Operation>, BadRun>, tokio::task::JoinError>,
) -> Result<Vec<Operation>, MemberFault> {
    match checked {
        Ok(run) => run.map_err(MemberFault::BadRun),
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        Err(_) => Err(MemberFault::lost("the program ends")),
    }
}

/// A long frame is taken apart on a blocking thread.
async fn decode(frame: Bytes) -> Result<Frame, MemberFault> {
    const SHORT: usize = 64 * 1024;
    let decoded = match frame.len() {
        0..SHORT => Frame::decode(&frame),
        _ => tokio::task::spawn_blocking(move || Frame::decode(&frame))
            .await
            .map_err(|_| MemberFault::lost("the program ends"))?,
    };
    decoded.map_err(MemberFault::protocol)
}

fn unexpected(frame: &Frame) -> MemberFault {
    MemberFault::protocol(format_args!("sent {} where it has no place", frame.name()))
}

/// What comes from the member.
struct Incoming<R> {
    reader: FrameReader<R>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// The next frame. Cancel-safe, but then the silence counts anew.
    async fn next(&mut self, silent_after: Duration) -> Result<Bytes, MemberFault> {
        let frame = self.reader.next_within(silent_after).await?;
        frame.ok_or_else(|| MemberFault::lost("the stream ended"))
    }
}
