//! Who is known in a group and where: no I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::identity::{PeerAddr, PeerId};

/// Peers that are learned from what others say; more are ignored.
const KNOWN_MAX: usize = 256;

/// Forgotten peers that are remembered as such.
const FORGOTTEN_MAX: usize = 1_024;

/// The peers of one group, this node not among them.
///
/// # Invariants
/// - No peer is both known and forgotten.
pub(super) struct Roster {
    own: PeerId,
    known: BTreeMap<PeerId, Known>,
    forgotten: VecDeque<PeerId>,
}

struct Known {
    addr: PeerAddr,
    error: Option<String>,
    wanted: Wanted,
}

/// How long a peer is to be dialled, and when to try at once.
#[derive(Clone, Default)]
pub(super) struct Wanted {
    pub(super) moved: Arc<Notify>,
    pub(super) over: CancellationToken,
}

/// Whose word an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The group's owner on this node wants the peer.
    Wanted,
    /// The peer speaks of itself: what was known before is outdated.
    Own,
    /// Another peer speaks of it.
    Rumor,
}

/// What came of a word.
pub(super) enum News {
    /// Nothing new.
    Stale,
    /// The peer can be reached elsewhere.
    Moved,
    /// A new peer, to be dialled.
    New(Wanted),
}

impl Roster {
    pub(super) fn new(own: PeerId) -> Self {
        Self {
            own,
            known: BTreeMap::new(),
            forgotten: VecDeque::new(),
        }
    }

    pub(super) fn hear(&mut self, addr: PeerAddr, word: Word) -> News {
        let addr = addr.capped();
        if addr.peer == self.own {
            return News::Stale;
        }
        if word == Word::Wanted {
            self.forgotten.retain(|peer| *peer != addr.peer);
        } else if self.forgotten.contains(&addr.peer) {
            return News::Stale;
        }
        let full = self.known.len() >= KNOWN_MAX && word != Word::Wanted;
        match self.known.get_mut(&addr.peer) {
            Some(known) => {
                let addr = match word {
                    Word::Own => addr,
                    Word::Wanted | Word::Rumor => both(addr, &known.addr),
                };
                if known.addr == addr {
                    return News::Stale;
                }
                known.addr = addr;
                known.wanted.moved.notify_one();
                News::Moved
            }
            None if full => News::Stale,
            None => {
                let wanted = Wanted::default();
                let known = Known {
                    addr: addr.clone(),
                    error: None,
                    wanted: wanted.clone(),
                };
                self.known.insert(addr.peer, known);
                News::New(wanted)
            }
        }
    }

    /// Whether the peer was known.
    pub(super) fn forget(&mut self, peer: PeerId) -> bool {
        if !self.forgotten.contains(&peer) {
            self.forgotten.push_back(peer);
            if self.forgotten.len() > FORGOTTEN_MAX {
                self.forgotten.pop_front();
            }
        }
        let known = self.known.remove(&peer);
        if let Some(known) = &known {
            known.wanted.over.cancel();
        }
        known.is_some()
    }

    pub(super) fn addr(&self, peer: PeerId) -> Option<PeerAddr> {
        self.known.get(&peer).map(|known| known.addr.clone())
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &PeerAddr> {
        self.known.values().map(|known| &known.addr)
    }

    pub(super) fn note_error(&mut self, peer: PeerId, error: Option<String>) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.error = error;
        }
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = (&PeerAddr, &String)> {
        self.known
            .values()
            .filter_map(|known| Some((&known.addr, known.error.as_ref()?)))
    }
}

/// The new addresses, and of the old ones as many as there is room for.
fn both(mut new: PeerAddr, old: &PeerAddr) -> PeerAddr {
    for addr in &old.addrs {
        if new.addrs.len() < PeerAddr::ADDRS_MAX {
            new.addrs.insert(*addr);
        }
    }
    new.relay = new.relay.or_else(|| old.relay.clone());
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn at(n: u8, port: u16) -> PeerAddr {
        PeerAddr::new(peer(n), [([127, 0, 0, 1], port).into()])
    }

    fn ports(roster: &Roster, n: u8) -> Vec<u16> {
        let addr = roster.addr(peer(n)).expect("known");
        addr.addrs.iter().map(|addr| addr.port()).collect()
    }

    #[test]
    fn rumors_add_up_and_the_peers_own_word_replaces_them() {
        let mut roster = Roster::new(peer(0));
        assert!(matches!(roster.hear(at(1, 1), Word::Rumor), News::New(_)));
        assert!(matches!(roster.hear(at(1, 2), Word::Rumor), News::Moved));
        assert!(matches!(roster.hear(at(1, 2), Word::Rumor), News::Stale));
        assert_eq!(ports(&roster, 1), [1, 2]);
        assert!(matches!(roster.hear(at(1, 3), Word::Own), News::Moved));
        assert_eq!(ports(&roster, 1), [3]);
    }

    #[test]
    fn a_forgotten_peer_comes_back_only_when_wanted() {
        let mut roster = Roster::new(peer(0));
        let News::New(wanted) = roster.hear(at(1, 1), Word::Wanted) else {
            panic!("new")
        };
        assert!(roster.forget(peer(1)) && wanted.over.is_cancelled());
        for word in [Word::Rumor, Word::Own] {
            assert!(matches!(roster.hear(at(1, 1), word), News::Stale));
        }
        assert!(matches!(roster.hear(at(1, 1), Word::Wanted), News::New(_)));
    }

    #[test]
    fn we_are_not_in_our_own_roster() {
        let mut roster = Roster::new(peer(0));
        assert!(matches!(roster.hear(at(0, 1), Word::Wanted), News::Stale));
    }

    #[test]
    fn addresses_and_peers_have_limits() {
        let mut roster = Roster::new(peer(0));
        for port in 0..100 {
            roster.hear(at(1, port), Word::Rumor);
        }
        assert_eq!(ports(&roster, 1).len(), PeerAddr::ADDRS_MAX);
        for n in 0..1_000_u16 {
            let mut id = [7; 32];
            id[..2].copy_from_slice(&n.to_be_bytes());
            roster.hear(PeerAddr::new(PeerId::from_bytes(id), []), Word::Rumor);
        }
        assert_eq!(roster.peers().count(), KNOWN_MAX);
    }
}
