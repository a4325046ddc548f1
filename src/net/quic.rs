//! The wire over iroh: QUIC with the peers' keys as their names. Nothing else names iroh here.
//!
//! Nothing is contacted but the peers that are dialled: no relay, no discovery and no port mapping
//! unless asked for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr, Watcher,
    endpoint::{
        ConnectOptions, NetReportConfig, PortmapperConfig, QuicTransportConfig, ServerConfig,
        VarInt, presets,
    },
};

use super::{
    BondStream, Connection, Incoming, Link, RawRecv, RawSend, RecvStream, STRANGER_STREAMS,
    SendStream, Transport, WireError,
};
use crate::identity::{PeerAddr, PeerId};

/// What the protocol calls itself in the QUIC handshake.
pub(crate) const ALPN: &[u8] = b"quorate/bond/1";

/// A link that is silent for this long is given up. Bonds have their own, shorter patience; this is
/// for links that died with nobody on them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);

/// Well below the idle timeout, for links whose bonds are all gone.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// What a stranger's streams may buffer here, together. A handshake frame has at most 1 KiB.
const STRANGER_WINDOW: u32 = 16 * 1024;

/// What one stream of a bonded peer may buffer here before its reader takes it.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// What all streams of a bonded peer together may buffer here.
const TRUSTED_WINDOW: u32 = 128 * 1024 * 1024;

/// Bytes that may be on their way to one peer without its acknowledgement.
const SEND_WINDOW: u64 = 32 * 1024 * 1024;

/// Before the first measurement. A LAN answers sooner; QUIC corrects it with the first packet.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Knocks that wait to be looked at; more are refused by the endpoint itself.
const INCOMING_MAX: usize = 256;

/// What a knock may send before it is looked at.
const INCOMING_BUFFER: u64 = 16 * 1024;

/// Whether peers may be reached through a relay server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum RelayChoice {
    /// Direct addresses only; no server is contacted.
    #[default]
    Off,
    /// The public relays that iroh's makers run.
    Public,
    /// One's own relay server, by its URL.
    Url(String),
}

/// How to open a [`Quic`] transport.
pub(crate) struct QuicOptions {
    /// The node's secret key.
    pub(crate) secret: [u8; 32],
    /// Where to listen: at most one IPv4 and one IPv6 address; port 0 takes a free one. Empty means
    /// every IPv4 and IPv6 interface and a free port.
    pub(crate) bind: Vec<SocketAddr>,
    /// Whether peers may be reached through a relay server.
    pub(crate) relay: RelayChoice,
}

/// The transport over an iroh endpoint.
pub(crate) struct Quic {
    endpoint: Endpoint,
    peer: PeerId,
    transport: QuicTransportConfig,
    server: Arc<ServerConfig>,
}

impl Quic {
    /// Binds an endpoint. Works without any network beyond the addresses it binds.
    ///
    /// # Errors
    /// An address cannot be bound, or the relay's URL is none.
    pub(crate) async fn bind(options: QuicOptions) -> Result<Self, WireError> {
        let relay = match options.relay {
            RelayChoice::Off => RelayMode::Disabled,
            RelayChoice::Public => RelayMode::Default,
            RelayChoice::Url(url) => RelayMode::custom([url.parse().map_err(WireError::new)?]),
        };
        let off = relay == RelayMode::Disabled;
        let mut builder = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(&options.secret))
            .alpns(vec![ALPN.to_vec()])
            .relay_mode(relay)
            .transport_config(transport_config())
            .portmapper_config(PortmapperConfig::Disabled);
        if off {
            builder = builder.net_report_config(NetReportConfig::minimal());
        }
        if !options.bind.is_empty() {
            builder = builder.clear_ip_transports();
            for addr in options.bind {
                builder = builder.bind_addr(addr).map_err(WireError::new)?;
            }
        }
        Ok(Self::over(builder.bind().await.map_err(WireError::new)?))
    }

    /// Takes over an endpoint that the program made itself: everything it accepts from now on is
    /// ours.
    pub(crate) fn from_endpoint(endpoint: Endpoint) -> Self {
        endpoint.set_alpns(vec![ALPN.to_vec()]);
        Self::over(endpoint)
    }

    fn over(endpoint: Endpoint) -> Self {
        let transport = transport_config();
        let server = endpoint
            .create_server_config_builder(vec![ALPN.to_vec()])
            .set_transport_config(transport.clone())
            .set_max_incoming(INCOMING_MAX)
            .set_incoming_buffer_size(INCOMING_BUFFER)
            .set_incoming_buffer_size_total(INCOMING_BUFFER * INCOMING_MAX as u64)
            .build();
        let peer = PeerId::from_bytes(*endpoint.id().as_bytes());
        Self {
            endpoint,
            peer,
            transport,
            server: Arc::new(server),
        }
    }

    /// The addresses that are bound, with their real ports.
    pub(crate) fn bound(&self) -> Vec<SocketAddr> {
        self.endpoint.bound_sockets()
    }
}

