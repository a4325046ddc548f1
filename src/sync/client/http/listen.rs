//! The member's side: connections come in, each with one request that is a session.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    super::{
        super::member_addr::MemberAddr,
        dial::DialError,
        settings::Settings,
        transport::{AcceptFuture, Caller, ListenError, Listener, Place},
    },
    BUFFER, HEADERS_MAX, PATH,
    body::{BodyReader, BodyWriter, discard, outgoing},
    dial::Url,
    socket::{self, GONE_AFTER},
    tls,
};

/// Any free port of every IPv4 interface.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// How long the head of a request may take.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// How long a client that is turned away may take to hear of it.
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(1);
/// Connections beyond the sessions: those that shake hands, and those that end.
const SPARE: usize = 64;
/// After a failed accept, as where there are too many open files.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct HttpListener {
    tcp: Mutex<Option<TcpListener>>,
    closed: CancellationToken,
    bound: SocketAddr,
    urls: Vec<String>,
    tls: Arc<ServerConfig>,
    network: [u8; 32],
    connections: Arc<Semaphore>,
    pub(super) gone_after: Duration,
}

impl HttpListener {
    pub(super) async fn open(
        wanted: Option<SocketAddr>,
        urls: &[String],
        place: &Place,
    ) -> Result<Self, ListenError> {
        let fits = |url: &str| url.len() <= MemberAddr::ADDR_BYTES_MAX;
        let is_url = |url: &str| fits(url) && Url::parse(url).is_ok();
        let kept = Settings::read(place.kept.as_deref(), is_url);
        let urls = match urls {
            [] => kept.urls.clone(),
            urls => urls.to_vec(),
        };
        for url in &urls {
            if !fits(url) {
                return Err(ListenError::new(format_args!("{url:?} is too long")));
            }
            Url::parse(url).map_err(ListenError::new)?;
        }
        let mut failed = None;
        for addr in kept.places(wanted, ANYWHERE) {
            let bound = TcpListener::bind(addr).await;
            match bound.and_then(|tcp| Ok((tcp.local_addr()?, tcp))) {
                Ok((bound, tcp)) => {
                    let sessions_max = place.sessions_max.min(Semaphore::MAX_PERMITS - SPARE);
                    return Ok(Self {
                        tcp: Mutex::new(Some(tcp)),
                        closed: CancellationToken::new(),
                        bound,
                        urls,
                        tls: Arc::new(tls::server(place).map_err(ListenError::new)?),
                        network: place.network,
                        connections: Arc::new(Semaphore::new(sessions_max + SPARE)),
                        gone_after: GONE_AFTER,
                    });
                }
                Err(why) => {
                    tracing::warn!(%addr, %why, "cannot listen there");
                    failed = Some(ListenError::new(format_args!("{addr}: {why}")));
                }
            }
        }
        Err(failed.unwrap_or_else(|| ListenError::new("nowhere to listen")))
    }

    async fn next(&self) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let tcp = self.tcp.lock().await;
        let tcp = tcp.as_ref()?;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.closed.cancelled() => return None,
                accepted = tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Over the limit they are turned away with the least effort.
                    if let Ok(room) = Arc::clone(&self.connections).try_acquire_owned() {
                        return Some((stream, room));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Listener for HttpListener {
    fn accept(&self) -> AcceptFuture<'_> {
        Box::pin(async {
            let (stream, room) = self.next().await?;
            let tls = TlsAcceptor::from(Arc::clone(&self.tls));
            let (network, gone_after) = (self.network, self.gone_after);
            Some(Box::pin(async move {
                socket::set(&stream, gone_after).map_err(DialError::new)?;
                knock(stream, tls, network, room).await
            }) as _)
        })
    }

    fn addrs(&self) -> Vec<String> {
        if !self.urls.is_empty() {
            return self.urls.clone();
        }
        let ip = match self.bound.ip() {
            ip if ip.is_unspecified() => outward(self.bound),
            ip => ip,
        };
        vec![format!("http://{}", SocketAddr::new(ip, self.bound.port()))]
    }

    fn settings(&self) -> String {
        let settings = Settings {
            bind: vec![self.bound],
            urls: self.urls.clone(),
        };
        settings.text()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.closed.cancel();
            self.tcp.lock().await.take();
        })
    }
}

impl fmt::Debug for HttpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpListener")
            .field("bound", &self.bound)
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// The address by which this machine is known where its packets go: that of the default route.
/// Nothing is sent to find out. Without a route, clients on this machine still reach us.
fn outward(bound: SocketAddr) -> IpAddr {
    let (any, there) = match bound {
        SocketAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9"),
        SocketAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9"),
    };
    let found = std::net::UdpSocket::bind(any).and_then(|it| {
        it.connect(there)?;
        it.local_addr()
    });
    found.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |it| it.ip())
}

/// What a request opens: its body, and what becomes the body of the answer.
type Opened = (Body, BodyWriter);

/// Where the one request of a connection is handed in.
#[derive(Clone)]
struct Desk(Arc<std::sync::Mutex<Option<oneshot::Sender<Opened>>>>);

async fn open(State(desk): State<Desk>, request: Body) -> Response {
    let mut taken = desk.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(desk) = taken.take() else {
        return StatusCode::CONFLICT.into_response();
    };
    let (write, answer) = outgoing();
    if desk.send((request, write)).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let head = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        // nginx would keep the answer back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (head, Body::new(answer)).into_response()
}

async fn knock(
    stream: TcpStream,
    tls: TlsAcceptor,
    network: [u8; 32],
    room: OwnedSemaphorePermit,
) -> Result<Caller, DialError> {
    let (desk, seat) = oneshot::channel();
    let desk = Desk(Arc::new(std::sync::Mutex::new(Some(desk))));
    let router = Router::new().route(PATH, post(open)).with_state(desk);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = AbortOnDropHandle::new(tokio::spawn(async move {
        let _room = room;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a client's connection has ended");
        }
    }));
    let (request, write) = tokio::select! {
        biased;
        Ok(opened) = seat => opened,
        _ = &mut connection => return Err(DialError::new("it asked for no session")),
    };
    let (dropped, rest) = oneshot::channel();
    let read = BodyReader::new(request, Some(dropped));
    let session = match tls.accept(tokio::io::join(read, write)).await {
        Ok(session) => session,
        Err(why) => {
            let _ = timeout(TURNED_AWAY_WITHIN, connection).await;
            return Err(DialError::new(why));
        }
    };
    tls::check_network(&network, session.get_ref().1.alpn_protocol())?;
    let peer = tls::proven(session.get_ref().1.peer_certificates());
    let peer = peer.ok_or_else(|| DialError::new("it has proven no key"))?;
    let (read, write) = tokio::io::split(session);
    Ok(Caller {
        peer,
        read: Box::new(read),
        write: Box::new(write),
        gone: Box::pin(async move {
            tokio::select! {
                // What it still says is taken off the socket: closed with bytes unread, a socket
                // takes back what was sent last.
                Ok(request) = rest => discard(request).await,
                _ = &mut connection => return,
            }
            let _ = connection.await;
        }),
    })
}
