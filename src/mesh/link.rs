//! One connection to one peer, and the task that owns it: what the peer may open on it, and when it
//! is given up.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{acceptor, group::Group, links::Links};
use crate::{
    bond::{Bond, BondId, Channel, Credentials, Service, TerminationReason},
    identity::PeerId,
    net::{self, WireError},
};

/// What a connection exports for the proofs on it.
const EKM_LABEL: &[u8] = b"EXPORTER-quorate-bond-1";

/// What a connection exports for its own name.
const ID_LABEL: &[u8] = b"EXPORTER-quorate-link-1";

/// Streams of the peer that may be in their first steps at once, on a proven link. Before the
/// proof it is one.
const OPENING_MAX: usize = 64;

/// Failed handshakes of the peer after which a link without a proof is closed.
const FAILURES_MAX: u32 = 3;

/// How long a link may stay without a proof, and a proven one without a bond.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// How long the last refusal may take to leave before a stranger's link is closed.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Streams for the handshakes of groups that are not bonded yet.
const STREAMS_SPARE: u32 = 16;

/// Streams of one bond: control, two lanes, append and snapshot, and as many that are just being
/// replaced.
const STREAMS_A_BOND: u32 = 8;

/// Why a connection was closed, as its peer reads it.
pub(super) mod code {
    pub(in crate::mesh) const SHUTDOWN: u32 = 1;
    pub(in crate::mesh) const REPLACED: u32 = 2;
    pub(in crate::mesh) const REDUNDANT: u32 = 3;
    pub(in crate::mesh) const STRANGER: u32 = 4;
    pub(in crate::mesh) const IDLE: u32 = 5;
}

/// A connection's name, the same on both sides.
pub(super) type LinkId = [u8; 16];

/// One connection to one peer.
///
/// # Invariants
/// - `permit` is held by an accepted link without a proof, and by no other.
/// - `seats` are the live bonds whose control stream runs over this connection.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) channel: Channel,
    pub(super) connection: net::Link,
    /// Whether this side has dialled it.
    pub(super) dialled: bool,
    proven: watch::Sender<bool>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    failures: AtomicU32,
    streams: AtomicU32,
    seats: watch::Sender<HashMap<BondId, Seat>>,
    hints: Mutex<Hints>,
    /// Before the proof our own handshakes run one at a time, as the peer takes them.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// Handshakes of ours that run or wait on this link.
    pub(super) ours: AtomicUsize,
}

/// A bond on this connection, and who serves what the peer opens for it.
#[derive(Clone)]
pub(super) struct Seat {
    pub(super) bond: Bond,
    pub(super) service: Arc<dyn Service>,
}

/// Which group the peer means by which hint on this connection, as of a generation of the node's
/// table of groups.
#[derive(Default)]
struct Hints {
    generation: u64,
    groups: HashMap<[u8; 16], Arc<Group>>,
}

