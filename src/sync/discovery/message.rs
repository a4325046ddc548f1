//! The messages of a discovery session as bytes, in the formats of both lines.
//!
//! ```text
//!   0.6   {AliceSaltHalf: {alice_salt_half: octets}}                    one CBOR map each
//!         {BobSaltHalfAndHashedData: {bob_salt_half: octets, topics_for_alice: [bytes]}}
//!         {AliceHashedData: {topics_for_bob: [bytes]}}
//!         {Nodes: {transport_infos: {key: info}}}
//!   0.7   00 salt | 01 salt, count, bytes | 02 count, bytes             in a frame each
//!         | 03 count, key, info                                         salts without a length
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, BytesMut};

use super::info::TransportInfo;
use crate::{
    identity::PeerId,
    log_store::Line,
    sync::codec::{
        CborReader, CborWrite, FrameFault, NAMELESS, PostcardReader, PostcardWrite, WireFault,
        check_count, framed,
    },
};

/// The longest message of discovery, in bytes.
pub(crate) const FRAME_MAX: usize = 4 * 1024 * 1024;
/// The most topics that a node may have.
pub(crate) const TOPICS_MAX: u64 = 65_536;
/// The most infos that a node may pass on at a time.
pub(crate) const INFOS_MAX: u64 = 8_192;

pub(super) type Salt = [u8; 32];
pub(super) type Hashes = BTreeSet<[u8; 32]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DiscoveryMessage {
    AliceSalt(Salt),
    BobSaltAndHashes(Salt, Hashes),
    AliceHashes(Hashes),
    Nodes(Nodes),
}

/// Nodes and where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    pub(super) infos: BTreeMap<PeerId, TransportInfo>,
    /// Infos that were left out, because they say more than is known here.
    pub(super) unread: usize,
}

impl DiscoveryMessage {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AliceSalt(_) => "AliceSaltHalf",
            Self::BobSaltAndHashes(..) => "BobSaltHalfAndHashedData",
            Self::AliceHashes(_) => "AliceHashedData",
            Self::Nodes(_) => "Nodes",
        }
    }

    pub(super) fn decode(line: Line, frame: &[u8]) -> Result<Self, FrameFault> {
        let mut name = NAMELESS;
        match line {
            Line::V06 => decode_cbor(frame, &mut name),
            Line::V07 => decode_postcard(frame, &mut name),
        }
        .map_err(|fault| fault.of(name))
    }

    pub(super) fn encode(&self, line: Line, into: &mut BytesMut) {
        match line {
            Line::V06 => self.encode_cbor(into),
            Line::V07 => framed(into, |into| self.encode_postcard(into)),
        }
    }

    fn encode_cbor(&self, into: &mut BytesMut) {
        into.map(1);
        into.text(self.name());
        match self {
            Self::AliceSalt(salt) => {
                into.map(1);
                into.text("alice_salt_half");
                into.octets(salt);
            }
            Self::BobSaltAndHashes(salt, hashes) => {
                into.map(2);
                into.text("bob_salt_half");
                into.octets(salt);
                into.text("topics_for_alice");
                write_cbor_hashes(hashes, into);
            }
            Self::AliceHashes(hashes) => {
                into.map(1);
                into.text("topics_for_bob");
                write_cbor_hashes(hashes, into);
            }
            Self::Nodes(nodes) => {
                into.map(1);
                into.text("transport_infos");
                into.map(nodes.infos.len());
                for (peer, info) in &nodes.infos {
                    CborWrite::bytes(into, peer.as_bytes());
                    info.write_cbor(into);
                }
            }
        }
    }

    fn encode_postcard(&self, into: &mut BytesMut) {
        match self {
            Self::AliceSalt(salt) => {
                into.put_u8(ALICE_SALT);
                into.put_slice(salt);
            }
            Self::BobSaltAndHashes(salt, hashes) => {
                into.put_u8(BOB_SALT_AND_HASHES);
                into.put_slice(salt);
                write_postcard_hashes(hashes, into);
            }
            Self::AliceHashes(hashes) => {
                into.put_u8(ALICE_HASHES);
                write_postcard_hashes(hashes, into);
            }
            Self::Nodes(nodes) => {
                into.put_u8(NODES);
                PostcardWrite::uint(into, nodes.infos.len() as u64);
                for (peer, info) in &nodes.infos {
                    PostcardWrite::bytes(into, peer.as_bytes());
                    info.write_postcard(into);
                }
            }
        }
    }
}

