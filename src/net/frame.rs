//! Frames on a stream: a length of four bytes, big-endian, and the body.
//!
//! ```text
//! +----------------+---------------------+
//! | length  u32 BE | body (length bytes) |   the limit is checked before anything is allocated
//! +----------------+---------------------+
//! ```

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{RawRecv, RawSend, WireError};

/// Bytes of a frame's head.
pub(crate) const HEAD: usize = 4;

/// Bodies up to this many bytes are copied: sending them apart from their head costs more than the
/// copy, and a slice of a received packet would keep the whole packet in memory.
const SMALL: usize = 1024;

/// How many pieces are taken from the wire at a time.
const CHUNKS: usize = 32;

/// A bidirectional stream between two bonded nodes.
pub(crate) struct BondStream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// The sending half: frames go in, in order.
///
/// # Invariants
/// - `waiting` holds whole frames less what the wire has taken: a cancelled write leaves the rest
///   here, and the next one goes on with it, so frames are never torn.
pub(crate) struct SendStream {
    raw: Box<dyn RawSend>,
    waiting: Vec<Bytes>,
    taken: usize,
}

impl SendStream {
    pub(crate) fn new(raw: Box<dyn RawSend>) -> Self {
        Self {
            raw,
            waiting: Vec::new(),
            taken: 0,
        }
    }

    /// Writes one frame. Waits for room in the send window. If the call is dropped, the frame may
    /// go out with the next one.
    pub(crate) async fn write_frame(&mut self, body: Bytes) -> Result<(), WireError> {
        self.push(body);
        self.flush().await
    }

    /// Writes the frames and leaves the list empty; large bodies are not copied.
    pub(crate) async fn write_frames(&mut self, bodies: &mut Vec<Bytes>) -> Result<(), WireError> {
        for body in bodies.drain(..) {
            self.push(body);
        }
        self.flush().await
    }

    /// Puts a frame behind those that wait to be written, without writing.
    pub(crate) fn push(&mut self, body: Bytes) {
        self.push_parts(&[], body);
    }

    /// Puts a frame behind those that wait, its body made of `front` and `rest`.
    pub(crate) fn push_parts(&mut self, front: &[u8], rest: Bytes) {
        let small = rest.len() <= SMALL;
        let inline = if small { rest.len() } else { 0 };
        let mut head = BytesMut::with_capacity(HEAD + front.len() + inline);
        // Bodies are limited far below 4 GiB by everyone who makes them.
        head.put_u32((front.len() + rest.len()) as u32);
        head.put_slice(front);
        if small {
            head.put_slice(&rest);
        }
        self.waiting.push(head.freeze());
        if !small {
            self.waiting.push(rest);
        }
    }

    /// How many pieces of frames wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() - self.taken
    }

    /// Writes everything that waits.
    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        while self.taken < self.waiting.len() {
            let mut rest = &mut self.waiting[self.taken..];
            let before = rest.len();
            ready!(self.raw.poll_write(cx, &mut rest))?;
            self.taken += before - rest.len();
        }
        self.waiting.clear();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }

    /// Half of a length, and nothing behind it.
    #[cfg(test)]
    pub(crate) async fn write_torn_for_tests(&mut self) {
        self.waiting.push(Bytes::from_static(&[0, 0]));
        self.flush().await.expect("written");
    }

    /// No more frames will come; the peer reads the end of the stream behind the last one.
    pub(crate) fn finish(&mut self) {
        self.raw.finish();
    }

    /// Gives the stream up; what was not sent yet is dropped.
    pub(crate) fn reset(&mut self) {
        self.raw.reset();
    }

    pub(crate) fn set_priority(&self, priority: i32) {
        self.raw.set_priority(priority);
    }
}

/// The receiving half: frames come out, in order. Many small frames cost one wakeup.
///
/// # Invariants
/// - `held` is the sum of the lengths in `chunks`; it stays below one frame of the reader's limit
///   plus what the wire hands over at a time.
pub(crate) struct RecvStream {
    raw: Box<dyn RawRecv>,
    chunks: VecDeque<Bytes>,
    held: usize,
    ended: bool,
}

impl RecvStream {
    pub(crate) fn new(raw: Box<dyn RawRecv>) -> Self {
        Self {
            raw,
            chunks: VecDeque::new(),
            held: 0,
            ended: false,
        }
    }

