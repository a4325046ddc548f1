//! One group's snapshots: built or received aside, then switched to in one step.
//!
//! There is one *current* snapshot. A crash at any point leaves the old one or the new one, whole.
//! Whoever holds a [`StoredSnapshot`] keeps reading it, also after a newer one replaced it.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use super::{
    flusher::Flusher,
    locked,
    shelf::{Aside, Body, Place},
    snapshot_file::{ChunkWriter, ContentReader, Outline},
};
use crate::{error::Cause, metrics::Counters};

/// A handle to one group's snapshots; all handles share one state. Its calls block on the disk.
#[derive(Clone)]
pub(crate) struct Snapshots {
    inner: Arc<Inner>,
}

struct Inner {
    place: Box<dyn Place>,
    flusher: Arc<Flusher>,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

struct State {
    current: Option<(u64, StoredSnapshot)>,
    /// The number of the next snapshot that is begun.
    next: u64,
    removed: bool,
}

/// A whole snapshot. Cheap to clone; stays readable for as long as it is held.
#[derive(Clone, Debug)]
pub(crate) struct StoredSnapshot {
    body: Body,
    outline: Outline,
}

/// A received snapshot, verified and synced, but not yet the current one. Dropped, it is removed.
pub(crate) struct StagedSnapshot {
    aside: Box<dyn Aside>,
    whole: StoredSnapshot,
}

/// Takes in the raw bytes of another member's snapshot. Dropped, what was taken in is removed.
pub(crate) struct SnapshotReceiver {
    aside: Box<dyn Aside>,
    flusher: Arc<Flusher>,
    received: u64,
}

/// A snapshot's place in the order of all snapshots of its group.
#[derive(Debug)]
pub(crate) struct Turn(u64);

impl Snapshots {
    pub(super) fn open(
        place: Box<dyn Place>,
        flusher: Arc<Flusher>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let current = match place.newest()? {
            None => None,
            Some((number, body)) => Some((number, StoredSnapshot::open(body)?)),
        };
        let next = current.as_ref().map_or(1, |(number, _)| number + 1);
        let state = Mutex::new(State {
            current,
            next,
            removed: false,
        });
        Ok(Self {
            inner: Arc::new(Inner {
                place,
                flusher,
                counters,
                state,
            }),
        })
    }

    /// The newest snapshot, if there is one.
    pub(crate) fn current(&self) -> Option<StoredSnapshot> {
        locked(&self.inner.state)
            .current
            .as_ref()
            .map(|(_, snapshot)| snapshot.clone())
    }

    /// A place in the order of snapshots. Taken when a state is captured, so that what is captured
    /// later, or installed meanwhile, counts as newer.
    ///
    /// # Errors
    /// `StorageFull` below the reserve of free space.
    pub(crate) fn turn(&self) -> io::Result<Turn> {
        self.inner.begin().map(Turn)
    }

