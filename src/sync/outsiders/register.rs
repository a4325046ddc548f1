//! The register of peers: their names, where they are, and how it went with them last, as the
//! members share it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Outsiders, OutsidersError,
    rules::{Noted, decode, encode},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::LogError,
};

const REGISTER: &[u8] = b"sync/known/";
/// Which member serves a peer: see `serve/claims.rs`.
pub(crate) const CLAIMS: &[u8] = b"sync/peer/";
/// Peers in the register.
pub(crate) const REGISTER_MAX: usize = 4_096;
/// Bytes of a display name.
const NAME_BYTES_MAX: usize = 64;
/// Bytes that are kept of what went wrong.
const ERROR_BYTES_MAX: usize = 200;

/// A peer that members have met, or that was given a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownPeer {
    /// The id of its endpoint.
    pub peer: PeerId,
    /// What it is called here: set by [`Outsiders::name_peer`], never by the peer.
    pub name: Option<String>,
    /// Where it was met.
    pub addr: PeerAddr,
    /// When a session with it last went well, at whatever member: a minute late at most.
    pub last_success: Option<SystemTime>,
    /// When one last failed, and why.
    pub last_error: Option<(SystemTime, String)>,
}

/// What the register says of a peer. Frozen format, in postcard behind its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: Option<String>,
    pub(crate) addr: PeerAddr,
    /// Milliseconds since 1970, as in the next.
    pub(crate) success_ms: Option<u64>,
    pub(crate) error: Option<(u64, String)>,
}

/// How a session with a peer went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    Well,
    Wrong(String),
}

impl Entry {
    pub(crate) fn new(peer: PeerId) -> Self {
        Self {
            name: None,
            addr: PeerAddr::new(peer, []),
            success_ms: None,
            error: None,
        }
    }

    /// Takes in how it went with the peer at this address.
    pub(crate) fn saw(&mut self, addr: &PeerAddr, went: &Went, at_ms: u64) {
        // Where it is now, before where it was once: the oldest are not known, so the room decides.
        self.addr.merge(addr);
        match went {
            Went::Well => self.success_ms = self.success_ms.max(Some(at_ms)),
            Went::Wrong(why) => {
                let mut why = why.clone();
                let end = why.floor_char_boundary(ERROR_BYTES_MAX);
                why.truncate(end);
                self.error = Some((at_ms, why));
            }
        }
    }

    /// When it was last heard of.
    pub(crate) fn last_ms(&self) -> u64 {
        let error = self.error.as_ref().map(|it| it.0);
        self.success_ms.max(error).unwrap_or(0)
    }
}

pub(crate) fn entry_name(peer: PeerId) -> Bytes {
    [REGISTER, peer.as_bytes()].concat().into()
}

/// What all names in the register begin with.
pub(crate) const fn register_prefix() -> &'static [u8] {
    REGISTER
}

/// The peer in a name of the register.
pub(crate) fn peer_of(name: &[u8]) -> Option<PeerId> {
    let peer = name.strip_prefix(REGISTER)?;
    Some(PeerId::from_bytes(peer.try_into().ok()?))
}

