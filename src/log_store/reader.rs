//! What is read from the store: heights, ranges of a log, the commit order of a topic.
//!
//! Every function reads one moment of the table, so what it answers belongs together.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    ops::ControlFlow,
};

use bytes::Bytes;

use super::{
    machine::{NoteVersion, TOPIC_AUTHORS_MAX},
    operation::{Author, Line, LogId, Operation, OperationId, Topic},
    table::{self, Head, Held, OperationRecord, Place, TopicRecord, note},
};
use crate::machine::{Moment, Order};

/// Operations of one page.
pub(super) const PAGE_OPERATIONS_MAX: usize = 256;
/// Bytes of one page, of headers and bodies; its first operation may exceed them.
pub(super) const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// The highest sequence number of each log of a topic, by author.
pub type Heights = BTreeMap<Author, BTreeMap<LogId, u32>>;

/// An operation's bytes as they came, for a peer that reads them as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) seq: u32,
    pub(crate) header: Bytes,
    pub(crate) body: Option<Bytes>,
}

pub(super) fn topic(moment: &Moment<'_>, topic: Topic) -> io::Result<Option<TopicRecord>> {
    let value = moment.get(&table::topic_key(topic))?;
    value.map(|it| TopicRecord::decode(&it)).transpose()
}

/// The open topics and their lines.
pub(super) fn topics(moment: &Moment<'_>) -> io::Result<Vec<(Topic, Line)>> {
    let mut found = Vec::new();
    let (from, to) = table::topics();
    each(moment, &from, &to, |key, value| {
        let record = TopicRecord::decode(value)?;
        if record.open {
            found.push((table::decode_topic_key(key)?, record.line));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// How many authors a topic has, where that was written down.
pub(super) fn authors(moment: &Moment<'_>, topic: Topic) -> io::Result<Option<u32>> {
    let value = moment.get(&table::authors_key(topic.log_id()))?;
    value.map(|it| table::decode_authors(&it)).transpose()
}

/// Those of the authors that a topic has no room for: they are none of its own, and it is full.
/// Looked up before anything is proposed, so that making up authors costs the group nothing.
pub(super) fn strangers(
    moment: &Moment<'_>,
    topic: Topic,
    authors: impl Iterator<Item = Author>,
) -> io::Result<BTreeSet<Author>> {
    let mut found = BTreeSet::new();
    if self::authors(moment, topic)?.is_none_or(|it| it < TOPIC_AUTHORS_MAX) {
        return Ok(found);
    }
    for author in authors.collect::<BTreeSet<_>>() {
        let head = head(moment, author, topic.log_id())?;
        if head.is_none_or(|it| it.held.is_none()) {
            found.insert(author);
        }
    }
    Ok(found)
}

pub(super) fn heights(moment: &Moment<'_>, topic: Topic) -> io::Result<Heights> {
    let mut found = Heights::new();
    let (from, to) = table::heads(topic.log_id());
    each(moment, &from, &to, |key, value| {
        let head = Head::decode(value)?;
        if let (true, Some(held)) = (head.associated, head.held) {
            let (log, author) = table::decode_head_key(key)?;
            found.entry(author).or_default().insert(log, held.last);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

pub(super) fn head(moment: &Moment<'_>, author: Author, log: LogId) -> io::Result<Option<Head>> {
    let value = moment.get(&table::head_key(log, author))?;
    value.map(|it| Head::decode(&it)).transpose()
}

/// How many operations, and bytes of them, a peer is to be sent that holds the log through `after`.
pub(super) fn size(
    moment: &Moment<'_>,
    author: Author,
    log: LogId,
    after: Option<u32>,
    until: u32,
) -> io::Result<(u64, u64)> {
    let held = head(moment, author, log)?.and_then(|it| it.held);
    let Some((held, first, last)) = held.and_then(|it| sendable(it, after, until)) else {
        return Ok((0, 0));
    };
    let through = |seq: u32| {
        let value = moment.get(&table::operation_key(log, author, seq))?;
        let value = value.ok_or_else(|| missing(seq))?;
        OperationRecord::decode_front(&value).map(|it| it.bytes_through)
    };
    let before = if first == held.first {
        held.bytes_before
    } else {
        through(first - 1)?
    };
    let through = if last == held.last {
        held.bytes_through
    } else {
        through(last)?
    };
    let operations = u64::from(last - first) + 1;
    Ok((operations, through.saturating_sub(before)))
}

/// The next of them, in order.
pub(super) fn page(
    moment: &Moment<'_>,
    author: Author,
    log: LogId,
    after: Option<u32>,
    until: u32,
    limits: Limits,
) -> io::Result<Vec<Stored>> {
    let held = head(moment, author, log)?.and_then(|it| it.held);
    match held.and_then(|it| sendable(it, after, until)) {
        Some((_, first, last)) => range(moment, author, log, (first, last), limits),
        None => Ok(Vec::new()),
    }
}

/// Where a page ends: whichever comes first. One operation is always in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) operations: usize,
    pub(super) bytes: usize,
}

impl Limits {
    pub(super) const PAGE: Self = Self {
        operations: PAGE_OPERATIONS_MAX,
        bytes: PAGE_BYTES_MAX,
    };
}

/// Operations `first` to `last` of a log, which holds them.
pub(super) fn range(
    moment: &Moment<'_>,
    author: Author,
    log: LogId,
    (first, last): (u32, u32),
    limits: Limits,
) -> io::Result<Vec<Stored>> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let (from, to) = table::operations(log, author, first, last);
    each(moment, &from, &to, |key, value| {
        if found.len() >= limits.operations.max(1) {
            return Ok(ControlFlow::Break(()));
        }
        bytes += value.len().saturating_sub(table::RECORD_HEAD);
        if bytes > limits.bytes && !found.is_empty() {
            return Ok(ControlFlow::Break(()));
        }
        let Place { seq, .. } = table::decode_operation_key(key)?;
        let record = OperationRecord::decode(&Bytes::copy_from_slice(value))?;
        found.push(Stored {
            seq,
            header: record.header,
            body: record.body,
        });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// What of a log a peer can take that holds it through `after`: first and last sequence number.
///
/// Nothing where it would meet a hole: what it lacks is pruned, and the first that is left has not
/// the flag that says so. A stock node ends the session over such an operation.
fn sendable(held: Held, after: Option<u32>, until: u32) -> Option<(Held, u32, u32)> {
    let wanted = match after {
        Some(after) => after.checked_add(1)?,
        None => 0,
    };
    if wanted < held.first && !held.begins {
        return None;
    }
    let (first, last) = (wanted.max(held.first), until.min(held.last));
    (first <= last).then_some((held, first, last))
}

/// The number of each operation in its topic's commit order, where it is held.
pub(super) fn numbers(
    moment: &Moment<'_>,
    ids: impl IntoIterator<Item = OperationId>,
) -> io::Result<Vec<Option<u64>>> {
    let number = |id: OperationId| {
        let Some(value) = moment.get(&table::place_key(id))? else {
            return Ok(None);
        };
        let Place { log, author, seq } = Place::decode(&value)?;
        let held = head(moment, author, log)?.and_then(|it| it.held);
        if held.is_none_or(|it| seq < it.first) {
            return Ok(None); // pruned, and not swept yet
        }
        let value = moment.get(&table::operation_key(log, author, seq))?;
        let value = value.ok_or_else(|| missing(seq))?;
        OperationRecord::decode_front(&value).map(|it| Some(it.number))
    };
    ids.into_iter().map(number).collect()
}

/// A page of a topic's commit order.
pub(super) struct CommitPage {
    pub(super) operations: VecDeque<(u64, Operation)>,
    /// Where the next page begins.
    pub(super) next: u64,
}

/// The operations numbered `from` and up that are held, and where to go on.
pub(super) fn commits(
    moment: &Moment<'_>,
    topic: Topic,
    from: u64,
    limits: Limits,
) -> io::Result<CommitPage> {
    let mut page = CommitPage {
        operations: VecDeque::new(),
        next: from,
    };
    let Some(record) = self::topic(moment, topic)?.filter(|it| from < it.next) else {
        return Ok(page);
    };
    let log = topic.log_id();
    let mut firsts: BTreeMap<Author, Option<u32>> = BTreeMap::new();
    let (mut looked, mut bytes) = (0, 0);
    let mut full = false;
    let (start, to) = table::order(log, from, record.next);
    each(moment, &start, &to, |key, value| {
        let (_, number) = table::decode_order_key(key)?;
        let (author, seq) = table::decode_order(value)?;
        // What is pruned and not swept yet costs a look too.
        if looked == limits.operations || bytes > limits.bytes {
            page.next = number;
            full = true;
            return Ok(ControlFlow::Break(()));
        }
        looked += 1;
        let first = match firsts.get(&author) {
            Some(first) => *first,
            None => {
                let held = head(moment, author, log)?.and_then(|it| it.held);
                let first = held.map(|it| it.first);
                firsts.insert(author, first);
                first
            }
        };
        if first.is_none_or(|it| seq < it) {
            return Ok(ControlFlow::Continue(()));
        }
        let value = moment.get(&table::operation_key(log, author, seq))?;
        let value = value.ok_or_else(|| missing(seq))?;
        bytes += value.len();
        let stored = OperationRecord::decode(&value)?;
        let operation = decoded(record.line, stored.header, stored.body)?;
        page.operations.push_back((number, operation));
        Ok(ControlFlow::Continue(()))
    })?;
    if !full {
        page.next = record.next;
    }
    Ok(page)
}

/// The operation of this number, if it is held.
pub(super) fn commit(
    moment: &Moment<'_>,
    topic: Topic,
    number: u64,
) -> io::Result<Option<Operation>> {
    let one = Limits {
        operations: 1,
        bytes: 0,
    };
    let first = commits(moment, topic, number, one)?.operations.pop_front();
    Ok(first.filter(|it| it.0 == number).map(|it| it.1))
}

/// A small value that the members share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) name: Bytes,
    pub(crate) value: Bytes,
    pub(crate) version: NoteVersion,
}

/// The notes whose names begin so, in the order of their names.
pub(super) fn notes(moment: &Moment<'_>, prefix: &[u8]) -> io::Result<Vec<Note>> {
    let mut found = Vec::new();
    let (from, to) = note::range(prefix);
    each(moment, &from, &to, |key, value| {
        let (version, value) = note::decode(value)?;
        let name = note::name(key)?;
        found.push(Note {
            name,
            value,
            version,
        });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// The note of this name.
pub(super) fn note(moment: &Moment<'_>, name: &[u8]) -> io::Result<Option<Note>> {
    let Some(record) = moment.get(&note::key(name))? else {
        return Ok(None);
    };
    let (version, value) = note::decode(&record)?;
    let name = Bytes::copy_from_slice(name);
    Ok(Some(Note {
        name,
        value,
        version,
    }))
}

/// The last change of any note.
pub(super) fn notes_changed(moment: &Moment<'_>) -> io::Result<Option<NoteVersion>> {
    let stats = moment.get(&note::STATS)?;
    let stats = stats.map(|it| note::decode_stats(&it)).transpose()?;
    Ok(stats.map(|(_, last)| last))
}

/// An operation that was checked when it was taken.
pub(super) fn decoded(line: Line, header: Bytes, body: Option<Bytes>) -> io::Result<Operation> {
    Operation::decode(line, header, body).map_err(|refused| {
        let text = format!("the log store holds an operation that it does not take: {refused}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn missing(seq: u32) -> io::Error {
    let text = format!("the log store lacks operation {seq} of a log that holds it");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A scan whose visitor may fail.
fn each(
    moment: &Moment<'_>,
    from: &[u8],
    to: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let mut failed = None;
    moment.scan(from, to, Order::Ascending, &mut |key, value| {
        visit(key, value).unwrap_or_else(|error| {
            failed = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failed.map_or(Ok(()), Err)
}
