//! The messages of both lines against the bytes of unmodified nodes, and against nonsense.

use proptest::prelude::*;

use super::{
    golden::{Golden, LINES},
    *,
};

/// Every golden message of the sync protocol, by name, as it should decode.
fn golden_messages(line: Line) -> Vec<(&'static str, Message)> {
    let golden = Golden::of(line);
    let author = Author::from_bytes(golden.array("author"));
    let other = Author::from_bytes(golden.array("other_author"));
    let log = LogId::from_bytes(golden.array("log_id"));
    let other_log = LogId::from_bytes(golden.array("other_log_id"));
    let have = |heights: &[(Author, &[(LogId, u32)])]| {
        let heights = heights.iter();
        Message::Have(
            heights
                .map(|(author, logs)| (*author, logs.iter().copied().collect()))
                .collect(),
        )
    };
    let bytes = |name| Bytes::copy_from_slice(golden.bytes(name));
    let (header, bodyless, body) = (
        bytes("header.linked"),
        bytes("header.first.bodyless"),
        bytes("body"),
    );
    let pre_sync = Message::PreSync {
        operations: 10_000,
        bytes: 3_000_000,
    };
    let operation = |header: &Bytes, body| Message::Operation {
        header: header.clone(),
        body,
    };
    let live = |header: &Bytes, body| Message::Live {
        header: header.clone(),
        body,
    };
    let two_logs = have(&[
        (author, &[(log, 1), (other_log, 70_000)]),
        (other, &[(log, 300)]),
    ]);
    let two_authors = have(&[(author, &[(log, 1)]), (other, &[(log, 300)])]);
    let empty = Some(Bytes::new());
    vec![
        ("sync.have.empty", have(&[])),
        ("sync.have.one", have(&[(author, &[(log, 1)])])),
        ("sync.have.two_authors", two_authors),
        ("sync.have.two_logs", two_logs),
        ("sync.pre_sync", pre_sync),
        ("sync.operation", operation(&header, Some(body.clone()))),
        ("sync.operation.bodyless", operation(&bodyless, None)),
        ("sync.operation.empty_body", operation(&bodyless, empty)),
        ("sync.done", Message::Done),
        ("live", live(&header, Some(body))),
        ("live.bodyless", live(&bodyless, None)),
        ("close", Message::Close),
    ]
}

fn encoded(line: Line, message: &Message) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(line, message, &mut bytes).unwrap();
    bytes.freeze()
}

/// All messages of a stream that comes in these pieces.
fn decoded<'a>(
    line: Line,
    limits: Limits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(Vec<Message>, usize), WireFault> {
    let mut decoder = Decoder::new(line, limits);
    let mut found = Vec::new();
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece));
        while let Some(message) = decoder.next().map_err(|it| it.fault)? {
            found.push(message);
        }
        assert!(decoder.held() <= limits.frame + piece.len());
    }
    Ok((found, decoder.held()))
}

fn decode_all(line: Line, bytes: &[u8]) -> Result<(Vec<Message>, usize), WireFault> {
    decoded(line, Limits::of(line), [bytes])
}

#[test]
fn sync_messages_are_those_of_stock_both_ways() {
    for line in LINES {
        let golden = Golden::of(line);
        for (name, message) in golden_messages(line) {
            let bytes = golden.bytes(name);
            assert_eq!(&encoded(line, &message)[..], bytes, "{line:?} {name}");
            let found = decode_all(line, bytes);
            assert_eq!(found, Ok((vec![message], 0)), "{line:?} {name}");
        }
    }
}

#[test]
fn handshake_messages_are_those_of_stock_both_ways() {
    for line in LINES {
        let golden = Golden::of(line);
        let topic = Topic::from_bytes(golden.array("topic"));
        for (name, message) in [
            ("handshake.topic", HandshakeMessage::Topic(topic)),
            ("handshake.done", HandshakeMessage::Done),
        ] {
            let mut bytes = BytesMut::new();
            encode_handshake(line, &message, &mut bytes);
            assert_eq!(&bytes[..], golden.bytes(name), "{line:?} {name}");
            let mut frames = Frames::new(line, HANDSHAKE_FRAME_MAX);
            frames.push(bytes.freeze());
            let frame = frames.next().unwrap().unwrap();
            assert_eq!(decode_handshake(line, &frame), Ok(message));
        }
        let first = golden.bytes("handshake.topic")[0];
        assert_eq!(line_of_first_byte(first), Some(line));
        let first = golden.bytes("discovery.alice_salt_half")[0];
        assert_eq!(line_of_first_discovery_byte(first), Some(line));
    }
}

