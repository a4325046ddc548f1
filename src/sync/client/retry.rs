//! Which member is asked next, and when. No I/O, no clock.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    identity::PeerId,
    sync::{LogTicket, MemberAddr},
};

/// Members that have served us and that the newest list does not name: so many are kept, until they
/// fail.
const DOUBTED_MAX: usize = 32;

/// The members that a client knows, in turn.
///
/// # Invariants
/// - What the ticket and the program have named stays, and each of its addresses, whatever members
///   say: at most [`LogTicket::MEMBERS_MAX`].
/// - What members tell is a list of all of them, of which the newest counts. A member that it does
///   not name any more is forgotten: at once if it has never served us, else when it fails. So a
///   list that is a lie costs time, and the next one that is none puts it right.
/// - After each round of all members there is a pause, which doubles up to a limit. Failures alone
///   make nobody be forgotten.
#[derive(Debug)]
pub(crate) struct Rotation {
    members: Vec<Known>,
    at: usize,
    /// Whether nobody is asked at the moment.
    resting: bool,
    /// Whether the one behind is new, and so the next.
    fresh: bool,
    /// How many were asked in this round. What a member gives begins another one, what it says does
    /// not: one that gives nothing, and tells of ever other members, would have us ask for ever.
    asked: usize,
    /// Pauses in a row, without progress.
    pauses: u32,
    pause_min: Duration,
    pause_max: Duration,
}

#[derive(Debug)]
struct Known {
    peer: PeerId,
    /// As the ticket and the program have named it.
    given: Option<MemberAddr>,
    /// As members have told last.
    told: Option<MemberAddr>,
    /// Whether the newest list names it.
    listed: bool,
    /// Whether it has given something.
    proven: bool,
}

impl Known {
    fn given(addr: MemberAddr) -> Self {
        Self {
            peer: addr.peer(),
            given: Some(addr),
            told: None,
            listed: false,
            proven: false,
        }
    }

    fn told(addr: MemberAddr) -> Self {
        Self {
            peer: addr.peer(),
            given: None,
            told: Some(addr),
            listed: true,
            proven: false,
        }
    }

    /// Where it is: what was told gets the room that is left.
    fn addr(&self) -> Option<MemberAddr> {
        let Some(given) = &self.given else {
            return self.told.clone();
        };
        let mut addr = self.told.clone().unwrap_or_else(|| given.clone());
        addr.merge(given.clone());
        Some(addr)
    }
}

impl Rotation {
    pub(crate) fn new(members: Vec<MemberAddr>, pause_min: Duration, pause_max: Duration) -> Self {
        Self {
            members: members.into_iter().map(Known::given).collect(),
            at: 0,
            resting: true,
            fresh: false,
            asked: 0,
            pauses: 0,
            pause_min,
            pause_max,
        }
    }

    /// Begins somewhere else: not every client asks the first member.
    pub(crate) fn begin_at(&mut self, at: usize) {
        self.at = at % self.members.len().max(1);
    }

    /// Whom to ask now; `None` if nobody is known. That one is asked until it fails.
    pub(crate) fn turn(&mut self) -> Option<MemberAddr> {
        let member = self.members.get(self.at).and_then(Known::addr);
        self.resting = member.is_none();
        member
    }

    /// The current member has given something new: a round begins.
    pub(crate) fn progressed(&mut self) {
        self.asked = 0;
        self.answered();
    }

    /// The current member serves, be it that there is nothing new.
    pub(crate) fn answered(&mut self) {
        self.pauses = 0;
        if let Some(current) = self.members.get_mut(self.at) {
            current.proven = true;
        }
    }

