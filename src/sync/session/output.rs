//! What waits to be sent: bounded, small messages side by side in one buffer.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::{
    log_store::Line,
    sync::codec::{self, Message, TooLong},
};

/// No more operations are taken in while this many bytes wait to be sent. A page that was begun
/// below it may go above.
pub(crate) const OUTPUT_MAX: usize = 256 * 1024;
/// The most that goes out at a time, unless one message is longer.
const PIECE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Output {
    line: Line,
    whole: VecDeque<Bytes>,
    /// The last piece, still growing.
    tail: BytesMut,
    bytes: usize,
}

impl Output {
    pub(super) fn new(line: Line) -> Self {
        Self {
            line,
            whole: VecDeque::new(),
            tail: BytesMut::new(),
            bytes: 0,
        }
    }

    /// Puts a message behind what waits.
    pub(super) fn push(&mut self, message: &Message) -> Result<(), TooLong> {
        let before = self.tail.len();
        codec::encode(self.line, message, &mut self.tail)?;
        self.bytes += self.tail.len() - before;
        if self.tail.len() >= PIECE {
            self.whole
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
        Ok(())
    }

    /// The next piece to send.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = match self.whole.pop_front() {
            Some(piece) => piece,
            None if self.tail.is_empty() => return None,
            None => std::mem::take(&mut self.tail).freeze(),
        };
        self.bytes -= piece.len();
        Some(piece)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether it takes more.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < OUTPUT_MAX
    }
}
