//! Discovery, infos and ephemeral messages against the bytes of unmodified nodes, and against
//! strangers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    message::{DiscoveryMessage, FRAME_MAX, Nodes},
    *,
};
use crate::sync::{
    Fault,
    codec::{
        WireFault,
        golden::{Golden, LINES},
    },
};

const MICROS: u64 = 1_700_000_000_000_000;
const SECRET: [u8; 32] = [1; 32];
const OTHER_SECRET: [u8; 32] = [2; 32];

fn stamp(lamport: u64) -> Stamp {
    Stamp {
        micros: MICROS,
        lamport,
    }
}

fn ip(address: &str) -> Address {
    Address::Ip(address.parse().unwrap())
}

fn info(line: Line, secret: &[u8; 32]) -> (PeerId, TransportInfo) {
    let peer = PeerId::from_bytes(signing::public(secret));
    let info = TransportInfo::sign(line, stamp(0), [ip("127.0.0.1:4242")], secret);
    (peer, info)
}

fn encoded(line: Line, message: &DiscoveryMessage) -> Bytes {
    let mut bytes = BytesMut::new();
    message.encode(line, &mut bytes);
    bytes.freeze()
}

fn decoded(line: Line, bytes: &[u8]) -> Result<Vec<DiscoveryMessage>, WireFault> {
    let mut frames = Frames::new(line, FRAME_MAX);
    frames.push(Bytes::copy_from_slice(bytes));
    let mut found = Vec::new();
    while let Some(frame) = frames.next()? {
        found.push(DiscoveryMessage::decode(line, &frame).map_err(|it| it.fault)?);
    }
    Ok(found)
}

#[test]
fn discovery_messages_are_those_of_stock_both_ways() {
    for line in LINES {
        let golden = Golden::of(line);
        let hashes = |who: &str, count| -> BTreeSet<[u8; 32]> {
            let names = ["gossip_topic", "other_gossip_topic"].into_iter();
            names
                .take(count)
                .map(|name| golden.array(&format!("psi.{who}.{name}")))
                .collect()
        };
        let mut cases = vec![(
            "discovery.alice_salt_half".to_owned(),
            DiscoveryMessage::AliceSalt([0x11; 32]),
        )];
        for (count, name) in ["no_topic", "one_topic", "two_topics"].iter().enumerate() {
            cases.push((
                format!("discovery.bob_salt_half_and_hashed_data.{name}"),
                DiscoveryMessage::BobSaltAndHashes([0x22; 32], hashes("bob", count)),
            ));
            cases.push((
                format!("discovery.alice_hashed_data.{name}"),
                DiscoveryMessage::AliceHashes(hashes("alice", count)),
            ));
        }
        let infos = [info(line, &SECRET), info(line, &OTHER_SECRET)];
        for (count, name) in ["empty", "one", "two"].iter().enumerate() {
            let infos = infos.iter().take(count).cloned().collect();
            cases.push((
                format!("discovery.nodes.{name}"),
                DiscoveryMessage::Nodes(Nodes { infos, unread: 0 }),
            ));
        }
        for (name, message) in cases {
            let bytes = golden.bytes(&name);
            assert_eq!(&encoded(line, &message)[..], bytes, "{line:?} {name}");
            assert_eq!(decoded(line, bytes), Ok(vec![message]), "{line:?} {name}");
        }
    }
}

