//! What operations say, how they are signed and checked, and that nothing harms.

use bytes::Bytes;
use proptest::prelude::*;

use super::{golden_tests::Golden, *};

/// The operation that both stock crates were asked to make for the golden bytes.
fn golden_draft(line: Line) -> Draft {
    let golden = Golden::of(line);
    Draft {
        line,
        log_id: Topic::from_bytes([7; 32]).log_id(),
        seq: 1,
        backlink: Some(BACKLINK.parse().expect("it is a name")),
        prune: false,
        timestamp_micros: match line {
            Line::V06 => 0x0006_0a24_181e_4000,
            Line::V07 => 0x0006_60bd_3002_00e8,
        },
        body: Some(golden.bytes("body")),
    }
}

fn golden_header(line: Line) -> Bytes {
    Golden::of(line).bytes("header.linked")
}

const LINES: [Line; 2] = [Line::V06, Line::V07];

#[test]
fn the_golden_headers_say_what_was_put_in() {
    for line in LINES {
        let draft = golden_draft(line);
        let it = Operation::decode(line, golden_header(line), draft.body.clone())
            .expect("stock made it");
        assert_eq!(it.verify(), Ok(()));
        assert_eq!(it.author(), AuthorKey::from_bytes(&[1; 32]).author());
        assert_eq!((it.seq(), it.backlink()), (draft.seq, draft.backlink));
        assert_eq!((it.log_id(), it.prune()), (draft.log_id, false));
        assert_eq!(it.timestamp_micros(), draft.timestamp_micros);
        assert_eq!(it.payload_size(), 100);
        assert_eq!(it.body(), draft.body.as_ref());
        assert_eq!(it.bytes(), it.header().len() as u64 + 100);
        assert_eq!(it.line(), line);
        assert_eq!(
            it.id().to_string(),
            Golden::of(line).text("header.linked.id")
        );
    }
}

#[test]
fn the_golden_draft_is_signed_to_the_golden_header() {
    let key = AuthorKey::from_bytes(&[1; 32]);
    for line in LINES {
        let signed = Operation::sign(golden_draft(line), &key).expect("it breaks no rule");
        assert_eq!(signed.header(), &golden_header(line));
    }
}

#[test]
fn any_flipped_bit_is_refused() {
    for line in LINES {
        let draft = golden_draft(line);
        let (header, body) = (golden_header(line), draft.body.expect("it has one"));
        let id = decode(line, &header).expect("stock made it").id();
        for bit in 0..header.len() * 8 {
            if let Ok(it) = decode(line, &flipped(&header, bit)) {
                assert_ne!(it.id(), id, "bit {bit}");
                assert!(it.verify().is_err(), "bit {bit}");
            }
        }
        for bit in 0..body.len() * 8 {
            let body = flipped(&body, bit).into();
            let refused = Operation::decode(line, header.clone(), Some(body));
            assert_eq!(refused, Err(Refused::BodyHash));
        }
    }
}

#[test]
fn a_body_is_the_one_that_was_signed_or_none() {
    for line in LINES {
        let draft = golden_draft(line);
        let decode = |body: Option<Bytes>| Operation::decode(line, golden_header(line), body);
        let whole = draft.body.clone().expect("it has one");
        assert_eq!(decode(None).expect("may be missing").body(), None);
        for (body, found) in [(Bytes::new(), 0), (whole.slice(1..), 99)] {
            let wanted = Refused::BodySize { found, wanted: 100 };
            assert_eq!(decode(Some(body)), Err(wanted));
        }

        let bodyless = Draft {
            body: Some(Bytes::new()),
            ..draft
        };
        let bodyless = Operation::sign(bodyless, &AuthorKey::generate()).expect("as none");
        assert_eq!(
            (bodyless.payload_size(), bodyless.payload_hash()),
            (0, None)
        );
        assert_eq!(bodyless.body(), None);
        for body in [Bytes::new(), whole] {
            let refused = Operation::decode(line, bodyless.header().clone(), Some(body));
            assert_eq!(refused, Err(Refused::BodyUnexpected));
        }
    }
}

