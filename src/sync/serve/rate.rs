//! How much is taken in of what peers push: for each second, and waiting for its commit. A token
//! bucket for one peer and one for all, each for operations and for bytes. No I/O; the time is
//! given.
//!
//! What is beyond is never lost: of a p2panda node it is discarded and asked for again, our own
//! client waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::SyncOptions;
use crate::identity::PeerId;

/// Peers that are counted each for itself; further ones only among all.
const PEERS_MAX: usize = 8_192;

/// What is left of a second's worth.
#[derive(Debug)]
struct Bucket {
    /// Comes back in a second, and the most that is saved up.
    each_second: f64,
    /// Below zero after more was spent than there was.
    level: f64,
    at: Instant,
}

/// A peer's operations and bytes, or those of all.
#[derive(Debug)]
struct Meter {
    operations: Bucket,
    bytes: Bucket,
    /// Bytes that wait for their commit.
    waiting: usize,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    operations: u32,
    bytes: u64,
    waiting: usize,
}

/// What all peers together push.
#[derive(Debug)]
pub(super) struct Rates {
    of_peer: Limits,
    state: Mutex<State>,
    waiting_max: usize,
}

#[derive(Debug)]
struct State {
    all: Meter,
    peers: BTreeMap<PeerId, Meter>,
}

/// One peer's part of it.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    rates: Arc<Rates>,
    peer: PeerId,
}

impl Bucket {
    fn new(each_second: f64, now: Instant) -> Self {
        Self {
            each_second,
            level: each_second,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.each_second).min(self.each_second);
        self.at = self.at.max(now);
    }

    /// Whether so much is there. More than a second's worth goes when the bucket is full.
    fn has(&self, amount: f64) -> bool {
        self.level >= amount.min(self.each_second)
    }

    /// Until nothing is owed.
    fn owed(&self) -> Duration {
        Duration::from_secs_f64((-self.level).max(0.0) / self.each_second)
    }
}

impl Meter {
    fn new(limits: Limits, now: Instant) -> Self {
        Self {
            operations: Bucket::new(f64::from(limits.operations), now),
            bytes: Bucket::new(limits.bytes as f64, now),
            waiting: 0,
        }
    }

    fn refill(&mut self, now: Instant) {
        self.operations.refill(now);
        self.bytes.refill(now);
    }

    fn has(&self, bytes: usize) -> bool {
        self.operations.has(1.0) && self.bytes.has(bytes as f64)
    }

    fn spend(&mut self, operations: usize, bytes: usize) {
        self.operations.level -= operations as f64;
        self.bytes.level -= bytes as f64;
    }

    fn owed(&self) -> Duration {
        self.operations.owed().max(self.bytes.owed())
    }

    /// Nothing is to be remembered of it.
    fn is_idle(&self) -> bool {
        let full = |it: &Bucket| it.level >= it.each_second;
        self.waiting == 0 && full(&self.operations) && full(&self.bytes)
    }

    /// Whether so much more may wait. One operation always may.
    fn may_wait(&self, bytes: usize, max: usize) -> bool {
        self.waiting == 0 || self.waiting.saturating_add(bytes) <= max
    }
}

impl Rates {
    pub(super) fn new(options: &SyncOptions, now: Instant) -> Self {
        let all = Limits {
            operations: options.operations_per_second_max,
            bytes: options.bytes_per_second_max,
            waiting: options.inbound_bytes_in_all_max,
        };
        Self {
            of_peer: Limits {
                operations: options.operations_per_second_of_peer_max,
                bytes: options.bytes_per_second_of_peer_max,
                waiting: options.inbound_bytes_of_peer_max,
            },
            state: Mutex::new(State {
                all: Meter::new(all, now),
                peers: BTreeMap::new(),
            }),
            waiting_max: all.waiting,
        }
    }

    pub(super) fn of(self: &Arc<Self>, peer: PeerId) -> Quota {
        Quota {
            rates: Arc::clone(self),
            peer,
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The meters of a peer and of all, as of now.
    fn meters(
        &mut self,
        peer: PeerId,
        limits: Limits,
        now: Instant,
    ) -> (&mut Meter, Option<&mut Meter>) {
        self.all.refill(now);
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            self.peers.retain(|_, it| {
                it.refill(now);
                !it.is_idle()
            });
        }
        let known = self.peers.contains_key(&peer) || self.peers.len() < PEERS_MAX;
        let of_peer = known.then(|| {
            let fresh = || Meter::new(limits, now);
            let of_peer = self.peers.entry(peer).or_insert_with(fresh);
            of_peer.refill(now);
            of_peer
        });
        (&mut self.all, of_peer)
    }
}

impl Quota {
    /// Takes an operation of so many bytes, which waits from now on, or says that it is beyond.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> bool {
        let limits = self.rates.of_peer;
        let mut state = self.rates.locked();
        let (all, of_peer) = state.meters(self.peer, limits, now);
        let fits = |meter: &Meter, max| meter.has(bytes) && meter.may_wait(bytes, max);
        let peer_fits = of_peer.as_ref().is_none_or(|it| fits(it, limits.waiting));
        if !fits(all, self.rates.waiting_max) || !peer_fits {
            return false;
        }
        for meter in of_peer.into_iter().chain([all]) {
            meter.spend(1, bytes);
            meter.waiting += bytes;
        }
        true
    }

