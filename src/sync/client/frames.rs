//! The messages of our own outside client as bytes. No I/O.
//!
//! ```text
//! frame = length u32 BE ‖ tag ‖ fields     plain postcard; names are raw 32 bytes
//!
//!  0 Pull       topic, line?, follow, have: [author, log, height, last id]      client
//!  1 Push       topic, line?                                                    client
//!  2 Batch      number, [header, body?]                                         client
//!  3 End                                                                        client
//!  4 Heads      line, [author, log, last, operations], operations, bytes        server
//!  5 Run        author, log, first seq, [header, body?]                         server
//!  6 CaughtUp   [author, log, height]: those that grew since the last           server
//!  7 Committed  number, outcomes in runs                                        server
//!  8 Refused    why, text                                                       server
//!  9 Wait       ms until the next Batch is read, 0 if it is being taken          server
//! 10 Members    the doors of all members, as a ticket of version 2 lists them    server
//! ```
//!
//! Frozen: a changed message gets a new protocol name. What may grow, the reasons of refusals, is
//! read leniently: a number that is not known is [`Denied::Other`] or [`PushRule::Other`].

mod outcomes;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use self::outcomes::{read_outcomes, read_text, write_outcomes};
use super::{
    super::{
        codec::{FrameFault, Frames, NAMELESS, PostcardReader, PostcardWrite, WireFault, framed},
        member_addr::MemberAddr,
        ticket::{self, LogTicket},
    },
    outcome::{Denied, PushOutcome, PushRefused, PushRule},
};
use crate::log_store::{
    Author, BODY_BYTES_MAX, HEADER_BYTES_MAX, Line, LogId, OperationId, RawOperation, Stored, Topic,
};

/// The longest frame, in bytes: room for the largest operation, and for the most logs.
pub(crate) const FRAME_MAX: usize = 9 * 1024 * 1024;
/// The longest frame of whoever has not been admitted yet, in bytes; a Pull is judged by its topic.
pub(crate) const STRANGER_FRAME_MAX: usize = 64;
/// The most logs of one topic that one session can speak of.
pub(crate) const LOGS_MAX: usize = 65_536;
/// Bytes of headers and bodies of one run or batch; more only where it has a single operation.
pub(crate) const RUN_BYTES: usize = 1024 * 1024;
/// The most operations of one run or batch.
pub(crate) const RUN_OPERATIONS_MAX: usize = 4_096;
/// The longest that a client waits for its turn to push, in all, once it has sent something.
pub(crate) const OWED_MAX: Duration = Duration::from_secs(600);
/// The longest list of members, in bytes: one that a ticket has room for is shorter.
const MEMBERS_BYTES_MAX: usize = LogTicket::TEXT_BYTES_MAX;
/// The longest text of a refusal, in bytes.
pub(crate) const TEXT_MAX: usize = 512;

/// A log with its height and its newest id, or a log's head.
const LOG_BYTES_MAX: usize = 32 + 32 + 5 + 32;
/// What a refused operation of a batch takes at most.
const OUTCOME_BYTES_MAX: usize = TEXT_MAX + 16;
/// What a frame has besides operations, logs and outcomes.
const REST: usize = 128;

const _: () = assert!(
    HEADER_BYTES_MAX as usize + BODY_BYTES_MAX as usize + 2 * REST <= FRAME_MAX
        && LOGS_MAX * LOG_BYTES_MAX + REST <= FRAME_MAX
        && RUN_BYTES + RUN_OPERATIONS_MAX * 8 + REST <= FRAME_MAX
        && RUN_OPERATIONS_MAX * OUTCOME_BYTES_MAX + REST <= FRAME_MAX,
    "whatever may be sent fits into a frame"
);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame {
    Pull(PullRequest),
    Push {
        topic: Topic,
        line: Option<Line>,
    },
    Batch {
        number: u64,
        operations: Vec<RawOperation>,
    },
    End,
    Heads(Heads),
    Run(Run),
    CaughtUp(Vec<Height>),
    Committed {
        number: u64,
        outcomes: Vec<PushOutcome>,
    },
    Refused {
        why: Denied,
        text: String,
    },
    Wait {
        ms: u64,
    },
    /// At least one.
    Members(Vec<MemberAddr>),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PullRequest {
    pub(crate) topic: Topic,
    pub(crate) line: Option<Line>,
    pub(crate) follow: bool,
    pub(crate) have: Vec<Known>,
}

/// A log as the client holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) author: Author,
    pub(crate) log: LogId,
    pub(crate) seq: u32,
    pub(crate) id: OperationId,
}

