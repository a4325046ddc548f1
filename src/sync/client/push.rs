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
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use self::session::{Session, Source};
use super::{
    dial::{Dial, MemberError, MemberFault},
    outcome::PushOutcome,
    pull::{Members, Pace, Way},
    retry::Rotation,
    status::{ClientWatch, PushStatus},
    transport::{Secret, Transports},
};
use crate::{
    log_store::{Author, Line, Operation, OperationId, Topic},
    sync::{LogTicket, MemberAddr},
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
    topic: Topic,
    line: Option<Line>,
    members: Vec<MemberAddr>,
    network: [u8; 32],
    secret: Secret,
    way: Way,
    pace: Pace,
}

impl Push {
    /// As [`push()`] does it.
    #[must_use]
    pub fn new(ticket: &LogTicket, topic: Topic) -> Self {
        Self {
            topic,
            line: ticket.topics().get(&topic).copied(),
            members: ticket.members().to_vec(),
            network: ticket.network(),
            secret: Secret::generate(),
            way: Way::Through(Transports::default()),
            pace: Pace::default(),
        }
    }

    /// Asks the ticket's members in their order. By default a random one is asked first, so that
    /// clients spread over them.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.pace.in_order = true;
        self
    }

    /// The transports by which members are reached, instead of all that there are
    /// ([`Transports::default`]).
    #[must_use]
    pub fn through(mut self, transports: Transports) -> Self {
        self.way = Way::Through(transports);
        self
    }

    /// Under this secret key: for topics that admit peers by their name, which is its public half
    /// ([`Secret::peer`]). By default under a new one.
    #[must_use]
    pub fn with_key(mut self, secret: impl Into<Secret>) -> Self {
        self.secret = secret.into();
        self
    }

    /// Goes a way of the program's own instead of transports.
    #[must_use]
    pub fn over(mut self, dial: Arc<dyn Dial>) -> Self {
        self.way = Way::Over(dial);
        self
    }

    /// How long one dial may take. Default 3 s.
    #[must_use]
    pub fn dial_within(mut self, time: Duration) -> Self {
        self.pace.dial_within = time;
        self
    }

    /// How long an answer may take before another member is asked. Default 15 s.
    #[must_use]
    pub fn silent_after(mut self, time: Duration) -> Self {
        self.pace.silent_after = time;
        self
    }

    /// The pause after the first round in which every member failed, and the longest; it doubles,
    /// with jitter. Default 100 ms and 30 s.
    #[must_use]
    pub fn retry(mut self, min: Duration, max: Duration) -> Self {
        (self.pace.retry_min, self.pace.retry_max) = (min, max);
        self
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
        let mut rotation = Rotation::new(self.members, self.pace.retry_min, self.pace.retry_max);
        if !self.pace.in_order {
            rotation.begin_at(rand::random::<u16>().into());
        }
        let members = Arc::new(Members::new(rotation));
        let task = Task {
            session: Session {
                topic: self.topic,
                line: self.line,
                source: Source::new(Box::pin(operations)),
                under_way: VecDeque::new(),
                next: 0,
                silent_after: self.pace.silent_after,
                give,
                status,
                members: Arc::clone(&members),
            },
            dial: self.way.dial(self.network, self.secret),
            pace: self.pace,
        };
        Pusher {
            ready: VecDeque::new(),
            answers,
            handle: PushHandle { watch, members },
            task: tokio::spawn(task.run()),
        }
    }
}

struct Task {
    session: Session,
    dial: Arc<dyn Dial>,
    pace: Pace,
}

impl Task {
    async fn run(mut self) {
        while !self.session.give.is_closed() {
            // Nobody is dialled before there is something to push.
            if !self.session.has_something().await {
                self.session.status.send_modify(|it| it.complete = true);
                return;
            }
            let member = self.session.members.with(|it| it.current().cloned());
            let Some(member) = member else {
                self.session.members.pause(self.pace.retry_max).await;
                continue;
            };
            let ended = match timeout(self.pace.dial_within, self.dial.dial(&member)).await {
                Err(_) => Err(MemberFault::Silent {
                    after: self.pace.dial_within,
                }),
                Ok(Err(why)) => Err(MemberFault::Unreachable(why)),
                Ok(Ok(dialled)) => self.session.run(member.peer(), dialled).await,
            };
            let Err(fault) = ended else { continue };
            tracing::debug!(member = %member, %fault, "a push goes on with the next member");
            let error = MemberError {
                member: member.peer(),
                fault,
            };
            self.session.status.send_modify(|it| {
                it.member = None;
                it.failures += 1;
                it.last_error = Some(error);
            });
            let pause = self.session.members.with(|it| it.failed(rand::random()));
            self.session.members.pause(pause).await;
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
/// ends when all of them are answered; dropping it ends the push.
///
/// Operations are taken from their stream as room permits: at most four batches of 1 MiB, or of one
/// operation, are under way, and answers that nobody reads hold it back.
#[derive(Debug)]
pub struct Pusher {
    ready: VecDeque<Pushed>,
    answers: mpsc::Receiver<Vec<Pushed>>,
    handle: PushHandle,
    task: JoinHandle<()>,
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
}

impl Stream for Pusher {
    type Item = Pushed;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Pushed>> {
        while self.ready.is_empty() {
            match ready!(self.answers.poll_recv(cx)) {
                None => return Poll::Ready(None),
                Some(answers) => self.ready = answers.into(),
            }
        }
        Poll::Ready(self.ready.pop_front())
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.task.abort();
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

    /// Another way to a member, or another member, which is asked next if nobody answers. At most
    /// [`LogTicket::MEMBERS_MAX`] members are kept.
    pub fn add_address(&self, addr: impl Into<MemberAddr>) {
        self.members.add(addr.into());
    }
}
