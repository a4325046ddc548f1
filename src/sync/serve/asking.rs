//! How many requests of outsiders are noted: few at a time, and so many in all that decisions have
//! room beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    identity::PeerId,
    log_store::{NoteVersion, Topic},
    sync::outsiders::{PENDING_ALL_MAX, PENDING_MAX, Standing},
};

/// Requests that are being noted at once.
const ASKING_MAX: usize = 8;
/// Requests that this member notes in one go, and how often one more: knocks cost the group little.
const BURST: u32 = 32;
const PAUSE: Duration = Duration::from_millis(500);
/// A request that nobody has decided on for this long gives way to a new one, where there is no
/// room for both. Whoever still wants something asks again by itself.
const GIVES_WAY_AFTER: Duration = Duration::from_hours(24);

/// The requests that wait for a decision.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    all: usize,
    topics: BTreeMap<Topic, InTopic>,
}

#[derive(Debug)]
struct InTopic {
    count: usize,
    oldest: Oldest,
}

/// Of those in a topic the one that waits for the longest time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Oldest {
    pub(super) peer: PeerId,
    pub(super) version: NoteVersion,
    at_ms: u64,
}

/// Whether there is room for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// In the place of this one.
    InPlaceOf(Oldest),
    None,
}

impl Waiting {
    pub(super) fn count(
        &mut self,
        topic: Topic,
        peer: PeerId,
        standing: &Standing,
        version: NoteVersion,
    ) {
        self.all += 1;
        let at_ms = standing.at_ms;
        let this = Oldest {
            peer,
            version,
            at_ms,
        };
        let of_topic = self.topics.entry(topic).or_insert(InTopic {
            count: 0,
            oldest: this,
        });
        of_topic.count += 1;
        if this.at_ms < of_topic.oldest.at_ms {
            of_topic.oldest = this;
        }
    }

    pub(super) fn room(&self, topic: Topic, now_ms: u64) -> Room {
        let of_topic = self.topics.get(&topic);
        let is_full = of_topic.is_some_and(|it| it.count >= PENDING_MAX);
        if !is_full && self.all < PENDING_ALL_MAX {
            return Room::Free;
        }
        // What a clock that is ahead has noted does not wait for longer than anything else.
        let age = |it: &Oldest| Duration::from_millis(now_ms.abs_diff(it.at_ms));
        let oldest = of_topic.map(|it| it.oldest);
        match oldest.filter(|it| age(it) >= GIVES_WAY_AFTER) {
            Some(oldest) => Room::InPlaceOf(oldest),
            None => Room::None,
        }
    }
}

/// What this member notes at the moment, and has noted lately.
#[derive(Debug, Default)]
pub(super) struct Asking {
    under_way: BTreeSet<(Topic, PeerId)>,
    spent: u32,
    since: Option<Instant>,
}

impl Asking {
    /// Whether this one is to be noted now; then it is under way.
    pub(super) fn begins(&mut self, topic: Topic, peer: PeerId, now: Instant) -> bool {
        let room = self.under_way.len() < ASKING_MAX;
        let begins = room && !self.under_way.contains(&(topic, peer)) && self.spend(now);
        if begins {
            self.under_way.insert((topic, peer));
        }
        begins
    }

    pub(super) fn ended(&mut self, topic: Topic, peer: PeerId) {
        self.under_way.remove(&(topic, peer));
    }

    fn spend(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let back = now.duration_since(since).as_millis() / PAUSE.as_millis();
        if back > 0 {
            let back = u32::try_from(back).unwrap_or(u32::MAX);
            self.spent = self.spent.saturating_sub(back);
            self.since = Some(now);
        }
        let spends = self.spent < BURST;
        self.spent += u32::from(spends);
        spends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::PeerAddr,
        log_store::Line,
        sync::outsiders::{Decision, Rights},
    };

    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    fn peer(at: usize) -> PeerId {
        let mut id = [9; 32];
        id[..8].copy_from_slice(&at.to_be_bytes());
        PeerId::from_bytes(id)
    }

    fn version(index: u64) -> NoteVersion {
        NoteVersion { index, offset: 0 }
    }

    fn standing(at_ms: u64) -> Standing {
        Standing {
            decision: Decision::Pending,
            wants: Rights::ALL,
            line: Line::V07,
            addr: PeerAddr::new(peer(0), []),
            at_ms,
        }
    }

    #[test]
    fn knocks_cost_little() {
        let (mut asking, topic) = (Asking::default(), Topic::named("cats"));
        let now = Instant::now();
        assert!(asking.begins(topic, peer(1), now));
        assert!(!asking.begins(topic, peer(1), now), "it is being noted");
        asking.ended(topic, peer(1));
        let mut begun = 0;
        for at in 2..200 {
            begun += u32::from(asking.begins(topic, peer(at), now));
            asking.ended(topic, peer(at));
        }
        assert_eq!(begun, BURST - 1);
        assert!(asking.begins(topic, peer(200), now + PAUSE));
        assert!(!asking.begins(topic, peer(201), now + PAUSE));
        let later = now + PAUSE * 1_000;
        let at_once = (300..400).filter(|at| asking.begins(topic, peer(*at), later));
        assert_eq!(at_once.count(), ASKING_MAX - 1, "one is under way");
    }

    #[test]
    fn a_topic_holds_so_many_and_the_oldest_gives_way_after_a_day() {
        let (full, other) = (Topic::named("full"), Topic::named("other"));
        let mut waiting = Waiting::default();
        for at in 0..PENDING_MAX {
            assert_eq!(waiting.room(full, DAY_MS), Room::Free);
            let at_ms = 1_000 + (at as u64 + 7) % 256;
            waiting.count(full, peer(at), &standing(at_ms), version(at as u64));
        }
        assert_eq!(waiting.room(full, DAY_MS + 999), Room::None);
        assert_eq!(waiting.room(other, DAY_MS), Room::Free);
        let Room::InPlaceOf(oldest) = waiting.room(full, DAY_MS + 1_000) else {
            panic!("the oldest gives way");
        };
        assert_eq!((oldest.peer, oldest.version), (peer(249), version(249)));
    }

    #[test]
    fn all_topics_together_leave_room_for_decisions() {
        let mut waiting = Waiting::default();
        for at in 0..PENDING_ALL_MAX {
            let topic = Topic::named(&format!("{}", at % 1_000));
            assert_eq!(waiting.room(topic, 0), Room::Free);
            waiting.count(topic, peer(at), &standing(0), version(at as u64));
        }
        assert_eq!(waiting.room(Topic::named("0"), 0), Room::None);
        assert_eq!(waiting.room(Topic::named("new"), 2 * DAY_MS), Room::None);
    }
}
