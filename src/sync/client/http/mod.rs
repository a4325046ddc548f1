//! The client's protocol over HTTP/1.1, for networks that pass nothing else.
//!
//! ```text
//! client                                              member
//!   POST {url}/quorate/logs/1   chunked body  ----->  one request, one session, one connection
//!                               <-----  200, chunked body, at once
//!        inside both bodies: one TLS 1.3 session, in which each end proves its own Ed25519 key
//!        inside that: the frames of the client's protocol, as over QUIC
//! ```
//!
//! HTTP is the carrier and no more. Who is at the other end, and that nobody on the way has read or
//! changed a byte, is proven end to end by the session inside, with the keys that QUIC has: raw
//! public keys (RFC 7250), the name of the protocol in the network as ALPN, no resumption, no early
//! data. So a proxy or a middleman, also one that ends the TLS of an `https` URL, can delay and
//! cut, and see that a session is there, where it goes and how much it carries; it cannot read,
//! forge an answer, or pass for a client. That is why the certificate of an `https` URL is not
//! looked at: it would prove nothing that the session does not, and networks that pass nothing else
//! often put one of their own there.
//!
//! Both bodies flow at once, and a full socket holds back whoever writes. A proxy must pass them on
//! as they come: nginx needs `proxy_http_version 1.1`, `proxy_buffering off` and
//! `proxy_request_buffering off`. One that collects the request first lets nothing through: the
//! member ends the session after ten seconds, and the client goes on with the next way.
//!
//! A client that has vanished, as when a cable is pulled, is given up after a minute in which it
//! has acknowledged nothing; on Linux and Android, elsewhere when the system does.
//!
//! # What a stranger costs
//! One connection of [`Place::sessions_max`](super::Place::sessions_max), at most 64 KiB of buffer
//! in each direction, 64 header fields, and ten seconds until it has proven a key.

mod body;
mod dial;
mod listen;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use std::{net::SocketAddr, sync::Arc};

use self::{dial::HttpDial, listen::HttpListener};
use super::{
    dial::Dial,
    transport::{Identity, ListenFuture, Listener, Place, Transport},
};

/// Where a member takes sessions, below the URL's own path. Frozen: another protocol gets another
/// one.
const PATH: &str = "/quorate/logs/1";
/// What is buffered of one connection in each direction, headers included.
const BUFFER: usize = 64 * 1024;
/// Header fields of a request or a response.
const HEADERS_MAX: usize = 64;

/// The transport over HTTP/1.1, with the feature `http`. Its addresses are URLs, `http` or `https`.
///
/// Both ends prove their keys inside of it, and all is encrypted there, as over QUIC: it needs no
/// certificate, and a proxy in between cannot read or change anything. A proxy must pass bodies on
/// as they come; see the guide in the README.
///
/// A client that takes nothing for a minute is cut off, also where
/// [`ServeLimits::stalled_after`](super::ServeLimits::stalled_after) is longer.
///
/// A [`LogServer`](super::LogServer) listens with it beside QUIC when it is among its
/// [`Transports`](super::Transports), and so does the door of a member
/// ([`Node::serve_sync`](crate::Node::serve_sync)) when it is among those of
/// [`SyncOptions::transports`](crate::sync::SyncOptions::transports); their tickets name the URLs.
/// A client uses it without being told, where a ticket names one.
///
/// ```
/// use quorate::sync::{Http, Transports};
///
/// let http = Http::new()
///     .bind("127.0.0.1:8080".parse()?)
///     .url("https://logs.example.org/cats"); // behind a proxy that ends TLS
/// let transports = Transports::none().with("http", http);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Http {
    bind: Option<SocketAddr>,
    urls: Vec<String>,
}

impl Http {
    /// Listens on a free port of every IPv4 interface, and is called by that address. A start with
    /// the kept settings of the one before ([`LogServer::settings`](super::LogServer::settings))
    /// finds its port and URLs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens here; port 0 is any free one, and the same after a restart.
    #[must_use]
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = Some(addr);
        self
    }

    /// Is called by this URL from outside, as where a proxy stands before it; can be given several
    /// times. The proxy hands `{url}/quorate/logs/1` on as `/quorate/logs/1`.
    #[must_use]
    pub fn url(mut self, url: &str) -> Self {
        self.urls.push(url.to_owned());
        self
    }
}

impl Transport for Http {
    fn dialler(&self, identity: Identity) -> Arc<dyn Dial> {
        Arc::new(HttpDial::new(identity))
    }

    fn listen(&self, place: Place) -> ListenFuture<'_> {
        Box::pin(async move {
            let listener = HttpListener::open(self.bind, &self.urls, &place).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }
}
