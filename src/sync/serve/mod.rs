//! A member's door for outsiders: peers that are no members sync the group's logs here, as with
//! one peer.
//!
//! ```text
//!   accept ----> discovery: who has which topics, who is where
//!     |   \----> gossip: neighbours in a topic --------+
//!     |                                                v
//!     +--------> session <---- keeper: dials a peer, and again, in each topic
//!                   |
//!        inbound: what it pushes      peers: whom, how fast, what it has; one session serves
//!                   |                 claims: which member serves whom, shared by the group
//!                   |                 doors: which members' doors are open, likewise
//!                   |                 topic: what is new, to all live sessions
//!                   |                 admission: who may read and push what, as the group decided
//!                 Logs: read index first, then what is held; pushes are proposed to the group
//! ```
//!
//! # Invariants
//! - What a peer is told that we hold, a quorum held when it was told.
//! - One member serves a peer, and one session at a time in a topic; others say what is held and
//!   end.
//! - A peer that is behind is sent chunks, each announced in full, and nothing live.
//! - A session never waits with reading for what it reads to be committed.
//! - Without a quorum nobody is served.
//! - Nobody is served what the group has not admitted them to, and a stranger is remembered only
//!   as a request.

mod account;
mod admission;
mod aside;
mod asking;
mod backoff;
mod claims;
mod discover;
mod door;
mod doors;
mod echoed;
mod entrance;
mod ephemeral;
mod inbound;
mod keeper;
#[cfg(feature = "mdns")]
mod lan;
mod lately;
mod once;
mod options;
mod own;
mod pacer;
mod patience;
mod peers;
mod rate;
mod register;
mod seats;
mod session;
mod settings;
mod shake;
mod status;
mod topic;
mod watched;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use self::{
    admission::Admissions,
    claims::Claims,
    discover::Infos,
    doors::Doors,
    ephemeral::Channels,
    keeper::Dials,
    patience::Patience,
    peers::{Counted, Peers, Rank},
    rate::Rates,
    register::Register,
    seats::{Seat, Seats},
    topic::Feed,
    watched::Watched,
};
pub use self::{
    door::{OpenSyncError, Sync},
    once::{SyncWithError, Synced},
    options::SyncOptions,
    status::{PeerState, PeerStatus, SyncStatus},
    watched::SyncWatch,
};
pub(crate) use self::{ephemeral::Channel, ways::Kept};
use super::{
    client::Listeners,
    places::Places,
    wire::{Wire, WireOptions, released},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Logs, Topic},
};

/// Strangers that shake hands at once, and connections of one of them, beside its sessions.
const KNOCKS_MAX: usize = 64;
/// While so many shake hands, a newcomer first has to show that it is where it says.
const RETRY_FROM: usize = KNOCKS_MAX / 4;
const KNOCKS_OF_PEER_MAX: usize = 8;
/// Connections of overlays at once: more than any needs, and little beside the sessions.
const GOSSIPS_MAX: usize = 512;
/// Those with one peer: while one takes another's place there are two.
const GOSSIPS_OF_PEER_MAX: usize = 4;
/// Peers that are dialled again and again, each in each of its topics.
const KEPT_MAX: usize = 8_192;
/// Peers that are asked again at each interval, chosen at random, and at the same time.
const ASKED_MAX: usize = 64;
const ASKED_AT_ONCE: usize = 8;
/// Why a session more is turned away.
const FULL: &str = "as many sessions as there may be are open";
/// Between two looks at which topics are open.
const TOPICS_PAUSE: Duration = Duration::from_millis(100);

