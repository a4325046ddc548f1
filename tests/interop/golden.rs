//! The golden items whose making is the same in both lines of p2panda: identifiers, discovery,
//! transport infos and ephemeral messages. Each line's `golden` program includes this file.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use iroh::EndpointAddr;
use iroh::address_lookup::UserData;
use p2panda::operation::LogId;
use p2panda_core::cbor::encode_cbor;
use p2panda_core::timestamp::{HybridTimestamp, LamportTimestamp};
use p2panda_core::{Hash, SigningKey, Timestamp, Topic, VerifyingKey};
use p2panda_discovery::DiscoveryProtocol;
use p2panda_discovery::psi_hash::{PsiHashDiscoveryProtocol, PsiHashMessage};
use p2panda_discovery::traits::LocalTopics;
use p2panda_net::DEFAULT_NETWORK_ID;
use p2panda_net::addrs::{
    AuthenticatedTransportInfo, NodeInfo, TransportAddress, UnsignedTransportInfo,
};
use p2panda_net::utils::from_verifying_key;
use p2panda_store::{SqliteStore, SqliteStoreBuilder};

/// Mixed into a topic to get the gossip topic of its sync membership; private in p2panda-net.
const GOSSIP_MIX: [u8; 32] = [
    253, 6, 251, 217, 173, 228, 215, 244, 130, 181, 150, 142, 220, 244, 49, 219, 35, 94, 163, 197,
    229, 93, 143, 227, 97, 61, 38, 202, 63, 250, 26, 233,
];

/// What the header of the golden sync messages names as its predecessor.
pub const BACKLINK: [u8; 32] = [
    161, 28, 176, 50, 121, 13, 186, 47, 20, 175, 33, 165, 238, 234, 190, 89, 70, 142, 153, 195,
    178, 231, 142, 99, 41, 25, 70, 47, 227, 215, 107, 187,
];

pub const MICROS: u64 = 1_700_000_000_000_000;

pub type Discovery = PsiHashMessage<VerifyingKey, NodeInfo>;

pub fn topic() -> Topic {
    Topic::from([7; 32])
}

