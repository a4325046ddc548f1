//! Where a node can be reached, signed by it, so that anybody may pass it on.
//!
//! ```text
//!   0.6   {timestamp: [µs, lamport], signature, addresses: [{Iroh: {id, addrs: [address]}}]}
//!         address: {Relay: text} | {Ip: {V4: [[octets], port]}} | {Ip: {V6: [[octets], port]}}
//!   0.7   µs, lamport, signature, count, 00 id, count, address
//!         address: 00 text | 01 00 octets port | 01 01 octets port | 02 number bytes
//!   signed, as CBOR in both lines
//!   0.6   {timestamp, addresses}
//!   0.7   {addresses, timestamp}
//! ```
//!
//! The signature covers the line's own order of keys, so an info is good for one line. Sign once a
//! change of address and keep it: a stock node that is given a new signature each time asks again
//! at once, without end.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::{BufMut, Bytes, BytesMut};

use super::signing;
use crate::{
    identity::PeerId,
    log_store::Line,
    sync::codec::{CborReader, CborWrite, PostcardReader, PostcardWrite, WireFault, check_count},
};

/// The most addresses that an info may have.
pub(crate) const ADDRESSES_MAX: u64 = 128;
/// The longest user data that a record of mDNS can hold, in bytes.
#[cfg(any(test, feature = "mdns"))]
pub(crate) const USER_DATA_MAX: usize = 245;

/// When something was signed: wall clock, and a counter for what the clock can not tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    /// Microseconds since the UNIX epoch.
    pub(crate) micros: u64,
    /// Counts what was signed within one of them.
    pub(crate) lamport: u64,
}

impl Stamp {
    /// A stamp for now that is above `previous`, also where the clock was set back.
    pub(crate) fn after(previous: Option<Self>, now_micros: u64) -> Self {
        match previous {
            Some(previous) if previous.micros >= now_micros => Self {
                micros: previous.micros,
                lamport: previous.lamport.saturating_add(1),
            },
            _ => Self {
                micros: now_micros,
                lamport: 0,
            },
        }
    }
}

/// One way to a node. The order is the one on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    /// The URL of its relay, as iroh prints it.
    Relay(String),
    /// An address and port. Scope and flow of IPv6 are not carried.
    Ip(SocketAddr),
}

/// Where a node can be reached, signed by it for one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransportInfo {
    stamp: Stamp,
    signature: [u8; 64],
    /// Whose they are, as the signed bytes say, and the ways.
    endpoint: Option<(PeerId, BTreeSet<Address>)>,
}

impl TransportInfo {
    /// Signs the addresses of the holder of this secret.
    pub(crate) fn sign(
        line: Line,
        stamp: Stamp,
        addresses: impl IntoIterator<Item = Address>,
        secret: &[u8; 32],
    ) -> Self {
        let peer = PeerId::from_bytes(signing::public(secret));
        let addresses = addresses.into_iter().map(plain).collect();
        let mut info = Self {
            stamp,
            signature: [0; 64],
            endpoint: Some((peer, addresses)),
        };
        info.signature = signing::sign(secret, &info.signed_bytes(line));
        info
    }

