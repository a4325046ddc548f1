//! How a member serves outsiders: what is bound, whom it looks for, and how much it spends.

use std::{net::SocketAddr, time::Duration};

use crate::{
    identity::PeerAddr,
    net::RelayChoice,
    sync::{
        Mount,
        client::{FRAME_MAX, OWED_MAX, PUSHED_MIN, Transports},
        member_addr::QUIC,
    },
};

/// Milliseconds of a day.
const DAY_MS: u128 = 24 * 60 * 60 * 1_000;
/// Sessions that one process can be expected to hold.
const SESSIONS_MAX: u128 = 65_536;
/// Peers that settings may name.
const PEERS_MAX: u128 = 1_024;

/// The fewest operations a second, and bytes. What our own client has to wait after one message of
/// its own is then less than [`OWED_MAX`], the longest that it waits.
const OPERATIONS_MIN: u128 = PUSHED_MIN as u128;
const BYTES_MIN: u128 = 16 * 1024;

const _: () = assert!(
    FRAME_MAX as u128 / BYTES_MIN < OWED_MAX.as_secs() as u128,
    "an honest client is answered in time"
);

/// Protocols that a door may have.
const PROTOCOLS_MAX: u128 = 16;

/// Settings of a member's door for outsiders. All have defaults that fit stock p2panda nodes.
///
/// ```
/// use std::time::Duration;
///
/// use quorate::sync::SyncOptions;
///
/// let options = SyncOptions {
///     bind: vec!["0.0.0.0:2022".parse()?],
///     ask_again: Duration::from_secs(30),
///     ..SyncOptions::default()
/// };
/// assert_eq!(options.sessions_max, 256);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncOptions {
    /// Where to listen: at most one IPv4 and one IPv6 address; port 0 takes a free one, and after a
    /// restart the same if it is free. Default: where the door was the last time, at first every
    /// IPv4 interface and a free port.
    pub bind: Vec<SocketAddr>,
    /// What else our own clients reach this member by, such as
    #[cfg_attr(feature = "http", doc = "[`Http`](crate::sync::Http)")]
    #[cfg_attr(not(feature = "http"), doc = "`Http` (feature `http`)")]
    /// under the name `"http"`. QUIC is always there, on the door's own endpoint. Default: nothing.
    pub transports: Transports,
    /// Sync protocols of the program's own, at most 16, each with another name. Default: none.
    pub protocols: Vec<Mount>,
    /// The URL of a relay server through which peers reach this member. Default: none.
    pub relay: Option<String>,
    /// Which network: peers of another one neither find nor reach this member. Default: the one
    /// that stock nodes are in, BLAKE3("p2panda").
    pub network: [u8; 32],
    /// Peers to look for from the start, as by [`Sync::add_peer`](super::Sync::add_peer), each with
    /// its relay if it has one. At most 1,024.
    pub peers: Vec<PeerAddr>,
    /// Whether p2panda nodes of line 0.7 in the same local network find this member by themselves,
    /// and it them, by mDNS: both must advertise, so the node in its active mode. One advert serves
    /// one line; nodes of line 0.6 need an address. Default: no. Needs the feature `mdns`.
    pub mdns: bool,
    /// How often known peers are asked again which topics they have and whom they know, and how
    /// soon after live operations a peer is asked what it holds. Default: 15 s; 1 s to 1 day.
    pub ask_again: Duration,
    /// Sessions at once, all peers together. The last eighth is for peers that have less than an
    /// equal share, half of it for those that the program asked for or that were served well. When
    /// all are taken, who has most loses its oldest session to who has fewer, and a stranger its
    /// own to one that is known; whoever is still too many is turned away. Default: 256; 1 to
    /// 65,536.
    pub sessions_max: usize,
    /// Sessions at once with one peer, all topics together. Default: 32; at least 1.
    pub sessions_of_peer_max: usize,
    /// Bytes of operations that came in one session and may wait for their commit. What comes
    /// beyond is discarded, and asked for again. Default: 8 MiB; one operation is always taken.
    pub inbound_bytes_max: usize,
    /// The same for all sessions of one peer together. Default: 32 MiB.
    pub inbound_bytes_of_peer_max: usize,
    /// The same for all peers together. Default: 256 MiB.
    pub inbound_bytes_in_all_max: usize,
    /// Operations a second that are taken in of one peer; a second's worth is saved up. What a
    /// p2panda node sends beyond is discarded, and asked for again; our own client waits, after
    /// each batch and in its next session, for ten minutes at the most before it asks another
    /// member. Default: 20,000; at least 8.
    pub operations_per_second_of_peer_max: u32,
    /// Bytes a second that are taken in of one peer, of headers and bodies, likewise. Default:
    /// 64 MiB; at least 16 KiB.
    pub bytes_per_second_of_peer_max: u64,
    /// Operations a second that are taken in of all peers together. Default: 100,000; at least 8.
    pub operations_per_second_max: u32,
    /// Bytes a second that are taken in of all peers together. Default: 256 MiB; at least
    /// 16 KiB.
    pub bytes_per_second_max: u64,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            bind: Vec::new(),
            transports: Transports::none(),
            protocols: Vec::new(),
            relay: None,
            network: *blake3::hash(b"p2panda").as_bytes(),
            peers: Vec::new(),
            mdns: false,
            ask_again: Duration::from_secs(15),
            sessions_max: 256,
            sessions_of_peer_max: 32,
            inbound_bytes_max: 8 * 1024 * 1024,
            inbound_bytes_of_peer_max: 32 * 1024 * 1024,
            inbound_bytes_in_all_max: 256 * 1024 * 1024,
            operations_per_second_of_peer_max: 20_000,
            bytes_per_second_of_peer_max: 64 * 1024 * 1024,
            operations_per_second_max: 100_000,
            bytes_per_second_max: 256 * 1024 * 1024,
        }
    }
}

