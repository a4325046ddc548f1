//! From the callers of `execute` to the journal: packing, the session, the tries.
//!
//! One task owns the group's session on this node. It packs the commands that wait into one
//! journal entry, numbers them, and tries each entry across changes of leader until it is
//! answered or its time is up. Numbers are never used for another command, so a try that went
//! through unseen does no harm: the next one gets the first one's answers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    error::Cause,
    machine::Position,
    raft::{
        Answer, Attempt, BATCH_BYTES_TARGET, BATCH_COMMANDS_MAX, Batch, Replica, Reply, SessionId,
        WINDOW_MAX,
    },
};

/// Entries of this node that may be under way at once. More would not be faster: while these are,
/// commands gather and go packed.
const ENTRIES_IN_FLIGHT_MAX: usize = 64;
/// Packs that wait for the task; the permits of their commands bound them long before.
const QUEUE: usize = 4_096;
/// The longest pause between two tries of an entry that found no leader.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(8);

/// Commands of one caller, answered together.
struct Pack {
    commands: Vec<Bytes>,
    /// The place it had before, if this is a retry of one command.
    again: Option<Place>,
    since: Instant,
    answer: oneshot::Sender<Outcome>,
    _room: Room,
}

/// What a caller holds of the limits while its commands are under way.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What became of a pack.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Applied; the position of the first command, and an answer for each.
    Applied(Position, Vec<Answer>),
    /// Certainly not applied, and will not be.
    NoLeader,
    /// Certainly not applied: the leader will not propose it.
    Refused(String),
    /// May have been applied or may yet be; one handle a command to ask again.
    Unknown(Vec<Held>),
    /// Certainly not applied; the group does not run here any more.
    Stopped(Cause),
}

/// The way in. Clones share the session.
#[derive(Clone)]
pub(super) struct Submitter {
    queue: mpsc::Sender<Pack>,
    commands: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    limits: (usize, usize),
    replica: Arc<Replica>,
}

/// A command's place in a session.
#[derive(Clone, Debug)]
struct Place {
    session: SessionId,
    seq: u64,
    pins: Arc<Pins>,
}

/// Keeps a number of the session from being given up while somebody may ask for its answer.
#[derive(Debug)]
pub(super) struct Held {
    place: Place,
    command: Bytes,
}

/// The numbers that must stay answerable: entries under way, and those held by callers.
#[derive(Debug, Default)]
struct Pins(Mutex<BTreeMap<u64, usize>>);

impl Submitter {
    /// Starts the task; it ends with the replica.
    pub(super) fn start(replica: Arc<Replica>) -> Self {
        let config = replica.config();
        let limits = (
            config.commands_outstanding_max,
            config.command_bytes_outstanding_max,
        );
        let (queue, packs) = mpsc::channel(QUEUE);
        let sessions = Sessions::new(Arc::clone(&replica));
        replica.run(sessions.serve(packs));
        Self {
            queue,
            commands: Arc::new(Semaphore::new(limits.0)),
            bytes: Arc::new(Semaphore::new(limits.1)),
            limits,
            replica,
        }
    }

    /// Waits for room and hands the commands in; the receiver gives what became of them.
    pub(super) async fn submit(&self, commands: Vec<Bytes>) -> oneshot::Receiver<Outcome> {
        self.hand_in(commands, None).await
    }

    /// Asks again what became of a command, in its own session and under its own number.
    pub(super) async fn submit_again(&self, held: &Held) -> oneshot::Receiver<Outcome> {
        let again = Some(held.place.clone());
        self.hand_in(vec![held.command.clone()], again).await
    }

    async fn hand_in(
        &self,
        commands: Vec<Bytes>,
        again: Option<Place>,
    ) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        let bytes: usize = commands.iter().map(Bytes::len).sum();
        let room = async {
            let many = permits(commands.len(), self.limits.0);
            let large = permits(bytes, self.limits.1);
            let one = Arc::clone(&self.commands)
                .acquire_many_owned(many)
                .await
                .ok()?;
            let two = Arc::clone(&self.bytes)
                .acquire_many_owned(large)
                .await
                .ok()?;
            Some((one, two))
        };
        // The semaphores are never closed.
        if let Some(room) = room.await {
            let pack = Pack {
                commands,
                again,
                since: Instant::now(),
                answer,
                _room: room,
            };
            if let Err(mpsc::error::SendError(pack)) = self.queue.send(pack).await
                && pack.again.is_none()
            {
                let cause = self.replica.stopped();
                let cause = cause.unwrap_or_else(|| Cause::new("the group is stopping"));
                let _ = pack.answer.send(Outcome::Stopped(cause));
            }
        }
        answered
    }
}

