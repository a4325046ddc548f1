//! Where snapshots stand: written aside, then put in their place in one step. In memory here, in
//! files in `files`.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::{LocalGroup, locked};

/// The snapshots of all groups.
pub(super) trait Shelf: Send + Sync {
    fn place(&self, local: LocalGroup) -> io::Result<Box<dyn Place>>;
    /// Removes whatever a group has there; nothing there is fine.
    fn remove_group(&self, local: LocalGroup) -> io::Result<()>;
}

/// The snapshots of one group, numbered upwards.
pub(super) trait Place: Send + Sync {
    /// The one with the highest number. Removes what was left aside, and older ones.
    fn newest(&self) -> io::Result<Option<(u64, Body)>>;
    fn start_aside(&self) -> io::Result<Box<dyn Aside>>;
    /// Makes a `put_in_place` survive a power cut.
    fn sync(&self) -> io::Result<()>;
    /// Removes those with lower numbers. Whoever reads one keeps what he reads.
    fn remove_older(&self, number: u64) -> io::Result<()>;
}

/// Something written that is not a snapshot yet. Dropped, it is gone.
pub(super) trait Aside: io::Write + Send {
    /// Makes what was written survive a power cut.
    fn sync(&mut self) -> io::Result<()>;
    fn body(&self) -> io::Result<Body>;
    /// The switch: one rename.
    fn put_in_place(self: Box<Self>, number: u64) -> io::Result<()>;
}

/// What is read by offset, unchanged for as long as somebody holds it.
pub(super) trait ReadAt: Send + Sync {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;
}

/// The bytes of a snapshot, as on disk.
#[derive(Clone)]
pub(super) struct Body {
    bytes: Arc<dyn ReadAt>,
    len: u64,
}

impl Body {
    pub(super) fn new(bytes: Arc<dyn ReadAt>, len: u64) -> Self {
        Self { bytes, len }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// All of `out`, or `UnexpectedEof`.
    pub(super) fn read_exact_at(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match self.bytes.read_at(offset, out) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    offset += count as u64;
                    out = &mut out[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len)
    }
}

type Kept = Arc<Mutex<HashMap<LocalGroup, (u64, Bytes)>>>;

/// Keeps the newest snapshot of each group in memory.
#[derive(Default)]
pub(super) struct MemoryShelf {
    kept: Kept,
}

struct MemoryPlace {
    kept: Kept,
    local: LocalGroup,
}

struct MemoryAside {
    kept: Kept,
    local: LocalGroup,
    written: Vec<u8>,
}

impl Shelf for MemoryShelf {
    fn place(&self, local: LocalGroup) -> io::Result<Box<dyn Place>> {
        Ok(Box::new(MemoryPlace {
            kept: Arc::clone(&self.kept),
            local,
        }))
    }

    fn remove_group(&self, local: LocalGroup) -> io::Result<()> {
        locked(&self.kept).remove(&local);
        Ok(())
    }
}

impl Place for MemoryPlace {
    fn newest(&self) -> io::Result<Option<(u64, Body)>> {
        let kept = locked(&self.kept);
        Ok(kept
            .get(&self.local)
            .map(|(number, bytes)| (*number, memory_body(bytes.clone()))))
    }

    fn start_aside(&self) -> io::Result<Box<dyn Aside>> {
        let kept = Arc::clone(&self.kept);
        Ok(Box::new(MemoryAside {
            kept,
            local: self.local,
            written: Vec::new(),
        }))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// There is only ever the newest.
    fn remove_older(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl io::Write for MemoryAside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Aside for MemoryAside {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn body(&self) -> io::Result<Body> {
        Ok(memory_body(Bytes::copy_from_slice(&self.written)))
    }

    fn put_in_place(self: Box<Self>, number: u64) -> io::Result<()> {
        locked(&self.kept).insert(self.local, (number, Bytes::from(self.written)));
        Ok(())
    }
}

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let count = out.len().min(self.len() - start);
        out[..count].copy_from_slice(&self[start..start + count]);
        Ok(count)
    }
}

pub(super) fn memory_body(bytes: Bytes) -> Body {
    let len = bytes.len() as u64;
    Body::new(Arc::new(bytes), len)
}
