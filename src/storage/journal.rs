//! One group's Raft log on the disk: append, read, truncate, purge, and the vote.
//!
//! Where the journal begins and ends is kept in memory, found at open by one seek from each side.
//! Appends are readable at once and durable after the flusher's next sync; the vote waits at the
//! same barrier, so the disk never sees them in another order than Raft does.

use std::{
    fmt, io,
    ops::{ControlFlow, Range},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{
    LocalGroup,
    engine::{Batch, Family, Order},
    flusher::{Flusher, Synced},
    keys::{self, Point, RecordHead, Tag},
};
use crate::metrics::Counters;

/// Up to so many records are deleted one by one, more by a range. A range tombstone is one write
/// however long it is, but every read through its table has to consider it; point tombstones lie
/// where our bounded reads never pass. Conflicts truncate few records and often, purges many and
/// rarely.
const POINT_DELETES_MAX: u64 = 32;

/// One record of the journal; `kind` and `payload` are the business of whoever writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
}

/// A handle to one group's journal; all handles share one state.
///
/// # Invariants
/// - Indexes are contiguous from just above the purged point on (from anywhere, if nothing was
///   ever purged). A hole is an error, at open at either end and at each read in between.
/// - An append never overwrites: `truncate_from` comes first.
/// - The vote, once written, is what every later `vote` returns; it is never read back from disk.
#[derive(Clone)]
pub(crate) struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    local: LocalGroup,
    flusher: Arc<Flusher>,
    counters: Arc<Counters>,
    /// Held through a write of the engine, so that bounds change in the order of the writes.
    writer: Mutex<()>,
    bounds: RwLock<Bounds>,
    notes: RwLock<Notes>,
    removed: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    purged: Option<Point>,
    /// The first record that is held, and the last.
    held: Option<(u64, Point)>,
    /// Counts truncates and purges: a reader that met one reads again.
    generation: u64,
    /// A place whose bytes were looked up before; asked for again and again until it moves.
    marked: Option<Point>,
}

#[derive(Clone, Debug, Default)]
struct Notes {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
}