    /// Whether this node signed it, for this line, about itself.
    ///
    /// # Errors
    /// It did not. Passing such an info on would make a stock node drop the whole session.
    pub(crate) fn verify(&self, line: Line, peer: &PeerId) -> Result<(), InvalidInfo> {
        if self.endpoint.as_ref().is_some_and(|(id, _)| id != peer) {
            return Err(InvalidInfo::OtherPeer);
        }
        if !signing::verify(peer.as_bytes(), &self.signed_bytes(line), &self.signature) {
            return Err(InvalidInfo::Signature);
        }
        Ok(())
    }

    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    #[cfg(test)]
    pub(super) fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// The ways to the node: none if it can not be dialled.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.endpoint.iter().flat_map(|(_, addresses)| addresses)
    }

    /// Puts `other` in place of what is known, if it is newer. Verify it first.
    #[cfg_attr(not(test), expect(dead_code, reason = "for adverts by mDNS"))]
    pub(crate) fn merge(known: &mut Option<Self>, other: Self) -> bool {
        let newer = known.as_ref().is_none_or(|it| other.stamp > it.stamp);
        if newer {
            *known = Some(other);
        }
        newer
    }

    /// What a record of mDNS carries besides the addresses, or `None` if that is too long. The
    /// record must carry exactly the signed addresses, and there may be one relay.
    #[cfg(any(test, feature = "mdns"))]
    pub(crate) fn user_data(&self) -> Option<String> {
        let mut data = format!(
            "{}|{}/{}",
            data_encoding::HEXLOWER.encode(&self.signature),
            self.stamp.micros,
            self.stamp.lamport
        );
        if let Some(Address::Relay(url)) = self.addresses().next() {
            data.push('|');
            data.push_str(url);
        }
        (data.len() <= USER_DATA_MAX).then_some(data)
    }

    /// The info that a record of mDNS stands for: its user data, and the addresses that came with
    /// it. Verify it before use.
    ///
    /// # Errors
    /// The user data is not what a stock node writes.
    #[cfg(any(test, feature = "mdns"))]
    pub(crate) fn from_user_data(
        data: &str,
        peer: PeerId,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Self, InvalidInfo> {
        let mut parts = data.split('|');
        let signature = parts.next().unwrap_or_default();
        let stamp = parts.next().and_then(|it| it.split_once('/'));
        let (relay, rest) = (parts.next(), parts.next());
        let signature = data_encoding::HEXLOWER_PERMISSIVE
            .decode(signature.as_bytes())
            .ok()
            .and_then(|it| <[u8; 64]>::try_from(it).ok());
        let (Some(signature), Some((micros, lamport)), None) = (signature, stamp, rest) else {
            return Err(InvalidInfo::UserData);
        };
        let number = |text: &str| text.parse().map_err(|_| InvalidInfo::UserData);
        let relay = relay.map(|url| Address::Relay(url.to_owned()));
        let addresses = addresses.into_iter().map(Address::Ip);
        Ok(Self {
            stamp: Stamp {
                micros: number(micros)?,
                lamport: number(lamport)?,
            },
            signature,
            endpoint: Some((
                peer,
                relay.into_iter().chain(addresses).map(plain).collect(),
            )),
        })
    }

    fn signed_bytes(&self, line: Line) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.map(2);
        match line {
            Line::V06 => {
                self.write_stamp(&mut bytes);
                self.write_addresses(&mut bytes);
            }
            Line::V07 => {
                self.write_addresses(&mut bytes);
                self.write_stamp(&mut bytes);
            }
        }
        bytes
    }

    /// Its bytes, as messages of this line carry them.
    pub(crate) fn to_bytes(&self, line: Line) -> Bytes {
        let mut bytes = BytesMut::new();
        match line {
            Line::V06 => self.write_cbor(&mut bytes),
            Line::V07 => self.write_postcard(&mut bytes),
        }
        bytes.freeze()
    }

    /// Reads [`TransportInfo::to_bytes`]; none if it is anything else. Verify it then.
    pub(crate) fn from_bytes(line: Line, bytes: &[u8]) -> Option<Self> {
        match line {
            Line::V06 => {
                let mut reader = CborReader::new(bytes);
                let info = Self::read_cbor(&mut reader).ok()??;
                reader.finish().ok().map(|()| info)
            }
            Line::V07 => {
                let mut reader = PostcardReader::new(bytes);
                let info = Self::read_postcard(&mut reader).ok()??;
                reader.finish().ok().map(|()| info)
            }
        }
    }

    /// As it stands in a message of the 0.6 line.
    pub(super) fn write_cbor(&self, into: &mut BytesMut) {
        into.map(3);
        self.write_stamp(into);
        into.text("signature");
        CborWrite::bytes(into, &self.signature);
        self.write_addresses(into);
    }

    fn write_stamp(&self, into: &mut BytesMut) {
        into.text("timestamp");
        into.array(2);
        CborWrite::uint(into, self.stamp.micros);
        CborWrite::uint(into, self.stamp.lamport);
    }

    fn write_addresses(&self, into: &mut BytesMut) {
        into.text("addresses");
        into.array(usize::from(self.endpoint.is_some()));
        let Some((peer, addresses)) = &self.endpoint else {
            return;
        };
        into.map(1);
        into.text("Iroh");
        into.map(2);
        into.text("id");
        into.octets(peer.as_bytes());
        into.text("addrs");
        into.array(addresses.len());
        for address in addresses {
            into.map(1);
            match address {
                Address::Relay(url) => {
                    into.text("Relay");
                    into.text(url);
                }
                Address::Ip(ip) => {
                    into.text("Ip");
                    into.map(1);
                    into.text(if ip.is_ipv4() { "V4" } else { "V6" });
                    into.array(2);
                    match ip.ip() {
                        IpAddr::V4(ip) => into.octets(&ip.octets()),
                        IpAddr::V6(ip) => into.octets(&ip.octets()),
                    }
                    CborWrite::uint(into, u64::from(ip.port()));
                }
            }
        }
    }

    /// Reads what [`write_cbor`](Self::write_cbor) wrote; `None` where it says more than is known
    /// here, such as a transport of another kind.
    pub(super) fn read_cbor(reader: &mut CborReader<'_>) -> Result<Option<Self>, WireFault> {
        reader.map_of(3)?;
        reader.key("timestamp")?;
        reader.array_of(2)?;
        let stamp = Stamp {
            micros: reader.uint()?,
            lamport: reader.uint()?,
        };
        reader.key("signature")?;
        let signature = reader.bytes_of()?;
        reader.key("addresses")?;
        let count = reader.array()?;
        if count > 1 {
            for _ in 0..count {
                reader.item()?;
            }
            return Ok(None);
        }
        let mut endpoint = None;
        if count == 1 {
            reader.map_of(1)?;
            if reader.text()? != "Iroh" {
                reader.item()?;
                return Ok(None);
            }
            reader.map_of(2)?;
            reader.key("id")?;
            let peer = PeerId::from_bytes(reader.octets_of()?);
            reader.key("addrs")?;
            let count = reader.array()?;
            check_count("addresses", count, ADDRESSES_MAX)?;
            let mut addresses = Some(BTreeSet::new());
            for _ in 0..count {
                match (read_cbor_address(reader)?, &mut addresses) {
                    (Some(address), Some(addresses)) => {
                        addresses.insert(address);
                    }
                    _ => addresses = None,
                }
            }
            let Some(addresses) = addresses else {
                return Ok(None);
            };
            endpoint = Some((peer, addresses));
        }
        Ok(Some(Self {
            stamp,
            signature,
            endpoint,
        }))
    }

    /// As it stands in a message of the 0.7 line.
    pub(super) fn write_postcard(&self, into: &mut BytesMut) {
        PostcardWrite::uint(into, self.stamp.micros);
        PostcardWrite::uint(into, self.stamp.lamport);
        PostcardWrite::bytes(into, &self.signature);
        PostcardWrite::uint(into, u64::from(self.endpoint.is_some()));
        let Some((peer, addresses)) = &self.endpoint else {
            return;
        };
        into.put_u8(IROH);
        into.put_slice(peer.as_bytes());
        PostcardWrite::uint(into, addresses.len() as u64);
        for address in addresses {
            match address {
                Address::Relay(url) => {
                    into.put_u8(RELAY);
                    PostcardWrite::bytes(into, url.as_bytes());
                }
                Address::Ip(ip) => {
                    match ip.ip() {
                        IpAddr::V4(ip) => {
                            into.put_slice(&[IP, V4]);
                            into.put_slice(&ip.octets());
                        }
                        IpAddr::V6(ip) => {
                            into.put_slice(&[IP, V6]);
                            into.put_slice(&ip.octets());
                        }
                    }
                    PostcardWrite::uint(into, u64::from(ip.port()));
                }
            }
        }
    }

    /// Reads what [`write_postcard`](Self::write_postcard) wrote; `None` where it says more than is
    /// known here.
    pub(super) fn read_postcard(
        reader: &mut PostcardReader<'_>,
    ) -> Result<Option<Self>, WireFault> {
        let stamp = Stamp {
            micros: reader.uint()?,
            lamport: reader.uint()?,
        };
        let signature = reader.bytes_of()?;
        let mut endpoints = Vec::new();
        let mut known = true;
        let count = reader.uint()?;
        check_count("transports", count, ADDRESSES_MAX)?;
        for _ in 0..count {
            if reader.byte()? != IROH {
                // How long a transport of another kind is can not be told.
                return Err(WireFault::Malformed("a transport of an unknown kind"));
            }
            let peer = PeerId::from_bytes(reader.raw()?);
            let count = reader.uint()?;
            check_count("addresses", count, ADDRESSES_MAX)?;
            let mut addresses = BTreeSet::new();
            for _ in 0..count {
                match read_postcard_address(reader)? {
                    Some(address) => known &= addresses.insert(address),
                    None => known = false,
                }
            }
            endpoints.push((peer, addresses));
        }
        if !known || endpoints.len() > 1 {
            return Ok(None);
        }
        Ok(Some(Self {
            stamp,
            signature,
            endpoint: endpoints.pop(),
        }))
    }
}

