//! Whom a client asks, how it gets there, and how long it waits: what pulls and pushes share.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    dial::{Dial, Dialled, MemberError, MemberFault},
    retry::Rotation,
    transport::{Identity, Secret, Transports},
};
use crate::{
    log_store::{Line, Topic},
    sync::{LogTicket, MemberAddr},
};

/// The settings, as [`reach_settings`] lets programs change them.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub(super) topic: Topic,
    pub(super) line: Option<Line>,
    ticket: LogTicket,
    remembered: Vec<MemberAddr>,
    pub(super) secret: Secret,
    pub(super) way: Way,
    pub(super) in_order: bool,
    pub(super) dial_within: Duration,
    pub(super) silent_after: Duration,
    pub(super) retry: (Duration, Duration),
}

/// How members are reached.
#[derive(Clone, Debug)]
pub(super) enum Way {
    Through(Transports),
    Over(Arc<dyn Dial>),
}

impl Reach {
    pub(super) fn new(ticket: &LogTicket, topic: Topic) -> Self {
        Self {
            topic,
            line: ticket.topics().get(&topic).copied(),
            ticket: ticket.clone(),
            remembered: Vec::new(),
            secret: Secret::generate(),
            way: Way::Through(Transports::default()),
            in_order: false,
            dial_within: Duration::from_secs(3),
            silent_after: Duration::from_secs(15),
            retry: (Duration::from_millis(100), Duration::from_secs(30)),
        }
    }

    pub(super) fn remember(&mut self, earlier: &LogTicket) {
        self.remembered = earlier.members().to_vec();
    }

    /// The way to the members, for who goes it from now on.
    pub(super) fn road(self) -> Road {
        let (min, max) = self.retry;
        let mut rotation = Rotation::new(self.ticket.members().to_vec(), min, max);
        rotation.remember(&self.remembered);
        if !self.in_order {
            rotation.begin_at(rand::random::<u16>().into());
        }
        let identity = Identity {
            network: self.ticket.network(),
            secret: self.secret,
        };
        Road {
            members: Arc::new(Members {
                ticket: self.ticket,
                rotation: Mutex::new(rotation),
                added: Notify::new(),
            }),
            dial: match self.way {
                Way::Through(transports) => transports.dialler(&identity),
                Way::Over(dial) => dial,
            },
            dial_within: self.dial_within,
            pause_max: max,
        }
    }
}

/// The settings that pulls and pushes have in common; what the silence of a member is differs.
macro_rules! reach_settings {
    ($(#[$silent_after:meta])*) => {
        /// Members that an earlier run has learned of, as the ticket of its handle named them. They
        /// are asked as those of the ticket are, and forgotten when they have left the group.
        #[must_use]
        pub fn remembering(mut self, earlier: &LogTicket) -> Self {
            self.reach.remember(earlier);
            self
        }

        /// Asks the ticket's members in their order. By default a random one is asked first, so
        /// that clients spread over them.
        #[must_use]
        pub fn in_order(mut self) -> Self {
            self.reach.in_order = true;
            self
        }

        /// The transports by which members are reached, instead of all that there are
        /// ([`Transports::default`]).
        #[must_use]
        pub fn through(mut self, transports: Transports) -> Self {
            self.reach.way = Way::Through(transports);
            self
        }

        /// Under this secret key: for topics that admit peers by their name, which is its public
        /// half ([`Secret::peer`]). By default under a new one.
        #[must_use]
        pub fn with_key(mut self, secret: impl Into<Secret>) -> Self {
            self.reach.secret = secret.into();
            self
        }

        /// Goes a way of the program's own instead of transports.
        #[must_use]
        pub fn over(mut self, dial: Arc<dyn Dial>) -> Self {
            self.reach.way = Way::Over(dial);
            self
        }

        /// How long one dial may take. Default 3 s.
        #[must_use]
        pub fn dial_within(mut self, time: Duration) -> Self {
            self.reach.dial_within = time;
            self
        }

        $(#[$silent_after])*
        #[must_use]
        pub fn silent_after(mut self, time: Duration) -> Self {
            self.reach.silent_after = time;
            self
        }

        /// The pause after the first round in which every member failed, and the longest; it
        /// doubles, with jitter. Default 100 ms and 30 s.
        #[must_use]
        pub fn retry(mut self, min: Duration, max: Duration) -> Self {
            self.reach.retry = (min, max);
            self
        }
    };
}
pub(super) use reach_settings;

/// The members, one after the other, and the way to each.
pub(super) struct Road {
    pub(super) members: Arc<Members>,
    dial: Arc<dyn Dial>,
    dial_within: Duration,
    pause_max: Duration,
}

impl Road {
    /// Whose turn it is; waits while nobody is known.
    pub(super) async fn next(&self) -> MemberAddr {
        loop {
            match self.members.with(Rotation::turn) {
                Some(member) => return member,
                None => self.members.pause(self.pause_max).await,
            }
        }
    }

    pub(super) async fn dial(&self, member: &MemberAddr) -> Result<Dialled, MemberFault> {
        match timeout(self.dial_within, self.dial.dial(member)).await {
            Ok(dialled) => dialled.map_err(MemberFault::Unreachable),
            Err(_) => Err(MemberFault::Silent {
                after: self.dial_within,
            }),
        }
    }

    /// The member has failed: it is the next one's turn, after the pause that is given.
    pub(super) fn failed(
        &self,
        member: &MemberAddr,
        fault: MemberFault,
    ) -> (MemberError, Duration) {
        tracing::debug!(%member, %fault, "a client goes on with the next member");
        let error = MemberError {
            member: member.peer(),
            fault,
        };
        (error, self.members.with(|it| it.failed(rand::random())))
    }
}

/// Members that a task goes through, and that others add to.
pub(super) struct Members {
    ticket: LogTicket,
    rotation: Mutex<Rotation>,
    added: Notify,
}

impl Members {
    pub(super) fn add(&self, addr: MemberAddr) {
        self.with(|it| it.add(addr));
        self.added.notify_one();
    }

    /// A ticket as that of the client, with the members that it knows now.
    pub(super) fn ticket(&self) -> LogTicket {
        let topics = self.ticket.topics().clone();
        let members = self.with(|it| it.named());
        LogTicket::new(self.ticket.network(), topics, members)
    }

    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Rotation) -> R) -> R {
        act(&mut self.rotation.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for so long, or until there is a new address.
    pub(super) async fn pause(&self, time: Duration) {
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
