//! What one member knows beside the logs and the group does not: where an operation came in, and
//! which sessions with outsiders begin and end. The door says it, streams hear it.
//!
//! Nothing here is kept, and nobody waits for it: who is slow misses some of it.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, PoisonError},
};

use tokio::sync::broadcast;

use super::operation::{OperationId, Topic};
use crate::identity::PeerId;

/// Operations whose origin is remembered; the oldest are forgotten first.
const ORIGINS_MAX: usize = 8_192;
/// What may wait for one that hears.
const WAITING_MAX: usize = 256;

/// Where an operation came in at this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Handed in by this program.
    Import,
    /// Pushed by an outsider.
    Sync(PeerId),
}

/// A session with an outsider, in one topic.
#[derive(Clone, Debug)]
pub(crate) struct SessionNews {
    pub(crate) topic: Topic,
    pub(crate) peer: PeerId,
    /// None at its start.
    pub(crate) ended: Option<SessionEnd>,
}

/// What a session has come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionEnd {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Of those received, taken now.
    pub(crate) appended: u64,
    pub(crate) error: Option<String>,
}

/// Shared by all handles on one group of one node.
pub(in crate::log_store) struct Hearsay {
    sessions: broadcast::Sender<SessionNews>,
    origins: Mutex<Origins>,
}

#[derive(Default)]
struct Origins {
    known: HashMap<OperationId, Origin>,
    oldest: VecDeque<OperationId>,
}

impl Hearsay {
    /// Notes where an operation came in, before it is proposed. The first origin stays.
    pub(in crate::log_store) fn came_in(&self, id: OperationId, origin: Origin) {
        // Without anybody who hears there is nobody to ask.
        if self.sessions.receiver_count() == 0 {
            return;
        }
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if origins.known.contains_key(&id) {
            return;
        }
        if origins.oldest.len() == ORIGINS_MAX
            && let Some(oldest) = origins.oldest.pop_front()
        {
            origins.known.remove(&oldest);
        }
        origins.known.insert(id, origin);
        origins.oldest.push_back(id);
    }

    pub(in crate::log_store) fn origin(&self, id: OperationId) -> Option<Origin> {
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.known.get(&id).copied()
    }

    pub(in crate::log_store) fn tell(&self, news: SessionNews) {
        // Nobody hears it: then nobody misses it.
        let _ = self.sessions.send(news);
    }

    pub(in crate::log_store) fn hear(&self) -> broadcast::Receiver<SessionNews> {
        self.sessions.subscribe()
    }
}

impl Default for Hearsay {
    fn default() -> Self {
        Self {
            sessions: broadcast::channel(WAITING_MAX).0,
            origins: Mutex::default(),
        }
    }
}

impl fmt::Debug for Hearsay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hearsay")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_bounded_and_the_first_stays() {
        let hearsay = Hearsay::default();
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            OperationId::from_bytes(bytes)
        };
        let peer = Origin::Sync(PeerId::from_bytes([1; 32]));
        hearsay.came_in(id(0), peer);
        assert_eq!(hearsay.origin(id(0)), None, "nobody hears");
        let _heard = hearsay.hear();
        for n in 0..ORIGINS_MAX {
            hearsay.came_in(id(n), peer);
            hearsay.came_in(id(n), Origin::Import);
        }
        assert_eq!(hearsay.origin(id(0)), Some(peer));
        hearsay.came_in(id(ORIGINS_MAX), Origin::Import);
        assert_eq!(hearsay.origin(id(0)), None, "the oldest goes");
        assert_eq!(hearsay.origin(id(1)), Some(peer));
        assert_eq!(hearsay.origin(id(ORIGINS_MAX)), Some(Origin::Import));
    }
}
