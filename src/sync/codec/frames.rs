//! Cuts a stream of bytes into frames, each whole, of either line.
//!
//! ```text
//!   0.6   one CBOR item                        no length before it
//!   0.7   length u32 BE | postcard             the length counts what is behind it
//! ```
//!
//! Every byte is looked at once, however the stream was cut up on its way. What a frame claims to
//! be long is checked before it is waited for, and memory is taken only for what has arrived.

use std::{collections::VecDeque, mem};

use bytes::{Buf, Bytes, BytesMut};

use super::{WireFault, cbor::Scan};
use crate::log_store::Line;

/// Bytes before a 0.7 frame that say how long it is.
pub(crate) const HEAD: usize = 4;

/// # Invariants
/// - `partial` is the front of one frame, never longer than `limit`; `chunks` is what is behind.
#[derive(Debug)]
pub(crate) struct Frames {
    cut: Cut,
    limit: usize,
    chunks: VecDeque<Bytes>,
    partial: BytesMut,
}

#[derive(Debug)]
enum Cut {
    V06(Scan),
    V07 {
        head: [u8; HEAD],
        /// Bytes of this frame that were seen, the head counted in.
        seen: usize,
    },
}

impl Frames {
    /// `limit` is the longest frame, in bytes.
    pub(crate) fn new(line: Line, limit: usize) -> Self {
        let cut = match line {
            Line::V06 => Cut::V06(Scan::default()),
            Line::V07 => Cut::V07 {
                head: [0; HEAD],
                seen: 0,
            },
        };
        Self {
            cut,
            limit,
            chunks: VecDeque::new(),
            partial: BytesMut::new(),
        }
    }

    /// From the next frame on, frames of up to so many bytes are taken.
    pub(crate) fn limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes as they came. Take all frames out before pushing more.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
    }

    /// Bytes held back: the front of a frame, and what was pushed and not asked for.
    pub(crate) fn held(&self) -> usize {
        self.partial.len() + self.chunks.iter().map(Bytes::len).sum::<usize>()
    }

    /// The next whole frame without its head, or `None` until more bytes come.
    ///
    /// # Errors
    /// The stream can not be cut any further.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, WireFault> {
        while let Some(mut chunk) = self.chunks.pop_front() {
            let (taken, whole) = self.cut.advance(&chunk, self.limit)?;
            if self.partial.len() + taken > self.limit + HEAD {
                return Err(WireFault::TooLarge {
                    claimed: (self.partial.len() + taken) as u64,
                    limit: self.limit,
                });
            }
            let mut frame = chunk.split_to(taken);
            if !chunk.is_empty() {
                self.chunks.push_front(chunk);
            }
            if !whole {
                self.partial.extend_from_slice(&frame);
                continue;
            }
            if !self.partial.is_empty() {
                self.partial.extend_from_slice(&frame);
                frame = mem::take(&mut self.partial).freeze();
            }
            if matches!(self.cut, Cut::V07 { .. }) {
                frame.advance(HEAD);
            }
            return Ok(Some(frame));
        }
        Ok(None)
    }
}

impl Cut {
    /// How many of `bytes` belong to the frame, and whether it ends with them.
    fn advance(&mut self, bytes: &[u8], limit: usize) -> Result<(usize, bool), WireFault> {
        let (head, seen) = match self {
            Self::V06(scan) => return scan.advance(bytes, limit),
            Self::V07 { head, seen } => (head, seen),
        };
        let before = *seen;
        if before < HEAD {
            let part = (HEAD - before).min(bytes.len());
            head[before..before + part].copy_from_slice(&bytes[..part]);
            *seen += part;
            if *seen < HEAD {
                return Ok((part, false));
            }
        }
        let length = u32::from_be_bytes(*head) as usize;
        if length > limit {
            return Err(WireFault::TooLarge {
                claimed: length as u64,
                limit,
            });
        }
        let missing = HEAD + length - before;
        if missing > bytes.len() {
            *seen = before + bytes.len();
            return Ok((bytes.len(), false));
        }
        *seen = 0;
        Ok((missing, true))
    }
}
