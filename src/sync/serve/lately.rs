//! What came from a peer lately, so that it is not sent back.

use std::collections::{HashSet, VecDeque};

use crate::log_store::OperationId;

/// Ids that are remembered.
const IDS_MAX: usize = 4_096;

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

    pub(super) fn has(&self, id: &OperationId) -> bool {
        self.known.contains(id)
    }
}
