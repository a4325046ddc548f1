//! A member sends what a client lacks of a topic, and then what is new.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        frames::{
            Frame, Head, Heads, Height, LOGS_MAX, PullRequest, RUN_BYTES, RUN_OPERATIONS_MAX,
            encode_run,
        },
        outcome::Denied,
        stream::FrameReader,
    },
    ServeError, ServeLimits, Told, blocking, send,
};
use crate::log_store::{Author, Heights, Line, LogId, Logs, Quorate, Topic};

/// How far a client has come in each log.
type Sent = BTreeMap<(Author, LogId), u32>;

pub(super) async fn serve<R, W>(
    reader: &mut FrameReader<R>,
    write: &mut W,
    (logs, mut told): (Logs, Told),
    request: PullRequest,
    limits: &ServeLimits,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let topic = request.topic;
    // Before the heights are taken: what comes behind them wakes the follower.
    let mut committed = logs.committed();
    let mut quorate = logs.quorate();
    let heights = logs.heights_confirmed(topic, limits.confirm_within).await?;
    let line = line(&logs, topic).await?;
    if request.line.is_some_and(|it| it != line) {
        return Err(ServeError::denied(Denied::OtherLine));
    }
    let known = request.have.iter().map(|it| ((it.author, it.log), it.seq));
    let mut sender = Sender {
        logs,
        sent: known.collect(),
        seen: None,
        limits,
    };
    let (news, heads) = sender.plan(heights, line).await?;
    send(write, &Frame::Heads(heads).encode(), limits).await?;
    if let Some(members) = told.now() {
        send(write, &members.encode(), limits).await?;
    }
    sender.send(write, news, &mut quorate, &mut told).await?;
    if !request.follow {
        return Ok(());
    }
    // Other topics are written all the time: only what is sent puts it off.
    let heartbeat = limits.heartbeat();
    let mut due = Instant::now() + heartbeat;
    loop {
        tokio::select! {
            more = committed.changed() => {
                more.map_err(|_| ServeError::denied(Denied::Stopping))?;
                let news = sender.news(topic, line, Look::Glance).await?;
                if !news.is_empty() {
                    sender.send(write, news, &mut quorate, &mut told).await?;
                    due = Instant::now() + heartbeat;
                }
            }
            () = sleep_until(due) => {
                // Without news it is the heartbeat.
                let news = sender.news(topic, line, Look::All).await?;
                sender.send(write, news, &mut quorate, &mut told).await?;
                due = Instant::now() + heartbeat;
            }
            members = told.next() => send(write, &members.encode(), limits).await?,
            quorate = quorate.changed() => {
                if !quorate {
                    return Err(ServeError::denied(Denied::NoQuorum));
                }
            }
            asked = reader.next() => match asked? {
                None => return Ok(()),
                Some(_) => return Err(ServeError::unexpected("a second request")),
            },
        }
    }
}

/// The line of a topic that is open.
pub(super) async fn line(logs: &Logs, topic: Topic) -> Result<Line, ServeError> {
    let logs = logs.clone();
    let line = blocking(move || logs.topic(topic)).await?;
    line.ok_or_else(|| ServeError::denied(Denied::UnknownTopic))
}

/// How to look for news.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// At one record first: entries are applied all the time, and few of them are for this topic.
    Glance,
    /// At the heads of all logs: those that were put into the topic again are seen by nothing else.
    All,
}

/// A range of a log: after the first number, if any, through the second.
#[derive(Clone, Copy)]
struct Range {
    author: Author,
    log: LogId,
    after: Option<u32>,
    until: u32,
}

struct Sender<'a> {
    logs: Logs,
    sent: Sent,
    /// How many operations the topic had when its heads were looked at last.
    seen: Option<u64>,
    limits: &'a ServeLimits,
}

