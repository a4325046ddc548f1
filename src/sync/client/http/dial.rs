//! The client's side: one connection, one request, one session.

use std::{sync::Arc, time::Duration};

use axum::http::{Uri, header};
use futures_util::future::select_ok;
use hyper::{Request, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    super::{
        super::member_addr::MemberAddr,
        dial::{Dial, DialError, DialFuture, Dialled},
        transport::Identity,
    },
    BUFFER, HEADERS_MAX, PATH,
    body::{BodyReader, OutgoingBody, discard, outgoing},
    socket::{self, GONE_AFTER},
    tls,
};
use crate::identity::PeerId;

/// How long the last words may take after a session was dropped.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Dials members over HTTP.
#[derive(Debug)]
pub(super) struct HttpDial {
    identity: Identity,
}

impl HttpDial {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity }
    }

    /// All URLs at once; the first that answers is taken.
    async fn connect(&self, member: &MemberAddr) -> Result<Dialled, DialError> {
        let urls = member.ways().filter_map(|(_, it)| Url::parse(it).ok());
        let dialling = urls.map(|url| Box::pin(self.open(url, member.peer())));
        let dialling: Vec<_> = dialling.collect();
        if dialling.is_empty() {
            return Err(DialError::new("it has no URL"));
        }
        select_ok(dialling).await.map(|(dialled, _)| dialled)
    }

    async fn open(&self, url: Url, member: PeerId) -> Result<Dialled, DialError> {
        let tcp = TcpStream::connect((&url.host[..], url.port)).await;
        let tcp = tcp.map_err(DialError::new)?;
        socket::set(&tcp, GONE_AFTER).map_err(DialError::new)?;
        if !url.secure {
            return self.ask(tcp, &url, member).await;
        }
        let name = ServerName::try_from(url.host.clone()).map_err(DialError::new)?;
        let outside = TlsConnector::from(Arc::new(tls::outside()?));
        let tls = outside.connect(name, tcp).await.map_err(DialError::new)?;
        self.ask(tls, &url, member).await
    }

    async fn ask<S>(&self, stream: S, url: &Url, member: PeerId) -> Result<Dialled, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER).max_headers(HEADERS_MAX);
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (mut requests, connection) = shaken.map_err(DialError::new)?;
        let (dropped, rest) = oneshot::channel();
        tokio::spawn(carry(connection, rest));

        let (write, body) = outgoing();
        let request = Request::post(&url.path)
            .header(header::HOST, &url.authority)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CACHE_CONTROL, "no-store, no-transform")
            .body(body)
            .map_err(DialError::new)?;
        let answer = requests.send_request(request).await;
        let answer = answer.map_err(DialError::new)?;
        if answer.status() != StatusCode::OK {
            return Err(DialError::new(format_args!("HTTP {}", answer.status())));
        }
        let read = BodyReader::new(answer.into_body(), Some(dropped));
        let session = TlsConnector::from(Arc::new(tls::client(&self.identity, member)?));
        // The name is not sent: the key is what counts.
        let name = ServerName::try_from("quorate").map_err(DialError::new)?;
        let session = session.connect(name, tokio::io::join(read, write)).await;
        let session = session.map_err(DialError::new)?;
        tls::check_network(&self.identity.network, session.get_ref().1.alpn_protocol())?;
        let (read, write) = tokio::io::split(session);
        Ok(Dialled {
            read: Box::new(read),
            write: Box::new(write),
        })
    }
}

impl Dial for HttpDial {
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a> {
        Box::pin(self.connect(member))
    }
}

/// Carries the connection until it ends, or the session was dropped.
async fn carry<S>(
    connection: http1::Connection<TokioIo<S>, OutgoingBody>,
    rest: oneshot::Receiver<Incoming>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let dropped = async {
        // What is written goes out, if the session was ended; one that was not is cut.
        if let Ok(body) = rest.await {
            let _ = timeout(LAST_WORDS, discard(body)).await;
        }
    };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a member has ended");
            }
        }
        () = dropped => {}
    }
}

/// Where a member takes sessions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    secure: bool,
    /// As it is asked for: without the brackets of an IPv6 address.
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Url {
    /// # Errors
    /// It is no URL of `http` or `https` with a host, or has a query or a user in it.
    pub(super) fn parse(text: &str) -> Result<Self, DialError> {
        let no = || DialError::new(format_args!("{text:?} is no URL of a member"));
        let uri: Uri = text.parse().map_err(|_| no())?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(no()),
        };
        let authority = uri.authority().ok_or_else(no)?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(no());
        }
        let host = authority.host();
        let port = authority.as_str().strip_prefix(host).unwrap_or_default();
        if host.is_empty() || (!port.is_empty() && authority.port_u16().is_none()) {
            return Err(no());
        }
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        Ok(Self {
            secure,
            host: bare.unwrap_or(host).to_owned(),
            port: authority
                .port_u16()
                .unwrap_or(if secure { 443 } else { 80 }),
            authority: authority.to_string(),
            path: format!("{}{PATH}", uri.path().trim_end_matches('/')),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_their_defaults() {
        let read = |text: &str| {
            let url = Url::parse(text).expect("a URL");
            (url.secure, url.host, url.port, url.path)
        };
        let path = |before: &str| format!("{before}/quorate/logs/1");
        assert_eq!(
            read("http://a.example"),
            (false, "a.example".into(), 80, path(""))
        );
        assert_eq!(read("https://a/b/"), (true, "a".into(), 443, path("/b")));
        assert_eq!(
            read("http://[::1]:81/"),
            (false, "::1".into(), 81, path(""))
        );
        for text in [
            "",
            "a",
            "/a",
            "ftp://a",
            "http://",
            "http://a/?b",
            "http://u@a",
            "http://a b",
            "http://a:",
            "http://a:99999",
            "http://[::1]:x",
            "http://:80",
        ] {
            assert!(Url::parse(text).is_err(), "{text:?}");
        }
    }
}
