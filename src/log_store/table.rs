//! Where everything lies in the log store's table. Frozen format: the bytes are on disk and in
//! snapshots.
//!
//! ```text
//! key                                  value; each begins with its version, 01
//! 01 ‖ topic 32                        topic: line 1 ‖ open 1 ‖ next number 8
//! 02 ‖ log 32 ‖ author 32              head: line 1 ‖ flags 1, and if operations are held
//!                                        ‖ first 4 ‖ last 4 ‖ id of the last 32
//!                                        ‖ bytes before the first 8 ‖ bytes through the last 8
//! 03 ‖ log 32 ‖ author 32 ‖ seq 4      operation: flags 1 ‖ number 8 ‖ bytes through it 8 ‖ id 32
//!                                        ‖ length of the header 4 ‖ header ‖ body
//! 04 ‖ id 32                           place: log 32 ‖ author 32 ‖ seq 4
//! 05 ‖ log 32 ‖ number 8               author 32 ‖ seq 4: the topic's commit order
//! 06 ‖ log 32 ‖ author 32              sweep: seq 4, the lowest pruned that may be left
//! 07 ‖ name                            note: index 8 ‖ offset 4 of its last change ‖ value
//! 08                                   notes: count 8 ‖ index 8 ‖ offset 4 of the last change
//! 09 ‖ log 32                          authors: count 4, of heads that hold and were not taken out
//! ```
//!
//! Numbers are big-endian, so that keys are ordered as they count. A topic's log has one id,
//! [`Topic::log_id`], so what belongs to a topic is found under that.
//!
//! # Invariants
//! - A head's operations, first through last, are all there, without a gap. What lies below the
//!   first is pruned: it counts as gone, and a sweep removes it later, some at a time.
//! - "Bytes through" counts header and body of every operation the log ever took, so the size of
//!   any range is one subtraction; how many operations it has is another, of its sequence numbers.
//! - A number of a topic's commit order is given once. Swept operations leave gaps.

pub(super) mod note;

use std::io;

use bytes::{BufMut, Bytes};

use super::operation::{Author, Line, LogId, OperationId, Topic};

const VERSION: u8 = 1;

const TOPIC: u8 = 1;
const HEAD: u8 = 2;
const OPERATION: u8 = 3;
const PLACE: u8 = 4;
const ORDER: u8 = 5;
const SWEEP: u8 = 6;
const AUTHORS: u8 = 9;

/// Of a head: the log was taken out of its topic.
const DISSOCIATED: u8 = 1;
/// Of a head: operations are held.
const HOLDS: u8 = 2;
/// Of a head: its first operation is no beginning, for it was pruned without the flag.
const CUT: u8 = 4;

/// Of an operation: it has a body.
const BODY: u8 = 1;

/// A topic that was opened once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicRecord {
    pub(super) line: Line,
    pub(super) open: bool,
    /// The number that the next operation in the topic's commit order gets.
    pub(super) next: u64,
}

/// One author's log of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) line: Line,
    /// False once the log was taken out of its topic.
    pub(super) associated: bool,
    pub(super) held: Option<Held>,
}

/// The operations that a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Everything below it is pruned.
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) last_id: OperationId,
    /// Whether somebody who holds nothing can begin at the first.
    pub(super) begins: bool,
    pub(super) bytes_before: u64,
    pub(super) bytes_through: u64,
}

/// An operation as it came, and what the store knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OperationRecord {
    /// Where it stands in the topic's commit order.
    pub(super) number: u64,
    pub(super) bytes_through: u64,
    pub(super) id: OperationId,
    pub(super) header: Bytes,
    pub(super) body: Option<Bytes>,
}

/// Which operation an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) log: LogId,
    pub(super) author: Author,
    pub(super) seq: u32,
}

pub(super) fn topic_key(topic: Topic) -> Vec<u8> {
    key(TOPIC, &[topic.as_bytes()])
}

pub(super) fn head_key(log: LogId, author: Author) -> Vec<u8> {
    key(HEAD, &[log.as_bytes(), author.as_bytes()])
}

pub(super) fn operation_key(log: LogId, author: Author, seq: u32) -> Vec<u8> {
    let seq = seq.to_be_bytes();
    key(OPERATION, &[log.as_bytes(), author.as_bytes(), &seq])
}

pub(super) fn place_key(id: OperationId) -> Vec<u8> {
    key(PLACE, &[id.as_bytes()])
}

pub(super) fn order_key(log: LogId, number: u64) -> Vec<u8> {
    key(ORDER, &[log.as_bytes(), &number.to_be_bytes()])
}

pub(super) fn sweep_key(log: LogId, author: Author) -> Vec<u8> {
    key(SWEEP, &[log.as_bytes(), author.as_bytes()])
}

pub(super) fn authors_key(log: LogId) -> Vec<u8> {
    key(AUTHORS, &[log.as_bytes()])
}

