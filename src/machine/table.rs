//! A machine's own sorted keys and values in the node's store: for state larger than memory, and
//! for starts that do not apply everything again.

mod changes;
mod memory;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::Bytes;

pub(crate) use self::changes::Changes;
use self::{changes::Overlay, memory::MemoryBacking};
use super::{Position, SnapshotReader};
use crate::error::Cause;

/// The longest key a [`Table`] takes, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 1_024;
/// The longest value, in bytes: above any command, and far below what a length in a snapshot holds.
pub(crate) const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Behind every key: where a range ends that has no end.
const END: &[u8] = &[0xff; KEY_BYTES_MAX + 1];

/// The sorted keys and values of a machine that keeps its state in the node's store.
///
/// A handle, given to [`StateMachine::open`](super::StateMachine::open); clones are handles on the
/// same table. The machine changes it in `apply` and reads what it wrote there. Readers elsewhere
/// see it through a [`TableView`]: nothing of it before the changes of whole commands are written,
/// together with the position that they bring the machine to.
///
/// Keys are ordered byte by byte. Where a range is asked for, `from` is included and `to` is not;
/// an empty `to` means to the end.
///
/// # When the disk fails
///
/// No call of the machine's own returns an error, so that `apply` stays infallible. When a read
/// fails, it and every later one finds nothing, what the machine then makes of it is thrown away
/// unwritten, and the group stops on this node with the cause.
///
/// # Panics
///
/// A key above 1 KiB and a value above 64 MiB panic: like every panic in `apply`, at every member.
///
/// # Example
///
/// ```
/// use quorate::{Order, Table};
/// use std::ops::ControlFlow;
///
/// let table = Table::in_memory(); // as in the test of a machine; a group gives its own
/// table.put(b"fruit/apple", "red");
/// table.put(b"fruit/pear", "green");
/// table.put(b"tree/oak", "old");
/// assert_eq!(table.get(b"fruit/pear").as_deref(), Some(&b"green"[..]));
///
/// let mut fruit = Vec::new();
/// table.scan(b"fruit/", b"fruit0", Order::Descending, &mut |key, _| {
///     fruit.push(key.to_vec());
///     ControlFlow::Continue(())
/// });
/// assert_eq!(fruit, [b"fruit/pear".to_vec(), b"fruit/apple".to_vec()]);
///
/// table.delete_range(b"fruit/", b"fruit0");
/// let oak = table.view().read(|moment| moment.get(b"tree/oak"))??;
/// assert_eq!(oak.as_deref(), Some(&b"old"[..]));
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct Table {
    inner: Arc<Inner>,
}

struct Inner {
    backing: Arc<dyn Backing>,
    /// Takes each change at once, where no runtime writes them.
    at_once: Option<Arc<MemoryBacking>>,
    /// What `apply` changed and nobody has written yet.
    overlay: Mutex<Overlay>,
    /// The first error of the backing. Once it is set nothing is read, and nothing must be written.
    failed: OnceLock<Cause>,
}

/// What readers see of a [`Table`]: the [`View`](super::StateMachine::View) of a machine that has
/// one. A handle; clones are alike, and none holds anything open.
///
/// Unlike the view of a machine in memory it is no picture of one position: each
/// [`read`](Self::read) sees the latest state that was written, at the position that a query
/// answers with or behind it. Everything it sees is committed and applied.
#[derive(Clone)]
pub struct TableView {
    backing: Arc<dyn Backing>,
}

/// A [`Table`] at one moment: all that is read of it belongs to one position.
pub struct Moment<'a> {
    reads: &'a dyn Reads,
}

/// Which end of a range a scan starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// From the first key to the last.
    Ascending,
    /// From the last key to the first.
    Descending,
}

/// What a scan calls for each key and value, until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Reads of one moment; a range is from the first key (included) to the second (excluded).
pub(crate) trait Reads {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>>;
    fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()>;
    /// The last command in it.
    fn applied(&self) -> Position;
}

