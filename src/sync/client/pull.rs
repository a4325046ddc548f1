//! Pulling a topic: a task that goes from member to member, and the reader's end of it.

mod session;

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::session::Session;
use super::{
    dial::{Dial, MemberError, MemberFault},
    have::Have,
    retry::Rotation,
    status::{ClientWatch, PullStatus},
    transport::{Identity, Secret, Transports},
};
use crate::{
    log_store::{Line, Operation, Topic},
    sync::{LogTicket, MemberAddr},
};

/// Runs that wait for the reader. A run has at most 1 MiB of headers and bodies, or one operation.
///
/// Besides these, one run is read from the stream, one is being checked and one is with the reader:
/// that is all that a pull holds, and beyond it the member's sending waits.
const RUNS_WAITING: usize = 2;

/// Pulls a topic from the members that a ticket names: what `have` lacks, and then, for as long as
/// the [`Puller`] is kept, what is new. [`Pull`] has the settings.
///
/// ```no_run
/// use futures_util::StreamExt;
/// use quorate::{log_store::Topic, sync::{self, Have, LogTicket}};
///
/// # async fn example(text: &str) -> Result<(), Box<dyn std::error::Error>> {
/// let ticket: LogTicket = text.parse()?;
/// let mut have = Have::new(); // or as it was stored with the copy
/// let mut puller = sync::pull(&ticket, Topic::named("cats"), have.clone());
/// while let Some(operation) = puller.next().await {
///     // ... keep it, and then:
///     have.advance(&operation);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// Outside a Tokio runtime.
#[must_use = "it ends when it is dropped"]
pub fn pull(ticket: &LogTicket, topic: Topic, have: Have) -> Puller {
    Pull::new(ticket, topic, have).start()
}

/// The settings of a pull.
#[derive(Clone, Debug)]
pub struct Pull {
    topic: Topic,
    line: Option<Line>,
    have: Have,
    members: Vec<MemberAddr>,
    network: [u8; 32],
    secret: Secret,
    way: Way,
    pace: Pace,
    follow: bool,
    verify_all: bool,
}

/// How members are reached.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Through(Transports),
    Over(Arc<dyn Dial>),
}

impl Way {
    pub(crate) fn dial(self, network: [u8; 32], secret: Secret) -> Arc<dyn Dial> {
        match self {
            Self::Through(transports) => transports.dialler(&Identity { network, secret }),
            Self::Over(dial) => dial,
        }
    }
}

/// How long a client waits for members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) dial_within: Duration,
    pub(crate) silent_after: Duration,
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
    pub(crate) in_order: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            dial_within: Duration::from_secs(3),
            silent_after: Duration::from_secs(15),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            in_order: false,
        }
    }
}

impl Pull {
    /// As [`pull()`] does it.
    #[must_use]
    pub fn new(ticket: &LogTicket, topic: Topic, have: Have) -> Self {
        Self {
            topic,
            line: ticket.topics().get(&topic).copied(),
            have,
            members: ticket.members().to_vec(),
            network: ticket.network(),
            secret: Secret::generate(),
            way: Way::Through(Transports::default()),
            pace: Pace::default(),
            follow: true,
            verify_all: false,
        }
    }

    /// Ends once everything was read that the group had when it was asked.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.follow = false;
        self
    }

    /// Checks every signature. By default the newest of each run is checked, and that the others
    /// are what it stands on, which proves as much: that all of the run is its author's log.
    #[must_use]
    pub fn verify_all(mut self) -> Self {
        self.verify_all = true;
        self
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

    /// The silence after which another member is asked: more than the 5 s after which a member says
    /// that there is no news. Default 15 s.
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

    /// Begins to pull.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use = "it ends when it is dropped"]
    pub fn start(self) -> Puller {
        let (status, watch) = watch::channel(PullStatus::default());
        let status = Arc::new(status);
        let (give, taken) = mpsc::channel(RUNS_WAITING);
        let mut rotation = Rotation::new(self.members, self.pace.retry_min, self.pace.retry_max);
        if !self.pace.in_order {
            rotation.begin_at(rand::random::<u16>().into());
        }
        let members = Arc::new(Members::new(rotation));
        let task = Task {
            session: Session {
                topic: self.topic,
                line: self.line,
                have: self.have,
                follow: self.follow,
                verify_all: self.verify_all,
                silent_after: self.pace.silent_after,
                give,
                status: Arc::clone(&status),
                members: Arc::clone(&members),
            },
            dial: self.way.dial(self.network, self.secret),
            pace: self.pace,
        };
        Puller {
            ready: VecDeque::new(),
            taken,
            status,
            handle: PullHandle { watch, members },
            task: tokio::spawn(task.run()),
        }
    }
}

/// Members that the task goes through, and that others add to.
pub(crate) struct Members {
    rotation: Mutex<Rotation>,
    added: Notify,
}

impl Members {
    pub(crate) fn new(rotation: Rotation) -> Self {
        Self {
            rotation: Mutex::new(rotation),
            added: Notify::new(),
        }
    }

