//! What a node counts, and what each number means.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The node's live counters; one set for all of its groups.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[doc = $doc])+ pub(crate) $name: Counter,)+
        }

        /// A node's counters at one moment. All count from the start of the process.
        ///
        /// ```
        /// use quorate::Metrics;
        ///
        /// /// Writes that each sync of the disk carries: the group commit.
        /// fn writes_per_sync(before: &Metrics, now: &Metrics) -> f64 {
        ///     let writes = now.synced_writes - before.synced_writes;
        ///     writes as f64 / (now.syncs - before.syncs).max(1) as f64
        /// }
        /// assert_eq!(writes_per_sync(&Metrics::default(), &Metrics::default()), 0.0);
        /// ```
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(crate) fn read(&self) -> Metrics {
                Metrics { $($name: self.$name.value(),)+ }
            }
        }
    };
}

counters! {
    /// Syncs of the store's write-ahead log to the disk.
    syncs,
    /// Writes that waited for one of those syncs; divided by `syncs`, the size of a group commit.
    synced_writes,
    /// Journal entries appended.
    journal_entries,
    /// Bytes of journal records appended.
    journal_bytes,
    /// Connections to other nodes that were opened, by either side.
    links_opened,
    /// Connections to other nodes that are gone.
    links_closed,
    /// Bonds formed.
    bonds_formed,
    /// Bonds ended.
    bonds_ended,
    /// Handshakes that did not end in a bond, for whatever reason.
    handshakes_refused,
    /// Snapshots written.
    snapshots_built,
    /// Snapshots received and installed.
    snapshots_installed,
    /// Times that other members sent commands which the machine refuses; see
    /// [`StateMachine::validate`](crate::StateMachine::validate).
    invalid_commands,
    /// Commands applied to state machines.
    commands_applied,
    /// Early elections tried because the leader fell silent or departed.
    early_elections,
}
