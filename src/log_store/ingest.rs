//! The way in: operations are looked up, checked on all cores, packed into commands and proposed,
//! several at a time, and what became of each is told in the order they came.
//!
//! ```text
//! cut      a chunk off the source: each log's operations in their order, each id claimed
//! check    on a blocking thread: what is held already is done, signatures of the rest
//! propose  in order, packed; the next chunk is checked meanwhile
//! settle   in order: outcomes, and once more what was overtaken on the way
//! ```
//!
//! Appending is idempotent by id, so whatever is in doubt is proposed again.

mod check;
mod flight;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, future::BoxFuture, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinHandle,
    time::Instant,
};

pub(super) use self::flight::InFlight;
use self::{
    check::{check, judge},
    flight::{Claims, Flight, Outcomes, length},
};
use super::{
    Logs,
    error::{ChainRefused, LogError, Outcome, Refusal},
    machine::{APPEND_OPERATIONS_MAX, LogCommand, LogOutput, LogStore, OutcomeRun, RawOperation},
    operation::{Author, Operation, Topic},
};
use crate::{
    group::{ExecuteError, Group},
    task::Given,
};

/// Operations that are claimed, checked and settled together.
const CHUNK_OPERATIONS: usize = 1_024;
/// Bytes after which a chunk is full; its last operation may exceed them.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks of one call that are checked ahead. Checking one takes all cores.
const CHECKING_MAX: usize = 2;
/// Chunks of one call that are proposed and not settled.
const PROPOSED_MAX: usize = 8;
/// Bytes of operations in one command, where the group's limit allows as many; a larger operation
/// goes alone.
const COMMAND_BYTES_TARGET: usize = 256 * 1024;
/// What a command has besides its operations, and an operation besides its bytes, at most.
const COMMAND_OVERHEAD: usize = 64;
const OPERATION_OVERHEAD: usize = 16;
/// How long an operation that another call has under way is waited for before it is proposed here.
const FLIGHT_PATIENCE: Duration = Duration::from_secs(2);
/// How often operations of a chunk are proposed again that were overtaken or are in doubt.
const ROUNDS_MAX: usize = 4;
/// Authors of one call whose progress is remembered.
const AUTHORS_MAX: usize = 4_096;

/// Operations that go together.
struct Chunk {
    operations: Vec<Operation>,
    /// In which order they are proposed: each log's are sorted, among themselves.
    order: Vec<usize>,
    fates: Vec<Fate>,
    claims: Claims,
    _room: OwnedSemaphorePermit,
}

enum Fate {
    /// To be proposed.
    Ours,
    /// Another chunk, or this one further ahead, has it under way.
    Theirs(Flight),
    Known(Outcome),
}

/// A chunk whose commands are handed in.
enum Proposed {
    Sent(Chunk, Vec<Sent>),
    /// It could not be checked: the same for all its operations.
    Failed(usize, LogError),
}

/// A command handed in: which operations it carries.
struct Sent {
    carried: Vec<usize>,
    answer: BoxFuture<'static, Result<LogOutput, ExecuteError>>,
}

/// Appends what the iterator gives; see [`Logs::append_many`].
///
/// A task of its own drives it, so that what is under way ends whether or not the stream is polled:
/// others may wait for it. A chunk is only cut when there is a slot for its outcomes.
pub(super) fn append<I>(
    logs: Logs,
    topic: Topic,
    operations: I,
) -> impl Stream<Item = Result<Outcome, LogError>> + Send + 'static
where
    I: Iterator<Item = Operation> + Send + 'static,
{
    let start = Reading::Unstarted(Box::new(Pipeline {
        door: Door { logs, topic },
        source: operations,
        waiting: Vec::new(),
        checking: VecDeque::new(),
        proposed: VecDeque::new(),
        reached: HashMap::new(),
    }));
    stream::unfold(start, |mut reading| async move {
        let outcome = reading.next().await?;
        Some((outcome, reading))
    })
}