/// A whole table pinned at one moment: visited once, in order, on any thread.
pub(crate) type Pinned =
    Box<dyn FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> + Send>;

/// What keeps the written state of a table.
///
/// # Contract
/// - One thread owns the table and calls everything but `at_one_moment`, which anybody may call at
///   any time, also from inside another call.
/// - The owner reads the *working* state: what was written last, or after `start_over` what was
///   filled in. Readers see the state that was written last, with its position, and after a
///   `start_over` the former one until the runtime has switched.
/// - A scan sees one moment. `get` and `scan` never hold a lock that a call from `visit` needs.
pub(crate) trait Backing: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>>;
    fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()>;
    /// Calls `read` once.
    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()>;
    /// Pins the working state as it is now. Dropped unused, the pin ends.
    fn pin(&self) -> io::Result<Pinned>;
    /// Begins the working state anew, empty.
    fn start_over(&self) -> io::Result<()>;
    /// Adds to the state that was begun anew.
    fn fill(&self, pairs: &[(Bytes, Bytes)]) -> io::Result<()>;
}

impl Table {
    /// An empty table that no group writes, for the tests of a machine: every change counts at
    /// once, and its views are at the position before the first.
    #[must_use]
    pub fn in_memory() -> Self {
        let backing = Arc::<MemoryBacking>::default();
        Self::new(Arc::clone(&backing) as _, Some(backing))
    }

    /// The runtime writes its changes to the backing, now and then.
    pub(crate) fn over(backing: Arc<dyn Backing>) -> Self {
        Self::new(backing, None)
    }

    fn new(backing: Arc<dyn Backing>, at_once: Option<Arc<MemoryBacking>>) -> Self {
        let inner = Inner {
            backing,
            at_once,
            overlay: Mutex::default(),
            failed: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The value under `key`, with what this `apply` and those before it wrote.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        if self.inner.failed.get().is_some() {
            return None;
        }
        if let Some(changed) = self.overlay().get(key) {
            return changed;
        }
        let stored = self.inner.backing.get(key);
        stored.unwrap_or_else(|error| {
            self.fail(&error);
            None
        })
    }

    /// Sets `key` to `value`, whatever was there.
    pub fn put(&self, key: &[u8], value: impl Into<Bytes>) {
        let value = value.into();
        assert!(
            key.len() <= KEY_BYTES_MAX,
            "a key of {} bytes: a table takes {KEY_BYTES_MAX}",
            key.len()
        );
        assert!(
            value.len() <= VALUE_BYTES_MAX,
            "a value of {} bytes: a table takes {VALUE_BYTES_MAX}",
            value.len()
        );
        self.change(|overlay| overlay.put(key, value));
    }

    /// Deletes `key`, if it is there.
    pub fn delete(&self, key: &[u8]) {
        self.change(|overlay| overlay.delete(key));
    }

    /// Deletes every key of the range. Costs the same however many there are.
    pub fn delete_range(&self, from: &[u8], to: &[u8]) {
        self.change(|overlay| overlay.delete_range(from, end(to)));
    }

    /// Visits the range's keys and values until `visit` breaks.
    ///
    /// It sees the table as it was when it began: what `visit` changes meanwhile it does not meet.
    pub fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) {
        if self.inner.failed.get().is_some() {
            return;
        }
        // A clone that shares everything: so no lock is held while `visit` runs.
        let overlay = self.overlay().clone();
        if let Err(error) = overlay.scan(&*self.inner.backing, from, end(to), order, visit) {
            self.fail(&error);
        }
    }

    /// What readers see of it.
    #[must_use]
    pub fn view(&self) -> TableView {
        TableView {
            backing: Arc::clone(&self.inner.backing),
        }
    }

