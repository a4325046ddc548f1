//! Damaged messages of discovery, infos, adverts and messages that are not kept.

use bytes::{Bytes, BytesMut};

use super::{message::DiscoveryMessage, *};
use crate::{
    fuzz::{Fuzz, Shape, bounded, cuts},
    sync::codec::golden::{Golden, LINES},
};

const SECRET: [u8; 32] = [1; 32];

fn shape(line: Line) -> Shape {
    match line {
        Line::V06 => Shape::Cbor,
        Line::V07 => Shape::Framed,
    }
}

fn decoded(line: Line, pieces: &[&[u8]]) -> (Vec<DiscoveryMessage>, Option<FrameFault>) {
    let mut frames = Frames::new(line, FRAME_MAX);
    let mut found = Vec::new();
    for piece in pieces {
        frames.push(Bytes::copy_from_slice(piece));
        loop {
            let next = frames.next().map_err(FrameFault::from);
            let message = match next {
                Ok(Some(frame)) => DiscoveryMessage::decode(line, &frame),
                Ok(None) => break,
                Err(fault) => Err(fault),
            };
            match message {
                Ok(message) => found.push(message),
                Err(fault) => return (found, Some(fault)),
            }
        }
    }
    (found, None)
}

fn check_messages(line: Line, bytes: &[u8]) {
    let (messages, fault) = bounded(bytes, || decoded(line, &[bytes]));
    for pieces in cuts(bytes) {
        assert_eq!(decoded(line, &pieces).0, messages);
    }
    if let Some(fault) = fault {
        let text = fault.to_string();
        assert!(
            text.starts_with(fault.frame) && text.contains(": "),
            "{text}"
        );
    }
    let mut encoded = BytesMut::new();
    for message in &messages {
        message.encode(line, &mut encoded);
    }
    let (mut again, fault) = decoded(line, &[&encoded]);
    assert_eq!(fault, None);
    // What was left out cannot be said again.
    for (again, message) in again.iter_mut().zip(&messages) {
        if let (DiscoveryMessage::Nodes(again), DiscoveryMessage::Nodes(nodes)) = (again, message) {
            again.unread = nodes.unread;
        }
    }
    assert_eq!(again, messages);
    assert!(encoded.len() <= bytes.len());
    let peer = PeerId::from_bytes(signing::public(&SECRET));
    for message in messages {
        let DiscoveryMessage::Nodes(nodes) = message else {
            continue;
        };
        for (of, info) in nodes.infos {
            let _ = (
                info.verify(line, &of),
                info.verify(line, &peer),
                info.user_data(),
            );
        }
    }
}

#[test]
fn fuzzed_messages_of_discovery() {
    for line in LINES {
        let golden = Golden::of(line);
        let corpus = golden.all(&["discovery."]).map(<[u8]>::to_vec);
        let fuzz = Fuzz::new("discovery", shape(line), corpus);
        fuzz.inputs(3_000).run(|bytes| check_messages(line, bytes));
    }
}

