//! The client's protocol over QUIC.
//!
//! The name of the protocol is BLAKE3("quorate/logs/1" ‖ network id), raw. One connection carries
//! one stream, which the client opens.

use std::{
    fmt,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayConfig, RelayMap, RelayMode, RelayUrl, SecretKey,
    TransportAddr,
    endpoint::{
        ConnectOptions, Incoming, NetReportConfig, PortmapperConfig, QuicTransportConfig,
        RecvStream, VarInt, presets,
    },
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::OnceCell,
};

use super::{
    super::member_addr::MemberAddr,
    dial::{Dial, DialError, DialFuture, Dialled},
    server::ON_ITS_WAY,
    settings::Settings,
    transport::{
        AcceptFuture, Caller, Identity, ListenError, ListenFuture, Listener, Place, Secret,
        Transport,
    },
};
use crate::{
    identity::{PeerAddr, PeerId},
    net::at_former_port,
};

const PROTOCOL: &str = "quorate/logs/1";
/// Silence after which a connection is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// What a client may have on its way to here without our reading it: one stream and one connection.
const WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes on their way to the other end without its acknowledgement.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;

const _: () = assert!(
    SEND_WINDOW as usize <= ON_ITS_WAY,
    "what is on its way has the time that it needs"
);

/// How long a port that was kept may still be taken.
pub(crate) const FORMER_PORT_WAIT: Duration = Duration::from_secs(1);
/// Any free port of every IPv4 interface.
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The name of the protocol in a network.
pub(crate) fn alpn(network: &[u8; 32]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(PROTOCOL.as_bytes()).update(network);
    hasher.finalize().as_bytes().to_vec()
}

/// The transport over QUIC, the default one: proven by the keys of both ends, encrypted, and with a
/// socket of its own.
///
/// A member's door ([`Node::serve_sync`](crate::Node::serve_sync)) always speaks it, on the door's
/// own socket.
#[derive(Clone, Debug, Default)]
pub struct Quic {
    bind: Option<SocketAddr>,
}

impl Quic {
    /// From a free port of every IPv4 interface. A listener keeps its port over restarts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From this address; port 0 is any free one.
    #[must_use]
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = Some(addr);
        self
    }
}

impl Transport for Quic {
    fn dialler(&self, identity: Identity) -> Arc<dyn Dial> {
        let bind = self.bind.unwrap_or(ANYWHERE);
        Arc::new(QuicDial::as_client(identity, bind))
    }

    fn listen(&self, place: Place) -> ListenFuture<'_> {
        Box::pin(async move {
            let listener = QuicListener::open(self.bind, &place).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }
}

/// Dials members over QUIC, under a key of its own that is new each time unless one is given. Binds
/// its socket when it is first used, and again after it could not be bound.
pub struct QuicDial {
    identity: Identity,
    bind: SocketAddr,
    socket: OnceCell<Arc<Socket>>,
}

impl QuicDial {
    /// For the members of the network with this id, from a free port of any interface, under a key
    /// of its own that is new each time.
    #[must_use]
    pub fn new(network: [u8; 32]) -> Self {
        Self::bound_to(network, ANYWHERE)
    }

    /// As [`QuicDial::new`], from this address.
    #[must_use]
    pub fn bound_to(network: [u8; 32], bind: SocketAddr) -> Self {
        let secret = Secret::generate();
        Self::as_client(Identity { network, secret }, bind)
    }

    fn as_client(identity: Identity, bind: SocketAddr) -> Self {
        Self {
            identity,
            bind,
            socket: OnceCell::new(),
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
    pub fn with_key(mut self, secret: impl Into<Secret>) -> Self {
        self.identity.secret = secret.into();
        self
    }

    /// The name under which members see it.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.identity.secret.peer()
    }

    async fn connect(&self, member: &PeerAddr) -> Result<Dialled, DialError> {
        let secret = SecretKey::from_bytes(self.identity.secret.bytes());
        let socket = self.socket.get_or_try_init(|| async {
            let relays = RelayMap::empty();
            let mode = RelayMode::Custom(relays.clone());
            let endpoint = bind(secret, self.bind, Vec::new(), mode).await?;
            Ok::<_, DialError>(Arc::new(Socket(endpoint, relays)))
        });
        let socket = Arc::clone(socket.await?);
        if let Some(relay) = &member.relay {
            socket.uses(relay.parse().map_err(DialError::new)?).await;
        }
        let options = ConnectOptions::new().with_transport_config(transport_config(0));
        let to = endpoint_addr(member)?;
        let alpn = alpn(&self.identity.network);
        let connecting = socket.0.connect_with_opts(to, &alpn, options);
        let connection = connecting.await.map_err(DialError::new)?;
        let connection = connection.await.map_err(DialError::new)?;
        let (write, read) = connection.open_bi().await.map_err(DialError::new)?;
        Ok(Dialled {
            read: Box::new(Read {
                read,
                _socket: socket,
            }),
            write: Box::new(write),
        })
    }
}

/// A client's socket, for as long as somebody dials or reads with it. Then it is closed, so that
/// members hear of the end at once.
struct Socket(Endpoint, RelayMap);

impl Socket {
    /// Goes through this relay, too. Each member has its own; without any, no server is asked.
    async fn uses(&self, relay: RelayUrl) {
        if !self.1.contains(&relay) {
            let config = Arc::new(RelayConfig::from(relay.clone()));
            self.0.insert_relay(relay, config).await;
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let endpoint = self.0.clone();
        // Without a runtime there is nothing left that could carry it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { endpoint.close().await });
        }
    }
}

/// What a member sends, and the socket on which it comes.
struct Read {
    read: RecvStream,
    _socket: Arc<Socket>,
}

impl AsyncRead for Read {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.read), cx, to)
    }
}

