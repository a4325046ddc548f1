//! The client's protocol over QUIC: dialling members, and a server of this protocol alone.
//!
//! The name of the protocol is BLAKE3("quorate/logs/1" ‖ network id), raw. One connection carries
//! one stream, which the client opens.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr,
    endpoint::{
        ConnectOptions, Incoming, NetReportConfig, PortmapperConfig, QuicTransportConfig, VarInt,
        presets,
    },
};
use tokio::{
    sync::{OnceCell, Semaphore},
    task::JoinHandle,
    time::timeout,
};

use super::{
    dial::{Dial, DialError, DialFuture, Dialled},
    server::{Admit, ServeLimits, serve_logs},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Topic},
    sync::LogTicket,
};

const PROTOCOL: &str = "quorate/logs/1";
/// Silence after which a connection is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// What a client may have on its way to here without our reading it: one stream and one connection.
const WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes on their way to the other end without its acknowledgement.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;
/// How long a stranger's handshake may take, and a client's goodbye.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// The name of the protocol in a network.
pub(crate) fn alpn(network: &[u8; 32]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(PROTOCOL.as_bytes()).update(network);
    hasher.finalize().as_bytes().to_vec()
}

/// Dials members over QUIC, under a key of its own that is new each time unless one is given. Binds
/// its socket when it is first used, and again after it could not be bound.
pub struct QuicDial {
    network: [u8; 32],
    bind: SocketAddr,
    secret: SecretKey,
    endpoint: OnceCell<Endpoint>,
}

impl QuicDial {
    /// For the members of the network with this id, from a free port of any interface.
    #[must_use]
    pub fn new(network: [u8; 32]) -> Self {
        Self::bound_to(network, (Ipv4Addr::UNSPECIFIED, 0).into())
    }

    /// As [`QuicDial::new`], from this address.
    #[must_use]
    pub fn bound_to(network: [u8; 32], bind: SocketAddr) -> Self {
        Self {
            network,
            bind,
            secret: SecretKey::generate(),
            endpoint: OnceCell::new(),
        }
    }

    /// Under this secret key: for topics that admit peers by their name, which is its public half.
    ///
    /// ```
    /// use quorate::sync::QuicDial;
    ///
    /// let dial = QuicDial::new([0; 32]).with_key([7; 32]);
    /// assert_eq!(dial.id(), QuicDial::new([1; 32]).with_key([7; 32]).id());
    /// ```
    #[must_use]
    pub fn with_key(mut self, secret: [u8; 32]) -> Self {
        self.secret = SecretKey::from_bytes(&secret);
        self
    }

    /// The name under which members see it.
    #[must_use]
    pub fn id(&self) -> PeerId {
        PeerId::from_bytes(*self.secret.public().as_bytes())
    }

    async fn connect(&self, member: &PeerAddr) -> Result<Dialled, DialError> {
        let relay = member.relay.as_deref();
        let endpoint = self
            .endpoint
            .get_or_try_init(|| bind(self.secret.clone(), self.bind, Vec::new(), relay))
            .await?;
        let options = ConnectOptions::new().with_transport_config(transport_config(0));
        let to = endpoint_addr(member)?;
        let alpn = alpn(&self.network);
        let connecting = endpoint.connect_with_opts(to, &alpn, options);
        let connection = connecting.await.map_err(DialError::new)?;
        let connection = connection.await.map_err(DialError::new)?;
        let (write, read) = connection.open_bi().await.map_err(DialError::new)?;
        Ok(Dialled {
            read: Box::new(read),
            write: Box::new(write),
        })
    }
}

impl Dial for QuicDial {
    fn dial<'a>(&'a self, member: &'a PeerAddr) -> DialFuture<'a> {
        Box::pin(self.connect(member))
    }
}

impl fmt::Debug for QuicDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicDial").finish_non_exhaustive()
    }
}

/// How to open a [`LogServer`].
#[derive(Clone, Debug)]
pub struct LogServerOptions {
    /// The key of its endpoint, by which tickets name it. Default: a new one.
    pub secret: [u8; 32],
    /// Where to listen. Default: a free port of every IPv4 interface.
    pub bind: SocketAddr,
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
            secret: SecretKey::generate().to_bytes(),
            bind: (Ipv4Addr::UNSPECIFIED, 0).into(),
            network: *blake3::hash(b"p2panda").as_bytes(),
            sessions_max: 256,
            limits: ServeLimits::default(),
        }
    }
}

/// Serves [`pull()`](super::pull()) and [`push()`](super::push()) over QUIC, and nothing else, on a
/// socket of its own. Which topics to whom is the caller's [`Admit`] to say.
pub struct LogServer {
    endpoint: Endpoint,
    network: [u8; 32],
    accepting: JoinHandle<()>,
}