    /// The next frame's body, or `None` at an end between two frames. Cancel-safe.
    pub(crate) async fn read_frame(&mut self, max: usize) -> Result<Option<Bytes>, FrameError> {
        poll_fn(|cx| self.poll_frame(cx, max)).await
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, FrameError>> {
        loop {
            if let Some(body) = self.next_held(max)? {
                return Poll::Ready(Ok(Some(body)));
            }
            if self.ended {
                let torn = self.held > 0;
                return Poll::Ready(if torn {
                    Err(FrameError::Torn)
                } else {
                    Ok(None)
                });
            }
            let mut fresh = [const { Bytes::new() }; CHUNKS];
            match ready!(self.raw.poll_read(cx, &mut fresh)).map_err(FrameError::Wire)? {
                None => self.ended = true,
                Some(count) => {
                    for chunk in fresh.into_iter().take(count) {
                        self.held += chunk.len();
                        if !chunk.is_empty() {
                            self.chunks.push_back(chunk);
                        }
                    }
                }
            }
        }
    }

    /// The next frame that is here already, if one is here whole.
    pub(crate) fn next_held(&mut self, max: usize) -> Result<Option<Bytes>, FrameError> {
        if self.held < HEAD {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        let mut at = 0;
        for chunk in &self.chunks {
            let part = chunk.len().min(HEAD - at);
            head[at..at + part].copy_from_slice(&chunk[..part]);
            at += part;
            if at == HEAD {
                break;
            }
        }
        let length = u32::from_be_bytes(head) as usize;
        if length > max {
            return Err(FrameError::TooLarge { length, max });
        }
        if self.held < HEAD + length {
            return Ok(None);
        }
        self.skip(HEAD);
        Ok(Some(self.take(length)))
    }

    fn skip(&mut self, mut count: usize) {
        self.held -= count;
        while count > 0 {
            let Some(front) = self.chunks.front_mut() else {
                return;
            };
            let part = front.len().min(count);
            front.advance(part);
            count -= part;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    fn take(&mut self, length: usize) -> Bytes {
        if length > SMALL
            && let Some(front) = self.chunks.front_mut()
            && front.len() >= length
        {
            let body = front.split_to(length);
            if front.is_empty() {
                self.chunks.pop_front();
            }
            self.held -= length;
            return body;
        }
        let mut body = BytesMut::with_capacity(length);
        while body.len() < length {
            let Some(front) = self.chunks.front() else {
                break;
            };
            let part = front.len().min(length - body.len());
            body.put_slice(&front[..part]);
            self.skip(part);
        }
        body.freeze()
    }
}

/// A frame could not be read; the stream is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer announced more than this kind of frame may have.
    #[error("a frame of {length} bytes, {max} are allowed")]
    TooLarge {
        /// Bytes announced.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream ended in the middle of a frame")]
    Torn,
    /// The connection or the stream is gone.
    #[error(transparent)]
    Wire(WireError),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out the given pieces, one a read, then the end.
    struct Pieces(VecDeque<Bytes>);

    impl RawRecv for Pieces {
        fn poll_read(
            &mut self,
            _: &mut Context<'_>,
            chunks: &mut [Bytes],
        ) -> Poll<Result<Option<usize>, WireError>> {
            Poll::Ready(Ok(self.0.pop_front().map(|piece| {
                chunks[0] = piece;
                1
            })))
        }
    }

    /// Takes at most this many bytes a call.
    struct Sip(usize, std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl RawSend for Sip {
        fn poll_write(
            &mut self,
            _: &mut Context<'_>,
            chunks: &mut &mut [Bytes],
        ) -> Poll<Result<(), WireError>> {
            let mut room = self.0;
            while room > 0 && !chunks.is_empty() {
                let part = chunks[0].len().min(room);
                let piece = chunks[0].split_to(part);
                self.1
                    .lock()
                    .expect("not poisoned")
                    .extend_from_slice(&piece);
                room -= part;
                if chunks[0].is_empty() {
                    *chunks = &mut std::mem::take(chunks)[1..];
                }
            }
            Poll::Ready(Ok(()))
        }

        fn finish(&mut self) {}
        fn reset(&mut self) {}
        fn set_priority(&self, _: i32) {}
    }

    fn bodies() -> Vec<Bytes> {
        [0, 1, 5, 1024, 1025, 70_000]
            .map(|length| Bytes::from(vec![length as u8; length]))
            .to_vec()
    }

    #[tokio::test]
    async fn frames_survive_any_cut_on_the_way() {
        for (sip, cut) in [(1, 70_000), (3, 7), (100_000, 1), (1500, 1300)] {
            let wire = std::sync::Arc::default();
            let mut send = SendStream::new(Box::new(Sip(sip, std::sync::Arc::clone(&wire))));
            send.write_frames(&mut bodies()).await.expect("written");
            let wire = Bytes::from(wire.lock().expect("not poisoned").clone());
            let pieces = wire.chunks(cut).map(Bytes::copy_from_slice).collect();
            let mut recv = RecvStream::new(Box::new(Pieces(pieces)));
            for body in bodies() {
                assert_eq!(recv.read_frame(70_000).await, Ok(Some(body)));
            }
            assert_eq!(recv.read_frame(70_000).await, Ok(None));
        }
    }

    #[tokio::test]
    async fn a_frame_above_the_limit_is_refused_by_its_head() {
        let head = Bytes::copy_from_slice(&u32::MAX.to_be_bytes());
        let mut recv = RecvStream::new(Box::new(Pieces([head].into())));
        let refused = FrameError::TooLarge {
            length: u32::MAX as usize,
            max: 9,
        };
        assert_eq!(recv.read_frame(9).await, Err(refused));
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_not_an_end() {
        let torn = Bytes::from_static(&[0, 0, 0, 2, 1]);
        let mut recv = RecvStream::new(Box::new(Pieces([torn].into())));
        assert_eq!(recv.read_frame(9).await, Err(FrameError::Torn));
    }
}