/// From the first to behind the last key of all topics.
pub(super) fn topics() -> (Vec<u8>, Vec<u8>) {
    (vec![TOPIC], vec![TOPIC + 1])
}

/// From the first to behind the last key of a log id's heads.
pub(super) fn heads(log: LogId) -> (Vec<u8>, Vec<u8>) {
    let from = key(HEAD, &[log.as_bytes()]);
    let to = behind(&from);
    (from, to)
}

/// From `first` to behind `last` of one log.
pub(super) fn operations(log: LogId, author: Author, first: u32, last: u32) -> (Vec<u8>, Vec<u8>) {
    let to = behind(&operation_key(log, author, last));
    (operation_key(log, author, first), to)
}

/// From number `first` to before number `end` of a topic's commit order.
pub(super) fn order(log: LogId, first: u64, end: u64) -> (Vec<u8>, Vec<u8>) {
    (order_key(log, first), order_key(log, end))
}

/// From the first to behind the last log that has something to be swept.
pub(super) fn sweeps() -> (Vec<u8>, Vec<u8>) {
    (vec![SWEEP], vec![SWEEP + 1])
}

pub(super) fn decode_topic_key(key: &[u8]) -> io::Result<Topic> {
    let mut from = Fields::of_key(key, TOPIC, "topic")?;
    let topic = Topic::from_bytes(from.array()?);
    from.end()?;
    Ok(topic)
}

pub(super) fn decode_head_key(key: &[u8]) -> io::Result<(LogId, Author)> {
    let mut from = Fields::of_key(key, HEAD, "head")?;
    let (log, author) = (from.log()?, from.author()?);
    from.end()?;
    Ok((log, author))
}

pub(super) fn decode_operation_key(key: &[u8]) -> io::Result<Place> {
    let mut from = Fields::of_key(key, OPERATION, "operation")?;
    let place = from.place()?;
    from.end()?;
    Ok(place)
}

pub(super) fn decode_order_key(key: &[u8]) -> io::Result<(LogId, u64)> {
    let mut from = Fields::of_key(key, ORDER, "order")?;
    let (log, number) = (from.log()?, from.u64()?);
    from.end()?;
    Ok((log, number))
}

pub(super) fn decode_sweep_key(key: &[u8]) -> io::Result<(LogId, Author)> {
    let mut from = Fields::of_key(key, SWEEP, "sweep")?;
    let (log, author) = (from.log()?, from.author()?);
    from.end()?;
    Ok((log, author))
}

impl TopicRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, line_byte(self.line), u8::from(self.open)];
        out.put_u64(self.next);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut from = Fields::of_record(bytes, "topic")?;
        let record = Self {
            line: from.line()?,
            open: from.u8()? != 0,
            next: from.u64()?,
        };
        from.end()?;
        Ok(record)
    }
}

impl Head {
    /// A log that holds nothing yet.
    pub(super) fn new(line: Line) -> Self {
        Self {
            line,
            associated: true,
            held: None,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        if !self.associated {
            flags |= DISSOCIATED;
        }
        if let Some(held) = &self.held {
            flags |= HOLDS;
            if !held.begins {
                flags |= CUT;
            }
        }
        let mut out = vec![VERSION, line_byte(self.line), flags];
        if let Some(held) = &self.held {
            out.put_u32(held.first);
            out.put_u32(held.last);
            out.put_slice(held.last_id.as_bytes());
            out.put_u64(held.bytes_before);
            out.put_u64(held.bytes_through);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut from = Fields::of_record(bytes, "head")?;
        let line = from.line()?;
        let flags = from.u8()?;
        let held = if flags & HOLDS == 0 {
            None
        } else {
            Some(Held {
                first: from.u32()?,
                last: from.u32()?,
                last_id: OperationId::from_bytes(from.array()?),
                begins: flags & CUT == 0,
                bytes_before: from.u64()?,
                bytes_through: from.u64()?,
            })
        };
        from.end()?;
        Ok(Self {
            line,
            associated: flags & DISSOCIATED == 0,
            held,
        })
    }
}

impl OperationRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let body = self.body.as_deref().unwrap_or_default();
        let mut out = Vec::with_capacity(RECORD_HEAD + self.header.len() + body.len());
        out.put_u8(VERSION);
        out.put_u8(if self.body.is_some() { BODY } else { 0 });
        out.put_u64(self.number);
        out.put_u64(self.bytes_through);
        out.put_slice(self.id.as_bytes());
        // A header is limited by the command that brought it.
        out.put_u32(u32::try_from(self.header.len()).unwrap_or(u32::MAX));
        out.put_slice(&self.header);
        out.put_slice(body);
        out
    }