    /// Bytes of this peer, and of all, that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        let state = self.rates.locked();
        let of_peer = state.peers.get(&self.peer).map_or(0, |it| it.waiting);
        state.all.waiting.max(of_peer)
    }

    /// So many bytes of what was taken do not wait any more.
    pub(super) fn done(&self, bytes: usize) {
        let mut state = self.rates.locked();
        state.all.waiting = state.all.waiting.saturating_sub(bytes);
        if let Some(of_peer) = state.peers.get_mut(&self.peer) {
            of_peer.waiting = of_peer.waiting.saturating_sub(bytes);
        }
    }

    /// Takes what our own client has sent, whatever it is, and says how long it is to wait now.
    pub(super) fn spend(&self, operations: usize, bytes: usize, now: Instant) -> Duration {
        let limits = self.rates.of_peer;
        let mut state = self.rates.locked();
        let (all, of_peer) = state.meters(self.peer, limits, now);
        let meters = of_peer.into_iter().chain([all]);
        meters.fold(Duration::ZERO, |owed, meter| {
            meter.spend(operations, bytes);
            owed.max(meter.owed())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(at: u64) -> PeerId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&at.to_be_bytes());
        PeerId::from_bytes(id)
    }

    fn rates(now: Instant) -> Arc<Rates> {
        let options = SyncOptions {
            operations_per_second_of_peer_max: 10,
            bytes_per_second_of_peer_max: 1_000,
            operations_per_second_max: 15,
            bytes_per_second_max: 10_000,
            inbound_bytes_of_peer_max: 2_000,
            inbound_bytes_in_all_max: 3_000,
            ..SyncOptions::default()
        };
        Arc::new(Rates::new(&options, now))
    }

    fn taken(quota: &Quota, tries: usize, bytes: usize, now: Instant) -> usize {
        let mut taken = 0;
        for _ in 0..tries {
            if quota.take(bytes, now) {
                taken += 1;
                quota.done(bytes);
            }
        }
        taken
    }

    #[test]
    fn a_peer_gets_a_seconds_worth_and_then_what_comes_back() {
        let now = Instant::now();
        let rates = rates(now);
        let one = rates.of(peer(1));
        assert_eq!(taken(&one, 100, 1, now), 10, "operations");
        let later = now + Duration::from_millis(500);
        assert_eq!(taken(&one, 100, 1, later), 5);
        let much_later = now + Duration::from_secs(100);
        assert_eq!(taken(&one, 100, 1, much_later), 10, "no more is saved up");
        let later = much_later + Duration::from_secs(1);
        assert_eq!(taken(&one, 100, 300, later), 3, "bytes");
        // Other sessions of the same peer, later too, are the same peer.
        assert_eq!(taken(&rates.of(peer(1)), 100, 300, later), 0);
    }

    #[test]
    fn all_together_get_no_more_than_that() {
        let now = Instant::now();
        let rates = rates(now);
        assert_eq!(taken(&rates.of(peer(1)), 100, 1, now), 10);
        assert_eq!(taken(&rates.of(peer(2)), 100, 1, now), 5);
        assert_eq!(taken(&rates.of(peer(3)), 100, 1, now), 0);
    }

    #[test]
    fn what_is_larger_than_a_seconds_worth_goes_alone() {
        let now = Instant::now();
        let rates = rates(now);
        let one = rates.of(peer(1));
        assert_eq!(taken(&one, 2, 5_000, now), 1);
        let owing = now + Duration::from_secs(4);
        assert_eq!(taken(&one, 2, 1, owing), 0, "it was paid for by waiting");
        let paid = now + Duration::from_secs(6);
        assert_eq!(taken(&one, 2, 1, paid), 2);
    }

    #[test]
    fn what_waits_is_bounded_for_one_and_for_all() {
        let now = Instant::now();
        let rates = rates(now);
        let (one, two) = (rates.of(peer(1)), rates.of(peer(2)));
        let second = |at| now + Duration::from_secs(at);
        assert!(one.take(1_000, second(0)) && one.take(1_000, second(1)));
        assert!(!one.take(1_000, second(2)), "it has its 2,000");
        assert!(two.take(1_000, second(2)));
        assert!(!two.take(1_000, second(3)), "all have their 3,000");
        one.done(1_000);
        assert!(two.take(1_000, second(4)));
    }

    #[test]
    fn our_own_client_waits_for_what_it_owes() {
        let now = Instant::now();
        let rates = rates(now);
        let one = rates.of(peer(1));
        assert_eq!(one.spend(10, 10, now), Duration::ZERO);
        assert_eq!(one.spend(5, 10, now), Duration::from_millis(500));
        let later = now + Duration::from_millis(500);
        assert_eq!(one.spend(0, 0, later), Duration::ZERO);
    }

    #[test]
    fn who_is_idle_is_forgotten() {
        let now = Instant::now();
        let rates = rates(now);
        for at in 0..PEERS_MAX as u64 {
            rates.of(peer(at)).spend(0, 0, now);
        }
        assert_eq!(rates.locked().peers.len(), PEERS_MAX);
        rates.of(peer(1)).spend(20, 0, now);
        rates.of(peer(u64::MAX)).spend(1, 0, now);
        let known: Vec<PeerId> = rates.locked().peers.keys().copied().collect();
        assert_eq!(known, [peer(1), peer(u64::MAX)]);
    }
}