/// A request larger than the whole limit takes all of it rather than wait for ever.
fn permits(wanted: usize, limit: usize) -> u32 {
    u32::try_from(wanted.min(limit)).unwrap_or(u32::MAX)
}

/// The sessions of this process in the group, one after the other, and what is under way in them.
///
/// # Invariants
/// - A number of a session is given to one command only.
/// - Every number from the lowest pinned one up is answerable; nothing below it is asked for.
struct Sessions {
    replica: Arc<Replica>,
    current: Option<Session>,
    opening: Option<BoxFuture<'static, End>>,
    under_way: FuturesUnordered<BoxFuture<'static, Driven>>,
}

/// Packs that have no entry yet, or none any more, each kind in the order in which it came.
#[derive(Default)]
struct Waiting {
    new: VecDeque<Pack>,
    retries: VecDeque<Pack>,
}

/// The session that takes new commands.
struct Session {
    id: SessionId,
    next_seq: u64,
    pins: Arc<Pins>,
}

/// An entry whose tries have ended.
struct Driven {
    place: Place,
    packs: Vec<Pack>,
    end: End,
}

enum End {
    /// Answered; and whether an earlier try may have gone through as well.
    Done(Reply, bool),
    /// Certainly not applied.
    Never(Outcome),
    /// May have been applied; asking again can tell.
    Unknown,
    /// May have been applied; the group does not run here any more.
    Gone,
}

impl Sessions {
    fn new(replica: Arc<Replica>) -> Self {
        Self {
            replica,
            current: None,
            opening: None,
            under_way: FuturesUnordered::new(),
        }
    }