#[test]
fn infos_are_signed_as_stock_signs_them() {
    let (v4, relay) = (
        "127.0.0.1:4242",
        Address::Relay("https://relay.example.org/".into()),
    );
    for line in LINES {
        let golden = Golden::of(line);
        let peer = PeerId::from_bytes(golden.array("author"));
        let other = PeerId::from_bytes(golden.array("other_author"));
        for (name, lamport, addresses) in [
            ("ipv4", 0, vec![ip(v4)]),
            ("lamport", 3, vec![ip(v4)]),
            ("two", 0, vec![ip(v4), ip("10.1.2.3:4243")]),
            ("ipv6", 0, vec![ip("[::1]:4242")]),
            ("ipv4_ipv6", 0, vec![ip("[fd00::1]:4242"), ip(v4)]),
            ("relay", 0, vec![relay.clone()]),
            ("ipv4_relay", 0, vec![ip(v4), relay.clone()]),
            ("no_addresses", 0, vec![]),
        ] {
            let info = TransportInfo::sign(line, stamp(lamport), addresses.clone(), &SECRET);
            let name = |part: &str| format!("transport.{name}.{part}");
            assert_eq!(info.signature(), &golden.array(&name("signature")));
            assert_eq!(info.verify(line, &peer), Ok(()));
            assert_eq!(info.verify(line, &other), Err(InvalidInfo::OtherPeer));
            let foreign = LINES[usize::from(line == Line::V06)];
            assert_eq!(info.verify(foreign, &peer), Err(InvalidInfo::Signature));
            let data = info.user_data().unwrap();
            assert_eq!(data.as_bytes(), golden.bytes(&name("user_data")));
            let ips = addresses.iter().filter_map(|it| match it {
                Address::Ip(ip) => Some(*ip),
                Address::Relay(_) => None,
            });
            assert_eq!(
                TransportInfo::from_user_data(&data, peer, ips),
                Ok(info.clone())
            );
            if line == Line::V06 {
                let mut bytes = BytesMut::new();
                info.write_cbor(&mut bytes);
                assert_eq!(&bytes[..], golden.bytes(&name("info")));
            }
        }
    }
}

#[test]
fn an_info_that_was_changed_is_not_believed() {
    let (peer, info) = info(Line::V07, &SECRET);
    let data = info.user_data().unwrap();
    let ips = ["127.0.0.1:4243".parse().unwrap()];
    let moved = TransportInfo::from_user_data(&data, peer, ips).unwrap();
    assert_eq!(moved.verify(Line::V07, &peer), Err(InvalidInfo::Signature));
    let nobody = PeerId::from_bytes([2; 32]);
    assert!(
        TransportInfo::from_user_data(&data, nobody, [])
            .unwrap()
            .verify(Line::V07, &nobody)
            .is_err()
    );
    for data in [
        "",
        "|",
        "00|1/2",
        "zz|1/2",
        &data[1..],
        &format!("{data}|a|b"),
        &data[..129],
    ] {
        let found = TransportInfo::from_user_data(data, peer, []);
        assert_eq!(found, Err(InvalidInfo::UserData), "{data}");
    }
}

#[test]
fn user_data_too_long_for_a_record_is_not_given() {
    let relay = Address::Relay(format!("https://{}.example.org/", "x".repeat(100)));
    let info = TransportInfo::sign(Line::V07, stamp(0), [relay], &SECRET);
    assert_eq!(info.user_data(), None);
}

#[test]
fn the_newer_info_wins_and_stamps_only_grow() {
    let sign = |lamport| TransportInfo::sign(Line::V07, stamp(lamport), [], &SECRET);
    let mut known = None;
    assert!(TransportInfo::merge(&mut known, sign(1)));
    assert!(!TransportInfo::merge(&mut known, sign(1)));
    assert!(!TransportInfo::merge(&mut known, sign(0)));
    assert!(TransportInfo::merge(&mut known, sign(2)));
    assert_eq!(known.unwrap().stamp(), stamp(2));
    assert_eq!(Stamp::after(None, MICROS), stamp(0));
    assert_eq!(Stamp::after(Some(stamp(4)), MICROS), stamp(5));
    assert_eq!(
        Stamp::after(Some(stamp(4)), MICROS - 9),
        stamp(5),
        "the clock was set back"
    );
    assert!(Stamp::after(Some(stamp(4)), MICROS + 1) > stamp(9));
}

