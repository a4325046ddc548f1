//! One group's machine state: the table, what the sessions are rebuilt from, and how far it is.
//!
//! A write changes all three in one batch and is not synced: the engine keeps a prefix of the
//! writes, so what a power cut leaves is the state as it was after some write, and the journal
//! holds the entries behind it.
//!
//! ```text
//!  machine: generation 1        restored: generation 2, a piece at a time
//!         |                                |
//!         +---- the record in meta --------+      one batch switches; then the old one is deleted
//! ```

mod checkpoint;
mod pin;

use std::{
    fmt, io,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

pub(crate) use self::checkpoint::Checkpoint;
use super::{
    LocalGroup,
    engine::{Batch, Family, Order, Reads, Visit},
    flusher::Flusher,
    keys::{self, SESSIONS, StateHead, Tag},
    locked,
};

/// Up to so many keys of a range are deleted one by one: a range tombstone costs every read
/// through its table file, and most ranges hold few keys.
const POINT_DELETES_MAX: usize = 32;

/// A handle to one group's state. Reads are anybody's; who writes owns it: the handle given out
/// last, and its clones. The writes of former ones fail.
#[derive(Clone)]
pub(crate) struct GroupState {
    inner: Arc<Inner>,
    owner: u64,
}

pub(super) struct Inner {
    local: LocalGroup,
    flusher: Arc<Flusher>,
    live: Mutex<Live>,
}

/// What the owner's next write begins from.
struct Live {
    head: StateHead,
    /// The generation that is filled by a restore.
    staged: Option<u32>,
    /// The records of answers since the checkpoint.
    answers: Vec<u64>,
    /// Of the current checkpoint.
    chunks: u32,
    owner: u64,
    removed: bool,
}

/// Changes of the table, in the order in which they are made.
#[derive(Debug)]
pub(crate) struct StateBatch {
    batch: Batch,
    generation: u32,
}

/// What a write says of the sessions.
#[derive(Debug)]
pub(crate) enum SessionsNote {
    /// They are as they were.
    Unchanged,
    /// What leads from the table as it was to the one as it is.
    Answers(Vec<u8>),
    /// The whole table, written before: everything of it that is older goes.
    Checkpoint(Checkpoint),
}

/// What was found at the start.
pub(crate) struct Resumed {
    /// What the last write said; nothing if none was made.
    pub(crate) note: Option<Bytes>,
    /// The checkpoint's bytes; nothing if there is none.
    pub(crate) checkpoint: Option<Vec<u8>>,
    /// The answers since, in order.
    pub(crate) answers: Vec<Bytes>,
}

/// A group's state at one moment.
pub(crate) struct StateMoment<'a> {
    reads: &'a dyn Reads,
    local: LocalGroup,
    head: StateHead,
}

impl GroupState {
    pub(super) fn open(local: LocalGroup, flusher: Arc<Flusher>) -> io::Result<Self> {
        let live = Live {
            head: read_head(local, |key| flusher.value(Family::Meta, key))?,
            staged: None,
            answers: Vec::new(),
            chunks: 0,
            owner: 0,
            removed: false,
        };
        let inner = Inner {
            local,
            flusher,
            live: Mutex::new(live),
        };
        Ok(Self {
            inner: Arc::new(inner),
            owner: 0,
        })
    }

    /// Makes a new owner, which begins with what is written. What a crash or a former owner left
    /// half done is deleted.
    ///
    /// # Errors
    /// `InvalidData` if what the sessions are rebuilt from is damaged or not whole.
    pub(crate) fn take_over(&self) -> io::Result<(Self, Resumed)> {
        let inner = &*self.inner;
        let mut live = locked(&inner.live);
        live.owner += 1;
        live.staged = None;
        inner.delete_leftovers(&live.head)?;
        let group = inner.local.number();
        let (from, to) = (keys::answers(group, 0), keys::answers(group, u64::MAX));
        let mut answers = Vec::new();
        live.answers.clear();
        inner.collect(&from, &to, &mut |key, value| {
            live.answers.extend(keys::answers_number(key));
            answers.push(value);
        })?;
        let checkpoint = inner.checkpoint(&mut live)?;
        let resumed = Resumed {
            note: (live.head.generation > 0).then(|| live.head.note.clone()),
            checkpoint,
            answers,
        };
        let owner = Self {
            inner: Arc::clone(&self.inner),
            owner: live.owner,
        };
        Ok((owner, resumed))
    }

