//! What came from a peer lately, so that it is not sent back, and what that says about the rest.
//!
//! A p2panda node passes what it hears from others on to all its sessions *before* it takes it in,
//! and loses it where the session it came in breaks down meanwhile. Sent back to it in the session
//! in which it passed it on, it is ignored. So an operation that builds on such a one is not sent
//! either: with a gap before it, it would be refused, and a node of line 0.6 takes nothing of that
//! log any more. What the node holds says its next `Have`.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    time::Duration,
};

use crate::{
    identity::PeerId,
    log_store::{Author, LogId, Operation, OperationId},
};

/// Ids that are remembered.
const IDS_MAX: usize = 4_096;
/// Logs of which a peer has passed something on in one session; then it is asked at once.
const LOGS_MAX: usize = 1_024;
/// How soon a peer is asked what it holds when something is kept from it.
const ASK_WITHIN: Duration = Duration::from_millis(300);

/// The ids of the latest operations of a peer.
#[derive(Default)]
pub(super) struct Lately {
    known: HashSet<OperationId>,
    order: VecDeque<OperationId>,
}

impl Lately {
    pub(super) fn remember(&mut self, id: OperationId) {
        if self.known.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn has(&self, id: &OperationId) -> bool {
        self.known.contains(id)
    }
}

/// Logs of which a peer has passed on what it may not have.
#[derive(Default)]
pub(super) struct PassedOn(BTreeSet<(Author, LogId)>);

/// What to do with an operation that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Send,
    /// Leave it to the next chunk, if it is not with the peer already.
    Skip {
        /// When the peer is to be asked what it holds; as ever, where there is no need.
        asks: Option<Duration>,
    },
}

impl PassedOn {
    pub(super) fn judge(
        &mut self,
        peer: PeerId,
        operation: &Operation,
        came_from: &Lately,
    ) -> Judged {
        let log = (operation.author(), operation.log_id());
        if came_from.has(&operation.id()) {
            // What it wrote itself it has.
            if log.0.as_bytes() != peer.as_bytes() {
                self.0.insert(log);
            }
            let full = self.0.len() >= LOGS_MAX;
            return Judged::Skip {
                asks: full.then_some(Duration::ZERO),
            };
        }
        match self.0.contains(&log) {
            true => Judged::Skip {
                asks: Some(ASK_WITHIN),
            },
            false => Judged::Send,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_store::{Line, Topic, mint::Writer};

    #[test]
    fn what_builds_on_an_operation_that_was_passed_on_is_left_to_the_next_chunk() {
        let (line, topic) = (Line::V06, Topic::named("cats"));
        let ada = Writer::new(1, topic, line).many(3);
        let bob = Writer::new(2, topic, line).many(2);
        let peer = PeerId::from_bytes(*bob[0].author().as_bytes());
        let mut came_from = Lately::default();
        let mut passed_on = PassedOn::default();
        let mut judge = |it, came_from: &_| passed_on.judge(peer, it, came_from);
        assert_eq!(judge(&ada[0], &came_from), Judged::Send);
        came_from.remember(ada[1].id());
        came_from.remember(bob[0].id());
        let skipped = Judged::Skip { asks: None };
        assert_eq!(judge(&ada[1], &came_from), skipped);
        let kept = Judged::Skip {
            asks: Some(ASK_WITHIN),
        };
        assert_eq!(judge(&ada[2], &came_from), kept);
        // Its own log: it has what it wrote.
        assert_eq!(judge(&bob[0], &came_from), skipped);
        assert_eq!(judge(&bob[1], &came_from), Judged::Send);
    }
}