/// What the server has and is about to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) line: Line,
    pub(crate) logs: Vec<Head>,
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) author: Author,
    pub(crate) log: LogId,
    pub(crate) last: u32,
    /// How many the client will be sent. None, where it lacks some, if what follows on what it has
    /// was pruned away without a flag.
    pub(crate) operations: u64,
}

/// Consecutive operations of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) author: Author,
    pub(crate) log: LogId,
    pub(crate) first: u32,
    pub(crate) operations: Vec<RawOperation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Height {
    pub(crate) author: Author,
    pub(crate) log: LogId,
    pub(crate) seq: u32,
}

impl Frame {
    /// Its name in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Pull(_) => "Pull",
            Self::Push { .. } => "Push",
            Self::Batch { .. } => "Batch",
            Self::End => "End",
            Self::Heads(_) => "Heads",
            Self::Run(_) => "Run",
            Self::CaughtUp(_) => "CaughtUp",
            Self::Committed { .. } => "Committed",
            Self::Refused { .. } => "Refused",
            Self::Wait { .. } => "Wait",
            Self::Members(_) => "Members",
        }
    }

    /// The frame with its length before it.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        framed(&mut bytes, |to| self.write(to));
        bytes.freeze()
    }

    fn write(&self, to: &mut BytesMut) {
        match self {
            Self::Pull(request) => {
                to.put_u8(0);
                to.put_slice(request.topic.as_bytes());
                write_line(to, request.line);
                to.put_u8(u8::from(request.follow));
                to.uint(request.have.len() as u64);
                for it in &request.have {
                    write_log(to, it.author, it.log, it.seq);
                    to.put_slice(it.id.as_bytes());
                }
            }
            Self::Push { topic, line } => {
                to.put_u8(1);
                to.put_slice(topic.as_bytes());
                write_line(to, *line);
            }
            Self::Batch { number, operations } => {
                to.put_u8(2);
                to.uint(*number);
                write_operations(to, operations.iter().map(raw));
            }
            Self::End => to.put_u8(3),
            Self::Heads(heads) => {
                to.put_u8(4);
                to.put_u8(heads.line as u8);
                to.uint(heads.logs.len() as u64);
                for it in &heads.logs {
                    write_log(to, it.author, it.log, it.last);
                    to.uint(it.operations);
                }
                to.uint(heads.operations);
                to.uint(heads.bytes);
            }
            Self::Run(run) => {
                let operations = run.operations.iter().map(raw);
                write_run(to, (run.author, run.log), run.first, operations);
            }
            Self::CaughtUp(heights) => {
                to.put_u8(6);
                to.uint(heights.len() as u64);
                for it in heights {
                    write_log(to, it.author, it.log, it.seq);
                }
            }
            Self::Committed { number, outcomes } => {
                to.put_u8(7);
                to.uint(*number);
                write_outcomes(to, outcomes);
            }
            Self::Refused { why, text } => {
                to.put_u8(8);
                to.put_u8(why.code());
                PostcardWrite::bytes(to, cut(text).as_bytes());
            }
            Self::Wait { ms } => {
                to.put_u8(9);
                to.uint(*ms);
            }
            Self::Members(members) => {
                to.put_u8(10);
                PostcardWrite::bytes(to, &ticket::members_to_bytes(members));
            }
        }
    }

    /// Reads a frame without its length.
    ///
    /// # Errors
    /// What is wrong with it: always the remote's fault.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FrameFault> {
        let name = || bytes.first().map_or(NAMELESS, |tag| name_of(*tag));
        Self::read(bytes).map_err(|fault| fault.of(name()))
    }

    fn read(bytes: &[u8]) -> Result<Self, WireFault> {
        let reader = &mut PostcardReader::new(bytes);
        let length = bytes.len();
        let frame = match reader.byte()? {
            0 => Self::Pull(PullRequest {
                topic: Topic::from_bytes(reader.raw()?),
                line: read_line(reader)?,
                follow: read_bool(reader)?,
                have: read_list(reader, LOGS, length, read_known)?,
            }),
            1 => Self::Push {
                topic: Topic::from_bytes(reader.raw()?),
                line: read_line(reader)?,
            },
            2 => Self::Batch {
                number: reader.uint()?,
                operations: read_operations(reader, length)?,
            },
            3 => Self::End,
            4 => Self::Heads(Heads {
                line: line_of(reader.byte()?)?,
                logs: read_list(reader, LOGS, length, read_head)?,
                operations: reader.uint()?,
                bytes: reader.uint()?,
            }),
            5 => Self::Run(Run {
                author: Author::from_bytes(reader.raw()?),
                log: LogId::from_bytes(reader.raw()?),
                first: reader.uint32()?,
                operations: read_operations(reader, length)?,
            }),
            6 => Self::CaughtUp(read_list(reader, LOGS, length, read_height)?),
            7 => Self::Committed {
                number: reader.uint()?,
                outcomes: read_outcomes(reader)?,
            },
            8 => Self::Refused {
                why: Denied::of_code(reader.byte()?),
                text: read_text(reader)?,
            },
            9 => Self::Wait { ms: reader.uint()? },
            10 => Self::Members(read_members(reader)?),
            _ => return Err(WireFault::Malformed("an unknown message")),
        };
        reader.finish()?;
        Ok(frame)
    }
}

