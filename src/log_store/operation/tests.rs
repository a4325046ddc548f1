//! Golden bytes of the stock crates, and each rule broken once.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn hex(digits: &str) -> Vec<u8> {
    data_encoding::HEXLOWER
        .decode(digits.as_bytes())
        .expect("it is hexadecimal")
}

/// The operation that both stock crates were asked to make for the golden bytes.
fn golden_draft(line: Line) -> Draft {
    let mut body = vec![0x78, 98];
    body.resize(100, b'x');
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
        body: Some(body.into()),
    }
}

fn golden_header(line: Line) -> Bytes {
    hex(match line {
        Line::V06 => HEADER_V06,
        Line::V07 => HEADER_V07,
    })
    .into()
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
            match line {
                Line::V06 => ID_V06,
                Line::V07 => ID_V07,
            }
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
fn the_names_of_a_topic_are_those_of_stock() {
    let topic = Topic::from_bytes([7; 32]);
    assert_eq!(topic.log_id().to_string(), LOG_ID);
    assert_eq!(topic.derived().to_string(), DERIVED);
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
        let refused = Draft::after(&last, 0, None).map(drop);
        assert_eq!(refused, Err(Refused::SequenceTooHigh { found: 1 << 32 }));
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

const HEADER_V06: &str = "\
    890158208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c5840b99dd85a\
    ec03cb48c99d89f3c848056e576d2c611c8ce283e7ffe033dec814b06171199bd8ad8fb1dc5fff9920da\
    21e8885b1bd8d48f1a937b31eff67b58420818645820cf6be72b70251e68f5fa709efdaee208fb335f51\
    bfaee57b9ab94171425636ed1b00060a24181e4000015820a11cb032790dba2f14af21a5eeeabe59468e\
    99c3b2e78e632919462fe3d76bbba2666c6f675f69645820ebaf85b465a09de21b398fb112c1500f2cbe\
    658c42f379e0c0f18d24b819f6376776657273696f6e01";
const ID_V06: &str = "db70bd18c40acfd3f6c24e676ced5a5d62586c7ed8e87d38c8df1aef593b9560";
const HEADER_V07: &str = "\
    880158208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c58405d47c1f5\
    ef19f486a22a45abb5babb9acac84294623ade34765b7f39e7ef483a736cec5c54e0bfe166ceea87f44f\
    d6910e80ec8991c164e8873036c4ca1df80c18645820cf6be72b70251e68f5fa709efdaee208fb335f51\
    bfaee57b9ab94171425636ed015820a11cb032790dba2f14af21a5eeeabe59468e99c3b2e78e63291946\
    2fe3d76bbb8501005820ebaf85b465a09de21b398fb112c1500f2cbe658c42f379e0c0f18d24b819f637\
    1b000660bd300200e8f4";
const ID_V07: &str = "04624ddc0969e83095250e68f7df2df186f0bc7a7ea60e41e779586111262f5c";
const BACKLINK: &str = "a11cb032790dba2f14af21a5eeeabe59468e99c3b2e78e632919462fe3d76bbb";
const LOG_ID: &str = "ebaf85b465a09de21b398fb112c1500f2cbe658c42f379e0c0f18d24b819f637";
const DERIVED: &str = "569e5fce4e64fb0bf93cf8ccba0ccbaede16baf9ac2ea2e9ac3a202b412ead21";