#[test]
fn an_info_of_another_kind_is_left_out_and_the_others_stay() {
    for line in LINES {
        let (peer, info) = info(line, &SECRET);
        let nodes = Nodes {
            infos: [(peer, info.clone())].into(),
            unread: 0,
        };
        let mut bytes = encoded(line, &DiscoveryMessage::Nodes(nodes.clone())).to_vec();
        // Another node in front, whose one address is of the custom kind.
        let (count, other): (usize, Vec<u8>) = match line {
            Line::V06 => {
                let at = bytes.windows(2).position(|it| it == [0xa1, 0x58]).unwrap();
                let mut other = vec![0x58, 32];
                other.extend([7; 32]);
                other.extend(b"\xa3itimestamp\x82\x01\x02isignature\x58\x40");
                other.extend([9; 64]);
                other.extend(b"iaddresses\x81\xa1dIroh\xa2bid\x98\x20");
                other.extend([1; 32]);
                other.extend(
                    b"eaddrs\x81\xa1fCustom\xa2bid\x01ddata\xa1fInline\x82\x01\x82\x01\x02",
                );
                (at, other)
            }
            Line::V07 => {
                let mut other = vec![32];
                other.extend([7; 32]);
                other.extend([1, 2, 64]);
                other.extend([9; 64]);
                other.extend([1, 0]);
                other.extend([1; 32]);
                other.extend([1, 2, 1, 3, 5, 5, 5]);
                (5, other)
            }
        };
        bytes[count] += 1;
        bytes.splice(count + 1..count + 1, other);
        if line == Line::V07 {
            let length = bytes.len() as u32 - 4;
            bytes[..4].copy_from_slice(&length.to_be_bytes());
        }
        let nodes = Nodes { unread: 1, ..nodes };
        assert_eq!(
            decoded(line, &bytes),
            Ok(vec![DiscoveryMessage::Nodes(nodes)])
        );
    }
}

#[test]
fn ephemeral_messages_are_those_of_stock_both_ways() {
    for line in LINES {
        let golden = Golden::of(line);
        for (name, lamport, body) in [
            ("hello", 0, &b"\x65hello"[..]),
            ("lamport", 3, b"\x65hello"),
            ("empty", 0, b"\x60"),
            ("later", 300, b"\x61x"),
        ] {
            let bytes = Ephemeral::sign(body, stamp(lamport), &SECRET).unwrap();
            assert_eq!(&bytes[..], golden.bytes(&format!("ephemeral.{name}")));
            let found = Ephemeral::open(&bytes).unwrap();
            assert_eq!(found.author.as_bytes(), golden.bytes("author"));
            assert_eq!((found.stamp, &found.body[..]), (stamp(lamport), body));
        }
    }
}

#[test]
fn ephemeral_messages_that_were_changed_are_not_believed() {
    let bytes = Ephemeral::sign(b"\x65hello", stamp(0), &SECRET).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1 << bit;
            assert!(
                Ephemeral::open(&changed.into()).is_err(),
                "bit {bit} of byte {at}"
            );
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(Ephemeral::open(&longer.into()).is_err());
    for body in [&b""[..], b"\x01\x02", b"\x62x", b"\x9f\xff"] {
        assert!(
            Ephemeral::sign(body, stamp(0), &SECRET).is_err(),
            "{body:02x?}"
        );
    }
    let mut body = vec![0x59, 0x0f, 0xff];
    body.resize(3 + 0x0fff, 0);
    let found = Ephemeral::sign(&body, stamp(0), &SECRET);
    assert!(matches!(found, Err(EphemeralError::TooLong(_))));
    body.truncate(3 + 3_900);
    body[1..3].copy_from_slice(&3_900_u16.to_be_bytes());
    let found = Ephemeral::sign(&body, stamp(0), &SECRET).unwrap();
    assert!(found.len() <= EPHEMERAL_BYTES_MAX);
}

fn local(line: Line, salt: u8, topics: &BTreeSet<u8>) -> Local {
    let secret = [salt; 32];
    Local {
        salt: [salt; 32],
        topics: topics
            .iter()
            .map(|it| Topic::from_bytes([*it; 32]))
            .collect(),
        infos: [info(line, &secret)].into(),
    }
}

