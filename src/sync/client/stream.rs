//! Frames over any byte stream: whole ones in, whole ones out, within limits.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    super::codec::{Frames, WireFault},
    frames::{Frame, frames},
};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The reading half.
///
/// # Invariants
/// - Holds at most one frame and what one read brought.
pub(crate) struct FrameReader<R> {
    read: R,
    cut: Frames,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Takes frames of at most so many bytes.
    pub(crate) fn new(read: R, limit: usize) -> Self {
        Self {
            read,
            cut: frames(limit),
            buffer: BytesMut::new(),
        }
    }

    /// The next frame without its length; `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StreamFault> {
        loop {
            if let Some(frame) = self.cut.next()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return match self.cut.held() {
                    0 => Ok(None),
                    _ => Err(StreamFault::CutOff),
                };
            }
            self.cut.push(self.buffer.split().freeze());
        }
    }

    /// The next frame, read.
    pub(crate) async fn next_frame(&mut self) -> Result<Option<Frame>, StreamFault> {
        match self.next().await? {
            Some(bytes) => Ok(Some(Frame::decode(&bytes)?)),
            None => Ok(None),
        }
    }
}

/// Writes a frame, whole. Not cancel-safe.
pub(crate) async fn write<W: AsyncWrite + Unpin>(to: &mut W, frame: &[u8]) -> io::Result<()> {
    to.write_all(frame).await?;
    to.flush().await
}

/// A stream that gives no more frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamFault {
    #[error("the stream broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the stream ended within a message")]
    CutOff,
    #[error(transparent)]
    Wire(#[from] WireFault),
}