    /// Writes a snapshot aside, syncs it and makes it the current one; older ones are removed. On
    /// return it survives a power cut. `meta` is at most 1 MiB.
    ///
    /// If one with a later turn was installed or built while this was written, that one stays
    /// current and is returned. So look at the meta of what is returned.
    ///
    /// # Errors
    /// Those of `write`; `StorageFull` below the reserve of free space. The current snapshot is
    /// then what it was before.
    pub(crate) fn build(
        &self,
        Turn(number): Turn,
        meta: Bytes,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<StoredSnapshot> {
        let inner = &*self.inner;
        let aside = Guarded::new(inner.place.start_aside()?, Arc::clone(&inner.flusher));
        fail::fail_point!("snapshot::build::started");
        let mut writer = ChunkWriter::start(aside)?;
        write(&mut writer)?;
        let mut aside = writer.finish(&meta)?.into_inner();
        fail::fail_point!("snapshot::build::before_sync");
        inner.synced(aside.sync())?;
        let whole = StoredSnapshot::open(aside.body()?)?;
        let stored = inner.switch(aside, whole, number)?;
        inner.counters.snapshots_built.add(1);
        Ok(stored)
    }

    /// Builds with the next turn.
    #[cfg(test)]
    pub(crate) fn build_next(
        &self,
        meta: Bytes,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<StoredSnapshot> {
        self.build(self.turn()?, meta, write)
    }

    /// Begins to take in a snapshot from another member.
    ///
    /// # Errors
    /// `StorageFull` below the reserve of free space; those of the file system.
    pub(crate) fn receive(&self) -> io::Result<SnapshotReceiver> {
        let inner = &*self.inner;
        inner.writable(&inner.state())?;
        let aside = inner.place.start_aside()?;
        Ok(SnapshotReceiver {
            aside,
            flusher: Arc::clone(&inner.flusher),
            received: 0,
        })
    }

    /// Makes a received snapshot the current one; on return that survives a power cut.
    ///
    /// # Errors
    /// Those of the file system; the current snapshot is then the old one or the new one.
    pub(crate) fn install(&self, staged: StagedSnapshot) -> io::Result<StoredSnapshot> {
        let inner = &*self.inner;
        let number = inner.begin()?;
        let StagedSnapshot { aside, whole } = staged;
        let stored = inner.switch(aside, whole, number)?;
        inner.counters.snapshots_installed.add(1);
        Ok(stored)
    }

    /// The group is gone: nothing is begun or switched to any more.
    pub(super) fn mark_removed(&self) {
        let mut state = locked(&self.inner.state);
        state.removed = true;
        state.current = None;
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn writable(&self, state: &State) -> io::Result<()> {
        if state.removed {
            let text = "the group was removed from this node";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        self.flusher.check_writable()
    }

    fn begin(&self) -> io::Result<u64> {
        let mut state = self.state();
        self.writable(&state)?;
        let number = state.next;
        state.next += 1;
        Ok(number)
    }

    /// Puts what is written and synced in its place.
    fn switch(
        &self,
        aside: Box<dyn Aside>,
        whole: StoredSnapshot,
        number: u64,
    ) -> io::Result<StoredSnapshot> {
        let mut state = self.state();
        self.writable(&state)?;
        if let Some((_, newer)) = state
            .current
            .as_ref()
            .filter(|(current, _)| *current > number)
        {
            return Ok(newer.clone());
        }
        fail::fail_point!("snapshot::switch::before_rename");
        aside.put_in_place(number)?;
        fail::fail_point!("snapshot::switch::before_directory_sync");
        self.synced(self.place.sync())?;
        state.current = Some((number, whole.clone()));
        fail::fail_point!("snapshot::switch::before_old_removed");
        // The new one counts already; an old one that stays is removed at the next open.
        if let Err(error) = self.place.remove_older(number) {
            tracing::warn!(%error, "an old snapshot cannot be removed");
        }
        fail::fail_point!("snapshot::switch::after_old_removed");
        Ok(whole)
    }

    /// After a failed sync nobody knows what is on the disk, here no less than in the journal.
    fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        result.map_err(|error| {
            self.flusher.poison(Cause::new(format_args!(
                "a snapshot could not be synced: {error}"
            )))
        })
    }
}

impl StoredSnapshot {
    fn open(body: Body) -> io::Result<Self> {
        let outline = Outline::read(&body)?;
        Ok(Self { body, outline })
    }

    /// What the builder said of it.
    pub(crate) fn meta(&self) -> &Bytes {
        &self.outline.meta
    }

    /// Bytes of the raw file.
    pub(crate) fn len(&self) -> u64 {
        self.body.len()
    }

    /// Reads the content; each chunk is checked before any of it is given away, the whole at the
    /// end. Damage is `InvalidData`.
    pub(crate) fn reader(&self) -> impl Read + Send + use<> {
        ContentReader::new(self.body.clone(), self.outline.clone())
    }

    /// At most `max` raw bytes from `offset` on, to be sent as they are; none at the end.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn read_at(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let left = self.len().saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(max)];
        self.body.read_exact_at(offset, &mut bytes)?;
        Ok(bytes.into())
    }
}

impl StagedSnapshot {
    pub(crate) fn meta(&self) -> &Bytes {
        self.whole.meta()
    }
}

impl SnapshotReceiver {
    /// Bytes taken in so far: where the next chunk must begin.
    #[cfg(test)]
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes in the next raw bytes, of any length.
    ///
    /// # Errors
    /// `InvalidInput` if they do not begin where the last ended; `StorageFull` below the reserve
    /// of free space.
    pub(crate) fn write_chunk(&mut self, offset: u64, chunk: &[u8]) -> io::Result<()> {
        if offset != self.received {
            let text = format!("a chunk at {offset}, expected at {}", self.received);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.flusher.check_writable()?;
        self.aside.write_all(chunk)?;
        self.received += chunk.len() as u64;
        fail::fail_point!("snapshot::receive::chunk_written");
        Ok(())
    }

    /// Checks every chunk and the whole, and syncs.
    ///
    /// # Errors
    /// `InvalidData` if it is damaged or not complete, `Unsupported` if a newer version wrote it.
    pub(crate) fn finish(mut self) -> io::Result<StagedSnapshot> {
        let whole = StoredSnapshot::open(self.aside.body()?)?;
        ContentReader::new(whole.body.clone(), whole.outline.clone()).verify()?;
        fail::fail_point!("snapshot::receive::before_sync");
        self.aside.sync().map_err(|error| {
            let cause = format_args!("a received snapshot could not be synced: {error}");
            self.flusher.poison(Cause::new(cause))
        })?;
        Ok(StagedSnapshot {
            aside: self.aside,
            whole,
        })
    }
}

/// Refuses to fill the disk past the reserve while a snapshot is written.
struct Guarded {
    aside: Box<dyn Aside>,
    flusher: Arc<Flusher>,
}

impl Guarded {
    fn new(aside: Box<dyn Aside>, flusher: Arc<Flusher>) -> Self {
        Self { aside, flusher }
    }

    fn into_inner(self) -> Box<dyn Aside> {
        self.aside
    }
}

impl Write for Guarded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flusher.check_writable()?;
        self.aside.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.aside.flush()
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots")
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StagedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedSnapshot")
            .field("whole", &self.whole)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReceiver")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
