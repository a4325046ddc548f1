//! The outsiders' endpoint: QUIC with its own key and its own port, nothing shared with the bonds.
//! Nothing else in `sync` names iroh or iroh-gossip.
//!
//! Four protocols knock here, each by an ALPN of its own: log sync, discovery and gossip, as stock
//! nodes speak them, and our own client's. An ALPN is BLAKE3(protocol id ‖ network id), raw.

mod connection;
mod gossip;
#[cfg(feature = "mdns")]
mod lan;
mod outbound;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr,
    address_lookup::memory::MemoryLookup,
    endpoint::{
        ConnectOptions, NetReportConfig, PortmapperConfig, QuicTransportConfig, ServerConfig,
        VarInt, WeakConnectionHandle, presets,
    },
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

#[cfg(feature = "mdns")]
pub(crate) use self::lan::{Advert, Lan};
pub(crate) use self::{
    connection::{Connection, Recv, Send},
    gossip::{Membership, Neighbour},
    outbound::Outbound,
};
use crate::{
    identity::{PeerAddr, PeerId},
    net::{RelayChoice, WireError, at_former_port},
    sync::client::{self, FORMER_PORT_WAIT, Settings},
};

/// Protocol ids of stock nodes, before the network id is hashed in.
const SYNC: &str = "p2panda/log_sync/v1";
const DISCOVERY: &str = "p2panda/confidential_discovery/v1";
const GOSSIP: &str = "/iroh-gossip/1";
/// Before the name of a program's own protocol.
const OWN: &str = "quorate/own/1/";

/// As stock nodes have it. A peer that is silent for this long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// As stock nodes have it.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Streams that a peer may open on a connection of log sync: the topic handshake and the session.
const SESSION_STREAMS: u32 = 2;
/// Streams that a gossiping peer may open: one a topic, so a peer shares at most this many of ours
/// with us by gossip. Beyond it the overlay of a topic lacks this edge, sessions do not.
const GOSSIP_STREAMS: u32 = 256;

/// What a stranger's streams may buffer here, together.
const STRANGER_WINDOW: u32 = 64 * 1024;
/// What one admitted session may buffer here, in both windows.
const SESSION_WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes that may be on their way to one peer without its acknowledgement.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;

/// For the sockets of a closed endpoint to be free.
const RELEASE_MAX: Duration = Duration::from_secs(1);
/// Knocks that wait to be looked at; more are refused by the endpoint itself.
const INCOMING_MAX: usize = 128;
/// What a knock may send before it is looked at.
const INCOMING_BUFFER: u64 = 16 * 1024;

/// Neighbours by gossip a topic; stock has 5, and would not be heard by us if we had as few.
const ACTIVE_VIEW: usize = 64;
/// Stock refuses longer messages.
const GOSSIP_MESSAGE_MAX: usize = 4_096;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    /// A topic handshake, then a session of log sync.
    Sync,
    /// Which topics we have in common, and who else is there.
    Discovery,
    /// The overlay of a topic; handled by iroh-gossip.
    Gossip,
    /// Our own client, which pulls or pushes.
    Client,
    /// A program's own protocol: the one with this number in [`WireOptions::own`].
    Own(usize),
}

/// How to open a [`Wire`].
pub(crate) struct WireOptions {
    /// The endpoint's own secret key.
    pub(crate) secret: Zeroizing<[u8; 32]>,
    /// Where to listen; empty means every IPv4 interface and a free port.
    pub(crate) bind: Vec<SocketAddr>,
    /// Where it listened the last time: ports that are left open are the same.
    pub(crate) former: Settings,
    /// Whether peers may be reached through a relay server.
    pub(crate) relay: RelayChoice,
    /// Peers of another network do not find us.
    pub(crate) network: [u8; 32],
    /// The names of a program's own protocols.
    pub(crate) own: Vec<&'static str>,
}

/// The endpoint. A handle that is cheap to clone; lives until [`Wire::close`].
#[derive(Clone)]
pub(crate) struct Wire(Arc<Inner>);

struct Inner {
    id: PeerId,
    alpns: Vec<(Service, Vec<u8>)>,
    /// Connections that gossip has dialled.
    outbound: tokio::sync::Mutex<mpsc::Receiver<WeakConnectionHandle>>,
    /// None once it is closed: whoever still has a handle does not keep the sockets.
    live: Mutex<Option<Live>>,
}

