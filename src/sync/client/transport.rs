//! What carries the client's protocol: a trait, and those of a program by their names.
//!
//! ```text
//!  client: Transports -> dialler -> Dial: the ways to a member, the first that answers
//!  member: Transports -> Listener -> Knock -> Caller: a proven name and a byte stream
//! ```
//!
//! Who is at the other end is proven by the transport, in both directions: the protocol itself
//! speaks of topics and operations alone.

use std::{
    fmt::{self, Debug},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::sleep,
};
use zeroize::Zeroizing;

use super::{
    super::member_addr::{MemberAddr, QUIC},
    dial::{Dial, DialError, DialFuture, Dialled},
    quic::{self, Quic},
};
use crate::identity::PeerId;

/// How long a way has until the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);

/// Carries the client's protocol between programs and members: QUIC, HTTP (with the feature
/// `http`), or one of a program's own.
///
/// # Contract
/// - Each stream is reliable and in order, and what is written waits while the other end does not
///   read. Its end, and that it was cut off, are told apart.
/// - A stream that was dialled goes to whoever has proven the member's name
///   ([`MemberAddr::peer`]), and nobody else can change what it carries.
/// - The [`Caller::peer`] of a stream that came in was proven too.
/// - Dropping both halves of a stream gives everything of it back.
pub trait Transport: Debug + Send + Sync + 'static {
    /// The side of clients. What it dials has the addresses of this transport alone, those that
    /// [`Listener::addrs`] gave.
    fn dialler(&self, identity: Identity) -> Arc<dyn Dial>;

    /// The side of members: listens, until the listener is closed or dropped.
    fn listen(&self, place: Place) -> ListenFuture<'_>;
}

/// As whom a client goes to members, and in which network.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The network: members of another one turn it away.
    pub network: [u8; 32],
    /// The secret key whose name it proves.
    pub secret: Secret,
}

/// What a listener needs to know of the member.
#[derive(Clone, Debug)]
pub struct Place {
    /// The network: clients of another one are turned away.
    pub network: [u8; 32],
    /// The secret key whose name the member proves.
    pub secret: Secret,
    /// Streams that may be under way, or about to be.
    pub sessions_max: usize,
    /// What [`Listener::settings`] said when the member listened last, if it did: what this start
    /// leaves open is as it was then. What of it cannot be read, or cannot be had, is no reason not
    /// to listen: if this fails, it is tried once more without it.
    pub kept: Option<String>,
}

/// A secret key: 32 bytes, wiped when dropped, not printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// A new one.
    #[must_use]
    pub fn generate() -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rand::fill(&mut secret[..]);
        Self(secret)
    }

    /// The name that this key proves.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        quic::peer_of(self.bytes())
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

/// What [`Transport::listen`] runs as.
pub type ListenFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Listener>, ListenError>> + Send + 'a>>;
/// What [`Listener::accept`] runs as.
pub type AcceptFuture<'a> = Pin<Box<dyn Future<Output = Option<Knock>> + Send + 'a>>;
/// Somebody who knocks: runs the handshake, without a deadline of its own. Dropping it turns them
/// away.
pub type Knock = Pin<Box<dyn Future<Output = Result<Caller, DialError>> + Send>>;

/// Where a member listens.
pub trait Listener: Debug + Send + Sync + 'static {
    /// The next one that knocks; `None` once it is closed. Cancel-safe, and never waits for a
    /// handshake.
    fn accept(&self) -> AcceptFuture<'_>;

    /// The addresses to hand to clients, as this transport's dialler understands them.
    fn addrs(&self) -> Vec<String>;

    /// What a restart should find again: where it listens, and how it is called. Kept with the
    /// member's data, and given to the next start as [`Place::kept`]. At most 4 KiB.
    fn settings(&self) -> String;

    /// Takes nobody any more, and gives the socket back. Idempotent.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// A stream that a client has opened.
pub struct Caller {
    /// The client, by the key that it has proven.
    pub peer: PeerId,
    /// What the client sends.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What is sent to the client.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    /// Ready once the client has everything that was sent, and is gone; waited for when both
    /// halves are dropped, for some seconds, or longer where much was sent. Ready before that only
    /// if the client will never be heard of again: then the session ends. Dropping it cuts the
    /// client off.
    pub gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// A transport cannot listen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ListenError(String);

impl ListenError {
    /// For this reason.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// Transports by their names, in the order in which they are tried.
///
/// ```
/// use quorate::sync::{Quic, Transports};
///
/// let transports = Transports::none().with("quic", Quic::new());
/// assert_eq!(transports.names().collect::<Vec<_>>(), ["quic"]);
/// ```
#[derive(Clone, Debug)]
pub struct Transports(Vec<(String, Arc<dyn Transport>)>);

/// Equal are those that hold the same transports, not such as are alike.
impl PartialEq for Transports {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        let same = pairs.all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(&a.1, &b.1));
        same && self.0.len() == other.0.len()
    }
}

impl Eq for Transports {}

/// Every transport that this build has, each as it is by default: what a client needs.
impl Default for Transports {
    fn default() -> Self {
        let built = Self::none().with(QUIC, Quic::new());
        #[cfg(feature = "http")]
        let built = built.with("http", super::http::Http::new());
        built
    }
}

impl Transports {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The same, and this one under this name, behind the others. A name that is taken is taken
    /// over, in its place. Clients and members must call a transport by the same name; tickets
    /// carry names of up to [`MemberAddr::NAME_BYTES_MAX`] bytes.
    #[must_use]
    pub fn with(mut self, name: &str, transport: impl Transport) -> Self {
        let transport: Arc<dyn Transport> = Arc::new(transport);
        match self.0.iter_mut().find(|(it, _)| it == name) {
            Some((_, taken)) => *taken = transport,
            None => self.0.push((name.to_owned(), transport)),
        }
        self
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &name[..])
    }

    /// What dials members by all of them: each way that a member has, the next one a quarter of a
    /// second after the one before or as soon as that failed; the first that answers is taken.
    #[must_use]
    pub fn dialler(&self, identity: &Identity) -> Arc<dyn Dial> {
        let ways = self.0.iter();
        let ways = ways.map(|(name, it)| (name.clone(), it.dialler(identity.clone())));
        Arc::new(AnyWay(ways.collect()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Transport>)> {
        self.0.iter().map(|(name, it)| (&name[..], it))
    }
}

#[derive(Debug)]
struct AnyWay(Vec<(String, Arc<dyn Dial>)>);

impl AnyWay {
    async fn dial(&self, member: &MemberAddr) -> Result<Dialled, DialError> {
        let ways = self.0.iter();
        let mut ways = ways.filter(|(name, _)| !member.addrs(name).is_empty());
        let mut more = true;
        let mut trying = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            if trying.is_empty() || more {
                match ways.next() {
                    Some((name, dial)) => {
                        let only = member.only(name);
                        trying.push(async move { (name, dial.dial(&only).await) });
                    }
                    None if trying.is_empty() => break,
                    None => {}
                }
            }
            more = tokio::select! {
                Some((name, tried)) = trying.next() => match tried {
                    Ok(dialled) => return Ok(dialled),
                    Err(why) => {
                        failures.push(format!("{name}: {why}"));
                        true
                    }
                },
                () = sleep(HEAD_START) => true,
            };
        }
        Err(DialError::new(match failures.is_empty() {
            true => "it has no address for any transport here".to_owned(),
            false => failures.join("; "),
        }))
    }
}

impl Dial for AnyWay {
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a> {
        Box::pin(AnyWay::dial(self, member))
    }
}