fn name_of(tag: u8) -> &'static str {
    let names = [
        "Pull",
        "Push",
        "Batch",
        "End",
        "Heads",
        "Run",
        "CaughtUp",
        "Committed",
        "Refused",
        "Wait",
        "Members",
    ];
    names.get(usize::from(tag)).copied().unwrap_or(NAMELESS)
}

/// What is known of a request from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// More of it must come.
    More,
    /// A Pull of this topic, however long it is.
    Pull(Topic),
    /// Something short, or nothing that is taken.
    Other,
}

impl Opening {
    /// Reads the first bytes of a stream, the length of the frame included.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let Some((length, rest)) = bytes.split_first_chunk() else {
            return Self::More;
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length <= STRANGER_FRAME_MAX || length > FRAME_MAX {
            return Self::Other;
        }
        match rest.split_first() {
            None => Self::More,
            Some((0, rest)) => rest
                .first_chunk()
                .map_or(Self::More, |topic| Self::Pull(Topic::from_bytes(*topic))),
            Some(_) => Self::Other,
        }
    }
}

/// A run straight from the store, with its length before it.
pub(crate) fn encode_run(author: Author, log: LogId, operations: &[Stored]) -> Bytes {
    let bytes = |it: &Stored| it.header.len() + it.body.as_ref().map_or(0, Bytes::len) + 8;
    let room = operations.iter().map(bytes).sum::<usize>() + REST;
    let mut frame = BytesMut::with_capacity(room);
    let first = operations.first().map_or(0, |it| it.seq);
    framed(&mut frame, |to| {
        let operations = operations.iter();
        let operations = operations.map(|it| (&it.header, it.body.as_ref()));
        write_run(to, (author, log), first, operations);
    });
    frame.freeze()
}

/// Cuts a stream into frames of at most so many bytes.
pub(crate) fn frames(limit: usize) -> Frames {
    // Both have the same length before the frame.
    Frames::new(Line::V07, limit.min(FRAME_MAX))
}

fn raw(operation: &RawOperation) -> (&Bytes, Option<&Bytes>) {
    (&operation.header, operation.body.as_ref())
}

fn write_run<'a>(
    to: &mut BytesMut,
    (author, log): (Author, LogId),
    first: u32,
    operations: impl ExactSizeIterator<Item = (&'a Bytes, Option<&'a Bytes>)>,
) {
    to.put_u8(5);
    write_log(to, author, log, first);
    write_operations(to, operations);
}

fn write_log(to: &mut BytesMut, author: Author, log: LogId, seq: u32) {
    to.put_slice(author.as_bytes());
    to.put_slice(log.as_bytes());
    to.uint(u64::from(seq));
}

fn read_height(reader: &mut PostcardReader<'_>) -> Result<Height, WireFault> {
    Ok(Height {
        author: Author::from_bytes(reader.raw()?),
        log: LogId::from_bytes(reader.raw()?),
        seq: reader.uint32()?,
    })
}

fn read_known(reader: &mut PostcardReader<'_>) -> Result<Known, WireFault> {
    let Height { author, log, seq } = read_height(reader)?;
    Ok(Known {
        author,
        log,
        seq,
        id: OperationId::from_bytes(reader.raw()?),
    })
}