impl Journal {
    pub(super) fn open(
        local: LocalGroup,
        flusher: Arc<Flusher>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let note = |tag| -> io::Result<Option<Bytes>> {
            let key = keys::meta(local.number(), tag);
            match flusher.value(Family::Meta, &key)? {
                None => Ok(None),
                Some(value) => keys::unseal(&key, &value)
                    .map(|body| Some(Bytes::copy_from_slice(body)))
                    .ok_or_else(|| damaged(local, format_args!("its {tag:?} record"))),
            }
        };
        let notes = Notes {
            vote: note(Tag::Vote)?,
            committed: note(Tag::Committed)?,
        };
        let purged = match note(Tag::Purged)? {
            None => None,
            Some(body) => {
                Some(Point::decode(&body).ok_or_else(|| damaged(local, "its purged point"))?)
            }
        };
        let held = find_held(local, &flusher, purged)?;
        let bounds = Bounds {
            purged,
            held,
            ..Bounds::default()
        };
        let inner = Inner {
            local,
            flusher,
            counters,
            writer: Mutex::new(()),
            bounds: RwLock::new(bounds),
            notes: RwLock::new(notes),
            removed: AtomicBool::new(false),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Writes the records in one batch: readable on return, durable when `done` is told so.
    ///
    /// Does not block, except while the flusher's queue is full. Either this fails and `done` is
    /// never called, or `done` is called once.
    ///
    /// # Errors
    /// `InvalidInput` if the records do not follow the last one without a gap or an overlap,
    /// `StorageFull` below the reserve of free space; any other error is final.
    pub(crate) fn append(&self, records: &[Record], done: Synced) -> io::Result<()> {
        let inner = &*self.inner;
        let writer = inner.writer()?;
        let Some(first) = records.first() else {
            drop(writer);
            return inner.flusher.when_synced(done);
        };
        let bounds = *inner.bounds();
        let next = bounds.end().map_or(first.index, |last| last.index + 1);
        let mut bytes = bounds.end().map_or(0, |last| last.bytes);
        let start = bytes;
        let room: usize = records
            .iter()
            .map(|r| keys::RECORD_OVERHEAD_BYTES + r.payload.len())
            .sum();
        let mut batch = Batch::with_capacity(records.len(), room);
        let mut last = None;
        for (expected, record) in (next..).zip(records) {
            if record.index != expected {
                return Err(inner.misplaced(record.index, expected));
            }
            bytes += body_bytes(&record.payload);
            let head = RecordHead {
                term: record.term,
                bytes,
                kind: record.kind,
            };
            let key = keys::journal(inner.local.number(), record.index);
            batch.put(Family::Journal, &key, &[&head.encode(), &record.payload]);
            last = Some(Point {
                term: record.term,
                index: record.index,
                bytes,
            });
        }
        fail::fail_point!("journal::append::before_write");
        inner.flusher.write(&batch)?;
        fail::fail_point!("journal::append::after_write");
        if let Some(last) = last {
            let mut bounds = inner.bounds_mut();
            let first = bounds.held.map_or(first.index, |(first, _)| first);
            bounds.held = Some((first, last));
        }
        drop(writer);
        inner.counters.journal_entries.add(records.len() as u64);
        inner.counters.journal_bytes.add(bytes - start);
        inner.flusher.when_synced(done)
    }

    /// The records of the range, as they stood at one moment. Starts behind the purged point;
    /// stops early at the end of the journal or before a record that would exceed `bytes_max` of
    /// payload (the first is returned whatever its size).
    ///
    /// # Errors
    /// `InvalidData`, naming group and index, for a damaged record or a hole.
    pub(crate) fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Record>> {
        loop {
            let bounds = *self.inner.bounds();
            match self.inner.read(&bounds, &range, bytes_max) {
                // It was cut while we read, and what we saw is not damage: look again.
                Err(_) if self.inner.bounds().generation != bounds.generation => {}
                result => return result,
            }
        }
    }

    /// Term and index of the last record, or of the purged point if none is held.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        self.inner
            .bounds()
            .end()
            .map(|point| (point.term, point.index))
    }

    /// Term and index up to which the journal was purged.
    pub(crate) fn purged(&self) -> Option<(u64, u64)> {
        self.inner
            .bounds()
            .purged
            .map(|point| (point.term, point.index))
    }

    /// Deletes the records from `index` on. Not synced: losing it brings back records that nobody
    /// was promised anything about, and what is appended next is synced after it.
    ///
    /// # Errors
    /// Any error is final.
    pub(crate) fn truncate_from(&self, index: u64) -> io::Result<()> {
        let inner = &*self.inner;
        let _writer = inner.writer()?;
        let bounds = *inner.bounds();
        let Some((first, last)) = bounds.held else {
            return Ok(());
        };
        let from = index.max(first);
        if from > last.index {
            return Ok(());
        }
        let held = match from.checked_sub(1).filter(|end| *end >= first) {
            None => None,
            Some(end) => Some((first, inner.point(end)?)),
        };
        let mut batch = Batch::new();
        inner.delete(&mut batch, from..last.index + 1);
        let mut bounds = inner.bounds_mut();
        fail::fail_point!("journal::truncate::before_write");
        inner.flusher.write_freeing(&batch)?;
        fail::fail_point!("journal::truncate::after_write");
        bounds.held = held;
        bounds.marked = None;
        bounds.generation += 1;
        Ok(())
    }

    /// Deletes the records up to and including `index`, and notes that point, in one batch. Not
    /// synced. A point beyond the last record empties the journal; one behind the purged point
    /// changes nothing.
    ///
    /// # Errors
    /// Any error is final.
    pub(crate) fn purge_through(&self, term: u64, index: u64) -> io::Result<()> {
        let inner = &*self.inner;
        let _writer = inner.writer()?;
        let bounds = *inner.bounds();
        if bounds.purged.is_some_and(|purged| purged.index >= index) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let mut purged = Point {
            term,
            index,
            bytes: bounds.purged.map_or(0, |purged| purged.bytes),
        };
        let mut held = bounds.held;
        if let Some((first, last)) = bounds.held.filter(|(first, _)| *first <= index) {
            inner.delete(&mut batch, first..last.index.min(index) + 1);
            if index < last.index {
                purged.bytes = inner.point(index)?.bytes;
                held = Some((index + 1, last));
            } else {
                purged.bytes = last.bytes;
                held = None;
            }
        }
        let key = keys::meta(inner.local.number(), Tag::Purged);
        batch.put(Family::Meta, &key, &[&purged.encode()]);
        let mut bounds = inner.bounds_mut();
        fail::fail_point!("journal::purge::before_write");
        inner.flusher.write_freeing(&batch)?;
        fail::fail_point!("journal::purge::after_write");
        bounds.purged = Some(purged);
        bounds.held = held;
        bounds.generation += 1;
        Ok(())
    }

    /// Writes the vote; `done` as with [`Journal::append`].
    ///
    /// # Errors
    /// As with [`Journal::append`].
    pub(crate) fn save_vote(&self, vote: Bytes, done: Synced) -> io::Result<()> {
        let inner = &*self.inner;
        let writer = inner.writer()?;
        let mut batch = Batch::new();
        batch.put(
            Family::Meta,
            &keys::meta(inner.local.number(), Tag::Vote),
            &[&vote],
        );
        fail::fail_point!("journal::vote::before_write");
        inner.flusher.write(&batch)?;
        fail::fail_point!("journal::vote::after_write");
        inner.notes_mut().vote = Some(vote);
        drop(writer);
        inner.flusher.when_synced(done)
    }

    /// The last vote written.
    pub(crate) fn vote(&self) -> Option<Bytes> {
        self.inner.notes().vote.clone()
    }

    /// Notes how far the journal is known to be committed. A hint: not synced.
    ///
    /// # Errors
    /// As with [`Journal::append`].
    pub(crate) fn save_committed(&self, committed: Bytes) -> io::Result<()> {
        let inner = &*self.inner;
        let _writer = inner.writer()?;
        let mut batch = Batch::new();
        batch.put(
            Family::Meta,
            &keys::meta(inner.local.number(), Tag::Committed),
            &[&committed],
        );
        inner.flusher.write(&batch)?;
        inner.notes_mut().committed = Some(committed);
        Ok(())
    }

    /// The last hint of [`Journal::save_committed`] that survived.
    pub(crate) fn committed(&self) -> Option<Bytes> {
        self.inner.notes().committed.clone()
    }

    /// Bytes of the records held behind `index`; of all records held if that place is unknown.
    pub(crate) fn bytes_since(&self, index: u64) -> u64 {
        let inner = &*self.inner;
        let bounds = *inner.bounds();
        let Some((first, last)) = bounds.held else {
            return 0;
        };
        if index >= last.index {
            return 0;
        }
        let all = last.bytes - bounds.purged.map_or(0, |purged| purged.bytes);
        if index < first {
            return all;
        }
        if let Some(marked) = bounds.marked.filter(|marked| marked.index == index) {
            return last.bytes.saturating_sub(marked.bytes);
        }
        // A reader that raced with a cut finds nothing here; the next question answers it.
        let Ok(point) = inner.point(index) else {
            return all;
        };
        let mut now = inner.bounds_mut();
        if now.generation == bounds.generation {
            now.marked = Some(point);
        }
        last.bytes.saturating_sub(point.bytes)
    }

    /// The group is gone: whoever still holds a handle writes no more.
    pub(super) fn mark_removed(&self) {
        // With the lock: a write that began before is made before the data is deleted.
        let _writer = self
            .inner
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.inner.removed.store(true, Ordering::Release);
    }
}

impl Inner {
    fn writer(&self) -> io::Result<MutexGuard<'_, ()>> {
        let guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.removed.load(Ordering::Acquire) {
            let text = format!("group {} was removed from this node", self.local);
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(guard)
    }

