//! Pushing operations: a task that goes from member to member, and the giver's end of it.

mod session;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use tokio::sync::{mpsc, watch};

use self::session::{Session, Source};
use super::{
    dial::Dial,
    outcome::PushOutcome,
    reach::{Members, Reach, Road, Way, reach_settings},
    status::{ClientWatch, PushStatus},
    transport::{Secret, Transports},
};
use crate::{
    log_store::{Author, Operation, OperationId, Topic},
    sync::{LogTicket, MemberAddr},
    task::Given,
};

/// Batches that may be under way without an answer. A batch has at most 1 MiB of headers and
/// bodies, or one operation.
pub(super) const BATCHES_MAX: usize = 4;
/// Batches of answers that wait for the reader.
const ANSWERS_WAITING: usize = 2;

/// Pushes operations to the members that a ticket names, and gives what became of each, in order.
/// Each log's operations must come in the log's own order. [`Push`] has the settings.
///
/// An answer means that a quorum has the operation. What is not answered when a member is lost is
/// sent to the next one, and committed once.
///
/// ```no_run
/// use futures_util::{StreamExt, stream};
/// use quorate::{log_store::{Operation, Topic}, sync::{self, LogTicket, PushOutcome}};
///
/// # async fn example(ticket: LogTicket, mine: Vec<Operation>) {
/// let mut pushed = sync::push(&ticket, Topic::named("cats"), stream::iter(mine));
/// while let Some(pushed) = pushed.next().await {
///     match pushed.outcome {
///         PushOutcome::Appended { number } | PushOutcome::Held { number } => {
///             println!("{} is number {number}", pushed.id);
///         }
///         PushOutcome::Refused(why) => println!("{} was refused: {why}", pushed.id),
///     }
/// }
/// # }
/// ```
///
/// # Panics
/// Outside a Tokio runtime.
#[must_use = "it ends when it is dropped"]
pub fn push<S>(ticket: &LogTicket, topic: Topic, operations: S) -> Pusher
where
    S: Stream<Item = Operation> + Send + 'static,
{
    Push::new(ticket, topic).start(operations)
}

/// The settings of a push.
#[derive(Clone, Debug)]
pub struct Push {
    reach: Reach,
}

impl Push {
    /// As [`push()`] does it.
    #[must_use]
    pub fn new(ticket: &LogTicket, topic: Topic) -> Self {
        Self {
            reach: Reach::new(ticket, topic),
        }
    }

    reach_settings! {
        /// How long an answer may take before another member is asked: this, and what its batch of
        /// at most 1 MiB, or of one operation, needs at 8 KiB a second. Default 15 s. A member that
        /// has the client wait for its turn, for it pushes more than it may, says so and is waited
        /// for, ten minutes at the most.
        ///
        /// A member that serves says so every 5 s by default, so one that hangs, its sockets open,
        /// costs 15 s, or this if it is longer.
    }

    /// Begins to push.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use = "it ends when it is dropped"]
    pub fn start<S>(self, operations: S) -> Pusher
    where
        S: Stream<Item = Operation> + Send + 'static,
    {
        let (status, watch) = watch::channel(PushStatus::default());
        let (give, answers) = mpsc::channel(ANSWERS_WAITING);
        let (topic, line) = (self.reach.topic, self.reach.line);
        let silent_after = self.reach.silent_after;
        let road = self.reach.road();
        let members = Arc::clone(&road.members);
        let task = Task {
            session: Session {
                topic,
                line,
                source: Source::new(Box::pin(operations)),
                under_way: VecDeque::new(),
                next: 0,
                silent_after,
                give,
                status,
                members: Arc::clone(&members),
            },
            road,
        };
        Pusher {
            ready: VecDeque::new(),
            answers: Given::new(answers, tokio::spawn(task.run())),
            handle: PushHandle { watch, members },
        }
    }
}

struct Task {
    session: Session,
    road: Road,
}

impl Task {
    async fn run(mut self) {
        while !self.session.give.is_closed() {
            // Nobody is dialled before there is something to push.
            if !self.session.has_something().await {
                self.session.status.send_modify(|it| it.complete = true);
                return;
            }
            let member = self.road.next().await;
            let ended = match self.road.dial(&member).await {
                Ok(dialled) => self.session.run(member.peer(), dialled).await,
                Err(fault) => Err(fault),
            };
            let Err(fault) = ended else { continue };
            let (error, pause) = self.road.failed(&member, fault);
            self.session.status.send_modify(|it| {
                it.member = None;
                it.failures += 1;
                it.last_error = Some(error);
            });
            self.road.members.pause(pause).await;
        }
    }
}

/// What became of one pushed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The operation.
    pub id: OperationId,
    /// Its author.
    pub author: Author,
    /// Its place in the author's log.
    pub seq: u32,
    /// Whether it was committed.
    pub outcome: PushOutcome,
}

/// A push that runs: the stream of what became of each operation, in the order they were given. It
/// ends when all of them are answered; dropping it ends the push. If the stream of operations
/// panics, so does reading here.
///
/// Operations are taken from their stream as room permits: at most four batches of 1 MiB, or of one
/// operation, are under way, and answers that nobody reads hold it back.
#[derive(Debug)]
pub struct Pusher {
    ready: VecDeque<Pushed>,
    answers: Given<Vec<Pushed>>,
    handle: PushHandle,
}

impl Pusher {
    /// What others may use while this is being read.
    #[must_use]
    pub fn handle(&self) -> PushHandle {
        self.handle.clone()
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> PushStatus {
        self.handle.status()
    }

    /// As [`PushHandle::ticket`].
    #[must_use]
    pub fn ticket(&self) -> LogTicket {
        self.handle.ticket()
    }
}

impl Stream for Pusher {
    type Item = Pushed;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Pushed>> {
        while self.ready.is_empty() {
            match ready!(self.answers.poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(answers) => self.ready = answers.into(),
            }
        }
        Poll::Ready(self.ready.pop_front())
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Watches and helps a push, while its [`Pusher`] is read elsewhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PushHandle {
    watch: watch::Receiver<PushStatus>,
    members: Arc<Members>,
}

impl PushHandle {
    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> PushStatus {
        self.watch.borrow().clone()
    }

    /// Watches how it is doing.
    #[must_use]
    pub fn watch_status(&self) -> ClientWatch<PushStatus> {
        ClientWatch(self.watch.clone())
    }

    /// A ticket to the members that it knows now: those that its own ticket and the program have
    /// named, and those of which members have told since. It can be kept, and given to the next run
    /// beside the first ticket: [`Push::remembering`].
    #[must_use]
    pub fn ticket(&self) -> LogTicket {
        self.members.ticket()
    }

    /// Another way to a member, or another member, which is asked next if nobody answers. At most
    /// [`LogTicket::MEMBERS_MAX`] that were named by the ticket and here are kept.
    pub fn add_address(&self, addr: impl Into<MemberAddr>) {
        self.members.add(addr.into());
    }
}