const IROH: u8 = 0;
const RELAY: u8 = 0;
const IP: u8 = 1;
const CUSTOM: u8 = 2;
const V4: u8 = 0;
const V6: u8 = 1;

/// Without what is not carried: two addresses that differ only in that are one.
fn plain(address: Address) -> Address {
    match address {
        Address::Ip(ip) => Address::Ip(SocketAddr::new(ip.ip(), ip.port())),
        relay @ Address::Relay(_) => relay,
    }
}

fn read_cbor_address(reader: &mut CborReader<'_>) -> Result<Option<Address>, WireFault> {
    reader.map_of(1)?;
    match reader.text()? {
        "Relay" => Ok(Some(Address::Relay(reader.text()?.to_owned()))),
        "Ip" => {
            reader.map_of(1)?;
            let kind = reader.text()?;
            reader.array_of(2)?;
            let ip: IpAddr = match kind {
                "V4" => Ipv4Addr::from(reader.octets_of::<4>()?).into(),
                "V6" => Ipv6Addr::from(reader.octets_of::<16>()?).into(),
                _ => return Err(WireFault::Malformed("an IP address of no known kind")),
            };
            Ok(Some(Address::Ip(SocketAddr::new(
                ip,
                port(reader.uint()?)?,
            ))))
        }
        _ => {
            reader.item()?;
            Ok(None)
        }
    }
}