    /// The value under a key, of the state that the owner works on.
    ///
    /// # Errors
    /// `InvalidData` if it is damaged; if the store is closed or has failed.
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let inner = &*self.inner;
        inner.flusher.check_usable()?;
        let key = keys::state_key(inner.local.number(), self.working(), key);
        let value = inner.flusher.value(Family::State, &key)?;
        value.map(|it| unsealed(&key, &it, inner.local)).transpose()
    }

    /// Visits keys and values of the state that the owner works on, from the first key (included)
    /// to the second (excluded).
    ///
    /// # Errors
    /// As with [`GroupState::get`].
    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        let inner = &*self.inner;
        inner.flusher.check_usable()?;
        let generation = self.working();
        scan_table(
            inner.local,
            generation,
            (from, to),
            visit,
            |from, to, it| inner.flusher.scan(Family::State, from, to, order, it),
        )
    }

    /// Calls `read` once with what is written, at one moment. Anybody may, at any time.
    ///
    /// # Errors
    /// If the store is closed or has failed, or the record of the state is damaged.
    pub(crate) fn at_one_moment(&self, read: &mut dyn FnMut(&StateMoment<'_>)) -> io::Result<()> {
        let local = self.inner.local;
        let mut found = Ok(());
        self.inner
            .flusher
            .at_one_moment(
                &mut |reads| match read_head(local, |key| reads.value(Family::Meta, key)) {
                    Ok(head) => read(&StateMoment { reads, local, head }),
                    Err(error) => found = Err(error),
                },
            )?;
        found
    }

    /// A batch on the state that the owner works on, with room for so many bytes.
    pub(crate) fn batch(&self, bytes: usize) -> StateBatch {
        StateBatch {
            batch: Batch::with_capacity(0, bytes),
            generation: self.working(),
        }
    }

    pub(crate) fn put(&self, batch: &mut StateBatch, key: &[u8], value: &[u8]) {
        let key = keys::state_key(self.inner.local.number(), batch.generation, key);
        batch.batch.put(Family::State, &key, &[value]);
    }

    pub(crate) fn delete(&self, batch: &mut StateBatch, key: &[u8]) {
        let key = keys::state_key(self.inner.local.number(), batch.generation, key);
        batch.batch.delete(Family::State, &key);
    }

    /// Deletes what is written of a range; to come before what the batch puts there.
    ///
    /// # Errors
    /// Those of a scan.
    pub(crate) fn delete_range(
        &self,
        batch: &mut StateBatch,
        from: &[u8],
        to: &[u8],
    ) -> io::Result<()> {
        let group = self.inner.local.number();
        let from = keys::state_key(group, batch.generation, from);
        let to = keys::state_key(group, batch.generation, to);
        self.inner.delete_range(&mut batch.batch, &from, &to)
    }

    /// Writes the batch, what it says of the sessions, and how far the state then is. Visible when
    /// this returns, not synced. If a restore had been begun, what it restored is now the state.
    ///
    /// # Errors
    /// `StorageFull` below three quarters of the reserve of free space; any other error is final.
    pub(crate) fn write(
        &self,
        batch: StateBatch,
        sessions: SessionsNote,
        note: Bytes,
    ) -> io::Result<()> {
        let inner = &*self.inner;
        let group = inner.local.number();
        let mut live = self.live()?;
        let former = live.head.generation;
        let StateBatch {
            mut batch,
            generation,
        } = batch;
        if generation != live.staged.unwrap_or(former.max(1)) {
            return Err(io::Error::other("the batch is of another state"));
        }
        let mut head = StateHead {
            generation,
            checkpoint: live.head.checkpoint,
            note,
        };
        let mut added = None;
        match sessions {
            SessionsNote::Unchanged => {}
            SessionsNote::Answers(bytes) => {
                let number = live.answers.last().map_or(1, |last| last + 1);
                let key = keys::answers(group, number);
                batch.put(Family::State, &key, &[&bytes]);
                added = Some(number);
            }
            SessionsNote::Checkpoint(Checkpoint { number, chunks, .. }) => {
                // A write that fails stops the group, and the next owner looks again.
                for number in live.answers.drain(..) {
                    batch.delete(Family::State, &keys::answers(group, number));
                }
                for chunk in 0..live.chunks {
                    let key = keys::checkpoint(group, live.head.checkpoint, chunk);
                    batch.delete(Family::State, &key);
                }
                head.checkpoint = number;
                live.chunks = chunks;
            }
        }
        head.put(group, &mut batch);
        fail::fail_point!("state::write::before");
        inner.flusher.write(&batch)?;
        fail::fail_point!("state::write::after");
        live.answers.extend(added);
        live.head = head;
        if live.staged.take().is_some() {
            fail::fail_point!("state::switch::before_old_deleted");
            inner.delete_leftovers(&live.head)?;
            fail::fail_point!("state::switch::after_old_deleted");
        }
        Ok(())
    }

    /// Begins to restore: from here on the owner works on an empty state aside.
    ///
    /// # Errors
    /// As with [`GroupState::write`].
    pub(crate) fn start_over(&self) -> io::Result<()> {
        let mut live = self.live()?;
        // One that was begun before and given up leaves what it filled.
        if live.staged.is_some() {
            self.inner.delete_leftovers(&live.head)?;
        }
        live.staged = Some(live.head.generation + 1);
        Ok(())
    }

    /// Whether a restore has been begun and not yet been written.
    pub(crate) fn is_restoring(&self) -> bool {
        locked(&self.inner.live).staged.is_some()
    }

    /// Adds to the state that was begun anew.
    ///
    /// # Errors
    /// As with [`GroupState::write`].
    pub(crate) fn fill(&self, pairs: &[(Bytes, Bytes)]) -> io::Result<()> {
        let live = self.live()?;
        let Some(generation) = live.staged else {
            return Err(io::Error::other("no restore has been begun"));
        };
        let group = self.inner.local.number();
        let bytes = pairs.iter().map(|(key, value)| key.len() + value.len());
        let mut batch = Batch::with_capacity(pairs.len(), bytes.sum::<usize>() + pairs.len() * 16);
        for (key, value) in pairs {
            let key = keys::state_key(group, generation, key);
            batch.put(Family::State, &key, &[value]);
        }
        fail::fail_point!("state::fill::before_write");
        self.inner.flusher.write(&batch)
    }

    /// The group is gone: whoever still holds a handle writes no more.
    pub(super) fn mark_removed(&self) {
        locked(&self.inner.live).removed = true;
    }

    /// For a write: held through it, so that what is remembered changes in the order of the writes.
    fn live(&self) -> io::Result<MutexGuard<'_, Live>> {
        let live = locked(&self.inner.live);
        if live.removed {
            let text = format!("group {} was removed from this node", self.inner.local);
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        if live.owner != self.owner {
            return Err(io::Error::other("the group was opened anew meanwhile"));
        }
        Ok(live)
    }

    fn working(&self) -> u32 {
        let live = locked(&self.inner.live);
        live.staged.unwrap_or(live.head.generation.max(1))
    }
}

