//! A program's own sync protocols at a member's door: what is mounted, and what comes of it.
//!
//! ```text
//!  Mount ------> SyncOptions::protocols: the door knows its name, and asks it who may come in
//!  Mounted <---- what sessions gave, of all peers, in a bounded queue
//!  MountHandle   begins sessions with peers
//! ```
//!
//! The types of topics stay here: the door sees names, peers and byte streams.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Sink;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::PollSender;

use super::{
    Sync,
    protocol::{FromSync, SyncError, SyncFuture, SyncProtocol, SyncRead, SyncWrite, TopicQuery},
};
use crate::identity::{PeerAddr, PeerId};

/// Events of all sessions that wait for the program; a session that has more waits.
const EVENTS_WAITING: usize = 64;
/// The longest name of a protocol, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// A program's own [`SyncProtocol`], to be mounted at a door by
/// [`SyncOptions::protocols`](super::SyncOptions::protocols).
///
/// Peers meet it on an ALPN of its own: BLAKE3("quorate/own/1/" ‖ its name ‖ network id). They have
/// proven their names before it sees them, and are let in or not by [`MountOptions::admitting`]; by
/// default nobody is. As everything at the door it is served while the member reaches a quorum.
///
/// `examples/own_protocol.rs` shows a whole one.
#[derive(Clone)]
pub struct Mount {
    pub(super) own: Arc<dyn Own>,
}

/// Equal are those of one call of [`Mount::new`].
impl PartialEq for Mount {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.own, &other.own)
    }
}

impl Eq for Mount {}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mount").field(&self.own.name()).finish()
    }
}

/// How a protocol is mounted.
///
/// ```
/// use std::{collections::BTreeSet, time::Duration};
/// use quorate::{PeerId, sync::MountOptions};
///
/// let friends = BTreeSet::from([PeerId::from_bytes([1; 32])]);
/// let options = MountOptions::default()
///     .admitting(move |peer| friends.contains(&peer))
///     .sessions_max(8)
///     .deadline(Duration::from_secs(10));
/// # let _ = options;
/// ```
pub struct MountOptions {
    admits: Box<Admits>,
    sessions_max: usize,
    deadline: Duration,
}

type Admits = dyn Fn(PeerId) -> bool + Send + std::marker::Sync;

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            admits: Box::new(|_| false),
            sessions_max: 64,
            deadline: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountOptions")
            .field("sessions_max", &self.sessions_max)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl MountOptions {
    /// Who may begin a session here. Asked for each connection, and must not wait. Default: nobody.
    #[must_use]
    pub fn admitting(
        mut self,
        admits: impl Fn(PeerId) -> bool + Send + std::marker::Sync + 'static,
    ) -> Self {
        self.admits = Box::new(admits);
        self
    }

    /// Sessions at once, in both roles together; more are turned away. Default: 64.
    #[must_use]
    pub fn sessions_max(mut self, sessions: usize) -> Self {
        self.sessions_max = sessions.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// How long a whole session may take. Default: 60 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Mount {
    /// What a door is given, and what the program keeps.
    ///
    /// # Errors
    /// Its name is empty or longer than 128 bytes.
    pub fn new<T: TopicQuery>(
        protocol: Arc<dyn SyncProtocol<T>>,
        options: MountOptions,
    ) -> Result<(Self, Mounted<T>), MountError> {
        if !(1..=NAME_BYTES_MAX).contains(&protocol.name().len()) {
            return Err(MountError);
        }
        let (give, events) = mpsc::channel(EVENTS_WAITING);
        let typed = Arc::new(Typed {
            protocol,
            admits: options.admits,
            sessions: Arc::new(Semaphore::new(options.sessions_max)),
            deadline: options.deadline,
            events: give,
        });
        let mount = Self { own: typed.clone() };
        let handle = MountHandle { typed };
        Ok((mount, Mounted { events, handle }))
    }
}

/// A protocol's name must have 1 to 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a protocol has 1 to 128 bytes")]
pub struct MountError;

/// Something that came of a session.
#[derive(Debug)]
pub struct PeerEvent<T> {
    /// The peer, by the key that it has proven.
    pub peer: PeerId,
    /// What the session gave: [`FromSync::HandshakeSuccess`] before any data of that session.
    pub event: FromSync<T>,
}

/// What sessions of a mounted protocol give, with all peers. Dropping it ends them, and nobody is
/// let in any more.
///
/// ```
/// use quorate::sync::{FromSync, Mounted, TopicQuery};
///
/// /// Takes what comes in sessions with all peers.
/// async fn take<T: TopicQuery>(mut mounted: Mounted<T>) {
///     while let Some(told) = mounted.next().await {
///         match told.event {
///             FromSync::HandshakeSuccess(topic) => println!("{} syncs {topic:?}", told.peer),
///             FromSync::Data { header, payload } => drop((header, payload)), // keep it
///         }
///     }
/// }
/// ```
pub struct Mounted<T> {
    events: mpsc::Receiver<PeerEvent<T>>,
    handle: MountHandle<T>,
}

impl<T: TopicQuery> Mounted<T> {
    /// The next event; sessions wait where 64 are not taken. Never `None` while this is kept.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<PeerEvent<T>> {
        self.events.recv().await
    }

    /// What begins sessions, while this is read elsewhere.
    #[must_use]
    pub fn handle(&self) -> MountHandle<T> {
        self.handle.clone()
    }
}

