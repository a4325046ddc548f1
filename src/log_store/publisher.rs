//! One author's log of a topic, written from here: signed in order, proposed in order, told when
//! committed.
//!
//! ```text
//! sign     at once, on the last operation signed: its id is known before anything is proposed
//! propose  what waits, packed into commands, several under way
//! settle   in order. At the first that was not taken everything under way is awaited, the log's
//!          committed end is read, and what is left is signed anew from there
//! ```
//!
//! All publishers of one author and topic on one member are one. Another process that writes with
//! the same key is not known here; whichever commits first keeps its place, and the other signs
//! anew. So nothing forks, and as nothing leaves a member before it is committed, nobody sees what
//! was given up.
//!
//! A message is never published twice: what was proposed is signed anew only once it is known that
//! it was not applied, and will not be. An operation with the prune flag is taken whatever comes
//! before it, so it goes alone.
//!
//! Without a quorum nobody waits for ever who need not. When nothing was settled for
//! `execute_timeout`, everything that was not handed in, or is known not to have been applied, ends
//! with [`PublishError::NoQuorum`]. Only what may have been applied is waited for until a quorum
//! tells.

mod error;
mod patience;
mod recover;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

pub use self::error::PublishError;
use self::{patience::Patience, recover::Fate};
use super::{
    Logs,
    error::{LogError, LogRefused, Refusal},
    ingest,
    machine::{APPEND_OPERATIONS_MAX, LogCommand, RawOperation},
    operation::{Author, AuthorKey, Draft, Line, Operation, OperationId, Topic},
    reader,
};

/// Operations of one author and topic that wait or are under way; more wait for room.
pub const PUBLISHES_MAX: usize = 1_024;
/// Bytes of their bodies; a larger one goes when there is nothing else.
pub const PUBLISH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Commands under way of one author and topic.
const BATCHES_MAX: usize = 8;
/// Bytes of operations in one command; a larger operation goes alone.
const BATCH_BYTES_TARGET: usize = 256 * 1024;
/// More than a header of ours has: at most 272 bytes.
const HEADER_ROOM: usize = 512;

/// The publishers of one member, so that there is one an author and topic.
#[derive(Default)]
pub(in crate::log_store) struct Publishers {
    all: Mutex<HashMap<(Author, Topic), Weak<Inner>>>,
}

impl fmt::Debug for Publishers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Publishers")
    }
}

/// Writes one author's log of one topic.
#[derive(Clone)]
pub(crate) struct Publisher {
    inner: Arc<Inner>,
}

struct Inner {
    logs: Logs,
    key: AuthorKey,
    topic: Topic,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    chain: tokio::sync::Mutex<Chain>,
    /// Something waits.
    more: Notify,
    patience: Patience,
    end: Mutex<End>,
}

/// What is signed and not proposed yet.
#[derive(Default)]
struct Chain {
    /// The end of the log with all that is signed; none until the committed one was read.
    tip: Option<Tip>,
    /// Its end with all that was handed in: what waits begins there.
    handed_in: Option<Tip>,
    waiting: VecDeque<Pending>,
    /// Whether a task proposes what waits.
    driven: bool,
}

/// Where the next operation goes.
#[derive(Clone, Copy, Debug)]
struct Tip {
    line: Line,
    last: Option<(u32, OperationId)>,
    /// What is below was pruned when the committed end was read.
    first: u32,
    /// The author's time never goes back.
    micros: u64,
}

/// The last operation that is known to be committed in the log: its place and its id.
type End = Option<(u32, OperationId)>;

