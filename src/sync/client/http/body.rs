//! Bodies of HTTP messages as byte streams, and byte streams as bodies.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::PollSender;

/// The most bytes of one chunk.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks that wait for the socket.
const CHUNKS_WAITING: usize = 2;

/// A stream whose bytes are the body that comes with it. Writing waits while the body is not taken.
///
/// The body ends when the stream is shut down. When it is dropped before, the body breaks, so that
/// nobody takes what is there for the whole.
pub(super) fn outgoing() -> (BodyWriter, OutgoingBody) {
    let (to, from) = mpsc::channel(CHUNKS_WAITING);
    (BodyWriter(PollSender::new(to)), OutgoingBody(Some(from)))
}

/// A chunk, or the end.
type Chunk = Option<Bytes>;

pub(super) struct BodyWriter(PollSender<Chunk>);

impl BodyWriter {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: impl FnOnce() -> Chunk,
    ) -> Poll<io::Result<()>> {
        let broken = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.0.poll_reserve(cx)).map_err(broken)?;
        Poll::Ready(self.0.send_item(chunk()).map_err(broken))
    }
}

impl AsyncWrite for BodyWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(CHUNK_BYTES);
        let (chunk, _) = bytes.split_at(count);
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let sent = self.poll_send(cx, || Some(Bytes::copy_from_slice(chunk)));
        sent.map_ok(|()| count)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection sends what it has before it waits for more.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.is_closed() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(cx, || None))?;
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

/// What a [`BodyWriter`] writes.
pub(super) struct OutgoingBody(Option<mpsc::Receiver<Chunk>>);

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(from) = &mut self.0 else {
            return Poll::Ready(None);
        };
        Poll::Ready(match ready!(from.poll_recv(cx)) {
            Some(Some(chunk)) => Some(Ok(Frame::data(chunk))),
            Some(None) => {
                self.0 = None;
                None
            }
            None => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        })
    }
}

/// A body as a stream. When it is dropped, what is left of the body is given back, if somebody
/// waits for it.
pub(super) struct BodyReader<B> {
    body: Option<B>,
    left: Bytes,
    rest: Option<oneshot::Sender<B>>,
}

impl<B> BodyReader<B> {
    pub(super) fn new(body: B, rest: Option<oneshot::Sender<B>>) -> Self {
        Self {
            body: Some(body),
            left: Bytes::new(),
            rest,
        }
    }
}

impl<B> Drop for BodyReader<B> {
    fn drop(&mut self) {
        if let (Some(rest), Some(body)) = (self.rest.take(), self.body.take()) {
            // Nobody waits where the connection is gone.
            let _ = rest.send(body);
        }
    }
}

impl<B> AsyncRead for BodyReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.left.is_empty() {
            let Some(body) = &mut self.body else {
                return Poll::Ready(Ok(()));
            };
            match ready!(Pin::new(body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                // Trailers mean nothing here.
                Some(Ok(frame)) => self.left = frame.into_data().unwrap_or_default(),
                Some(Err(why)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, why)));
                }
            }
        }
        let count = self.left.len().min(to.remaining());
        to.put_slice(&self.left[..count]);
        self.left.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Reads a body to its end, and keeps nothing.
pub(super) async fn discard<B: Body + Unpin>(mut body: B) {
    let next = |body: &mut B, cx: &mut Context<'_>| Pin::new(body).poll_frame(cx);
    while let Some(Ok(_)) = std::future::poll_fn(|cx| next(&mut body, cx)).await {}
}
