//! How a member serves outsiders: what is bound, whom it looks for, and how much it spends.

use std::{net::SocketAddr, time::Duration};

use crate::{identity::PeerAddr, net::RelayChoice};

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
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// Where to listen: at most one IPv4 and one IPv6 address; port 0 takes a free one. Default:
    /// every IPv4 interface and a free port.
    pub bind: Vec<SocketAddr>,
    /// The URL of a relay server through which peers reach this member. Default: none.
    pub relay: Option<String>,
    /// Which network: peers of another one neither find nor reach this member. Default: the one
    /// that stock nodes are in, BLAKE3("p2panda").
    pub network: [u8; 32],
    /// Peers to look for from the start, as by [`Sync::add_peer`](super::Sync::add_peer).
    pub peers: Vec<PeerAddr>,
    /// How often known peers are asked again which topics they have and whom they know, and how
    /// soon after live operations a peer is asked what it holds. Default: 15 s; at least 1 s.
    pub ask_again: Duration,
    /// Sessions at once, all peers together; more are turned away. Default: 256.
    pub sessions_max: usize,
    /// Sessions at once with one peer, all topics together. Default: 32.
    pub sessions_of_peer_max: usize,
    /// Bytes of operations that came in one session and may wait for their commit. What comes
    /// beyond is discarded, and asked for again. Default: 8 MiB; one operation is always taken.
    pub inbound_bytes_max: usize,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            bind: Vec::new(),
            relay: None,
            network: *blake3::hash(b"p2panda").as_bytes(),
            peers: Vec::new(),
            ask_again: Duration::from_secs(15),
            sessions_max: 256,
            sessions_of_peer_max: 32,
            inbound_bytes_max: 8 * 1024 * 1024,
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

    pub(super) fn ask_again(&self) -> Duration {
        self.ask_again.max(Duration::from_secs(1))
    }
}
