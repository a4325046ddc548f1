//! The one way to the engine: writes, and the thread that syncs once for all who wait.
//!
//! A writer writes its batch without a sync and leaves a callback. The thread takes every callback
//! that waits, syncs the log once, and answers them all; while it syncs, the next ones gather. So
//! the size of a group commit follows the speed of the disk, and a lone writer waits for nobody.
//!
//! After the first failed sync, or any other error of the engine, nobody knows what is on the disk
//! (a failed fsync may have dropped the pages it could not write), so the flusher is *poisoned*:
//! every later write and callback fails with the cause, for good. Healing is a reopen.

use std::{
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use tokio::sync::watch;

use super::{
    engine::{Batch, Engine, Family, Order, Reads, Visit},
    space::Space,
};
use crate::{error::Cause, metrics::Counters};

/// Told once whether what was written before is durable. Runs on the flusher's thread (at once,
/// on the caller's, if the engine does not outlive the process), so it must be quick, must not
/// block, and must not write to the store: with a full queue that would wait for itself.
pub(crate) type Synced = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Callbacks that may wait for one sync; a writer that comes later waits for room. Far above what
/// all groups together have in flight, so reaching it means that the disk has stalled.
const WAITING_MAX: usize = 16 * 1024;

/// Owns the engine and the thread.
pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    space: Space,
    counters: Arc<Counters>,
    queue: Mutex<Vec<Synced>>,
    /// Set under the queue's lock, so that nothing is queued after the thread's last look.
    closed: AtomicBool,
    /// The thread waits here for work.
    work: Condvar,
    /// Writers wait here for room.
    room: Condvar,
    failed: OnceLock<Cause>,
    failure: watch::Sender<Option<Cause>>,
}

