//! Which member is asked next, and when. No I/O, no clock.

use std::time::Duration;

use crate::sync::{LogTicket, MemberAddr};

/// The members that a client knows, in turn.
///
/// # Invariants
/// - Nobody is dropped because of failures: after each round of all members there is a pause, which
///   doubles up to a limit.
#[derive(Debug)]
pub(crate) struct Rotation {
    members: Vec<MemberAddr>,
    at: usize,
    /// Whether nobody is asked at the moment.
    resting: bool,
    /// Failures in a row, without progress.
    failures: u32,
    pause_min: Duration,
    pause_max: Duration,
}

impl Rotation {
    pub(crate) fn new(members: Vec<MemberAddr>, pause_min: Duration, pause_max: Duration) -> Self {
        Self {
            members,
            at: 0,
            resting: true,
            failures: 0,
            pause_min,
            pause_max,
        }
    }

    /// Begins somewhere else: not every client asks the first member.
    pub(crate) fn begin_at(&mut self, at: usize) {
        self.at = at % self.members.len().max(1);
    }

    /// Whom to ask now; `None` if nobody is known. That one is asked until it fails.
    pub(crate) fn turn(&mut self) -> Option<&MemberAddr> {
        let member = self.members.get(self.at);
        self.resting = member.is_none();
        member
    }

    /// The current member has given something.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// The current member has failed: the next one's turn, after this pause. `jitter` is random, 0
    /// to 1: between half the pause and all of it.
    pub(crate) fn failed(&mut self, jitter: f64) -> Duration {
        self.resting = true;
        let count = self.members.len().max(1);
        self.at = (self.at + 1) % count;
        self.failures = self.failures.saturating_add(1);
        let rounds = self.failures / count as u32;
        if !self.failures.is_multiple_of(count as u32) {
            return Duration::ZERO;
        }
        let doubled = self
            .pause_min
            .saturating_mul(1 << rounds.saturating_sub(1).min(20));
        let pause = doubled.min(self.pause_max);
        pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// One more address: of a member that is known, or of a new one, which is asked next.
    pub(crate) fn add(&mut self, addr: MemberAddr) {
        let found = self.members.iter_mut().find(|it| it.peer() == addr.peer());
        if let Some(known) = found {
            known.merge(addr);
        } else if self.members.len() < LogTicket::MEMBERS_MAX {
            let next = (self.at + usize::from(!self.resting)).min(self.members.len());
            self.members.insert(next, addr);
        }
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
        assert_eq!(it.turn(), Some(&member(0)));
        it.progressed();
        assert_eq!(it.failed(1.0), Duration::ZERO);
        assert_eq!(it.turn(), Some(&member(1)));
    }

    #[test]
    fn jitter_takes_up_to_half_of_the_pause() {
        assert_eq!(rotation(1).failed(0.0), Duration::from_millis(500));
        assert_eq!(rotation(1).failed(0.5), Duration::from_millis(750));
    }

    #[test]
    fn a_new_member_is_asked_next_and_a_known_one_gains_an_address() {
        let mut it = rotation(2);
        assert_eq!(it.turn(), Some(&member(0)));
        it.failed(1.0);
        assert_eq!(it.turn(), Some(&member(1)));
        it.failed(1.0);
        it.add(member(9));
        assert_eq!(it.turn(), Some(&member(9)), "in the pause");
        it.add(member(8));
        assert_eq!(it.turn(), Some(&member(9)), "it is being dialled");
        it.failed(1.0);
        assert_eq!(it.turn(), Some(&member(8)), "and then the newest one");
        it.members.retain(|it| *it != member(8));
        let addr = member(0)
            .with("quic", "192.0.2.1:1")
            .with("http", "http://a");
        it.add(addr.clone());
        assert_eq!(it.members.len(), 3);
        assert!(it.members.contains(&addr));
        for at in 0..200 {
            it.add(member(at));
        }
        assert_eq!(it.members.len(), LogTicket::MEMBERS_MAX);
    }

    #[test]
    fn nobody_is_no_panic() {
        let mut it = rotation(0);
        assert_eq!(it.turn(), None);
        assert_eq!(it.failed(1.0), Duration::from_secs(1));
        it.add(member(1));
        assert_eq!(it.turn(), Some(&member(1)));
    }
}
