//! A node before it runs: its settings, and how it opens its directory and its endpoint.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{Inner, MemoryDisk, Node};
use crate::{
    config::{Config, ConfigError},
    group::Registry,
    identity::NodeSecret,
    mesh::Links,
    metrics::Counters,
    net::{Quic, QuicOptions, RelayChoice, Transport, at_former_port},
    storage::{OpenError as StoreError, Store},
};

/// How long a node waits for the port of the last time to be free.
const FORMER_PORT_WAIT: Duration = Duration::from_millis(500);

/// Where a node keeps its data.
#[derive(Clone, Debug)]
pub(super) enum Place {
    #[cfg(feature = "rocksdb")]
    Directory(std::path::PathBuf),
    Memory(Option<MemoryDisk>),
}

/// How peers may be reached besides their own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Relay {
    /// Not at all; no server is contacted. The default: right for a LAN and for loopback.
    #[default]
    Off,
    /// Through the public relays that iroh's makers run.
    Public,
    /// Through one's own relay server.
    Url(String),
}

/// Settings of a node before it opens.
///
/// ```
/// use quorate::{Node, config::{Config, Timing}};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config { timing: Timing::INTERNET, ..Config::default() };
/// // On disk: `Node::builder("data")`.
/// let node = Node::in_memory().bind("127.0.0.1:0".parse()?).config(config).open().await?;
/// assert_eq!(node.addr().peer, node.peer_id());
/// node.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NodeBuilder {
    place: Place,
    bind: Vec<SocketAddr>,
    relay: Relay,
    endpoint: Option<iroh::Endpoint>,
    config: Config,
}

impl NodeBuilder {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            bind: Vec::new(),
            relay: Relay::Off,
            endpoint: None,
            config: Config::default(),
        }
    }

    /// Listens on this address; call once for IPv4 and once for IPv6. Port 0 takes a free port.
    /// Default: every IPv4 interface, on the port of the last time if it is free.
    #[must_use]
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind.push(addr);
        self
    }

    /// Listens on loopback only, on a free port: for tests and for several nodes on one machine.
    #[must_use]
    pub fn bind_loopback(self) -> Self {
        self.bind((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// How peers may be reached besides their own addresses. Default [`Relay::Off`].
    #[must_use]
    pub fn relay(mut self, relay: Relay) -> Self {
        self.relay = relay;
        self
    }

    /// Uses this endpoint instead of one of its own: the node then has the endpoint's key and
    /// addresses, and [`NodeBuilder::bind`] and [`NodeBuilder::relay`] are without effect. The
    /// node takes over the endpoint's incoming connections and closes it at its shutdown.
    #[must_use]
    pub fn endpoint(mut self, endpoint: iroh::Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// All other settings. Default: [`Config::default`]. They are checked when the node opens.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Opens the node.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(self) -> Result<Node, OpenError> {
        self.config.check()?;
        let counters = Arc::<Counters>::default();
        let (store, secret, memory) = open_place(self.place, &self.config, &counters).await?;
        let quic = match self.endpoint {
            Some(endpoint) => Quic::from_endpoint(endpoint),
            None => {
                let relay = match self.relay {
                    Relay::Off => RelayChoice::Off,
                    Relay::Public => RelayChoice::Public,
                    Relay::Url(url) => RelayChoice::Url(url),
                };
                bind(&store, &secret, self.bind, relay).await?
            }
        };
        let config = Arc::new(self.config);
        let transport: Arc<dyn Transport> = Arc::new(quic);
        let links = Links::start(transport, Arc::clone(&config), Arc::clone(&counters));
        let inner = Inner {
            store,
            links,
            registry: Registry::default(),
            config,
            counters,
            memory,
            secret,
            doors: std::sync::Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        };
        Ok(Node {
            inner: Arc::new(inner),
        })
    }
}

async fn open_place(
    place: Place,
    config: &Config,
    counters: &Arc<Counters>,
) -> Result<(Store, Arc<NodeSecret>, Option<MemoryDisk>), OpenError> {
    match place {
        #[cfg(feature = "rocksdb")]
        Place::Directory(directory) => {
            let (config, counters) = (config.clone(), Arc::clone(counters));
            let opening = tokio::task::spawn_blocking(move || {
                // The store's lock first: it is what makes this process the directory's only one.
                let store = Store::open(&directory, &config, counters)?;
                let secret = NodeSecret::load_or_create(&directory)?;
                Ok::<_, OpenError>((store, Arc::new(secret), None))
            });
            opening.await.map_err(io::Error::other)?
        }
        Place::Memory(disk) => {
            let _ = config;
            let (store, secret) = match disk {
                Some(disk) => match disk.store.reopened(Arc::clone(counters)) {
                    Some(store) => (store, disk.secret),
                    None => (disk.store, disk.secret),
                },
                None => (
                    Store::in_memory(Arc::clone(counters)),
                    Arc::new(NodeSecret::generate()),
                ),
            };
            let disk = MemoryDisk {
                store: store.clone(),
                secret: Arc::clone(&secret),
            };
            Ok((store, secret, Some(disk)))
        }
    }
}

/// Binds where asked; else on the port of the last time, so that addresses which others remember
/// stay true; else on a free one.
async fn bind(
    store: &Store,
    secret: &NodeSecret,
    asked: Vec<SocketAddr>,
    relay: RelayChoice,
) -> Result<Quic, OpenError> {
    let options = |bind: Vec<SocketAddr>| QuicOptions {
        secret: *secret.bytes(),
        bind,
        relay: relay.clone(),
    };
    let error = |error: crate::net::WireError| OpenError::Bind(error.to_string());
    if asked.iter().any(|it| it.port() != 0) {
        return Quic::bind(options(asked)).await.map_err(error);
    }
    let wanted = if asked.is_empty() {
        vec![(Ipv4Addr::UNSPECIFIED, 0).into()]
    } else {
        asked
    };
    let remembered = store
        .node_record()?
        .and_then(|it| <[u8; 2]>::try_from(it.as_ref()).ok());
    if let Some(port) = remembered.map(u16::from_be_bytes) {
        let at = |addr: &SocketAddr| SocketAddr::new(addr.ip(), port);
        let former = || Quic::bind(options(wanted.iter().map(at).collect()));
        if let Ok(quic) = at_former_port(FORMER_PORT_WAIT, former).await {
            return Ok(quic);
        }
        tracing::info!(
            port,
            "the port of the last time is taken; another one is used"
        );
    }
    let quic = Quic::bind(options(wanted)).await.map_err(error)?;
    if let Some(bound) = quic.bound().first() {
        let port = bound.port().to_be_bytes();
        let store = store.clone();
        let keeping = tokio::task::spawn_blocking(move || store.put_node_record(&port));
        keeping.await.map_err(io::Error::other)??;
    }
    Ok(quic)
}

/// A node could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another node of this one, has the directory open.
    #[error("{0}")]
    Locked(String),
    /// The directory was written by a newer version of this crate.
    #[error("{0}")]
    Newer(String),
    /// What is in the directory is damaged; nothing was changed.
    #[error("{0}")]
    Damaged(String),
    /// No socket could be had at the address wanted.
    #[error("no endpoint at the address wanted: {0}")]
    Bind(String),
    /// Two settings contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system refused.
    #[error("the node's directory: {0}")]
    Io(#[from] io::Error),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Locked { .. } => Self::Locked(text),
            StoreError::Newer { .. } => Self::Newer(text),
            StoreError::Corrupt(_) => Self::Damaged(text),
            StoreError::Io(error) => Self::Io(error),
        }
    }
}
