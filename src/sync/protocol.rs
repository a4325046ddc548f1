//! What a sync protocol is: two roles, a topic to agree on, and data for whoever asked for it.
//!
//! The log sync of this crate is one protocol; a program can write others, and mount them at a
//! member's door ([`Mount`](super::Mount)) or run them over a stream of its own. A protocol knows
//! neither the transport nor what its data means: it is given a stream in both directions and a
//! sink.

use std::{
    error::Error,
    fmt::{self, Debug},
    future::Future,
    hash::Hash,
    io,
    pin::Pin,
    sync::Arc,
};

use futures_util::Sink;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::with_causes;

/// What a [`SyncProtocol`] runs as.
pub type SyncFuture<'a> = Pin<Box<dyn Future<Output = Result<(), SyncError>> + Send + 'a>>;
/// The writing half of a session's stream.
pub type SyncWrite<'a> = &'a mut (dyn AsyncWrite + Send + Unpin);
/// The reading half of a session's stream.
pub type SyncRead<'a> = &'a mut (dyn AsyncRead + Send + Unpin);
/// Where a session puts what it received. Waits when the application is slow.
pub type SyncSink<'a, T> = &'a mut (dyn Sink<FromSync<T>, Error = SyncError> + Send + Unpin);

/// What two peers agree to sync: a name, a filter, anything that both understand.
///
/// It goes over the wire as an unproven peer sends it, so decoding it must be safe for any bytes.
pub trait TopicQuery:
    Clone + Debug + Eq + Hash + Send + Sync + Serialize + DeserializeOwned + 'static
{
}

impl<T> TopicQuery for T where
    T: Clone + Debug + Eq + Hash + Send + Sync + Serialize + DeserializeOwned + 'static
{
}

/// What a topic means to the program: which of its data belongs to it.
pub trait TopicMap<T: TopicQuery, D>: Debug + Send + Sync + 'static {
    /// The data of this topic, or `None` for a topic that is not served here. May wait.
    fn get<'a>(&'a self, topic: &'a T) -> Pin<Box<dyn Future<Output = Option<D>> + Send + 'a>>;
}

/// A two-sided sync protocol for topics of type `T`, as a program brings it along.
///
/// # Contract
/// - A session has two phases. In the first the sides agree on the topic, in the second they
///   exchange data. Between the two, each side puts exactly one
///   [`FromSync::HandshakeSuccess`] into its sink, and [`FromSync::Data`] only after it.
/// - The stream is the session's alone; who is at the other end was proven before. The initiator
///   writes first: until then the acceptor is not called.
/// - A session ends when its future does, or when it is dropped: both can happen at any time and
///   must leave nothing half done that another session would see. Before it returns `Ok` it must
///   have flushed what it wrote.
/// - It must end on its own where the remote does nothing: its caller sets a deadline on the
///   whole session, not on each step.
/// - Many sessions run at once on one value.
/// - An error says whose fault it is, see [`SyncError`].
///
/// It is kept as `Arc<dyn SyncProtocol<T>>`: what crosses it is `dyn`, so that a node can hold
/// protocols of which it knows only the name.
pub trait SyncProtocol<T: TopicQuery>: Debug + Send + Sync + 'static {
    /// Names the protocol, with its version. Part of the ALPN that peers meet on, so both sides
    /// must give the same; at most 128 bytes.
    fn name(&self) -> &'static str;

    /// Runs the session on the side that opened the stream.
    ///
    /// # Errors
    /// The session failed; the error says whose fault it is.
    fn initiate<'a>(
        self: Arc<Self>,
        topic: T,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
        sink: SyncSink<'a, T>,
    ) -> SyncFuture<'a>;

    /// Runs the session on the side that the stream was opened to, and learns the topic.
    ///
    /// # Errors
    /// The session failed; the error says whose fault it is.
    fn accept<'a>(
        self: Arc<Self>,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
        sink: SyncSink<'a, T>,
    ) -> SyncFuture<'a>;
}

/// What a session gives to the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromSync<T> {
    /// Both sides agreed to sync this. Exactly once, before any data.
    HandshakeSuccess(T),
    /// Something of the topic that the remote sent.
    Data {
        /// What says who wrote it and where it belongs, as the protocol encodes it.
        header: Vec<u8>,
        /// What was written, unless the remote does not have it any more.
        payload: Option<Vec<u8>>,
    },
}

/// Why a session failed, and whose fault that is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The remote did what the protocol does not allow, or went away in the middle. Try again
    /// later, maybe with another peer.
    #[error("the remote did not keep to the protocol: {0}")]
    UnexpectedBehaviour(#[source] Cause),
    /// The remote sent bytes that mean nothing here: it is broken, hostile or of another version.
    #[error("the remote sent what can not be decoded: {0}")]
    InvalidEncoding(#[source] Cause),
    /// It failed on this side. To try again with another peer is of no use.
    #[error("the session failed on this side: {0}")]
    Critical(#[source] Cause),
}

/// The cause behind a [`SyncError`], whatever it was.
pub type Cause = Box<dyn Error + Send + Sync>;

impl SyncError {
    /// [`SyncError::UnexpectedBehaviour`] for this reason.
    pub fn unexpected(cause: impl Into<Cause>) -> Self {
        Self::UnexpectedBehaviour(cause.into())
    }

    /// [`SyncError::InvalidEncoding`] for this reason.
    pub fn encoding(cause: impl Into<Cause>) -> Self {
        Self::InvalidEncoding(cause.into())
    }

    /// [`SyncError::Critical`] for this reason.
    pub fn critical(cause: impl Into<Cause>) -> Self {
        Self::Critical(cause.into())
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::UnexpectedBehaviour(_) | Self::InvalidEncoding(_) => Fault::Remote,
            Self::Critical(_) => Fault::Ours,
        }
    }
}

/// Whose fault a failed session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The peer at the other end, or the way to it.
    Remote,
    /// This side.
    Ours,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Remote => "the remote's fault",
            Self::Ours => "this side's fault",
        })
    }
}

/// A stream that breaks was broken by the remote, or on the way to it; anything else is an
/// input and output error of this machine.
impl From<io::Error> for SyncError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::TimedOut
            | io::ErrorKind::UnexpectedEof => Self::unexpected(with_causes(&error)),
            io::ErrorKind::InvalidData => Self::encoding(error),
            _ => Self::critical(error),
        }
    }
}