#[derive(Clone)]
struct Live {
    endpoint: Endpoint,
    gossip: iroh_gossip::net::Gossip,
    /// What gossip, which dials by bare ids, finds addresses in.
    known: MemoryLookup,
    server: Arc<ServerConfig>,
}

impl Wire {
    /// Binds the endpoint. Works without any network beyond the addresses it binds.
    ///
    /// # Errors
    /// An address cannot be bound, or the relay's URL is none.
    pub(crate) async fn bind(options: WireOptions) -> Result<Self, WireError> {
        if let Some(former) = options.former.at_former_ports(&options.bind) {
            let there = || Self::bind_to(&options, former.clone());
            if let Ok(wire) = at_former_port(FORMER_PORT_WAIT, there).await {
                return Ok(wire);
            }
            tracing::warn!(
                ?former,
                "the port of the last time is taken; another one is used"
            );
        }
        Self::bind_to(&options, options.bind.clone()).await
    }

    async fn bind_to(options: &WireOptions, bind: Vec<SocketAddr>) -> Result<Self, WireError> {
        let relay = match &options.relay {
            RelayChoice::Off => RelayMode::Disabled,
            RelayChoice::Public => RelayMode::Default,
            RelayChoice::Url(url) => RelayMode::custom([url.parse().map_err(WireError::new)?]),
        };
        let off = relay == RelayMode::Disabled;
        let alpns = alpns(&options.network, &options.own);
        let names: Vec<Vec<u8>> = alpns.iter().map(|(_, alpn)| alpn.clone()).collect();
        let known = MemoryLookup::new();
        // The default of connections, so also of those that iroh-gossip dials.
        let transport = transport_config(SESSION_STREAMS, GOSSIP_STREAMS, STRANGER_WINDOW);
        let (to, outbound) = mpsc::channel(outbound::WAITING_MAX);
        let noting = outbound::Noting {
            alpn: alpn(GOSSIP, &options.network),
            to,
        };
        let mut builder = Endpoint::builder(presets::Minimal)
            .hooks(noting)
            .secret_key(SecretKey::from_bytes(&options.secret))
            .alpns(names.clone())
            .relay_mode(relay)
            .address_lookup(known.clone())
            .transport_config(transport.clone())
            .portmapper_config(PortmapperConfig::Disabled);
        if off {
            builder = builder.net_report_config(NetReportConfig::minimal());
        }
        let bind = match bind {
            bind if bind.is_empty() => vec![(Ipv4Addr::UNSPECIFIED, 0).into()],
            bind => bind,
        };
        builder = builder.clear_ip_transports();
        for addr in bind {
            builder = builder.bind_addr(addr).map_err(WireError::new)?;
        }
        let endpoint = builder.bind().await.map_err(WireError::new)?;
        let server = endpoint
            .create_server_config_builder(names)
            .set_transport_config(transport)
            .set_max_incoming(INCOMING_MAX)
            .set_incoming_buffer_size(INCOMING_BUFFER)
            .set_incoming_buffer_size_total(INCOMING_BUFFER * INCOMING_MAX as u64)
            .build();
        let gossip = gossip::spawn(&endpoint, alpn(GOSSIP, &options.network));
        let live = Live {
            endpoint,
            gossip,
            known,
            server: Arc::new(server),
        };
        Ok(Self(Arc::new(Inner {
            id: PeerId::from_bytes(*live.endpoint.id().as_bytes()),
            alpns,
            outbound: outbound.into(),
            live: Mutex::new(Some(live)),
        })))
    }

    /// This endpoint's name, which is not the node's.
    pub(crate) fn id(&self) -> PeerId {
        self.0.id
    }

    /// The addresses that are bound, with their real ports; none once it is closed.
    pub(crate) fn bound(&self) -> Vec<SocketAddr> {
        let live = self.live();
        live.map(|it| it.endpoint.bound_sockets())
            .unwrap_or_default()
    }