const ALICE_SALT: u8 = 0;
const BOB_SALT_AND_HASHES: u8 = 1;
const ALICE_HASHES: u8 = 2;
const NODES: u8 = 3;

fn decode_cbor(frame: &[u8], name: &mut &'static str) -> Result<DiscoveryMessage, WireFault> {
    let mut reader = CborReader::new(frame);
    reader.map_of(1)?;
    let message = match reader.text()? {
        "AliceSaltHalf" => {
            *name = "AliceSaltHalf";
            reader.map_of(1)?;
            reader.key("alice_salt_half")?;
            DiscoveryMessage::AliceSalt(reader.octets_of()?)
        }
        "BobSaltHalfAndHashedData" => {
            *name = "BobSaltHalfAndHashedData";
            reader.map_of(2)?;
            reader.key("bob_salt_half")?;
            let salt = reader.octets_of()?;
            reader.key("topics_for_alice")?;
            DiscoveryMessage::BobSaltAndHashes(salt, read_cbor_hashes(&mut reader)?)
        }
        "AliceHashedData" => {
            *name = "AliceHashedData";
            reader.map_of(1)?;
            reader.key("topics_for_bob")?;
            DiscoveryMessage::AliceHashes(read_cbor_hashes(&mut reader)?)
        }
        "Nodes" => {
            *name = "Nodes";
            reader.map_of(1)?;
            reader.key("transport_infos")?;
            let count = reader.map()?;
            check_count("infos", count, INFOS_MAX)?;
            let mut nodes = Nodes::default();
            for _ in 0..count {
                let peer = PeerId::from_bytes(reader.bytes_of()?);
                nodes.add(peer, TransportInfo::read_cbor(&mut reader)?);
            }
            DiscoveryMessage::Nodes(nodes)
        }
        _ => return Err(WireFault::Malformed("no message of discovery")),
    };
    reader.finish()?;
    Ok(message)
}

fn decode_postcard(frame: &[u8], name: &mut &'static str) -> Result<DiscoveryMessage, WireFault> {
    let mut reader = PostcardReader::new(frame);
    let message = match reader.byte()? {
        ALICE_SALT => {
            *name = "AliceSaltHalf";
            DiscoveryMessage::AliceSalt(reader.raw()?)
        }
        BOB_SALT_AND_HASHES => {
            *name = "BobSaltHalfAndHashedData";
            let salt = reader.raw()?;
            DiscoveryMessage::BobSaltAndHashes(salt, read_postcard_hashes(&mut reader)?)
        }
        ALICE_HASHES => {
            *name = "AliceHashedData";
            DiscoveryMessage::AliceHashes(read_postcard_hashes(&mut reader)?)
        }
        NODES => {
            *name = "Nodes";
            let count = reader.uint()?;
            check_count("infos", count, INFOS_MAX)?;
            let mut nodes = Nodes::default();
            for _ in 0..count {
                let peer = PeerId::from_bytes(reader.bytes_of()?);
                nodes.add(peer, TransportInfo::read_postcard(&mut reader)?);
            }
            DiscoveryMessage::Nodes(nodes)
        }
        _ => return Err(WireFault::Malformed("no message of discovery")),
    };
    reader.finish()?;
    Ok(message)
}

impl Nodes {
    fn add(&mut self, peer: PeerId, info: Option<TransportInfo>) {
        match info {
            Some(info) => {
                self.infos.insert(peer, info);
            }
            None => self.unread += 1,
        }
    }
}

fn write_cbor_hashes(hashes: &Hashes, into: &mut BytesMut) {
    into.array(hashes.len());
    for hash in hashes {
        CborWrite::bytes(into, hash);
    }
}

fn read_cbor_hashes(reader: &mut CborReader<'_>) -> Result<Hashes, WireFault> {
    let count = reader.array()?;
    check_count("topics", count, TOPICS_MAX)?;
    (0..count).map(|_| reader.bytes_of()).collect()
}

fn write_postcard_hashes(hashes: &Hashes, into: &mut BytesMut) {
    PostcardWrite::uint(into, hashes.len() as u64);
    for hash in hashes {
        PostcardWrite::bytes(into, hash);
    }
}

fn read_postcard_hashes(reader: &mut PostcardReader<'_>) -> Result<Hashes, WireFault> {
    let count = reader.uint()?;
    check_count("topics", count, TOPICS_MAX)?;
    (0..count).map(|_| reader.bytes_of()).collect()
}