/// The end of a pipeline that its caller holds.
enum Reading<I> {
    Unstarted(Box<Pipeline<I>>),
    Started {
        ready: VecDeque<Result<Outcome, LogError>>,
        outcomes: Given<Vec<Result<Outcome, LogError>>>,
    },
    Ended,
}

impl<I: Iterator<Item = Operation> + Send + 'static> Reading<I> {
    async fn next(&mut self) -> Option<Result<Outcome, LogError>> {
        loop {
            match std::mem::replace(self, Self::Ended) {
                Self::Unstarted(pipeline) => {
                    let (tell, outcomes) = mpsc::channel(CHECKING_MAX + PROPOSED_MAX);
                    *self = Self::Started {
                        ready: VecDeque::new(),
                        outcomes: Given::new(outcomes, tokio::spawn(pipeline.run(tell))),
                    };
                }
                Self::Started {
                    mut ready,
                    mut outcomes,
                } => {
                    if ready.is_empty() {
                        ready.extend(outcomes.next().await?);
                    }
                    let outcome = ready.pop_front();
                    *self = Self::Started { ready, outcomes };
                    if outcome.is_some() {
                        return outcome;
                    }
                }
                Self::Ended => return None,
            }
        }
    }
}

/// Where a chunk's outcomes will go.
type Slot = mpsc::OwnedPermit<Vec<Result<Outcome, LogError>>>;

/// One call's operations on their way.
struct Pipeline<I> {
    door: Door,
    source: I,
    /// Cut off the source, and without room yet.
    waiting: Vec<Operation>,
    checking: VecDeque<Checking>,
    proposed: VecDeque<(Proposed, Slot)>,
    /// The highest sequence number of each author that this call knows to be held.
    reached: HashMap<Author, u32>,
}

/// Where a call's commands go.
struct Door {
    logs: Logs,
    topic: Topic,
}

/// A chunk of so many operations that is being checked.
struct Checking {
    count: usize,
    checked: JoinHandle<Result<Chunk, LogError>>,
    slot: Slot,
}

impl<I: Iterator<Item = Operation>> Pipeline<I> {
    async fn run(mut self: Box<Self>, tell: mpsc::Sender<Vec<Result<Outcome, LogError>>>) {
        loop {
            self.fill(&tell).await;
            let Some((proposed, slot)) = self.proposed.pop_front() else {
                return;
            };
            slot.send(match proposed {
                Proposed::Sent(chunk, sent) => self.settle(chunk, sent).await,
                Proposed::Failed(count, error) => (0..count).map(|_| Err(error.clone())).collect(),
            });
        }
    }

    /// Keeps as many chunks under way as may be.
    async fn fill(&mut self, tell: &mpsc::Sender<Vec<Result<Outcome, LogError>>>) {
        while self.proposed.len() < PROPOSED_MAX {
            while self.checking.len() < CHECKING_MAX && self.begin_check(tell).await {}
            let Some(Checking {
                count,
                checked,
                slot,
            }) = self.checking.pop_front()
            else {
                return;
            };
            let proposed = match checked.await {
                Ok(Ok(chunk)) => match self.door.propose(&chunk, chunk.ours()).await {
                    Ok(sent) => Proposed::Sent(chunk, sent),
                    Err(error) => Proposed::Failed(count, error),
                },
                Ok(Err(error)) => Proposed::Failed(count, self.door.logs.unreadable(error)),
                // The runtime is shutting down.
                Err(_) => Proposed::Failed(count, LogError::Unknown),
            };
            self.proposed.push_back((proposed, slot));
        }
    }