/// What all tasks of the door share.
struct Shared {
    wire: Wire,
    /// The other ways in.
    listeners: Listeners,
    logs: Logs,
    /// As it was opened; what may change while it is open is below.
    options: SyncOptions,
    ask_again: watch::Sender<Duration>,
    named: Mutex<Vec<PeerAddr>>,
    patience: Patience,
    secret: Zeroizing<[u8; 32]>,
    /// Whether a quorum is reached, so whether anybody is served.
    serving: watch::Sender<bool>,
    seats: Arc<Seats>,
    topics: Mutex<BTreeMap<Topic, Feed>>,
    /// One look at which topics are open at a time: a slow one knows less than a later one.
    looking: Mutex<()>,
    peers: Arc<Peers>,
    /// Room for tasks that keep a peer served, and for those of them that dial.
    kept: Arc<Semaphore>,
    dials: Dials,
    claims: Claims,
    doors: Doors,
    /// Connections that came in, and those of them that the topics' overlays have.
    knocks: Arc<Places>,
    gossips: Arc<Places>,
    admissions: Arc<Admissions>,
    rates: Arc<Rates>,
    register: Register,
    infos: Infos,
    channels: Channels,
    /// The status as it was last told to whoever watches it.
    watched: Arc<Watched>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    async fn open(
        logs: &Logs,
        secret: Zeroizing<[u8; 32]>,
        options: SyncOptions,
        kept: &BTreeMap<String, String>,
        (patience, watched): (Patience, Arc<Watched>),
    ) -> Result<Arc<Self>, OpenSyncError> {
        if let Some(why) = options.fault() {
            return Err(OpenSyncError { why });
        }
        let rates = Arc::new(Rates::new(&options, Instant::now()));
        let wire = WireOptions {
            secret: secret.clone(),
            bind: options.bind.clone(),
            former: ways::former(kept),
            relay: options.relay_choice(),
            network: options.network,
            own: options.protocols.iter().map(|it| it.own.name()).collect(),
        };
        let wire = Wire::bind(wire).await.map_err(|error| OpenSyncError {
            why: format!("no endpoint at the address wanted: {error}"),
        })?;
        let listeners = match ways::open(&options, &secret, kept).await {
            Ok(listeners) => listeners,
            Err(error) => {
                wire.close().await;
                return Err(error);
            }
        };
        let knocks = Places::new(
            KNOCKS_MAX.saturating_add(options.sessions_max),
            KNOCKS_OF_PEER_MAX.saturating_add(options.sessions_of_peer_max),
        );
        let shared = Arc::new(Self {
            logs: logs.clone(),
            secret,
            serving: watch::Sender::new(logs.quorate().now()),
            seats: Seats::new(options.sessions_max, options.sessions_of_peer_max),
            ask_again: watch::Sender::new(options.ask_again),
            named: Mutex::new(options.peers.clone()),
            options,
            patience,
            topics: Mutex::default(),
            looking: Mutex::default(),
            peers: Arc::new(Peers::new({
                let wire = wire.clone();
                move |peer| wire.forget(peer)
            })),
            claims: Claims::default(),
            doors: Doors::new(patience.silence),
            knocks,
            gossips: Places::new(GOSSIPS_MAX, GOSSIPS_OF_PEER_MAX),
            admissions: Arc::default(),
            rates,
            register: Register::default(),
            infos: Infos::default(),
            channels: Channels::default(),
            watched,
            kept: Arc::new(Semaphore::new(KEPT_MAX)),
            dials: Dials::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            listeners,
            wire,
        });
        shared.begin().await;
        let wanted = shared.options.peers.iter();
        wanted.for_each(|it| shared.look_for(it));
        Ok(shared)
    }

    /// Looks for a peer until it is found.
    fn look_for(self: &Arc<Self>, addr: &PeerAddr) {
        if !self.learn(addr, Rank::Wanted) {
            tracing::warn!(peer = %addr.peer.short(), "there is no room for one more peer");
            return;
        }
        let told = self.topics_told(addr.peer);
        let lines: BTreeSet<Line> = told.iter().map(|it| it.1).collect();
        for (topic, _) in told {
            self.keep(addr.peer, topic);
        }
        for line in lines {
            let (shared, addr) = (Arc::clone(self), addr.clone());
            self.run(async move {
                let _asking = shared.dials.meet.acquire().await;
                if let Err(error) = discover::ask(&shared, &addr, line).await {
                    tracing::debug!(peer = %addr.peer.short(), %error, "not met in discovery");
                }
            });
        }
    }

    /// Closes the door: ends all sessions and gives the socket back. Idempotent.
    async fn close(&self) {
        let (first, bound) = (!self.stop.is_cancelled(), self.wire.bound());
        self.stop.cancel();
        if first {
            // Another member takes over at once.
            self.unsay().await;
        }
        self.tasks.close();
        self.listeners.close().await;
        self.wire.close().await;
        self.tasks.wait().await;
        released(&bound).await;
        self.tell_watchers();
    }

    fn ask_again(&self) -> Duration {
        *self.ask_again.borrow()
    }

    /// The peers that the settings name.
    fn named(&self) -> MutexGuard<'_, Vec<PeerAddr>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to serve.
    async fn begin(self: &Arc<Self>) {
        // Before anybody knocks; where it fails, nobody is let in until it does not.
        self.follow_topics().await;
        self.run(register::tell(Arc::clone(self)));
        self.run(admission::watch(Arc::clone(self)));
        self.run(watch_quorum(Arc::clone(self)));
        self.run(watch_topics(Arc::clone(self)));
        self.run(claims::watch(Arc::clone(self)));
        self.run(doors::beat(Arc::clone(self)));
        #[cfg(feature = "mdns")]
        if self.options.mdns {
            self.run(lan::meet(Arc::clone(self)));
        }
        self.run(entrance::accept(Arc::clone(self)));
        for (name, listener) in self.listeners.all() {
            self.run(ways::accept(Arc::clone(self), name, listener));
        }
        self.run(entrance::watch_outbound(Arc::clone(self)));
        self.run(ask_again(Arc::clone(self)));
        self.run(watched::follow(Arc::clone(self)));
    }

    /// Runs a task until the door closes.
    fn run(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    fn topics(&self) -> MutexGuard<'_, BTreeMap<Topic, Feed>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, topic: Topic) -> Option<Feed> {
        self.topics().get(&topic).cloned()
    }

    fn open_topics(&self) -> Vec<(Topic, Line)> {
        let topics = self.topics();
        topics.iter().map(|(topic, it)| (*topic, it.line)).collect()
    }

