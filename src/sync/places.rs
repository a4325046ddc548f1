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
        self.take_if(peer, |_, _, _| true)
    }

    /// The same, where what is left at the end is for those that have few, and the very last for
    /// those that are known.
    pub(crate) fn take_fairly(self: &Arc<Self>, peer: PeerId, known: bool) -> Option<Place> {
        let max = self.max;
        self.take_if(peer, |free, of, peers| {
            let kept = if known { 0 } else { max / 16 };
            // Half of an equal share: the rest is for those that are still to come.
            free > kept && (free > max / 4 || of < (max / peers / 2).max(1))
        })
    }

    /// `may` is told how many are free, how many the peer has, and how many peers have any.
    fn take_if(
        self: &Arc<Self>,
        peer: PeerId,
        may: impl FnOnce(usize, usize, usize) -> bool,
    ) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of = taken.of.get(&peer).copied().unwrap_or(0);
        let free = self.max.saturating_sub(taken.all);
        let peers = taken.of.len() + usize::from(of == 0);
        if free == 0 || of >= self.of_peer_max || !may(free, of, peers) {
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
    fn a_few_that_have_many_leave_room_for_others() {
        let places = Places::new(320, 40);
        let peer = |number| PeerId::from_bytes([number; 32]);
        let mut taken: Vec<Place> = Vec::new();
        for number in 0..8 {
            taken.extend((0..40).filter_map(|_| places.take_fairly(peer(number), false)));
        }
        assert!(taken.len() <= 290, "{}", taken.len());
        assert!(places.take_fairly(peer(7), true).is_none());
        for number in 100..110 {
            taken.push(
                places
                    .take_fairly(peer(number), false)
                    .expect("a first one"),
            );
        }
        let strangers = (110..200).map_while(|it| places.take_fairly(peer(it), false));
        taken.extend(strangers);
        assert!(taken.len() < 320);
        assert!(places.take_fairly(peer(200), false).is_none());
        assert!(
            places.take_fairly(peer(200), true).is_some(),
            "kept for those that are known"
        );
    }

    #[test]
    fn places_are_few_for_one_and_bounded_for_all() {
        let places = Places::new(8, 2);
        let take = |number| places.take_fairly(PeerId::from_bytes([number; 32]), false);
        let mut taken: Vec<Place> = Vec::new();
        for number in 0..3 {
            taken.extend([take(number), take(number)].into_iter().flatten());
            assert_eq!(taken.len(), 2 * (usize::from(number) + 1));
            assert!(take(number).is_none(), "it has its two");
        }
        taken.extend(take(8));
        assert!(take(8).is_none(), "the last one is for another");
        taken.extend(take(9));
        assert_eq!(taken.len(), 8);
        assert!(take(10).is_none(), "all are taken");
        taken.pop();
        assert!(take(10).is_some());
        taken.clear();
        let taken = places.taken.lock().expect("no panic");
        assert_eq!((taken.all, taken.of.len()), (0, 0));
    }
}
