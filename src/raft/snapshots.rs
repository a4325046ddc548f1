//! When to take a snapshot: by the bytes of journal behind the last one, not by a count.
//!
//! openraft's own policy counts entries and would write the whole state many times a second at
//! our rates. Purging follows each snapshot, by openraft, once the snapshot is safe on disk.

use std::time::Duration;

use super::replica::Replica;

/// How often the journal's size is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a snapshot may be under way before another one is asked for: an instance that is put
/// away never tells of the one it had begun. openraft builds one at a time, so asking early is
/// harmless.
const BUILD_TIME_MAX: Duration = Duration::from_secs(120);

impl Replica {
    /// Takes snapshots until the replica stops.
    pub(super) async fn keep_snapshots(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(raft) = self.raft() else { continue };
            let progress = self.progress();
            if progress.applied.index <= progress.snapshot_index {
                continue;
            }
            let behind = self.journal().bytes_since(progress.snapshot_index);
            // Writing the state costs its size, so the journal may grow as large before.
            let state = self.snapshot_bytes();
            if behind >= self.config().snapshot_after_bytes.max(state) {
                tracing::debug!(behind, state, "taking a snapshot");
                let taken = progress.snapshot_index;
                if raft.trigger().snapshot().await.is_ok() {
                    let newer = self.snapshot_taken_after(taken);
                    let _ = tokio::time::timeout(BUILD_TIME_MAX, newer).await;
                }
            }
        }
    }

    /// Waits until a newer snapshot than that at `index` is there, so that building is asked for
    /// once, not at every look.
    async fn snapshot_taken_after(&self, index: u64) {
        while self.progress().snapshot_index <= index {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
