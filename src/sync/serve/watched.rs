//! The status of a door, for those who wait for something in it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Shared, SyncStatus};

/// Between two looks at what is told, while it changes: states that are shorter may be missed.
const PAUSE: Duration = Duration::from_millis(20);
/// Before a look without a sign: of what other members serve, and of addresses, there is none.
const UNASKED: Duration = Duration::from_secs(1);

/// Where the status is told. It is kept over changes of the settings.
#[derive(Default)]
pub(super) struct Watched(watch::Sender<SyncStatus>);

impl Watched {
    pub(super) fn watch(&self) -> SyncWatch {
        SyncWatch(self.0.subscribe())
    }
}

/// Watches the [`SyncStatus`] of a door. It costs something only while somebody does.
///
/// What lasts less than 20 ms may be passed over. What other members serve, and where the door is,
/// comes up to a second late.
#[derive(Clone, Debug)]
pub struct SyncWatch(watch::Receiver<SyncStatus>);

impl SyncWatch {
    /// The status as it was told last.
    #[must_use]
    pub fn now(&self) -> SyncStatus {
        self.0.borrow().clone()
    }

    /// Waits until it is another than was seen here last; `None` once the door is closed, all
    /// handles on it are dropped, and the last was seen. Cancel-safe.
    pub async fn changed(&mut self) -> Option<SyncStatus> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Waits until it is as wanted, and gives it; `None` if the door is closed and all handles on
    /// it are dropped before. Where one is kept, a closed door is seen by [`SyncStatus::open`].
    /// Cancel-safe.
    pub async fn wait_for(
        &mut self,
        wanted: impl FnMut(&SyncStatus) -> bool,
    ) -> Option<SyncStatus> {
        self.0.wait_for(wanted).await.ok().map(|it| it.clone())
    }
}

impl Shared {
    /// Tells whoever watches how it stands, if that is news.
    pub(super) fn tell_watchers(&self) {
        if self.watched.0.receiver_count() == 0 {
            return;
        }
        // Looked at under the lock of what is told: an older status never follows a newer one.
        self.watched.0.send_if_modified(|told| {
            let now = self.status();
            let is_news = now != *told;
            *told = now;
            is_news
        });
    }
}

/// Tells of changes, until the door closes.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut serving = shared.serving.subscribe();
    let mut admissions = shared.admissions.changes();
    loop {
        let sign = async {
            tokio::select! {
                () = shared.peers.changed() => {}
                _ = serving.changed() => {}
                _ = admissions.changed() => {}
            }
        };
        // Without one too.
        let _ = timeout(UNASKED, sign).await;
        sleep(PAUSE).await;
        shared.tell_watchers();
    }
}