    /// Replaces the whole table by what [`Snapshot::of_table`](super::Snapshot::of_table) wrote:
    /// what the `restore` of a machine does that keeps its state here. A piece at a time, so memory
    /// need not hold it.
    ///
    /// # Errors
    /// When the bytes are no such snapshot, or cannot be read or written. The table is then of no
    /// use to the machine; readers go on seeing the former one.
    pub fn restore(&self, mut from: SnapshotReader<'_>) -> io::Result<()> {
        *self.overlay() = Overlay::default();
        self.inner.backing.start_over()?;
        stream::read(&mut from, &mut |pairs| self.inner.backing.fill(pairs))
    }

    /// Bytes of changes that are not yet written.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        self.overlay().bytes()
    }

    /// Hands over what is not yet written, for the runtime to write it; from now on it counts as
    /// written.
    ///
    /// # Errors
    /// If a read has failed: what was made of it must not be written.
    pub(crate) fn take_changes(&self) -> Result<Changes, Cause> {
        let changes = std::mem::take(&mut *self.overlay()).into_changes();
        match self.inner.failed.get() {
            Some(cause) => Err(cause.clone()),
            None => Ok(changes),
        }
    }

    /// The first failure of the store that the machine met.
    pub(crate) fn failed(&self) -> Option<Cause> {
        self.inner.failed.get().cloned()
    }

    /// The whole table as it is now, in the snapshot's format.
    pub(super) fn pin(
        &self,
    ) -> io::Result<impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + use<>> {
        if !self.overlay().is_empty() {
            return Err(io::Error::other(
                "a snapshot of a table was asked for while a command is applied",
            ));
        }
        let pinned = self.inner.backing.pin()?;
        Ok(move |out: &mut dyn io::Write| stream::write(pinned, out))
    }

    fn change(&self, change: impl FnOnce(&mut Overlay)) {
        let mut overlay = self.overlay();
        change(&mut overlay);
        if let Some(memory) = &self.inner.at_once {
            memory.write(&std::mem::take(&mut *overlay).into_changes());
        }
    }

    fn fail(&self, error: &io::Error) {
        let cause = Cause::new(format_args!("the machine's table cannot be read: {error}"));
        // The first cause stays.
        let _ = self.inner.failed.set(cause);
    }

    fn overlay(&self) -> MutexGuard<'_, Overlay> {
        // Changed by whole steps, so a panic elsewhere leaves it usable.
        self.inner
            .overlay
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Table {
    /// [`Table::in_memory`]: what a machine holds before it is opened.
    fn default() -> Self {
        Self::in_memory()
    }
}

impl TableView {
    /// Runs `read` on one moment of the table: the latest that is written.
    ///
    /// Blocking, as the disk is: `read` should be short, and long work on much data belongs on a
    /// blocking thread. While it runs the store keeps what it might read, so do not wait in it.
    ///
    /// # Errors
    /// If the store is closed or has failed. What single reads fail with, they return themselves.
    pub fn read<R>(&self, read: impl FnOnce(&Moment<'_>) -> R) -> io::Result<R> {
        let mut read = Some(read);
        let mut result = None;
        self.backing.at_one_moment(&mut |reads| {
            result = read.take().map(|read| read(&Moment { reads }));
        })?;
        result.ok_or_else(|| io::Error::other("the store gave no moment to read"))
    }
}

impl Moment<'_> {
    /// The value under `key`.
    ///
    /// # Errors
    /// If the store fails or what it holds is damaged.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.reads.get(key)
    }

    /// Visits the range's keys and values until `visit` breaks.
    ///
    /// # Errors
    /// If the store fails or what it holds is damaged.
    pub fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()> {
        let to = end(to);
        if from >= to {
            return Ok(());
        }
        self.reads.scan(from, to, order, visit)
    }

    /// The position of the last command in it: of an entry that holds several, the last one's.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.reads.applied()
    }
}

/// An empty end of a range means that it has none.
fn end(to: &[u8]) -> &[u8] {
    if to.is_empty() { END } else { to }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("failed", &self.inner.failed.get())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TableView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableView").finish_non_exhaustive()
    }
}

impl fmt::Debug for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moment")
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}