    /// Cuts a chunk and begins to check it. False if there is none, or no place for it before what
    /// is under way has been settled, or nobody to be told.
    async fn begin_check(&mut self, tell: &mpsc::Sender<Vec<Result<Outcome, LogError>>>) -> bool {
        let idle = self.checking.is_empty() && self.proposed.is_empty();
        let slot = if idle {
            tell.clone().reserve_owned().await.ok()
        } else {
            tell.clone().try_reserve_owned().ok()
        };
        let Some(slot) = slot else {
            return false;
        };
        let mut bytes = 0;
        while self.waiting.len() < CHUNK_OPERATIONS && bytes < CHUNK_BYTES {
            let Some(operation) = self.source.next() else {
                break;
            };
            bytes += length(&operation);
            self.waiting.push(operation);
        }
        if self.waiting.is_empty() {
            return false;
        }
        // Who has gone away keeps nothing here that waits.
        let room = tokio::select! {
            room = self.door.logs.in_flight.room(&self.waiting, idle) => room,
            () = tell.closed() => None,
        };
        let Some(room) = room else {
            return false;
        };
        let operations = std::mem::take(&mut self.waiting);
        let count = operations.len();
        let max = self.door.logs.operation_bytes_max();
        let in_flight = Arc::clone(&self.door.logs.in_flight);
        let chunk = Chunk::cut(operations, self.door.topic, max, in_flight, room);
        let (view, topic) = (self.door.logs.table(), self.door.topic);
        let checked = tokio::task::spawn_blocking(move || check(chunk, &view, topic));
        self.checking.push_back(Checking {
            count,
            checked,
            slot,
        });
        true
    }

    async fn settle(
        &mut self,
        mut chunk: Chunk,
        sent: Vec<Sent>,
    ) -> Vec<Result<Outcome, LogError>> {
        let fates = std::mem::take(&mut chunk.fates);
        let (mut outcomes, mut theirs) = (Outcomes::new(), Vec::new());
        for (at, fate) in fates.into_iter().enumerate() {
            outcomes.push(match fate {
                Fate::Known(outcome) => Some(Ok(outcome)),
                Fate::Ours => None,
                Fate::Theirs(flight) => {
                    theirs.push((at, flight));
                    None
                }
            });
        }
        receive(sent, &mut outcomes).await;
        chunk.claims.land(&outcomes);
        let deadline = Instant::now() + FLIGHT_PATIENCE;
        let mut unlanded = Vec::new();
        for (at, flight) in theirs {
            outcomes[at] = flight.outcome(deadline).await.map(Ok);
            if outcomes[at].is_none() {
                unlanded.push(at);
            }
        }
        self.door.check_late(&chunk, &unlanded, &mut outcomes).await;
        for _ in 0..ROUNDS_MAX {
            self.remember(&chunk, &outcomes);
            let again = |at: &usize| match &outcomes[*at] {
                None => true,
                Some(outcome) => self.is_overtaken(&chunk.operations[*at], outcome),
            };
            let again: Vec<usize> = chunk.order.iter().copied().filter(again).collect();
            if again.is_empty() {
                break;
            }
            let sent = match self.door.propose(&chunk, again).await {
                Ok(sent) => sent,
                Err(error) => {
                    fail(&mut outcomes, &error);
                    break;
                }
            };
            receive(sent, &mut outcomes).await;
        }
        fail(&mut outcomes, &LogError::Unknown);
        outcomes.into_iter().flatten().collect()
    }

    fn remember(&mut self, chunk: &Chunk, outcomes: &Outcomes) {
        for (operation, outcome) in chunk.operations.iter().zip(outcomes) {
            let Some(Ok(Outcome::Appended { .. } | Outcome::Held { .. })) = outcome else {
                continue;
            };
            if self.reached.len() >= AUTHORS_MAX && !self.reached.contains_key(&operation.author())
            {
                self.reached.clear();
            }
            let reached = self.reached.entry(operation.author()).or_default();
            *reached = operation.seq().max(*reached);
        }
    }

