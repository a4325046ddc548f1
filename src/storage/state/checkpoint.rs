//! The whole table of sessions, written aside in bounded batches until one of the state names it.

use std::io;

use super::{Batch, Family, GroupState, Inner, Live, keys};

/// One value of a checkpoint, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// A checkpoint that is written and counts with the batch that names it.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(super) number: u64,
    pub(super) chunks: u32,
    bytes: usize,
}

impl Checkpoint {
    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl GroupState {
    /// Writes a whole table of sessions aside.
    ///
    /// # Errors
    /// Those of `write`, and as with [`GroupState::write`].
    pub(crate) fn write_checkpoint(
        &self,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<Checkpoint> {
        let number = self.live()?.head.checkpoint + 1;
        let mut chunks = Chunks {
            state: self,
            number,
            next: 0,
            written: 0,
            bytes: Vec::new(),
        };
        write(&mut chunks)?;
        chunks.write_chunk()?;
        Ok(Checkpoint {
            number,
            chunks: chunks.next,
            bytes: chunks.written,
        })
    }
}

impl Inner {
    /// The chunks of the current checkpoint, one after the other.
    pub(super) fn checkpoint(&self, live: &mut Live) -> io::Result<Option<Vec<u8>>> {
        let number = live.head.checkpoint;
        live.chunks = 0;
        if number == 0 {
            return Ok(None);
        }
        let group = self.local.number();
        let from = keys::checkpoint(group, number, 0);
        let to = keys::checkpoint(group, number, u32::MAX);
        let mut whole = Vec::new();
        self.collect(&from, &to, &mut |_, value| {
            live.chunks += 1;
            whole.extend_from_slice(&value);
        })?;
        Ok(Some(whole))
    }
}

/// Cuts a checkpoint into values and writes each as it is full.
struct Chunks<'a> {
    state: &'a GroupState,
    number: u64,
    next: u32,
    written: usize,
    bytes: Vec<u8>,
}

impl Chunks<'_> {
    fn write_chunk(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let inner = &*self.state.inner;
        let mut batch = Batch::new();
        let key = keys::checkpoint(inner.local.number(), self.number, self.next);
        batch.put(Family::State, &key, &[&self.bytes]);
        let _live = self.state.live()?;
        fail::fail_point!("state::checkpoint::before_chunk");
        inner.flusher.write(&batch)?;
        self.next += 1;
        self.written += self.bytes.len();
        self.bytes.clear();
        Ok(())
    }
}

impl io::Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        if self.bytes.len() == CHUNK_BYTES {
            self.write_chunk()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