impl<T> fmt::Debug for Mounted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").finish_non_exhaustive()
    }
}

/// Begins sessions of a mounted protocol, from [`Mounted::handle`]. Cheap to clone.
///
/// ```
/// use quorate::{PeerAddr, sync::{MountHandle, Sync, SyncError, TopicQuery}};
///
/// /// One session; what it gives comes out of [`Mounted::next`] in another task.
/// ///
/// /// [`Mounted::next`]: quorate::sync::Mounted::next
/// async fn ask<T: TopicQuery>(
///     handle: &MountHandle<T>,
///     door: &Sync,
///     peer: &PeerAddr,
///     topic: T,
/// ) -> Result<(), SyncError> {
///     handle.sync(door, peer, topic).await
/// }
/// ```
pub struct MountHandle<T> {
    typed: Arc<Typed<T>>,
}

impl<T> Clone for MountHandle<T> {
    fn clone(&self) -> Self {
        Self {
            typed: Arc::clone(&self.typed),
        }
    }
}

impl<T> fmt::Debug for MountHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountHandle").finish_non_exhaustive()
    }
}

impl<T: TopicQuery> MountHandle<T> {
    /// Runs one session with a peer, through a door at which the protocol is mounted, to its end.
    /// What it gives comes out of [`Mounted::next`], which must be read meanwhile.
    ///
    /// # Errors
    /// The peer is not reached or does not let us in, the session failed or took too long, or there
    /// is no quorum. [`SyncError::fault`] says whose fault it is.
    pub async fn sync(&self, door: &Sync, peer: &PeerAddr, topic: T) -> Result<(), SyncError> {
        let own: Arc<dyn Own> = self.typed.clone();
        let room = own.room();
        let _room = room.ok_or_else(|| SyncError::critical("as many sessions as there may be"))?;
        let session = async {
            let (mut write, mut read, connection) = door.open_own(&own, peer).await?;
            let begun = Some(topic);
            let session = self.typed.session(peer.peer, begun, &mut write, &mut read);
            session.await?;
            // The peer ends its half once it has everything; only then is the connection let go.
            write.shutdown().await?;
            while read.read(&mut [0; 64]).await? > 0 {}
            drop(connection);
            Ok(())
        };
        match timeout(self.typed.deadline, door.while_serving(session)).await {
            Ok(ended) => ended,
            Err(_) => Err(SyncError::unexpected("the session took too long")),
        }
    }
}

/// A mounted protocol, without the type of its topics.
pub(super) trait Own: Send + std::marker::Sync + 'static {
    fn name(&self) -> &'static str;
    /// Whether this peer may begin a session now.
    fn admits(&self, peer: PeerId) -> bool;
    /// A place for one more session.
    fn room(&self) -> Option<OwnedSemaphorePermit>;
    /// How long a whole session may take.
    fn deadline(&self) -> Duration;
    /// Runs a session that a peer has begun.
    fn accept<'a>(
        &'a self,
        peer: PeerId,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
    ) -> SyncFuture<'a>;
}

struct Typed<T> {
    protocol: Arc<dyn SyncProtocol<T>>,
    admits: Box<Admits>,
    sessions: Arc<Semaphore>,
    deadline: Duration,
    events: mpsc::Sender<PeerEvent<T>>,
}

impl<T: TopicQuery> Typed<T> {
    /// Begins with a topic, or is told one.
    async fn session(
        &self,
        peer: PeerId,
        begun: Option<T>,
        write: SyncWrite<'_>,
        read: SyncRead<'_>,
    ) -> Result<(), SyncError> {
        let mut events = Events {
            peer,
            to: PollSender::new(self.events.clone()),
            agreed: false,
        };
        let protocol = Arc::clone(&self.protocol);
        match begun {
            Some(topic) => protocol.initiate(topic, write, read, &mut events).await,
            None => protocol.accept(write, read, &mut events).await,
        }
    }
}

impl<T: TopicQuery> Own for Typed<T> {
    fn name(&self) -> &'static str {
        self.protocol.name()
    }

    fn admits(&self, peer: PeerId) -> bool {
        !self.events.is_closed() && (self.admits)(peer)
    }

    fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.sessions).try_acquire_owned().ok()
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn accept<'a>(
        &'a self,
        peer: PeerId,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
    ) -> SyncFuture<'a> {
        Box::pin(self.session(peer, None, write, read))
    }
}

/// Where one session puts what it received, in the order that the contract says.
struct Events<T> {
    peer: PeerId,
    to: PollSender<PeerEvent<T>>,
    agreed: bool,
}

fn nobody<E>(_: E) -> SyncError {
    SyncError::critical("nobody listens to the protocol any more")
}

impl<T: TopicQuery> Sink<FromSync<T>> for Events<T> {
    type Error = SyncError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SyncError>> {
        self.to.poll_reserve(cx).map_err(nobody)
    }

    fn start_send(mut self: Pin<&mut Self>, event: FromSync<T>) -> Result<(), SyncError> {
        let agrees = matches!(event, FromSync::HandshakeSuccess(_));
        if agrees == self.agreed {
            return Err(SyncError::critical(
                "the handshake succeeds once, before any data",
            ));
        }
        self.agreed = true;
        let peer = self.peer;
        self.to.send_item(PeerEvent { peer, event }).map_err(nobody)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SyncError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SyncError>> {
        Poll::Ready(Ok(()))
    }
}