#[test]
fn a_stream_cut_anywhere_decodes_to_the_same() {
    for line in LINES {
        let messages: Vec<_> = golden_messages(line).into_iter().map(|it| it.1).collect();
        let stream: Vec<u8> = messages.iter().flat_map(|it| encoded(line, it)).collect();
        for at in 0..=stream.len() {
            let found = decoded(line, Limits::of(line), [&stream[..at], &stream[at..]]);
            assert_eq!(found, Ok((messages.clone(), 0)), "{line:?} cut at {at}");
        }
        for step in [1, 2, 3, 7, 64] {
            let found = decoded(line, Limits::of(line), stream.chunks(step));
            assert_eq!(found, Ok((messages.clone(), 0)), "{line:?} in {step}s");
        }
    }
}

#[test]
fn headers_and_bodies_of_any_size_pass_unchanged() {
    for line in LINES {
        for size in [
            0, 1, 23, 24, 255, 256, 1_000, 1_100, 65_535, 65_536, 300_000,
        ] {
            let body: Bytes = (0..size).map(|it: usize| (it * 31 % 256) as u8).collect();
            let header = Bytes::from_static(&[0x42, 0x17, 0x18]);
            for message in [
                Message::Operation {
                    header: header.clone(),
                    body: Some(body.clone()),
                },
                Message::Live {
                    header: header.clone(),
                    body: Some(body.clone()),
                },
            ] {
                let bytes = encoded(line, &message);
                let found = decoded(line, Limits::of(line), bytes.chunks(1_337));
                assert_eq!(found, Ok((vec![message], 0)), "{line:?} {size}");
            }
        }
    }
}

/// Were what has come looked at again with each piece, this would take minutes.
#[test]
fn a_long_message_in_short_pieces_is_looked_at_once() {
    for line in LINES {
        let message = Message::Operation {
            header: Bytes::new(),
            body: Some(Bytes::from(vec![0x99; 2_000_000])),
        };
        let bytes = encoded(line, &message);
        let found = decoded(line, Limits::of(line), bytes.chunks(7));
        assert!(found == Ok((vec![message], 0)), "{line:?}");
    }
}

