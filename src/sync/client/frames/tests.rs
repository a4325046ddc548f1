//! The frozen bytes of every message, and garbage.

use proptest::prelude::*;

use super::*;
use crate::identity::{PeerAddr, PeerId};

fn author(at: u8) -> Author {
    Author::from_bytes([at; 32])
}

fn raw(header: &'static str, body: Option<&'static str>) -> RawOperation {
    RawOperation {
        header: header.into(),
        body: body.map(Bytes::from),
    }
}

/// One of each, with their bytes: 32 bytes of one value are written `value*32`.
pub(super) fn golden() -> Vec<(Frame, &'static str)> {
    [golden_of_clients(), golden_of_servers()].concat()
}

fn golden_of_clients() -> Vec<(Frame, &'static str)> {
    let (topic, log) = (Topic::from_bytes([7; 32]), LogId::from_bytes([8; 32]));
    vec![
        (
            Frame::Pull(PullRequest {
                topic,
                line: Some(Line::V07),
                follow: true,
                have: vec![Known {
                    author: author(1),
                    log,
                    seq: 300,
                    id: OperationId::from_bytes([9; 32]),
                }],
            }),
            "00 07*32 0101 01 01 01*32 08*32 ac02 09*32",
        ),
        (Frame::Push { topic, line: None }, "01 07*32 00"),
        (
            Frame::Batch {
                number: 5,
                operations: vec![raw("ab", Some("c")), raw("d", None)],
            },
            "02 05 02 026162 010163 0164 00",
        ),
        (Frame::End, "03"),
    ]
}

fn golden_of_servers() -> Vec<(Frame, &'static str)> {
    let log = LogId::from_bytes([8; 32]);
    let refused = PushRefused {
        rule: PushRule::Gap,
        text: "no".to_owned(),
    };
    vec![
        (
            Frame::Heads(Heads {
                line: Line::V06,
                logs: vec![Head {
                    author: author(1),
                    log,
                    last: 4,
                    operations: 2,
                }],
                operations: 2,
                bytes: 700,
            }),
            "04 00 01 01*32 08*32 04 02 02 bc05",
        ),
        (
            Frame::Run(Run {
                author: author(1),
                log,
                first: 3,
                operations: vec![raw("ab", None)],
            }),
            "05 01*32 08*32 03 01 026162 00",
        ),
        (
            Frame::CaughtUp(vec![Height {
                author: author(1),
                log,
                seq: 4,
            }]),
            "06 01 01*32 08*32 04",
        ),
        (
            Frame::Committed {
                number: 5,
                outcomes: vec![
                    PushOutcome::Appended { number: 10 },
                    PushOutcome::Appended { number: 11 },
                    PushOutcome::Held { number: 3 },
                    PushOutcome::Refused(refused),
                ],
            },
            "07 05 03 000a02 010301 0204026e6f",
        ),
        (
            Frame::Refused {
                why: Denied::NoQuorum,
                text: "later".to_owned(),
            },
            "08 03 056c61746572",
        ),
        (Frame::Wait { ms: 300 }, "09 ac02"),
        (
            Frame::Members(vec![
                MemberAddr::from(PeerAddr::new(
                    PeerId::from_bytes([5; 32]),
                    [([192, 0, 2, 1], 80).into()],
                ))
                .with("http", "a"),
            ]),
            "0a 31 01 05*32 01 00 c0000201 50 00 01 04 68747470 01 61",
        ),
    ]
}

fn bytes(text: &str) -> Vec<u8> {
    let hex = |it: &str| data_encoding::HEXLOWER.decode(it.as_bytes()).expect("hex");
    let words = text.split(' ').map(|word| match word.split_once('*') {
        Some((byte, times)) => hex(byte).repeat(times.parse().expect("a number")),
        None => hex(word),
    });
    words.collect::<Vec<_>>().concat()
}

#[test]
fn the_bytes_of_every_message_are_frozen() {
    for (frame, text) in golden() {
        let body = bytes(text);
        let encoded = frame.encode();
        let length = (body.len() as u32).to_be_bytes();
        assert_eq!(encoded[..4], length, "{}", frame.name());
        assert_eq!(encoded[4..], body, "{}", frame.name());
        assert_eq!(Frame::decode(&body), Ok(frame));
    }
}

#[test]
fn a_run_from_the_store_is_the_same_run() {
    let stored = Stored {
        seq: 3,
        header: "ab".into(),
        body: None,
    };
    let (frame, _) = golden().swap_remove(5);
    let run = encode_run(author(1), LogId::from_bytes([8; 32]), &[stored]);
    assert_eq!(run, frame.encode());
}

