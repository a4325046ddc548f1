//! Each rule of each line, broken once in a header that is right otherwise and signed.

use super::{
    cbor::{DEPTH_MAX, Writer},
    golden_tests::hex,
    *,
};

/// A header in parts, each in the form in which it is written; a part that is none is left out.
#[derive(Clone)]
struct Parts {
    line: Line,
    version: Vec<u8>,
    author: Vec<u8>,
    signature: Vec<u8>,
    payload_size: Vec<u8>,
    payload_hash: Option<Vec<u8>>,
    timestamp: Vec<u8>,
    seq: Vec<u8>,
    backlink: Option<Vec<u8>>,
    extensions: Option<Vec<u8>>,
}

impl Parts {
    /// What a standard node would write.
    fn right(line: Line) -> Self {
        let extensions = match line {
            Line::V06 => [
                &[0xa2][..],
                &text("log_id"),
                &bytes(3, 32),
                &text("version"),
                &[1],
            ],
            Line::V07 => [
                &[0x85][..],
                &[1, 0],
                &bytes(3, 32),
                &unsigned(1_000),
                &[0xf4],
            ],
        };
        Self {
            line,
            version: unsigned(1),
            author: [
                &[0x58, 32][..],
                AuthorKey::from_bytes(&[1; 32]).author().as_bytes(),
            ]
            .concat(),
            signature: bytes(2, 64),
            payload_size: unsigned(100),
            payload_hash: Some(bytes(7, 32)),
            timestamp: unsigned(1_000),
            seq: unsigned(5),
            backlink: Some(bytes(9, 32)),
            extensions: Some(extensions.concat()),
        }
    }

    fn fields(self) -> Vec<Vec<u8>> {
        let timestamp = (self.line == Line::V06).then_some(self.timestamp);
        [
            Some(self.version),
            Some(self.author),
            Some(self.signature),
            Some(self.payload_size),
            self.payload_hash,
            timestamp,
            Some(self.seq),
            self.backlink,
            self.extensions,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn decode(self) -> Result<Operation, Refused> {
        let line = self.line;
        let fields = self.fields();
        let head = 0x80 | u8::try_from(fields.len()).expect("it is short");
        let header = [vec![head], fields.concat()].concat();
        Operation::decode(line, header.into(), None)
    }
}

fn unsigned(number: u64) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.unsigned(number);
    writer.0
}

fn text(text: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.text(text);
    writer.0
}

fn bytes(byte: u8, length: usize) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes(&vec![byte; length]);
    writer.0
}

/// The refusal when one part is changed.
fn refusal(line: Line, change: impl FnOnce(&mut Parts)) -> Refused {
    let mut parts = Parts::right(line);
    change(&mut parts);
    parts.decode().expect_err("a rule is broken")
}

fn invalid(field: Field) -> Refused {
    Refused::FieldInvalid { field }
}

#[test]
fn right_parts_are_taken() {
    for line in [Line::V06, Line::V07] {
        let it = Parts::right(line).decode().expect("it is right");
        assert_eq!((it.seq(), it.payload_size()), (5, 100));
        assert_eq!(it.timestamp_micros(), 1_000);
    }
}