    /// Where this endpoint can be dialled at the moment; nowhere once it is closed.
    pub(crate) fn addr(&self) -> PeerAddr {
        let Ok(Live { endpoint, .. }) = self.live() else {
            return PeerAddr::new(self.id(), []);
        };
        let addr = endpoint.addr();
        let mut local = PeerAddr::new(self.id(), addr.ip_addrs().copied());
        if local.addrs.is_empty() {
            // No interface is up: peers on this machine still reach us.
            local.addrs = self.bound().into_iter().filter_map(loopback).collect();
        }
        local.relay = addr.relay_urls().next().map(ToString::to_string);
        local.capped()
    }

    /// Lets gossip find this peer, which it dials by its id.
    pub(crate) fn learn(&self, addr: &PeerAddr) {
        if let (Ok(to), Ok(live)) = (endpoint_addr(addr), self.live()) {
            live.known.set_endpoint_info(to);
        }
    }

    /// Forgets where a peer is; it may still come in.
    pub(crate) fn forget(&self, peer: PeerId) {
        if let (Ok(id), Ok(live)) = (EndpointId::from_bytes(peer.as_bytes()), self.live()) {
            live.known.remove_endpoint_info(id);
        }
    }

    /// Connects to a peer, trying all of its addresses and those on which it has come in itself.
    /// Has no deadline of its own.
    ///
    /// # Errors
    /// The peer cannot be reached, or speaks another protocol or in another network.
    pub(crate) async fn dial(
        &self,
        addr: &PeerAddr,
        service: Service,
    ) -> Result<Connection, WireError> {
        let to = endpoint_addr(addr)?;
        let alpn = self.alpn(service)?;
        // The side that has dialled opens the streams.
        let transport = transport_config(0, 0, SESSION_WINDOW);
        let options = ConnectOptions::new().with_transport_config(transport);
        let endpoint = self.live()?.endpoint;
        let connecting = endpoint.connect_with_opts(to, alpn, options).await;
        let connection = connecting
            .map_err(WireError::new)?
            .await
            .map_err(WireError::new)?;
        Ok(Connection::new(connection))
    }

    /// The next peer that knocks; `None` once the endpoint is closed. Cancel-safe.
    pub(crate) async fn accept(&self) -> Option<Knock> {
        let endpoint = self.live().ok()?.endpoint;
        let incoming = endpoint.accept().await?;
        let wire = self.clone();
        Some(Knock { incoming, wire })
    }

    /// The next connection that gossip has dialled; `None` once the endpoint is gone. Cancel-safe.
    pub(crate) async fn dialled_by_gossip(&self) -> Option<Outbound> {
        let mut outbound = self.0.outbound.lock().await;
        loop {
            if let Some(connection) = Outbound::of(outbound.recv().await?) {
                return Some(connection);
            }
        }
    }

    /// Takes a place on the local network.
    ///
    /// # Errors
    /// It has no interface, or forbids multicast.
    #[cfg(feature = "mdns")]
    pub(crate) async fn lan(&self) -> Result<Lan, WireError> {
        Lan::open(self.live()?.endpoint.id()).await
    }

    /// Joins the overlay of a topic (the derived one).
    ///
    /// # Errors
    /// The endpoint is closed.
    pub(crate) async fn join(&self, topic: [u8; 32]) -> Result<Membership, WireError> {
        Membership::join(&self.live()?.gossip, topic).await
    }

    /// Closes every connection and gives the sockets back.
    pub(crate) async fn close(&self) {
        let live = self.locked().take();
        if let Some(Live {
            endpoint, gossip, ..
        }) = live
        {
            // Fails where its actor has ended already.
            let _ = tokio::time::timeout(Duration::from_secs(1), gossip.shutdown()).await;
            endpoint.close().await;
        }
    }

    fn live(&self) -> Result<Live, WireError> {
        let live = self.locked().clone();
        live.ok_or_else(|| WireError::new("the endpoint is closed"))
    }

    fn locked(&self) -> MutexGuard<'_, Option<Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alpn(&self, service: Service) -> Result<&[u8], WireError> {
        let found = self.0.alpns.iter().find(|(it, _)| *it == service);
        found
            .map(|(_, alpn)| &alpn[..])
            .ok_or_else(|| WireError::new("no such protocol is mounted"))
    }
}

/// Waits until these sockets, of an endpoint that is closed, can be bound again: at most a second.
/// The last to read from them let go of them by and by.
pub(crate) async fn released(bound: &[SocketAddr]) {
    let freeing = async {
        while bound.iter().any(|it| UdpSocket::bind(it).is_err()) {
            tokio::time::sleep(RELEASE_MAX / 100).await;
        }
    };
    let _ = tokio::time::timeout(RELEASE_MAX, freeing).await;
}

