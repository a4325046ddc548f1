//! One connection with one outsider, and the halves of its streams.

use std::net::SocketAddr;

use bytes::Bytes;
use iroh::{TransportAddr, endpoint::VarInt};
use tokio::io::{AsyncRead, AsyncWrite};

use super::SESSION_WINDOW;
use crate::{
    identity::{PeerAddr, PeerId},
    net::WireError,
};

/// The most bytes that one read takes from a stream.
const READ_MAX: usize = 64 * 1024;

/// A shared handle to one connection, which ends with [`Connection::close`] or with the last handle
/// and the last stream.
#[derive(Clone)]
pub(crate) struct Connection(iroh::endpoint::Connection<iroh::endpoint::HandshakeCompleted>);

impl Connection {
    pub(super) fn new(
        connection: iroh::endpoint::Connection<iroh::endpoint::HandshakeCompleted>,
    ) -> Self {
        Self(connection)
    }

    /// The authenticated name of the other end.
    pub(crate) fn remote(&self) -> PeerId {
        PeerId::from_bytes(*self.0.remote_id().as_bytes())
    }

    /// The addresses on which the other end is reached at the moment.
    pub(crate) fn remote_addr(&self) -> PeerAddr {
        let paths = self.0.paths();
        let mut addrs = Vec::<SocketAddr>::new();
        let mut relay = None;
        for path in paths.iter() {
            match path.remote_addr() {
                TransportAddr::Ip(addr) => addrs.push(*addr),
                TransportAddr::Relay(url) => relay = Some(url.to_string()),
                _ => {}
            }
        }
        let mut addr = PeerAddr::new(self.remote(), addrs);
        addr.relay = relay;
        addr.capped()
    }

    /// Opens a stream. The other end sees it with the first bytes written.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn open(&self) -> Result<(Send, Recv), WireError> {
        let (send, recv) = self.0.open_bi().await.map_err(WireError::new)?;
        Ok((Send::new(send), Recv(recv)))
    }

    /// The next stream the other end opens. Cancel-safe.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn accept(&self) -> Result<(Send, Recv), WireError> {
        let (send, recv) = self.0.accept_bi().await.map_err(WireError::new)?;
        Ok((Send::new(send), Recv(recv)))
    }

    /// Like [`Connection::accept`], as plain bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn accept_bytes(
        &self,
    ) -> Result<
        (
            impl AsyncRead + Unpin + std::marker::Send,
            impl AsyncWrite + Unpin + std::marker::Send,
        ),
        WireError,
    > {
        let (send, recv) = self.0.accept_bi().await.map_err(WireError::new)?;
        Ok((recv, send))
    }

    /// Like [`Connection::open`], as plain bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn open_bytes(
        &self,
    ) -> Result<
        (
            impl AsyncRead + Unpin + std::marker::Send + use<>,
            impl AsyncWrite + Unpin + std::marker::Send + use<>,
        ),
        WireError,
    > {
        let (send, recv) = self.0.open_bi().await.map_err(WireError::new)?;
        Ok((recv, send))
    }

    /// The other end is admitted: full windows.
    pub(crate) fn admit(&self) {
        self.0.set_receive_window(VarInt::from_u32(SESSION_WINDOW));
    }

    /// Ends the connection at once. Idempotent.
    pub(crate) fn close(&self, reason: &str) {
        self.0.close(VarInt::from_u32(0), reason.as_bytes());
    }

    /// Whether the connection has ended.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.0.close_reason().is_some()
    }

    /// Waits for the end of the connection, and says why.
    pub(crate) async fn closed(&self) -> WireError {
        WireError::new(self.0.closed().await)
    }
}

/// The sending half of a stream.
///
/// Dropped before [`Send::finish`], also by a task that is cancelled, it is reset: an end in good
/// order that comes too early makes a stock node of line 0.6 read on for ever.
pub(crate) struct Send {
    stream: iroh::endpoint::SendStream,
    finished: bool,
}

impl Send {
    fn new(stream: iroh::endpoint::SendStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }

    /// Takes some of `chunks` from the front, at least one byte; what is left stays there.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The stream or the connection is gone.
    pub(crate) async fn write(&mut self, chunks: &mut &mut [Bytes]) -> Result<(), WireError> {
        let written = self.stream.write_many_chunks(chunks).await;
        written.map(drop).map_err(WireError::of)
    }

    /// Writes all of it. Not cancel-safe.
    ///
    /// # Errors
    /// The stream or the connection is gone.
    pub(crate) async fn write_all(&mut self, bytes: Bytes) -> Result<(), WireError> {
        self.stream.write_chunk(bytes).await.map_err(WireError::of)
    }

    /// No more will be written.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
        // Fails only where it was finished or reset before.
        let _ = self.stream.finish();
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only where the stream or the connection is gone.
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

/// The receiving half of a stream.
pub(crate) struct Recv(iroh::endpoint::RecvStream);

impl Recv {
    /// What has arrived, at most 64 KiB; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// The stream or the connection is gone.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, WireError> {
        self.0.read_chunk(READ_MAX).await.map_err(WireError::of)
    }
}
