//! What was changed in a table and is not yet written, and how it reads together with what is.

use std::{
    io,
    iter::Peekable,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;
use im::OrdMap;

use super::{Backing, Order, Visit};

/// What a changed key takes besides its bytes.
const ENTRY_OVERHEAD: usize = 96;

/// Changes over what is written. A clone shares everything.
///
/// # Invariants
/// - `ranges` do not overlap or touch; none is empty.
/// - A key in `entries` is as it says, also inside a range: the ranges were deleted before.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    entries: OrdMap<Bytes, Option<Bytes>>,
    /// Deleted: from the key (included) to the value (excluded).
    ranges: OrdMap<Bytes, Bytes>,
    bytes: usize,
}

/// Changes to be written: first all ranges are deleted, then the entries are put and deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Overlay);

impl Changes {
    /// Deleted: from the first key (included) to the second (excluded).
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.ranges.iter().map(|(from, to)| (&from[..], &to[..]))
    }

    /// In the order of the keys; no value: deleted.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.0
            .entries
            .iter()
            .map(|(key, value)| (&key[..], value.as_ref()))
    }

    /// About what they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl Overlay {
    /// What `key` was changed to; nothing if it is as written.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(changed) = self.entries.get(key) {
            return Some(changed.clone());
        }
        self.is_deleted(key).then_some(None)
    }

    pub(super) fn put(&mut self, key: &[u8], value: Bytes) {
        self.bytes += ENTRY_OVERHEAD + key.len() + value.len();
        self.entries
            .insert(Bytes::copy_from_slice(key), Some(value));
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        self.bytes += ENTRY_OVERHEAD + key.len();
        self.entries.insert(Bytes::copy_from_slice(key), None);
    }

    pub(super) fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        if from >= to {
            return;
        }
        self.bytes += ENTRY_OVERHEAD + from.len() + to.len();
        let inside: Vec<Bytes> = self
            .entries
            .range::<_, [u8]>(span(from, to))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &inside {
            self.entries.remove(key);
        }
        // Those that it overlaps or touches become one with it.
        let mut from = Bytes::copy_from_slice(from);
        let mut to = Bytes::copy_from_slice(to);
        while let Some((start, end)) = self.last_range_up_to(&to) {
            if end < from {
                break;
            }
            self.ranges.remove(&start);
            from = from.min(start);
            to = to.max(end);
        }
        self.ranges.insert(from, to);
    }

    /// The range that starts last of those that start at or before `key`.
    fn last_range_up_to(&self, key: &[u8]) -> Option<(Bytes, Bytes)> {
        let (start, end) = self.ranges.range::<_, [u8]>(up_to(key)).next_back()?;
        Some((start.clone(), end.clone()))
    }

    fn is_deleted(&self, key: &[u8]) -> bool {
        let last = self.ranges.range::<_, [u8]>(up_to(key)).next_back();
        last.is_some_and(|(_, end)| key < &end[..])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.ranges.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn into_changes(self) -> Changes {
        Changes(self)
    }

    /// Visits what is written, as changed.
    pub(super) fn scan(
        &self,
        written: &dyn Backing,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        let mut gaps = self.gaps(from, to);
        let mut changed: Box<dyn Iterator<Item = _>> =
            Box::new(self.entries.range::<_, [u8]>(span(from, to)));
        if order == Order::Descending {
            gaps.reverse();
            changed = Box::new(self.entries.range::<_, [u8]>(span(from, to)).rev());
        }
        let mut merge = Merge {
            changed: changed.peekable(),
            order,
            visit,
        };
        let mut flow = ControlFlow::Continue(());
        for (from, to) in &gaps {
            written.scan(from, to, order, &mut |key, value| {
                flow = merge.written(key, value);
                flow
            })?;
            if flow.is_break() {
                return Ok(());
            }
        }
        let _ = merge.rest();
        Ok(())
    }

    /// The parts of a range that were not deleted whole, ascending.
    fn gaps(&self, from: &[u8], to: &[u8]) -> Vec<(Bytes, Bytes)> {
        let mut gaps = Vec::new();
        let mut start = Bytes::copy_from_slice(from);
        if let Some((_, end)) = self.last_range_up_to(from) {
            start = start.max(end);
        }
        for (deleted, end) in self.ranges.range::<_, [u8]>(span(from, to)) {
            if start < *deleted {
                gaps.push((start.clone(), deleted.clone()));
            }
            start = start.max(end.clone());
        }
        if start[..] < *to {
            gaps.push((start, Bytes::copy_from_slice(to)));
        }
        gaps
    }
}

type Span<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// From the first key (included) to the second (excluded), which must not be smaller.
pub(super) fn span<'a>(from: &'a [u8], to: &'a [u8]) -> Span<'a> {
    (Bound::Included(from), Bound::Excluded(to))
}

fn up_to(key: &[u8]) -> Span<'_> {
    (Bound::Unbounded, Bound::Included(key))
}

/// Two sorted sequences on their way to one visitor; a changed key hides the written one.
struct Merge<'v, I: Iterator> {
    changed: Peekable<I>,
    order: Order,
    visit: Visit<'v>,
}

impl<'a, I: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> Merge<'_, I> {
    fn written(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        while let Some((changed, new)) = self.changed.peek().copied() {
            let comes_first = match self.order {
                Order::Ascending => changed[..] < *key,
                Order::Descending => changed[..] > *key,
            };
            if !comes_first && changed[..] != *key {
                break;
            }
            self.changed.next();
            if let Some(new) = new {
                (self.visit)(changed, new)?;
            }
            if !comes_first {
                return ControlFlow::Continue(());
            }
        }
        (self.visit)(key, value)
    }

    fn rest(&mut self) -> ControlFlow<()> {
        for (changed, new) in &mut self.changed {
            if let Some(new) = new {
                (self.visit)(changed, new)?;
            }
        }
        ControlFlow::Continue(())
    }
}
