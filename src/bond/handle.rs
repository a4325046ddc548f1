//! The handle to a bond: what others hold and ask, while the bond's tasks do the work.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use super::{BondId, Lane, LaneError, Proven, StreamKind, lane::LaneClient, stream::Opening};
use crate::{
    identity::{BootId, MemberId, PeerId},
    net::{BondStream, Link},
};

/// Control messages that may wait for the worker; a bond that lets them pile up has ended.
pub(super) const OUTBOX: usize = 256;

/// A proven relation to one peer in one group; a handle that is cheap to clone.
///
/// It ends when either side closes it, when the connection is lost, or when the peer stays silent
/// for too long. The mesh then dials the peer anew; what comes of that is another bond, with
/// another id.
#[derive(Clone)]
pub struct Bond(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) proven: Proven,
    pub(super) boot: BootId,
    pub(super) link: Link,
    pub(super) formed: Instant,
    /// In nanoseconds; 0 before the first.
    pub(super) rtt: AtomicU64,
    /// When the peer fell silent, in nanoseconds after `formed`; 0 while it is heard.
    pub(super) silent: AtomicU64,
    /// Set once, by whoever ends the bond first. Every task of the bond watches it.
    pub(super) ended: watch::Sender<Option<TerminationReason>>,
    /// Whether we have told the peer that we depart.
    departing: AtomicBool,
    /// Whether the peer has acknowledged our departure, or departed itself.
    pub(super) parted: watch::Sender<bool>,
    pub(super) outbox: mpsc::Sender<Bytes>,
    pub(super) tasks: TaskTracker,
    lanes: [Arc<LaneClient>; 2],
}

impl Bond {
    /// The bond's name, the same on both sides and never used again.
    #[must_use]
    pub fn id(&self) -> BondId {
        self.0.proven.bond
    }

