//! Whoever knocks: the handshake, what they want, whether they may, and the session.
//!
//! A stranger costs a place among those that knock, for some seconds, and nothing that stays: no
//! entry in the table of peers, no place of a session, no claim. It is remembered as a request, if
//! the topic has room for one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    FULL, KNOCKS_MAX, RETRY_FROM, Shared, admission::Admitted, discover, peers::Counted,
    peers::Rank, seats::Seat, session, shake,
};
use crate::{
    identity::{PeerAddr, PeerId},
    sync::{
        client::{self, Admit, AtDoor, Denied, ServeLimits},
        outsiders::{Rights, TopicMode},
        protocol::SyncError,
        session::Role,
        wire::{Connection, Knock, Service},
    },
};

/// Lets in whom it may, until the door closes.
pub(super) async fn accept(shared: Arc<Shared>) {
    let knocks = Arc::new(Semaphore::new(KNOCKS_MAX));
    while let Some(knock) = shared.wire.accept().await {
        let shaking = KNOCKS_MAX - knocks.available_permits();
        if shaking >= RETRY_FROM && !knock.is_where_it_says() {
            knock.ask_again();
            continue;
        }
        let room = Arc::clone(&knocks).try_acquire_owned();
        let (true, Ok(room)) = (*shared.serving.borrow(), room) else {
            knock.refuse();
            continue;
        };
        let admitting = Arc::clone(&shared);
        shared.run(async move {
            if let Err(error) = admitting.admit(knock, room).await {
                tracing::debug!(%error, "a peer that came in was not served");
            }
        });
    }
}

/// Our own client, by what carries it.
#[derive(Clone)]
pub(super) enum Client {
    /// The door's own endpoint.
    Quic(Connection),
    /// A transport that a program has registered. It is cut off by dropping its stream.
    Carried(PeerId),
}

impl Client {
    fn addr(&self) -> PeerAddr {
        match self {
            Self::Quic(connection) => connection.remote_addr(),
            Self::Carried(peer) => PeerAddr::new(*peer, []),
        }
    }

    fn admit(&self) {
        if let Self::Quic(connection) = self {
            connection.admit();
        }
    }

    fn close(&self, reason: &str) {
        if let Self::Quic(connection) = self {
            connection.close(reason);
        }
    }
}

/// Keeps an eye on the connections that the overlays have dialled themselves: they are for peers
/// that may know of a topic, as those that come in.
pub(super) async fn watch_outbound(shared: Arc<Shared>) {
    while let Some(connection) = shared.wire.dialled_by_gossip().await {
        let watching = Arc::clone(&shared);
        shared.run(async move {
            let peer = connection.remote();
            let mut changes = watching.admissions.changes();
            tokio::select! {
                () = connection.closed() => {}
                _ = changes.wait_for(|_| !watching.is_welcome(peer)) => {
                    connection.close("not served any more");
                }
            }
        });
    }
}

/// What a session of our own client holds while it lasts.
struct ClientPlace {
    _seat: Seat,
    _counted: Counted,
    _admitted: Admitted,
}

impl Shared {
    async fn admit(
        self: &Arc<Self>,
        knock: Knock,
        room: OwnedSemaphorePermit,
    ) -> Result<(), SyncError> {
        let shaking = timeout(
            self.patience.knock,
            knock.accept(|service, peer| self.lets_in(service, peer)),
        )
        .await;
        let (service, connection) = shaking
            .map_err(|_| SyncError::unexpected("the handshake took too long"))?
            .map_err(SyncError::unexpected)?;
        let peer = connection.remote();
        let Some(place) = self.knocks.take_fairly(peer, self.peers.is_known(peer)) else {
            connection.close(FULL);
            return Err(SyncError::critical(FULL));
        };
        drop(room);
        match service {
            Service::Sync => self.serve(&connection).await,
            Service::Discovery => discover::answer(self, &connection).await,
            Service::Client => self.serve_client(&connection).await,
            Service::Own(at) => self.serve_own(at, &connection).await,
            Service::Gossip => {
                // The overlay has it now, and takes no more of the door than its place.
                drop(place);
                self.neighbour(&connection).await;
                Ok(())
            }
        }
    }

    /// Leaves the overlays a connection for as long as the peer may know of any topic.
    async fn neighbour(self: &Arc<Self>, connection: &Connection) {
        let peer = connection.remote();
        let Some(_place) = self.gossips.take_fairly(peer, self.peers.is_known(peer)) else {
            return connection.close("as many neighbours as there may be are there");
        };
        let mut changes = self.admissions.changes();
        tokio::select! {
            _ = connection.closed() => {}
            _ = changes.wait_for(|_| !self.is_welcome(peer)) => {
                connection.close("not served any more");
            }
        }
    }