impl LogServer {
    /// Binds the socket and serves.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn open(options: LogServerOptions, logs: Admit) -> Result<Self, ServerError> {
        let alpns = vec![alpn(&options.network)];
        let secret = SecretKey::from_bytes(&options.secret);
        let endpoint = bind(secret, options.bind, alpns, None).await;
        let endpoint = endpoint.map_err(|it| ServerError::Bind(it.to_string()))?;
        let accepting = accept(
            endpoint.clone(),
            logs,
            Arc::new(options.limits),
            Arc::new(Semaphore::new(options.sessions_max)),
        );
        Ok(Self {
            endpoint,
            network: options.network,
            accepting: tokio::spawn(accepting),
        })
    }

    /// Where it can be dialled at the moment.
    #[must_use]
    pub fn addr(&self) -> PeerAddr {
        let peer = PeerId::from_bytes(*self.endpoint.id().as_bytes());
        let addr = self.endpoint.addr();
        let mut local = PeerAddr::new(peer, addr.ip_addrs().copied());
        if local.addrs.is_empty() {
            // No interface is up: clients on this machine still reach us.
            let port = |it: SocketAddr| SocketAddr::from((Ipv4Addr::LOCALHOST, it.port()));
            local.addrs = self
                .endpoint
                .bound_sockets()
                .into_iter()
                .map(port)
                .collect();
        }
        local.capped()
    }

    /// A ticket to topics through this server and others.
    #[must_use]
    pub fn ticket(
        &self,
        topics: impl IntoIterator<Item = (Topic, Line)>,
        others: impl IntoIterator<Item = PeerAddr>,
    ) -> LogTicket {
        let members = std::iter::once(self.addr()).chain(others);
        LogTicket::new(self.network, topics, members)
    }

    /// Ends every session and gives the socket back.
    pub async fn close(self) {
        self.accepting.abort();
        self.endpoint.close().await;
    }
}

impl fmt::Debug for LogServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogServer").finish_non_exhaustive()
    }
}

/// A [`LogServer`] could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be bound.
    #[error("the address cannot be bound: {0}")]
    Bind(String),
}

/// Accepts until the endpoint is closed; its sessions end with it.
async fn accept(
    endpoint: Endpoint,
    logs: Admit,
    limits: Arc<ServeLimits>,
    sessions: Arc<Semaphore>,
) {
    let mut serving = tokio::task::JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while serving.try_join_next().is_some() {}
        let Ok(session) = Arc::clone(&sessions).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (logs, limits) = (Arc::clone(&logs), Arc::clone(&limits));
        serving.spawn(async move {
            if let Err(error) = client(incoming, &logs, &limits).await {
                tracing::debug!(%error, "a client's session ended early");
            }
            drop(session);
        });
    }
}

async fn client(incoming: Incoming, logs: &Admit, limits: &ServeLimits) -> Result<(), DialError> {
    let connection = timeout(HANDSHAKE_WITHIN, async {
        let accepting = incoming.accept().map_err(DialError::new)?;
        accepting.await.map_err(DialError::new)
    });
    let connection = connection.await.map_err(DialError::new)??;
    let stream = timeout(limits.request_within, connection.accept_bi()).await;
    let (write, read) = stream.map_err(DialError::new)?.map_err(DialError::new)?;
    let served = serve_logs((read, write), logs, limits).await;
    // The last words are on their way: the client closes when it has them.
    let _ = timeout(HANDSHAKE_WITHIN, connection.closed()).await;
    served.map_err(DialError::new)
}

async fn bind(
    secret: SecretKey,
    to: SocketAddr,
    alpns: Vec<Vec<u8>>,
    relay: Option<&str>,
) -> Result<Endpoint, DialError> {
    let relay = match relay {
        None => RelayMode::Disabled,
        Some(url) => RelayMode::custom([url.parse().map_err(DialError::new)?]),
    };
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(secret)
        .alpns(alpns)
        .transport_config(transport_config(1))
        .portmapper_config(PortmapperConfig::Disabled);
    if relay == RelayMode::Disabled {
        builder = builder.net_report_config(NetReportConfig::minimal());
    }
    let builder = builder.relay_mode(relay).clear_ip_transports();
    let builder = builder.bind_addr(to).map_err(DialError::new)?;
    builder.bind().await.map_err(DialError::new)
}

/// The other end may open so many streams.
fn transport_config(streams: u32) -> QuicTransportConfig {
    let idle = VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32);
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle.into()))
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_max_idle_timeout(IDLE_TIMEOUT)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .receive_window(VarInt::from_u32(WINDOW))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .send_window(SEND_WINDOW)
        .build()
}

fn endpoint_addr(addr: &PeerAddr) -> Result<EndpointAddr, DialError> {
    let id = EndpointId::from_bytes(addr.peer.as_bytes()).map_err(DialError::new)?;
    let addrs = addr.addrs.iter().copied().map(TransportAddr::Ip);
    let to = EndpointAddr::from_parts(id, addrs);
    Ok(match &addr.relay {
        Some(relay) => to.with_relay_url(relay.parse().map_err(DialError::new)?),
        None => to,
    })
}
