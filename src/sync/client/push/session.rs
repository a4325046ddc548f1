//! One session of a push with one member, and what outlives it: the batches without an answer.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    io::AsyncWrite,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        dial::{Dialled, MemberFault},
        frames::{FRAME_MAX, Frame, OWED_MAX, RUN_BYTES, RUN_OPERATIONS_MAX},
        outcome::PushOutcome,
        quiet::Quiet,
        reach::Members,
        status::PushStatus,
        stream::{self, FrameReader, StreamFault, at_slowest},
    },
    BATCHES_MAX, Pushed,
};
use crate::{
    identity::PeerId,
    log_store::{Author, Line, Operation, OperationId, RawOperation, Topic},
};

/// What stays between sessions.
///
/// # Invariants
/// - `under_way` has at most [`BATCHES_MAX`] batches, in order, their numbers consecutive, and each
///   stays there until a member has answered it and the answer was handed on.
pub(super) struct Session {
    pub(super) topic: Topic,
    pub(super) line: Option<Line>,
    pub(super) source: Source,
    pub(super) under_way: VecDeque<Batch>,
    pub(super) next: u64,
    pub(super) silent_after: Duration,
    pub(super) give: mpsc::Sender<Vec<Pushed>>,
    pub(super) status: watch::Sender<PushStatus>,
    pub(super) members: Arc<Members>,
}

pub(super) struct Batch {
    number: u64,
    frame: Bytes,
    operations: Vec<(OperationId, Author, u32)>,
}

impl Session {
    /// Waits until there is a batch. False if all is answered and no more will come.
    pub(super) async fn has_something(&mut self) -> bool {
        if self.under_way.is_empty()
            && let Some(operations) = self.source.next().await
        {
            self.enqueue(operations);
        }
        !self.under_way.is_empty()
    }

    fn enqueue(&mut self, operations: Vec<Operation>) {
        let number = self.next;
        self.next += 1;
        let count = operations.len() as u64;
        self.status.send_modify(|it| it.sent += count);
        let names = operations.iter().map(|it| (it.id(), it.author(), it.seq()));
        let names = names.collect();
        let raw = operations.iter().map(|it| RawOperation {
            header: it.header().clone(),
            body: it.body().cloned(),
        });
        let operations = raw.collect();
        self.under_way.push_back(Batch {
            number,
            frame: Frame::Batch { number, operations }.encode(),
            operations: names,
        });
    }

    /// Pushes to one member until all is answered, or nobody listens any more, or the member fails.
    pub(super) async fn run(
        &mut self,
        member: PeerId,
        dialled: Dialled,
    ) -> Result<(), MemberFault> {
        let mut reader = FrameReader::new(dialled.read, FRAME_MAX);
        let writer = Writer::start(dialled.write);
        let request = Frame::Push {
            topic: self.topic,
            line: self.line,
        };
        let mut waiting = VecDeque::from([request.encode()]);
        waiting.extend(self.under_way.iter().map(|it| it.frame.clone()));
        let again: usize = self.under_way.iter().map(|it| it.operations.len()).sum();
        let first_time = self.status.borrow().sessions == 0;
        self.status.send_modify(|it| {
            it.sessions += 1;
            it.member = Some(member);
            it.resent += if first_time { 0 } else { again as u64 };
        });
        let mut patience = Patience::new(self.silent_after, Instant::now());
        loop {
            if self.under_way.is_empty() && self.source.ended && waiting.is_empty() {
                writer.last(Frame::End.encode()).await;
                return Ok(());
            }
            let room = self.under_way.len() < BATCHES_MAX && !self.source.ended;
            let due = self.under_way.front();
            let due = due.map(|it| patience.left(it, reader.held(), Instant::now()));
            tokio::select! {
                biased;
                frame = reader.next_within(due.unwrap_or_default()), if due.is_some() => {
                    let frame = frame.map_err(|it| patience.over(it))?;
                    let frame = frame.ok_or_else(|| MemberFault::lost("the stream ended"))?;
                    match Frame::decode(&frame).map_err(MemberFault::protocol)? {
                        Frame::Wait { ms } => {
                            patience.told(Duration::from_millis(ms), Instant::now())?;
                        }
                        Frame::Members(list) => {
                            patience.heard(Instant::now())?;
                            if self.members.with(|it| it.learn(list)) {
                                self.status.send_modify(|it| it.learned += 1);
                            }
                        }
                        frame => if !self.answered(frame).await? {
                            return Ok(());
                        }
                    }
                }
                sent = writer.room(), if !waiting.is_empty() => {
                    sent?.send(waiting.pop_front().unwrap_or_default());
                }
                more = self.source.next(), if room => {
                    if let Some(operations) = more {
                        self.enqueue(operations);
                        waiting.extend(self.under_way.back().map(|it| it.frame.clone()));
                    }
                }
            }
        }
    }