fn read_head(reader: &mut PostcardReader<'_>) -> Result<Head, WireFault> {
    let Height { author, log, seq } = read_height(reader)?;
    Ok(Head {
        author,
        log,
        last: seq,
        operations: reader.uint()?,
    })
}

fn write_line(to: &mut BytesMut, line: Option<Line>) {
    to.put_u8(u8::from(line.is_some()));
    if let Some(line) = line {
        to.put_u8(line as u8);
    }
}

fn read_line(reader: &mut PostcardReader<'_>) -> Result<Option<Line>, WireFault> {
    match read_bool(reader)? {
        true => line_of(reader.byte()?).map(Some),
        false => Ok(None),
    }
}

fn line_of(byte: u8) -> Result<Line, WireFault> {
    match byte {
        0 => Ok(Line::V06),
        1 => Ok(Line::V07),
        _ => Err(WireFault::Malformed("an unknown line")),
    }
}

const _: () = assert!(Line::V06 as u8 == 0 && Line::V07 as u8 == 1, "is format");

fn read_bool(reader: &mut PostcardReader<'_>) -> Result<bool, WireFault> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireFault::Malformed("neither yes nor no")),
    }
}

fn write_operations<'a>(
    to: &mut BytesMut,
    operations: impl ExactSizeIterator<Item = (&'a Bytes, Option<&'a Bytes>)>,
) {
    to.uint(operations.len() as u64);
    for (header, body) in operations {
        PostcardWrite::bytes(to, header);
        to.put_u8(u8::from(body.is_some()));
        if let Some(body) = body {
            PostcardWrite::bytes(to, body);
        }
    }
}

/// Copies each: who keeps one operation should not keep its whole frame in memory.
fn read_operations(
    reader: &mut PostcardReader<'_>,
    length: usize,
) -> Result<Vec<RawOperation>, WireFault> {
    let mut bytes = 0;
    let max = ("operations", RUN_OPERATIONS_MAX);
    let operations = read_list(reader, max, length, |reader| {
        let header = Bytes::copy_from_slice(reader.bytes()?);
        let body = match read_bool(reader)? {
            true => Some(Bytes::copy_from_slice(reader.bytes()?)),
            false => None,
        };
        bytes += header.len() + body.as_ref().map_or(0, Bytes::len);
        Ok(RawOperation { header, body })
    })?;
    if bytes > RUN_BYTES && operations.len() > 1 {
        return Err(WireFault::TooLarge {
            claimed: bytes as u64,
            limit: RUN_BYTES,
        });
    }
    Ok(operations)
}

fn read_members(reader: &mut PostcardReader<'_>) -> Result<Vec<MemberAddr>, WireFault> {
    let bytes = reader.bytes()?;
    if bytes.len() > MEMBERS_BYTES_MAX {
        return Err(WireFault::TooLarge {
            claimed: bytes.len() as u64,
            limit: MEMBERS_BYTES_MAX,
        });
    }
    let members = ticket::members_from_bytes(bytes);
    members.ok_or(WireFault::Malformed("no list of members"))
}

/// What a list holds, and at most how many.
const LOGS: (&str, usize) = ("logs", LOGS_MAX);

/// A list of so many items as it says; room is taken for no more than can follow.
fn read_list<'a, T>(
    reader: &mut PostcardReader<'a>,
    (what, max): (&'static str, usize),
    length: usize,
    mut item: impl FnMut(&mut PostcardReader<'a>) -> Result<T, WireFault>,
) -> Result<Vec<T>, WireFault> {
    let claimed = reader.uint()?;
    within(what, claimed, max)?;
    // The shortest item has two bytes.
    let left = length.saturating_sub(reader.position()) / 2;
    let mut items = Vec::with_capacity(left.min(claimed as usize));
    for _ in 0..claimed {
        items.push(item(reader)?);
    }
    Ok(items)
}

fn within(what: &'static str, claimed: u64, max: usize) -> Result<(), WireFault> {
    let limit = max as u64;
    match claimed > limit {
        true => Err(WireFault::TooMany {
            what,
            claimed,
            limit,
        }),
        false => Ok(()),
    }
}

/// As much of a text as is sent.
fn cut(text: &str) -> &str {
    let mut end = TEXT_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
#[path = "frames/fuzz.rs"]
mod fuzz;
#[cfg(test)]
#[path = "frames/tests.rs"]
mod tests;