/// An operation that its author waits for.
struct Pending {
    operation: Operation,
    /// How often another writer has taken its place.
    rounds: u32,
    /// It was refused together with others, and goes alone to see which one it was.
    suspect: bool,
    tell: oneshot::Sender<Result<Published, PublishError>>,
    _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// A command handed in, and what it carries.
struct Batch {
    carried: Vec<Pending>,
    answer: BoxFuture<'static, Vec<Fate>>,
}

/// What is under way.
#[derive(Clone, Copy)]
struct Busy {
    batches: usize,
    /// Whether one is that goes alone.
    alone: bool,
}

impl Busy {
    fn of(under_way: &VecDeque<Batch>) -> Self {
        Self {
            batches: under_way.len(),
            alone: under_way.iter().flat_map(|it| &it.carried).any(alone),
        }
    }
}

/// A message is committed: a quorum has it on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The operation that carries it.
    pub id: OperationId,
    /// Its number in the topic's commit order.
    pub number: u64,
}

/// A message on its way. Await it for the commit; dropping it does not call the message back.
///
/// Without a quorum it ends with [`PublishError::NoQuorum`] once nothing of the topic was committed
/// for [`execute_timeout`](crate::config::Config::execute_timeout), if the message was certainly
/// not applied. If it may have been, which is so when a leader took it and then lost its quorum, it
/// waits until there is a quorum that knows: to give up before would be to guess. Who cannot wait
/// puts a time limit around it, and publishes the message again only if it may come twice.
#[must_use = "a message that is not awaited may be refused unseen"]
pub struct Publishing {
    id: OperationId,
    told: oneshot::Receiver<Result<Published, PublishError>>,
}

impl Publishing {
    /// The operation that carries the message, as it is signed now. Where something before it is
    /// refused it is signed anew: [`Published::id`] is final.
    #[must_use]
    pub fn id(&self) -> OperationId {
        self.id
    }
}

impl Future for Publishing {
    type Output = Result<Published, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let told = self.told.poll_unpin(context);
        // The task ends early only with its runtime.
        told.map(|it| it.unwrap_or(Err(PublishError::Unknown)))
    }
}

impl fmt::Debug for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publishing")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// The one that writes this author's log of the topic on this member.
    pub(in crate::log_store) fn of(logs: &Logs, key: &AuthorKey, topic: Topic) -> Self {
        let publishers = Arc::clone(&logs.publishers);
        let mut all = publishers
            .all
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let name = (key.author(), topic);
        if let Some(inner) = all.get(&name).and_then(Weak::upgrade) {
            return Self { inner };
        }
        let inner = Arc::new(Inner {
            logs: logs.clone(),
            key: key.clone(),
            topic,
            places: Arc::new(Semaphore::new(PUBLISHES_MAX)),
            bytes: Arc::new(Semaphore::new(PUBLISH_BYTES_MAX)),
            chain: tokio::sync::Mutex::default(),
            more: Notify::new(),
            patience: Patience::new(logs.group.execute_timeout()),
            end: Mutex::default(),
        });
        all.retain(|_, it| it.strong_count() > 0);
        all.insert(name, Arc::downgrade(&inner));
        Self { inner }
    }

    /// Whose log it is.
    pub(crate) fn author(&self) -> Author {
        self.inner.key.author()
    }

    /// Signs the next operation of the log, hands it to those that wait and tells its id. Waits
    /// for room, and the first time for the log's committed end: for `execute_timeout`, and longer
    /// while others of the log are committed.
    ///
    /// # Errors
    /// Nothing was published, nor will be.
    pub(crate) async fn publish(
        &self,
        body: Option<Bytes>,
        prune: bool,
    ) -> Result<Publishing, PublishError> {
        let inner = &self.inner;
        let length = body.as_ref().map_or(0, Bytes::len);
        let max = inner.logs.operation_bytes_max().saturating_sub(HEADER_ROOM);
        if length > max {
            return Err(PublishError::Refused(Refusal::TooLarge {
                bytes: length as u64,
                max: max as u64,
            }));
        }
        let signable = async {
            let room = inner.room(length).await?;
            let (chain, tip) = inner.signable().await?;
            Ok::<_, PublishError>((room, chain, tip))
        };
        let (room, mut chain, tip) = inner.patience.with(signable).await??;
        let draft = tip.draft(inner.topic, body, prune, now_micros());
        let operation = Operation::sign(draft, &inner.key)
            .map_err(|refused| PublishError::Refused(Refusal::Invalid(refused)))?;
        let id = operation.id();
        chain.tip = Some(tip.after(&operation));
        let (tell, told) = oneshot::channel();
        chain.waiting.push_back(Pending {
            operation,
            rounds: 0,
            suspect: false,
            tell,
            _room: room,
        });
        if chain.driven {
            inner.more.notify_one();
        } else {
            chain.driven = true;
            tokio::spawn(Arc::clone(inner).drive());
        }
        Ok(Publishing { id, told })
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("author", &self.author())
            .field("topic", &self.inner.topic)
            .finish_non_exhaustive()
    }
}