    /// Hands an answer on. False if nobody listens any more.
    async fn answered(&mut self, frame: Frame) -> Result<bool, MemberFault> {
        let (number, outcomes) = match frame {
            Frame::Committed { number, outcomes } => (number, outcomes),
            Frame::Refused { why, text } => return Err(MemberFault::Denied { why, text }),
            other => {
                let text = format_args!("sent {} where it has no place", other.name());
                return Err(MemberFault::protocol(text));
            }
        };
        let batch = self.under_way.front();
        let fits = |it: &&Batch| it.number == number && it.operations.len() == outcomes.len();
        let Some(batch) = batch.filter(fits) else {
            let text = format_args!("answered batch {number}, which does not fit what was sent");
            return Err(MemberFault::protocol(text));
        };
        let refused = outcomes.iter();
        let refused = refused
            .filter(|it| matches!(it, PushOutcome::Refused(_)))
            .count() as u64;
        let pushed = batch.operations.iter().zip(outcomes);
        let pushed: Vec<Pushed> = pushed
            .map(|((id, author, seq), outcome)| Pushed {
                id: *id,
                author: *author,
                seq: *seq,
                outcome,
            })
            .collect();
        let count = pushed.len() as u64;
        if self.give.send(pushed).await.is_err() {
            return Ok(false);
        }
        self.under_way.pop_front();
        self.status.send_modify(|it| {
            it.answered += count;
            it.refused += refused;
        });
        self.members.with(|it| it.progressed());
        Ok(true)
    }
}

/// How long a member may take to answer.
///
/// One that serves says so every few seconds. So one that hangs is left soon, and one that is slow
/// only if it is slower than it may be.
struct Patience {
    silent_after: Duration,
    /// The batch that is to be answered, and since when.
    front: Option<(u64, Instant)>,
    /// When its turn comes, by what the member has said.
    turn: Instant,
    quiet: Quiet,
}

/// A member that says nothing for so long hangs: three times what it may be silent for by default.
const HANGS_AFTER: Duration = Duration::from_secs(15);

impl Patience {
    fn new(silent_after: Duration, now: Instant) -> Self {
        Self {
            silent_after,
            front: None,
            turn: now,
            quiet: Quiet::new(now),
        }
    }

    /// The member has said that it serves us, and that our turn comes after so long.
    fn told(&mut self, owed: Duration, now: Instant) -> Result<(), MemberFault> {
        // That it serves us alone is no reason to wait for longer.
        if !owed.is_zero() {
            self.turn = now + owed.min(OWED_MAX);
        }
        self.heard(now)
    }

    /// The member has said something that is no answer.
    fn heard(&mut self, now: Instant) -> Result<(), MemberFault> {
        match self.quiet.spent(now) {
            true => Ok(()),
            false => Err(MemberFault::too_often()),
        }
    }

    /// Too long is told with all the time that the answer took, not with what was left of it.
    fn over(&self, fault: StreamFault) -> MemberFault {
        match (fault, self.front) {
            (StreamFault::Still { .. }, Some((_, since))) => MemberFault::Silent {
                after: since.elapsed(),
            },
            (fault, _) => fault.into(),
        }
    }

    /// How long nothing may come, if the answer to this batch is due, of which so many bytes are
    /// here.
    fn left(&mut self, batch: &Batch, here: usize, now: Instant) -> Duration {
        let since = match self.front {
            Some((of, since)) if of == batch.number => since,
            _ => now,
        };
        self.front = Some((batch.number, since));
        // The answer comes when the whole batch has arrived, and the turn of it.
        let turn = self.turn.clamp(since, since + OWED_MAX) - since;
        let moves = at_slowest(batch.frame.len()).saturating_add(at_slowest(here));
        let in_all = self.silent_after.saturating_add(moves).saturating_add(turn);
        let hangs = self.silent_after.max(HANGS_AFTER);
        in_all.saturating_sub(now - since).min(hangs)
    }
}

/// Operations as they come, cut into batches.
pub(super) struct Source {
    operations: Pin<Box<dyn Stream<Item = Operation> + Send>>,
    held: Option<Operation>,
    pub(super) ended: bool,
}