impl StateMoment<'_> {
    /// What the last write said of itself; nothing if none was made.
    pub(crate) fn note(&self) -> Option<&Bytes> {
        (self.head.generation > 0).then_some(&self.head.note)
    }

    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let key = keys::state_key(self.local.number(), self.head.generation, key);
        let value = self.reads.value(Family::State, &key)?;
        value.map(|it| unsealed(&key, &it, self.local)).transpose()
    }

    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        let generation = self.head.generation;
        if generation == 0 {
            return Ok(());
        }
        scan_table(self.local, generation, (from, to), visit, |from, to, it| {
            self.reads.scan(Family::State, from, to, order, it)
        })
    }
}

impl Inner {
    /// Every step may be done twice. Looks first: a range tombstone for nothing at each start
    /// would slow the reads.
    fn delete_leftovers(&self, head: &StateHead) -> io::Result<()> {
        let group = self.local.number();
        let current = head.generation;
        let (start, after_sessions) = (keys::state(group, 0), keys::state(group, SESSIONS + 1));
        let (_, end) = keys::state_range(group);
        let checkpoints = keys::checkpoint(group, 0, 0);
        let this_one = keys::checkpoint(group, head.checkpoint, 0);
        let next_one = keys::checkpoint(group, head.checkpoint + 1, 0);
        let (from, to) = (keys::state(group, current), keys::state(group, current + 1));
        debug_assert!(start[..] < checkpoints[..]);
        let leftovers: [(&[u8], &[u8]); 4] = [
            (&checkpoints, &this_one),
            (&next_one, &after_sessions),
            (&after_sessions, &from),
            (&to, &end),
        ];
        for (from, to) in leftovers {
            let mut batch = Batch::new();
            self.delete_range(&mut batch, from, to)?;
            if !batch.is_empty() {
                self.flusher.write_freeing(&batch)?;
            }
        }
        Ok(())
    }

