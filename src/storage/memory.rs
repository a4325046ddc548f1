//! The engine that forgets: sorted maps behind a lock, for tests and for groups of passage.

use std::{
    io,
    ops::{Bound, ControlFlow},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use bytes::Bytes;
use im::OrdMap;

use super::engine::{Batch, Engine, Family, Order, Reads, Visit, Write};

/// A clone shares everything, so reading one moment is reading a clone, without the lock.
type Map = OrdMap<Bytes, Bytes>;
type Families = [Map; Family::ALL.len()];

/// Keeps everything in memory. Nothing to sync, so nobody waits for a sync.
#[derive(Debug, Default)]
pub(super) struct Memory {
    families: RwLock<Families>,
}

impl Memory {
    fn read(&self) -> RwLockReadGuard<'_, Families> {
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
        let mut damaged = value.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        *value = damaged.into();
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
                    map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                }
                Write::Delete(key) => {
                    map.remove(key);
                }
                Write::DeleteRange(from, to) => {
                    if from < to {
                        let inside: Vec<Bytes> = map
                            .range::<_, [u8]>((Bound::Included(from), Bound::Excluded(to)))
                            .map(|(key, _)| key.clone())
                            .collect();
                        for key in &inside {
                            map.remove(key);
                        }
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
        Ok(self.read()[family as usize].get(key).map(|it| it.to_vec()))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        let map = self.read()[family as usize].clone();
        scan(&map, from, to, order, visit);
        Ok(())
    }

    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        let families = self.read().clone();
        read(&families);
        Ok(())
    }

    fn is_durable(&self) -> bool {
        false
    }

    /// The data stays, for the next store that is opened on it.
    fn close(&self) {}
}

impl Reads for Families {
    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self[family as usize].get(key).map(|it| it.to_vec()))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        scan(&self[family as usize], from, to, order, visit);
        Ok(())
    }
}

fn scan(map: &Map, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) {
    if from >= to {
        return;
    }
    let mut range = map.range::<_, [u8]>((Bound::Included(from), Bound::Excluded(to)));
    loop {
        let next = match order {
            Order::Ascending => range.next(),
            Order::Descending => range.next_back(),
        };
        let Some((key, value)) = next else { return };
        if let ControlFlow::Break(()) = visit(key, value) {
            return;
        }
    }
}