    /// Whether what an operation lacked before it has been taken since: a change of leader lets
    /// commands overtake each other.
    fn is_overtaken(&self, operation: &Operation, outcome: &Result<Outcome, LogError>) -> bool {
        let Ok(Outcome::Refused(Refusal::Chain(ChainRefused::Gap { next }))) = outcome else {
            return false;
        };
        let reached = self.reached.get(&operation.author());
        reached.is_some_and(|it| it >= next)
    }
}

impl Door {
    /// Checks those that nobody has checked for this call: their other copies came to nothing.
    async fn check_late(&self, chunk: &Chunk, unlanded: &[usize], outcomes: &mut Outcomes) {
        if unlanded.is_empty() {
            return;
        }
        let (view, topic) = (self.logs.table(), self.topic);
        let operations = chunk.at(unlanded);
        let judging = tokio::task::spawn_blocking(move || judge(&operations, &view, topic));
        let known = match judging.await {
            Ok(Ok(known)) => known.into_iter().map(|it| it.map(Ok)).collect(),
            Ok(Err(error)) => vec![Some(Err(self.logs.unreadable(error))); unlanded.len()],
            // The runtime is shutting down.
            Err(_) => vec![Some(Err(LogError::Unknown)); unlanded.len()],
        };
        for (at, known) in unlanded.iter().zip(known) {
            outcomes[*at] = known;
        }
    }

    /// Hands in what is wanted of a chunk, packed, in that order.
    async fn propose(&self, chunk: &Chunk, wanted: Vec<usize>) -> Result<Vec<Sent>, LogError> {
        let max = COMMAND_BYTES_TARGET.min(self.logs.operation_bytes_max());
        let mut sent = Vec::new();
        let (mut carried, mut raw, mut bytes) = (Vec::new(), Vec::new(), 0);
        for at in wanted {
            let operation = &chunk.operations[at];
            let more = weight(operation);
            if !raw.is_empty() && (bytes + more > max || raw.len() == APPEND_OPERATIONS_MAX) {
                let (full, of) = (std::mem::take(&mut raw), std::mem::take(&mut carried));
                sent.push(self.hand_in(of, full).await?);
                bytes = 0;
            }
            bytes += more;
            carried.push(at);
            raw.push(RawOperation {
                header: operation.header().clone(),
                body: operation.body().cloned(),
            });
        }
        if !raw.is_empty() {
            sent.push(self.hand_in(carried, raw).await?);
        }
        Ok(sent)
    }

    async fn hand_in(
        &self,
        carried: Vec<usize>,
        operations: Vec<RawOperation>,
    ) -> Result<Sent, LogError> {
        let topic = self.topic;
        let group = self.logs.group.clone();
        let answer = group
            .hand_in(LogCommand::Append { topic, operations })
            .await?;
        Ok(Sent {
            carried,
            answer: Box::pin(answered(group, answer)),
        })
    }
}

impl Chunk {
    fn cut(
        operations: Vec<Operation>,
        topic: Topic,
        bytes_max: usize,
        in_flight: Arc<InFlight>,
        room: OwnedSemaphorePermit,
    ) -> Self {
        let order = in_order(&operations);
        let mut claims = Claims::none(in_flight);
        let log = topic.log_id();
        let mut fates = Vec::with_capacity(operations.len());
        for (at, operation) in operations.iter().enumerate() {
            let bytes = length(operation);
            fates.push(if operation.log_id() != log {
                Fate::Known(Outcome::Refused(ChainRefused::OtherLog.into()))
            } else if bytes > bytes_max {
                Fate::Known(Outcome::Refused(Refusal::TooLarge {
                    bytes: bytes as u64,
                    max: bytes_max as u64,
                }))
            } else {
                claims
                    .claim(operation.id(), at)
                    .map_or(Fate::Ours, Fate::Theirs)
            });
        }
        Self {
            operations,
            order,
            fates,
            claims,
            _room: room,
        }
    }

    fn at(&self, places: &[usize]) -> Vec<Operation> {
        let of = |at: &usize| self.operations[*at].clone();
        places.iter().map(of).collect()
    }

