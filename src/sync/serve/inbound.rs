//! What a peer pushes on its way into the group: decoded as it comes, proposed in batches beside
//! the session, so that the session never stops reading.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::rate::Quota;
use crate::log_store::{
    Author, ChainRefused, Line, LogError, Logs, Operation, Outcome, Refusal, Refused, Topic,
};

/// Operations that wait for their turn; with the bytes, what bounds a peer.
const WAITING_MAX: usize = 16 * 1024;
/// Logs of a session of which something was not taken; with more, nothing more is.
const CUT_MAX: usize = 1_024;
/// Operations proposed at once.
const BATCH_MAX: usize = 1_024;

/// The way in of one session.
pub(super) struct Inbound {
    to: mpsc::Sender<Waiting>,
    told: Arc<Told>,
    bytes_max: usize,
    quota: Quota,
    line: Line,
    topic: Topic,
    cut: Cut,
    task: JoinHandle<()>,
}

/// An operation on its way, and the room that it takes.
struct Waiting {
    operation: Operation,
    room: Room,
}

/// What an operation takes of what may wait; given back when dropped, whatever becomes of it.
struct Room {
    told: Arc<Told>,
    quota: Quota,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.told.waiting_bytes.fetch_sub(self.bytes, Relaxed);
        self.quota.done(self.bytes);
    }
}

/// The logs of which something was not taken in this session: what follows there is a gap.
#[derive(Default)]
struct Cut {
    authors: BTreeSet<Author>,
    /// There are more than are remembered.
    all: bool,
}

/// What has become of a session's operations so far.
#[derive(Default)]
pub(super) struct Told {
    waiting_bytes: AtomicUsize,
    pub(super) received: AtomicU64,
    pub(super) appended: AtomicU64,
    pub(super) held: AtomicU64,
    /// Not taken now, but maybe when sent again: after a gap, or beyond the bounds.
    pub(super) again: AtomicU64,
    /// Told when that grows.
    pub(super) retry: Notify,
    /// Never to be taken.
    pub(super) refused: AtomicU64,
    /// Whether what waits is discarded.
    discards: AtomicBool,
    wrong: Mutex<Wrong>,
}

/// What was wrong with a peer's operations.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrong {
    /// Whose logs the peer would send for ever.
    pub(super) authors: BTreeSet<Author>,
    /// The last refusal, in words.
    pub(super) last: Option<String>,
}

impl Inbound {
    pub(super) fn start(
        logs: Logs,
        (topic, line): (Topic, Line),
        bytes_max: usize,
        quota: Quota,
    ) -> Self {
        let (to, from) = mpsc::channel(WAITING_MAX);
        let told = Arc::<Told>::default();
        let ingest = move |operations| {
            let logs = logs.clone();
            async move { logs.ingest(topic, operations).await }
        };
        let task = propose(ingest, from, Arc::clone(&told));
        let task = tokio::spawn(task);
        Self {
            to,
            told,
            bytes_max,
            quota,
            line,
            topic,
            cut: Cut::default(),
            task,
        }
    }

    /// Takes an operation in, or discards it: never waits.
    pub(super) fn take(&mut self, header: Bytes, body: Option<Bytes>) {
        self.told.received.fetch_add(1, Relaxed);
        // The stream's buffers are large; an operation that waits must not hold them.
        let header = Bytes::copy_from_slice(&header);
        let body = body.map(|it| Bytes::copy_from_slice(&it));
        let operation = match Operation::decode(self.line, header, body) {
            Ok(operation) => operation,
            Err(refused) => return self.told.refuse(None, &refused),
        };
        if operation.log_id() != self.topic.log_id() {
            return self.told.refuse(None, &ChainRefused::OtherLog);
        }
        let author = operation.author();
        if self.cut.has(author) || !self.has_taken(operation) {
            self.cut.add(author);
            self.told.not_taken(1);
        }
    }

    /// Hands it to be proposed, if that is within the bounds of the session and of the peer.
    fn has_taken(&self, operation: Operation) -> bool {
        let bytes = operation.bytes() as usize;
        let waiting = self.told.waiting_bytes.load(Relaxed);
        if waiting > 0 && waiting + bytes > self.bytes_max {
            return false;
        }
        if !self.quota.take(bytes, Instant::now()) {
            return false;
        }
        self.told.waiting_bytes.fetch_add(bytes, Relaxed);
        let room = Room {
            told: Arc::clone(&self.told),
            quota: self.quota.clone(),
            bytes,
        };
        self.to.try_send(Waiting { operation, room }).is_ok()
    }

    /// Has what still waits discarded, but for what is being proposed now.
    pub(super) fn discard(&self) {
        self.told.discards.store(true, Relaxed);
    }

    pub(super) fn told(&self) -> &Arc<Told> {
        &self.told
    }

