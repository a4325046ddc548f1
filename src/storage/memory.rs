//! The engine that forgets: sorted maps behind a lock, for tests and for groups of passage.

use std::{
    collections::BTreeMap,
    io,
    ops::{Bound, ControlFlow},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use super::engine::{Batch, Engine, Family, Order, Visit, Write};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keeps everything in memory. Nothing to sync, so nobody waits for a sync.
#[derive(Debug, Default)]
pub(super) struct Memory {
    families: RwLock<[Map; Family::ALL.len()]>,
}

impl Memory {
    fn read(&self) -> RwLockReadGuard<'_, [Map; Family::ALL.len()]> {
        self.families.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Memory {
    /// Damages a value, as a disk might.
    pub(super) fn flip_bit(&self, family: Family, key: &[u8], bit: usize) {
        let mut families = self
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let value = families[family as usize]
            .get_mut(key)
            .expect("there is such a value");
        value[bit / 8] ^= 1 << (bit % 8);
    }
}

impl Engine for Memory {
    fn write(&self, batch: &Batch) -> io::Result<()> {
        let mut families = self
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for (family, write) in batch.iter() {
            let map = &mut families[family as usize];
            match write {
                Write::Put(key, value) => {
                    map.insert(key.to_vec(), value.to_vec());
                }
                Write::Delete(key) => {
                    map.remove(key);
                }
                Write::DeleteRange(from, to) => {
                    if from < to {
                        let mut cut = map.split_off(from);
                        map.append(&mut cut.split_off(to));
                    }
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.read()[family as usize].get(key).cloned())
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        let families = self.read();
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut range = families[family as usize].range::<[u8], _>(bounds);
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

    fn is_durable(&self) -> bool {
        false
    }

    /// The data stays, for the next store that is opened on it.
    fn close(&self) {}
}
