//! Pulling a topic: a task that goes from member to member, and the reader's end of it.

mod session;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use self::session::Session;
use super::{
    dial::Dial,
    have::Have,
    reach::{Members, Reach, Road, Way, reach_settings},
    status::{ClientWatch, PullStatus},
    transport::{Secret, Transports},
};
use crate::{
    log_store::{Operation, Topic},
    sync::{LogTicket, MemberAddr},
    task::Given,
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
    reach: Reach,
    have: Have,
    follow: bool,
    verify_all: bool,
}

impl Pull {
    /// As [`pull()`] does it.
    #[must_use]
    pub fn new(ticket: &LogTicket, topic: Topic, have: Have) -> Self {
        Self {
            reach: Reach::new(ticket, topic),
            have,
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

    reach_settings! {
        /// The silence after which another member is asked: more than the 5 s after which a member
        /// says that there is no news. Default 15 s. A member from which something comes is not
        /// silent, unless it is less than 8 KiB a second of one message.
        ///
        /// So a member that hangs, its sockets open, costs 15 s at most, and then 3 s for each
        /// further one that hangs, until the next one sends; over QUIC, where a connection that is
        /// silent for 10 s is given up, 10 s.
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
        let (topic, line) = (self.reach.topic, self.reach.line);
        let silent_after = self.reach.silent_after;
        let road = self.reach.road();
        let members = Arc::clone(&road.members);
        let task = Task {
            session: Session {
                topic,
                line,
                have: self.have,
                follow: self.follow,
                verify_all: self.verify_all,
                silent_after,
                give,
                status: Arc::clone(&status),
                members: Arc::clone(&members),
            },
            road,
        };
        Puller {
            ready: VecDeque::new(),
            taken: Given::new(taken, tokio::spawn(task.run())),
            status,
            handle: PullHandle { watch, members },
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
            let member = self.road.next().await;
            let ended = match self.road.dial(&member).await {
                Ok(dialled) => self.session.run(member.peer(), dialled).await,
                Err(fault) => Err(fault),
            };
            let Err(fault) = ended else { return };
            let (error, pause) = self.road.failed(&member, fault);
            self.session.status.send_modify(|it| {
                it.member = None;
                it.complete = false;
                it.failures += 1;
                it.last_error = Some(error);
            });
            self.road.members.pause(pause).await;
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
/// only after [`Pull::once`]; dropping it ends the pull. If a [`Dial`] of the program's own panics,
/// so does reading here.
///
/// What the reader does not take holds the member back: at most five runs of 1 MiB, or of one
/// operation, are in memory, and what the stream itself buffers.
#[derive(Debug)]
pub struct Puller {
    ready: VecDeque<Operation>,
    taken: Given<Delivery>,
    status: Arc<watch::Sender<PullStatus>>,
    handle: PullHandle,
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

    /// As [`PullHandle::ticket`].
    #[must_use]
    pub fn ticket(&self) -> LogTicket {
        self.handle.ticket()
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
            match ready!(self.taken.poll_next(cx)) {
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
        self.taken.abort();
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

    /// A ticket to the members that it knows now: those that its own ticket and the program have
    /// named, and those of which members have told since. It can be kept, and given to the next run
    /// beside the first ticket: [`Pull::remembering`].
    #[must_use]
    pub fn ticket(&self) -> LogTicket {
        self.members.ticket()
    }

    /// Another way to a member, or another member, which is asked next if nobody answers. At most
    /// [`LogTicket::MEMBERS_MAX`] that were named by the ticket and here are kept.
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
