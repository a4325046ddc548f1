//! Who has how many of the sessions that there may be. No I/O, no clock.
//!
//! As long as there is room, a peer may have as many as one may. The last eighth of the places is
//! for peers that have less than an equal share, half of it for those that are known: that the
//! program asked for, or that were served well. When all are taken, whoever has most gives its
//! oldest session up to one that has fewer, and a stranger its only one to a peer that is known.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::identity::PeerId;

/// Sessions that were told to end and have not yet, beside all others: while there are so many,
/// no further one has to.
const LEAVING_MAX: usize = 32;

/// The places of sessions.
///
/// # Invariants
/// - Never more than `max` are taken, and [`LEAVING_MAX`] by sessions that were told to end.
/// - No session of a peer has to end for one of a peer that would then have more.
pub(super) struct Seats {
    max: usize,
    of_peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Without those that leave.
    all: usize,
    leaving: usize,
    next: u64,
    of: BTreeMap<PeerId, Of>,
}

/// One peer's.
#[derive(Default)]
struct Of {
    known: bool,
    /// In the order in which they began.
    sessions: BTreeMap<u64, CancellationToken>,
}

/// The place of one session; given back when dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: PeerId,
    number: u64,
}

impl Seats {
    pub(super) fn new(max: usize, of_peer_max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            of_peer_max,
            taken: Mutex::default(),
        })
    }

    /// A place for one more session, if there is one for this peer. `over` ends the session when
    /// it has to make room.
    pub(super) fn take(
        self: &Arc<Self>,
        peer: PeerId,
        known: bool,
        over: CancellationToken,
    ) -> Option<Seat> {
        let mut taken = self.locked();
        let has = taken.of.get(&peer).map_or(0, |it| it.sessions.len());
        if has >= self.of_peer_max {
            return None;
        }
        let (free, last) = (self.max - taken.all, self.max / 8);
        if free <= last {
            let peers = taken.of.len() + usize::from(has == 0);
            if has >= (self.max / peers).max(1) {
                return None;
            }
            let kept = if known { 0 } else { last / 2 };
            if free <= kept {
                taken.make_room(has, known)?;
            }
        }
        let number = taken.next;
        taken.next += 1;
        taken.all += 1;
        let of = taken.of.entry(peer).or_default();
        of.known = known;
        of.sessions.insert(number, over);
        Some(Seat {
            seats: Arc::clone(self),
            peer,
            number,
        })
    }

    /// Sessions under way.
    pub(super) fn count(&self) -> usize {
        let taken = self.locked();
        taken.all + taken.leaving
    }

    fn locked(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Has a session end, for a peer that has so many. None if it is nobody's turn.
    fn make_room(&mut self, has: usize, known: bool) -> Option<()> {
        if self.leaving == LEAVING_MAX {
            return None;
        }
        let gives = |of: &Of| {
            let fewer = of.sessions.len() > has + 1;
            fewer || (known && !of.known && of.sessions.len() > has)
        };
        let of = self.of.iter().filter(|(_, of)| gives(of));
        // Whoever has most; of those that have as many a stranger.
        let most = of.max_by_key(|(_, of)| (of.sessions.len(), !of.known))?.0;
        let most = *most;
        let of = self.of.get_mut(&most)?;
        let (_, over) = of.sessions.pop_first()?;
        if of.sessions.is_empty() {
            self.of.remove(&most);
        }
        over.cancel();
        self.all -= 1;
        self.leaving += 1;
        Some(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.locked();
        let of = taken.of.get_mut(&self.peer);
        let sat = of.is_some_and(|it| it.sessions.remove(&self.number).is_some());
        if !sat {
            taken.leaving -= 1;
            return;
        }
        taken.all -= 1;
        taken.of.retain(|_, it| !it.sessions.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: usize) -> PeerId {
        PeerId::from_bytes([number as u8; 32])
    }

    struct Hall {
        seats: Arc<Seats>,
        sitting: Vec<(usize, Seat, CancellationToken)>,
    }

    impl Hall {
        fn of(max: usize, of_peer_max: usize) -> Self {
            let seats = Seats::new(max, of_peer_max);
            let sitting = Vec::new();
            Self { seats, sitting }
        }

        fn comes(&mut self, number: usize, known: bool) -> bool {
            let over = CancellationToken::new();
            let seat = self.seats.take(peer(number), known, over.clone());
            let let_in = seat.is_some();
            self.sitting.extend(seat.map(|seat| (number, seat, over)));
            let_in
        }

        /// As many as it gets.
        fn fills(&mut self, number: usize) -> usize {
            (0..1_000).take_while(|_| self.comes(number, false)).count()
        }

        /// Whoever was told to leaves.
        fn clear(&mut self) {
            self.sitting.retain(|(_, _, over)| !over.is_cancelled());
        }

        fn has(&self, number: usize) -> usize {
            let of = self.sitting.iter();
            of.filter(|it| it.0 == number && !it.2.is_cancelled())
                .count()
        }
    }

    #[test]
    fn eight_greedy_peers_leave_room_for_others() {
        let mut hall = Hall::of(256, 32);
        for greedy in 0..8 {
            assert!(hall.fills(greedy) >= 16, "{greedy}");
            hall.clear();
        }
        let sitting: usize = (0..8).map(|it| hall.has(it)).sum();
        assert_eq!(
            sitting,
            224 + 16,
            "all but what is kept for those that are known"
        );
        for newcomer in 8..72 {
            assert!(hall.comes(newcomer, false), "{newcomer}");
            hall.clear();
        }
        assert!((0..8).all(|it| hall.has(it) < 32));
        assert!(hall.seats.count() <= 256);
    }

    #[test]
    fn who_has_most_gives_its_oldest_to_who_has_less() {
        let mut hall = Hall::of(4, 4);
        assert_eq!(hall.fills(1), 4);
        assert!(hall.comes(2, false));
        assert!(hall.sitting[0].2.is_cancelled(), "the oldest");
        assert!(hall.comes(2, false));
        assert!(!hall.comes(2, false), "an equal share is enough");
        assert_eq!((hall.has(1), hall.has(2)), (2, 2));
        assert_eq!(hall.seats.count(), 6, "two are about to leave");
        hall.clear();
        assert_eq!(hall.seats.count(), 4);
        assert!(!hall.comes(1, false), "nor may it take them back");
    }

    #[test]
    fn strangers_with_one_session_each_give_way_to_who_is_known() {
        let mut hall = Hall::of(16, 4);
        for stranger in 1..=16 {
            assert_eq!(hall.comes(stranger, false), stranger < 16, "{stranger}");
        }
        assert!(hall.comes(100, true), "a place was kept");
        assert!(!hall.comes(17, false));
        assert!(hall.comes(101, true), "a stranger leaves");
        assert!(!hall.comes(101, true), "not two for one");
        hall.clear();
        assert_eq!((hall.has(100), hall.has(101)), (1, 1));
        for known in 102..130 {
            hall.comes(known, true);
            hall.clear();
        }
        assert!(
            !hall.comes(200, true),
            "those that are known do not give way"
        );
    }

    #[test]
    fn only_so_many_are_told_to_leave_at_once() {
        let mut hall = Hall::of(128, 128);
        hall.fills(0);
        let let_in = (1..=100).filter(|it| hall.comes(*it, false)).count();
        assert!(let_in < 100);
        assert!(hall.seats.count() <= 128 + LEAVING_MAX);
        hall.clear();
        assert!(hall.comes(101, false), "there is room to leave again");
        hall.sitting.clear();
        assert_eq!(hall.seats.count(), 0);
        assert!(hall.seats.locked().of.is_empty());
    }
}
