//! The messages of the standard sync protocol as bytes, in the formats of both lines.
//!
//! ```text
//!   stream 1   Topic ->   <- Done   Done ->                         [`HandshakeMessage`]
//!   stream 2   Have, then PreSync Operation* Done, or only Done;    [`Message`]
//!              then Live* Close; the same in both directions
//! ```
//!
//! What stock nodes send is decoded and what stock nodes decode is encoded, byte for byte as they
//! do; beyond that, decoding is strict. The bytes of headers and bodies pass through as they came:
//! an operation's id is the hash of them.

mod cbor;
mod frames;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod golden;
mod postcard;
#[cfg(test)]
mod tests;
mod v06;
mod v07;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

pub(crate) use self::{
    cbor::{Reader as CborReader, Write as CborWrite},
    frames::Frames,
    postcard::{Reader as PostcardReader, Write as PostcardWrite},
    v07::framed,
};
pub(crate) use crate::log_store::Heights;
use crate::log_store::{Author, BODY_BYTES_MAX, HEADER_BYTES_MAX, Line, LogId, Topic};

/// The longest frame of the 0.7 line, in bytes: room for every operation that a member can hold.
/// Stock takes up to 128 MiB.
pub(crate) const FRAME_MAX_V07: usize = 9 * 1024 * 1024;
/// The longest frame of the 0.6 line, in bytes: the same operations, of which each byte takes up
/// to two. Stock has no limit.
pub(crate) const FRAME_MAX_V06: usize = 2 * FRAME_MAX_V07;
/// The longest frame of a handshake, in bytes: the longest is 52.
pub(crate) const HANDSHAKE_FRAME_MAX: usize = 64;
/// The most authors that a `Have` may name, and the most logs of all of them together. One log an
/// author is what stock nodes have; this many take 4.5 MiB.
pub(crate) const HAVE_AUTHORS_MAX: u64 = 65_536;
/// See [`HAVE_AUTHORS_MAX`].
pub(crate) const HAVE_LOGS_MAX: u64 = 65_536;

/// What stands in a frame besides a header and a body.
const FRAME_REST_MAX: u64 = 256;

const _: () = assert!(
    HEADER_BYTES_MAX + BODY_BYTES_MAX + FRAME_REST_MAX <= FRAME_MAX_V07 as u64,
    "every operation that is admitted can be sent in the 0.7 line"
);
const _: () = assert!(
    2 * (HEADER_BYTES_MAX + BODY_BYTES_MAX) + FRAME_REST_MAX <= FRAME_MAX_V06 as u64,
    "every operation that is admitted can be sent in the 0.6 line"
);

/// The messages of the first stream, which agree on the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HandshakeMessage {
    /// From the initiator: what it wants to sync.
    Topic(Topic),
    /// From the acceptor as an answer, and from the initiator as the end.
    Done,
}

/// The messages of the second stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Which operations the sender holds.
    Have(Heights),
    /// What the sender is about to send.
    PreSync {
        /// How many operations.
        operations: u32,
        /// Headers and bodies together. 0.7 carries 32 bits; more is sent as the most.
        bytes: u64,
    },
    /// One operation that the receiver did not have.
    Operation {
        /// As its author encoded it.
        header: Bytes,
        /// `None` where the sender does not have it any more.
        body: Option<Bytes>,
    },
    /// The sender has sent what it announced, or has nothing to send.
    Done,
    /// One operation that is new.
    Live {
        /// As its author encoded it.
        header: Bytes,
        /// `None` where the sender does not have it.
        body: Option<Bytes>,
    },
    /// The receiver should end the session.
    Close,
}

impl Message {
    /// Its name in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Have(_) => "Have",
            Self::PreSync { .. } => "PreSync",
            Self::Operation { .. } => "Operation",
            Self::Done => "Done",
            Self::Live { .. } => "Live",
            Self::Close => "Close",
        }
    }
}

/// What a decoder takes at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest frame, in bytes.
    pub(crate) frame: usize,
    /// The most authors of a `Have`.
    pub(crate) authors: u64,
    /// The most logs of a `Have`, of all its authors together.
    pub(crate) logs: u64,
}

impl Limits {
    /// The limits that hold where nothing else is said.
    pub(crate) fn of(line: Line) -> Self {
        Self {
            frame: frame_max(line),
            authors: HAVE_AUTHORS_MAX,
            logs: HAVE_LOGS_MAX,
        }
    }
}

/// The longest frame that is sent, and taken where nothing else is said, in bytes.
pub(crate) fn frame_max(line: Line) -> usize {
    match line {
        Line::V06 => FRAME_MAX_V06,
        Line::V07 => FRAME_MAX_V07,
    }
}

/// Which line the initiator of a topic handshake speaks, told by its first byte.
pub(crate) fn line_of_first_byte(byte: u8) -> Option<Line> {
    match byte {
        0xa2 => Some(Line::V06), // a map of two
        0x00 => Some(Line::V07), // the front of a short length
        _ => None,
    }
}

/// Which line the initiator of a discovery session speaks, told by its first byte.
pub(crate) fn line_of_first_discovery_byte(byte: u8) -> Option<Line> {
    match byte {
        0xa1 => Some(Line::V06), // a map of one
        0x00 => Some(Line::V07),
        _ => None,
    }
}

/// Bytes in, messages out.
#[derive(Debug)]
pub(crate) struct Decoder {
    line: Line,
    limits: Limits,
    frames: Frames,
}

impl Decoder {
    pub(crate) fn new(line: Line, limits: Limits) -> Self {
        Self {
            line,
            limits,
            frames: Frames::new(line, limits.frame),
        }
    }

