//! Bytes changed on the way, frames of other lengths, garbage: refused at every entry.

use HandshakeError::{Malformed, Oversized, Refused, WrongProof};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{super::frame::HELLO_BYTES, *};

#[test]
fn versions_cannot_be_talked_down_in_both_roles() {
    let (i, a) = (initiator(), acceptor());
    let speak = |party: &Party| Hello::new(1..=3, &party.channel, &party.credentials, party.nonce);
    let (of_i, of_a) = (
        speak(&i).encode(KIND_INITIATOR_HELLO),
        speak(&a).encode(KIND_ACCEPTOR_HELLO),
    );
    let down = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[3..5].copy_from_slice(&1u16.to_be_bytes());
        frame
    };
    let start = || Initiator::speaking(1..=3, &i.channel, &i.credentials, i.nonce).0;
    let answer = |hello: &[u8]| {
        let find = |_: &[u8; 16]| Some(a.credentials.clone());
        Acceptor::speaking(1..=3, &a.channel, find, hello, a.nonce).map(|(state, ..)| state)
    };

    // The initiator's hello is changed: the acceptor proves what it saw, the initiator what it
    // said; each refuses the other.
    let proof = a.proof(Role::Acceptor, &down(&of_i), &of_a);
    assert_eq!(start().finish(&of_a, &proof).err(), Some(WrongProof));
    let proof = i.proof(Role::Initiator, &of_i, &of_a);
    let waiting = answer(&down(&of_i)).expect("the change does not show yet");
    assert_eq!(waiting.version, 1, "talked down, if it were believed");
    assert_eq!(waiting.finish(&proof), Err(WrongProof));

    // The acceptor's hello is changed.
    let proof = a.proof(Role::Acceptor, &of_i, &of_a);
    assert_eq!(start().finish(&down(&of_a), &proof).err(), Some(WrongProof));
    let proof = i.proof(Role::Initiator, &of_i, &down(&of_a));
    assert_eq!(
        answer(&of_i).expect("untouched").finish(&proof),
        Err(WrongProof)
    );
}

#[test]
fn other_versions_are_refused_in_both_roles() {
    for (min, max) in [(2u16, 2u16), (2, u16::MAX), (0, 0), (u16::MAX, u16::MAX)] {
        let change = |frame: Vec<u8>| {
            let mut frame = frame;
            frame[1..3].copy_from_slice(&min.to_be_bytes());
            frame[3..5].copy_from_slice(&max.to_be_bytes());
            frame
        };
        let refused = HandshakeError::NoCommonVersion {
            ours: (1, 1),
            theirs: (min, max),
        };
        let frames = honest();
        let hello = change(frames.acceptor_hello);
        assert_eq!(
            initiator().initiate(&hello, &frames.acceptor_proof),
            Err(refused)
        );
        let hello = change(frames.initiator_hello);
        assert_eq!(
            acceptor().accept(&hello, &frames.initiator_proof),
            Err(refused)
        );
    }
    // Versions in no order.
    let mut frames = honest();
    frames.acceptor_hello[1] = 9;
    frames.initiator_hello[1] = 9;
    let refused = initiator().initiate(&frames.acceptor_hello, &frames.acceptor_proof);
    assert_eq!(refused, Err(Malformed));
    let refused = acceptor().accept(&frames.initiator_hello, &frames.initiator_proof);
    assert_eq!(refused, Err(Malformed));
}

#[test]
fn every_single_flipped_bit_is_refused_in_both_roles() {
    let frames = honest();
    let (i, a) = (initiator(), acceptor());
    let flips = |frame: &[u8]| {
        let frame = frame.to_vec();
        (0..frame.len() * 8).map(move |bit| {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        })
    };
    let mut refused = 0;
    for hello in flips(&frames.initiator_hello) {
        assert!(a.accept(&hello, &frames.initiator_proof).is_err());
        // Nor does the honest initiator believe an acceptor that saw the changed frame.
        if let Ok(hello) = Hello::decode(KIND_INITIATOR_HELLO, &hello) {
            let hello = hello.encode(KIND_INITIATOR_HELLO);
            let proof = a.proof(Role::Acceptor, &hello, &frames.acceptor_hello);
            assert!(i.initiate(&frames.acceptor_hello, &proof).is_err());
        }
        refused += 1;
    }
    for hello in flips(&frames.acceptor_hello) {
        assert!(i.initiate(&hello, &frames.acceptor_proof).is_err());
        if Hello::decode(KIND_ACCEPTOR_HELLO, &hello).is_ok() {
            let proof = i.proof(Role::Initiator, &frames.initiator_hello, &hello);
            assert!(a.accept(&frames.initiator_hello, &proof).is_err());
        }
        refused += 1;
    }
    for proof in flips(&frames.acceptor_proof) {
        assert!(i.initiate(&frames.acceptor_hello, &proof).is_err());
        refused += 1;
    }
    for proof in flips(&frames.initiator_proof) {
        assert!(a.accept(&frames.initiator_hello, &proof).is_err());
        refused += 1;
    }
    assert_eq!(refused, 8 * 2 * (HELLO_BYTES + PROOF_BYTES));
}

