//! Prints golden bytes of p2panda 0.7.1.

#[path = "../../../golden.rs"]
mod items;
#[path = "../../../malformed.rs"]
mod malformed;

use std::collections::BTreeMap;

use p2panda::operation::{Extensions, Header, LogId};
use p2panda_core::cbor::{decode_cbor, encode_cbor};
use p2panda_core::{Body, Hash, Operation, SigningKey, Topic, VerifyingKey, validate_operation};
use p2panda_net::codec::Codec;
use p2panda_sync::protocols::{LogSyncMessage, TopicHandshakeMessage, TopicLogSyncMessage};
use serde::Serialize;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Encoder;

use items::{BACKLINK, MICROS, body, comment, key, other_key, other_topic, put, topic};
use malformed::{Line, Value, Verdict};

type Message = TopicLogSyncMessage<LogId>;

/// When the header of the golden sync messages was made.
const LINKED_MICROS: u64 = 0x0006_60bd_3002_00e8;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    items::heading("0.7.1");
    items::identifiers();
    handshake();
    sync(headers());
    items::discovery(frame).await;
    items::transport_infos();
    items::ephemeral();
    malformed::print::<ZeroSeven>();
}

fn frame<M: Serialize>(message: M) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    Codec::new().encode(message, &mut bytes).unwrap();
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

/// Extensions are private inside, and stamped with the time: only decoding makes fixed ones.
fn extensions(fields: impl Serialize) -> Extensions {
    decode_cbor(&encode_cbor(&fields).unwrap()[..]).unwrap()
}

fn basic(micros: u64, prune: bool) -> Extensions {
    extensions((1_u16, 0_u16, LogId::from_topic(topic()), micros, prune))
}

fn causal(previous: &[Hash]) -> Extensions {
    extensions((1_u16, 1_u16, LogId::from_topic(topic()), MICROS, previous))
}

fn header(
    key: &SigningKey,
    seq_num: u32,
    backlink: Option<Hash>,
    body: Option<&[u8]>,
    extensions: Extensions,
) -> Header {
    let mut builder = Header::builder().seq_num(seq_num).backlink(backlink);
    if let Some(body) = body {
        builder = builder.body(body);
    }
    builder.build(key, extensions)
}

fn put_header(name: &str, header: &Header) {
    let bytes = header.encode();
    // The array without its third item, which is the signature (two bytes of head, then 64).
    let signature_at = 1 + 1 + 34;
    let mut signed = bytes.clone();
    signed.drain(signature_at..signature_at + 66);
    signed[0] -= 1;
    assert!(header.verifying_key.verify(&signed, &header.signature));
    assert_eq!(Header::decode(&bytes).unwrap().hash(), header.hash());
    put(&format!("header.{name}"), &bytes);
    put(&format!("header.{name}.id"), header.hash());
    put(&format!("header.{name}.signed"), signed);
}

/// Prints the headers, and returns the one that the sync messages carry.
fn headers() -> Header {
    comment("Headers of one log, 1_700_000_000_000_000 us each but `linked`; `body` is what");
    comment("they have. The set in causal extensions has at most one member, since its order is");
    comment("random.");
    let body = body();
    let (plain, prune) = (basic(MICROS, false), basic(MICROS, true));
    let backlink = Some(Hash::from(BACKLINK));
    let linked = header(
        &key(),
        1,
        backlink,
        Some(&body),
        basic(LINKED_MICROS, false),
    );
    let first = header(&key(), 0, None, Some(&body), plain.clone());
    let id = Some(first.hash());
    let second = header(&key(), 1, id, Some(&body), plain.clone());
    let after = Some(second.hash());
    let pruned = header(&key(), 2, after, Some(&body), prune.clone());
    put_header("linked", &linked);
    put_header("first", &first);
    put_header("second", &second);
    put_header("bodyless", &header(&key(), 2, after, None, plain.clone()));
    put_header(
        "first.bodyless",
        &header(&key(), 0, None, None, plain.clone()),
    );
    put_header("pruned", &pruned);
    put_header(
        "pruned.bodyless",
        &header(&key(), 2, after, None, prune.clone()),
    );
    put_header("pruned.first", &header(&key(), 0, None, Some(&body), prune));
    let next = Some(pruned.hash());
    put_header(
        "pruned.next",
        &header(&key(), 3, next, Some(&body), plain.clone()),
    );
    put_header(
        "other_author",
        &header(&other_key(), 0, None, Some(&body), plain.clone()),
    );
    put_header(
        "causal",
        &header(&key(), 1, id, Some(&body), causal(&[first.hash()])),
    );
    put_header(
        "causal.none",
        &header(&key(), 1, id, Some(&body), causal(&[])),
    );
    for seq_num in [23, 24, 255, 256, 65_535, 65_536, u32::MAX] {
        put_header(
            &format!("seq_{seq_num}"),
            &header(&key(), seq_num, id, None, plain.clone()),
        );
    }
    linked
}

