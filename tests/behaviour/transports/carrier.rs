//! One transport under test: servers that listen with it, clients that dial with it, and how much
//! the servers have written.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use quorate::{
    log_store::{Logs, Operation},
    sync::{
        AcceptFuture, Caller, Dial, DialError, Dialled, Have, Identity, ListenFuture, Listener,
        LogServer, LogServerOptions, LogTicket, MemberAddr, Place, Pull, Push, Quic, Secret,
        ServeLimits, Transport, Transports,
    },
};
use tokio::io::AsyncWrite;

use super::{Kind, memory::Memory};
use crate::client::ground::{LINE, topic};

pub(super) const NETWORK: [u8; 32] = [4; 32];

pub(super) struct Carrier {
    pub(super) kind: Kind,
    memory: Memory,
    written: Arc<AtomicU64>,
}

impl Carrier {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            memory: Memory::default(),
            written: Arc::default(),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Quic => "quic",
            #[cfg(feature = "http")]
            Kind::Http => "http",
            Kind::Memory => "memory",
        }
    }

    fn transport(&self) -> Arc<dyn Transport> {
        let anywhere = ([127, 0, 0, 1], 0).into();
        match self.kind {
            Kind::Quic => Arc::new(Quic::new().bind(anywhere)),
            #[cfg(feature = "http")]
            Kind::Http => Arc::new(quorate::sync::Http::new().bind(anywhere)),
            Kind::Memory => Arc::new(self.memory.clone()),
        }
    }

    pub(super) fn transports(&self) -> Transports {
        let counted = Counted {
            inner: self.transport(),
            written: Arc::clone(&self.written),
        };
        Transports::none().with(self.name(), counted)
    }

    /// Bytes that servers have written, and that the streams have taken.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    pub(super) async fn listen(&self, kept: Option<String>) -> (MemberAddr, Box<dyn Listener>) {
        let secret = Secret::from([8; 32]);
        let place = Place {
            network: NETWORK,
            secret: secret.clone(),
            sessions_max: 16,
            kept,
        };
        let listener = self.transport().listen(place).await;
        let listener = listener.expect("there is an address");
        let member = quorate::PeerAddr::new(secret.peer(), []);
        let addrs = listener.addrs().into_iter();
        let member = addrs.fold(member.into(), |it: MemberAddr, addr| {
            it.with(self.name(), &addr)
        });
        (member, listener)
    }

    pub(super) async fn dial(&self, to: &MemberAddr, as_who: Secret) -> Result<Dialled, DialError> {
        let identity = Identity {
            network: NETWORK,
            secret: as_who,
        };
        self.transports().dialler(&identity).dial(to).await
    }

    /// A server of a member's logs, which admits everybody to the one topic.
    pub(super) async fn serve(&self, logs: &Logs) -> LogServer {
        self.serve_with(logs, LogServerOptions::default()).await
    }

    pub(super) async fn serve_within(&self, logs: &Logs, limits: ServeLimits) -> LogServer {
        let options = LogServerOptions {
            limits,
            ..LogServerOptions::default()
        };
        self.serve_with(logs, options).await
    }

    pub(super) async fn serve_with(&self, logs: &Logs, options: LogServerOptions) -> LogServer {
        let logs = logs.clone();
        let admit: quorate::sync::AdmitPeer = Arc::new(move |_, asked, _| match asked == topic() {
            true => Ok(logs.clone()),
            false => Err(quorate::sync::Denied::UnknownTopic),
        });
        let options = LogServerOptions {
            transports: self.transports(),
            network: NETWORK,
            ..options
        };
        let server = LogServer::open(options, admit).await;
        server.expect("there is an address")
    }

    pub(super) fn ticket(&self, members: &[MemberAddr]) -> LogTicket {
        let ticket = LogTicket::new(NETWORK, [(topic(), LINE)], members.iter().cloned());
        // As clients get it.
        ticket.to_string().parse().expect("it is a ticket")
    }

    pub(super) fn pull(&self, members: &[MemberAddr], have: Have) -> Pull {
        let pull = Pull::new(&self.ticket(members), topic(), have).through(self.transports());
        pull.in_order()
            .retry(Duration::from_millis(5), Duration::from_millis(50))
    }

    pub(super) fn push(&self, members: &[MemberAddr]) -> Push {
        let push = Push::new(&self.ticket(members), topic()).through(self.transports());
        push.in_order()
            .retry(Duration::from_millis(5), Duration::from_millis(50))
    }
}

pub(super) fn addrs(servers: &[LogServer]) -> Vec<MemberAddr> {
    servers.iter().map(LogServer::addr).collect()
}

pub(super) fn kept(server: &LogServer, secret: Secret) -> LogServerOptions {
    LogServerOptions {
        secret,
        kept: server.settings().into_iter().collect::<BTreeMap<_, _>>(),
        ..LogServerOptions::default()
    }
}

pub(super) fn by_author(mut operations: Vec<Operation>) -> Vec<Operation> {
    operations.sort_by_key(|it| (it.author(), it.seq()));
    operations
}

/// Counts what servers write over another transport.
#[derive(Debug)]
struct Counted<I> {
    inner: I,
    written: Arc<AtomicU64>,
}

impl Transport for Counted<Arc<dyn Transport>> {
    fn dialler(&self, identity: Identity) -> Arc<dyn Dial> {
        self.inner.dialler(identity)
    }

    fn listen(&self, place: Place) -> ListenFuture<'_> {
        Box::pin(async move {
            let inner = self.inner.listen(place).await?;
            let written = Arc::clone(&self.written);
            Ok(Box::new(Counted { inner, written }) as Box<dyn Listener>)
        })
    }
}

impl Listener for Counted<Box<dyn Listener>> {
    fn accept(&self) -> AcceptFuture<'_> {
        Box::pin(async {
            let knock = self.inner.accept().await?;
            let written = Arc::clone(&self.written);
            Some(Box::pin(async move {
                let caller = knock.await?;
                let inner = caller.write;
                let write = Box::new(Counted { inner, written });
                Ok(Caller { write, ..caller })
            }) as quorate::sync::Knock)
        })
    }

    fn addrs(&self) -> Vec<String> {
        self.inner.addrs()
    }

    fn settings(&self) -> String {
        self.inner.settings()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.inner.close()
    }
}

impl AsyncWrite for Counted<Box<dyn AsyncWrite + Send + Unpin>> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = wrote {
            self.written.fetch_add(count as u64, Ordering::SeqCst);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