    /// The places of those that are to be proposed, in order.
    fn ours(&self) -> Vec<usize> {
        let ours = |at: &usize| matches!(self.fates[*at], Fate::Ours);
        self.order.iter().copied().filter(ours).collect()
    }
}

/// The places of operations such that each log's own places hold its operations sorted: what came
/// in order stays as it came.
fn in_order(operations: &[Operation]) -> Vec<usize> {
    let mut places: BTreeMap<Author, Vec<usize>> = BTreeMap::new();
    for (at, operation) in operations.iter().enumerate() {
        places.entry(operation.author()).or_default().push(at);
    }
    let mut order: Vec<usize> = (0..operations.len()).collect();
    for places in places.values() {
        let mut sorted = places.clone();
        sorted.sort_by_key(|at| operations[*at].seq());
        for (place, at) in places.iter().zip(sorted) {
            order[*place] = at;
        }
    }
    order
}

/// A command's answer. Where it is unknown, it is asked for once more in its session.
async fn answered(
    group: Group<LogStore>,
    answer: impl Future<Output = Result<LogOutput, ExecuteError>>,
) -> Result<LogOutput, ExecuteError> {
    match answer.await {
        Err(ExecuteError::Unknown(unresolved)) if unresolved.can_retry() => {
            group.retry(unresolved).await
        }
        answer => answer,
    }
}

/// Takes the answers in; what is in doubt stays without an outcome.
async fn receive(sent: Vec<Sent>, outcomes: &mut Outcomes) {
    for Sent { carried, answer } in sent {
        match answer.await {
            Ok(LogOutput::Appended(runs)) => {
                for (at, outcome) in carried.into_iter().zip(expand(runs)) {
                    outcomes[at] = Some(Ok(outcome));
                }
            }
            Ok(LogOutput::Refused(refused)) => {
                for at in carried {
                    outcomes[at] = Some(Ok(Outcome::Refused(Refusal::Topic(refused))));
                }
            }
            // In doubt: no other output answers an append.
            Ok(_) | Err(ExecuteError::Unknown(_) | ExecuteError::AnswerLost { .. }) => {
                for at in carried {
                    outcomes[at] = None;
                }
            }
            Err(error) => {
                let error = LogError::from(error);
                for at in carried {
                    outcomes[at] = Some(Err(error.clone()));
                }
            }
        }
    }
}

/// Those in doubt end with this.
fn fail(outcomes: &mut Outcomes, error: &LogError) {
    for outcome in outcomes {
        outcome.get_or_insert_with(|| Err(error.clone()));
    }
}

/// What became of each, in their order.
pub(super) fn expand(runs: Vec<OutcomeRun>) -> impl Iterator<Item = Outcome> {
    runs.into_iter().flat_map(|run| {
        (0..run.count()).map(move |offset| match run {
            OutcomeRun::Appended { number, .. } => Outcome::Appended {
                number: number + u64::from(offset),
            },
            OutcomeRun::Held { number, .. } => Outcome::Held {
                number: number + u64::from(offset),
            },
            OutcomeRun::Refused(refused) => Outcome::Refused(refused.into()),
        })
    })
}

/// What an operation takes of a command, in bytes.
pub(super) fn weight(operation: &Operation) -> usize {
    length(operation) + OPERATION_OVERHEAD
}

impl From<ChainRefused> for Refusal {
    fn from(refused: ChainRefused) -> Self {
        Self::Chain(refused)
    }
}

impl Logs {
    /// The largest operation that one command takes, in bytes of header and body.
    pub(super) fn operation_bytes_max(&self) -> usize {
        let max = self.group.command_bytes_max();
        max.saturating_sub(COMMAND_OVERHEAD + OPERATION_OVERHEAD)
    }
}

#[cfg(test)]
#[path = "ingest/tests.rs"]
mod tests;