    /// Waits until everything that was taken in is committed or refused.
    pub(super) async fn finish(self) -> Arc<Told> {
        drop(self.to);
        if self.task.await.is_err() {
            // A panic has been reported; what it was about is to come again.
            self.told.not_taken(1);
        }
        self.told
    }
}

impl Cut {
    fn has(&self, author: Author) -> bool {
        self.all || self.authors.contains(&author)
    }

    fn add(&mut self, author: Author) {
        if self.authors.len() < CUT_MAX {
            self.authors.insert(author);
        } else {
            self.all |= !self.authors.contains(&author);
        }
    }
}

async fn propose<I, F>(ingest: I, mut from: mpsc::Receiver<Waiting>, told: Arc<Told>)
where
    I: Fn(Vec<Operation>) -> F,
    F: Future<Output = Result<Vec<Outcome>, LogError>>,
{
    let mut batch = Vec::new();
    while from.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (operations, rooms): (Vec<Operation>, Vec<Room>) = batch
            .drain(..)
            .map(|Waiting { operation, room }| (operation, room))
            .unzip();
        let authors: Vec<Author> = operations.iter().map(Operation::author).collect();
        if told.discards.load(Relaxed) {
            told.not_taken(authors.len() as u64);
        } else {
            match ingest(operations).await {
                Ok(outcomes) => {
                    for (author, outcome) in authors.into_iter().zip(outcomes) {
                        told.note(author, &outcome);
                    }
                }
                Err(error) => told.not_known(authors.len(), &error),
            }
        }
        drop(rooms);
    }
}

impl Told {
    pub(super) fn wrong(&self) -> Wrong {
        self.locked().clone()
    }

    fn note(&self, author: Author, outcome: &Outcome) {
        match outcome {
            Outcome::Appended { .. } => drop(self.appended.fetch_add(1, Relaxed)),
            Outcome::Held { .. } => drop(self.held.fetch_add(1, Relaxed)),
            Outcome::Refused(Refusal::Chain(ChainRefused::Gap { .. })) => {
                self.not_taken(1);
            }
            // Below what the group has pruned: as good as held.
            Outcome::Refused(Refusal::Chain(ChainRefused::Pruned { .. })) => {
                self.held.fetch_add(1, Relaxed);
            }
            Outcome::Refused(
                refusal @ (Refusal::Chain(_) | Refusal::Invalid(Refused::BodyMissing { .. })),
            ) => self.refuse(Some(author), refusal),
            // A forgery says nothing about whose name it bears, nor does a topic that is closed.
            Outcome::Refused(refusal) => self.refuse(None, refusal),
        }
    }

    fn not_taken(&self, count: u64) {
        self.again.fetch_add(count, Relaxed);
        self.retry.notify_one();
    }

    fn not_known(&self, count: usize, error: &LogError) {
        self.not_taken(count as u64);
        self.locked().last = Some(error.to_string());
    }

    fn refuse(&self, author: Option<Author>, why: &impl std::fmt::Display) {
        self.refused.fetch_add(1, Relaxed);
        let mut wrong = self.locked();
        if wrong.authors.len() < CUT_MAX {
            wrong.authors.extend(author);
        }
        wrong.last = Some(why.to_string());
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Wrong> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::PeerId,
        log_store::mint::Writer,
        sync::serve::{SyncOptions, rate::Rates},
    };

    /// Whatever becomes of what waits, its room is given back: to the session and to the peer.
    #[tokio::test]
    async fn a_panic_in_taking_in_gives_the_room_back() {
        let topic = Topic::named("cats");
        let options = SyncOptions::default();
        let rates = Arc::new(Rates::new(&options, Instant::now()));
        let quota = rates.of(PeerId::from_bytes([1; 32]));
        let (to, from) = mpsc::channel(WAITING_MAX);
        let told = Arc::<Told>::default();
        let ingest = |_| async { panic!("on purpose: a fault in taking in") };
        let task = propose(ingest, from, Arc::clone(&told));
        let mut inbound = Inbound {
            to,
            told,
            bytes_max: options.inbound_bytes_max,
            quota: quota.clone(),
            line: Line::V07,
            topic,
            cut: Cut::default(),
            task: tokio::task::spawn(std::future::ready(())),
        };
        for operation in Writer::new(1, topic, Line::V07).many(9) {
            inbound.take(operation.header().clone(), operation.body().cloned());
        }
        assert!(inbound.told.waiting_bytes.load(Relaxed) > 0);
        assert!(quota.waiting() > 0);
        inbound.task = tokio::spawn(task);
        let told = inbound.finish().await;
        assert_eq!(told.waiting_bytes.load(Relaxed), 0);
        assert_eq!(quota.waiting(), 0);
        assert_eq!(told.again.load(Relaxed), 1, "it is asked for again");
    }
}
