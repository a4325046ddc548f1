//! The names of nodes, members, process starts and foundings.

use std::{collections::BTreeSet, fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A node's public name: the Ed25519 public key of its endpoint (32 bytes).
///
/// Printed and parsed as 64 lower-case hexadecimal digits.
///
/// ```
/// use quorate::PeerId;
///
/// let peer = PeerId::from_bytes([1; 32]);
/// assert_eq!(peer.to_string().parse::<PeerId>()?, peer);
/// # Ok::<(), quorate::ParsePeerIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// The peer with these public key bytes. Whether they are a valid key shows when it is dialled.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key bytes.
    ///
    /// ```
    /// use quorate::PeerId;
    ///
    /// assert_eq!(PeerId::from_bytes([1; 32]).as_bytes(), &[1; 32]);
    /// ```
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten digits, for logs and tables read by people.
    ///
    /// ```
    /// use quorate::PeerId;
    ///
    /// assert_eq!(PeerId::from_bytes([1; 32]).short(), "0101010101");
    /// ```
    #[must_use]
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..5])
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl FromStr for PeerId {
    type Err = ParsePeerIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .map_err(|_| ParsePeerIdError)?;
        bytes.try_into().map(Self).map_err(|_| ParsePeerIdError)
    }
}

/// The text is not a [`PeerId`]: 64 hexadecimal digits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a peer id is 64 hexadecimal digits")]
pub struct ParsePeerIdError;

/// A member's name inside one group: 128 random bits, minted where no state was found and never
/// used twice.
///
/// # Invariants
/// - A wiped disk is a new member: the id lives and dies with the data it speaks for.
/// - Zero is never minted; it is the default that stands for "nobody".
///
/// Printed and parsed as 32 lower-case hexadecimal digits.
///
/// ```
/// use quorate::MemberId;
///
/// let member = MemberId::from_bytes([3; 16]);
/// assert_eq!(member.to_string().parse::<MemberId>()?, member);
/// # Ok::<(), quorate::ParseMemberIdError>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId(u128);

impl MemberId {
    /// A fresh id from the operating system's random numbers.
    pub(crate) fn mint() -> Self {
        Self(random_nonzero())
    }

    /// The 128 bits, big-endian.
    ///
    /// ```
    /// use quorate::MemberId;
    ///
    /// let member = MemberId::from_bytes([3; 16]);
    /// assert_eq!(member.to_bytes(), [3; 16]);
    /// ```
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id with these 128 bits, big-endian.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The first eight digits, for logs and tables read by people.
    ///
    /// ```
    /// use quorate::MemberId;
    ///
    /// assert_eq!(MemberId::from_bytes([0xab; 16]).short(), "abababab");
    /// ```
    #[must_use]
    pub fn short(&self) -> String {
        format!("{:08x}", self.0 >> 96)
    }
}

impl FromStr for MemberId {
    type Err = ParseMemberIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text
            .bytes()
            .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 32 || !digits {
            return Err(ParseMemberIdError);
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| ParseMemberIdError)
    }
}

/// The text is not a [`MemberId`]: 32 lower-case hexadecimal digits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a member id is 32 lower-case hexadecimal digits")]
pub struct ParseMemberIdError;

impl From<u64> for MemberId {
    fn from(number: u64) -> Self {
        Self(u128::from(number))
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberId({:08x})", self.0 >> 96)
    }
}

/// One start of one process: random, told after the first proof on a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct BootId(u128);

impl BootId {
    pub(crate) fn mint() -> Self {
        Self(random_nonzero())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({:08x})", self.0 >> 96)
    }
}

/// One founding of one group: random, so that two groups founded with one key can be told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Genesis(u128);

impl Genesis {
    pub(crate) fn mint() -> Self {
        Self(random_nonzero())
    }
}

impl fmt::Debug for Genesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Genesis({:08x})", self.0 >> 96)
    }
}

/// Where a peer can be dialled: its id, its socket addresses and, if it uses one, its relay.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerAddr {
    /// The peer that is expected to answer there.
    pub peer: PeerId,
    /// Direct addresses, all of which are tried. At most [`PeerAddr::ADDRS_MAX`] are kept.
    pub addrs: BTreeSet<SocketAddr>,
    /// The URL of the relay server the peer is reachable through, if any.
    pub relay: Option<String>,
}

impl PeerAddr {
    /// How many direct addresses of one peer are kept and sent.
    pub const ADDRS_MAX: usize = 16;
    /// The longest relay URL that is kept and sent, in bytes.
    pub const RELAY_BYTES_MAX: usize = 256;

    /// A peer reachable at these addresses, without a relay.
    ///
    /// ```
    /// use quorate::{PeerAddr, PeerId};
    ///
    /// let addr = PeerAddr::new(PeerId::from_bytes([1; 32]), ["192.0.2.1:4040".parse()?]);
    /// assert_eq!(addr.to_string(), "0101010101@192.0.2.1:4040");
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn new(peer: PeerId, addrs: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            peer,
            addrs: addrs.into_iter().take(Self::ADDRS_MAX).collect(),
            relay: None,
        }
    }

    /// Whether it may be kept and sent as it is. What comes from the wire must be.
    pub(crate) fn is_within_limits(&self) -> bool {
        let relay = self.relay.as_ref().map_or(0, String::len);
        self.addrs.len() <= Self::ADDRS_MAX && relay <= Self::RELAY_BYTES_MAX
    }

    /// Adds what was learned later. Where that is more than there may be, what was known before
    /// makes room.
    pub(crate) fn merge(&mut self, later: &Self) {
        let mut now = later.clone().capped();
        for former in &self.addrs {
            if now.addrs.len() < Self::ADDRS_MAX {
                now.addrs.insert(*former);
            }
        }
        now.relay = now.relay.or_else(|| self.relay.take());
        *self = now.capped();
    }

    /// Within the limits: without the addresses after the 16th, without a relay whose URL is too
    /// long.
    #[must_use]
    pub(crate) fn capped(mut self) -> Self {
        while self.addrs.len() > Self::ADDRS_MAX {
            self.addrs.pop_last();
        }
        self.relay = self
            .relay
            .filter(|relay| relay.len() <= Self::RELAY_BYTES_MAX);
        self
    }
}

/// For people: the short id, then every address. Not meant to be parsed.
impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer.short())?;
        let addrs = self.addrs.iter().map(ToString::to_string);
        for (nth, addr) in addrs.chain(self.relay.clone()).enumerate() {
            write!(f, "{}{addr}", if nth == 0 { '@' } else { ',' })?;
        }
        Ok(())
    }
}

fn random_nonzero() -> u128 {
    loop {
        let number: u128 = rand::random();
        if number != 0 {
            return number;
        }
    }
}
