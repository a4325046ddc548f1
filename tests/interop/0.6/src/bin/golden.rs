//! Prints golden bytes of p2panda 0.6.1.

#[path = "../../../golden.rs"]
mod items;
#[path = "../../../malformed.rs"]
mod malformed;

use std::collections::BTreeMap;

use p2panda::operation::{Extensions, Header, LogId};
use p2panda_core::cbor::{decode_cbor, encode_cbor};
use p2panda_core::{
    Body, Hash, Operation, SigningKey, Timestamp, Topic, VerifyingKey, validate_operation,
};
use p2panda_net::cbor::CborCodec;
use p2panda_sync::protocols::{LogSyncMessage, TopicHandshakeMessage, TopicLogSyncMessage};
use serde::Serialize;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Encoder;

use items::{BACKLINK, MICROS, body, comment, key, other_key, other_topic, put, topic};
use malformed::{Line, Value, Verdict};

type Message = TopicLogSyncMessage<LogId, Extensions>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    items::heading("0.6.1");
    items::identifiers();
    handshake();
    sync(headers());
    items::discovery(frame).await;
    items::transport_infos();
    items::ephemeral();
    malformed::print::<ZeroSix>();
}

fn frame<M: Serialize>(message: M) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    CborCodec::new().encode(message, &mut bytes).unwrap();
    bytes.to_vec()
}

fn handshake() {
    comment("The topic handshake.");
    put(
        "handshake.topic",
        frame(TopicHandshakeMessage::Topic(topic())),
    );
    put(
        "handshake.done",
        frame(TopicHandshakeMessage::<Topic>::Done),
    );
}

fn header(
    key: &SigningKey,
    seq_num: u64,
    backlink: Option<Hash>,
    body: Option<&[u8]>,
    prune: bool,
) -> Header {
    let body = body.map(Body::new);
    let mut header = Header {
        version: 1,
        verifying_key: key.verifying_key(),
        signature: None,
        payload_size: body.as_ref().map_or(0, Body::size),
        payload_hash: body.as_ref().map(Body::hash),
        timestamp: Timestamp::new(MICROS),
        seq_num,
        backlink,
        extensions: Extensions {
            prune_flag: prune.into(),
            log_id: LogId::from_topic(topic()),
            version: 1,
        },
    };
    header.sign(key);
    header
}

fn put_header(name: &str, header: &Header) {
    let mut unsigned = header.clone();
    unsigned.signature = None;
    put(&format!("header.{name}"), header.to_bytes());
    put(&format!("header.{name}.id"), header.hash());
    put(&format!("header.{name}.signed"), unsigned.to_bytes());
}

/// Prints the headers, and returns the one that the sync messages carry.
fn headers() -> Header {
    comment("Headers of one log, 1_700_000_000_000_000 us each; `body` is what they have.");
    let body = body();
    let first = header(&key(), 0, None, Some(&body), false);
    let second = header(&key(), 1, Some(first.hash()), Some(&body), false);
    let third = header(&key(), 2, Some(second.hash()), None, false);
    let pruned = header(&key(), 2, Some(second.hash()), Some(&body), true);
    let linked = header(&key(), 1, Some(Hash::from(BACKLINK)), Some(&body), false);
    put_header("linked", &linked);
    put_header("first", &first);
    put_header("second", &second);
    put_header("bodyless", &third);
    put_header("first.bodyless", &header(&key(), 0, None, None, false));
    put_header("pruned", &pruned);
    put_header(
        "pruned.bodyless",
        &header(&key(), 2, Some(second.hash()), None, true),
    );
    put_header("pruned.first", &header(&key(), 0, None, Some(&body), true));
    put_header(
        "pruned.next",
        &header(&key(), 3, Some(pruned.hash()), Some(&body), false),
    );
    put_header(
        "other_author",
        &header(&other_key(), 0, None, Some(&body), false),
    );
    for seq_num in [23, 24, 255, 256, 65_535, 65_536, u64::from(u32::MAX)] {
        let backlink = Some(first.hash());
        put_header(
            &format!("seq_{seq_num}"),
            &header(&key(), seq_num, backlink, None, false),
        );
    }
    linked
}

