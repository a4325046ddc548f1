//! The 0.6 line: one CBOR item a message, nothing before it.
//!
//! ```text
//!   handshake   {type: "Topic", value: bytes} | {type: "Done"}
//!   stream 2    {type: "Sync", value: sync} | {type: "Live", value: [header, body]}
//!               | {type: "Close"}
//!   sync        {type: "Have", value: {key: {log id: integer}}}
//!               | {type: "PreSync", value: {total_operations, total_bytes}}
//!               | {type: "Operation", value: [octets, octets or null]}
//!               | {type: "Done"}
//! ```
//!
//! An `Operation` carries header and body as arrays of integers, twice their size. A `Live` has
//! the header as it is, an array inside the array, and the body as a byte string.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    HandshakeMessage, HaveReader, Heights, Limits, Message, WireFault,
    cbor::{Reader, Write},
    insert_log,
};
use crate::log_store::{Author, LogId, Topic};

/// Bodies and headers up to this many bytes are copied out of the packet they came in.
const SMALL: usize = 1024;

pub(super) fn handshake(frame: &[u8]) -> Result<HandshakeMessage, WireFault> {
    let mut reader = Reader::new(frame);
    let message = match tagged(&mut reader)? {
        ("Topic", true) => HandshakeMessage::Topic(Topic::from_bytes(reader.bytes_of()?)),
        ("Done", false) => HandshakeMessage::Done,
        _ => return Err(WireFault::Malformed("no message of the topic handshake")),
    };
    reader.finish()?;
    Ok(message)
}

pub(super) fn write_handshake(message: &HandshakeMessage, into: &mut BytesMut) {
    match message {
        HandshakeMessage::Topic(topic) => {
            write_tag(into, "Topic");
            Write::bytes(into, topic.as_bytes());
        }
        HandshakeMessage::Done => write_bare_tag(into, "Done"),
    }
}

/// Says what the message is called as soon as that is read.
pub(super) fn message(
    frame: &Bytes,
    limits: &Limits,
    name: &mut &'static str,
) -> Result<Message, WireFault> {
    let mut reader = Reader::new(frame);
    let message = match tagged(&mut reader)? {
        ("Sync", true) => match tagged(&mut reader)? {
            ("Have", true) => {
                *name = "Have";
                Message::Have(have(&mut reader, limits)?)
            }
            ("PreSync", true) => {
                *name = "PreSync";
                pre_sync(&mut reader)?
            }
            ("Operation", true) => {
                *name = "Operation";
                operation(&mut reader)?
            }
            ("Done", false) => Message::Done,
            _ => return Err(WireFault::Malformed("no message of the sync phase")),
        },
        ("Live", true) => {
            *name = "Live";
            live(&mut reader, frame)?
        }
        ("Close", false) => Message::Close,
        _ => return Err(WireFault::Malformed("no message of the sync protocol")),
    };
    *name = message.name();
    reader.finish()?;
    Ok(message)
}

pub(super) fn write_message(message: &Message, into: &mut BytesMut) {
    match message {
        Message::Have(heights) => {
            write_tag(into, "Sync");
            write_tag(into, "Have");
            write_have(heights, into);
        }
        Message::PreSync { operations, bytes } => {
            write_tag(into, "Sync");
            write_tag(into, "PreSync");
            into.map(2);
            into.text("total_operations");
            into.uint(u64::from(*operations));
            into.text("total_bytes");
            into.uint(*bytes);
        }
        Message::Operation { header, body } => {
            write_tag(into, "Sync");
            write_tag(into, "Operation");
            into.array(2);
            into.octets(header);
            match body {
                Some(body) => into.octets(body),
                None => into.null(),
            }
        }
        Message::Done => {
            write_tag(into, "Sync");
            write_bare_tag(into, "Done");
        }
        Message::Live { header, body } => {
            write_tag(into, "Live");
            into.array(2);
            into.put_slice(header);
            match body {
                Some(body) => Write::bytes(into, body),
                None => into.null(),
            }
        }
        Message::Close => write_bare_tag(into, "Close"),
    }
}

/// The name of a variant, and whether a value follows.
fn tagged<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, bool), WireFault> {
    let fields = reader.map()?;
    reader.key("type")?;
    let name = reader.text()?;
    match fields {
        1 => Ok((name, false)),
        2 => {
            reader.key("value")?;
            Ok((name, true))
        }
        _ => Err(WireFault::Malformed("a map of another length")),
    }
}

fn write_tag(into: &mut BytesMut, name: &str) {
    into.map(2);
    into.text("type");
    into.text(name);
    into.text("value");
}

fn write_bare_tag(into: &mut BytesMut, name: &str) {
    into.map(1);
    into.text("type");
    into.text(name);
}

fn have(reader: &mut Reader<'_>, limits: &Limits) -> Result<Heights, WireFault> {
    let mut have = HaveReader::new(limits);
    let authors = reader.map()?;
    have.claim_authors(authors)?;
    for _ in 0..authors {
        let author = Author::from_bytes(reader.bytes_of()?);
        let count = reader.map()?;
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
    into.map(heights.len());
    for (author, logs) in heights {
        Write::bytes(into, author.as_bytes());
        into.map(logs.len());
        for (log, seq) in logs {
            Write::bytes(into, log.as_bytes());
            into.uint(u64::from(*seq));
        }
    }
}

fn pre_sync(reader: &mut Reader<'_>) -> Result<Message, WireFault> {
    reader.map_of(2)?;
    reader.key("total_operations")?;
    let operations = reader.uint32()?;
    reader.key("total_bytes")?;
    // Nothing is allocated by it, and a log of more than 4 GiB is an honest one.
    let bytes = reader.uint()?;
    Ok(Message::PreSync { operations, bytes })
}

fn operation(reader: &mut Reader<'_>) -> Result<Message, WireFault> {
    reader.array_of(2)?;
    let mut octets = BytesMut::new();
    reader.octets(&mut octets)?;
    let header = octets.len();
    let body = !reader.null();
    if body {
        reader.octets(&mut octets)?;
    }
    let mut octets = octets.freeze();
    let header = octets.split_to(header);
    Ok(Message::Operation {
        header,
        body: body.then_some(octets),
    })
}

fn live(reader: &mut Reader<'_>, frame: &Bytes) -> Result<Message, WireFault> {
    reader.array_of(2)?;
    let start = reader.position();
    reader.item()?;
    let header = start..reader.position();
    let body = if reader.null() {
        None
    } else {
        let length = reader.bytes()?.len();
        Some(reader.position() - length..reader.position())
    };
    let kept = if frame.len() <= SMALL {
        Bytes::copy_from_slice(frame)
    } else {
        frame.clone()
    };
    Ok(Message::Live {
        header: kept.slice(header),
        body: body.map(|body| kept.slice(body)),
    })
}
