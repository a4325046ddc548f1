//! How often a member may say that there is no news. No I/O, no clock.

use std::time::Instant;

/// So often at once, and so often a second.
const BURST: f64 = 16.0;
const PER_SECOND: f64 = 2.0;

/// Messages without news are taken so often and no more: each costs something here.
///
/// What a member may say grows while nothing is read of it, and has no other bound than the time:
/// a reader that pauses finds all that was said meanwhile at once.
pub(super) struct Quiet {
    allowance: f64,
    at: Instant,
    fresh: bool,
}

impl Quiet {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            allowance: BURST,
            at: now,
            fresh: true,
        }
    }

    /// There was news.
    pub(super) fn broken(&mut self) {
        self.fresh = true;
    }

    /// There is none. The first time after some is free. False if that was said too often.
    pub(super) fn kept(&mut self, now: Instant) -> bool {
        std::mem::take(&mut self.fresh) || self.spent(now)
    }

    /// Something was said that is no news. False if that was too often.
    pub(super) fn spent(&mut self, now: Instant) -> bool {
        self.allowance += now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND - 1.0;
        self.at = now;
        self.allowance >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn so_often_at_once_and_as_often_as_time_has_passed() {
        let now = Instant::now();
        let mut quiet = Quiet::new(now);
        for _ in 0..17 {
            assert!(quiet.kept(now), "the first is free");
        }
        assert!(!quiet.kept(now), "without end");
        let later = now + Duration::from_secs(600);
        for _ in 0..1_000 {
            assert!(quiet.kept(later), "nobody read for ten minutes");
        }
        assert!((0..1_000).any(|_| !quiet.kept(later)), "without end");
    }
}