impl Flusher {
    /// For an engine that is worth syncing.
    #[cfg(any(test, feature = "rocksdb"))]
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        space: Space,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(engine, space, counters));
        let thread = std::thread::Builder::new()
            .name("quorate-flush".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || run(&shared)
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// For an engine that forgets: callbacks run at once, without a hop to a thread.
    pub(super) fn without_thread(engine: Arc<dyn Engine>, counters: Arc<Counters>) -> Self {
        let shared = Arc::new(Shared::new(engine, Space::unlimited(), counters));
        Self {
            shared,
            thread: Mutex::new(None),
        }
    }

    /// Writes a batch that takes room: refused below the reserve of free space. Readable on
    /// return, not yet durable.
    pub(super) fn write(&self, batch: &Batch) -> io::Result<()> {
        self.shared.space.check_exhausted()?;
        self.write_freeing(batch)
    }

    /// Writes a batch that frees room sooner or later, so it is taken on a full disk too.
    pub(super) fn write_freeing(&self, batch: &Batch) -> io::Result<()> {
        self.check()?;
        self.engine_result(self.shared.engine.write(batch))
    }

    /// Calls `done` once everything written before is durable, or cannot be any more.
    /// Waits for room if the queue is full. If this fails, `done` is not called.
    pub(super) fn when_synced(&self, done: Synced) -> io::Result<()> {
        if !self.shared.engine.is_durable() {
            self.check_open()?;
            done(self.shared.sync(1).map_err(|cause| failed(&cause)));
            return Ok(());
        }
        let mut queue = self.shared.queue();
        while queue.len() >= WAITING_MAX && !self.shared.is_closed() {
            queue = self
                .shared
                .room
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if self.shared.is_closed() {
            return Err(closed());
        }
        queue.push(done);
        let first = queue.len() == 1;
        drop(queue);
        // The thread takes all at once, so only the first has somebody to wake.
        if first {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Waits on this thread until everything written before is durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let (tell, told) = mpsc::sync_channel(1);
        self.when_synced(Box::new(move |result| {
            // The receiver waits below, and a channel for one never blocks.
            let _ = tell.send(result);
        }))?;
        told.recv().unwrap_or_else(|_| Err(closed()))
    }

    pub(super) fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.check_open()?;
        self.engine_result(self.shared.engine.value(family, key))
    }

    pub(super) fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        self.check_open()?;
        self.engine_result(self.shared.engine.scan(family, from, to, order, visit))
    }

    /// Calls `read` once with the state of one moment; not on a store that has failed.
    pub(super) fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        self.check()?;
        let engine = &self.shared.engine;
        let done = engine.at_one_moment(&mut |reads| {
            read(&Watched {
                flusher: self,
                reads,
            });
        });
        self.engine_result(done)
    }

    /// Fails once the store is closed or has failed.
    pub(super) fn check_usable(&self) -> io::Result<()> {
        self.check()
    }

    /// Whether a write would be taken now: open, not poisoned, with room on the disk.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        self.check()?;
        self.shared.space.check()
    }

    /// Stops all writing for good.
    pub(super) fn poison(&self, cause: Cause) -> io::Error {
        failed(&self.shared.poison(cause))
    }

    pub(super) fn failed(&self) -> watch::Receiver<Option<Cause>> {
        self.shared.failure.subscribe()
    }

    /// Syncs and answers what waits, ends the thread and closes the engine. Idempotent; not to be
    /// called from a [`Synced`].
    pub(super) fn close(&self) {
        {
            let _queue = self.shared.queue();
            self.shared.closed.store(true, Ordering::Release);
        }
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Whoever drops the last handle inside a callback must not wait for himself.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            // It catches the panics of callbacks and has none of its own.
            let _ = thread.join();
        }
        self.shared.engine.close();
    }

    fn check(&self) -> io::Result<()> {
        match self.shared.failed.get() {
            Some(cause) => Err(failed(cause)),
            None => self.check_open(),
        }
    }

    fn check_open(&self) -> io::Result<()> {
        if self.shared.is_closed() {
            Err(closed())
        } else {
            Ok(())
        }
    }

    fn engine_result<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            // A call that lost the race with `close` met a closed engine; that is no failure.
            if self.shared.is_closed() {
                closed()
            } else {
                failed(&self.shared.poison(Cause::new(error)))
            }
        })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn new(engine: Arc<dyn Engine>, space: Space, counters: Arc<Counters>) -> Self {
        Self {
            engine,
            space,
            counters,
            queue: Mutex::default(),
            closed: AtomicBool::new(false),
            work: Condvar::new(),
            room: Condvar::new(),
            failed: OnceLock::new(),
            failure: watch::Sender::new(None),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Synced>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for work and takes all of it; false once the queue is closed and empty.
    #[cfg(any(test, feature = "rocksdb"))]
    fn take(&self, taken: &mut Vec<Synced>) -> bool {
        let mut queue = self.queue();
        loop {
            if !queue.is_empty() {
                let was_full = queue.len() >= WAITING_MAX;
                std::mem::swap(&mut *queue, taken);
                drop(queue);
                if was_full {
                    self.room.notify_all();
                }
                return true;
            }
            if self.is_closed() {
                return false;
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn sync(&self, waiting: u64) -> Result<(), Cause> {
        if let Some(cause) = self.failed.get() {
            return Err(cause.clone());
        }
        fail::fail_point!("flusher::before_sync");
        let result = self
            .engine
            .sync()
            .map_err(|error| self.poison(Cause::new(error)));
        fail::fail_point!("flusher::after_sync");
        if self.engine.is_durable() {
            self.counters.syncs.add(1);
            self.counters.synced_writes.add(waiting);
        }
        result
    }

    /// The first cause stays, and is returned.
    fn poison(&self, cause: Cause) -> Cause {
        if self.failed.set(cause.clone()).is_ok() {
            tracing::error!(%cause, "the store has failed; nothing more is written");
            self.failure.send_replace(Some(cause.clone()));
        }
        self.failed.get().cloned().unwrap_or(cause)
    }
}

/// Reads whose errors stop the store, as all errors of the engine do.
struct Watched<'a> {
    flusher: &'a Flusher,
    reads: &'a dyn Reads,
}

impl Reads for Watched<'_> {
    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.flusher.engine_result(self.reads.value(family, key))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        let scanned = self.reads.scan(family, from, to, order, visit);
        self.flusher.engine_result(scanned)
    }
}

#[cfg(any(test, feature = "rocksdb"))]
fn run(shared: &Shared) {
    let mut taken: Vec<Synced> = Vec::new();
    while shared.take(&mut taken) {
        let result = shared.sync(taken.len() as u64);
        for done in taken.drain(..) {
            let told = result.as_ref().map_err(failed).copied();
            // One caller's panic must not silence all others.
            let call = std::panic::AssertUnwindSafe(move || done(told));
            if std::panic::catch_unwind(call).is_err() {
                tracing::error!("a callback of the flusher panicked");
            }
        }
        shared.space.look_if_due();
    }
}

/// The store has stopped after an error of the disk or the engine. Only opening it anew can heal
/// that.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store has failed and takes no more writes, reopen it: {0}")]
struct StoreFailed(Cause);

fn failed(cause: &Cause) -> io::Error {
    io::Error::other(StoreFailed(cause.clone()))
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the store is closed")
}

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher")
            .field("failed", &self.shared.failed)
            .finish_non_exhaustive()
    }
}