#[test]
fn fields_that_both_lines_have_are_checked_alike() {
    for line in [Line::V06, Line::V07] {
        let is = |change: fn(&mut Parts), wanted| assert_eq!(refusal(line, change), wanted);
        is(
            |it| it.version = unsigned(2),
            Refused::VersionUnknown { found: 2 },
        );
        is(|it| it.version = vec![0x20], invalid(Field::Version));
        is(|it| it.author = bytes(1, 31), invalid(Field::Author));
        is(
            |it| it.author = text(&"x".repeat(32)),
            invalid(Field::Author),
        );
        is(|it| it.signature = bytes(1, 63), invalid(Field::Signature));
        is(|it| it.signature = vec![], invalid(Field::Signature));
        is(|it| it.payload_hash = None, Refused::PayloadHashMissing);
        is(
            |it| it.payload_hash = Some(vec![0xf6]),
            Refused::PayloadHashMissing,
        );
        is(
            |it| it.payload_hash = Some(bytes(7, 31)),
            invalid(Field::PayloadHash),
        );
        is(
            |it| it.payload_size = unsigned(0),
            Refused::PayloadSizeMissing,
        );
        is(
            |it| it.payload_size = vec![0x20],
            invalid(Field::PayloadSize),
        );
        let bytes_max = BODY_BYTES_MAX + 1;
        is(
            |it| it.payload_size = unsigned(BODY_BYTES_MAX + 1),
            Refused::PayloadTooLarge { bytes: bytes_max },
        );
        is(|it| it.seq = unsigned(0), Refused::BacklinkUnexpected);
        is(|it| it.backlink = None, Refused::BacklinkMissing);
        is(
            |it| it.backlink = Some(bytes(9, 33)),
            invalid(Field::Backlink),
        );
        is(
            |it| it.seq = unsigned(1 << 32),
            Refused::SequenceTooHigh { found: 1 << 32 },
        );
        is(|it| it.seq = vec![0x20], invalid(Field::Sequence));
        is(
            |it| it.extensions = Some(vec![0xf6]),
            invalid(Field::Extensions),
        );
        is(
            |it| it.extensions = Some(vec![0x80]),
            invalid(Field::Extensions),
        );
    }
}

#[test]
fn a_header_is_one_list_of_the_right_length_and_nothing_else() {
    for line in [Line::V06, Line::V07] {
        let decode = |header: Vec<u8>| {
            Operation::decode(line, header.into(), None).expect_err("a rule is broken")
        };
        let fields = Parts::right(line).fields();
        let count = fields.len() as u8;
        let all = fields.concat();
        let with = |head: &[u8]| decode([head, &all].concat());
        let miscounted = |found: u8| Refused::FieldCount {
            found: u64::from(found),
            wanted: u64::from(count),
        };
        assert_eq!(with(&[0x80 | (count - 1)]), miscounted(count - 1));
        assert_eq!(with(&[0x80 | (count + 1)]), miscounted(count + 1));
        assert_eq!(with(&[0xa0 | count]), invalid(Field::Header));
        assert_eq!(with(&[0xc1, 0x80 | count]), invalid(Field::Header));
        assert_eq!(with(&[0x98, count]), Refused::NotCanonical { at: 0 });
        assert_eq!(with(&[0x9f]), Refused::NotCanonical { at: 0 });
        assert_eq!(with(&[0x9c]), Refused::Malformed { at: 0 });
        assert_eq!(decode(vec![]), Refused::Malformed { at: 0 });

        let right = [vec![0x80 | count], all.clone()].concat();
        let longer = [&right[..], &[0, 0]].concat();
        assert_eq!(decode(longer), Refused::TrailingBytes { bytes: 2 });
        for end in 0..right.len() {
            let at = end as u32;
            assert_eq!(decode(right[..end].to_vec()), Refused::Malformed { at });
        }
        let bytes = HEADER_BYTES_MAX + 1;
        let refused = decode(vec![0; bytes as usize]);
        assert_eq!(refused, Refused::HeaderTooLong { bytes });
    }
}

#[test]
fn numbers_and_lengths_take_the_fewest_bytes() {
    for line in [Line::V06, Line::V07] {
        let at = |change: fn(&mut Parts)| match refusal(line, change) {
            Refused::NotCanonical { at } => at,
            other => panic!("{other:?}"),
        };
        assert_eq!(at(|it| it.version = vec![0x18, 1]), 1);
        assert_eq!(
            at(|it| it.author.splice(..2, [0x59, 0, 32]).for_each(drop)),
            2
        );
        assert_eq!(
            at(|it| it.signature.splice(..2, [0x59, 0, 64]).for_each(drop)),
            36
        );
        assert_eq!(at(|it| it.payload_size = vec![0x19, 0, 100]), 102);
        assert_eq!(at(|it| it.payload_size = vec![0x1a, 0, 0, 1, 0]), 102);
        assert_eq!(
            at(|it| it.payload_size = vec![0x1b, 0, 0, 0, 0, 0, 1, 0, 0]),
            102
        );
    }
}