#[test]
fn a_small_operation_does_not_keep_the_packet_in_memory() {
    let message = Message::Live {
        header: Bytes::from_static(&[0x41, 1]),
        body: Some(Bytes::from_static(&[7; 100])),
    };
    for line in LINES {
        let packet = Bytes::from([&encoded(line, &message)[..], &[0; 60_000]].concat());
        let mut decoder = Decoder::new(line, Limits::of(line));
        decoder.push(packet.slice(..packet.len() - 60_000));
        let found = decoder.next().unwrap();
        assert!(packet.is_unique(), "{line:?}: {found:?} holds it");
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_at_once() {
    let bomb = |line: Line, bytes: &[u8]| {
        let mut decoder = Decoder::new(line, Limits::of(line));
        decoder.push(Bytes::copy_from_slice(bytes));
        let fault = decoder.next().unwrap_err().fault;
        assert!(
            matches!(
                fault,
                WireFault::TooLarge { .. } | WireFault::TooMany { .. }
            ),
            "{line:?} {bytes:02x?}: {fault}"
        );
    };
    bomb(Line::V07, &[0xff; 4]);
    bomb(Line::V07, &(FRAME_MAX_V07 as u32 + 1).to_be_bytes());
    for head in [0x5b, 0x7b, 0x9b, 0xbb] {
        bomb(Line::V06, &[&[head][..], &[0xff; 8]].concat()); // string, text, array, map
        bomb(Line::V06, &[head, 0, 0, 0, 0, 2, 0, 0, 0]);
    }
    // A Have of 65,537 authors, in a frame that is all there.
    let mut have = BytesMut::new();
    v07::framed(&mut have, |into| {
        into.extend_from_slice(&[0, 0]);
        PostcardWrite::uint(into, HAVE_AUTHORS_MAX + 1);
    });
    bomb(Line::V07, &have);
    // An author with more logs than all may have.
    let mut have = BytesMut::new();
    v07::framed(&mut have, |into| {
        into.extend_from_slice(&[0, 0, 1]);
        PostcardWrite::bytes(into, &[1; 32]);
        PostcardWrite::uint(into, HAVE_LOGS_MAX + 1);
    });
    bomb(Line::V07, &have);
}

#[test]
fn a_frame_without_an_end_is_refused_at_the_limit() {
    for (line, front) in [
        (
            Line::V06,
            &b"\xa2dtypedLiveevalue\x82\x9a\x00\x01\x00\x00"[..],
        ),
        (Line::V07, &[0, 1, 0, 1][..]),
    ] {
        let limits = Limits {
            frame: 65_536,
            ..Limits::of(line)
        };
        let stream = [front, &vec![0; 2 * 65_536]].concat();
        let found = decoded(line, limits, stream.chunks(1_000));
        assert!(
            matches!(found, Err(WireFault::TooLarge { .. })),
            "{line:?}: {found:?}"
        );
    }
}

#[test]
fn integers_too_large_for_their_place_are_refused() {
    let golden = Golden::of(Line::V06);
    // The count of operations, and a sequence number, as 2^32.
    let wide = [0x1b, 0, 0, 0, 1, 0, 0, 0, 0];
    let pre_sync = golden.bytes("sync.pre_sync");
    let at = pre_sync.windows(3).position(|it| it == [0x19, 0x27, 0x10]);
    let at = at.expect("10,000 is in it");
    let bytes = [&pre_sync[..at], &wide, &pre_sync[at + 3..]].concat();
    assert_eq!(
        decode_all(Line::V06, &bytes),
        Err(WireFault::IntegerTooLarge(1 << 32))
    );
    let have = golden.bytes("sync.have.one");
    let bytes = [&have[..have.len() - 1], &wide].concat();
    assert_eq!(
        decode_all(Line::V06, &bytes),
        Err(WireFault::IntegerTooLarge(1 << 32))
    );
    let mut have = BytesMut::new();
    v07::framed(&mut have, |into| {
        into.extend_from_slice(&[0, 1]);
        PostcardWrite::uint(into, 1 << 32);
        PostcardWrite::uint(into, 1);
    });
    assert_eq!(
        decode_all(Line::V07, &have),
        Err(WireFault::IntegerTooLarge(1 << 32))
    );
}

#[test]
fn what_only_a_lax_decoder_takes_is_refused() {
    let refused = |line, bytes: &[u8]| {
        let found = decode_all(line, bytes);
        assert!(
            matches!(found, Err(WireFault::Malformed(_))),
            "{line:?} {bytes:02x?}: {found:?}"
        );
    };
    let cbor: [&[u8]; 8] = [
        b"\x9f\xff",                                                     // no known length
        b"\xa1dtypeeClosE",                                              // another name
        b"\xa2dtypeeCloseevalue\xf6", // a value where none belongs
        b"\xb8\x01dtypeeClose",       // a head longer than it need be
        b"\xa1dtypddDone",            // another key
        b"\xa2dtypedSyncevalue\xa2dtypedHaveevalue\xa2\x40\xa0\x40\xa0", // short keys
        b"\xa2dtypedLiveevalue\x82\x80\x01", // neither a body nor none
        b"\xa2dtypedSyncevalue\xa2dtypeiOperationevalue\x82\x81\x19\x01\x00\xf6", // 256 is no byte
    ];
    for bytes in cbor {
        refused(Line::V06, bytes);
    }
    let postcard: [&[u8]; 6] = [
        &[0, 0, 0, 0],                   // an empty frame
        &[0, 0, 0, 2, 2, 0],             // a byte behind Close
        &[0, 0, 0, 2, 0, 4],             // no such message
        &[0, 0, 0, 5, 0, 1, 0x80, 0, 1], // a varint longer than it need be
        &[0, 0, 0, 4, 1, 5, 1, 0],       // a header that ends too early
        &[0, 0, 0, 5, 1, 1, 1, 2, 0],    // neither a body nor none
    ];
    for bytes in postcard {
        refused(Line::V07, bytes);
    }
}

#[test]
fn an_author_or_a_log_twice_is_refused() {
    for line in LINES {
        let golden = Golden::of(line);
        let mut bytes = golden.bytes("sync.have.two_authors").to_vec();
        let (author, other) = (golden.bytes("author"), golden.bytes("other_author"));
        let at = |of: &[u8], bytes: &[u8]| bytes.windows(32).position(|it| it == of).unwrap();
        let place = at(other, &bytes);
        bytes[place..place + 32].copy_from_slice(author);
        assert_eq!(
            decode_all(line, &bytes),
            Err(WireFault::Malformed("an author twice in a Have"))
        );
        let mut bytes = golden.bytes("sync.have.two_logs").to_vec();
        let place = at(golden.bytes("other_log_id"), &bytes);
        bytes[place..place + 32].copy_from_slice(golden.bytes("log_id"));
        assert_eq!(
            decode_all(line, &bytes),
            Err(WireFault::Malformed("a log twice in a Have"))
        );
    }
}

#[test]
fn a_message_too_long_to_be_sent_leaves_nothing_behind() {
    for line in LINES {
        let mut bytes = BytesMut::from(&b"before"[..]);
        let message = Message::Operation {
            header: Bytes::new(),
            body: Some(Bytes::from(vec![0xff; FRAME_MAX_V07 + 1])),
        };
        assert!(encode(line, &message, &mut bytes).is_err(), "{line:?}");
        assert_eq!(&bytes[..], b"before");
    }
}

fn lines() -> impl Strategy<Value = Line> {
    prop_oneof![Just(Line::V06), Just(Line::V07)]
}

fn byte_strings(max: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

/// One CBOR item: what stands for a header where 0.6 carries it as it is.
fn items() -> impl Strategy<Value = Bytes> {
    byte_strings(400).prop_map(|bytes| {
        let mut item = BytesMut::new();
        item.array(2);
        CborWrite::bytes(&mut item, &bytes);
        item.null();
        item.freeze()
    })
}

fn messages() -> impl Strategy<Value = Message> {
    let seqs = prop_oneof![any::<u32>(), 0..300_u32];
    let logs = proptest::collection::btree_map(any::<[u8; 32]>(), seqs, 0..4);
    let authors = proptest::collection::btree_map(any::<[u8; 32]>(), logs, 0..5);
    let named = |logs: BTreeMap<[u8; 32], u32>| {
        let logs = logs.into_iter();
        logs.map(|(log, seq)| (LogId::from_bytes(log), seq))
            .collect()
    };
    let have = authors.prop_map(move |authors| {
        let authors = authors.into_iter();
        Message::Have(
            authors
                .map(|(author, logs)| (Author::from_bytes(author), named(logs)))
                .collect(),
        )
    });
    let operation = || (items(), proptest::option::of(byte_strings(2_000)));
    prop_oneof![
        have,
        (any::<u32>(), any::<u32>()).prop_map(|(operations, bytes)| Message::PreSync {
            operations,
            bytes: u64::from(bytes)
        }),
        operation().prop_map(|(header, body)| Message::Operation { header, body }),
        operation().prop_map(|(header, body)| Message::Live { header, body }),
        Just(Message::Done),
        Just(Message::Close),
    ]
}

proptest! {
    #[test]
    fn messages_come_back_however_they_are_cut(
        line in lines(),
        messages in proptest::collection::vec(messages(), 0..8),
        step in 1..3_000_usize,
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|it| encoded(line, it)).collect();
        let found = decoded(line, Limits::of(line), stream.chunks(step));
        prop_assert_eq!(found, Ok((messages, 0)));
    }

    #[test]
    fn garbage_is_held_to_the_limit(
        line in lines(),
        bytes in proptest::collection::vec(any::<u8>(), 0..4_000),
        step in 1..500_usize,
        frame in 1..300_usize,
    ) {
        let limits = Limits { frame, ..Limits::of(line) };
        let _ = decoded(line, limits, bytes.chunks(step));
    }

    #[test]
    fn changed_messages_do_no_harm(
        line in lines(),
        messages in proptest::collection::vec(messages(), 1..4),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        step in 1..500_usize,
    ) {
        let mut stream: Vec<u8> = messages.iter().flat_map(|it| encoded(line, it)).collect();
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let whole = decoded(line, Limits::of(line), [&stream[..]]);
        let cut = decoded(line, Limits::of(line), stream.chunks(step));
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
        if let (Ok(whole), Ok(cut)) = (whole, cut) {
            prop_assert_eq!(whole, cut);
        }
    }
}