impl Inner {
    async fn room(
        &self,
        bytes: usize,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), PublishError> {
        let bytes = u32::try_from(bytes.min(PUBLISH_BYTES_MAX)).unwrap_or(u32::MAX);
        // Neither is ever closed.
        let place = Arc::clone(&self.places).acquire_owned().await;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
        place.ok().zip(bytes.ok()).ok_or(PublishError::Unknown)
    }

    /// The chain, and where the next operation goes.
    async fn signable(&self) -> Result<(tokio::sync::MutexGuard<'_, Chain>, Tip), PublishError> {
        let mut chain = self.chain.lock().await;
        let tip = match chain.tip {
            Some(tip) => tip,
            None => {
                let tip = self.committed_tip().await?;
                (chain.tip, chain.handed_in) = (Some(tip), Some(tip));
                *self.end() = tip.last;
                tip
            }
        };
        Ok((chain, tip))
    }

    /// Where the log ends, with everything that was acknowledged before this was called.
    async fn committed_tip(&self) -> Result<Tip, PublishError> {
        let logs = &self.logs;
        logs.confirmed(logs.group.query_timeout()).await?;
        let (author, topic) = (self.key.author(), self.topic);
        let read = logs.elsewhere(move |moment| {
            let record = reader::topic(moment, topic)?;
            Ok((record, reader::head(moment, author, topic.log_id())?))
        });
        let (record, head) = read.await?;
        let Some(record) = record.filter(|it| it.open) else {
            return Err(LogError::from(LogRefused::NotOpen).into());
        };
        let held = head.and_then(|it| it.held);
        Ok(Tip {
            line: record.line,
            last: held.map(|it| (it.last, it.last_id)),
            first: held.map_or(0, |it| it.first),
            micros: 0,
        })
    }

    /// Proposes what waits until nothing does.
    async fn drive(self: Arc<Self>) {
        let mut under_way: VecDeque<Batch> = VecDeque::new();
        self.patience.begin();
        loop {
            while let Some(carried) = self.next_batch(Busy::of(&under_way)).await {
                let answer = self.hand_in(&carried).await;
                under_way.push_back(Batch { carried, answer });
            }
            let Some(first) = under_way.front_mut() else {
                return;
            };
            tokio::select! {
                biased;
                fates = &mut first.answer => {
                    let carried = under_way.pop_front().map(|it| it.carried).unwrap_or_default();
                    self.patience.hear(&fates);
                    // What it carried was given up, and what waits was signed behind it.
                    let hole = carried.is_empty();
                    let left = self.settle(carried, fates);
                    if hole || !left.is_empty() {
                        self.recover(left, std::mem::take(&mut under_way)).await;
                    }
                }
                () = self.more.notified() => {}
                () = self.patience.lost() => self.give_up(&mut under_way, &mut Vec::new()).await,
            }
        }
    }

