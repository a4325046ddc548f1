//! When to take a snapshot: by the bytes of journal behind the last one, not by a count.
//!
//! openraft's own policy counts entries and would write the whole state many times a second at
//! our rates. Purging follows each snapshot, by openraft, once the snapshot is safe on disk.

use std::time::Duration;

use super::replica::Replica;

/// How often the journal's size is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

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
                    self.snapshot_taken_after(taken).await;
                }
            }
        }
    }

    /// Waits until a newer snapshot than that at `index` is there, so that building is asked for
    /// once, not at every look.
    async fn snapshot_taken_after(&self, index: u64) {
        while self.stopped().is_none() && self.progress().snapshot_index <= index {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