pub fn other_topic() -> Topic {
    Topic::from([8; 32])
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

pub fn other_key() -> SigningKey {
    SigningKey::from_bytes(&[2; 32])
}

/// A CBOR text of 98 letters: 100 bytes.
pub fn body() -> Vec<u8> {
    encode_cbor(&"x".repeat(98)).unwrap()
}

pub fn put(name: &str, bytes: impl AsRef<[u8]>) {
    println!("{name} = {}", hex::encode(bytes));
}

pub fn comment(text: &str) {
    println!("# {text}");
}

pub fn heading(line: &str) {
    comment(&format!(
        "Golden bytes of p2panda {line}, printed by the stock crates."
    ));
    comment("One item a line: `name = hex`. Written by `golden` in tests/interop, not by hand.");
    comment("Inputs: the default network, topic 07*32 (other 08*32), signing key 01*32 (02*32).");
    comment("An `id` is the operation id of a header, a `signed` what its signature is over.");
}

pub fn gossip_topic(topic: Topic) -> Topic {
    Topic::from(Hash::digest([topic.as_bytes(), &GOSSIP_MIX[..]].concat()))
}

pub fn identifiers() {
    comment("Identifiers. An ALPN is the raw 32 bytes.");
    assert_eq!(Hash::digest(b"p2panda").as_bytes(), &DEFAULT_NETWORK_ID);
    put("network_id", DEFAULT_NETWORK_ID);
    for (name, id) in [
        ("sync", &b"p2panda/log_sync/v1"[..]),
        ("discovery", b"p2panda/confidential_discovery/v1"),
        ("gossip", b"/iroh-gossip/1"),
    ] {
        put(
            &format!("alpn.{name}"),
            Hash::digest([id, &DEFAULT_NETWORK_ID[..]].concat()),
        );
    }
    put("author", key().verifying_key().as_bytes());
    put("other_author", other_key().verifying_key().as_bytes());
    put("topic", topic().as_bytes());
    put("other_topic", other_topic().as_bytes());
    put("log_id", LogId::from_topic(topic()).as_bytes());
    put("other_log_id", LogId::from_topic(other_topic()).as_bytes());
    put("gossip_mix", GOSSIP_MIX);
    put("gossip_topic", gossip_topic(topic()).as_bytes());
    put("other_gossip_topic", gossip_topic(other_topic()).as_bytes());
    put("body", body());
}

fn timestamp(lamport: u64) -> HybridTimestamp {
    HybridTimestamp::from_parts(Timestamp::new(MICROS), LamportTimestamp::new(lamport))
}

fn unsigned(key: &SigningKey, addrs: &[&str], relay: Option<&str>) -> UnsignedTransportInfo {
    let mut addr = EndpointAddr::new(from_verifying_key(key.verifying_key()));
    for ip in addrs {
        addr = addr.with_ip_addr(ip.parse::<SocketAddr>().unwrap());
    }
    if let Some(url) = relay {
        addr = addr.with_relay_url(url.parse().unwrap());
    }
    UnsignedTransportInfo {
        timestamp: timestamp(0),
        addresses: vec![TransportAddress::Iroh(addr)],
    }
}

/// Transport infos: the CBOR of the info, what is signed, and the user data of its mDNS record.
pub fn transport_infos() {
    comment("Transport infos, timestamp 1_700_000_000_000_000 us, lamport 0 (3 in .lamport).");
    comment("`info` is CBOR as an address book keeps it, `user_data` the ASCII text in mDNS.");
    let v4 = "127.0.0.1:4242";
    let mut lamport = unsigned(&key(), &[v4], None);
    lamport.timestamp = timestamp(3);
    let empty = UnsignedTransportInfo {
        timestamp: timestamp(0),
        addresses: vec![],
    };
    let relay = Some("https://relay.example.org/");
    for (name, unsigned) in [
        ("ipv4", unsigned(&key(), &[v4], None)),
        ("lamport", lamport),
        ("two", unsigned(&key(), &[v4, "10.1.2.3:4243"], None)),
        ("ipv6", unsigned(&key(), &["[::1]:4242"], None)),
        ("ipv4_ipv6", unsigned(&key(), &[v4, "[fd00::1]:4242"], None)),
        ("relay", unsigned(&key(), &[], relay)),
        ("ipv4_relay", unsigned(&key(), &[v4], relay)),
        ("no_addresses", unsigned(&key(), &[], None)),
        ("empty", empty),
    ] {
        put(
            &format!("transport.{name}.signed"),
            encode_cbor(&unsigned).unwrap(),
        );
        let info = unsigned.sign(&key()).unwrap();
        put(
            &format!("transport.{name}.signature"),
            info.signature.to_bytes(),
        );
        put(
            &format!("transport.{name}.info"),
            encode_cbor(&info).unwrap(),
        );
        let user_data = UserData::try_from(info).unwrap().to_string();
        put(&format!("transport.{name}.user_data"), user_data.as_bytes());
    }
}

fn nodes(keys: &[SigningKey]) -> Discovery {
    let info = |key: &SigningKey| -> (VerifyingKey, AuthenticatedTransportInfo) {
        let info = unsigned(key, &["127.0.0.1:4242"], None).sign(key).unwrap();
        (key.verifying_key(), info)
    };
    PsiHashMessage::Nodes {
        transport_infos: BTreeMap::from_iter(keys.iter().map(info)),
    }
}

/// The set, in one of the random orders it can have, which is the ascending one.
fn ascending(topics: impl IntoIterator<Item = Topic> + Clone) -> HashSet<Topic> {
    loop {
        let set = HashSet::from_iter(topics.clone());
        if set
            .iter()
            .is_sorted_by_key(|topic: &Topic| *topic.as_bytes())
        {
            return set;
        }
    }
}

pub fn psi_hash(topic: Topic, alice: [u8; 32], bob: [u8; 32], who: u8) -> Topic {
    Topic::from(Hash::digest(
        [topic.as_bytes(), &alice[..], &bob, &[who]].concat(),
    ))
}

#[derive(Debug)]
struct One(Topic);

impl LocalTopics for One {
    type Error = Infallible;

    async fn topics(&self) -> Result<HashSet<Topic>, Infallible> {
        Ok(HashSet::from([self.0]))
    }
}

/// Holds [`psi_hash`] against what a stock Bob answers, whose salt is random.
async fn check_psi_hash() {
    let store: SqliteStore = SqliteStoreBuilder::new()
        .database_url("sqlite::memory:")
        .build()
        .await
        .unwrap();
    let bob = PsiHashDiscoveryProtocol::<_, _, VerifyingKey, NodeInfo>::new(
        store,
        One(topic()),
        other_key().verifying_key(),
        key().verifying_key(),
    );
    let alice_salt_half = [0x11; 32];
    let (mut tx, mut sent) = futures_channel::mpsc::channel::<Discovery>(4);
    let (mut to_bob, rx) = futures_channel::mpsc::channel::<Result<Discovery, Infallible>>(4);
    to_bob
        .send(Ok(PsiHashMessage::AliceSaltHalf { alice_salt_half }))
        .await
        .unwrap();
    to_bob.close_channel();
    let mut rx = Box::pin(rx);
    assert!(bob.bob(&mut tx, &mut rx).await.is_err());
    let Some(PsiHashMessage::BobSaltHalfAndHashedData {
        bob_salt_half,
        topics_for_alice,
    }) = sent.next().await
    else {
        panic!("a stock Bob answers with his salt");
    };
    let expected = psi_hash(topic(), alice_salt_half, bob_salt_half, 1);
    assert_eq!(topics_for_alice, HashSet::from([expected]));
}

/// The five discovery messages as the wire codec frames them.
pub async fn discovery(frame: fn(Discovery) -> Vec<u8>) {
    comment("Discovery. Salts: Alice 11*32, Bob 22*32. The sets are random in order by nature:");
    comment("here they are in ascending order. They hold hashes of *gossip* topics.");
    check_psi_hash().await;
    let (alice, bob) = ([0x11; 32], [0x22; 32]);
    let topics = [gossip_topic(topic()), gossip_topic(other_topic())];
    for (name, who) in [("alice", 0), ("bob", 1)] {
        let hash = |topic| psi_hash(topic, alice, bob, who);
        put(
            &format!("psi.{name}.gossip_topic"),
            hash(topics[0]).as_bytes(),
        );
        put(
            &format!("psi.{name}.other_gossip_topic"),
            hash(topics[1]).as_bytes(),
        );
        put(&format!("psi.{name}.topic"), hash(topic()).as_bytes());
    }
    let hashed = |count: usize, who: u8| {
        ascending(
            topics
                .into_iter()
                .take(count)
                .map(move |t| psi_hash(t, alice, bob, who)),
        )
    };
    put(
        "discovery.alice_salt_half",
        frame(PsiHashMessage::AliceSaltHalf {
            alice_salt_half: alice,
        }),
    );
    for (count, name) in ["no_topic", "one_topic", "two_topics"]
        .into_iter()
        .enumerate()
    {
        put(
            &format!("discovery.bob_salt_half_and_hashed_data.{name}"),
            frame(PsiHashMessage::BobSaltHalfAndHashedData {
                bob_salt_half: bob,
                topics_for_alice: hashed(count, 1),
            }),
        );
        put(
            &format!("discovery.alice_hashed_data.{name}"),
            frame(PsiHashMessage::AliceHashedData {
                topics_for_bob: hashed(count, 0),
            }),
        );
    }
    put("discovery.nodes.empty", frame(nodes(&[])));
    put("discovery.nodes.one", frame(nodes(&[key()])));
    put("discovery.nodes.two", frame(nodes(&[key(), other_key()])));
}

/// Ephemeral messages. Stock's wrapper is private, so its tuple is made here, with its encoder.
pub fn ephemeral() {
    comment("Ephemeral messages as gossip carries them: timestamp as above, a text as body.");
    for (name, lamport, text) in [
        ("hello", 0, "hello"),
        ("lamport", 3, "hello"),
        ("empty", 0, ""),
        ("later", 300, "x"),
    ] {
        let author = key().verifying_key();
        let signed = encode_cbor(&(1_u64, author, MICROS, lamport as u64, text)).unwrap();
        let signature = key().sign(&signed);
        let message = (1_u64, author, signature, MICROS, lamport as u64, text);
        put(&format!("ephemeral.{name}.signed"), signed);
        put(&format!("ephemeral.{name}"), encode_cbor(&message).unwrap());
    }
}