/// Runs a session; gives both sides and everything that went over the wire.
fn run(line: Line, alice: Local, bob: Local, step: usize) -> ([Discovery; 2], Vec<u8>) {
    let mut sides = [Discovery::alice(line, alice), Discovery::bob(line, bob)];
    let mut wire = Vec::new();
    while !(sides[0].is_done() && sides[1].is_done()) {
        let before = wire.len();
        for at in 0..2 {
            while let Some(bytes) = sides[at].poll_transmit() {
                wire.extend_from_slice(&bytes);
                for piece in bytes.chunks(step) {
                    sides[1 - at]
                        .received(Bytes::copy_from_slice(piece))
                        .unwrap();
                }
            }
        }
        assert!(wire.len() > before, "both wait");
    }
    (sides, wire)
}

#[test]
fn a_session_sends_what_stock_would_with_these_salts() {
    for line in LINES {
        let golden = Golden::of(line);
        let topics = |names: &[&str]| -> BTreeSet<Topic> {
            let names = names.iter();
            names
                .map(|it| Topic::from_bytes(golden.array(it)))
                .collect()
        };
        let with = |salt, names: &[&str], secret: &[u8; 32]| Local {
            salt: [salt; 32],
            topics: topics(names),
            infos: [info(line, secret)].into(),
        };
        let both = ["gossip_topic", "other_gossip_topic"];
        let alice = with(0x11, &both[..1], &SECRET);
        let bob = with(0x22, &both, &OTHER_SECRET);
        let mut alice = Discovery::alice(line, alice);
        let mut bob = Discovery::bob(line, bob);
        let first = alice.poll_transmit().unwrap();
        assert_eq!(&first[..], golden.bytes("discovery.alice_salt_half"));
        bob.received(first).unwrap();
        let second = bob.poll_transmit().unwrap();
        let name = "discovery.bob_salt_half_and_hashed_data.two_topics";
        assert_eq!(&second[..], golden.bytes(name));
        alice.received(second).unwrap();
        let third = alice.poll_transmit().unwrap();
        let name = "discovery.alice_hashed_data.one_topic";
        assert_eq!(&third[..], golden.bytes(name));
        bob.received(third).unwrap();
        alice.received(bob.poll_transmit().unwrap()).unwrap();
        let last = alice.poll_transmit().unwrap();
        assert_eq!(&last[..], golden.bytes("discovery.nodes.one"));
        bob.received(last).unwrap();
        assert!(alice.is_done() && bob.is_done());
        assert_eq!(alice.found().topics, topics(&both[..1]));
        assert_eq!(bob.found().topics, topics(&both[..1]));
    }
}

#[test]
fn a_stranger_learns_no_topic() {
    for line in LINES {
        let ours = BTreeSet::from([1, 2, 3]);
        let (sides, wire) = run(line, local(line, 8, &ours), local(line, 9, &[7].into()), 64);
        for side in &sides {
            assert!(side.found().topics.is_empty());
        }
        for topic in ours {
            let raw = [topic; 32];
            let hashed = blake3::hash(&raw);
            for secret in [&raw[..], hashed.as_bytes()] {
                assert!(!wire.windows(32).any(|it| it == secret), "{line:?}");
            }
        }
    }
}

#[test]
fn hashes_sent_back_are_no_topics_in_common() {
    for line in LINES {
        let mut alice = Discovery::alice(line, local(line, 8, &[1, 2].into()));
        alice.poll_transmit().unwrap();
        let salt = [9; 32];
        // Bob knows what Alice will hash, were she to hash as she does for herself.
        let alices = Discovery::bob(line, local(line, 9, &[1, 2].into()));
        let hashes = alices.hashes(&[8; 32], &salt, ALICE);
        let answer = DiscoveryMessage::BobSaltAndHashes(salt, hashes);
        alice.received(encoded(line, &answer)).unwrap();
        assert!(alice.found().topics.is_empty());
    }
}