    pub(crate) fn add(&self, addr: MemberAddr) {
        self.with(|it| it.add(addr));
        self.added.notify_one();
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Rotation) -> R) -> R {
        act(&mut self.rotation.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for so long, or until there is a new address.
    pub(crate) async fn pause(&self, time: Duration) {
        if time.is_zero() {
            // A task that fails without ever waiting would keep others from running.
            tokio::task::yield_now().await;
            return;
        }
        tokio::select! {
            () = sleep(time) => {}
            () = self.added.notified() => {}
        }
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").finish_non_exhaustive()
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
            let Err(fault) = ended else { return };
            tracing::debug!(member = %member, %fault, "a pull goes on with the next member");
            let error = MemberError {
                member: member.peer(),
                fault,
            };
            self.session.status.send_modify(|it| {
                it.member = None;
                it.complete = false;
                it.failures += 1;
                it.last_error = Some(error);
            });
            let pause = self.session.members.with(|it| it.failed(rand::random()));
            self.session.members.pause(pause).await;
        }
    }
}

/// What goes to the reader.
pub(super) enum Delivery {
    Run(Vec<Operation>),
    /// Everything that the member had is before this, in the session with this number.
    CaughtUp(u64),
}

/// A pull that runs: the stream of its operations, each log's in order, each exactly once. It ends
/// only after [`Pull::once`]; dropping it ends the pull.
///
/// What the reader does not take holds the member back: at most five runs of 1 MiB, or of one
/// operation, are in memory, and what the stream itself buffers.
#[derive(Debug)]
pub struct Puller {
    ready: VecDeque<Operation>,
    taken: mpsc::Receiver<Delivery>,
    status: Arc<watch::Sender<PullStatus>>,
    handle: PullHandle,
    task: JoinHandle<()>,
}

impl Puller {
    /// What others may use while this is being read.
    #[must_use]
    pub fn handle(&self) -> PullHandle {
        self.handle.clone()
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> PullStatus {
        self.handle.status()
    }

    /// The operations that are there, up to some thousands of one log; waits until there is one.
    /// `None` at the end. For who keeps them together, as in one write. Cancel-safe.
    pub async fn next_run(&mut self) -> Option<Vec<Operation>> {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await?;
        Some(std::mem::take(&mut self.ready).into())
    }

    /// Waits until something is ready; `None` at the end.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        while self.ready.is_empty() {
            match ready!(self.taken.poll_recv(cx)) {
                None => return Poll::Ready(None),
                Some(Delivery::CaughtUp(session)) => self.status.send_modify(|it| {
                    it.completed_at = Some(SystemTime::now());
                    if it.sessions == session && it.member.is_some() {
                        it.complete = true;
                        it.behind = Some(0);
                    }
                }),
                Some(Delivery::Run(run)) => {
                    let count = run.len() as u64;
                    self.ready = run.into();
                    self.status.send_modify(|it| {
                        it.delivered += count;
                        it.behind = it.behind.map(|behind| behind.saturating_sub(count));
                    });
                }
            }
        }
        Poll::Ready(Some(()))
    }
}

impl Stream for Puller {
    type Item = Operation;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Operation>> {
        if self.ready.is_empty() {
            ready!(self.poll_ready(cx));
        }
        Poll::Ready(self.ready.pop_front())
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches and helps a pull, while its [`Puller`] is read elsewhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PullHandle {
    watch: watch::Receiver<PullStatus>,
    members: Arc<Members>,
}

impl PullHandle {
    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> PullStatus {
        self.watch.borrow().clone()
    }

    /// Watches how it is doing.
    #[must_use]
    pub fn watch_status(&self) -> ClientWatch<PullStatus> {
        ClientWatch(self.watch.clone())
    }

    /// Another way to a member, or another member, which is asked next if nobody answers. At most
    /// [`LogTicket::MEMBERS_MAX`] members are kept.
    pub fn add_address(&self, addr: impl Into<MemberAddr>) {
        self.members.add(addr.into());
    }

    /// Waits until the reader has taken everything that a member had, for the first time: somebody
    /// must be reading meanwhile.
    ///
    /// # Errors
    /// The deadline has passed, or the pull has ended: with the status as it is then.
    pub async fn wait_for_initial_sync(&self, deadline: Duration) -> Result<PullStatus, NotSynced> {
        let mut watch = self.watch_status();
        let synced = watch.wait_for(|it| it.completed_at.is_some());
        match timeout(deadline, synced).await {
            Ok(Some(status)) => Ok(status),
            Ok(None) | Err(_) => Err(NotSynced {
                status: Box::new(self.status()),
            }),
        }
    }
}

/// The first sync was not complete in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not complete in time, {} operations so far{}", status.delivered, because(status))]
pub struct NotSynced {
    /// How far it had come.
    pub status: Box<PullStatus>,
}

fn because(status: &PullStatus) -> String {
    let error = status.last_error.as_ref();
    error.map_or_else(String::new, |it| format!("; the latest failure: {it}"))
}
