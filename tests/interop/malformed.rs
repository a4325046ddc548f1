//! Headers that are wrong in one way each, correctly signed, and what stock makes of them.
//!
//! A value can be *read* as another one than was *sent* (a longer encoding of an integer, say). The
//! signature is over what was read, since stock encodes again what it read before it verifies.

use crate::items::{body, comment, key, put};
use p2panda_core::Hash;

/// What differs between the lines.
pub trait Line {
    const HAS_TIMESTAMP: bool;

    fn log_id() -> Vec<u8>;
    fn extensions() -> Value;
    fn extension_cases() -> Vec<(&'static str, Value)>;
    fn judge(bytes: &[u8]) -> Verdict;
}

pub enum Verdict {
    Accepted {
        id: [u8; 32],
        encoded: Vec<u8>,
    },
    /// Decodes, then fails as an operation: its session lives on.
    Invalid(String),
    /// Ends the session that carries it.
    Undecodable(String),
}

#[derive(Clone)]
pub enum Value {
    Unsigned(u64),
    /// -1 - n, as CBOR counts.
    Negative(u64),
    Bytes(Vec<u8>),
    Text(String),
    Bool(bool),
    Null,
    Float(f64),
    Array(Vec<Value>),
    Map(Vec<(&'static str, Value)>),
    Raw(Vec<u8>),
    ReadAs(Box<Value>, Box<Value>),
}

use Value::*;

impl Value {
    pub fn read_as(self, read: Value) -> Value {
        ReadAs(Box::new(self), Box::new(read))
    }

    fn sent(&self) -> Vec<u8> {
        self.encode(false)
    }

    fn encode(&self, read: bool) -> Vec<u8> {
        let join = |major, count: usize, parts: Vec<Vec<u8>>| {
            [head(major, count as u64), parts.concat()].concat()
        };
        match self {
            Unsigned(value) => head(0, *value),
            Negative(value) => head(1, *value),
            Bytes(bytes) => join(2, bytes.len(), vec![bytes.clone()]),
            Text(text) => join(3, text.len(), vec![text.clone().into_bytes()]),
            Bool(value) => vec![0xf4 + u8::from(*value)],
            Null => vec![0xf6],
            Float(value) => [vec![0xfb], value.to_be_bytes().to_vec()].concat(),
            Array(items) => join(
                4,
                items.len(),
                items.iter().map(|v| v.encode(read)).collect(),
            ),
            Map(fields) => {
                let field = |(name, value): &(&str, Value)| {
                    [Text(name.to_string()).encode(read), value.encode(read)].concat()
                };
                join(5, fields.len(), fields.iter().map(field).collect())
            }
            Raw(bytes) => bytes.clone(),
            ReadAs(sent_value, read_value) => {
                if read {
                    read_value.encode(read)
                } else {
                    sent_value.encode(read)
                }
            }
        }
    }
}

/// The shortest head of an item.
fn head(major: u8, value: u64) -> Vec<u8> {
    let major = major << 5;
    match value {
        0..24 => vec![major | value as u8],
        24..0x100 => vec![major | 24, value as u8],
        0x100..0x1_0000 => [vec![major | 25], (value as u16).to_be_bytes().to_vec()].concat(),
        0x1_0000..0x1_0000_0000 => {
            [vec![major | 26], (value as u32).to_be_bytes().to_vec()].concat()
        }
        _ => [vec![major | 27], value.to_be_bytes().to_vec()].concat(),
    }
}

#[derive(Clone)]
struct Header {
    version: Value,
    key: Value,
    size: Value,
    hash: Option<Value>,
    timestamp: Option<Value>,
    seq: Value,
    backlink: Option<Value>,
    extensions: Option<Value>,
    more: Vec<Value>,
}

impl Header {
    /// The first header of a log, with the body of the other golden items.
    fn first<L: Line>() -> Header {
        let body = body();
        Header {
            version: Unsigned(1),
            key: Bytes(key().verifying_key().as_bytes().to_vec()),
            size: Unsigned(body.len() as u64),
            hash: Some(Bytes(Hash::digest(&body).as_bytes().to_vec())),
            timestamp: L::HAS_TIMESTAMP.then_some(Unsigned(crate::items::MICROS)),
            seq: Unsigned(0),
            backlink: None,
            extensions: Some(L::extensions()),
            more: vec![],
        }
    }

    fn fields(&self) -> Vec<Value> {
        let mut fields = vec![self.version.clone(), self.key.clone(), self.size.clone()];
        fields.extend(self.hash.clone());
        fields.extend(self.timestamp.clone());
        fields.push(self.seq.clone());
        fields.extend(self.backlink.clone());
        fields.extend(self.extensions.clone());
        fields.extend(self.more.clone());
        fields
    }

    fn signature(&self) -> Vec<u8> {
        key()
            .sign(&Array(self.fields()).encode(true))
            .to_bytes()
            .to_vec()
    }

    fn signed_with(&self, signature: Value) -> Vec<Value> {
        let mut fields = self.fields();
        fields.insert(2, signature);
        fields
    }

    fn signed(&self) -> Vec<Value> {
        self.signed_with(Bytes(self.signature()))
    }

    fn sent(&self) -> Vec<u8> {
        Array(self.signed()).sent()
    }
}

/// All cases of a line, as `malformed.<name> = <hex> <verdict>`.
pub fn print<L: Line>() {
    comment("Headers that are wrong in one way, each signed over what stock reads it as, and what");
    comment("stock's decoder, then its check of an operation, says:");
    comment("  malformed.<name> = <hex> accept <id> equal|differs <header encoded again>");
    comment("  malformed.<name> = <hex> refuse decode <error>    (ends the session)");
    comment("  malformed.<name> = <hex> refuse validate <error>  (the session lives on)");
    comment("`equal` says that its own encoding gives the same bytes, so that the id is theirs.");
    for (name, bytes) in cases::<L>() {
        let one_line = |error: String| error.split_whitespace().collect::<Vec<_>>().join(" ");
        let verdict = match L::judge(&bytes) {
            Verdict::Accepted { id, encoded } if encoded == bytes => {
                format!("accept {} equal", hex::encode(id))
            }
            Verdict::Accepted { id, encoded } => {
                format!(
                    "accept {} differs {}",
                    hex::encode(id),
                    hex::encode(encoded)
                )
            }
            Verdict::Invalid(error) => format!("refuse validate {}", one_line(error)),
            Verdict::Undecodable(error) => format!("refuse decode {}", one_line(error)),
        };
        println!("malformed.{name} = {} {verdict}", hex::encode(bytes));
    }
    put("malformed.end", []);
}

fn cases<L: Line>() -> Vec<(String, Vec<u8>)> {
    let mut cases = vec![];
    let first = Header::first::<L>();
    let mut add = |name: &str, bytes: Vec<u8>| cases.push((name.to_string(), bytes));

    add("nothing_wrong", first.sent());
    add("no_bytes", vec![]);
    add("truncated", first.sent()[..first.sent().len() - 1].to_vec());
    add("trailing_byte", [first.sent(), vec![0]].concat());
    for (name, bytes) in of_array(&first) {
        add(name, bytes);
    }
    for (name, change) in of_head().into_iter().chain(of_payload()).chain(of_chain()) {
        if name.starts_with("timestamp_") && !L::HAS_TIMESTAMP {
            continue;
        }
        let mut header = first.clone();
        change(&mut header);
        add(name, header.sent());
    }
    for (name, signature) in of_signature(&first) {
        add(name, Array(first.signed_with(signature)).sent());
    }
    for (name, extensions) in L::extension_cases() {
        let header = Header {
            extensions: Some(extensions),
            ..first.clone()
        };
        add(&format!("extensions.{name}"), header.sent());
    }
    cases
}

/// The outer array written otherwise.
fn of_array(first: &Header) -> Vec<(&'static str, Vec<u8>)> {
    let items: Vec<u8> = first.signed().iter().flat_map(Value::sent).collect();
    let count = first.signed().len() as u8;
    vec![
        (
            "array_not_minimal",
            [vec![0x98, count], items.clone()].concat(),
        ),
        (
            "array_indefinite",
            [vec![0x9f], items.clone(), vec![0xff]].concat(),
        ),
        (
            "array_too_long_a_head",
            [vec![0x81 + count], items.clone()].concat(),
        ),
        (
            "array_tagged",
            [vec![0xd9, 0xd9, 0xf7], first.sent()].concat(),
        ),
        ("array_missing", items),
        ("array_in_bytes", Bytes(first.sent()).sent()),
    ]
}

fn of_signature(first: &Header) -> Vec<(&'static str, Value)> {
    let signature = first.signature();
    let mut flipped = signature.clone();
    flipped[0] ^= 1;
    // s + L, which a lenient check takes for s.
    let mut not_reduced = signature.clone();
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut carry = 0;
    for (byte, add) in not_reduced[32..].iter_mut().zip(order.unwrap()) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    vec![
        ("signature_flipped", Bytes(flipped)),
        ("signature_zero", Bytes(vec![0; 64])),
        ("signature_not_reduced", Bytes(not_reduced)),
        ("signature_short", Bytes(signature[..63].to_vec())),
        ("signature_long", Bytes([signature, vec![0]].concat())),
        ("signature_null", Null),
    ]
}

type Change = fn(&mut Header);

fn hash() -> Value {
    Bytes(vec![9; 32])
}

fn at(header: &mut Header, seq: Value) {
    header.seq = seq;
    header.backlink = Some(hash());
}

fn bodyless(header: &mut Header) {
    header.size = Unsigned(0);
    header.hash = None;
}

fn of_head() -> Vec<(&'static str, Change)> {
    vec![
        ("version_0", |h| h.version = Unsigned(0)),
        ("version_2", |h| h.version = Unsigned(2)),
        ("version_65537", |h| h.version = Unsigned(65_537)),
        ("version_not_minimal", |h| {
            h.version = Raw(vec![0x18, 1]).read_as(Unsigned(1))
        }),
        ("version_float", |h| {
            h.version = Float(1.0).read_as(Unsigned(1))
        }),
        ("version_bignum", |h| {
            h.version = Raw(vec![0xc2, 0x41, 1]).read_as(Unsigned(1))
        }),
        ("key_short", |h| h.key = Bytes(vec![1; 31])),
        ("key_not_on_curve", |h| {
            h.key = Bytes([vec![2], vec![0; 31]].concat())
        }),
        ("key_of_small_order", |h| {
            h.key = Bytes([vec![1], vec![0; 31]].concat())
        }),
        ("key_not_minimal", |h| {
            let Bytes(key) = &h.key else { unreachable!() };
            h.key = Raw([vec![0x59, 0, 32], key.clone()].concat()).read_as(h.key.clone());
        }),
        ("key_in_chunks", |h| {
            let Bytes(key) = &h.key else { unreachable!() };
            let chunked = [vec![0x5f, 0x58, 32], key.clone(), vec![0xff]].concat();
            h.key = Raw(chunked).read_as(h.key.clone());
        }),
        ("key_as_integers", |h| {
            let Bytes(key) = &h.key else { unreachable!() };
            let integers = key.iter().map(|byte| Unsigned(u64::from(*byte))).collect();
            h.key = Array(integers).read_as(h.key.clone());
        }),
        ("extensions_missing", |h| h.extensions = None),
        ("extensions_null", |h| h.extensions = Some(Null)),
        ("extensions_in_bytes", |h| {
            h.extensions = h
                .extensions
                .take()
                .map(|extensions| Bytes(extensions.sent()));
        }),
        ("extensions_indefinite", |h| {
            let extensions = h.extensions.take().unwrap();
            let definite = extensions.sent();
            let head = if definite[0] >> 5 == 5 { 0xbf } else { 0x9f };
            let indefinite = [vec![head], definite[1..].to_vec(), vec![0xff]].concat();
            h.extensions = Some(Raw(indefinite).read_as(extensions));
        }),
        ("field_too_many", |h| h.more.push(Null)),
    ]
}

fn of_payload() -> Vec<(&'static str, Change)> {
    vec![
        ("size_without_hash", |h| h.hash = None),
        ("hash_without_size", |h| h.size = Unsigned(0)),
        ("hash_short", |h| h.hash = Some(Bytes(vec![9; 31]))),
        ("hash_null", |h| h.hash = Some(Null)),
        ("hash_text", |h| h.hash = Some(Text("x".repeat(32)))),
        ("size_not_minimal", |h| {
            h.size = Raw(vec![0x19, 0, 100]).read_as(Unsigned(100))
        }),
        ("size_negative", |h| h.size = Negative(0)),
        ("size_u32_max", |h| h.size = Unsigned(u64::from(u32::MAX))),
        ("size_above_u32", |h| h.size = Unsigned(1 << 32)),
        ("size_u64_max", |h| h.size = Unsigned(u64::MAX)),
        ("bodyless", bodyless),
        ("bodyless_hash_null", |h| {
            bodyless(h);
            h.hash = Some(Null);
        }),
    ]
}

fn of_chain() -> Vec<(&'static str, Change)> {
    vec![
        ("backlink_at_0", |h| h.backlink = Some(hash())),
        ("backlink_null_at_0", |h| h.backlink = Some(Null)),
        ("backlink_missing_at_1", |h| h.seq = Unsigned(1)),
        ("backlink_null_at_1", |h| {
            at(h, Unsigned(1));
            h.backlink = Some(Null);
        }),
        ("backlink_short", |h| {
            at(h, Unsigned(1));
            h.backlink = Some(Bytes(vec![9; 31]));
        }),
        ("seq_1", |h| at(h, Unsigned(1))),
        ("seq_not_minimal", |h| {
            h.seq = Raw(vec![0x18, 0]).read_as(Unsigned(0))
        }),
        ("seq_negative", |h| at(h, Negative(0))),
        ("seq_float", |h| h.seq = Float(0.0).read_as(Unsigned(0))),
        ("seq_null", |h| h.seq = Null),
        ("seq_u32_max", |h| at(h, Unsigned(u64::from(u32::MAX)))),
        ("seq_above_u32", |h| at(h, Unsigned(1 << 32))),
        ("seq_above_i64", |h| at(h, Unsigned(1 << 63))),
        ("seq_u64_max", |h| at(h, Unsigned(u64::MAX))),
        ("timestamp_0", |h| h.timestamp = Some(Unsigned(0))),
        ("timestamp_u64_max", |h| {
            h.timestamp = Some(Unsigned(u64::MAX))
        }),
        ("timestamp_negative", |h| h.timestamp = Some(Negative(0))),
        ("timestamp_missing", |h| h.timestamp = None),
    ]
}