#[test]
fn messages_out_of_order_end_the_session() {
    let messages = || {
        [
            DiscoveryMessage::AliceSalt([1; 32]),
            DiscoveryMessage::BobSaltAndHashes([2; 32], BTreeSet::new()),
            DiscoveryMessage::AliceHashes(BTreeSet::new()),
            DiscoveryMessage::Nodes(Nodes::default()),
        ]
    };
    for line in LINES {
        let none = BTreeSet::new();
        // What each side waits for, one after the other, by place in the list above.
        for (alice, turns) in [(true, &[1, 3][..]), (false, &[0, 2, 3][..])] {
            for turn in 0..=turns.len() {
                for (place, wrong) in messages().into_iter().enumerate() {
                    if turns.get(turn) == Some(&place) {
                        continue;
                    }
                    let mut side = if alice {
                        Discovery::alice(line, local(line, 8, &none))
                    } else {
                        Discovery::bob(line, local(line, 8, &none))
                    };
                    for place in &turns[..turn] {
                        side.received(encoded(line, &messages()[*place])).unwrap();
                    }
                    assert_eq!(side.is_done(), turn == turns.len());
                    assert_eq!(side.received_end().is_ok(), side.is_done());
                    let name = wrong.name();
                    let found = side.received(encoded(line, &wrong));
                    let error = DiscoveryError::OutOfOrder { got: name };
                    assert_eq!(error.fault(), Fault::Remote);
                    assert_eq!(found, Err(error));
                }
            }
        }
    }
}

#[test]
fn sets_without_end_are_refused() {
    let mut bytes = BytesMut::from(&b"\xa1oAliceHashedData\xa1ntopics_for_bob\x9a"[..]);
    bytes.extend_from_slice(&70_000_u32.to_be_bytes());
    bytes.extend_from_slice(&[0; 70_000]);
    assert!(matches!(
        decoded(Line::V06, &bytes),
        Err(WireFault::TooMany { .. })
    ));
    let found = decoded(Line::V07, &[0, 0, 0, 5, 3, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(found, Err(WireFault::TooMany { .. })));
    let found = decoded(Line::V07, &[0, 0x50, 0, 0]);
    assert!(matches!(found, Err(WireFault::TooLarge { .. })));
}

proptest! {
    #[test]
    fn both_find_exactly_what_they_have_in_common(
        v07: bool,
        alice in proptest::collection::btree_set(0..12_u8, 0..8),
        bob in proptest::collection::btree_set(0..12_u8, 0..8),
        step in 1..2_000_usize,
    ) {
        let line = LINES[usize::from(v07)];
        let (sides, _) = run(line, local(line, 8, &alice), local(line, 9, &bob), step);
        let common: BTreeSet<_> =
            alice.intersection(&bob).map(|it| Topic::from_bytes([*it; 32])).collect();
        for (at, side) in sides.iter().enumerate() {
            let remote: BTreeMap<_, _> = [info(line, &[[9; 32], [8; 32]][at])].into();
            prop_assert_eq!(&side.found().topics, &common);
            prop_assert_eq!(&side.found().infos, &remote);
            for (peer, info) in &side.found().infos {
                prop_assert_eq!(info.verify(line, peer), Ok(()));
            }
        }
    }

    #[test]
    fn garbage_does_no_harm(
        v07: bool,
        alice: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        golden in 0..3_usize,
        at in any::<prop::sample::Index>(),
    ) {
        let line = LINES[usize::from(v07)];
        let side = || match alice {
            true => Discovery::alice(line, local(line, 8, &[1].into())),
            false => Discovery::bob(line, local(line, 8, &[1].into())),
        };
        let _ = side().received(bytes.clone().into());
        let names = ["alice_salt_half", "bob_salt_half_and_hashed_data.two_topics", "nodes.two"];
        let name = format!("discovery.{}", names[golden]);
        let mut changed = Golden::of(line).bytes(&name).to_vec();
        let at = at.index(changed.len());
        for (place, byte) in changed[at..].iter_mut().zip(bytes.iter().take(3)) {
            *place = *byte;
        }
        let _ = decoded(line, &changed);
        let _ = Ephemeral::open(&bytes.into());
    }
}