fn transport_config() -> QuicTransportConfig {
    let idle = VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32);
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle.into()))
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_max_idle_timeout(IDLE_TIMEOUT)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .receive_window(VarInt::from_u32(STRANGER_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .build()
}

impl Transport for Quic {
    fn peer_id(&self) -> PeerId {
        self.peer
    }

    fn local_addr(&self) -> PeerAddr {
        let addr = self.endpoint.addr();
        let mut local = PeerAddr::new(self.peer, addr.ip_addrs().copied());
        if local.addrs.is_empty() {
            // No interface is up: peers on this machine still reach us. Otherwise loopback stays
            // out, since on another machine it names another node.
            local.addrs = self.bound().into_iter().filter_map(loopback).collect();
        }
        local.relay = addr.relay_urls().next().map(ToString::to_string);
        local
    }

    fn addr_changed(&self) -> BoxFuture<'_, ()> {
        let mut watcher = self.endpoint.watch_addr();
        async move {
            if watcher.updated().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }

    fn dial<'a>(&'a self, addr: &'a PeerAddr) -> BoxFuture<'a, Result<Link, WireError>> {
        async move {
            let id = EndpointId::from_bytes(addr.peer.as_bytes()).map_err(WireError::new)?;
            let mut to =
                EndpointAddr::from_parts(id, addr.addrs.iter().copied().map(TransportAddr::Ip));
            if let Some(relay) = &addr.relay {
                to = to.with_relay_url(relay.parse().map_err(WireError::new)?);
            }
            let options = ConnectOptions::new().with_transport_config(self.transport.clone());
            let connecting = self.endpoint.connect_with_opts(to, ALPN, options).await;
            let connection = connecting
                .map_err(WireError::new)?
                .await
                .map_err(WireError::new)?;
            Ok(Arc::new(QuicConnection(connection)) as Link)
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Box<dyn Incoming>>> {
        async move {
            let incoming = self.endpoint.accept().await?;
            let server = Arc::clone(&self.server);
            Some(Box::new(QuicIncoming { incoming, server }) as Box<dyn Incoming>)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.endpoint.close().boxed()
    }
}

fn loopback(bound: SocketAddr) -> Option<SocketAddr> {
    match bound {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            Some((Ipv4Addr::LOCALHOST, v4.port()).into())
        }
        SocketAddr::V4(_) => Some(bound),
        SocketAddr::V6(_) => None,
    }
}

struct QuicIncoming {
    incoming: iroh::endpoint::Incoming,
    server: Arc<ServerConfig>,
}

impl Incoming for QuicIncoming {
    fn accept(self: Box<Self>) -> BoxFuture<'static, Result<Link, WireError>> {
        async move {
            let accepting = self
                .incoming
                .accept_with(self.server)
                .map_err(WireError::new)?;
            let connection = accepting.await.map_err(WireError::new)?;
            Ok(Arc::new(QuicConnection(connection)) as Link)
        }
        .boxed()
    }

    fn refuse(self: Box<Self>) {
        self.incoming.refuse();
    }
}

/// The type says that the handshake is complete: iroh names the other states differently.
struct QuicConnection(iroh::endpoint::Connection<iroh::endpoint::HandshakeCompleted>);

impl Connection for QuicConnection {
    fn remote(&self) -> PeerId {
        PeerId::from_bytes(*self.0.remote_id().as_bytes())
    }

    fn describe(&self) -> String {
        let paths = self.0.paths();
        let selected = paths.iter().find(|path| path.is_selected());
        selected.map_or_else(String::new, |path| format!("{:?}", path.remote_addr()))
    }

    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], WireError> {
        let mut output = [0; 32];
        self.0
            .export_keying_material(&mut output, label, context)
            .map_err(|_| WireError::new("this connection exports no keying material"))?;
        Ok(output)
    }

    fn open(&self) -> BoxFuture<'_, Result<BondStream, WireError>> {
        async { self.0.open_bi().await.map(stream).map_err(WireError::new) }.boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Result<BondStream, WireError>> {
        async { self.0.accept_bi().await.map(stream).map_err(WireError::new) }.boxed()
    }

    fn trust(&self, streams: u32) {
        self.0.set_receive_window(VarInt::from_u32(TRUSTED_WINDOW));
        self.0
            .set_max_concurrent_bi_streams(VarInt::from_u32(streams));
    }

    fn close(&self, code: u32, reason: &str) {
        self.0.close(VarInt::from_u32(code), reason.as_bytes());
    }

    fn closed(&self) -> BoxFuture<'_, WireError> {
        async { WireError::new(self.0.closed().await) }.boxed()
    }

    fn is_closed(&self) -> bool {
        self.0.close_reason().is_some()
    }
}

fn stream((send, recv): (iroh::endpoint::SendStream, iroh::endpoint::RecvStream)) -> BondStream {
    BondStream {
        send: SendStream::new(Box::new(QuicSend(send))),
        recv: RecvStream::new(Box::new(QuicRecv(recv))),
    }
}

struct QuicSend(iroh::endpoint::SendStream);

impl RawSend for QuicSend {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut &mut [Bytes],
    ) -> Poll<Result<(), WireError>> {
        // The future holds no state between polls, so a fresh one each time goes on where the last
        // one was.
        pin!(self.0.write_many_chunks(chunks))
            .poll(cx)
            .map_ok(|_| ())
            .map_err(WireError::of)
    }

    fn finish(&mut self) {
        // Fails only where it was finished or reset before.
        let _ = self.0.finish();
    }

    fn reset(&mut self) {
        let _ = self.0.reset(VarInt::from_u32(0));
    }

    fn set_priority(&self, priority: i32) {
        let _ = self.0.set_priority(priority);
    }
}

struct QuicRecv(iroh::endpoint::RecvStream);

impl RawRecv for QuicRecv {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, WireError>> {
        pin!(self.0.read_many_chunks(chunks))
            .poll(cx)
            .map_err(WireError::of)
    }
}
