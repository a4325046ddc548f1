//! The 0.7 line: plain postcard behind a length of four bytes.
//!
//! ```text
//!   handshake   00 topic | 01                           topic, key, log id: 20 and 32 bytes
//!   stream 2    00 sync | 01 operation | 02             Live | Close
//!   sync        00 map | 01 u32 u32 | 02 operation | 03  Have | PreSync | Operation | Done
//!   operation   header, option of body                   bytes behind their length
//!   map         count, then key and map of log id to u32
//! ```

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    HandshakeMessage, HaveReader, Heights, Limits, Message, WireFault,
    frames::HEAD,
    insert_log,
    postcard::{Reader, Write},
};
use crate::log_store::{Author, LogId, Topic};

/// Frames up to this many bytes are copied: a slice of a received packet would keep the whole
/// packet in memory for as long as one small operation of it is kept.
const SMALL: usize = 1024;

const TOPIC: u8 = 0;
const HANDSHAKE_DONE: u8 = 1;

const SYNC: u8 = 0;
const LIVE: u8 = 1;
const CLOSE: u8 = 2;

const HAVE: u8 = 0;
const PRE_SYNC: u8 = 1;
const OPERATION: u8 = 2;
const DONE: u8 = 3;

pub(super) fn handshake(frame: &[u8]) -> Result<HandshakeMessage, WireFault> {
    let mut reader = Reader::new(frame);
    let message = match reader.byte()? {
        TOPIC => HandshakeMessage::Topic(Topic::from_bytes(reader.bytes_of()?)),
        HANDSHAKE_DONE => HandshakeMessage::Done,
        _ => return Err(WireFault::Malformed("no message of the topic handshake")),
    };
    reader.finish()?;
    Ok(message)
}

pub(super) fn write_handshake(message: &HandshakeMessage, into: &mut BytesMut) {
    framed(into, |into| match message {
        HandshakeMessage::Topic(topic) => {
            into.put_u8(TOPIC);
            Write::bytes(into, topic.as_bytes());
        }
        HandshakeMessage::Done => into.put_u8(HANDSHAKE_DONE),
    });
}

/// Says what the message is called as soon as that is read.
pub(super) fn message(
    frame: &Bytes,
    limits: &Limits,
    name: &mut &'static str,
) -> Result<Message, WireFault> {
    let mut reader = Reader::new(frame);
    let message = match reader.byte()? {
        SYNC => match reader.byte()? {
            HAVE => {
                *name = "Have";
                Message::Have(have(&mut reader, limits)?)
            }
            PRE_SYNC => {
                *name = "PreSync";
                Message::PreSync {
                    operations: reader.uint32()?,
                    bytes: u64::from(reader.uint32()?),
                }
            }
            OPERATION => {
                *name = "Operation";
                let (header, body) = operation(&mut reader, frame)?;
                Message::Operation { header, body }
            }
            DONE => Message::Done,
            _ => return Err(WireFault::Malformed("no message of the sync phase")),
        },
        LIVE => {
            *name = "Live";
            let (header, body) = operation(&mut reader, frame)?;
            Message::Live { header, body }
        }
        CLOSE => Message::Close,
        _ => return Err(WireFault::Malformed("no message of the sync protocol")),
    };
    *name = message.name();
    reader.finish()?;
    Ok(message)
}

pub(super) fn write_message(message: &Message, into: &mut BytesMut) {
    framed(into, |into| match message {
        Message::Have(heights) => {
            into.put_slice(&[SYNC, HAVE]);
            write_have(heights, into);
        }
        Message::PreSync { operations, bytes } => {
            into.put_slice(&[SYNC, PRE_SYNC]);
            into.uint(u64::from(*operations));
            into.uint((*bytes).min(u64::from(u32::MAX)));
        }
        Message::Operation { header, body } => {
            into.put_slice(&[SYNC, OPERATION]);
            write_operation(header, body.as_ref(), into);
        }
        Message::Done => into.put_slice(&[SYNC, DONE]),
        Message::Live { header, body } => {
            into.put_u8(LIVE);
            write_operation(header, body.as_ref(), into);
        }
        Message::Close => into.put_u8(CLOSE),
    });
}

/// Writes what `body` writes as one frame.
pub(crate) fn framed(into: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = into.len();
    into.put_u32(0);
    body(into);
    // Frames too long are thrown away by whoever asked for them, long before 4 GiB.
    let length = (into.len() - start - HEAD) as u32;
    into[start..start + HEAD].copy_from_slice(&length.to_be_bytes());
}

fn have(reader: &mut Reader<'_>, limits: &Limits) -> Result<Heights, WireFault> {
    let mut have = HaveReader::new(limits);
    let authors = reader.uint()?;
    have.claim_authors(authors)?;
    for _ in 0..authors {
        let author = Author::from_bytes(reader.bytes_of()?);
        let count = reader.uint()?;
        have.claim_logs(count)?;
        let mut logs = BTreeMap::new();
        for _ in 0..count {
            let log = LogId::from_bytes(reader.bytes_of()?);
            insert_log(&mut logs, log, reader.uint32()?)?;
        }
        have.insert(author, logs)?;
    }
    Ok(have.heights)
}

fn write_have(heights: &Heights, into: &mut BytesMut) {
    into.uint(heights.len() as u64);
    for (author, logs) in heights {
        Write::bytes(into, author.as_bytes());
        into.uint(logs.len() as u64);
        for (log, seq) in logs {
            Write::bytes(into, log.as_bytes());
            into.uint(u64::from(*seq));
        }
    }
}

fn operation(reader: &mut Reader<'_>, frame: &Bytes) -> Result<(Bytes, Option<Bytes>), WireFault> {
    let header = span(reader)?;
    let body = match reader.byte()? {
        0 => None,
        1 => Some(span(reader)?),
        _ => return Err(WireFault::Malformed("neither a body nor none")),
    };
    let kept = if frame.len() <= SMALL {
        Bytes::copy_from_slice(frame)
    } else {
        frame.clone()
    };
    Ok((kept.slice(header), body.map(|body| kept.slice(body))))
}

/// Where in the frame a byte string lies.
fn span(reader: &mut Reader<'_>) -> Result<std::ops::Range<usize>, WireFault> {
    let length = reader.bytes()?.len();
    Ok(reader.position() - length..reader.position())
}

fn write_operation(header: &Bytes, body: Option<&Bytes>, into: &mut BytesMut) {
    into.reserve(header.len() + body.map_or(0, Bytes::len) + 16);
    Write::bytes(into, header);
    match body {
        None => into.put_u8(0),
        Some(body) => {
            into.put_u8(1);
            Write::bytes(into, body);
        }
    }
}