    fn delete_range(&self, batch: &mut Batch, from: &[u8], to: &[u8]) -> io::Result<()> {
        let mut found = Vec::new();
        self.flusher
            .scan(Family::State, from, to, Order::Ascending, &mut |key, _| {
                found.push(key.to_vec());
                if found.len() > POINT_DELETES_MAX {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        if found.len() > POINT_DELETES_MAX {
            batch.delete_range(Family::State, from, to);
        } else {
            for key in &found {
                batch.delete(Family::State, key);
            }
        }
        Ok(())
    }

    fn collect(
        &self,
        from: &[u8],
        to: &[u8],
        take: &mut dyn FnMut(&[u8], Bytes),
    ) -> io::Result<()> {
        let mut broken = Ok(());
        self.flusher.scan(
            Family::State,
            from,
            to,
            Order::Ascending,
            &mut |key, value| match unsealed(key, value, self.local) {
                Ok(value) => {
                    take(key, value);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    broken = Err(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        broken
    }
}

fn read_head(
    local: LocalGroup,
    value: impl FnOnce(&[u8]) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<StateHead> {
    let key = keys::meta(local.number(), Tag::State);
    match value(&key)? {
        None => Ok(StateHead::default()),
        Some(value) => keys::unseal(&key, &value)
            .and_then(StateHead::decode)
            .ok_or_else(|| damaged(local, &key)),
    }
}

/// Scans a range of the machine's keys.
fn scan_table(
    local: LocalGroup,
    generation: u32,
    (from, to): (&[u8], &[u8]),
    visit: Visit<'_>,
    scan: impl FnOnce(&[u8], &[u8], Visit<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let from = keys::state_key(local.number(), generation, from);
    let to = keys::state_key(local.number(), generation, to);
    let mut broken = Ok(());
    scan(&from, &to, &mut |key, value| {
        let user_key = keys::state_user_key(key);
        match user_key.zip(keys::unseal(key, value)) {
            Some((key, value)) => visit(key, value),
            None => {
                broken = Err(damaged(local, key));
                ControlFlow::Break(())
            }
        }
    })?;
    broken
}

fn unsealed(key: &[u8], value: &[u8], local: LocalGroup) -> io::Result<Bytes> {
    keys::unseal(key, value)
        .map(Bytes::copy_from_slice)
        .ok_or_else(|| damaged(local, key))
}

fn damaged(local: LocalGroup, key: &[u8]) -> io::Error {
    let key = data_encoding::HEXLOWER.encode(key);
    let text = format!("the state of group {local} is damaged: {key} fails its checksum");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl fmt::Debug for GroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupState")
            .field("group", &self.inner.local)
            .finish_non_exhaustive()
    }
}