impl Outsiders {
    /// The peers that members have met or that have a name, at most 4,096, as far as this member
    /// knows. Where there are more, those without a name that were not heard of for the longest
    /// time are forgotten.
    ///
    /// ```
    /// use quorate::{GroupKey, Node, PeerId, log_store::LogStore, sync::Outsiders};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
    /// let outsiders = Outsiders::of(&logs);
    /// let phone = PeerId::from_bytes([1; 32]);
    /// outsiders.name_peer(phone, Some("Ada's phone")).await?;
    /// let known = outsiders.peers().await?;
    /// assert_eq!(known[0].name.as_deref(), Some("Ada's phone"));
    /// outsiders.forget_peer(phone).await?;
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`LogError`] when this member's store cannot be read.
    pub async fn peers(&self) -> Result<Vec<KnownPeer>, LogError> {
        let notes = self.notes(REGISTER.into()).await?;
        let time = |ms: u64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
        let known = notes.into_iter().filter_map(|(name, value)| {
            let peer = peer_of(&name)?;
            let Noted::Known(entry) = decode::<Entry>(&value) else {
                return None;
            };
            Some(KnownPeer {
                peer,
                name: entry.name,
                addr: entry.addr,
                last_success: entry.success_ms.and_then(time),
                last_error: entry.error.and_then(|(at, why)| Some((time(at)?, why))),
            })
        });
        Ok(known.collect())
    }

    /// Says what a peer is called, for all members; none takes its name away. A peer with a name
    /// stays in the register until it is forgotten.
    ///
    /// # Errors
    /// [`OutsidersError::BadName`] unless it has 1 to 64 bytes without control characters, else as
    /// of [`OutsidersError`].
    pub async fn name_peer(&self, peer: PeerId, name: Option<&str>) -> Result<(), OutsidersError> {
        if let Some(name) = name {
            let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
            if !fits || name.chars().any(char::is_control) {
                return Err(OutsidersError::BadName);
            }
        }
        let named = self.notes(entry_name(peer)).await?;
        if named.is_empty() && self.notes(REGISTER.into()).await?.len() >= REGISTER_MAX {
            return Err(OutsidersError::TooManyNotes);
        }
        self.change(entry_name(peer), |held| {
            let held = held.map(|it| decode::<Entry>(it));
            let mut entry = match held {
                Some(Noted::Known(entry)) => entry,
                Some(Noted::Unreadable) => return Err(OutsidersError::Unreadable),
                None => Entry::new(peer),
            };
            entry.name = name.map(str::to_owned);
            Ok(Some(encode(&entry)))
        })
        .await
    }

    /// Forgets a peer: its name, where it was, how it went, and which member serves it. What was
    /// decided about it stays. If it comes again it is known again.
    ///
    /// # Errors
    /// [`OutsidersError`].
    pub async fn forget_peer(&self, peer: PeerId) -> Result<(), OutsidersError> {
        let claim = [CLAIMS, peer.as_bytes()].concat();
        self.change(claim.into(), |_| Ok(None)).await?;
        self.change(entry_name(peer), |_| Ok(None)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(at: u8) -> PeerId {
        PeerId::from_bytes([at; 32])
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let mut entry = Entry::new(peer(1));
        let addr = PeerAddr::new(peer(1), [([127, 0, 0, 1], 4000).into()]);
        entry.saw(&addr, &Went::Well, 7);
        entry.saw(&addr, &Went::Wrong("no".to_owned()), 8);
        entry.name = Some("Ada".to_owned());
        let bytes = encode(&entry);
        let hex = data_encoding::HEXLOWER.encode(&bytes);
        let addr = format!("{}01007f000001a01f00", "01".repeat(32));
        assert_eq!(hex, format!("010103416461{addr}01070108026e6f"));
        assert_eq!(decode(&bytes), Noted::Known(entry));
        assert_eq!(peer_of(&entry_name(peer(1))), Some(peer(1)));
        assert_eq!(peer_of(b"sync/known/x"), None);
    }

    #[test]
    fn fuzzed_entries() {
        use crate::fuzz::{Fuzz, Shape, bounded_by_serde};
        let mut entry = Entry::new(peer(1));
        entry.saw(&entry.addr.clone(), &Went::Well, 7);
        let mut other = entry.clone();
        let addr = PeerAddr::new(peer(1), [([127, 0, 0, 1], 4000).into()]);
        other.saw(&addr, &Went::Wrong("no".to_owned()), 8);
        other.name = Some("Ada".to_owned());
        let corpus = [encode(&entry), encode(&other)];
        Fuzz::new("register", Shape::Postcard, corpus).run(|bytes| {
            if let Noted::Known(it) = bounded_by_serde(bytes, || decode::<Entry>(bytes)) {
                assert_eq!(decode(&encode(&it)), Noted::Known(it));
            }
        });
    }

    #[test]
    fn an_entry_keeps_the_latest_and_stays_small() {
        let mut entry = Entry::new(peer(1));
        let at = |port| PeerAddr::new(peer(1), [([127, 0, 0, 1], port).into()]);
        for port in 1..=100 {
            entry.saw(&at(port), &Went::Well, u64::from(port));
        }
        let wrong = Went::Wrong("ä".repeat(1_000));
        entry.saw(&at(100), &wrong, 50);
        assert_eq!((entry.success_ms, entry.last_ms()), (Some(100), 100));
        assert_eq!(entry.addr.addrs.len(), PeerAddr::ADDRS_MAX);
        assert!(entry.addr.addrs.contains(&([127, 0, 0, 1], 100).into()));
        let (_, why) = entry.error.expect("it is there");
        assert_eq!(why, "ä".repeat(ERROR_BYTES_MAX / 2));
    }
}