fn read_postcard_address(reader: &mut PostcardReader<'_>) -> Result<Option<Address>, WireFault> {
    match reader.byte()? {
        RELAY => Ok(Some(Address::Relay(reader.text()?.to_owned()))),
        IP => {
            let ip: IpAddr = match reader.byte()? {
                V4 => Ipv4Addr::from(reader.raw::<4>()?).into(),
                V6 => Ipv6Addr::from(reader.raw::<16>()?).into(),
                _ => return Err(WireFault::Malformed("an IP address of no known kind")),
            };
            Ok(Some(Address::Ip(SocketAddr::new(
                ip,
                port(reader.uint()?)?,
            ))))
        }
        CUSTOM => {
            reader.uint()?;
            reader.bytes()?;
            Ok(None)
        }
        _ => Err(WireFault::Malformed("an address of an unknown kind")),
    }
}

fn port(number: u64) -> Result<u16, WireFault> {
    u16::try_from(number).map_err(|_| WireFault::IntegerTooLarge(number))
}

/// Why an info is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InvalidInfo {
    /// Another node's addresses.
    #[error("the info is about another node than the one it came for")]
    OtherPeer,
    /// Not signed by the node, changed on the way, or signed for the other line.
    #[error("the info is not signed by the node that it is about, or for another line")]
    Signature,
    /// A record of mDNS with user data of something else.
    #[cfg(any(test, feature = "mdns"))]
    #[error("the user data is not that of a p2panda node")]
    UserData,
}