fn sync(linked: Header) {
    comment("Sync messages. `have.one` is {author: {log_id: 1}}; PreSync 10_000 and 3_000_000.");
    let (log, other) = (LogId::from_topic(topic()), LogId::from_topic(other_topic()));
    let authors = (key().verifying_key(), other_key().verifying_key());
    let have = |heights: &[(VerifyingKey, &[(LogId, u32)])]| {
        let logs = |logs: &[(LogId, u32)]| BTreeMap::from_iter(logs.iter().copied());
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
    let bodyless = header(&key(), 0, None, None, basic(MICROS, false)).encode();
    let operation = |header: &[u8], body: Option<Vec<u8>>| {
        frame(Message::Sync(LogSyncMessage::Operation((
            header.to_vec(),
            body,
        ))))
    };
    put("sync.operation", operation(&linked.encode(), Some(body())));
    put("sync.operation.bodyless", operation(&bodyless, None));
    put(
        "sync.operation.empty_body",
        operation(&bodyless, Some(vec![])),
    );
    put("sync.done", frame(Message::Sync(LogSyncMessage::Done)));
    put(
        "live",
        frame(Message::Live((linked.encode(), Some(body())))),
    );
    put("live.bodyless", frame(Message::Live((bodyless, None))));
    put("close", frame(Message::Close));
}

struct ZeroSeven;

impl Line for ZeroSeven {
    const HAS_TIMESTAMP: bool = false;

    fn log_id() -> Vec<u8> {
        LogId::from_topic(topic()).as_bytes().to_vec()
    }

    fn extensions() -> Value {
        Value::Array(basic_fields(Value::Bytes(Self::log_id())))
    }

    fn extension_cases() -> Vec<(&'static str, Value)> {
        [wrong_fields(), more_fields(), causal_fields()].concat()
    }

    fn judge(bytes: &[u8]) -> Verdict {
        let header = match Header::decode(bytes) {
            Ok(header) => header,
            Err(error) => return Verdict::Undecodable(error.to_string()),
        };
        let (id, encoded) = (header.hash(), header.encode());
        let operation = Operation::from_parts(header, None::<Body>);
        match validate_operation(&operation) {
            Ok(()) => Verdict::Accepted {
                id: *id.as_bytes(),
                encoded,
            },
            Err(error) => Verdict::Invalid(error.to_string()),
        }
    }
}

fn basic_fields(log_id: Value) -> Vec<Value> {
    use Value::{Bool, Unsigned};
    vec![
        Unsigned(1),
        Unsigned(0),
        log_id,
        Unsigned(MICROS),
        Bool(false),
    ]
}

fn log_id() -> Value {
    Value::Bytes(ZeroSeven::log_id())
}

fn hash(byte: u8) -> Value {
    Value::Bytes(vec![byte; 32])
}

/// Basic extensions with a field wrong or missing.
fn wrong_fields() -> Vec<(&'static str, Value)> {
    use Value::*;
    let changed = |at: usize, value: Value| {
        let mut fields = basic_fields(log_id());
        fields[at] = value;
        Array(fields)
    };
    let swapped = |a: usize, b: usize| {
        let mut fields = basic_fields(log_id());
        fields.swap(a, b);
        Array(fields)
    };
    vec![
        ("empty", Array(vec![])),
        ("version_0", changed(0, Unsigned(0))),
        ("version_2", changed(0, Unsigned(2))),
        ("version_65537", changed(0, Unsigned(65_537))),
        ("variant_2", changed(1, Unsigned(2))),
        ("log_id_missing", Array(vec![Unsigned(1), Unsigned(0)])),
        ("log_id_short", changed(2, Bytes(vec![7; 31]))),
        ("log_id_long", changed(2, Bytes(vec![7; 33]))),
        ("log_id_text", changed(2, Text("x".repeat(32)))),
        ("log_id_other", changed(2, hash(9))),
        ("timestamp_0", changed(3, Unsigned(0))),
        ("timestamp_u64_max", changed(3, Unsigned(u64::MAX))),
        ("timestamp_negative", changed(3, Negative(0))),
        ("timestamp_float", changed(3, Float(1.5))),
        (
            "timestamp_missing",
            Array(vec![Unsigned(1), Unsigned(0), log_id()]),
        ),
        (
            "prune_missing",
            Array(vec![Unsigned(1), Unsigned(0), log_id(), Unsigned(MICROS)]),
        ),
        ("prune_number", changed(4, Unsigned(1))),
        ("prune_null", changed(4, Null)),
        ("swapped", swapped(2, 3)),
        ("swapped_head", swapped(0, 1)),
        (
            "as_map",
            Map(vec![("log_id", log_id()), ("version", Unsigned(1))]),
        ),
    ]
}

/// Basic extensions with a field more than stock knows: skipped, but decoded strictly.
fn more_fields() -> Vec<(&'static str, Value)> {
    use Value::*;
    let more = |value: Value| {
        let mut fields = basic_fields(log_id());
        fields.push(value);
        Array(fields)
    };
    let nested = |depth: usize| (0..depth).fold(Null, |value, _| Array(vec![value]));
    vec![
        ("field_more", more(Unsigned(1))),
        (
            "field_more_map_sorted",
            more(Map(vec![("a", Null), ("b", Null)])),
        ),
        (
            "field_more_map_unsorted",
            more(Map(vec![("b", Null), ("a", Null)])),
        ),
        ("field_more_bytes_512", more(Bytes(vec![1; 512]))),
        ("field_more_bytes_513", more(Bytes(vec![1; 513]))),
        ("field_more_text_512", more(Text("x".repeat(512)))),
        ("field_more_text_513", more(Text("x".repeat(513)))),
        ("field_more_array_512", more(Array(vec![Null; 512]))),
        ("field_more_array_513", more(Array(vec![Null; 513]))),
        ("field_more_depth_61", more(nested(61))),
        ("field_more_depth_62", more(nested(62))),
        ("field_more_depth_63", more(nested(63))),
        ("field_more_depth_64", more(nested(64))),
        ("field_more_float_short", more(Raw(vec![0xf9, 0x3e, 0]))),
        ("field_more_float_long", more(Float(1.5))),
        ("field_more_nan", more(Raw(vec![0xf9, 0x7e, 0]))),
        ("field_more_tag", more(Raw(vec![0xc1, 0]))),
        ("field_more_undefined", more(Raw(vec![0xf7]))),
        ("field_more_simple_32", more(Raw(vec![0xf8, 32]))),
        ("field_more_bad_utf8", more(Raw(vec![0x61, 0xff]))),
    ]
}

/// Causal extensions, the variant that stock decodes and never writes.
fn causal_fields() -> Vec<(&'static str, Value)> {
    use Value::*;
    let causal = |previous: Vec<Value>| {
        Array(vec![
            Unsigned(1),
            Unsigned(1),
            log_id(),
            Unsigned(MICROS),
            Array(previous),
        ])
    };
    vec![
        ("causal_none", causal(vec![])),
        ("causal_one", causal(vec![hash(1)])),
        ("causal_two", causal(vec![hash(1), hash(2)])),
        ("causal_two_descending", causal(vec![hash(2), hash(1)])),
        ("causal_twice_the_same", causal(vec![hash(1), hash(1)])),
        ("causal_512", causal(vec![hash(1); 512])),
        ("causal_513", causal(vec![hash(1); 513])),
        ("causal_previous_short", causal(vec![Bytes(vec![1; 31])])),
        (
            "causal_previous_missing",
            Array(vec![Unsigned(1), Unsigned(1), log_id(), Unsigned(MICROS)]),
        ),
    ]
}
