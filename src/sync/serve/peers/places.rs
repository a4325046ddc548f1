//! Places that sessions take and give back: one serves a peer in a topic, and a peer has only so
//! many.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::{
    super::pacer::{Grant, Pacer},
    Peers, Rank,
};
use crate::{
    identity::PeerId,
    log_store::{Line, Topic},
};

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

/// A chunk that a session may send to a peer. Until it says what has become of it, no other is
/// under way; where it says nothing, it is given back when dropped.
pub(in crate::sync::serve) struct Granted {
    peers: Arc<Peers>,
    peer: PeerId,
    line: Line,
    grant: Grant,
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

impl Granted {
    pub(super) fn new(peers: &Arc<Peers>, (peer, line): (PeerId, Line), grant: Grant) -> Self {
        Self {
            peers: Arc::clone(peers),
            peer,
            line,
            grant,
        }
    }

    /// It was written and read; when to look what has become of it.
    pub(in crate::sync::serve) fn sent(self) -> Duration {
        self.sent_at(Instant::now())
    }

    pub(super) fn sent_at(self, now: Instant) -> Duration {
        self.tell(|pace| pace.sent(self.grant, now))
            .unwrap_or_default()
    }

    /// The session ended before it was written and read.
    pub(in crate::sync::serve) fn failed(self) {
        self.tell(|pace| pace.failed(self.grant));
    }

    fn tell<R>(&self, tell: impl FnOnce(&mut Pacer<Topic>) -> R) -> Option<R> {
        self.peers.pace(self.peer, self.line, tell)
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        // Of one that was sent, or has failed, this says nothing.
        self.tell(|pace| pace.unsent(self.grant));
    }
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Granted").field(&self.grant).finish()
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
