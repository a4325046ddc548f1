//! The messages' bytes, their limits, and what is no message.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::identity::PeerId;

fn addr(peer: u8) -> PeerAddr {
    PeerAddr::new(
        PeerId::from_bytes([peer; 32]),
        [SocketAddr::from(([192, 0, 2, 1], 4040))],
    )
}

fn introduce() -> Introduce {
    // The ids have no constructor from a number outside their own module; the wire gives them.
    Introduce {
        member: Introduction {
            genesis: Some(postcard::from_bytes(&[5]).expect("a genesis")),
            member: MemberId::from(300),
            format: 1,
            machine: "example.map".to_owned(),
        },
        boot: postcard::from_bytes(&[6]).expect("a boot id"),
        addr: addr(1),
        peers: vec![addr(2), addr(3)],
    }
}

#[test]
fn the_bytes_of_later_messages_are_frozen() {
    let frozen = [
        (
            Message::Agree {
                link: Some([9; 16]),
                bond: None,
            },
            [&[8, 1][..], &[9; 16], &[0]].concat(),
        ),
        (Message::Redundant { link: true }, vec![9, 1]),
        (
            Message::Close {
                reason: "bye".to_owned(),
            },
            [&[10, 3][..], b"bye"].concat(),
        ),
    ];
    for (message, bytes) in frozen {
        assert_eq!(message.encode().expect("within limits"), bytes);
        assert_eq!(Message::decode(&bytes), Ok(message));
    }
}

#[test]
fn the_bytes_are_frozen() {
    let entry = |peer: u8| {
        // peer ‖ one address ‖ IPv4 192.0.2.1 ‖ port 4040 as a varint ‖ no relay
        [&[peer; 32][..], &[1, 0, 192, 0, 2, 1, 0xc8, 0x1f, 0]].concat()
    };
    let introduction = [
        &[0][..],
        &[1, 5],       // genesis: Some(5)
        &[0xac, 0x02], // member: 300
        &[1],          // format
        &[11],
        b"example.map",
        &[6], // boot
        &entry(1),
        &[2],
        &entry(2),
        &entry(3), // two peers
    ]
    .concat();
    let newcomer = Introduce {
        member: Introduction {
            genesis: None,
            machine: String::new(),
            ..introduce().member
        },
        peers: vec![],
        ..introduce()
    };
    let introduction_of_newcomer = [&[0, 0, 0xac, 0x02, 1, 0, 6][..], &entry(1), &[0]].concat();
    for (message, bytes) in [
        (Message::Introduce(introduce()), introduction),
        (Message::Introduce(newcomer), introduction_of_newcomer),
        (Message::Accept, vec![1]),
        (Message::Refuse(Refusal::NotFounded), vec![2, 0]),
        (Message::Refuse(Refusal::OtherGenesis), vec![2, 1]),
        (Message::Refuse(Refusal::RemovedMember), vec![2, 2]),
        (Message::Refuse(Refusal::ClonedMember), vec![2, 3]),
        (
            Message::Refuse(Refusal::Newer {
                ours: 1,
                theirs: 200,
            }),
            vec![2, 4, 1, 0xc8, 1],
        ),
        (Message::Refuse(Refusal::Stopped), vec![2, 5]),
        (Message::Ping { seq: 1 }, vec![3, 1]),
        (Message::Pong { seq: 300 }, vec![4, 0xac, 2]),
        (
            Message::PeerEntryUpdate(addr(1)),
            [vec![5], entry(1)].concat(),
        ),
        (Message::BondFormed(addr(2)), [vec![6], entry(2)].concat()),
        (Message::Departure, vec![7]),
    ] {
        assert_eq!(
            message.encode().expect("within the limits"),
            bytes,
            "{message:?}"
        );
        assert_eq!(Message::decode(&bytes), Ok(message));
    }
}

#[test]
fn a_cut_or_lengthened_message_is_refused() {
    for message in [
        Message::Introduce(introduce()),
        Message::Ping { seq: 300 },
        Message::Departure,
    ] {
        let bytes = message.encode().expect("within the limits");
        for length in 0..bytes.len() {
            assert_eq!(
                Message::decode(&bytes[..length]),
                Err(MessageError::Malformed)
            );
        }
        for trailing in [&[0][..], &[7], &[0; 100]] {
            let longer = [&bytes, trailing].concat();
            assert_eq!(Message::decode(&longer), Err(MessageError::Malformed));
        }
    }
    assert_eq!(
        Message::decode(&[8]),
        Err(MessageError::Malformed),
        "an unknown variant"
    );
    assert_eq!(
        Message::decode(&[0; MESSAGE_BYTES_MAX + 1]),
        Err(MessageError::Oversized)
    );
}

