//! A server of the client's protocol alone, over any transports.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};

use super::{
    super::member_addr::{MemberAddr, QUIC},
    quic::Quic,
    server::{Admit, ServeError, ServeLimits, serve_logs},
    transport::{Caller, ListenError, Listener, Place, Secret, Transports},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Topic},
    sync::LogTicket,
};

/// How long a client's goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

/// How to open a [`LogServer`].
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
    /// Sessions at once; further clients are turned away. Default 256.
    pub sessions_max: usize,
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
            limits: ServeLimits::default(),
        }
    }
}

/// Serves [`pull()`](super::pull()) and [`push()`](super::push()), and nothing else, on sockets of
/// its own. Which topics to whom is the caller's [`Admit`] to say.
pub struct LogServer {
    peer: PeerId,
    network: [u8; 32],
    listeners: Listeners,
    accepting: Vec<JoinHandle<()>>,
}

impl LogServer {
    /// Listens and serves.
    ///
    /// # Errors
    /// One of the transports cannot listen.
    pub async fn open(options: LogServerOptions, logs: Admit) -> Result<Self, ServerError> {
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
        let sessions = Arc::new(Semaphore::new(options.sessions_max));
        let limits = Arc::new(options.limits);
        let accepting = listeners.all().into_iter().map(|(_, listener)| {
            let (logs, limits) = (Arc::clone(&logs), Arc::clone(&limits));
            tokio::spawn(accept(listener, logs, limits, Arc::clone(&sessions)))
        });
        let accepting = accepting.collect();
        Ok(Self {
            peer,
            network,
            listeners,
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

    /// Ends every session and gives the sockets back.
    pub async fn close(self) {
        for accepting in &self.accepting {
            accepting.abort();
        }
        self.listeners.close().await;
    }
}

impl Drop for LogServer {
    fn drop(&mut self) {
        for accepting in &self.accepting {
            accepting.abort();
        }
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
            let place = Place {
                kept: kept.get(name).cloned(),
                ..place.clone()
            };
            match transport.listen(place).await {
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

/// Whether something was said last that the client may still read.
pub(crate) fn said_goodbye(served: &Result<(), ServeError>) -> bool {
    !matches!(
        served,
        Err(ServeError::Stalled | ServeError::Lost { .. } | ServeError::QuorumLost)
    )
}

/// Accepts until the listener is closed; its sessions end with it.
async fn accept(
    listener: Arc<dyn Listener>,
    logs: Admit,
    limits: Arc<ServeLimits>,
    sessions: Arc<Semaphore>,
) {
    let mut serving = tokio::task::JoinSet::new();
    while let Some(knock) = listener.accept().await {
        while serving.try_join_next().is_some() {}
        let Ok(session) = Arc::clone(&sessions).try_acquire_owned() else {
            continue;
        };
        let (logs, limits) = (Arc::clone(&logs), Arc::clone(&limits));
        serving.spawn(async move {
            let caller = match timeout(limits.request_within, knock).await {
                Ok(Ok(caller)) => caller,
                Ok(Err(error)) => return tracing::debug!(%error, "a client was not let in"),
                Err(_) => return tracing::debug!("a client took too long to come in"),
            };
            let Caller {
                read, write, gone, ..
            } = caller;
            let served = serve_logs((read, write), &logs, &limits).await;
            if let Err(error) = &served {
                tracing::debug!(%error, "a client's session ended early");
            }
            if said_goodbye(&served) {
                // The last words are on their way.
                let _ = timeout(GOODBYE_WITHIN, gone).await;
            }
            drop(session);
        });
    }
}
