//! How many connections of a kind are open, in all and with one peer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::identity::PeerId;

/// So many places, of which one peer may have so many.
pub(crate) struct Places {
    max: usize,
    of_peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    of: BTreeMap<PeerId, usize>,
}

/// The place of one connection; given back when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    peer: PeerId,
}

impl Places {
    pub(crate) fn new(max: usize, of_peer_max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            of_peer_max,
            taken: Mutex::default(),
        })
    }

    /// A place for one more connection with this peer, if there is one.
    pub(crate) fn take(self: &Arc<Self>, peer: PeerId) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of = taken.of.get(&peer).copied().unwrap_or(0);
        if taken.all >= self.max || of >= self.of_peer_max {
            return None;
        }
        taken.all += 1;
        taken.of.insert(peer, of + 1);
        Some(Place {
            places: Arc::clone(self),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = self.places.taken.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.of.get_mut(&self.peer) {
            Some(of) if *of > 1 => *of -= 1,
            _ => drop(taken.of.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_for_one_and_bounded_for_all() {
        let places = Places::new(6, 2);
        let peer = |number| PeerId::from_bytes([number; 32]);
        let mut taken: Vec<Place> = Vec::new();
        for number in 0..3 {
            taken.extend(places.take(peer(number)));
            taken.extend(places.take(peer(number)));
            assert_eq!(taken.len(), 2 * (usize::from(number) + 1));
            assert!(places.take(peer(number)).is_none(), "it has its two");
        }
        assert!(places.take(peer(9)).is_none(), "all are taken");
        taken.pop();
        assert!(places.take(peer(9)).is_some());
        taken.clear();
        let taken = places.taken.lock().expect("no panic");
        assert_eq!((taken.all, taken.of.len()), (0, 0));
    }
}
