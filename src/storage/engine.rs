//! The one seam to what keeps bytes: sorted families of keys, atomic batches, one sync for all.

use std::{io, ops::ControlFlow};

use super::keys;

/// A sorted space of keys inside the engine. The names are format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    /// Raft journals of all groups.
    Journal,
    /// Everything small: mappings, votes, purged points.
    Meta,
    /// What machines keep in their tables, of all groups.
    State,
}

impl Family {
    pub(super) const ALL: [Self; 3] = [Self::Journal, Self::Meta, Self::State];

    #[cfg(feature = "rocksdb")]
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Meta => "meta",
            Self::State => "state",
        }
    }
}

/// Which end of a range a scan starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
}

/// Called for each key and value of a scan until it breaks.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Reads of one moment: none sees a write that another does not.
pub(super) trait Reads {
    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// As [`Engine::scan`].
    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()>;
}

/// What keeps the bytes.
///
/// # Contract
/// - `write` is atomic, and readable when it returns; it need not be durable then. Writes become
///   durable in the order they were made: a crash keeps a prefix of them.
/// - `sync` makes every write that returned before it was called durable.
/// - A scan sees one moment: no write that is made while it runs.
/// - Every call may be made from inside a `visit` or a `read`, also while another thread closes.
/// - An error is final: the caller stops writing for good, since what reached the disk is unknown.
pub(super) trait Engine: Send + Sync + 'static {
    fn write(&self, batch: &Batch) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Visits the keys from `from` (included) to `to` (excluded).
    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()>;
    /// Calls `read` once, with the state as it is at one moment. As long as it runs, what it might
    /// read is kept.
    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()>;
    /// Whether `sync` means anything: if not, nobody needs to wait for it.
    fn is_durable(&self) -> bool;
    /// Releases files and locks. Later calls fail. Idempotent.
    fn close(&self);
}

/// One change of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Write<'a> {
    Put(&'a [u8], &'a [u8]),
    Delete(&'a [u8]),
    /// From the first key (included) to the second (excluded).
    DeleteRange(&'a [u8], &'a [u8]),
}

/// Changes that become visible and durable together.
///
/// # Invariants
/// - Every value is sealed here, so no unsealed value can reach an engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    changes: Vec<Change>,
}

/// Keys and values lie one after the other in the batch's bytes; `split` and `end` say where.
#[derive(Clone, Copy, Debug)]
struct Change {
    family: Family,
    kind: Kind,
    start: usize,
    split: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    Delete,
    DeleteRange,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Room for so many changes and bytes, to be filled without growing.
    pub(super) fn with_capacity(changes: usize, bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            changes: Vec::with_capacity(changes),
        }
    }

    /// Puts the concatenated `parts`, sealed, under `key`.
    pub(super) fn put(&mut self, family: Family, key: &[u8], parts: &[&[u8]]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let split = self.bytes.len();
        keys::seal(key, parts, &mut self.bytes);
        let end = self.bytes.len();
        self.changes.push(Change {
            family,
            kind: Kind::Put,
            start,
            split,
            end,
        });
    }

    pub(super) fn delete(&mut self, family: Family, key: &[u8]) {
        self.push(family, Kind::Delete, key, &[]);
    }

    pub(super) fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        self.push(family, Kind::DeleteRange, from, to);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Family, Write<'_>)> {
        self.changes.iter().map(|change| {
            let first = &self.bytes[change.start..change.split];
            let second = &self.bytes[change.split..change.end];
            let write = match change.kind {
                Kind::Put => Write::Put(first, second),
                Kind::Delete => Write::Delete(first),
                Kind::DeleteRange => Write::DeleteRange(first, second),
            };
            (change.family, write)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of all keys and values.
    #[cfg(feature = "rocksdb")]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn push(&mut self, family: Family, kind: Kind, first: &[u8], second: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(first);
        let split = self.bytes.len();
        self.bytes.extend_from_slice(second);
        let end = self.bytes.len();
        self.changes.push(Change {
            family,
            kind,
            start,
            split,
            end,
        });
    }
}
