//! The wire: connections between nodes and the frames on their streams, whatever carries them.
//!
//! Everything above sees these traits only, so that the transport can be replaced by one in memory.

pub(crate) mod frame;
mod port;
pub(crate) mod quic;

use std::{
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub(crate) use self::{
    frame::{BondStream, RecvStream, SendStream},
    port::at_former_port,
    quic::{ALPN, Quic, QuicOptions, RelayChoice},
};
use crate::identity::{PeerAddr, PeerId};

/// Streams that a peer may have open on a connection before it has proven a key.
pub(crate) const STRANGER_STREAMS: u32 = 2;

/// A node's door to the wire.
///
/// # Contract
/// - A connection is handed out only after both ends have authenticated each other's [`PeerId`] in
///   a completed handshake; never in 0-RTT.
/// - A fresh connection lets the peer open [`STRANGER_STREAMS`] streams and buffer a few KiB, until
///   [`Connection::trust`] says more.
pub(crate) trait Transport: Send + Sync + 'static {
    /// This node's name on the wire.
    fn peer_id(&self) -> PeerId;

    /// Where this node can be dialled at the moment.
    fn local_addr(&self) -> PeerAddr;

    /// Waits until [`Transport::local_addr`] may have changed; pending for ever if it cannot.
    fn addr_changed(&self) -> BoxFuture<'_, ()>;

    /// Connects to a peer, trying all of its addresses at once. Has no deadline of its own.
    fn dial<'a>(&'a self, addr: &'a PeerAddr) -> BoxFuture<'a, Result<Link, WireError>>;

    /// The next peer that knocks; `None` once the transport is closed. Cancel-safe.
    fn accept(&self) -> BoxFuture<'_, Option<Box<dyn Incoming>>>;

    /// Closes every connection, so that peers notice at once, and gives the sockets back.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Somebody knocks; nothing is known of them yet.
pub(crate) trait Incoming: Send {
    /// Completes the handshake.
    fn accept(self: Box<Self>) -> BoxFuture<'static, Result<Link, WireError>>;

    /// Turns them away with the least effort.
    fn refuse(self: Box<Self>);
}

/// A shared handle to one connection.
pub(crate) type Link = Arc<dyn Connection>;

/// One authenticated connection to one peer.
pub(crate) trait Connection: Send + Sync + 'static {
    /// The authenticated name of the other end.
    fn remote(&self) -> PeerId;

    /// Where the other end is, for logs.
    fn describe(&self) -> String;

    /// 32 bytes that both ends of this very connection derive alike, and nobody else can.
    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], WireError>;

    /// Opens a bidirectional stream; waits while the peer allows no more. The peer sees it with the
    /// first bytes written.
    fn open(&self) -> BoxFuture<'_, Result<BondStream, WireError>>;

    /// The next stream the peer opens. Cancel-safe.
    fn accept(&self) -> BoxFuture<'_, Result<BondStream, WireError>>;

    /// Lets a peer that has proven a key have this many streams, and full windows.
    fn trust(&self, streams: u32);

    /// Ends the connection; the peer is told the code and the reason. Idempotent.
    fn close(&self, code: u32, reason: &str);

    /// Waits for the end of the connection, and says why.
    fn closed(&self) -> BoxFuture<'_, WireError>;

    /// Whether it has ended already.
    fn is_closed(&self) -> bool;
}

/// The sending half of a stream, as a transport provides it.
pub(crate) trait RawSend: Send + Sync {
    /// Takes as much of `chunks` as there is room for, from the front: a chunk taken whole is left
    /// behind, one taken in part is cut. Ready once at least one byte was taken. A pending call has
    /// taken nothing.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut &mut [Bytes],
    ) -> Poll<Result<(), WireError>>;

    /// No more will be written.
    fn finish(&mut self);

    /// Drops what was not sent yet and tells the peer so.
    fn reset(&mut self);

    /// Data of streams with a higher number is sent first. Fresh streams have 0.
    fn set_priority(&self, priority: i32);
}

/// The receiving half of a stream, as a transport provides it.
pub(crate) trait RawRecv: Send + Sync {
    /// Fills `chunks` from the front with what has arrived and says how many were filled; `None` at
    /// the end of the stream. A pending call has taken nothing.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, WireError>>;
}

/// The wire failed us: the connection or the stream is gone, in words for the log.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WireError(Arc<str>);

impl WireError {
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self(what.to_string().into())
    }

    /// Of an error, with what is behind it: of a lost connection, why it was closed.
    pub(crate) fn of(error: impl Error) -> Self {
        Self::new(with_causes(&error))
    }
}

/// An error and its causes in one line, each that says something new.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !told.contains(&more) {
            told.push_str(": ");
            told.push_str(&more);
        }
        cause = error.source();
    }
    told
}

impl fmt::Debug for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireError({})", self.0)
    }
}
