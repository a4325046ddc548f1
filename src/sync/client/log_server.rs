//! A server of the client's protocol alone, over any transports.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    super::{
        member_addr::{MemberAddr, QUIC},
        places::Places,
    },
    outcome::Denied,
    quic::Quic,
    server::{Access, Admit, ServeLimits, refuse, serve_carried},
    transport::{Caller, Knock, ListenError, Listener, Place, Secret, Transport, Transports},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Logs, Topic},
    sync::LogTicket,
};

/// Clients that shake hands, or hear that there is no place, at once: as many as there may be
/// sessions, and so many more. Those that are served are not among them.
const KNOCKS_MAX: usize = 64;

/// How to open a [`LogServer`], which has an example.
#[derive(Clone, Debug)]
pub struct LogServerOptions {
    /// The key of its endpoint, by which tickets name it. Default: a new one.
    pub secret: Secret,
    /// What it listens with. Default: QUIC on a free port of every IPv4 interface.
    pub transports: Transports,
    /// What [`LogServer::settings`] said the last time, so that a restart is found where it was.
    /// Default: nothing.
    pub kept: BTreeMap<String, String>,
    /// The network that it is in. Default: BLAKE3("p2panda"), as of stock nodes.
    pub network: [u8; 32],
    /// Sessions at once; further clients are turned away, once they have proven a key. Default 256.
    pub sessions_max: usize,
    /// Sessions at once with one client, by its key. Default 32.
    pub sessions_of_peer_max: usize,
    /// What each session may cost.
    pub limits: ServeLimits,
}

impl Default for LogServerOptions {
    fn default() -> Self {
        Self {
            secret: Secret::generate(),
            transports: Transports::none().with(QUIC, Quic::new()),
            kept: BTreeMap::new(),
            network: *blake3::hash(b"p2panda").as_bytes(),
            sessions_max: 256,
            sessions_of_peer_max: 32,
            limits: ServeLimits::default(),
        }
    }
}

/// Which logs hold a topic, if the client that has proven this name may have that access to it.
pub type AdmitPeer = Arc<dyn Fn(PeerId, Topic, Access) -> Result<Logs, Denied> + Send + Sync>;

/// Serves [`pull()`](super::pull()) and [`push()`](super::push()), and nothing else, on sockets of
/// its own. Which topics to whom is the caller's [`AdmitPeer`] to say.
///
/// Dropping it ends everything, and waits for nothing: [`LogServer::close`] does.
///
/// ```
/// use std::sync::Arc;
/// use futures_util::StreamExt;
/// use quorate::{
///     GroupKey, Node,
///     log_store::{AuthorKey, Draft, Line, LogStore, Operation, Topic},
///     sync::{self, Access, Denied, Have, LogServer, LogServerOptions, Quic, Transports},
/// };
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
/// let topic = Topic::named("cats");
/// logs.open_topic(topic, Line::V07).await?;
/// let draft = Draft::first(Line::V07, topic.log_id(), 7, Some("meow".into()));
/// let operation = Operation::sign(draft, &AuthorKey::from_bytes(&[1; 32]))?;
/// logs.append(topic, operation.clone()).await?;
///
/// // Everybody may read, nobody may push.
/// let admit = move |_peer, _topic, access| match access {
///     Access::Pull => Ok(logs.clone()),
///     _ => Err(Denied::UnknownTopic),
/// };
/// let quic = Quic::new().bind("127.0.0.1:0".parse()?);
/// let transports = Transports::none().with("quic", quic);
/// let options = LogServerOptions { transports, ..LogServerOptions::default() };
/// let server = LogServer::open(options, Arc::new(admit)).await?;
///
/// let ticket = server.ticket([(topic, Line::V07)], []);
/// let mut puller = sync::pull(&ticket, topic, Have::new());
/// assert_eq!(puller.next().await, Some(operation));
/// # drop(puller);
/// server.close().await;
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct LogServer {
    peer: PeerId,
    network: [u8; 32],
    listeners: Listeners,
    stop: CancellationToken,
    accepting: Vec<AbortOnDropHandle<()>>,
}