    /// The current member has failed: the next one's turn, after this pause. `jitter` is random, 0
    /// to 1: between half the pause and all of it.
    pub(crate) fn failed(&mut self, jitter: f64) -> Duration {
        self.resting = true;
        self.asked += 1;
        let left = |it: &Known| it.given.is_none() && !it.listed;
        let forgotten = self.members.get(self.at).is_some_and(left);
        if forgotten {
            self.members.remove(self.at);
        }
        let count = self.members.len().max(1);
        let over = self.asked >= count;
        if over {
            self.asked = 0;
        }
        let next = self.at + usize::from(!forgotten);
        self.at = match std::mem::take(&mut self.fresh) {
            true => next % count,
            false => self.next_of_round(next),
        };
        if !over {
            return Duration::ZERO;
        }
        let doubled = self.pause_min.saturating_mul(1 << self.pauses.min(20));
        self.pauses = self.pauses.saturating_add(1);
        let pause = doubled.min(self.pause_max);
        pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// The next one from here on: in each round first all that the newest list names.
    fn next_of_round(&self, from: usize) -> usize {
        let count = self.members.len().max(1);
        let listed = self.members.iter().filter(|it| it.listed).count();
        let wanted = self.asked < listed;
        let mut order = (0..count).map(|it| (from + it) % count);
        let is_wanted = |it: &usize| self.members.get(*it).is_some_and(|it| it.listed == wanted);
        order.find(is_wanted).unwrap_or(from % count)
    }

    /// One more address: of a member that is known, or of a new one, which is asked next.
    pub(crate) fn add(&mut self, addr: MemberAddr) {
        let full = self.given().count() >= LogTicket::MEMBERS_MAX;
        let found = self.members.iter_mut().find(|it| it.peer == addr.peer());
        match found.map(|it| &mut it.given) {
            Some(Some(given)) => given.merge(addr),
            _ if full => {}
            Some(given) => *given = Some(addr),
            None => {
                let next = (self.at + usize::from(!self.resting)).min(self.members.len());
                self.members.insert(next, Known::given(addr));
                self.fresh = !self.resting;
            }
        }
    }

    fn given(&self) -> impl Iterator<Item = &MemberAddr> {
        self.members.iter().filter_map(|it| it.given.as_ref())
    }

    /// Members that an earlier run has known: they stay until a list leaves them out and they fail.
    pub(crate) fn remember(&mut self, members: &[MemberAddr]) {
        self.learn(members.to_vec());
        self.members.iter_mut().for_each(|it| it.proven = true);
    }

    /// A member has said who the members are. False if that is no news.
    pub(crate) fn learn(&mut self, list: Vec<MemberAddr>) -> bool {
        let before = self.listed();
        let list = list.into_iter().take(LogTicket::MEMBERS_MAX);
        let mut list: BTreeMap<PeerId, MemberAddr> = list.map(|it| (it.peer(), it)).collect();
        for known in &mut self.members {
            let told = list.remove(&known.peer);
            known.listed = told.is_some();
            if known.listed || known.given.is_some() {
                known.told = told;
            }
        }
        let (at, mut before_at, mut nth, mut doubted) = (self.at, 0, 0, 0);
        let asked = !self.resting;
        self.members.retain(|it| {
            let room = it.proven && doubted < DOUBTED_MAX;
            let named = it.given.is_some() || it.listed;
            let stays = named || room || (asked && nth == at);
            doubted += usize::from(stays && !named);
            before_at += usize::from(stays && nth < at);
            nth += 1;
            stays
        });
        self.at = before_at % self.members.len().max(1);
        self.members.extend(list.into_values().map(Known::told));
        self.listed() != before
    }

    fn listed(&self) -> Vec<(PeerId, Option<MemberAddr>)> {
        let listed = self.members.iter().filter(|it| it.listed);
        let mut listed: Vec<_> = listed.map(|it| (it.peer, it.told.clone())).collect();
        listed.sort_by_key(|it| it.0);
        listed
    }

    /// Whom a ticket should name: those of the newest list, and what was given.
    pub(crate) fn named(&self) -> Vec<MemberAddr> {
        let of = |listed: bool| {
            let members = self.members.iter().filter(move |it| it.listed == listed);
            members.filter(|it| it.listed || it.given.is_some())
        };
        let members = of(true).chain(of(false));
        members.filter_map(Known::addr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{PeerAddr, PeerId};

    fn member(at: u8) -> MemberAddr {
        PeerAddr::new(PeerId::from_bytes([at; 32]), []).into()
    }

    fn rotation(count: u8) -> Rotation {
        let members = (0..count).map(member).collect();
        Rotation::new(members, Duration::from_secs(1), Duration::from_secs(8))
    }

    #[test]
    fn the_next_member_is_asked_at_once_and_a_round_of_failures_pauses_longer_each_time() {
        let mut it = rotation(3);
        let pauses: Vec<u64> = (0..18).map(|_| it.failed(1.0).as_secs()).collect();
        let rounds = [0, 0, 1, 0, 0, 2, 0, 0, 4, 0, 0, 8, 0, 0, 8, 0, 0, 8];
        assert_eq!(pauses, rounds);
        assert_eq!(it.turn(), Some(member(0)));
        it.progressed();
        assert_eq!(it.failed(1.0), Duration::ZERO);
        assert_eq!(it.turn(), Some(member(1)));
    }

    #[test]
    fn jitter_takes_up_to_half_of_the_pause() {
        assert_eq!(rotation(1).failed(0.0), Duration::from_millis(500));
        assert_eq!(rotation(1).failed(0.5), Duration::from_millis(750));
    }

    #[test]
    fn a_new_member_is_asked_next_and_a_known_one_gains_an_address() {
        let mut it = rotation(2);
        assert_eq!(it.turn(), Some(member(0)));
        it.failed(1.0);
        assert_eq!(it.turn(), Some(member(1)));
        it.failed(1.0);
        it.add(member(9));
        assert_eq!(it.turn(), Some(member(9)), "in the pause");
        it.add(member(8));
        assert_eq!(it.turn(), Some(member(9)), "it is being dialled");
        it.failed(1.0);
        assert_eq!(it.turn(), Some(member(8)), "and then the newest one");
        it.members.retain(|it| it.peer != member(8).peer());
        let addr = member(0)
            .with("quic", "192.0.2.1:1")
            .with("http", "http://a");
        it.add(addr.clone());
        assert_eq!(it.members.len(), 3);
        assert!(it.members.iter().any(|it| it.addr() == Some(addr.clone())));
        for at in 0..200 {
            it.add(member(at));
        }
        assert_eq!(it.members.len(), LogTicket::MEMBERS_MAX);
    }

    fn at(of: &Rotation) -> Vec<u8> {
        let first = |it: &Known| it.peer.as_bytes()[0];
        of.members.iter().map(first).collect()
    }

    #[test]
    fn members_that_come_are_learned_and_those_that_left_are_forgotten() {
        let mut it = rotation(2);
        assert_eq!(it.turn(), Some(member(0)));
        it.progressed();
        assert!(it.learn(vec![member(0), member(1), member(5), member(6)]));
        assert!(!it.learn(vec![member(6), member(5), member(1), member(0)]));
        assert_eq!(at(&it), [0, 1, 5, 6]);
        it.failed(1.0);
        it.failed(1.0);
        assert_eq!(it.turn(), Some(member(5)));
        it.progressed();
        // The ticket's have left the group, 6 too, and 7 is new.
        assert!(it.learn(vec![member(5), member(7)]));
        assert_eq!((at(&it), it.turn()), (vec![0, 1, 5, 7], Some(member(5))));
        assert_eq!(it.named(), [5, 7, 0, 1].map(member));
        it.failed(1.0);
        assert_eq!(it.turn(), Some(member(7)), "before those that left");
        // Now 5 has left: it has served us, so it is forgotten when it fails.
        it.progressed();
        it.learn(vec![member(7)]);
        assert_eq!(at(&it), [0, 1, 5, 7]);
        for _ in 0..8 {
            it.turn();
            it.failed(1.0);
        }
        assert_eq!(at(&it), [0, 1, 7]);
        assert_eq!(it.named(), [7, 0, 1].map(member));
    }

    #[test]
    fn in_each_round_everybody_is_asked_and_the_newest_list_first() {
        let mut it = rotation(3);
        it.learn(vec![member(1), member(8), member(9)]);
        it.failed(1.0);
        while it.asked != 0 {
            it.failed(1.0);
        }
        for _ in 0..3 {
            let mut asked = Vec::new();
            for _ in 0..5 {
                asked.push(it.turn().expect("somebody is known").peer().as_bytes()[0]);
                it.failed(1.0);
            }
            let (first, then) = asked.split_at_mut(3);
            first.sort_unstable();
            then.sort_unstable();
            assert_eq!((&*first, &*then), (&[1, 8, 9][..], &[0, 2][..]));
        }
    }

    #[test]
    fn who_gives_nothing_keeps_nobody_from_their_turn_and_from_no_pause() {
        let mut it = rotation(1);
        let (mut asked, mut pauses) = (Vec::new(), 0);
        for time in 0..120 {
            asked.push(it.turn().expect("somebody is known").peer());
            // Ever other members, which all answer and have nothing.
            let others = [100 + time, 160 + time % 7];
            let count = 1 + usize::from(time % 2);
            it.learn(others[..count].iter().copied().map(member).collect());
            it.answered();
            pauses += usize::from(!it.failed(1.0).is_zero());
        }
        let honest = asked.iter().filter(|it| **it == member(0).peer()).count();
        // A round has those of the list, the honest one, and the last 32 that answered.
        assert!(honest >= 3, "{honest} times of 120");
        assert!(pauses >= 3, "{pauses} pauses");
    }

    #[test]
    fn a_liar_neither_fills_nor_empties_what_is_known() {
        let given = member(0)
            .with("quic", "192.0.2.1:1")
            .with("http", "http://a");
        let mut it = Rotation::new(vec![given.clone()], Duration::ZERO, Duration::ZERO);
        it.turn();
        it.learn((0..60).map(member).collect());
        for _ in 0..60 {
            it.failed(1.0);
            it.turn();
            it.progressed();
        }
        // All of them have served us. Now lists that name others, and other addresses.
        let many = |from: u8| {
            let addrs = (0..16).map(|port| ([203, 0, 113, from], port + 1).into());
            let liar = PeerAddr::new(PeerId::from_bytes([0; 32]), addrs);
            let others = (0..80).map(|at| member(from.wrapping_add(at)));
            std::iter::once(MemberAddr::from(liar))
                .chain(others)
                .collect()
        };
        for from in [100, 101, 170] {
            it.learn(many(from));
            let known = it.members.len();
            assert!(
                known <= 1 + LogTicket::MEMBERS_MAX + DOUBTED_MAX + 1,
                "{known}"
            );
            assert!((1..20).all(|honest| at(&it).contains(&honest)), "they stay");
            let addr = it.members[0].addr().expect("it has one");
            assert_eq!(addr.addrs("quic").len(), PeerAddr::ADDRS_MAX);
            assert!(addr.addrs("quic").contains(&"192.0.2.1:1".to_owned()));
            assert_eq!(addr.addrs("http"), ["http://a"]);
        }
        it.learn(vec![member(1)]);
        assert_eq!(
            it.members[0].addr(),
            Some(given),
            "and nothing of it is left"
        );
        it.learn(Vec::new());
        assert!(at(&it).contains(&0) && it.turn().is_some());
    }

    #[test]
    fn what_an_earlier_run_has_learned_stays_until_it_is_left_out_and_fails() {
        let mut it = rotation(1);
        it.remember(&[member(4), member(5)]);
        assert_eq!(at(&it), [0, 4, 5]);
        assert_eq!(it.named(), [4, 5, 0].map(member));
        it.turn();
        it.learn(vec![member(5), member(6)]);
        assert_eq!(at(&it), [0, 4, 5, 6]);
        for _ in 0..8 {
            it.failed(1.0);
        }
        assert_eq!(at(&it), [0, 5, 6]);
    }

    #[test]
    fn nobody_is_no_panic() {
        let mut it = rotation(0);
        assert_eq!(it.turn(), None);
        assert_eq!(it.failed(1.0), Duration::from_secs(1));
        it.add(member(1));
        assert_eq!(it.turn(), Some(member(1)));
    }
}
