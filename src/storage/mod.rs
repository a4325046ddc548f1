//! The disk: one store a node, which keeps the journals, votes and snapshots of all its groups.
//!
//! ```text
//!    groups   journal   state   snapshots     what a group calls
//!         \      |      /       /     \
//!           flusher                  shelf    writes, one sync for all | files, aside then renamed
//!              |
//!           engine                            rocks (durable) | memory; one layout, see keys
//! ```
//!
//! # On disk
//!
//! ```text
//! <dir>/LOCK                  locked by the process that has the store open
//! <dir>/FORMAT                "quorate store format <n>\n", read before anything else is touched
//! <dir>/db/                   the engine's: families journal, meta and state
//! <dir>/snapshots/<group>/    <number>.snapshot, and *.part: aside, not yet one
//! ```
//!
//! # Invariants
//! - What was acknowledged is on the disk: an acknowledgement is the flusher's, after the sync.
//! - After the first error of the engine or of a sync nothing more is written, by any group.
//! - Data that fails its checksum is an error that names it, never data and never dropped.

#[cfg(feature = "rocksdb")]
mod directory;
mod engine;
#[cfg(feature = "rocksdb")]
mod files;
mod flusher;
mod groups;
mod journal;
mod keys;
mod memory;
#[cfg(feature = "rocksdb")]
mod rocks;
mod shelf;
mod snapshot_file;
mod snapshots;
mod space;
mod state;

#[cfg(all(test, feature = "failpoints", feature = "rocksdb"))]
mod crash_tests;
#[cfg(all(test, feature = "rocksdb"))]
mod disk_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;

pub(crate) use self::{
    engine::Order,
    groups::{GroupRecord, LocalGroup, NewGroup},
    journal::{Journal, Record},
    snapshots::{Snapshots, StagedSnapshot, StoredSnapshot, Turn},
    state::{GroupState, Resumed, SessionsNote, StateMoment},
};
use self::{
    engine::{Batch, Engine, Family},
    flusher::Flusher,
    keys::{NODE, Tag},
    memory::Memory,
    shelf::{MemoryShelf, Shelf},
};
use crate::{error::Cause, metrics::Counters};

/// A handle to the node's store; all handles share one. With the last one the store closes, also
/// for journals and snapshots that are still held.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    flusher: Arc<Flusher>,
    engine: Arc<dyn Engine>,
    shelf: Arc<dyn Shelf>,
    counters: Arc<Counters>,
    /// One journal and one shelf of snapshots a group, however many handles there are.
    journals: Mutex<HashMap<LocalGroup, Journal>>,
    snapshots: Mutex<HashMap<LocalGroup, Snapshots>>,
    states: Mutex<HashMap<LocalGroup, GroupState>>,
    /// Groups are made and removed one at a time.
    changing_groups: Mutex<()>,
    #[cfg(feature = "rocksdb")]
    lock: Mutex<Option<directory::Lock>>,
}

impl Store {
    /// A store that lives as long as the process: the same code above another engine. Writes are
    /// told to be durable at once.
    pub(crate) fn in_memory(counters: Arc<Counters>) -> Self {
        let shelf = Arc::new(MemoryShelf::default());
        Self::over_memory(Arc::new(Memory::default()), shelf, counters)
    }

    /// What a restart would find of an in-memory store: another one over the same data, open and
    /// healthy whatever became of this one. Nothing if this one is on disk.
    pub(crate) fn reopened(&self, counters: Arc<Counters>) -> Option<Self> {
        if self.inner.engine.is_durable() {
            return None;
        }
        let Inner { engine, shelf, .. } = &*self.inner;
        Some(Self::over_memory(
            Arc::clone(engine),
            Arc::clone(shelf),
            counters,
        ))
    }

