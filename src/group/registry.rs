//! The groups that run on a node: plain handles, whatever their machines are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{identity::GroupId, raft::Replica};

/// A shared table of the node's groups.
///
/// # Invariants
/// - A group is there from before it starts until after it has stopped, so it cannot be opened
///   twice at once.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<Mutex<BTreeMap<GroupId, Option<Arc<Replica>>>>>);

impl Registry {
    /// Takes the place of a group; false if it is taken already.
    pub(crate) fn reserve(&self, id: GroupId) -> bool {
        let mut groups = self.lock();
        if groups.contains_key(&id) {
            return false;
        }
        groups.insert(id, None);
        true
    }

    /// Puts a group in its reserved place; false if that was given up meanwhile.
    pub(crate) fn put(&self, replica: Arc<Replica>) -> bool {
        let mut groups = self.lock();
        let Some(place) = groups.get_mut(&replica.record().id) else {
            return false;
        };
        *place = Some(replica);
        true
    }

    pub(crate) fn remove(&self, id: &GroupId) {
        self.lock().remove(id);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn ids(&self) -> Vec<GroupId> {
        self.lock().keys().copied().collect()
    }

    /// Takes all groups out, to stop them.
    pub(crate) fn take_all(&self) -> Vec<Arc<Replica>> {
        std::mem::take(&mut *self.lock())
            .into_values()
            .flatten()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, Option<Arc<Replica>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
