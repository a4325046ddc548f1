//! Golden bytes of the stock crates, and each rule broken once.

use bytes::Bytes;

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