    /// Bytes as they came, cut anywhere. Take all messages out before pushing more: then never
    /// more is held than one frame of the limit and the bytes pushed last.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.frames.push(bytes);
    }

    /// The next message, or `None` until more bytes come.
    ///
    /// # Errors
    /// The remote does not speak this line. Nothing can be decoded any more.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, FrameFault> {
        let Some(frame) = self.frames.next()? else {
            return Ok(None);
        };
        let mut name = NAMELESS;
        match self.line {
            Line::V06 => v06::message(&frame, &self.limits, &mut name),
            Line::V07 => v07::message(&frame, &self.limits, &mut name),
        }
        .map(Some)
        .map_err(|fault| fault.of(name))
    }

    /// Bytes held back.
    pub(crate) fn held(&self) -> usize {
        self.frames.held()
    }
}

/// Writes the message as one frame behind what is in `into`.
///
/// # Errors
/// It is longer than a frame may be. Then nothing was written.
pub(crate) fn encode(line: Line, message: &Message, into: &mut BytesMut) -> Result<(), TooLong> {
    let start = into.len();
    match line {
        Line::V06 => v06::write_message(message, into),
        Line::V07 => v07::write_message(message, into),
    }
    let bytes = into.len() - start;
    let limit = frame_max(line) + if line == Line::V07 { frames::HEAD } else { 0 };
    if bytes > limit {
        into.truncate(start);
        return Err(TooLong { bytes, limit });
    }
    Ok(())
}

/// Decodes one frame of the handshake.
///
/// # Errors
/// It is no message of the handshake in this line.
pub(crate) fn decode_handshake(line: Line, frame: &[u8]) -> Result<HandshakeMessage, FrameFault> {
    match line {
        Line::V06 => v06::handshake(frame),
        Line::V07 => v07::handshake(frame),
    }
    .map_err(|fault| fault.of("topic handshake"))
}

/// Writes the message as one frame behind what is in `into`.
pub(crate) fn encode_handshake(line: Line, message: &HandshakeMessage, into: &mut BytesMut) {
    match line {
        Line::V06 => v06::write_handshake(message, into),
        Line::V07 => v07::write_handshake(message, into),
    }
}

/// The map as it is read off the wire, counted against the limits.
#[derive(Debug)]
struct HaveReader<'a> {
    limits: &'a Limits,
    heights: Heights,
    logs: u64,
}

impl<'a> HaveReader<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            heights: Heights::new(),
            logs: 0,
        }
    }

    /// The map claims to name this many authors.
    fn claim_authors(&self, authors: u64) -> Result<(), WireFault> {
        check_count("authors", authors, self.limits.authors)
    }

    /// An author's map claims to name this many logs.
    fn claim_logs(&mut self, logs: u64) -> Result<(), WireFault> {
        self.logs = self.logs.saturating_add(logs);
        check_count("logs", self.logs, self.limits.logs)
    }

    fn insert(&mut self, author: Author, logs: BTreeMap<LogId, u32>) -> Result<(), WireFault> {
        match self.heights.insert(author, logs) {
            None => Ok(()),
            Some(_) => Err(WireFault::Malformed("an author twice in a Have")),
        }
    }
}

fn insert_log(logs: &mut BTreeMap<LogId, u32>, log: LogId, seq: u32) -> Result<(), WireFault> {
    match logs.insert(log, seq) {
        None => Ok(()),
        Some(_) => Err(WireFault::Malformed("a log twice in a Have")),
    }
}

/// # Errors
/// A message has more of something than it may.
pub(crate) fn check_count(what: &'static str, claimed: u64, limit: u64) -> Result<(), WireFault> {
    if claimed > limit {
        return Err(WireFault::TooMany {
            what,
            claimed,
            limit,
        });
    }
    Ok(())
}

/// Which message of the remote's is none, and why. Always the remote's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{frame}: {fault}")]
pub(crate) struct FrameFault {
    /// Its name, as far as it could be read.
    pub(crate) frame: &'static str,
    /// The rule that it breaks.
    pub(crate) fault: WireFault,
}

/// A message whose name could not be read.
pub(crate) const NAMELESS: &str = "a frame";

/// In cutting the stream into frames.
impl From<WireFault> for FrameFault {
    fn from(fault: WireFault) -> Self {
        fault.of(NAMELESS)
    }
}

impl WireFault {
    /// What is wrong with a message of this name.
    pub(crate) fn of(self, frame: &'static str) -> FrameFault {
        FrameFault { frame, fault: self }
    }
}

/// Why bytes that the remote sent are no message. Always the remote's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WireFault {
    /// A frame, or something in it, is longer than the limit.
    #[error("{claimed} bytes in one message, and at most {limit} are taken")]
    TooLarge {
        /// What it claims, or what has come so far.
        claimed: u64,
        /// The limit.
        limit: usize,
    },
    /// A message has more of something than the limit.
    #[error("{claimed} {what} in one message, and at most {limit} are taken")]
    TooMany {
        /// What it has too many of.
        what: &'static str,
        /// How many it claims.
        claimed: u64,
        /// The limit.
        limit: u64,
    },
    /// A number that does not fit where it stands.
    #[error("the number {0} is too large for where it stands")]
    IntegerTooLarge(u64),
    /// No message of this line.
    #[error("no message of this line of the protocol: {0}")]
    Malformed(&'static str),
}

/// A message of our own is longer than a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes, and at most {limit} may be sent")]
pub(crate) struct TooLong {
    /// What it would take.
    pub(crate) bytes: usize,
    /// The limit.
    pub(crate) limit: usize,
}