    /// Tells those that are committed; from the first on that is not, gives them back.
    fn settle(&self, carried: Vec<Pending>, fates: Vec<Fate>) -> Vec<(Pending, Fate)> {
        let mut left = Vec::new();
        for (pending, fate) in carried.into_iter().zip(fates) {
            match fate {
                Fate::Committed(number) if left.is_empty() => self.committed(pending, number),
                fate => left.push((pending, fate)),
            }
        }
        left
    }

    fn committed(&self, pending: Pending, number: u64) {
        let (seq, id) = (pending.operation.seq(), pending.operation.id());
        let mut end = self.end();
        *end = (*end).max(Some((seq, id)));
        drop(end);
        pending.end(Ok(Published { id, number }));
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes into the next command, if it may go now. None with nothing under way ends the
    /// task: who publishes next starts another.
    async fn next_batch(&self, busy: Busy) -> Option<Vec<Pending>> {
        let mut chain = self.chain.lock().await;
        let idle = busy.batches == 0;
        if busy.batches >= BATCHES_MAX || busy.alone {
            return None;
        }
        let max = BATCH_BYTES_TARGET.min(self.logs.operation_bytes_max());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(next) = chain.waiting.front() {
            if alone(next) && !(batch.is_empty() && idle) {
                break;
            }
            bytes += ingest::weight(&next.operation);
            if !batch.is_empty() && (bytes > max || batch.len() == APPEND_OPERATIONS_MAX) {
                break;
            }
            let alone = alone(next);
            chain.handed_in = chain.handed_in.map(|it| it.after(&next.operation));
            batch.extend(chain.waiting.pop_front());
            if alone {
                break;
            }
        }
        if batch.is_empty() && idle {
            chain.driven = false;
        }
        (!batch.is_empty()).then_some(batch)
    }

    async fn hand_in(&self, carried: &[Pending]) -> BoxFuture<'static, Vec<Fate>> {
        let count = carried.len();
        let raw = |it: &Pending| RawOperation {
            header: it.operation.header().clone(),
            body: it.operation.body().cloned(),
        };
        let command = LogCommand::Append {
            topic: self.topic,
            operations: carried.iter().map(raw).collect(),
        };
        let group = self.logs.group.clone();
        let fate = tokio::select! {
            biased;
            handed_in = group.hand_in(command) => match handed_in {
                Ok(answer) => return Box::pin(recover::fates(group.clone(), answer, count)),
                Err(error) => Fate::of_error(error),
            },
            // It waits for room among the group's other commands, and was not handed in.
            () = self.patience.lost() => Fate::NotApplied(PublishError::NoQuorum),
        };
        Box::pin(std::future::ready(vec![fate; count]))
    }
}

impl Tip {
    fn draft(&self, topic: Topic, body: Option<Bytes>, prune: bool, now: u64) -> Draft {
        let first = Draft::first(self.line, topic.log_id(), now.max(self.micros), body);
        Draft {
            // Behind the last that a log can have comes 0 with a backlink, which is refused.
            seq: self.last.map_or(0, |(seq, _)| seq.wrapping_add(1)),
            backlink: self.last.map(|(_, id)| id),
            prune,
            ..first
        }
    }

    fn after(self, operation: &Operation) -> Self {
        Self {
            last: Some((operation.seq(), operation.id())),
            micros: operation.timestamp_micros().saturating_add(1),
            ..self
        }
    }

    /// Whether the operation is the next one of the log.
    fn fits(&self, operation: &Operation) -> bool {
        let next = self.last.map_or(Some(0), |(seq, _)| seq.checked_add(1));
        self.line == operation.line()
            && next == Some(operation.seq())
            && self.last.map(|(_, id)| id) == operation.backlink()
    }
}

/// Whether nothing else may be under way with it.
fn alone(pending: &Pending) -> bool {
    pending.operation.prune() || pending.suspect
}

impl Pending {
    fn end(self, end: Result<Published, PublishError>) {
        // Nobody needs to wait for it.
        let _ = self.tell.send(end);
    }
}

fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_micros()).unwrap_or(u64::MAX))
}