    /// Serves our own client, which has back-pressure and needs no chunks.
    async fn serve_client(self: &Arc<Self>, connection: &Connection) -> Result<(), SyncError> {
        let limit = ServeLimits::default().request_within;
        let stream = timeout(limit, connection.accept_bytes()).await;
        let stream = stream
            .map_err(|_| SyncError::unexpected("nothing was asked for in time"))?
            .map_err(SyncError::unexpected)?;
        let client = Client::Quic(connection.clone());
        let gone = async {
            connection.closed().await;
        };
        self.serve_stream(stream, client, gone).await
    }

    /// Serves our own client on a stream, whatever carries it; `gone` is ready once it has what was
    /// said last, or will never be heard of again.
    pub(super) async fn serve_stream<R, W>(
        self: &Arc<Self>,
        stream: (R, W),
        client: Client,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<(), SyncError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let limits = ServeLimits::default();
        if !self.confirm_admissions().await {
            client.close("no quorum is reached here");
            return Ok(());
        }
        let over = self.stop.child_token();
        let place = Arc::<Mutex<Option<ClientPlace>>>::default();
        let (shared, ending, asking) = (Arc::clone(self), over.clone(), client.clone());
        let held = Arc::clone(&place);
        let admit: Admit = Arc::new(move |topic, access| {
            let addr = asking.addr();
            let admitted = shared.admit_client(&addr, topic, access, &ending)?;
            let (seat, counted) = shared.room(addr.peer, &ending).ok_or(Denied::OverQuota)?;
            asking.admit();
            let taken = ClientPlace {
                _seat: seat,
                _counted: counted,
                _admitted: admitted,
            };
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
            Ok(shared.logs.clone())
        });
        let quota = self.rates.of(client.addr().peer);
        let at = AtDoor {
            meter: Arc::new(move |operations, bytes| {
                quota.spend(operations, bytes, Instant::now())
            }),
            members: self.doors.watch(),
        };
        let served = client::serve_carried(stream, &admit, &limits, Some(&at), gone);
        let mut serving = self.serving.subscribe();
        let no_quorum = async {
            let _ = serving.wait_for(|it| !it).await;
        };
        tokio::select! {
            served = served => served.map_err(SyncError::unexpected),
            () = no_quorum => {
                client.close("no quorum is reached here");
                Ok(())
            }
            () = over.cancelled() => {
                client.close("what it may do was changed");
                Ok(())
            }
        }
    }

    async fn serve(self: &Arc<Self>, connection: &Connection) -> Result<(), SyncError> {
        let peer = connection.remote();
        if self.doors.is_door(peer) {
            // Members have the same logs by themselves.
            connection.close("not served");
            return Ok(());
        }
        let told = |topic| self.admissions.verdict(peer, topic);
        let served = |line, topic| {
            let open = self.feed(topic).is_some_and(|it| it.line == line);
            open && told(topic).is_told()
        };
        let asked = shake::answer(connection, served, self.patience.handshake).await;
        let Ok((line, topic)) = asked else {
            connection.close("not served");
            return asked.map(drop);
        };
        let Some(feed) = self.feed(topic) else {
            connection.close("not served");
            return Ok(());
        };
        if !told(topic).rights.read {
            self.ask_for(connection.remote_addr(), (topic, line), Rights::ALL);
        }
        let over = feed.over.child_token();
        let Some(admitted) = self.admissions.admit(peer, topic, over) else {
            connection.close("asked for, and not let in yet");
            return Err(SyncError::unexpected("it asked to be let in"));
        };
        let Some((_seat, _counted)) = self.room(peer, &admitted.over) else {
            connection.close(FULL);
            return Err(SyncError::critical(FULL));
        };
        self.learn(&connection.remote_addr(), Rank::Met);
        let claimed = self.claim(peer, topic, line).await;
        let agreed = session::Agreed {
            peer,
            topic,
            line,
            role: Role::Acceptor,
            slot: claimed.then(|| self.peers.take(peer, topic)).flatten(),
            feed,
            once: admitted.mode == TopicMode::CatchUp,
            admitted,
        };
        let ended = session::run(self, connection, agreed).await;
        tracing::debug!(peer = %peer.short(), %topic, ?ended, "a session that came in has ended");
        self.keep(peer, topic);
        ended.map(drop)
    }
}