#[test]
fn what_exceeds_a_limit_is_neither_sent_nor_taken() {
    let with = |change: fn(&mut Introduce)| {
        let mut introduce = introduce();
        change(&mut introduce);
        Message::Introduce(introduce)
    };
    let crowded = || {
        let ports = 1..=PeerAddr::ADDRS_MAX as u16 + 1;
        PeerAddr {
            addrs: ports.map(|port| ([192, 0, 2, 1], port).into()).collect(),
            ..addr(1)
        }
    };
    let wordy = || PeerAddr {
        relay: Some("r".repeat(PeerAddr::RELAY_BYTES_MAX + 1)),
        ..addr(1)
    };
    for message in [
        with(|it| it.peers = vec![addr(2); PEERS_MAX + 1]),
        with(|it| it.member.machine = "m".repeat(NAME_BYTES_MAX + 1)),
        with(|it| it.peers[1].relay = Some("r".repeat(PeerAddr::RELAY_BYTES_MAX + 1))),
        with(|it| it.addr.relay = Some("r".repeat(PeerAddr::RELAY_BYTES_MAX + 1))),
        Message::PeerEntryUpdate(crowded()),
        Message::PeerEntryUpdate(wordy()),
        Message::BondFormed(crowded()),
        Message::BondFormed(wordy()),
    ] {
        assert_eq!(message.encode(), Err(MessageError::Limit));
        let sent_anyway = postcard::to_stdvec(&message).expect("encodes");
        assert_eq!(Message::decode(&sent_anyway), Err(MessageError::Limit));
        // What a well-behaved sender makes of the addresses passes.
        if let Message::BondFormed(addr) = message {
            assert!(Message::BondFormed(addr.capped()).encode().is_ok());
        }
    }
}

#[test]
fn the_largest_introduction_fits() {
    let full = PeerAddr {
        peer: PeerId::from_bytes([0xff; 32]),
        addrs: (0..16)
            .map(|n| SocketAddr::from(([0xff_u8; 16], u16::MAX - n)))
            .collect(),
        relay: Some("r".repeat(PeerAddr::RELAY_BYTES_MAX)),
    };
    let largest = Message::Introduce(Introduce {
        member: Introduction {
            genesis: Some(Genesis::mint()),
            member: MemberId::from_bytes([0xff; 16]),
            format: u32::MAX,
            machine: "m".repeat(NAME_BYTES_MAX),
        },
        boot: BootId::mint(),
        addr: full.clone(),
        peers: vec![full; PEERS_MAX],
    });
    let bytes = largest.encode().expect("fits");
    assert!(
        (30_000..=MESSAGE_BYTES_MAX).contains(&bytes.len()),
        "{}",
        bytes.len()
    );
    assert_eq!(Message::decode(&bytes), Ok(largest));
}

#[test]
fn length_bombs_are_refused() {
    let count = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let name = [&[0, 0, 1, 1][..], &count].concat();
    let addrs = [&[5][..], &[1; 32], &count].concat();
    let peers = [&[0, 0, 1, 1, 0, 1][..], &[1; 32], &[0, 0], &count].concat();
    for bomb in [name, addrs, peers] {
        assert_eq!(Message::decode(&bomb), Err(MessageError::Malformed));
    }
}

#[test]
fn one_encoding_serves_all_bonds() {
    let bytes = Message::BondFormed(addr(1))
        .encode()
        .expect("within the limits");
    assert_eq!(bytes.clone().as_ptr(), bytes.as_ptr());
}

fn any_addr() -> impl Strategy<Value = PeerAddr> {
    let addr = prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ];
    let addrs = prop::collection::btree_set(addr, 0..=PeerAddr::ADDRS_MAX);
    (any::<[u8; 32]>(), addrs, prop::option::of("[ -~]{0,256}")).prop_map(|(peer, addrs, relay)| {
        PeerAddr {
            peer: PeerId::from_bytes(peer),
            addrs,
            relay,
        }
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let introduction = (
        any::<bool>(),
        any::<[u8; 16]>(),
        any::<u32>(),
        "[a-z.]{0,256}",
    )
        .prop_map(|(founded, member, format, machine)| Introduction {
            genesis: founded.then(Genesis::mint),
            member: MemberId::from_bytes(member),
            format,
            machine,
        });
    let peers = prop::collection::vec(any_addr(), 0..=PEERS_MAX);
    let introduce = (introduction, any_addr(), peers).prop_map(|(member, addr, peers)| {
        Message::Introduce(Introduce {
            member,
            boot: BootId::mint(),
            addr,
            peers,
        })
    });
    let refusal = prop_oneof![
        Just(Refusal::NotFounded),
        Just(Refusal::OtherGenesis),
        Just(Refusal::RemovedMember),
        Just(Refusal::ClonedMember),
        any::<(u32, u32)>().prop_map(|(ours, theirs)| Refusal::Newer { ours, theirs }),
        Just(Refusal::Stopped),
    ];
    prop_oneof![
        introduce,
        Just(Message::Accept),
        refusal.prop_map(Message::Refuse),
        any::<u64>().prop_map(|seq| Message::Ping { seq }),
        any::<u64>().prop_map(|seq| Message::Pong { seq }),
        any_addr().prop_map(Message::PeerEntryUpdate),
        any_addr().prop_map(Message::BondFormed),
        Just(Message::Departure),
        (any::<Option<[u8; 16]>>(), any::<Option<[u8; 16]>>())
            .prop_map(|(link, bond)| Message::Agree { link, bond }),
        any::<bool>().prop_map(|link| Message::Redundant { link }),
        "[a-z]{0,256}".prop_map(|reason| Message::Close { reason }),
    ]
}

proptest! {
    #[test]
    fn what_is_sent_is_received(message in any_message()) {
        let bytes = message.encode().expect("within the limits");
        prop_assert!(bytes.len() <= MESSAGE_BYTES_MAX);
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn changed_bytes_never_panic_and_never_exceed_a_limit(
        message in any_message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = message.encode().expect("within the limits").to_vec();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert!(message.encode().is_ok());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn random_bytes_never_panic(mut bytes: Vec<u8>, variant in 0u8..9) {
        let _ = Message::decode(&bytes);
        // Most random bytes end at an unknown variant: help them past it.
        if let Some(first) = bytes.first_mut() {
            *first = variant;
        }
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert!(message.encode().is_ok());
        }
    }
}