#[test]
fn extensions_of_line_06_are_in_the_order_of_stock() {
    let (log_id, version, prune) = (text("log_id"), text("version"), text("prune_flag"));
    let id = bytes(3, 32);
    let decode = |parts: &[&[u8]]| {
        let mut header = Parts::right(Line::V06);
        header.extensions = Some(parts.concat());
        header.decode().map(|it| it.prune())
    };
    let refused = |field| Err(invalid(field));
    let pruning = decode(&[&[0xa3], &prune, &[0xf5], &log_id, &id, &version, &[1]]);
    assert_eq!(pruning, Ok(true));
    let said = decode(&[&[0xa3], &prune, &[0xf4], &log_id, &id, &version, &[1]]);
    assert_eq!(said, refused(Field::PruneFlag));
    let late = decode(&[&[0xa3], &log_id, &id, &version, &[1], &prune, &[0xf5]]);
    assert_eq!(late, refused(Field::Extensions));
    let swapped = decode(&[&[0xa2], &version, &[1], &log_id, &id]);
    assert_eq!(swapped, refused(Field::Extensions));
    let missing = decode(&[&[0xa1], &log_id, &id]);
    assert_eq!(missing, refused(Field::Extensions));
    let unknown = decode(&[&[0xa3], &log_id, &id, &version, &[1], &text("x"), &[1]]);
    assert_eq!(unknown, refused(Field::Extensions));
    let short = decode(&[&[0xa2], &log_id, &bytes(3, 31), &version, &[1]]);
    assert_eq!(short, refused(Field::LogId));
    let later = decode(&[&[0xa2], &log_id, &id, &version, &[2]]);
    assert_eq!(later, Err(Refused::ExtensionsVersionUnknown { found: 2 }));
}

/// Extensions of line 0.7 with these fields.
fn with_extensions(fields: &[&[u8]]) -> Result<Operation, Refused> {
    let mut writer = Writer::default();
    writer.list(fields.len() as u64);
    let mut header = Parts::right(Line::V07);
    header.extensions = Some([writer.0, fields.concat()].concat());
    header.decode()
}

#[test]
fn extensions_of_line_07_are_basic_or_causal() {
    let id = bytes(3, 32);
    let decode = |fields: &[&[u8]]| with_extensions(fields).map(|it| it.prune());
    let refused = |field| Err(invalid(field));
    assert_eq!(decode(&[&[1], &[0], &id, &[0], &[0xf5]]), Ok(true));
    assert_eq!(decode(&[&[1], &[1], &id, &[0], &[0x80]]), Ok(false));
    let previous = [&[0x82][..], &bytes(1, 32), &bytes(1, 32)].concat();
    assert_eq!(decode(&[&[1], &[1], &id, &[0], &previous]), Ok(false));
    let short = [&[0x81][..], &bytes(1, 31)].concat();
    assert_eq!(
        decode(&[&[1], &[1], &id, &[0], &short]),
        refused(Field::Previous)
    );
    assert_eq!(
        decode(&[&[1], &[1], &id, &[0], &[0xf4]]),
        refused(Field::Previous)
    );
    assert_eq!(
        decode(&[&[1], &[0], &id, &[0], &[0x80]]),
        refused(Field::PruneFlag)
    );
    assert_eq!(
        decode(&[&[1], &[0], &id, &[0x20], &[0xf4]]),
        refused(Field::Timestamp)
    );
    assert_eq!(
        decode(&[&[1], &[0], &bytes(3, 33), &[0], &[0xf4]]),
        refused(Field::LogId)
    );
    assert_eq!(decode(&[&[1], &[0], &id, &[0]]), refused(Field::Extensions));
    let later = decode(&[&[2], &[0], &id, &[0], &[0xf4]]);
    assert_eq!(later, Err(Refused::ExtensionsVersionUnknown { found: 2 }));
    let other = decode(&[&[1], &[2], &id, &[0], &[0xf4]]);
    assert_eq!(other, Err(Refused::ExtensionsVariantUnknown { found: 2 }));

    for (count, taken) in [(512, true), (513, false)] {
        let mut previous = Writer::default();
        previous.list(count);
        (0..count).for_each(|_| previous.bytes(&[1; 32]));
        assert_eq!(decode(&[&[1], &[1], &id, &[0], &previous.0]).is_ok(), taken);
    }
}