fn sync(linked: Header) {
    comment("Sync messages. `have.one` is {author: {log_id: 1}}; PreSync 10_000 and 3_000_000.");
    let (log, other) = (LogId::from_topic(topic()), LogId::from_topic(other_topic()));
    let authors = (key().verifying_key(), other_key().verifying_key());
    let have = |heights: &[(VerifyingKey, &[(LogId, u64)])]| {
        let logs = |logs: &[(LogId, u64)]| BTreeMap::from_iter(logs.iter().copied());
        let heights = heights
            .iter()
            .map(|(author, heights)| (*author, logs(heights)));
        frame(Message::Sync(LogSyncMessage::Have(heights.collect())))
    };
    put("sync.have.empty", have(&[]));
    put("sync.have.one", have(&[(authors.0, &[(log, 1)])]));
    put(
        "sync.have.two_authors",
        have(&[(authors.0, &[(log, 1)]), (authors.1, &[(log, 300)])]),
    );
    put(
        "sync.have.two_logs",
        have(&[
            (authors.0, &[(log, 1), (other, 70_000)]),
            (authors.1, &[(log, 300)]),
        ]),
    );
    put(
        "sync.pre_sync",
        frame(Message::Sync(LogSyncMessage::PreSync {
            total_operations: 10_000,
            total_bytes: 3_000_000,
        })),
    );
    let bodyless = header(&key(), 0, None, None, false);
    let operation = |header: &Header, body: Option<Vec<u8>>| {
        frame(Message::Sync(LogSyncMessage::Operation(
            header.to_bytes(),
            body,
        )))
    };
    put("sync.operation", operation(&linked, Some(body())));
    put("sync.operation.bodyless", operation(&bodyless, None));
    put(
        "sync.operation.empty_body",
        operation(&bodyless, Some(vec![])),
    );
    put("sync.done", frame(Message::Sync(LogSyncMessage::Done)));
    put(
        "live",
        frame(Message::Live(linked, Some(Body::from(body())))),
    );
    put("live.bodyless", frame(Message::Live(bodyless, None)));
    put("close", frame(Message::Close));
}

struct ZeroSix;

impl Line for ZeroSix {
    const HAS_TIMESTAMP: bool = true;

    fn log_id() -> Vec<u8> {
        LogId::from_topic(topic()).as_bytes().to_vec()
    }

    fn extensions() -> Value {
        Value::Map(vec![
            ("log_id", Value::Bytes(Self::log_id())),
            ("version", Value::Unsigned(1)),
        ])
    }

    fn extension_cases() -> Vec<(&'static str, Value)> {
        use Value::*;
        let log_id = || ("log_id", Bytes(Self::log_id()));
        let version = |version| ("version", Unsigned(version));
        let sent = |fields| Map(fields);
        vec![
            ("empty", sent(vec![])),
            ("log_id_missing", sent(vec![version(1)])),
            ("version_missing", sent(vec![log_id()])),
            ("version_0", sent(vec![log_id(), version(0)])),
            ("version_2", sent(vec![log_id(), version(2)])),
            (
                "log_id_short",
                sent(vec![("log_id", Bytes(vec![7; 31])), version(1)]),
            ),
            (
                "log_id_text",
                sent(vec![("log_id", Text("x".repeat(32))), version(1)]),
            ),
            (
                "log_id_other",
                sent(vec![("log_id", Bytes(vec![9; 32])), version(1)]),
            ),
            ("swapped.signed_as_sent", sent(vec![version(1), log_id()])),
            (
                "swapped.signed_as_read",
                sent(vec![version(1), log_id()]).read_as(Self::extensions()),
            ),
            (
                "prune_false.signed_as_sent",
                sent(vec![("prune_flag", Bool(false)), log_id(), version(1)]),
            ),
            (
                "prune_false.signed_as_read",
                sent(vec![("prune_flag", Bool(false)), log_id(), version(1)])
                    .read_as(Self::extensions()),
            ),
            (
                "prune_last.signed_as_read",
                sent(vec![log_id(), version(1), ("prune_flag", Bool(true))]).read_as(sent(vec![
                    ("prune_flag", Bool(true)),
                    log_id(),
                    version(1),
                ])),
            ),
            (
                "prune_number",
                sent(vec![("prune_flag", Unsigned(1)), log_id(), version(1)]),
            ),
            (
                "prune_null",
                sent(vec![("prune_flag", Null), log_id(), version(1)]),
            ),
            (
                "unknown_field.signed_as_sent",
                sent(vec![log_id(), version(1), ("zzz", Unsigned(1))]),
            ),
            (
                "unknown_field.signed_as_read",
                sent(vec![log_id(), version(1), ("zzz", Unsigned(1))]).read_as(Self::extensions()),
            ),
            ("twice", sent(vec![log_id(), log_id(), version(1)])),
            (
                "as_array.signed_as_read",
                Array(vec![Bool(false), Bytes(Self::log_id()), Unsigned(1)])
                    .read_as(Self::extensions()),
            ),
        ]
    }

    fn judge(bytes: &[u8]) -> Verdict {
        let header: Header = match decode_cbor(bytes) {
            Ok(header) => header,
            Err(error) => return Verdict::Undecodable(error.to_string()),
        };
        let id = header.hash();
        let encoded = encode_cbor(&header).unwrap();
        let operation = Operation {
            hash: id,
            header,
            body: None,
        };
        match validate_operation(&operation) {
            Ok(()) => Verdict::Accepted {
                id: *id.as_bytes(),
                encoded,
            },
            Err(error) => Verdict::Invalid(error.to_string()),
        }
    }
}