impl LogServer {
    /// Listens and serves.
    ///
    /// # Errors
    /// One of the transports cannot listen.
    pub async fn open(options: LogServerOptions, admit: AdmitPeer) -> Result<Self, ServerError> {
        let peer = options.secret.peer();
        let network = options.network;
        let place = Place {
            network,
            secret: options.secret,
            sessions_max: options.sessions_max,
            kept: None,
        };
        let listeners = Listeners::open(&options.transports, &place, &options.kept).await;
        let listeners = listeners.map_err(|(transport, why)| ServerError::Bind {
            transport,
            why: why.to_string(),
        })?;
        let knocks = options.sessions_max.saturating_add(KNOCKS_MAX);
        let serving = Arc::new(Serving {
            admit,
            limits: options.limits,
            knocks: Arc::new(Semaphore::new(knocks.min(Semaphore::MAX_PERMITS))),
            sessions: Places::new(options.sessions_max, options.sessions_of_peer_max),
        });
        let stop = CancellationToken::new();
        let accepting = listeners.all().into_iter().map(|(_, listener)| {
            let accepting = accept(listener, Arc::clone(&serving), stop.clone());
            AbortOnDropHandle::new(tokio::spawn(accepting))
        });
        let accepting = accepting.collect();
        Ok(Self {
            peer,
            network,
            listeners,
            stop,
            accepting,
        })
    }

    /// Where it can be dialled at the moment.
    #[must_use]
    pub fn addr(&self) -> MemberAddr {
        let quic = PeerAddr::new(self.peer, []);
        self.listeners.add_to(quic.into())
    }

    /// Its transports, and the addresses of each.
    #[must_use]
    pub fn transports(&self) -> BTreeMap<String, Vec<String>> {
        self.listeners.addrs()
    }

    /// What a restart needs to be found where this one was, in [`LogServerOptions::kept`].
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        self.listeners.settings()
    }

    /// A ticket to topics through this server and others.
    #[must_use]
    pub fn ticket(
        &self,
        topics: impl IntoIterator<Item = (Topic, Line)>,
        others: impl IntoIterator<Item = MemberAddr>,
    ) -> LogTicket {
        let members = std::iter::once(self.addr()).chain(others);
        LogTicket::new(self.network, topics, members)
    }

    /// Ends every session and gives the sockets back. When it returns, nothing of the server runs
    /// any more, and what its [`AdmitPeer`] held is let go of.
    pub async fn close(mut self) {
        self.stop.cancel();
        for accepting in std::mem::take(&mut self.accepting) {
            // One that has panicked has ended, too.
            let _ = accepting.await;
        }
        self.listeners.close().await;
    }
}

impl fmt::Debug for LogServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogServer")
            .field("peer", &self.peer)
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

/// A [`LogServer`] could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// One of its transports cannot listen.
    #[error("{transport} cannot listen: {why}")]
    Bind {
        /// The name of the transport.
        transport: String,
        /// In words.
        why: String,
    },
}

/// Listeners by the names of their transports.
#[derive(Debug, Default)]
pub(crate) struct Listeners(RwLock<BTreeMap<String, Arc<dyn Listener>>>);

impl Listeners {
    /// Listens with all of them, or with none: what was opened is closed when one fails.
    pub(crate) async fn open(
        transports: &Transports,
        place: &Place,
        kept: &BTreeMap<String, String>,
    ) -> Result<Self, (String, ListenError)> {
        let opened = Self::default();
        for (name, transport) in transports.iter() {
            match listen(name, transport, place, kept.get(name).cloned()).await {
                Ok(listener) => {
                    let mut all = opened.0.write().unwrap_or_else(PoisonError::into_inner);
                    all.insert(name.to_owned(), listener.into());
                }
                Err(why) => {
                    opened.close().await;
                    return Err((name.to_owned(), why));
                }
            }
        }
        Ok(opened)
    }