impl Source {
    pub(super) fn new(operations: Pin<Box<dyn Stream<Item = Operation> + Send>>) -> Self {
        Self {
            operations,
            held: None,
            ended: false,
        }
    }

    /// The next batch: what is there, up to its limits; waits until something is. `None` at the
    /// end. Cancel-safe: nothing is taken before it is ready.
    async fn next(&mut self) -> Option<Vec<Operation>> {
        poll_fn(|cx| {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < RUN_OPERATIONS_MAX {
                let next = match self.held.take() {
                    Some(held) => Poll::Ready(Some(held)),
                    None if self.ended => Poll::Ready(None),
                    None => self.operations.as_mut().poll_next(cx),
                };
                match next {
                    Poll::Pending if batch.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                    Poll::Ready(None) => {
                        self.ended = true;
                        break;
                    }
                    Poll::Ready(Some(operation)) => {
                        bytes += operation.bytes() as usize;
                        if bytes > RUN_BYTES && !batch.is_empty() {
                            self.held = Some(operation);
                            break;
                        }
                        batch.push(operation);
                    }
                }
            }
            Poll::Ready((!batch.is_empty()).then_some(batch))
        })
        .await
    }
}

/// Writes frames while answers are read: a member that answers takes nothing meanwhile.
struct Writer {
    frames: mpsc::Sender<Bytes>,
    task: AbortOnDropHandle<Result<(), StreamFault>>,
}

impl Writer {
    fn start(mut write: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        let (frames, mut next) = mpsc::channel::<Bytes>(1);
        let task = tokio::spawn(async move {
            while let Some(frame) = next.recv().await {
                // Who takes nothing answers nothing: that is waited for elsewhere.
                stream::write(&mut write, &frame, Duration::MAX).await?;
            }
            Ok(tokio::io::AsyncWriteExt::shutdown(&mut write).await?)
        });
        let task = AbortOnDropHandle::new(task);
        Self { frames, task }
    }

    /// Waits until the next frame may be handed over. Cancel-safe.
    async fn room(&self) -> Result<mpsc::Permit<'_, Bytes>, MemberFault> {
        let room = self.frames.reserve().await;
        room.map_err(|_| MemberFault::lost("the stream takes no more"))
    }

    /// Says goodbye, and waits until that is written. It matters to the member alone.
    async fn last(self, frame: Bytes) {
        const FAREWELL: Duration = Duration::from_secs(1);
        let Self { frames, task } = self;
        let bye = async {
            // Both fail where the stream is gone: then there is nobody to say it to.
            let _ = frames.send(frame).await;
            drop(frames);
            let _ = task.await;
        };
        let _ = timeout(FAREWELL, bye).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Duration = Duration::from_secs(15);

    fn batch(number: u64, length: usize) -> Batch {
        Batch {
            number,
            frame: vec![0; length].into(),
            operations: Vec::new(),
        }
    }

    #[test]
    fn a_member_that_hangs_is_left_soon_and_one_that_serves_gets_the_time_that_a_batch_needs() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(ASKED, start);
        let full = batch(7, RUN_BYTES);
        for seconds in (0..128).step_by(5) {
            // Nothing is heard for 15 s, however much is on its way.
            assert_eq!(patience.left(&full, 0, after(seconds)), ASKED);
            let told = patience.told(Duration::ZERO, after(seconds));
            assert!(told.is_ok(), "it serves");
        }
        let left = patience.left(&full, 0, after(142));
        assert_eq!(left, Duration::from_secs(1), "15 s, and 128 s for 1 MiB");
        let left = patience.left(&full, 64 * 1024, after(142));
        assert_eq!(left, Duration::from_secs(9), "an answer is coming in");
        let next = patience.left(&batch(8, 0), 0, after(142));
        assert_eq!(next, ASKED, "of the next one");
    }

    #[test]
    fn a_turn_is_waited_for_as_long_as_was_said_and_ten_minutes_at_the_most() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(ASKED, start);
        let one = batch(0, 0);
        patience.left(&one, 0, start);
        assert!(patience.told(Duration::from_secs(60), start).is_ok());
        let left = patience.left(&one, 0, after(70));
        assert_eq!(left, Duration::from_secs(5), "60 s and 15 s");
        for seconds in (70..700).step_by(5) {
            assert!(patience.told(Duration::MAX, after(seconds)).is_ok());
        }
        let left = patience.left(&one, 0, after(614));
        assert_eq!(left, Duration::from_secs(1), "not for ever");
        let often = (0..2_000).find(|_| patience.told(Duration::ZERO, after(700)).is_err());
        assert!(often.is_some(), "nor without end at once");
    }
}
