//! Streams of operations, read a page at a time, and what tells that there is more.

use std::{collections::VecDeque, ops::Bound};

use futures_util::{Stream, future::BoxFuture, stream};

use super::{
    Logs,
    error::LogError,
    machine::LogStore,
    operation::{Author, LogId, Operation, Topic},
    reader::{self, CommitPage, Limits},
};
use crate::{
    group::{Group, StatusWatch, Stopped},
    machine::Position,
};

/// A topic's operations in the order of their commits; see [`Logs::subscribe`].
pub(super) fn subscribe(
    logs: Logs,
    topic: Topic,
    from: u64,
) -> impl Stream<Item = Result<(u64, Operation), LogError>> + Send + 'static {
    stream::unfold(Some(Commits::new(logs, topic, from)), |state| async move {
        let mut state = state?;
        loop {
            match state.next().await {
                Ok(Some(item)) => return Some((Ok(item), Some(state))),
                Ok(None) => {}
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}

/// The same, for who wants to know how far it has looked.
pub(crate) struct Commits {
    logs: Logs,
    topic: Topic,
    page: CommitPage,
    /// The read of the next page, which goes on where a call was dropped.
    reading: Option<BoxFuture<'static, Result<CommitPage, LogError>>>,
}

impl Commits {
    pub(super) fn new(logs: Logs, topic: Topic, from: u64) -> Self {
        let page = CommitPage {
            operations: VecDeque::new(),
            next: from,
        };
        Self {
            logs,
            topic,
            page,
            reading: None,
        }
    }

    /// All that is held below this number has been given.
    pub(crate) fn position(&self) -> u64 {
        let next = self.page.operations.front().map(|(number, _)| *number);
        next.unwrap_or(self.page.next)
    }

    /// The next one; none where some numbers were passed that are pruned. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, Operation)>, LogError> {
        loop {
            if let Some(item) = self.page.operations.pop_front() {
                return Ok(Some(item));
            }
            if let Some(reading) = &mut self.reading {
                let page = reading.await;
                self.reading = None;
                self.page = page?;
                if self.page.operations.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            // Before the look: what is applied behind it wakes the wait.
            let seen = self.logs.group.applied();
            let (topic, next) = (self.topic, self.page.next);
            let record = self.logs.moment(|it| reader::topic(it, topic));
            let record = record.map_err(|error| self.logs.unreadable(error.into()))?;
            if record.is_none_or(|it| it.next <= next) {
                let more = self.logs.group.applied_beyond(seen).await;
                more.map_err(LogError::Stopped)?;
                continue;
            }
            let logs = self.logs.clone();
            self.reading = Some(Box::pin(async move {
                let page = logs.elsewhere(move |it| reader::commits(it, topic, next, Limits::PAGE));
                page.await
            }));
        }
    }
}

/// A range of one log; see [`Logs::read`].
pub(super) fn read(
    logs: Logs,
    author: Author,
    log: LogId,
    (from, to): (Bound<u32>, Bound<u32>),
) -> impl Stream<Item = Result<Operation, LogError>> + Send + 'static {
    let first = match from {
        Bound::Included(first) => Some(first),
        Bound::Excluded(before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let last = match to {
        Bound::Included(last) => Some(last),
        Bound::Excluded(behind) => behind.checked_sub(1),
        Bound::Unbounded => Some(u32::MAX),
    };
    let start = Range {
        logs,
        author,
        log,
        left: first.zip(last).filter(|(first, last)| first <= last),
        begun: false,
        page: VecDeque::new(),
    };
    stream::unfold(Some(start), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(item) => item.map(|it| (Ok(it), Some(state))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Range {
    logs: Logs,
    author: Author,
    log: LogId,
    /// The first and the last sequence number that may still come.
    left: Option<(u32, u32)>,
    begun: bool,
    page: VecDeque<Operation>,
}

impl Range {
    async fn next(&mut self) -> Result<Option<Operation>, LogError> {
        loop {
            if let Some(operation) = self.page.pop_front() {
                return Ok(Some(operation));
            }
            let Some((first, last)) = self.left else {
                return Ok(None);
            };
            if !self.begun {
                self.logs.confirmed(self.logs.group.query_timeout()).await?;
            }
            let (author, log) = (self.author, self.log);
            let page = self.logs.elsewhere(move |moment| {
                let head = reader::head(moment, author, log)?;
                let Some((head, held)) = head.and_then(|it| it.held.map(|held| (it, held))) else {
                    return Ok((VecDeque::new(), 0));
                };
                let (first, last) = (first.max(held.first), last.min(held.last));
                if first > last {
                    return Ok((VecDeque::new(), last));
                }
                let stored = reader::range(moment, author, log, (first, last), Limits::PAGE)?;
                let decoded = stored.into_iter();
                let decoded = decoded.map(|it| reader::decoded(head.line, it.header, it.body));
                decoded.collect::<Result<_, _>>().map(|page| (page, last))
            });
            let (page, end) = page.await?;
            // The first page settles where the log ends.
            let last = if self.begun { last } else { last.min(end) };
            (self.begun, self.page) = (true, page);
            let next = self.page.back().and_then(|it| it.seq().checked_add(1));
            self.left = next.map(|next| (next, last)).filter(|it| it.0 <= it.1);
        }
    }
}

/// Tells when this member has applied more: what was appended is then there to be read.
pub(crate) struct Committed {
    group: Group<LogStore>,
    seen: Position,
}

impl Committed {
    pub(super) fn new(group: Group<LogStore>) -> Self {
        let seen = group.applied();
        Self { group, seen }
    }

    /// Waits until something was applied since this was made or last returned. Not everything
    /// applied is an append, so look. Cancel-safe.
    ///
    /// # Errors
    /// The group does not run on this node any more.
    pub(crate) async fn changed(&mut self) -> Result<(), Stopped> {
        self.seen = self.group.applied_beyond(self.seen).await?;
        Ok(())
    }
}

/// Tells whether this member reaches a quorum.
pub(crate) struct Quorate {
    watch: StatusWatch<LogStore>,
    told: bool,
}

impl Quorate {
    pub(super) fn new(group: &Group<LogStore>) -> Self {
        let watch = group.watch_status();
        let told = holds(&watch);
        Self { watch, told }
    }

    /// Whether it does, now; false once the group has stopped here.
    pub(crate) fn now(&self) -> bool {
        holds(&self.watch)
    }

    /// Waits until that is another than was told last, and tells it. For ever, once the group has
    /// stopped and that was told. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> bool {
        while holds(&self.watch) == self.told {
            self.watch.changed().await;
        }
        self.told = !self.told;
        self.told
    }
}

fn holds(watch: &StatusWatch<LogStore>) -> bool {
    let status = watch.now();
    status.quorum && status.stopped.is_none()
}