#[test]
fn frames_of_another_length_are_refused_in_both_roles() {
    let frames = honest();
    let (i, a) = (initiator(), acceptor());
    let lengths = |frame: &[u8]| {
        let mut all: Vec<(Vec<u8>, HandshakeError)> = (0..frame.len())
            .map(|length| (frame[..length].to_vec(), Malformed))
            .collect();
        let long = |length: usize| [frame, &vec![0; length - frame.len()]].concat();
        all.extend([frame.len() + 1, 256, FRAME_MAX].map(|length| (long(length), Malformed)));
        all.extend([FRAME_MAX + 1, 1 << 20].map(|length| (long(length), Oversized)));
        all
    };
    for (hello, error) in lengths(&frames.initiator_hello) {
        assert_eq!(a.accept(&hello, &frames.initiator_proof), Err(error));
    }
    for (hello, error) in lengths(&frames.acceptor_hello) {
        assert_eq!(i.initiate(&hello, &frames.acceptor_proof), Err(error));
    }
    for (proof, error) in lengths(&frames.acceptor_proof) {
        assert_eq!(i.initiate(&frames.acceptor_hello, &proof), Err(error));
    }
    for (proof, error) in lengths(&frames.initiator_proof) {
        assert_eq!(a.accept(&frames.initiator_hello, &proof), Err(error));
    }
}

#[test]
fn a_refusal_is_understood_at_every_step() {
    let (frames, i, a) = (honest(), initiator(), acceptor());
    assert_eq!(a.accept(REFUSAL, &frames.initiator_proof), Err(Refused));
    assert_eq!(a.accept(&frames.initiator_hello, REFUSAL), Err(Refused));
    assert_eq!(i.initiate(REFUSAL, &frames.acceptor_proof), Err(Refused));
    assert_eq!(i.initiate(&frames.acceptor_hello, REFUSAL), Err(Refused));
}

// ---- Garbage ----

const ROUNDS: usize = 10_000;

/// Feeds `frame` to every entry point; the other frames are the honest ones.
fn nobody_believes(frames: &Frames, parties: &(Party, Party), frame: &[u8]) {
    let (i, a) = parties;
    assert!(
        a.accept(frame, &frames.initiator_proof).is_err(),
        "{frame:?}"
    );
    assert!(
        a.accept(&frames.initiator_hello, frame).is_err(),
        "{frame:?}"
    );
    assert!(
        i.initiate(frame, &frames.acceptor_proof).is_err(),
        "{frame:?}"
    );
    assert!(
        i.initiate(&frames.acceptor_hello, frame).is_err(),
        "{frame:?}"
    );
}

#[test]
fn ten_thousand_random_byte_strings_are_refused_at_every_entry() {
    let (frames, parties) = (honest(), (initiator(), acceptor()));
    let mut random = StdRng::seed_from_u64(2);
    for round in 0..ROUNDS {
        let length = match round % 4 {
            0 => random.random_range(0..FRAME_MAX + 16),
            1 => HELLO_BYTES,
            2 => PROOF_BYTES,
            _ => random.random_range(0..64),
        };
        let mut frame = vec![0; length];
        random.fill(&mut frame[..]);
        // Half of them get past the first byte.
        if let (Some(kind), 0..2) = (frame.first_mut(), round % 8 / 2) {
            *kind = random.random_range(0..5);
        }
        nobody_believes(&frames, &parties, &frame);
    }
}

#[test]
fn ten_thousand_random_mutations_are_refused_at_every_entry() {
    let (frames, parties) = (honest(), (initiator(), acceptor()));
    let all = [
        &frames.initiator_hello,
        &frames.acceptor_hello,
        &frames.acceptor_proof,
        &frames.initiator_proof,
    ];
    let mut random = StdRng::seed_from_u64(3);
    for round in 0..ROUNDS {
        let original = all[round % 4];
        let mut frame = original.clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=frame.len());
            match random.random_range(0..5) {
                0 if at < frame.len() => frame[at] ^= 1 << random.random_range(0..8),
                1 if at < frame.len() => frame[at] = random.random(),
                2 => frame.insert(at, random.random()),
                3 => frame.truncate(at),
                _ => frame[..at].reverse(),
            }
        }
        // A mutation that undid itself, or became another honest frame, is no attack.
        if all.iter().all(|honest| frame != **honest) {
            nobody_believes(&frames, &parties, &frame);
        }
    }
}