impl SyncOptions {
    pub(super) fn relay_choice(&self) -> RelayChoice {
        match &self.relay {
            Some(url) => RelayChoice::Url(url.clone()),
            None => RelayChoice::Off,
        }
    }

    /// Whether one endpoint does for both: they differ in what can change while sessions go on.
    pub(super) fn has_endpoint_of(&self, other: &Self) -> bool {
        let same = Self {
            ask_again: other.ask_again,
            peers: other.peers.clone(),
            ..self.clone()
        };
        same == *other
    }

    /// What is wrong with the names in it.
    fn names_fault(&self) -> Option<String> {
        let quic = self.transports.names().any(|it| it == QUIC);
        let quic = quic.then(|| "the door has the transport \"quic\" of itself".to_owned());
        let mut names: Vec<&str> = self.protocols.iter().map(|it| it.own.name()).collect();
        names.sort_unstable();
        let twice = names.windows(2).find(|it| it.first() == it.last());
        let twice = twice.and_then(|it| it.first());
        let twice = twice.map(|it| format!("the protocol {it:?} is mounted twice"));
        quic.or(twice)
    }

    /// What is wrong with it, in words.
    pub(super) fn fault(&self) -> Option<String> {
        if self.mdns && cfg!(not(feature = "mdns")) {
            return Some("mdns is wanted, and this build lacks the feature `mdns`".to_owned());
        }
        let of_range = |name: &str, value: u128, least: u128, most: u128| {
            let within = (least..=most).contains(&value);
            (!within).then(|| format!("{name} is {value}: give {least} to {most}"))
        };
        let large = u128::from(u64::MAX);
        let ranges = [
            (
                "ask_again, in ms,",
                self.ask_again.as_millis(),
                1_000,
                DAY_MS,
            ),
            ("sessions_max", self.sessions_max as u128, 1, SESSIONS_MAX),
            (
                "sessions_of_peer_max",
                self.sessions_of_peer_max as u128,
                1,
                large,
            ),
            (
                "operations_per_second_of_peer_max",
                self.operations_per_second_of_peer_max.into(),
                OPERATIONS_MIN,
                large,
            ),
            (
                "bytes_per_second_of_peer_max",
                self.bytes_per_second_of_peer_max.into(),
                BYTES_MIN,
                large,
            ),
            (
                "operations_per_second_max",
                self.operations_per_second_max.into(),
                OPERATIONS_MIN,
                large,
            ),
            (
                "bytes_per_second_max",
                self.bytes_per_second_max.into(),
                BYTES_MIN,
                large,
            ),
            (
                "peers, as many as it names,",
                self.peers.len() as u128,
                0,
                PEERS_MAX,
            ),
            (
                "protocols, as many as it has,",
                self.protocols.len() as u128,
                0,
                PROTOCOLS_MAX,
            ),
        ];
        let mut faults = ranges
            .into_iter()
            .filter_map(|(name, value, least, most)| of_range(name, value, least, most));
        faults.next().or_else(|| self.names_fault())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_named() {
        assert_eq!(SyncOptions::default().fault(), None);
        let bad = [
            SyncOptions {
                ask_again: Duration::from_millis(999),
                ..SyncOptions::default()
            },
            SyncOptions {
                sessions_max: 0,
                ..SyncOptions::default()
            },
            SyncOptions {
                sessions_of_peer_max: 0,
                ..SyncOptions::default()
            },
            SyncOptions {
                operations_per_second_of_peer_max: 7,
                ..SyncOptions::default()
            },
            SyncOptions {
                bytes_per_second_max: 16_383,
                ..SyncOptions::default()
            },
        ];
        let words = bad.map(|it| it.fault().expect("it is bad"));
        assert_eq!(words[0], "ask_again, in ms, is 999: give 1000 to 86400000");
        assert!(words[1].starts_with("sessions_max is 0"), "{words:?}");
        assert!(words[2].starts_with("sessions_of_peer_max is 0"));
        assert!(words[3].starts_with("operations_per_second_of_peer_max is 7: give 8"));
        assert!(words[4].starts_with("bytes_per_second_max is 16383: give 16384"));
    }
}
