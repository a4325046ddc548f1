//! The table of a machine that no group runs: a map, and every change at once.

use std::{
    io,
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use im::OrdMap;

use super::{Backing, Changes, Order, Pinned, Position, Reads, Visit, changes::span};

type Pairs = OrdMap<Bytes, Bytes>;

/// Takes changes at once; a moment is a clone, which shares everything.
#[derive(Debug, Default)]
pub(super) struct MemoryBacking {
    pairs: Mutex<Pairs>,
}

impl MemoryBacking {
    pub(super) fn write(&self, changes: &Changes) {
        let mut pairs = self.pairs();
        for (from, to) in changes.ranges() {
            let inside: Vec<Bytes> = pairs
                .range::<_, [u8]>(span(from, to))
                .map(|(key, _)| key.clone())
                .collect();
            for key in &inside {
                pairs.remove(key);
            }
        }
        for (key, value) in changes.entries() {
            match value {
                Some(value) => pairs.insert(Bytes::copy_from_slice(key), value.clone()),
                None => pairs.remove(key),
            };
        }
    }

    fn pairs(&self) -> MutexGuard<'_, Pairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing for MemoryBacking {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.pairs().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()> {
        let pairs = self.pairs().clone();
        pairs.scan(from, to, order, visit)
    }

    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        let pairs = self.pairs().clone();
        read(&pairs);
        Ok(())
    }

    fn pin(&self) -> io::Result<Pinned> {
        let pairs = self.pairs().clone();
        Ok(Box::new(move |visit| {
            pairs.iter().try_for_each(|(key, value)| visit(key, value))
        }))
    }

    fn start_over(&self) -> io::Result<()> {
        self.pairs().clear();
        Ok(())
    }

    fn fill(&self, pairs: &[(Bytes, Bytes)]) -> io::Result<()> {
        self.pairs().extend(pairs.iter().cloned());
        Ok(())
    }
}

impl Reads for Pairs {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(OrdMap::get(self, key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        let mut range = self.range::<_, [u8]>(span(from, to));
        loop {
            let next = match order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let Some((key, value)) = next else {
                return Ok(());
            };
            if let ControlFlow::Break(()) = visit(key, value) {
                return Ok(());
            }
        }
    }

    fn applied(&self) -> Position {
        Position::default()
    }
}