    /// The peer on the other side.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.0.proven.peer
    }

    /// The heartbeats' round trip, the peer's Raft core included, smoothed over about eight of
    /// them; `None` before the first.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match self.0.rtt.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Whether the bond has ended.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.0.ended.borrow().is_some()
    }

    /// Waits for the bond's end and says why it ended.
    pub async fn terminated(&self) -> TerminationReason {
        let mut ended = self.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            // The sender lives in this very handle.
            _ => TerminationReason::LinkLost("the bond was dropped".into()),
        }
    }

    /// Ends the bond and tells the peer why. The mesh dials the peer again unless it is no longer
    /// wanted.
    pub fn close(&self, reason: &str) {
        self.end(TerminationReason::Closed(reason.into()));
    }

    /// Who is on the other side.
    pub(crate) fn proven(&self) -> Proven {
        self.0.proven
    }

    pub(crate) fn member(&self) -> MemberId {
        self.0.proven.member
    }

    /// The peer's process start that this bond is with.
    pub(crate) fn boot(&self) -> BootId {
        self.0.boot
    }

    /// Whether heartbeats are missed at the moment.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent_for().is_some()
    }

    /// For how long the peer has been silent, beyond the heartbeats that it missed.
    pub(crate) fn silent_for(&self) -> Option<Duration> {
        match self.0.silent.load(Ordering::Relaxed) {
            0 => None,
            since => Some(self.age().saturating_sub(Duration::from_nanos(since))),
        }
    }

    pub(crate) fn age(&self) -> Duration {
        self.0.formed.elapsed()
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0.link
    }

    /// One request over a lane. Waits for room while too much is outstanding; answers may come out
    /// of order. Dropping the call forgets the answer, not the request.
    pub(crate) async fn request(&self, lane: Lane, body: Bytes) -> Result<Bytes, LaneError> {
        self.0.lanes[lane as usize].request(self, body).await
    }

    /// Opens a stream of its own to the peer's [`Service::stream`](super::Service::stream).
    pub(crate) async fn open_stream(&self, kind: StreamKind) -> Result<BondStream, LaneError> {
        self.open(Opening::of(kind)).await
    }

    /// Ends the bond, unless it has ended. What ends it first is what everybody is told.
    pub(crate) fn end(&self, reason: TerminationReason) {
        self.0.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
    }

    /// Hands an encoded control message to the worker. A peer that does not take them is dropped.
    pub(crate) fn tell(&self, message: Bytes) {
        if self.0.outbox.try_send(message).is_err() {
            self.end(TerminationReason::Protocol(
                "control messages pile up".into(),
            ));
        }
    }

    /// Tells the peer that this node is about to stop; waits until it has heard, or the bond is
    /// over.
    pub(crate) async fn depart(&self, departure: Bytes) {
        self.0.departing.store(true, Ordering::Relaxed);
        self.tell(departure);
        let mut parted = self.0.parted.subscribe();
        tokio::select! {
            _ = parted.wait_for(|parted| *parted) => {}
            _ = self.terminated() => {}
        }
    }

    pub(super) fn is_departing(&self) -> bool {
        self.0.departing.load(Ordering::Relaxed)
    }

    pub(super) fn set_parted(&self) {
        self.0.parted.send_replace(true);
    }

    pub(super) fn set_silent(&self, silent: bool) {
        let since = u64::try_from(self.age().as_nanos()).unwrap_or(u64::MAX);
        let since = if silent { since.max(1) } else { 0 };
        self.0.silent.store(since, Ordering::Relaxed);
    }

    pub(super) fn set_rtt(&self, rtt: Duration) {
        let nanos = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
        self.0.rtt.store(nanos.max(1), Ordering::Relaxed);
    }

    pub(super) fn new(
        proven: Proven,
        boot: BootId,
        link: Link,
        tasks: TaskTracker,
    ) -> (Self, mpsc::Receiver<Bytes>) {
        let (outbox, told) = mpsc::channel(OUTBOX);
        let bond = Self(Arc::new(Inner {
            proven,
            boot,
            link,
            formed: Instant::now(),
            rtt: AtomicU64::new(0),
            silent: AtomicU64::new(0),
            ended: watch::Sender::new(None),
            departing: AtomicBool::new(false),
            parted: watch::Sender::new(false),
            outbox,
            tasks,
            lanes: [Lane::Vote, Lane::Forward].map(|lane| Arc::new(LaneClient::new(lane))),
        }));
        (bond, told)
    }

    /// Opens a stream with its priority and its head.
    pub(super) async fn open(&self, opening: Opening) -> Result<BondStream, LaneError> {
        let opened = async {
            let mut stream = self.0.link.open().await?;
            stream.send.set_priority(opening.priority());
            stream.send.write_frame(opening.encode(self.id())).await?;
            Ok(stream)
        };
        tokio::select! {
            biased;
            _ = self.terminated() => Err(LaneError::Terminated),
            opened = opened => opened.map_err(LaneError::Failed),
        }
    }
}

/// Shows who is on the other side.
impl fmt::Debug for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bond")
            .field("id", &self.id())
            .field("peer", &self.peer())
            .field("ended", &*self.0.ended.borrow())
            .finish()
    }
}

/// Why a bond ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TerminationReason {
    /// This side closed it, for this reason.
    Closed(String),
    /// The peer closed it, for this reason.
    ClosedByPeer(String),
    /// No heartbeat was answered for `Timing::bond_timeout`.
    Silence,
    /// The connection is gone, with the transport's word on why.
    LinkLost(String),
    /// A newer bond with the same peer took its place.
    Replaced,
    /// The peer broke the protocol.
    Protocol(String),
}

impl fmt::Display for TerminationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(reason) => write!(f, "closed here: {reason}"),
            Self::ClosedByPeer(reason) => write!(f, "closed by the peer: {reason}"),
            Self::Silence => f.write_str("the peer answered no heartbeat for too long"),
            Self::LinkLost(why) => write!(f, "the connection is gone: {why}"),
            Self::Replaced => f.write_str("a newer bond with the same peer took its place"),
            Self::Protocol(what) => write!(f, "the peer broke the protocol: {what}"),
        }
    }
}
