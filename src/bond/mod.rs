//! One proven relation to one peer: the proof of the group's key, the control messages, the
//! heartbeat, and the lanes and streams of requests.

mod handle;
mod handshake;
mod heartbeat;
mod lane;
mod message;
mod prove;
mod stream;
mod worker;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::{
    handle::{Bond, TerminationReason},
    handshake::BondId,
};
pub(crate) use self::{
    handshake::{Channel, Credentials, FRAME_MAX, HANDSHAKE_TIME, Proof, REFUSAL},
    message::{Introduce, Introduction, MESSAGE_BYTES_MAX, Message, PEERS_MAX, Refusal},
    prove::{NotProven, initiate, refuse, respond},
    stream::Opening,
    worker::{Home, Worker},
};
use crate::{
    identity::{MemberId, PeerAddr, PeerId},
    net::{BondStream, WireError},
};

/// What a group does for its bonds. Implemented by Raft's side; called by the bonds' tasks, many at
/// a time.
pub(crate) trait Service: Send + Sync + 'static {
    /// Who this node is in the group; told only to a peer that has proven the key.
    fn introduction(&self) -> Introduction;

    /// Judges a peer that has proven the key, before the bond exists. May sync a genesis. Called on
    /// both sides, at the same time; both must agree. May be called for a bond that then does not
    /// come to be, because another with the same peer was quicker.
    fn admit<'a>(
        &'a self,
        peer: PeerId,
        theirs: &'a Introduction,
    ) -> BoxFuture<'a, Result<(), Refusal>>;

    /// A round trip through the Raft core: true once it has come back. A heartbeat is answered only
    /// then. One call at a time a bond.
    fn pulse(&self) -> BoxFuture<'_, bool>;

    /// Answers a request; `None` refuses it. Runs beside others of the same lane, on the lane's own
    /// task: it may wait, but must not compute for long. Dropped when the bond ends.
    fn request(&self, from: Proven, lane: Lane, body: Bytes) -> BoxFuture<'_, Option<Bytes>>;

    /// Serves a stream that the peer has opened, on a task of its own. Dropped when the bond ends.
    fn stream(&self, from: Proven, kind: StreamKind, stream: BondStream) -> BoxFuture<'_, ()>;

    /// Something happened to a bond. Must not block, nor open or close meshes. The events of one
    /// bond come in order, `Formed` first and `Ended` last; those of two bonds may interleave.
    fn event(&self, event: MeshEvent);

    /// Who is known, ourselves included, has changed: worth keeping as a hint for the next start.
    /// Must not block.
    fn roster_changed(&self, roster: Vec<PeerAddr>);
}

/// Who is on the other side of a bond, proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) peer: PeerId,
    /// Who the peer says it is in the group. What is proven is that `peer` says so, and holds the
    /// key.
    pub(crate) member: MemberId,
    pub(crate) bond: BondId,
}

/// The persistent streams of a bond, one in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Votes and Raft's small messages; goes before everything but heartbeats.
    Vote,
    /// Forwarded commands and reads; goes behind appends.
    Forward,
}

/// What a stream of its own is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// Journal entries and their acknowledgements; between the two lanes.
    Append,
    /// A snapshot; behind everything.
    Snapshot,
}

/// What happens to the bonds of a group.
#[derive(Clone, Debug)]
pub(crate) enum MeshEvent {
    /// A bond exists. It may replace another with the same peer, whose end is told later.
    Formed(Bond),
    /// The peer missed `heartbeats_missed` heartbeats in a row.
    Silent(Bond),
    /// A silent peer answers again.
    Heard(Bond),
    /// The bond is over.
    Ended(Bond, TerminationReason),
    /// The peer is about to stop.
    Departed(Proven),
}

/// A request or a stream did not work out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaneError {
    /// The bond is over. Whether the request was carried out is unknown.
    #[error("the bond is over")]
    Terminated,
    /// Nothing was sent.
    #[error("a request of {bytes} bytes; {max} are allowed")]
    TooLarge {
        /// Bytes wanted.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The peer's service would not answer.
    #[error("the peer refused the request")]
    Refused,
    /// The stream broke. Whether the request was carried out is unknown.
    #[error("the stream broke: {0}")]
    Failed(#[from] WireError),
}

/// An initiator's first frame, for tests that go on wrongly.
#[cfg(test)]
pub(crate) fn hello_for_tests(
    channel: &Channel,
    credentials: &Credentials,
    nonce: [u8; 32],
) -> Bytes {
    handshake::Initiator::start(channel, credentials, nonce).1
}