    fn bounds(&self) -> RwLockReadGuard<'_, Bounds> {
        self.bounds.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounds_mut(&self) -> RwLockWriteGuard<'_, Bounds> {
        self.bounds.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> RwLockReadGuard<'_, Notes> {
        self.notes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes_mut(&self) -> RwLockWriteGuard<'_, Notes> {
        self.notes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(
        &self,
        bounds: &Bounds,
        range: &Range<u64>,
        bytes_max: usize,
    ) -> io::Result<Vec<Record>> {
        let Some((first, last)) = bounds.held else {
            return Ok(Vec::new());
        };
        let start = range.start.max(first);
        let end = range.end.min(last.index + 1);
        let mut records = Vec::new();
        if start >= end {
            return Ok(records);
        }
        let mut expected = start;
        let mut bytes = 0;
        let mut full = false;
        let mut broken = None;
        let from = keys::journal(self.local.number(), start);
        let to = keys::journal(self.local.number(), end);
        self.flusher.scan(
            Family::Journal,
            &from,
            &to,
            Order::Ascending,
            &mut |key, value| {
                if keys::journal_index(key) != Some(expected) {
                    return ControlFlow::Break(());
                }
                let Some((head, payload)) = keys::unseal(key, value).and_then(RecordHead::decode)
                else {
                    broken = Some(damaged(self.local, format_args!("record {expected}")));
                    return ControlFlow::Break(());
                };
                bytes += payload.len();
                full = bytes > bytes_max && !records.is_empty();
                if full {
                    return ControlFlow::Break(());
                }
                records.push(Record {
                    index: expected,
                    term: head.term,
                    kind: head.kind,
                    payload: Bytes::copy_from_slice(payload),
                });
                expected += 1;
                ControlFlow::Continue(())
            },
        )?;
        match broken {
            Some(error) => Err(error),
            None if !full && expected != end => Err(hole(self.local, expected)),
            None => Ok(records),
        }
    }