    async fn serve(mut self, mut packs: mpsc::Receiver<Pack>) {
        let mut waiting = Waiting::default();
        let mut received = Vec::new();
        loop {
            let room = waiting.len() < QUEUE;
            tokio::select! {
                Some(driven) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.finish(driven, &mut waiting);
                }
                Some(end) = opened(&mut self.opening) => {
                    self.opening = None;
                    self.take_session(end, &mut waiting);
                }
                count = packs.recv_many(&mut received, BATCH_COMMANDS_MAX), if room => {
                    if count == 0 {
                        return;
                    }
                    received.drain(..).for_each(|it| waiting.push(it));
                }
                // What waits and is full, with nothing under way, cannot be: it is sent below.
                else => return,
            }
            self.send_waiting(&mut waiting);
        }
    }

    /// The oldest first. Retries have their own place and need no session of today, so they do not
    /// wait for one.
    fn send_waiting(&mut self, waiting: &mut Waiting) {
        while self.under_way.len() < ENTRIES_IN_FLIGHT_MAX {
            // A command that is held unresolved for long fills its session's window: a new session
            // goes on, and the old one can still be asked.
            self.current.take_if(|it| !it.has_room());
            if !waiting.new.is_empty() && self.current.is_none() {
                self.open();
            }
            match &mut self.current {
                Some(session) if waiting.new_is_older() => {
                    let packs = take_batch(&mut waiting.new);
                    let commands = packs.iter().flat_map(|it| it.commands.iter().cloned());
                    let commands: Vec<Bytes> = commands.collect();
                    let place = session.place_for(commands.len());
                    self.launch(place, commands, packs);
                }
                _ => {
                    let Some(pack) = waiting.retries.pop_front() else {
                        return;
                    };
                    if let Some(place) = pack.again.clone() {
                        self.launch(place, pack.commands.clone(), vec![pack]);
                    }
                }
            }
        }
    }

    fn open(&mut self) {
        if self.opening.is_none() {
            let entry = Batch::Open.encode();
            let first = self.replica.propose(entry.clone());
            let replica = Arc::clone(&self.replica);
            let deadline = Instant::now() + replica.config().execute_timeout;
            self.opening = Some(Box::pin(drive(replica, entry, first, false, deadline)));
        }
    }

    /// Whether a session was opened unseen does not matter: no command was sent in it.
    fn take_session(&mut self, end: End, waiting: &mut Waiting) {
        let outcome = match end {
            End::Done(reply, _) => {
                self.current = Some(Session {
                    id: reply.at.index,
                    next_seq: 0,
                    pins: Arc::default(),
                });
                return;
            }
            End::Never(outcome) => outcome,
            End::Unknown | End::Gone => Outcome::NoLeader,
        };
        // Retries wait on: they need no session of today.
        for pack in waiting.new.drain(..) {
            let _ = pack.answer.send(outcome.copy());
        }
    }

    fn launch(&self, place: Place, commands: Vec<Bytes>, packs: Vec<Pack>) {
        place.pins.add(place.seq);
        let entry = Batch::Commands {
            session: place.session,
            first_seq: place.seq,
            lowest_unanswered: place.pins.lowest(place.seq),
            commands,
        }
        .encode();
        let again = packs.iter().any(|it| it.again.is_some());
        let patience = self.replica.config().execute_timeout;
        let since = packs.iter().map(|it| it.since).min();
        let deadline = Instant::now() + patience;
        let deadline = since.map_or(deadline, |it| deadline.min(it + 2 * patience));
        // The first try is handed to the leader here and now, so entries keep their order.
        let first = self.replica.propose(entry.clone());
        let replica = Arc::clone(&self.replica);
        self.under_way.push(Box::pin(async move {
            let end = drive(replica, entry, first, again, deadline).await;
            Driven { place, packs, end }
        }));
    }

    fn finish(&mut self, driven: Driven, waiting: &mut Waiting) {
        let Driven { place, packs, end } = driven;
        // Who has waited so long for it to end need not wait to be told.
        waiting.give_up(self.replica.config().execute_timeout);
        match end {
            End::Done(reply, unclear) => self.answer(&place, packs, reply, unclear, waiting),
            End::Never(outcome) => {
                for pack in packs {
                    let _ = pack.answer.send(outcome.copy());
                }
            }
            End::Unknown => {
                let mut from = place.clone();
                for pack in packs {
                    let held = from.hold(&pack.commands);
                    from.seq += held.len() as u64;
                    let _ = pack.answer.send(Outcome::Unknown(held));
                }
            }
            End::Gone => {
                for pack in packs {
                    let _ = pack.answer.send(Outcome::Unknown(Vec::new()));
                }
            }
        }
        place.pins.remove(place.seq);
    }

    fn answer(
        &mut self,
        place: &Place,
        packs: Vec<Pack>,
        reply: Reply,
        unclear: bool,
        waiting: &mut Waiting,
    ) {
        let expired = reply.answers.contains(&Answer::Expired);
        if expired {
            self.current.take_if(|it| it.id == place.session);
        }
        let mut answers = reply.answers.into_iter();
        let mut at = reply.at;
        let mut not_applied = Vec::new();
        for pack in packs {
            let count = pack.commands.len();
            let own: Vec<Answer> = answers.by_ref().take(count).collect();
            if own.len() == count && !own.contains(&Answer::Expired) {
                let _ = pack.answer.send(Outcome::Applied(at, own));
            } else if own.len() < count || unclear {
                // An earlier try may have been applied while the session still lived.
                let _ = pack.answer.send(Outcome::Unknown(Vec::new()));
            } else {
                // Certainly not applied: a new session takes it.
                not_applied.push(pack);
            }
            at.offset += u32::try_from(count).unwrap_or(u32::MAX);
        }
        // They have waited for longer than the others.
        for pack in not_applied.into_iter().rev() {
            waiting.new.push_front(pack);
        }
    }
}

impl Session {
    fn has_room(&self) -> bool {
        self.next_seq - self.pins.lowest(self.next_seq) < WINDOW_MAX - BATCH_COMMANDS_MAX as u64
    }

    fn place_for(&mut self, commands: usize) -> Place {
        let seq = self.next_seq;
        self.next_seq += commands as u64;
        Place {
            session: self.id,
            seq,
            pins: Arc::clone(&self.pins),
        }
    }
}

impl Waiting {
    fn push(&mut self, pack: Pack) {
        match pack.again {
            Some(_) => self.retries.push_back(pack),
            None => self.new.push_back(pack),
        }
    }

    /// Whether a new pack is there, and no retry has waited for longer.
    fn new_is_older(&self) -> bool {
        let retry = self.retries.front().map(|it| it.since);
        let new = self.new.front();
        new.is_some_and(|it| retry.is_none_or(|retry| it.since <= retry))
    }

    fn len(&self) -> usize {
        self.new.len() + self.retries.len()
    }