    pub(crate) fn all(&self) -> Vec<(String, Arc<dyn Listener>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(name, it)| (name.clone(), Arc::clone(it)))
            .collect()
    }

    pub(crate) fn addrs(&self) -> BTreeMap<String, Vec<String>> {
        self.all()
            .into_iter()
            .map(|(name, it)| (name, it.addrs()))
            .collect()
    }

    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        self.all()
            .into_iter()
            .map(|(name, it)| (name, it.settings()))
            .collect()
    }

    /// A member that listens here, too.
    pub(crate) fn add_to(&self, member: MemberAddr) -> MemberAddr {
        let addrs = self.addrs().into_iter();
        let ways = addrs.flat_map(|(name, all)| all.into_iter().map(move |it| (name.clone(), it)));
        ways.fold(member, |member, (name, addr)| member.with(&name, &addr))
    }

    /// Also lets go of them, so that those of which nothing is held any more are gone.
    pub(crate) async fn close(&self) {
        for (_, listener) in self.all() {
            listener.close().await;
        }
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// Listens where it was the last time; where that cannot be, as where what was kept is damaged,
/// somewhere else: the member's name stays, and so do the ways of the other transports.
async fn listen(
    name: &str,
    transport: &Arc<dyn Transport>,
    place: &Place,
    kept: Option<String>,
) -> Result<Box<dyn Listener>, ListenError> {
    let anew = || transport.listen(place.clone());
    let Some(kept) = kept else {
        return anew().await;
    };
    let former = Place {
        kept: Some(kept),
        ..place.clone()
    };
    match transport.listen(former).await {
        Ok(listener) => Ok(listener),
        Err(why) => {
            tracing::warn!(
                transport = name,
                %why,
                "cannot listen as what was kept of the last time says; without it, clients may \
                 not find this member where it was"
            );
            anew().await
        }
    }
}

/// What all sessions share.
struct Serving {
    admit: AdmitPeer,
    limits: ServeLimits,
    knocks: Arc<Semaphore>,
    sessions: Arc<Places>,
}

/// Accepts until the listener is closed, or the server; the sessions have ended when it has.
async fn accept(listener: Arc<dyn Listener>, serving: Arc<Serving>, stop: CancellationToken) {
    let mut sessions = JoinSet::new();
    loop {
        let knock = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            knock = listener.accept() => knock,
        };
        let Some(knock) = knock else { break };
        while sessions.try_join_next().is_some() {}
        // A stranger takes no place of a session, and a session none of theirs.
        let Ok(room) = Arc::clone(&serving.knocks).try_acquire_owned() else {
            continue;
        };
        let serving = Arc::clone(&serving);
        sessions.spawn(async move {
            serving.let_in(knock, room).await;
        });
    }
    sessions.shutdown().await;
}

impl Serving {
    async fn let_in(&self, knock: Knock, room: OwnedSemaphorePermit) {
        let caller = match timeout(self.limits.request_within, knock).await {
            Ok(Ok(caller)) => caller,
            Ok(Err(error)) => return tracing::debug!(%error, "a client was not let in"),
            Err(_) => return tracing::debug!("a client took too long to come in"),
        };
        let Caller {
            peer,
            read,
            write,
            gone,
        } = caller;
        let Some(_place) = self.sessions.take(peer) else {
            tracing::debug!(peer = %peer.short(), "a client has found no place");
            return refuse((read, write), Denied::OverQuota, gone).await;
        };
        drop(room);
        let admit = Arc::clone(&self.admit);
        let admit: Admit = Arc::new(move |topic, access| admit(peer, topic, access));
        let served = serve_carried((read, write), &admit, &self.limits, None, gone).await;
        if let Err(error) = &served {
            tracing::debug!(peer = %peer.short(), %error, "a client's session ended early");
        }
    }
}