impl Sender<'_> {
    /// What the client lacks, and what it is told about that beforehand.
    async fn plan(
        &self,
        heights: Heights,
        line: Line,
    ) -> Result<(VecDeque<Range>, Heads), ServeError> {
        if heights.values().map(BTreeMap::len).sum::<usize>() > LOGS_MAX {
            return Err(ServeError::denied(Denied::TooManyLogs));
        }
        let (logs, sent) = (self.logs.clone(), self.sent.clone());
        blocking(move || {
            let news = lacking(&heights, &sent);
            let mut heads = Heads {
                line,
                logs: Vec::new(),
                operations: 0,
                bytes: 0,
            };
            for (author, log, last) in each(&heights) {
                let after = sent.get(&(author, log)).copied();
                let (operations, bytes) = logs.size(author, log, after, last)?;
                heads.operations += operations;
                heads.bytes += bytes;
                heads.logs.push(Head {
                    author,
                    log,
                    last,
                    operations,
                });
            }
            Ok((news, heads))
        })
        .await
    }

    /// What has come since.
    async fn news(
        &mut self,
        topic: Topic,
        line: Line,
        look: Look,
    ) -> Result<VecDeque<Range>, ServeError> {
        let record = self.logs.glance(topic);
        let record = record.map_err(|it| ServeError::Logs(it.into()))?;
        let (now, length) = record.ok_or_else(|| ServeError::denied(Denied::UnknownTopic))?;
        if now != line {
            return Err(ServeError::denied(Denied::OtherLine));
        }
        if look == Look::Glance && self.seen == Some(length) {
            return Ok(VecDeque::new());
        }
        // What is appended behind that look is seen in the next one.
        self.seen = Some(length);
        let logs = self.logs.clone();
        let heights = tokio::task::spawn_blocking(move || logs.heights_local(topic)).await;
        let heights = heights
            .map_err(io::Error::other)
            .map_err(|it| ServeError::Logs(it.into()))?;
        Ok(lacking(&heights?, &self.sent))
    }

    /// Sends all of it, a page being read while the one before is written, and says so.
    async fn send<W: AsyncWrite + Unpin>(
        &mut self,
        write: &mut W,
        news: VecDeque<Range>,
        quorate: &mut Quorate,
        told: &mut Told,
    ) -> Result<(), ServeError> {
        let mut grown = Vec::with_capacity(news.len());
        for range in &news {
            self.sent.insert((range.author, range.log), range.until);
            grown.push(Height {
                author: range.author,
                log: range.log,
                seq: range.until,
            });
        }
        let walk = Walk {
            logs: self.logs.clone(),
            left: news,
        };
        let mut reading = walk.read_on();
        loop {
            let (walk, frame) = reading
                .await
                .map_err(io::Error::other)
                .flatten()
                .map_err(|it| ServeError::Logs(it.into()))?;
            let Some(frame) = frame else { break };
            reading = walk.read_on();
            // It may go on for hours, and end with this member.
            if let Some(members) = told.due() {
                send(write, &members.encode(), self.limits).await?;
            }
            let sending = send(write, &frame, self.limits);
            tokio::pin!(sending);
            loop {
                tokio::select! {
                    sent = &mut sending => {
                        sent?;
                        break;
                    }
                    quorate = quorate.changed() => {
                        if !quorate {
                            return Err(ServeError::QuorumLost);
                        }
                    }
                }
            }
        }
        send(write, &Frame::CaughtUp(grown).encode(), self.limits).await
    }
}

/// What is left to be read.
struct Walk {
    logs: Logs,
    left: VecDeque<Range>,
}

impl Walk {
    fn read_on(mut self) -> JoinHandle<io::Result<(Self, Option<Bytes>)>> {
        tokio::task::spawn_blocking(move || {
            let frame = self.next()?;
            Ok((self, frame))
        })
    }

    /// The next run, as a frame. A log of which no more can be sent is passed over: its author has
    /// pruned it meanwhile.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(Range {
            author,
            log,
            after,
            until,
        }) = self.left.front().copied()
        {
            let page = (RUN_OPERATIONS_MAX, RUN_BYTES);
            let page = self.logs.page(author, log, after, until, page.0, page.1)?;
            match page.last() {
                None => drop(self.left.pop_front()),
                Some(last) => {
                    if last.seq >= until {
                        self.left.pop_front();
                    } else if let Some(range) = self.left.front_mut() {
                        range.after = Some(last.seq);
                    }
                    return Ok(Some(encode_run(author, log, &page)));
                }
            }
        }
        Ok(None)
    }
}

fn each(heights: &Heights) -> impl Iterator<Item = (Author, LogId, u32)> + '_ {
    let logs = |(author, logs): (&Author, &BTreeMap<LogId, u32>)| {
        let author = *author;
        let logs: Vec<_> = logs
            .iter()
            .map(|(log, last)| (author, *log, *last))
            .collect();
        logs
    };
    heights.iter().flat_map(logs)
}

fn lacking(heights: &Heights, sent: &Sent) -> VecDeque<Range> {
    let lacking = each(heights).filter_map(|(author, log, until)| {
        let after = sent.get(&(author, log)).copied();
        after.is_none_or(|it| it < until).then_some(Range {
            author,
            log,
            after,
            until,
        })
    });
    lacking.collect()
}

#[cfg(test)]
#[path = "tests/pull.rs"]
mod tests;
