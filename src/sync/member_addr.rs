//! Where a member's door is reached: by QUIC, and by whatever else it listens with.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use crate::identity::{PeerAddr, PeerId};

/// The name of the transport that every door has.
pub(crate) const QUIC: &str = "quic";

/// A member as outsiders dial it: the name that its door proves, and the ways to it.
///
/// A way is the name of a [`Transport`](super::Transport) and an address that this transport
/// understands, such as `"http"` and `"http://192.0.2.1:8080"`. QUIC's are the socket addresses and
/// the relay of the [`PeerAddr`].
///
/// ```
/// use quorate::{PeerAddr, PeerId, sync::MemberAddr};
///
/// let quic = PeerAddr::new(PeerId::from_bytes([1; 32]), ["192.0.2.1:4040".parse()?]);
/// let member = MemberAddr::from(quic).with("http", "https://logs.example.org");
/// assert_eq!(member.addrs("quic"), ["192.0.2.1:4040"]);
/// assert_eq!(member.addrs("http"), ["https://logs.example.org"]);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
///
/// # Invariants
/// - At most [`MemberAddr::WAYS_MAX`] ways besides QUIC, each with a name of at most
///   [`MemberAddr::NAME_BYTES_MAX`] and an address of at most [`MemberAddr::ADDR_BYTES_MAX`] bytes;
///   neither is empty. What exceeds that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberAddr {
    quic: PeerAddr,
    ways: BTreeSet<(String, String)>,
}

impl MemberAddr {
    /// How many ways besides QUIC are kept.
    pub const WAYS_MAX: usize = 8;
    /// The longest name of a transport, in bytes.
    pub const NAME_BYTES_MAX: usize = 32;
    /// The longest address of a way, in bytes.
    pub const ADDR_BYTES_MAX: usize = 256;

    /// The same, and this way to it. One that QUIC cannot read, or that is over the limits, is left
    /// out.
    #[must_use]
    pub fn with(mut self, transport: &str, addr: &str) -> Self {
        if transport != QUIC {
            self.insert(transport.to_owned(), addr.to_owned());
        } else if let Ok(addr) = addr.parse::<SocketAddr>() {
            self.quic.addrs.insert(addr);
        } else if addr.contains("://") {
            self.quic.relay = Some(addr.to_owned());
        }
        self.quic = self.quic.capped();
        self
    }

    /// The name that its door proves, whatever the way.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.quic.peer
    }

    /// Where QUIC reaches it.
    #[must_use]
    pub fn quic(&self) -> &PeerAddr {
        &self.quic
    }

    /// Its addresses for this transport.
    #[must_use]
    pub fn addrs(&self, transport: &str) -> Vec<String> {
        if transport == QUIC {
            let addrs = self.quic.addrs.iter().map(ToString::to_string);
            return addrs.chain(self.quic.relay.clone()).collect();
        }
        let ways = self.ways.iter().filter(|(name, _)| name == transport);
        ways.map(|(_, addr)| addr.clone()).collect()
    }

    /// The same member, reached by this transport alone.
    #[must_use]
    pub(crate) fn only(&self, transport: &str) -> Self {
        let mut only = self.clone();
        if transport != QUIC {
            only.quic = PeerAddr::new(self.peer(), []);
        }
        only.ways.retain(|(name, _)| name == transport);
        only
    }

    /// The ways besides QUIC: names of transports, and addresses.
    pub fn ways(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ways.iter().map(|(name, addr)| (&name[..], &addr[..]))
    }

    /// One more way. False if it is over the limits.
    pub(crate) fn insert(&mut self, transport: String, addr: String) -> bool {
        let fits = (1..=Self::NAME_BYTES_MAX).contains(&transport.len())
            && (1..=Self::ADDR_BYTES_MAX).contains(&addr.len())
            && transport != QUIC
            && self.ways.len() < Self::WAYS_MAX;
        fits && self.ways.insert((transport, addr))
    }

    /// Adds what was learned later. Where that is more than there may be, what was known before
    /// makes room.
    pub(crate) fn merge(&mut self, later: Self) {
        self.quic.merge(&later.quic);
        for (name, addr) in std::mem::replace(&mut self.ways, later.ways) {
            self.insert(name, addr);
        }
    }

    /// QUIC's part, to be made smaller.
    pub(crate) fn quic_mut(&mut self) -> &mut PeerAddr {
        &mut self.quic
    }

    /// Leaves out the last of the ways besides QUIC. False if there is none.
    pub(crate) fn pop_way(&mut self) -> bool {
        self.ways.pop_last().is_some()
    }
}

impl From<PeerAddr> for MemberAddr {
    fn from(quic: PeerAddr) -> Self {
        Self {
            quic: quic.capped(),
            ways: BTreeSet::new(),
        }
    }
}

/// For people: the short name, then every address. Not meant to be parsed.
impl fmt::Display for MemberAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.quic)?;
        let first = self.quic.addrs.is_empty() && self.quic.relay.is_none();
        for (nth, (_, addr)) in self.ways.iter().enumerate() {
            write!(f, "{}{addr}", if first && nth == 0 { '@' } else { ',' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_later_takes_the_place_of_what_was_known() {
        let of = |from: u16, count: u16, relay: Option<&str>| {
            let addrs = (from..from + count).map(|port| ([192, 0, 2, 1], port).into());
            let mut quic = PeerAddr::new(PeerId::from_bytes([1; 32]), addrs);
            quic.relay = relay.map(ToOwned::to_owned);
            (from..from + count.min(8)).fold(MemberAddr::from(quic), |it, port| {
                it.with("http", &format!("http://192.0.2.1:{port}"))
            })
        };
        let all = PeerAddr::ADDRS_MAX as u16;
        // Those that sort behind and those that sort before.
        for (known, later) in [(100, 900), (900, 100)] {
            let mut member = of(known, all, Some("https://a.example"));
            let news = of(later, 3, Some("https://b.example"));
            member.merge(news.clone());
            assert_eq!(member.quic().relay, news.quic().relay);
            assert_eq!(member.quic().addrs.len(), usize::from(all));
            assert!(member.quic().addrs.is_superset(&news.quic().addrs));
            assert_eq!(member.ways().count(), MemberAddr::WAYS_MAX);
            assert!(member.ways.is_superset(&news.ways));
            let nothing = MemberAddr::from(PeerAddr::new(member.peer(), []));
            let before = member.clone();
            member.merge(nothing);
            assert_eq!(member, before);
        }
    }
}