    /// Term and bytes of a record that is held.
    fn point(&self, index: u64) -> io::Result<Point> {
        let key = keys::journal(self.local.number(), index);
        let value = self
            .flusher
            .value(Family::Journal, &key)?
            .ok_or_else(|| hole(self.local, index))?;
        let (head, _) = keys::unseal(&key, &value)
            .and_then(RecordHead::decode)
            .ok_or_else(|| damaged(self.local, format_args!("record {index}")))?;
        Ok(Point {
            term: head.term,
            index,
            bytes: head.bytes,
        })
    }

    fn delete(&self, batch: &mut Batch, range: Range<u64>) {
        let group = self.local.number();
        if range.end - range.start <= POINT_DELETES_MAX {
            for index in range {
                batch.delete(Family::Journal, &keys::journal(group, index));
            }
        } else {
            let (from, to) = (
                keys::journal(group, range.start),
                keys::journal(group, range.end),
            );
            batch.delete_range(Family::Journal, &from, &to);
        }
    }

    fn misplaced(&self, index: u64, expected: u64) -> io::Error {
        let text = format!(
            "group {}: record {index} appended where {expected} comes next; truncate first",
            self.local
        );
        io::Error::new(io::ErrorKind::InvalidInput, text)
    }
}

impl Bounds {
    /// The last record, or the purged point if none is held.
    fn end(&self) -> Option<Point> {
        self.held.map(|(_, last)| last).or(self.purged)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = *self.inner.bounds();
        f.debug_struct("Journal")
            .field("group", &self.inner.local)
            .field("purged", &bounds.purged)
            .field("held", &bounds.held)
            .finish_non_exhaustive()
    }
}

/// One seek from each end. The first record must carry on where the purged point ended, by its
/// index and by its count of bytes, so a missing beginning shows without a scan.
fn find_held(
    local: LocalGroup,
    flusher: &Flusher,
    purged: Option<Point>,
) -> io::Result<Option<(u64, Point)>> {
    let from = keys::journal(local.number(), purged.map_or(0, |purged| purged.index + 1));
    let to = keys::journal_end(local.number());
    let seek = |order| -> io::Result<Option<(Point, u64)>> {
        let mut found = None;
        flusher.scan(Family::Journal, &from, &to, order, &mut |key, value| {
            let index = keys::journal_index(key).unwrap_or_default();
            let record = keys::unseal(key, value).and_then(RecordHead::decode);
            found = Some((
                index,
                record.map(|(head, payload)| (head, body_bytes(payload))),
            ));
            ControlFlow::Break(())
        })?;
        match found {
            None => Ok(None),
            Some((index, None)) => Err(damaged(local, format_args!("record {index}"))),
            Some((index, Some((head, own)))) => Ok(Some((
                Point {
                    term: head.term,
                    index,
                    bytes: head.bytes,
                },
                own,
            ))),
        }
    };
    let (Some((first, own)), Some((last, _))) = (seek(Order::Ascending)?, seek(Order::Descending)?)
    else {
        return Ok(None);
    };
    let expected = purged.map_or(first.index, |purged| purged.index + 1);
    let bytes_before = purged.map_or(0, |purged| purged.bytes);
    if first.index != expected || bytes_before.checked_add(own) != Some(first.bytes) {
        let text = format!(
            "the journal of group {local} is damaged: what came before {first:?} is missing"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if last.index < first.index || last.bytes < first.bytes {
        return Err(damaged(local, format_args!("record {}", last.index)));
    }
    Ok(Some((first.index, last)))
}

/// What a record counts for: its payload and what the journal adds to it.
fn body_bytes(payload: &[u8]) -> u64 {
    (keys::RECORD_OVERHEAD_BYTES + payload.len()) as u64
}

fn damaged(local: LocalGroup, what: impl fmt::Display) -> io::Error {
    let text = format!("the journal of group {local} is damaged: {what} fails its checksum");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn hole(local: LocalGroup, index: u64) -> io::Error {
    let text = format!("the journal of group {local} is damaged: record {index} is missing");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