#[test]
fn no_claim_is_believed() {
    let bombs = [
        // So many logs, operations, outcomes; a header as long as all memory.
        ("00 07*32 00 00 ffffffff0f", "logs"),
        ("06 818004", "logs"),
        ("02 00 8120", "operations"),
        ("02 00 01 ffffffffffffffff7f", "ends too early"),
        ("07 00 01 00 00 8120", "outcomes"),
        ("07 00 ffffffff0f 00 00 8020 00 00 01", "outcomes"),
        ("07 00 01 00 ffffffffffffffffff01 01", "impossible"),
        ("07 00 01 00 00 00", "impossible"),
        ("07 00 01 03 00 01", "unknown outcome"),
        ("0b", "unknown message"),
        ("0a 01 00", "no list of members"),
        ("0a 01 ff", "no list of members"),
        ("0a 818001", "ends too early"),
        ("09", "ends too early"),
        ("0300", "behind the end"),
        ("", "ends too early"),
        ("01 07*32 02", "neither yes nor no"),
        ("01 07*32 01 02", "unknown line"),
    ];
    for (text, why) in bombs {
        let text = bytes(if text.is_empty() { "" } else { text });
        let fault = Frame::decode(&text).expect_err("a bomb").to_string();
        assert!(fault.contains(why), "{fault}, not {why}");
    }
}

#[test]
fn only_a_single_operation_may_be_longer_than_a_run() {
    let long = RawOperation {
        header: vec![0; RUN_BYTES].into(),
        body: None,
    };
    let frame = |operations| Frame::Batch {
        number: 0,
        operations,
    };
    let one = frame(vec![long.clone()]);
    assert_eq!(Frame::decode(&one.encode()[4..]), Ok(one));
    let two = frame(vec![long, raw("a", None)]);
    let fault = Frame::decode(&two.encode()[4..]);
    assert!(
        matches!(
            fault.map_err(|it| it.fault),
            Err(WireFault::TooLarge { .. })
        ),
        "two"
    );
}

#[test]
fn a_frame_longer_than_the_limit_is_refused_by_its_length_alone() {
    let mut cut = frames(1_000);
    cut.push(Bytes::from_static(&[0, 0, 3, 233]));
    assert!(matches!(cut.next(), Err(WireFault::TooLarge { .. })));
}

#[test]
fn a_request_is_known_by_its_first_bytes() {
    let Frame::Pull(mut request) = golden().swap_remove(0).0 else {
        panic!("the first is a Pull");
    };
    let short = Frame::Push {
        topic: request.topic,
        line: None,
    };
    for frame in [short, Frame::End] {
        assert_eq!(Opening::of(&frame.encode()[..4]), Opening::Other);
    }
    request.have = vec![request.have[0]; 1_000];
    let topic = request.topic;
    let pull = Frame::Pull(request).encode();
    for length in 0..37 {
        assert_eq!(Opening::of(&pull[..length]), Opening::More);
    }
    assert_eq!(Opening::of(&pull[..37]), Opening::Pull(topic));
    assert_eq!(Opening::of(&[0, 0, 1, 0, 2]), Opening::Other, "a Batch");
}

#[test]
fn a_long_text_is_cut_between_letters() {
    let text = "ä".repeat(TEXT_MAX);
    let why = Denied::Other;
    let sent = Frame::Refused { why, text }.encode();
    let Ok(Frame::Refused { text, .. }) = Frame::decode(&sent[4..]) else {
        panic!("it is read again");
    };
    assert_eq!(text, "ä".repeat(TEXT_MAX / 2));
}

#[test]
fn every_reason_has_a_number_of_its_own() {
    for code in 0..=u8::MAX {
        let (why, rule) = (Denied::of_code(code), PushRule::of_code(code));
        assert!(why == Denied::Other || why.code() == code);
        assert!(rule == PushRule::Other || rule.code() == code);
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_or_read_and_never_panics(bytes: Vec<u8>, tag in 0..12u8) {
        let _ = Frame::decode(&bytes);
        let mut bytes = bytes;
        bytes.insert(0, tag);
        if let Ok(frame) = Frame::decode(&bytes) {
            let again = frame.encode();
            prop_assert_eq!(Frame::decode(&again[4..]), Ok(frame));
        }
    }

    #[test]
    fn a_changed_message_never_panics(
        which in 0..11usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = golden()[which].0.encode()[4..].to_vec();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn a_stream_is_cut_alike_however_it_comes(cuts in prop::collection::vec(1..40usize, 0..40)) {
        let all: Vec<u8> = golden().iter().flat_map(|(it, _)| it.encode()).collect();
        let mut cut = frames(FRAME_MAX);
        let (mut rest, mut found) = (&all[..], Vec::new());
        for length in cuts.into_iter().chain([all.len()]) {
            let (now, later) = rest.split_at(length.min(rest.len()));
            rest = later;
            cut.push(Bytes::copy_from_slice(now));
            while let Some(frame) = cut.next().expect("it is in order") {
                found.push(Frame::decode(&frame).expect("it is a message"));
            }
        }
        let wanted: Vec<Frame> = golden().into_iter().map(|(it, _)| it).collect();
        prop_assert_eq!(found, wanted);
    }
}