impl Dial for QuicDial {
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a> {
        Box::pin(self.connect(member.quic()))
    }
}

impl fmt::Debug for QuicDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicDial").finish_non_exhaustive()
    }
}

struct QuicListener {
    endpoint: Endpoint,
}

impl QuicListener {
    async fn open(wanted: Option<SocketAddr>, place: &Place) -> Result<Self, ListenError> {
        let kept = Settings::read(place.kept.as_deref(), |_| true);
        let mut failed = None;
        for addr in kept.places(wanted, ANYWHERE) {
            let there = || {
                let alpns = vec![alpn(&place.network)];
                let secret = SecretKey::from_bytes(place.secret.bytes());
                bind(secret, addr, alpns, RelayMode::Disabled)
            };
            let bound = match kept.bind.contains(&addr) {
                true => at_former_port(FORMER_PORT_WAIT, there).await,
                false => there().await,
            };
            match bound {
                Ok(endpoint) => return Ok(Self { endpoint }),
                Err(why) => {
                    tracing::warn!(%addr, %why, "cannot listen there");
                    failed = Some(ListenError::new(format_args!("{addr}: {why}")));
                }
            }
        }
        Err(failed.unwrap_or_else(|| ListenError::new("nowhere to listen")))
    }
}

impl Listener for QuicListener {
    fn accept(&self) -> AcceptFuture<'_> {
        Box::pin(async {
            loop {
                let incoming = self.endpoint.accept().await?;
                if incoming.remote_addr_validated() {
                    return Some(Box::pin(knock(incoming)) as _);
                }
                // An address that nobody has takes no place among those that shake hands: whoever
                // is there asks again, one round trip later. An error says that it has not to.
                let _ = incoming.retry();
            }
        })
    }

    fn addrs(&self) -> Vec<String> {
        let addr = self.endpoint.addr();
        let mut addrs: Vec<SocketAddr> = addr.ip_addrs().copied().collect();
        if addrs.is_empty() {
            // No interface is up: clients on this machine still reach us.
            let port = |it: SocketAddr| SocketAddr::from((Ipv4Addr::LOCALHOST, it.port()));
            addrs = self
                .endpoint
                .bound_sockets()
                .into_iter()
                .map(port)
                .collect();
        }
        addrs.iter().map(ToString::to_string).collect()
    }

    fn settings(&self) -> String {
        let settings = Settings {
            bind: self.endpoint.bound_sockets(),
            urls: Vec::new(),
        };
        settings.text()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.endpoint.close())
    }
}

impl fmt::Debug for QuicListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicListener").finish_non_exhaustive()
    }
}

async fn knock(incoming: Incoming) -> Result<Caller, DialError> {
    let accepting = incoming.accept().map_err(DialError::new)?;
    let connection = accepting.await.map_err(DialError::new)?;
    let (write, read) = connection.accept_bi().await.map_err(DialError::new)?;
    Ok(Caller {
        peer: PeerId::from_bytes(*connection.remote_id().as_bytes()),
        read: Box::new(read),
        write: Box::new(write),
        gone: Box::pin(async move {
            let _ = connection.closed().await;
        }),
    })
}

/// The name that a secret key proves.
pub(super) fn peer_of(secret: &[u8; 32]) -> PeerId {
    PeerId::from_bytes(*SecretKey::from_bytes(secret).public().as_bytes())
}

async fn bind(
    secret: SecretKey,
    to: SocketAddr,
    alpns: Vec<Vec<u8>>,
    relay: RelayMode,
) -> Result<Endpoint, DialError> {
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

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    #[tokio::test]
    async fn each_member_is_reached_through_its_own_relay() {
        let dial = QuicDial::bound_to([4; 32], ([127, 0, 0, 1], 0).into());
        let member = |relay: Option<String>| {
            let mut addr = PeerAddr::new(Secret::generate().peer(), []);
            addr.relay = relay;
            addr
        };
        // The first one has none, and nobody is there.
        let first = timeout(Duration::from_millis(50), dial.connect(&member(None))).await;
        assert!(!matches!(first, Ok(Ok(_))));
        for _ in 0..2 {
            let relay = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let url = format!("http://{}", relay.local_addr().expect("it is bound"));
            let there = member(Some(url));
            let asked = async {
                tokio::select! {
                    asked = relay.accept() => asked.map(drop),
                    _ = dial.connect(&there) => std::future::pending().await,
                }
            };
            let asked = timeout(Duration::from_secs(30), asked).await;
            assert!(asked.is_ok(), "the relay of a later member is not asked");
        }
    }
}