    /// Something once the store has failed, for good: no group may go on.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<Cause>> {
        self.inner.flusher.failed()
    }

    /// Whether a write would be taken now. Cheap enough to ask before each command is proposed,
    /// so that a nearly full disk refuses commands instead of stopping groups.
    ///
    /// # Errors
    /// `StorageFull` below the reserve of free space (heals by itself); what stopped the store.
    pub(crate) fn check_writable(&self) -> io::Result<()> {
        self.inner.flusher.check_writable()
    }

    /// The journal of a group.
    ///
    /// # Errors
    /// `InvalidData` if its ends are damaged or do not fit the purged point.
    pub(crate) fn journal(&self, local: LocalGroup) -> io::Result<Journal> {
        let mut journals = locked(&self.inner.journals);
        if let Some(journal) = journals.get(&local) {
            return Ok(journal.clone());
        }
        groups::expect_group(&self.inner.flusher, local)?;
        let flusher = Arc::clone(&self.inner.flusher);
        let journal = Journal::open(local, flusher, Arc::clone(&self.inner.counters))?;
        journals.insert(local, journal.clone());
        Ok(journal)
    }

    /// The snapshots of a group.
    ///
    /// # Errors
    /// `InvalidData` if the newest is not whole; those of the file system.
    pub(crate) fn snapshots(&self, local: LocalGroup) -> io::Result<Snapshots> {
        let mut all = locked(&self.inner.snapshots);
        if let Some(snapshots) = all.get(&local) {
            return Ok(snapshots.clone());
        }
        groups::expect_group(&self.inner.flusher, local)?;
        let place = self.inner.shelf.place(local)?;
        let flusher = Arc::clone(&self.inner.flusher);
        let snapshots = Snapshots::open(place, flusher, Arc::clone(&self.inner.counters))?;
        all.insert(local, snapshots.clone());
        Ok(snapshots)
    }

    /// The state of a group's machine, for a new owner: who had it before writes no more.
    ///
    /// # Errors
    /// `InvalidData` if what is needed at the start is damaged.
    pub(crate) fn state(&self, local: LocalGroup) -> io::Result<(GroupState, Resumed)> {
        let mut states = locked(&self.inner.states);
        if let Some(state) = states.get(&local) {
            return state.take_over();
        }
        groups::expect_group(&self.inner.flusher, local)?;
        let state = GroupState::open(local, Arc::clone(&self.inner.flusher))?;
        let taken = state.take_over()?;
        states.insert(local, state);
        Ok(taken)
    }

    /// Keeps what the node wants to find at its next start; synced when this returns.
    ///
    /// # Errors
    /// Any error but `StorageFull` is final.
    pub(crate) fn put_node_record(&self, record: &[u8]) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.put(Family::Meta, &keys::meta(NODE, Tag::NodeRecord), &[record]);
        self.inner.flusher.write(&batch)?;
        self.inner.flusher.sync()
    }

    /// What was kept by [`Store::put_node_record`].
    ///
    /// # Errors
    /// `InvalidData` if it is damaged.
    pub(crate) fn node_record(&self) -> io::Result<Option<Bytes>> {
        let key = keys::meta(NODE, Tag::NodeRecord);
        Ok(groups::body(&self.inner.flusher, &key)?.map(Bytes::from))
    }

    /// Syncs and answers what waits, closes the files and releases the lock. Every later call
    /// fails. Idempotent. Blocks for a sync; not to be called from a [`Synced`].
    pub(crate) fn close(&self) {
        self.inner.close();
    }

    fn over_memory(
        engine: Arc<dyn Engine>,
        shelf: Arc<dyn Shelf>,
        counters: Arc<Counters>,
    ) -> Self {
        let flusher = Flusher::without_thread(Arc::clone(&engine), Arc::clone(&counters));
        Self::over(engine, Arc::new(flusher), shelf, counters)
    }

    fn over(
        engine: Arc<dyn Engine>,
        flusher: Arc<Flusher>,
        shelf: Arc<dyn Shelf>,
        counters: Arc<Counters>,
    ) -> Self {
        let inner = Inner {
            flusher,
            engine,
            shelf,
            counters,
            journals: Mutex::default(),
            snapshots: Mutex::default(),
            states: Mutex::default(),
            changing_groups: Mutex::default(),
            #[cfg(feature = "rocksdb")]
            lock: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn flusher(&self) -> &Flusher {
        &self.inner.flusher
    }

    fn shelf(&self) -> &dyn Shelf {
        &*self.inner.shelf
    }

    fn changing_groups(&self) -> MutexGuard<'_, ()> {
        locked(&self.inner.changing_groups)
    }

    /// Whoever still holds a handle to the group's journal or snapshots writes no more.
    fn forget(&self, local: LocalGroup) {
        // Each map stays locked until the handle is marked: nobody opens another in between.
        let mut journals = locked(&self.inner.journals);
        if let Some(journal) = journals.remove(&local) {
            journal.mark_removed();
        }
        let mut snapshots = locked(&self.inner.snapshots);
        if let Some(snapshots) = snapshots.remove(&local) {
            snapshots.mark_removed();
        }
        let mut states = locked(&self.inner.states);
        if let Some(state) = states.remove(&local) {
            state.mark_removed();
        }
    }
}

impl Inner {
    fn close(&self) {
        self.flusher.close();
        #[cfg(feature = "rocksdb")]
        drop(locked(&self.lock).take());
    }
}

impl Drop for Inner {
    /// Journals hold the flusher, so its own drop may come too late for the lock.
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("flusher", &self.inner.flusher)
            .finish_non_exhaustive()
    }
}

/// A panic elsewhere leaves nothing half done that a lock here guards.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "rocksdb"),
    expect(dead_code, reason = "only a directory is opened")
)]
pub(crate) enum OpenError {
    /// Another process (or another node in this one) has it open.
    #[error("{dir} is in use by another node; one directory serves one node at a time")]
    Locked {
        /// The directory.
        dir: String,
    },
    /// A later version wrote it.
    #[error(
        "the directory was written in format {found}, this version knows formats up to {known}; \
         run the newer version"
    )]
    Newer {
        /// The directory's format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// What is there is damaged. Nothing was changed.
    #[error("the store is damaged and was not opened: {0}")]
    Corrupt(String),
    /// The operating system or the engine refused.
    #[error("the store does not open: {0}")]
    Io(#[from] io::Error),
}
