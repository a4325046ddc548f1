//! How many connections of the topics' overlays are open, in all and with one peer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::identity::PeerId;

/// Connections at once: more than any overlay needs, and little beside the sessions.
const GOSSIPS_MAX: usize = 512;
/// Connections at once with one peer: while one takes another's place there are two.
const GOSSIPS_OF_PEER_MAX: usize = 4;

#[derive(Default)]
pub(super) struct Gossips {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    all: usize,
    of: BTreeMap<PeerId, usize>,
}

/// The place of one connection; given back when dropped.
pub(super) struct Place {
    gossips: Arc<Gossips>,
    peer: PeerId,
}

impl Gossips {
    /// A place for one more connection with this peer, if there is one.
    pub(super) fn place(self: &Arc<Self>, peer: PeerId) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of = open.of.get(&peer).copied().unwrap_or(0);
        if open.all >= GOSSIPS_MAX || of >= GOSSIPS_OF_PEER_MAX {
            return None;
        }
        open.all += 1;
        open.of.insert(peer, of + 1);
        Some(Place {
            gossips: Arc::clone(self),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let open = self.gossips.open.lock();
        let mut open = open.unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        match open.of.get_mut(&self.peer) {
            Some(of) if *of > 1 => *of -= 1,
            _ => drop(open.of.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_for_one_and_bounded_for_all() {
        let gossips = Arc::<Gossips>::default();
        let peer = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            PeerId::from_bytes(bytes)
        };
        let mut places = Vec::new();
        for number in 0..GOSSIPS_MAX {
            assert!(places.len() == number, "one more each time");
            places.extend(gossips.place(peer(number / GOSSIPS_OF_PEER_MAX)));
            if number == GOSSIPS_OF_PEER_MAX - 1 {
                assert!(gossips.place(peer(0)).is_none(), "the first has its four");
            }
        }
        assert!(gossips.place(peer(GOSSIPS_MAX)).is_none(), "all are taken");
        places.pop();
        assert!(gossips.place(peer(GOSSIPS_MAX)).is_some());
        places.clear();
        let open = gossips.open.lock().expect("no panic");
        assert_eq!((open.all, open.of.len()), (0, 0));
    }
}