#[test]
fn a_draft_that_breaks_a_rule_is_not_signed() {
    let key = AuthorKey::generate();
    for line in LINES {
        let draft = golden_draft(line);
        let sign = |draft| Operation::sign(draft, &key).map(drop);
        let unlinked = Draft {
            backlink: None,
            ..draft.clone()
        };
        assert_eq!(sign(unlinked), Err(Refused::BacklinkMissing));
        let linked = Draft {
            seq: 0,
            ..draft.clone()
        };
        assert_eq!(sign(linked), Err(Refused::BacklinkUnexpected));

        let mut body = vec![0; BODY_BYTES_MAX as usize];
        let largest = Draft {
            body: Some(body.clone().into()),
            ..draft.clone()
        };
        assert_eq!(sign(largest), Ok(()));
        body.push(0);
        let larger = Draft {
            body: Some(body.into()),
            ..draft.clone()
        };
        let bytes = BODY_BYTES_MAX + 1;
        assert_eq!(sign(larger), Err(Refused::PayloadTooLarge { bytes }));

        let last = Draft {
            seq: u32::MAX,
            ..draft
        };
        let last = Operation::sign(last, &key).expect("it may be there");
        assert_eq!(
            sign(Draft::after(&last, 0, None)),
            Err(Refused::BacklinkUnexpected)
        );
    }
}

#[test]
fn each_line_refuses_the_other_ones_headers() {
    for line in LINES {
        let header = golden_header(line);
        let refused = Operation::decode(line.other(), header, None);
        assert_eq!(refused, Err(Refused::OtherLine { found: line }));
    }
}

#[test]
fn many_signatures_are_checked_in_order() {
    let good = decode(Line::V06, &golden_header(Line::V06)).expect("stock made it");
    let bad = flipped(&golden_header(Line::V07), 60 * 8);
    let bad = decode(Line::V07, &bad).expect("only its signature is wrong");
    let invalid = Err(Refused::SignatureInvalid { id: bad.id() });
    for count in [0, 1, 7, 8, 100, 101] {
        let is_bad = |nth: usize| nth % 3 == 1 || nth + 1 == count;
        let all: Vec<_> = (0..count)
            .map(|nth| {
                if is_bad(nth) {
                    bad.clone()
                } else {
                    good.clone()
                }
            })
            .collect();
        let wanted: Vec<_> = (0..count)
            .map(|nth| if is_bad(nth) { invalid } else { Ok(()) })
            .collect();
        assert_eq!(verify_all(&all), wanted);
    }
}

#[test]
fn a_name_is_64_digits_of_either_case() {
    let author = Author::from_bytes([0xab; 32]);
    assert_eq!(author.to_string(), "ab".repeat(32));
    assert_eq!("AB".repeat(32).parse(), Ok(author));
    assert_eq!(format!("{author:?}"), "Author(ababababab)");
    for wrong in ["", "ab", &"ab".repeat(33), &"xy".repeat(32)] {
        let error = wrong.parse::<Author>().expect_err("it is no name");
        assert_eq!(error.to_string(), "an author is 64 hexadecimal digits");
    }
    assert!("0.8".parse::<Line>().is_err());
}

#[test]
fn an_author_key_shows_nothing_of_itself() {
    let key = AuthorKey::from_bytes(&[0xab; 32]);
    let draft = Draft::first(Line::V06, Topic::named("x").log_id(), 0, None);
    let operation = Operation::sign(draft, &key).expect("it breaks no rule");
    let shown = format!("{key:?} {operation:?}");
    assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
}

fn decode(line: Line, header: &[u8]) -> Result<Operation, Refused> {
    Operation::decode(line, Bytes::copy_from_slice(header), None)
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn garbage_does_no_harm(
        garbage in prop::collection::vec(any::<u8>(), 0..600),
        kept in 0..240usize,
    ) {
        for line in LINES {
            let _ = decode(line, &garbage);
            let header = golden_header(line);
            let mut bytes = header[..kept.min(header.len())].to_vec();
            bytes.extend(&garbage);
            let _ = decode(line, &bytes);
        }
    }
}

/// The id of no operation that is at hand.
const BACKLINK: &str = "a11cb032790dba2f14af21a5eeeabe59468e99c3b2e78e632919462fe3d76bbb";