    /// Header and body share the given bytes.
    pub(super) fn decode(bytes: &Bytes) -> io::Result<Self> {
        let mut from = Fields::of_record(bytes, "operation")?;
        let flags = from.u8()?;
        let number = from.u64()?;
        let bytes_through = from.u64()?;
        let id = OperationId::from_bytes(from.array()?);
        let length = from.u32()? as usize;
        let header = bytes.slice_ref(from.take(length)?);
        let rest = bytes.slice_ref(from.rest);
        let body = (flags & BODY != 0).then_some(rest);
        if body.is_none() {
            from.end()?;
        }
        Ok(Self {
            number,
            bytes_through,
            id,
            header,
            body,
        })
    }

    /// Only the fields in front of the header, without looking at the rest.
    pub(super) fn decode_front(bytes: &[u8]) -> io::Result<Front> {
        let mut from = Fields::of_record(bytes, "operation")?;
        from.u8()?;
        Ok(Front {
            number: from.u64()?,
            bytes_through: from.u64()?,
            id: OperationId::from_bytes(from.array()?),
        })
    }
}

/// The short half of an [`OperationRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Front {
    pub(super) number: u64,
    pub(super) bytes_through: u64,
    pub(super) id: OperationId,
}

/// What an operation's record has in front of the header, in bytes.
pub(super) const RECORD_HEAD: usize = 1 + 1 + 8 + 8 + 32 + 4;

impl Place {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_slice(self.log.as_bytes());
        out.put_slice(self.author.as_bytes());
        out.put_u32(self.seq);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut from = Fields::of_record(bytes, "place")?;
        let place = from.place()?;
        from.end()?;
        Ok(place)
    }
}

pub(super) fn encode_order(author: Author, seq: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_slice(author.as_bytes());
    out.put_u32(seq);
    out
}

pub(super) fn decode_order(bytes: &[u8]) -> io::Result<(Author, u32)> {
    let mut from = Fields::of_record(bytes, "order")?;
    let (author, seq) = (from.author()?, from.u32()?);
    from.end()?;
    Ok((author, seq))
}

pub(super) fn encode_sweep(seq: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_u32(seq);
    out
}

pub(super) fn decode_sweep(bytes: &[u8]) -> io::Result<u32> {
    let mut from = Fields::of_record(bytes, "sweep")?;
    let seq = from.u32()?;
    from.end()?;
    Ok(seq)
}

pub(super) fn encode_authors(count: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_u32(count);
    out
}

pub(super) fn decode_authors(bytes: &[u8]) -> io::Result<u32> {
    let mut from = Fields::of_record(bytes, "authors")?;
    let count = from.u32()?;
    from.end()?;
    Ok(count)
}

fn key(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|it| it.len()).sum();
    let mut out = Vec::with_capacity(1 + length);
    out.push(tag);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// The first key behind all that begin with this one. Tags are far below the highest byte, so
/// there always is one.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    while out.pop_if(|it| *it == u8::MAX).is_some() {}
    if let Some(last) = out.last_mut() {
        *last += 1;
    }
    out
}

fn line_byte(line: Line) -> u8 {
    match line {
        Line::V06 => 6,
        Line::V07 => 7,
    }
}

/// The fields of one key or record, taken from the front.
struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn of_key(key: &'a [u8], tag: u8, what: &'static str) -> io::Result<Self> {
        Self::behind(key, tag, what)
    }

    fn of_record(bytes: &'a [u8], what: &'static str) -> io::Result<Self> {
        Self::behind(bytes, VERSION, what)
    }

    fn behind(rest: &'a [u8], first: u8, what: &'static str) -> io::Result<Self> {
        let mut fields = Self { rest, what };
        if fields.u8()? == first {
            Ok(fields)
        } else {
            Err(fields.unknown("begins with an unknown byte: a newer program wrote it"))
        }
    }

    fn unknown(&self, why: &str) -> io::Error {
        let text = format!("a {} record of the log store {why}", self.what);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.unknown("ends too early"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let taken = self.take(N)?;
        <[u8; N]>::try_from(taken).map_err(|_| self.unknown("ends too early"))
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn line(&mut self) -> io::Result<Line> {
        match self.u8()? {
            6 => Ok(Line::V06),
            7 => Ok(Line::V07),
            _ => Err(self.unknown("is of an unknown line: a newer program wrote it")),
        }
    }

    fn log(&mut self) -> io::Result<LogId> {
        Ok(LogId::from_bytes(self.array()?))
    }

    fn author(&mut self) -> io::Result<Author> {
        Ok(Author::from_bytes(self.array()?))
    }

    fn place(&mut self) -> io::Result<Place> {
        Ok(Place {
            log: self.log()?,
            author: self.author()?,
            seq: self.u32()?,
        })
    }

    fn end(&self) -> io::Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.unknown("goes on after its end"))
        }
    }
}

#[cfg(test)]
#[path = "table/tests.rs"]
mod tests;