    /// Answers those that have waited so long: certainly not applied, or as unclear as before.
    fn give_up(&mut self, after: Duration) {
        let late = |it: &Pack| it.since.elapsed() >= after;
        while self.new.front().is_some_and(late)
            && let Some(pack) = self.new.pop_front()
        {
            let _ = pack.answer.send(Outcome::NoLeader);
        }
        while self.retries.front().is_some_and(late)
            && let Some(pack) = self.retries.pop_front()
        {
            let held = pack.again.as_ref().map(|it| it.hold(&pack.commands));
            let _ = pack.answer.send(Outcome::Unknown(held.unwrap_or_default()));
        }
    }
}

/// Never ready while nothing is being opened.
async fn opened(opening: &mut Option<BoxFuture<'static, End>>) -> Option<End> {
    Some(opening.as_mut()?.await)
}

/// Tries an entry until it is answered or its time is up. `unclear` says whether an earlier try
/// may have gone through: then nothing but an answer can say that it was not applied.
async fn drive(
    replica: Arc<Replica>,
    entry: Bytes,
    first: BoxFuture<'static, Attempt>,
    mut unclear: bool,
    deadline: Instant,
) -> End {
    let mut state = replica.watch();
    let mut attempt = first;
    let mut pause = Duration::from_millis(1);
    loop {
        let asked = state.borrow_and_update().leader;
        let tried = tokio::time::timeout_at(deadline, async {
            tokio::select! {
                attempt = attempt => attempt,
                // Who was asked leads no more and may be dead: its answer may be late by the time
                // that a connection takes to be given up. Asking its successor too does no harm.
                _ = state.wait_for(|it| it.leader.is_some() && it.leader != asked) => {
                    Attempt::Unclear
                }
            }
        });
        match tried.await {
            Ok(Attempt::Done(reply)) => return End::Done(reply, unclear),
            Ok(Attempt::NotProposed) => {}
            Ok(Attempt::Unclear) => unclear = true,
            Ok(Attempt::Refused(why)) if !unclear => return End::Never(Outcome::Refused(why)),
            Ok(Attempt::Stopped(cause)) if !unclear => return End::Never(Outcome::Stopped(cause)),
            Ok(Attempt::Stopped(_)) => return End::Gone,
            Ok(Attempt::Refused(_)) | Err(_) => return End::Unknown,
        }
        // A new leader, or the old one settled: whichever comes first.
        let news = tokio::time::timeout(pause, state.changed());
        if tokio::time::timeout_at(deadline, news).await.is_err() {
            return if unclear {
                End::Unknown
            } else {
                End::Never(Outcome::NoLeader)
            };
        }
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
        attempt = replica.propose(entry.clone());
    }
}

/// Takes packs from the front that fit into one entry; at least one.
fn take_batch(waiting: &mut VecDeque<Pack>) -> Vec<Pack> {
    let (mut commands, mut bytes, mut count) = (0, 0, 0);
    for pack in waiting.iter() {
        let size: usize = pack.commands.iter().map(Bytes::len).sum();
        let fits = commands + pack.commands.len() <= BATCH_COMMANDS_MAX
            && bytes + size <= BATCH_BYTES_TARGET;
        if count > 0 && !fits {
            break;
        }
        commands += pack.commands.len();
        bytes += size;
        count += 1;
    }
    waiting.drain(..count).collect()
}

impl Outcome {
    /// The same for another caller of one entry; only for what holds nothing of its own.
    fn copy(&self) -> Self {
        match self {
            Self::Refused(why) => Self::Refused(why.clone()),
            Self::Stopped(cause) => Self::Stopped(cause.clone()),
            _ => Self::NoLeader,
        }
    }
}

impl Place {
    /// Keeps commands answerable, the first of which has this place.
    fn hold(&self, commands: &[Bytes]) -> Vec<Held> {
        let held = (self.seq..).zip(commands).map(|(seq, command)| {
            self.pins.add(seq);
            Held {
                place: Self {
                    seq,
                    ..self.clone()
                },
                command: command.clone(),
            }
        });
        held.collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.place.pins.remove(self.place.seq);
    }
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, seq: u64) {
        *self.lock().entry(seq).or_default() += 1;
    }

    fn remove(&self, seq: u64) {
        let mut pins = self.lock();
        if let Some(count) = pins.get_mut(&seq) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&seq);
            }
        }
    }

    fn lowest(&self, next: u64) -> u64 {
        self.lock().keys().next().copied().unwrap_or(next)
    }
}