impl Link {
    pub(super) fn new(
        local: PeerId,
        connection: net::Link,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Arc<Self>, WireError> {
        let ekm = connection.export(EKM_LABEL, net::ALPN)?;
        let mut id = [0; 16];
        id.copy_from_slice(&connection.export(ID_LABEL, net::ALPN)?[..16]);
        Ok(Arc::new(Self {
            id,
            channel: Channel {
                ekm,
                local,
                remote: connection.remote(),
            },
            connection,
            dialled: permit.is_none(),
            proven: watch::Sender::new(false),
            permit: Mutex::new(permit),
            failures: AtomicU32::new(0),
            streams: AtomicU32::new(net::STRANGER_STREAMS),
            seats: watch::Sender::default(),
            hints: Mutex::default(),
            gate: tokio::sync::Mutex::new(()),
            ours: AtomicUsize::new(0),
        }))
    }

    pub(super) fn peer(&self) -> PeerId {
        self.channel.remote
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.connection.is_closed()
    }

    pub(super) fn is_proven(&self) -> bool {
        *self.proven.borrow()
    }

    /// The peer has proven a key on this connection: it is no stranger any more.
    pub(super) fn prove(&self) {
        self.permit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if !self.proven.send_replace(true) {
            self.allow(STREAMS_SPARE);
        }
    }

    /// A handshake that the peer began came to nothing.
    pub(super) async fn failed(&self) {
        if self.is_proven() || self.failures.fetch_add(1, Ordering::Relaxed) + 1 < FAILURES_MAX {
            return;
        }
        tokio::time::sleep(LAST_WORD).await;
        if !self.is_proven() {
            self.connection.close(code::STRANGER, "too many failures");
        }
    }

    /// Seats a bond; what the peer opens for it is served from now on.
    pub(super) fn seat(&self, seat: Seat) {
        self.seats.send_modify(|seats| {
            seats.insert(seat.bond.id(), seat);
        });
        let bonds = self.bonds() as u32;
        self.allow(STREAMS_SPARE + bonds.saturating_mul(STREAMS_A_BOND));
    }

    pub(super) fn unseat(&self, bond: BondId) {
        self.seats
            .send_if_modified(|seats| seats.remove(&bond).is_some());
    }

    pub(super) fn bonds(&self) -> usize {
        self.seats.borrow().len()
    }

    /// The bond of this id, also if it comes to be within `patience`: its first streams may
    /// overtake the word that it exists.
    pub(super) async fn seated(&self, bond: BondId, patience: Duration) -> Option<Seat> {
        let mut seats = self.seats.subscribe();
        let found = seats.wait_for(|seats| seats.contains_key(&bond));
        let seats = tokio::time::timeout(patience, found).await.ok()?.ok()?;
        seats.get(&bond).cloned()
    }

    /// The group that the peer means by this hint.
    pub(super) fn group_of(&self, hint: &[u8; 16], links: &Links) -> Option<Arc<Group>> {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((generation, groups)) = links.groups_since(hints.generation) {
            let named = |group: Arc<Group>| {
                let credentials: &Credentials = group.credentials();
                (
                    credentials.hint(&self.channel.ekm, &self.channel.remote),
                    group,
                )
            };
            *hints = Hints {
                generation,
                groups: groups.into_iter().map(named).collect(),
            };
        }
        hints.groups.get(hint).cloned()
    }

    /// Only ever raised: streams that end give their room back by themselves.
    fn allow(&self, streams: u32) {
        if self.streams.fetch_max(streams, Ordering::Relaxed) < streams {
            self.connection.trust(streams);
        }
    }
}

/// The link's task: takes the streams that the peer opens, until the connection ends.
pub(super) async fn tend(links: Links, link: Arc<Link>) {
    let error = watch_over(&links, &link).await;
    tracing::debug!(peer = %link.peer().short(), %error, "link closed");
    // Bonds that are just being seated find the connection closed and end by themselves.
    let seats: Vec<Seat> = link.seats.borrow().values().cloned().collect();
    for seat in seats {
        seat.bond
            .end(TerminationReason::LinkLost(error.to_string()));
    }
    links.remove(&link);
}

async fn watch_over(links: &Links, link: &Arc<Link>) -> WireError {
    let mut opening: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut proven = link.proven.subscribe();
    let mut closed = link.connection.closed();
    let mut linger = tokio::time::interval_at(Instant::now() + LINGER, LINGER);
    let mut idle = false;
    loop {
        let room = if link.is_proven() { OPENING_MAX } else { 1 };
        tokio::select! {
            error = &mut closed => return error,
            stream = link.connection.accept(), if opening.len() < room => match stream {
                Ok(stream) => opening.push(Box::pin(acceptor::open(
                    links.clone(),
                    Arc::clone(link),
                    stream,
                ))),
                // The connection is closing; its own word says why.
                Err(_) => return closed.await,
            },
            Some(()) = opening.next() => {}
            _ = proven.changed() => {}
            _ = linger.tick() => {
                let used = link.bonds() + link.ours.load(Ordering::Relaxed) + opening.len() > 0;
                if !link.is_proven() {
                    link.connection.close(code::STRANGER, "no proof");
                } else if !used && idle {
                    link.connection.close(code::IDLE, "no bond");
                }
                idle = !used;
            }
        }
    }
}