/// What may follow the known extensions of line 0.7, as p2panda-core 0.7.1 judged it.
#[test]
fn unknown_extensions_of_line_07_are_canonical_and_within_the_limits() {
    let judge = |item: &[u8]| {
        let known: [&[u8]; 5] = [&[1], &[0], &bytes(3, 32), &[0], &[0xf4]];
        let fields = [&known[..], &[item]].concat();
        with_extensions(&fields).map(drop)
    };
    for item in UNKNOWN_TAKEN.split_whitespace() {
        assert_eq!(judge(&hex(item)), Ok(()), "{item}");
    }
    for item in UNKNOWN_REFUSED.split_whitespace() {
        assert!(judge(&hex(item)).is_err(), "{item}");
    }
    for length in [512, 513] {
        let filled = |head: [u8; 3]| [&head[..], &vec![0; length]].concat();
        let [high, low] = (length as u16).to_be_bytes();
        for head in [[0x59, high, low], [0x79, high, low], [0x99, high, low]] {
            assert_eq!(judge(&filled(head)).is_ok(), length == 512, "{head:x?}");
        }
    }
    // The header and its extensions are two levels.
    for head in [0x81, 0xc1] {
        let deep = |levels: u32| [vec![head; levels as usize], vec![0]].concat();
        assert_eq!(judge(&deep(DEPTH_MAX - 2)), Ok(()));
        let refused = judge(&deep(DEPTH_MAX - 1));
        assert!(
            matches!(refused, Err(Refused::NestedTooDeep { .. })),
            "{refused:?}"
        );
    }
    let bottomless = judge(&[vec![0xc1; 60_000], vec![0]].concat());
    assert!(
        matches!(bottomless, Err(Refused::NestedTooDeep { .. })),
        "{bottomless:?}"
    );
}

/// Integers, strings, lists, maps, tags, simple values and floats, each in its one form.
const UNKNOWN_TAKEN: &str = "
    00 17 1818 18ff 190100 1a00010000 1b0000000100000000 1bffffffffffffffff 20 37 3818
    3bffffffffffffffff 40 4100 60 6161 62c3a4 80 8100 a0 a10000 a300001864002000 a20a00186400
    a2616100626161f6 a2810000810100 a1a000 a1a1000000 c100 d81800 c249010000000000000000
    c349010000000000000000 c2c14100 c200 e0 f3 f4 f5 f6 f7 f820 f8ff f90000 f98000 f97e00 f97c00
    f90001 fa47c35000 fb3ff199999999999a fa7f800001 fa7f801000 fa7fc00001 fb7ff0000000000001
    fb7ff0000010000000 fa33000000 fb3690000000000000 fb0000000000000001 fa00000001
";

/// The same in other forms, or cut short.
const UNKNOWN_REFUSED: &str = "
    1817 1900ff 1a0000ffff 1b00000000ffffffff 3817 5800 7800 9800 b800 d80100 5fff 7fff 9fff
    bfff 5f4100ff ff 1c 3f df 61ff 62c328 a200000000 a201000000 a220000000 a21864000a00
    a26161006000 c240 c24100 c2480102030405060708 c249000000000000000001 c349000000000000000001
    f800 f814 f81f fa00000000 fa80000000 fa3f800000 fa7f800000 fa7f802000 fa7fc00000 fa33800000
    fa38800000 fa387fc000 fa477fe000 fb3ff0000000000000 fb40f86a0000000000 fb7ff0000000000000
    fb7ff8000000000000 fb7ff0000020000000 fb36a0000000000000 fb3e60000000000000
    fb0000000000000000 81 41 61 c1 a1 a100 18 f9 fa00
";
