//! The reserve of free disk space: below it, writes are refused before the engine sees one.
//!
//! An engine that hits a full disk fails for good; a refusal before that costs one write and heals
//! when space is freed. The flusher looks at most once a second, so no append pays for it.
//!
//! Below the reserve nothing new is begun: no command is proposed, no snapshot built. What is under
//! way, appends of a leader with more room and votes, may use three quarters of the reserve: to
//! refuse one of those stops its group here.

use std::{
    fmt, io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Between two looks. At 30,000 writes of 1 KiB a second the reserve's default lasts 8 of them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Probe = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// Whether the disk still has its reserve.
pub(super) struct Space {
    /// Free bytes; nothing where no disk is written.
    probe: Option<Probe>,
    reserve: u64,
    low: AtomicBool,
    exhausted: AtomicBool,
    looked: Mutex<Option<Instant>>,
}

impl Space {
    /// No disk, no limit.
    pub(super) fn unlimited() -> Self {
        Self {
            probe: None,
            reserve: 0,
            low: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            looked: Mutex::new(None),
        }
    }

    #[cfg(any(test, feature = "rocksdb"))]
    pub(super) fn with_probe(reserve: u64, probe: Probe) -> Self {
        let space = Self {
            probe: Some(probe),
            reserve,
            ..Self::unlimited()
        };
        space.look_if_due();
        space
    }

    #[cfg(feature = "rocksdb")]
    pub(super) fn of_disk(dir: &std::path::Path, reserve: u64) -> Self {
        let dir = dir.to_owned();
        Self::with_probe(reserve, Box::new(move || free_bytes(&dir)))
    }

    /// Whether something new may be begun. One atomic load while there is room; while there is
    /// none, a look at most every second.
    pub(super) fn check(&self) -> io::Result<()> {
        self.check_level(&self.low)
    }

    /// Whether what is under way may go on.
    pub(super) fn check_exhausted(&self) -> io::Result<()> {
        self.check_level(&self.exhausted)
    }

    fn check_level(&self, level: &AtomicBool) -> io::Result<()> {
        if !level.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.look_if_due();
        if level.load(Ordering::Relaxed) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                DiskFull {
                    reserve: self.reserve,
                },
            ));
        }
        Ok(())
    }

    pub(super) fn look_if_due(&self) {
        let Some(probe) = &self.probe else { return };
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        match probe() {
            Ok(free) => {
                let low = free < self.reserve;
                let exhausted = free < self.reserve / 4;
                self.exhausted.store(exhausted, Ordering::Relaxed);
                if low != self.low.swap(low, Ordering::Relaxed) {
                    if low {
                        tracing::error!(free, reserve = self.reserve, "disk nearly full");
                    } else {
                        tracing::info!(free, "disk has room again, writes are taken");
                    }
                }
            }
            // Not knowing is no reason to refuse: the engine still reports a full disk.
            Err(error) => tracing::warn!(%error, "cannot tell the free disk space"),
        }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("reserve", &self.reserve)
            .field("low", &self.low)
            .finish()
    }
}

/// The disk has less free space than the reserve. Writes are taken again once space is freed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(
    "the disk has less than the reserve of {reserve} bytes free (Config::disk_reserve_bytes); \
     free some space, writes are refused until then"
)]
struct DiskFull {
    reserve: u64,
}

#[cfg(all(feature = "rocksdb", unix))]
fn free_bytes(dir: &std::path::Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(all(feature = "rocksdb", not(unix)))]
fn free_bytes(_: &std::path::Path) -> io::Result<u64> {
    Ok(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicU64};

    use super::*;

    #[test]
    fn below_the_reserve_is_refused_and_room_heals_it() {
        let free = Arc::new(AtomicU64::new(99));
        let probed = Arc::clone(&free);
        let space = Space::with_probe(100, Box::new(move || Ok(probed.load(Ordering::Relaxed))));
        let error = space.check().expect_err("99 is below 100");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("disk_reserve_bytes"), "{error}");

        free.store(100, Ordering::Relaxed);
        *space.looked.lock().expect("unpoisoned") = None;
        space.check().expect("the reserve is there again");
    }

    #[test]
    fn a_look_is_taken_at_most_once_a_second() {
        let looks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&looks);
        let space = Space::with_probe(
            1,
            Box::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(0)
            }),
        );
        for _ in 0..1_000 {
            space.check().expect_err("nothing is free");
        }
        assert!(looks.load(Ordering::Relaxed) <= 3, "{looks:?}");
    }
}
