//! What has become of peers: who was asked for, who has everything, and what was exchanged.

use std::time::SystemTime;

use super::{Peer, Peers, Rank};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::Topic,
};

impl Peers {
    /// Whom the program asked for.
    pub(in crate::sync::serve) fn wanted(&self) -> Vec<PeerAddr> {
        let table = self.locked();
        let wanted = table.values().filter(|it| it.came == Rank::Wanted);
        wanted.map(|it| it.addr.clone()).collect()
    }

    /// The program does not ask for a peer any more.
    pub(in crate::sync::serve) fn unwanted(&self, peer: PeerId) {
        if let Some(peer) = self.locked().get_mut(&peer) {
            peer.came = peer.came.min(Rank::Met);
        }
    }

    /// A peer has everything, and is told what is new. True if that was not so before.
    pub(in crate::sync::serve) fn went_live(&self, peer: PeerId, topic: Topic) -> bool {
        let fresh = self.with(peer, topic, |it| {
            !std::mem::replace(&mut it.told.live, true)
        });
        fresh == Some(true) && self.caught_up(peer, topic)
    }

    /// A peer has everything, and that is all. True if it is known here.
    pub(in crate::sync::serve) fn caught_up(&self, peer: PeerId, topic: Topic) -> bool {
        let noted = self.with(peer, topic, |it| {
            it.completed += 1;
            it.told.last_success = Some(SystemTime::now());
            it.told.last_error = None;
        });
        noted.is_some()
    }

    /// How many operations went to a peer, and came from it and were new.
    pub(in crate::sync::serve) fn exchanged(&self, peer: PeerId, topic: Topic) -> u64 {
        let exchanged = self.look(peer, topic, |it| it.told.sent + it.told.appended);
        exchanged.unwrap_or(0)
    }

    /// An operation came from a peer that may not push.
    pub(in crate::sync::serve) fn turned_away(&self, peer: PeerId, topic: Topic, why: &str) {
        self.with(peer, topic, |it| {
            it.told.received += 1;
            it.told.refused += 1;
            it.told.last_error = Some(why.to_owned());
        });
    }

    /// Whether a session serves it that has nothing left to send.
    pub(in crate::sync::serve) fn is_live(&self, peer: PeerId, topic: Topic) -> bool {
        self.look(peer, topic, |it| it.told.live).unwrap_or(false)
    }

    /// Whether the program asked for this peer, or a session with it went well.
    pub(in crate::sync::serve) fn is_known(&self, peer: PeerId) -> bool {
        let table = self.locked();
        table.get(&peer).is_some_and(|it| it.rank() >= Rank::Served)
    }

    /// Whether a session serves this peer, in whatever topic.
    pub(in crate::sync::serve) fn is_busy(&self, peer: PeerId) -> bool {
        let table = self.locked();
        table.get(&peer).is_some_and(Peer::is_busy)
    }

    /// Whether a task dials this peer, in whatever topic.
    pub(in crate::sync::serve) fn is_looked_for(&self, peer: PeerId) -> bool {
        let table = self.locked();
        let entry = table.get(&peer);
        entry.is_some_and(|it| it.topics.values().any(|it| it.kept))
    }

    /// Whether a peer that did not answer for long is no longer looked for in some topic.
    pub(in crate::sync::serve) fn is_given_up(&self, peer: PeerId) -> bool {
        let table = self.locked();
        let entry = table.get(&peer);
        entry.is_some_and(|it| it.topics.values().any(|it| it.given_up.is_some()))
    }

    /// Whether the program has asked for it, so that it is never given up.
    pub(in crate::sync::serve) fn is_wanted(&self, peer: PeerId) -> bool {
        let table = self.locked();
        table.get(&peer).is_some_and(|it| it.came == Rank::Wanted)
    }
}
