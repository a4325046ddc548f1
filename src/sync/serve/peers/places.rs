//! Places that sessions take and give back: one serves a peer in a topic, and a peer has only so
//! many.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use tokio::sync::Mutex;

use super::{Peers, Rank};
use crate::{identity::PeerId, log_store::Topic};

/// The place of the one session that serves a peer in a topic; given back when dropped.
pub(in crate::sync::serve) struct Slot {
    peers: Arc<Peers>,
    peer: PeerId,
    topic: Topic,
    number: u64,
}

/// One of the sessions that a peer may have; given back when dropped.
pub(in crate::sync::serve) struct Counted {
    peers: Arc<Peers>,
    peer: PeerId,
}

impl Peers {
    /// Takes the place of the session that serves, if it is free.
    pub(in crate::sync::serve) fn take(
        self: &Arc<Self>,
        peer: PeerId,
        topic: Topic,
    ) -> Option<Slot> {
        let number = self.slots.fetch_add(1, Relaxed);
        let taken = self.with(peer, topic, |it| *it.taken.get_or_insert(number) == number)?;
        taken.then(|| Slot {
            peers: Arc::clone(self),
            peer,
            topic,
            number,
        })
    }

    pub(in crate::sync::serve) fn is_taken(&self, peer: PeerId, topic: Topic) -> bool {
        self.look(peer, topic, |it| it.taken.is_some())
            .unwrap_or(false)
    }

    /// Whose turn it is to claim this peer.
    pub(in crate::sync::serve) fn claiming(&self, peer: PeerId) -> Arc<Mutex<()>> {
        let table = self.locked();
        let entry = table.get(&peer);
        entry.map_or_else(Arc::default, |it| Arc::clone(&it.claiming))
    }

    /// Counts a session of this peer, unless it has as many as it may.
    pub(in crate::sync::serve) fn count(
        self: &Arc<Self>,
        peer: PeerId,
        max: usize,
    ) -> Option<Counted> {
        let mut table = self.locked();
        let entry = self.entry(&mut table, peer, Rank::Met)?;
        if entry.sessions >= max {
            return None;
        }
        entry.sessions += 1;
        entry.touched = Instant::now();
        self.changed.notify_one();
        Some(Counted {
            peers: Arc::clone(self),
            peer,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.peers.look(self.peer, self.topic, |it| {
            if it.taken != Some(self.number) {
                // The topic was closed and opened again.
                return;
            }
            it.taken = None;
            it.told.live = false;
            // Nobody but who waits for this very place: its own keeper has its own pause.
            it.moved.notify_waiters();
        });
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.peers.changed.notify_one();
        if let Some(peer) = self.peers.locked().get_mut(&self.peer) {
            peer.sessions -= 1;
            peer.touched = Instant::now();
        }
    }
}