    /// Opens and closes what the group has opened and closed; not on an async thread.
    fn look_at_topics(self: &Arc<Self>) {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(wanted) = self.logs.topics() else {
            return;
        };
        fail::fail_point!("sync::topics_read");
        // What a topic admits, and how it is served, was said before it was opened.
        if let Err(error) = self.look_at_admissions() {
            tracing::warn!(%error, "who may be served cannot be read");
        }
        let wanted: BTreeMap<Topic, Line> = wanted.into_iter().collect();
        let mut gone = Vec::new();
        {
            let mut topics = self.topics();
            topics.retain(|topic, feed| {
                let stays = wanted.get(topic) == Some(&feed.line);
                if !stays {
                    feed.over.cancel();
                    gone.push(*topic);
                }
                stays
            });
            for (topic, line) in wanted {
                let opened = || topic::open(self, topic, line);
                topics.entry(topic).or_insert_with(opened);
            }
        }
        for topic in gone {
            self.peers.close_topic(topic);
        }
    }

    /// The same where async code runs. What was opened before this was called is open then.
    async fn follow_topics(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let looking = self.tasks.spawn_blocking(move || shared.look_at_topics());
        if let Err(error) = looking.await {
            tracing::warn!(%error, "which topics are open cannot be looked at");
        }
    }

    /// Remembers where a peer is. False if there is no room for another peer.
    fn learn(&self, addr: &PeerAddr, rank: Rank) -> bool {
        let learnt = self.peers.learn(addr, rank);
        if learnt {
            self.wire.learn(&self.peers.addr(addr.peer));
        }
        learnt
    }

    /// Sees to it that a peer that was heard of is served in a topic, from now on, if it may be.
    fn keep(self: &Arc<Self>, peer: PeerId, topic: Topic) {
        if !self.may_keep(peer, topic) {
            return;
        }
        let fresh = self.peers.with(peer, topic, |it| {
            it.moved.notify_one();
            (it.tries, it.given_up) = (0, None);
            if it.kept {
                return None;
            }
            // Without room it is served when it comes in itself.
            let room = Arc::clone(&self.kept).try_acquire_owned().ok()?;
            it.kept = true;
            Some((Arc::clone(&it.moved), room))
        });
        if let Some((moved, room)) = fresh.flatten() {
            let keeping = keeper::keep(Arc::clone(self), peer, topic, moved);
            self.run(async move {
                keeping.await;
                drop(room);
            });
        }
    }

    fn may_keep(&self, peer: PeerId, topic: Topic) -> bool {
        let rights = self.admissions.verdict(peer, topic).rights;
        peer != self.wire.id() && !self.doors.is_door(peer) && rights.any()
    }

    #[cfg(test)]
    fn is_kept(&self, peer: PeerId, topic: Topic) -> bool {
        self.peers.look(peer, topic, |it| it.kept).unwrap_or(false)
    }

    /// Room for one more session, with this peer and in all. `over` ends it when it has to make
    /// room for others.
    fn room(&self, peer: PeerId, over: &CancellationToken) -> Option<(Seat, Counted)> {
        let counted = self.peers.count(peer, self.options.sessions_of_peer_max)?;
        let known = self.peers.is_known(peer);
        let seat = self.seats.take(peer, known, over.clone())?;
        Some((seat, counted))
    }
}

async fn watch_quorum(shared: Arc<Shared>) {
    let mut quorate = shared.logs.quorate();
    loop {
        shared.serving.send_replace(quorate.now());
        shared.peers.wake_all();
        quorate.changed().await;
    }
}

async fn watch_topics(shared: Arc<Shared>) {
    let mut committed = shared.logs.committed();
    while committed.changed().await.is_ok() {
        shared.follow_topics().await;
        sleep(TOPICS_PAUSE).await;
    }
}

/// Asks known peers again which topics they have, and whom they know.
async fn ask_again(shared: Arc<Shared>) {
    loop {
        let mut every = shared.ask_again.subscribe();
        let pause = *every.borrow_and_update();
        tokio::select! {
            () = sleep(pause) => {}
            // Counted from now.
            _ = every.changed() => continue,
        }
        let open = shared.open_topics();
        let open: BTreeSet<Line> = open.into_iter().map(|it| it.1).collect();
        let asking = shared.peers.some(ASKED_MAX).into_iter().flat_map(|addr| {
            let spoken = shared.peers.line(addr.peer);
            let lines = open.iter().copied();
            let lines = lines.filter(move |it| spoken.is_none_or(|spoken| spoken == *it));
            lines.map(move |line| (addr.clone(), line))
        });
        let asking = futures_util::stream::iter(asking);
        let asked = asking.for_each_concurrent(ASKED_AT_ONCE, async |(addr, line)| {
            if *shared.serving.borrow() {
                // A peer that is gone is asked less and less by its keepers, and forgotten in time.
                let _ = discover::ask(&shared, &addr, line).await;
            }
        });
        asked.await;
    }
}

#[cfg(test)]
mod tests;
