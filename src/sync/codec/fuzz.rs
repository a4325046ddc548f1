//! Damaged messages of log sync, in both lines: alone, in streams, and cut anywhere.

use bytes::{Bytes, BytesMut};

use super::{
    golden::{Golden, LINES},
    *,
};
use crate::fuzz::{Fuzz, Shape, bounded, cuts};

/// Messages, why there are no more, and what is left of the stream.
type Decoded = (Vec<Message>, Option<FrameFault>, usize);

fn shape(line: Line) -> Shape {
    match line {
        Line::V06 => Shape::Cbor,
        Line::V07 => Shape::Framed,
    }
}

fn decoded(line: Line, limits: Limits, pieces: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::new(line, limits);
    let mut found = Vec::new();
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(fault) => return (found, Some(fault), 0),
            }
        }
    }
    (found, None, decoder.held())
}

/// What is too long is noticed earlier or later, depending on how it comes.
fn kind(fault: FrameFault) -> FrameFault {
    match fault.fault {
        WireFault::TooLarge { limit, .. } => WireFault::TooLarge { claimed: 0, limit }.of(NAMELESS),
        _ => fault,
    }
}

fn assert_is_named(fault: FrameFault) {
    let text = fault.to_string();
    let (frame, rule) = text.split_once(": ").expect("a frame and a rule");
    assert_eq!(frame, fault.frame);
    assert!(rule.contains(' '), "{text}");
    let names = [
        "Have",
        "PreSync",
        "Operation",
        "Done",
        "Live",
        "Close",
        NAMELESS,
    ];
    assert!(names.contains(&frame), "{text}");
}

fn check(line: Line, limits: Limits, bytes: &[u8]) {
    let (messages, fault, left) = bounded(bytes, || decoded(line, limits, &[bytes]));
    if let Some(fault) = fault {
        assert_is_named(fault);
    }
    for pieces in cuts(bytes) {
        let (again, late, rest) = decoded(line, limits, &pieces);
        assert_eq!(again, messages, "cut in {} pieces", pieces.len());
        assert_eq!(late.map(kind), fault.map(kind));
        assert_eq!(rest, left);
    }
    let mut encoded = BytesMut::new();
    for message in &messages {
        encode(line, message, &mut encoded).expect("it was no longer when it came");
    }
    let (again, fault_again, _) = decoded(line, limits, &[&encoded[..]]);
    assert_eq!((again, fault_again), (messages.clone(), None));
    // The authors of a Have may come in any order.
    match messages.iter().any(|it| matches!(it, Message::Have(_))) {
        true if fault.is_none() => assert_eq!(encoded.len() + left, bytes.len()),
        true => assert!(encoded.len() <= bytes.len()),
        false => assert!(bytes.starts_with(&encoded), "{messages:?}"),
    }
}

fn corpus(line: Line) -> Vec<Vec<u8>> {
    let golden = Golden::of(line);
    let names = ["sync.", "live", "close"];
    let mut corpus: Vec<Vec<u8>> = golden.all(&names).map(<[u8]>::to_vec).collect();
    corpus.push(corpus.concat());
    // A log of all numbers of authors that a small Have has.
    let heights = (0..9).map(|it| {
        let logs = (0..it).map(|log| (LogId::from_bytes([log; 32]), u32::MAX - u32::from(log)));
        (Author::from_bytes([it; 32]), logs.collect())
    });
    let mut have = BytesMut::new();
    encode(line, &Message::Have(heights.collect()), &mut have).expect("it is short");
    corpus.push(have.to_vec());
    corpus
}

#[test]
fn fuzzed_messages_of_line_0_6() {
    let limits = Limits::of(Line::V06);
    let fuzz = Fuzz::new("messages of 0.6", shape(Line::V06), corpus(Line::V06));
    fuzz.run(|bytes| check(Line::V06, limits, bytes));
}

#[test]
fn fuzzed_messages_of_line_0_7() {
    let limits = Limits::of(Line::V07);
    let fuzz = Fuzz::new("messages of 0.7", shape(Line::V07), corpus(Line::V07));
    fuzz.run(|bytes| check(Line::V07, limits, bytes));
}

#[test]
fn fuzzed_messages_at_the_limits() {
    for line in LINES {
        let limits = Limits {
            frame: 300,
            authors: 2,
            logs: 3,
        };
        let fuzz = Fuzz::new("messages at the limits", shape(line), corpus(line));
        fuzz.inputs(2_000).run(|bytes| {
            let (messages, fault, _) = decoded(line, limits, &[bytes]);
            for pieces in cuts(bytes) {
                let (again, late, _) = decoded(line, limits, &pieces);
                assert_eq!(again, messages);
                // Too long as well as malformed is noticed as the one or the other.
                assert_eq!(late.is_some(), fault.is_some());
            }
            for message in messages {
                let Message::Have(heights) = message else {
                    continue;
                };
                assert!(heights.len() <= 2);
                assert!(heights.values().map(BTreeMap::len).sum::<usize>() <= 3);
            }
        });
    }
}

#[test]
fn fuzzed_messages_of_the_topic_handshake() {
    for line in LINES {
        let golden = Golden::of(line);
        let corpus = golden.all(&["handshake."]).map(<[u8]>::to_vec);
        let fuzz = Fuzz::new("topic handshake", shape(line), corpus);
        fuzz.run(|bytes| {
            let mut frames = Frames::new(line, HANDSHAKE_FRAME_MAX);
            frames.push(Bytes::copy_from_slice(bytes));
            let mut encoded = BytesMut::new();
            let messages = bounded(bytes, || {
                let mut found = Vec::new();
                while let Ok(Some(frame)) = frames.next() {
                    match decode_handshake(line, &frame) {
                        Ok(message) => found.push(message),
                        Err(fault) => {
                            assert!(fault.to_string().starts_with("topic handshake: "));
                            break;
                        }
                    }
                }
                found
            });
            for message in messages {
                encode_handshake(line, &message, &mut encoded);
            }
            assert!(bytes.starts_with(&encoded));
        });
    }
}