#[test]
fn fuzzed_sessions_of_discovery() {
    for line in LINES {
        let golden = Golden::of(line);
        let messages: Vec<_> = golden.all(&["discovery."]).map(<[u8]>::to_vec).collect();
        // As Alice says it, and as Bob does, with whatever nodes.
        let of = |name: &str| golden.bytes(&format!("discovery.{name}")).to_vec();
        let nodes = of("nodes.two");
        let alice = [
            of("alice_salt_half"),
            of("alice_hashed_data.two_topics"),
            nodes.clone(),
        ];
        let bob = [of("bob_salt_half_and_hashed_data.two_topics"), nodes];
        let corpus = messages.into_iter().chain([alice.concat(), bob.concat()]);
        let local = || Local {
            salt: [0x22; 32],
            topics: [Topic::from_bytes(golden.array("topic"))].into(),
            infos: BTreeMap::new(),
        };
        let run = |is_alice: bool, pieces: &[&[u8]]| {
            let mut side = match is_alice {
                true => Discovery::alice(line, local()),
                false => Discovery::bob(line, local()),
            };
            let mut said = Vec::new();
            let mut ended = Ok(());
            for piece in pieces {
                ended = side.received(Bytes::copy_from_slice(piece));
                while let Some(bytes) = side.poll_transmit() {
                    said.extend_from_slice(&bytes);
                }
                if ended.is_err() {
                    break;
                }
            }
            let failed = ended.is_err() || side.received_end().is_err();
            (said, failed, side.is_done(), side.found().clone())
        };
        let fuzz = Fuzz::new("sessions of discovery", shape(line), corpus);
        fuzz.inputs(1_500).run(|bytes| {
            for is_alice in [false, true] {
                let whole = bounded(bytes, || run(is_alice, &[bytes]));
                for pieces in cuts(bytes) {
                    let cut = run(is_alice, &pieces);
                    assert_eq!(cut.1, whole.1, "{is_alice}");
                    if !whole.1 {
                        assert_eq!(cut, whole);
                    }
                }
            }
        });
    }
}

#[test]
fn fuzzed_infos() {
    for line in LINES {
        let info = |addresses: Vec<Address>| {
            let stamp = Stamp {
                micros: 1_700_000_000_000_000,
                lamport: 3,
            };
            TransportInfo::sign(line, stamp, addresses, &SECRET).to_bytes(line)
        };
        let ip = |text: &str| Address::Ip(text.parse().expect("an address"));
        let relay = Address::Relay("https://relay.example.org/".to_owned());
        let corpus = [
            info(vec![]),
            info(vec![ip("127.0.0.1:4242")]),
            info(vec![ip("[fd00::1]:1"), ip("10.1.2.3:65535"), relay]),
        ];
        let shape = match line {
            Line::V06 => Shape::Cbor,
            Line::V07 => Shape::Postcard,
        };
        Fuzz::new("infos", shape, corpus).run(|bytes| {
            let Some(info) = bounded(bytes, || TransportInfo::from_bytes(line, bytes)) else {
                return;
            };
            let again = info.to_bytes(line);
            assert_eq!(again.len(), bytes.len());
            assert_eq!(TransportInfo::from_bytes(line, &again), Some(info));
        });
    }
}

#[test]
fn fuzzed_adverts() {
    let golden = LINES.map(Golden::of);
    let names: Vec<&[u8]> = golden
        .iter()
        .flat_map(|it| it.all(&["transport."]))
        .collect();
    let corpus = names.into_iter().filter(|it| it.contains(&b'|'));
    let peer = PeerId::from_bytes(signing::public(&SECRET));
    Fuzz::new("adverts", Shape::Text, corpus).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let read = || TransportInfo::from_user_data(&text, peer, []);
        let Ok(info) = bounded(bytes, read) else {
            return;
        };
        for line in LINES {
            let _ = info.verify(line, &peer);
        }
        if let Some(data) = info.user_data() {
            let again = TransportInfo::from_user_data(&data, peer, []);
            assert_eq!(again, Ok(info));
        }
    });
}

#[test]
fn fuzzed_ephemeral_messages() {
    let golden = LINES.map(Golden::of);
    let corpus: Vec<&[u8]> = golden
        .iter()
        .flat_map(|it| it.all(&["ephemeral."]))
        .collect();
    Fuzz::new("ephemeral messages", Shape::Cbor, corpus).run(|bytes| {
        let message = Bytes::copy_from_slice(bytes);
        match bounded(bytes, || Ephemeral::open(&message)) {
            Ok(opened) => assert!(message.ends_with(&opened.body)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        // With a signature that is good, everything else as it comes.
        let stamp = Stamp {
            micros: u64::MAX,
            lamport: 0,
        };
        if let Ok(signed) = Ephemeral::sign(bytes, stamp, &SECRET) {
            let opened = Ephemeral::open(&signed).expect("it was signed");
            assert_eq!((&opened.body[..], opened.stamp), (bytes, stamp));
        }
    });
}
