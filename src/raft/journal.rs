//! openraft's log storage on top of our journal, with the newest entries kept in memory.
//!
//! Replication to each follower and the apply loop all read entries that were appended a moment
//! ago; they get them from the tail kept here and touch the store only when they lag.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{Entry, LogId, Types, Vote, codec, log_id};
use crate::storage::{Journal, Record};

/// Bytes of entries kept in memory for a group, besides at least one entry.
const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of entries read at once for one append message or one step of the apply loop.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// What an entry weighs in the tail besides its payload.
const ENTRY_OVERHEAD: usize = 96;

/// A group's journal as openraft sees it.
#[derive(Clone)]
pub(super) struct Log {
    journal: Journal,
    tail: Arc<Mutex<Tail>>,
}

/// The newest entries, contiguous, ending at the journal's last.
#[derive(Default)]
struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Log {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            tail: Arc::default(),
        }
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        // The tail is only ever changed by whole steps, so a panic elsewhere leaves it usable.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries from `range.start` on: all of the range that is there, or fewer once they exceed
    /// `bytes_max`, but at least one.
    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.tail().read(&range, bytes_max) {
            return Ok(entries);
        }
        self.journal
            .read(range, bytes_max)?
            .into_iter()
            .map(|it| codec::decode_entry(log_id(it.term, it.index), it.kind, it.payload))
            .collect()
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let range = bounds(&range);
        let mut entries = self.read(range.clone(), READ_BYTES_MAX)?;
        // The journal may stop early for its bytes; this method may not.
        while let Some(last) = entries.last() {
            let next = last.log_id.index + 1;
            let more = self.read(next..range.end, READ_BYTES_MAX)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend {
        // A piece at a time: a member that restarts may have gigabytes to apply.
        let range = bounds(&range);
        let log = self.clone();
        let pieces = stream::unfold((log, range), |(log, range)| async move {
            if range.is_empty() {
                return None;
            }
            let (piece, next) = match log.read(range.clone(), READ_BYTES_MAX) {
                Ok(entries) => {
                    let next = entries.last()?.log_id.index + 1;
                    (entries.into_iter().map(Ok).collect(), next)
                }
                Err(error) => (vec![Err(error)], range.end),
            };
            Some((stream::iter(piece), (log, next..range.end)))
        });
        futures_util::StreamExt::flatten(pieces)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.journal
            .vote()
            .map(|mut bytes| codec::take_vote(&mut bytes))
            .transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let id = |(term, index)| log_id(term, index);
        Ok(LogState {
            last_purged_log_id: self.journal.purged().map(id),
            last_log_id: self.journal.last().map(id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        let answer = Box::new(move |result| {
            // Nobody waits any more when Raft is being shut down.
            let _ = done.send(result);
        });
        self.journal.save_vote(codec::encode_vote(vote), answer)?;
        synced.await.unwrap_or_else(|_| {
            Err(io::Error::other(
                "the store stopped before the vote was synced",
            ))
        })
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.journal.save_committed(codec::encode_log_id(&id)),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        match self.journal.committed() {
            Some(mut bytes) => codec::take_log_id(&mut bytes),
            None => Ok(None),
        }
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let records: Vec<Record> = entries
            .iter()
            .map(|entry| {
                let (kind, payload) = codec::encode_payload(entry);
                Record {
                    index: entry.log_id.index,
                    term: entry.log_id.leader_id.term,
                    kind,
                    payload,
                }
            })
            .collect();
        // The tail is held until it has the entries too: once the callback has run, which it may
        // before `append` returns, everybody may ask for them.
        let mut tail = self.tail();
        self.journal.append(
            &records,
            Box::new(move |result| callback.io_completed(result)),
        )?;
        tail.append(entries);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |it| it.index + 1);
        self.tail().truncate_from(from);
        self.journal.truncate_from(from)
    }

    async fn purge(&mut self, through: LogId) -> io::Result<()> {
        self.tail().purge_through(through.index);
        self.journal
            .purge_through(through.leader_id.term, through.index)
    }
}

impl Tail {
    fn append(&mut self, entries: Vec<Entry>) {
        let follows = match (self.entries.back(), entries.first()) {
            (Some(last), Some(first)) => last.log_id.index + 1 == first.log_id.index,
            _ => true,
        };
        if !follows {
            // After a snapshot was installed the journal starts anew behind it.
            self.entries.clear();
            self.bytes = 0;
        }
        for entry in entries {
            self.bytes += weight(&entry);
            self.entries.push_back(entry);
        }
        while self.bytes > TAIL_BYTES_MAX && self.entries.len() > 1 {
            self.drop_first();
        }
    }

    fn read(&self, range: &Range<u64>, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.log_id.index;
        let skip = usize::try_from(range.start.checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in self.entries.iter().skip(skip) {
            if entry.log_id.index >= range.end || (bytes >= bytes_max && !found.is_empty()) {
                break;
            }
            bytes += weight(entry);
            found.push(entry.clone());
        }
        Some(found)
    }

    fn truncate_from(&mut self, index: u64) {
        while self
            .entries
            .back()
            .is_some_and(|it| it.log_id.index >= index)
        {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= weight(&entry);
            }
        }
    }

    fn purge_through(&mut self, index: u64) {
        while self
            .entries
            .front()
            .is_some_and(|it| it.log_id.index <= index)
        {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= weight(&entry);
        }
    }
}

fn weight(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        openraft::EntryPayload::Normal(command) => command.0.len(),
        _ => 0,
    };
    ENTRY_OVERHEAD + payload
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(it) => *it,
        Bound::Excluded(it) => it.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(it) => it.saturating_add(1),
        Bound::Excluded(it) => *it,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
