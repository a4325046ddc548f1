//! How long those wait who publish while nothing is committed.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Batch, Fate, Pending, PublishError};

/// How long is waited for a quorum that tells nothing.
pub(super) struct Patience {
    length: Duration,
    times: Mutex<Times>,
}

#[derive(Clone, Copy)]
struct Times {
    /// When a quorum told something last.
    told: Instant,
    /// When the publisher began to wait, or gave up what it could.
    begun: Instant,
}

impl Patience {
    pub(super) fn new(length: Duration) -> Self {
        let (told, begun) = (Instant::now(), Instant::now());
        let times = Mutex::new(Times { told, begun });
        Self { length, times }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The publisher begins to wait, or anew.
    pub(super) fn begin(&self) {
        self.times().begun = Instant::now();
    }

    /// Takes note if a quorum has told something.
    pub(super) fn hear(&self, fates: &[Fate]) {
        let told =
            |it: &Fate| matches!(it, Fate::Committed(_) | Fate::Refused(_) | Fate::Displaced);
        if fates.iter().any(told) {
            self.times().told = Instant::now();
        }
    }

    /// Waits until it has run out for the publisher.
    pub(super) async fn lost(&self) {
        loop {
            let Times { told, begun } = *self.times();
            let end = told.max(begun) + self.length;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Waits so long for this, and longer while a quorum tells something.
    ///
    /// # Errors
    /// [`PublishError::NoQuorum`].
    pub(super) async fn with<T>(&self, wait: impl Future<Output = T>) -> Result<T, PublishError> {
        let mut wait = std::pin::pin!(wait);
        let mut end = Instant::now() + self.length;
        loop {
            if let Ok(done) = timeout_at(end, &mut wait).await {
                return Ok(done);
            }
            let later = self.times().told + self.length;
            if later <= end {
                return Err(PublishError::NoQuorum);
            }
            end = later;
        }
    }
}

impl Batch {
    /// Ends what of it is certainly not applied, where that is known by now.
    pub(super) fn give_up(&mut self) {
        let Some(fates) = (&mut self.answer).now_or_never() else {
            return;
        };
        let carried = std::mem::take(&mut self.carried).into_iter().zip(fates);
        let left: Vec<(Pending, Fate)> = carried.filter_map(still_open).collect();
        let (carried, fates) = left.into_iter().unzip();
        self.carried = carried;
        self.answer = Box::pin(std::future::ready(fates));
    }
}

/// Tells those that no quorum has heard of; gives back the others.
fn still_open((pending, fate): (Pending, Fate)) -> Option<(Pending, Fate)> {
    if let Fate::NotApplied(PublishError::NoQuorum) = fate {
        pending.end(Err(PublishError::NoQuorum));
        return None;
    }
    Some((pending, fate))
}