/// Somebody knocks; nothing is known of them yet.
pub(crate) struct Knock {
    incoming: iroh::endpoint::Incoming,
    wire: Wire,
}

impl Knock {
    /// Completes the handshake, and turns away who is not welcome. A peer that wants to gossip is
    /// handed to gossip: then there is nothing left to do with the connection but to count it.
    ///
    /// # Errors
    /// The peer left, speaks none of our protocols, or is not welcome.
    pub(crate) async fn accept(
        self,
        is_welcome: impl FnOnce(Service, PeerId) -> bool,
    ) -> Result<(Service, Connection), WireError> {
        let inner = &self.wire.0;
        let live = self.wire.live()?;
        let mut accepting = self
            .incoming
            .accept_with(Arc::clone(&live.server))
            .map_err(WireError::new)?;
        let alpn = accepting.alpn().await.map_err(WireError::new)?;
        let connection = accepting.await.map_err(WireError::new)?;
        let service = inner.alpns.iter().find(|(_, it)| *it == alpn);
        let Some((service, _)) = service else {
            connection.close(VarInt::from_u32(0), b"unknown protocol");
            return Err(WireError::new("a protocol that is not mounted"));
        };
        if !is_welcome(
            *service,
            PeerId::from_bytes(*connection.remote_id().as_bytes()),
        ) {
            connection.close(VarInt::from_u32(0), b"not served");
            return Err(WireError::new("no topic is served to this peer"));
        }
        match service {
            Service::Gossip => {
                connection.set_max_concurrent_bi_streams(VarInt::from_u32(0));
                let handed = live.gossip.handle_connection(connection.clone()).await;
                handed.map_err(WireError::new)?;
            }
            Service::Sync | Service::Discovery | Service::Client | Service::Own(_) => {
                connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
            }
        }
        Ok((*service, Connection::new(connection)))
    }

    /// Whether it has shown that it receives what is sent to its address.
    pub(crate) fn is_where_it_says(&self) -> bool {
        self.incoming.remote_addr_validated()
    }

    /// Has it show that, and remembers nothing of it meanwhile.
    pub(crate) fn ask_again(self) {
        // Fails only where it has shown it already.
        let _ = self.incoming.retry();
    }

    /// Turns them away with the least effort.
    pub(crate) fn refuse(self) {
        self.incoming.refuse();
    }
}

fn alpn(protocol: &str, network: &[u8; 32]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(protocol.as_bytes()).update(network);
    hasher.finalize().as_bytes().to_vec()
}

fn alpns(network: &[u8; 32], own: &[&str]) -> Vec<(Service, Vec<u8>)> {
    let mut alpns = vec![
        (Service::Sync, alpn(SYNC, network)),
        (Service::Discovery, alpn(DISCOVERY, network)),
        (Service::Gossip, alpn(GOSSIP, network)),
        (Service::Client, client::alpn(network)),
    ];
    let own = own.iter().enumerate();
    alpns.extend(own.map(|(at, name)| (Service::Own(at), alpn(&format!("{OWN}{name}"), network))));
    alpns
}

fn transport_config(bidi: u32, uni: u32, window: u32) -> QuicTransportConfig {
    let idle = VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32);
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(bidi))
        .max_concurrent_uni_streams(VarInt::from_u32(uni))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle.into()))
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_max_idle_timeout(IDLE_TIMEOUT)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .receive_window(VarInt::from_u32(window))
        .stream_receive_window(VarInt::from_u32(SESSION_WINDOW))
        .send_window(SEND_WINDOW)
        .build()
}

fn endpoint_addr(addr: &PeerAddr) -> Result<EndpointAddr, WireError> {
    let id = EndpointId::from_bytes(addr.peer.as_bytes()).map_err(WireError::new)?;
    let addrs = addr.addrs.iter().copied().map(TransportAddr::Ip);
    let to = EndpointAddr::from_parts(id, addrs);
    Ok(match &addr.relay {
        Some(relay) => to.with_relay_url(relay.parse().map_err(WireError::new)?),
        None => to,
    })
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

#[cfg(test)]
mod tests;
