//! What is under way, so that an operation that comes again meanwhile costs no second proposal.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch},
    time::{Instant, timeout_at},
};

use crate::log_store::{
    error::{LogError, Outcome},
    operation::{Operation, OperationId},
};

/// What all calls on one group may have under way, in bytes; more wait for room.
const ROOM: usize = 64 * 1024 * 1024;
/// What an operation under way weighs besides its bytes.
const WEIGHT: usize = 512;
/// What became of each operation of a chunk; none while it is in doubt.
pub(super) type Outcomes = Vec<Option<Result<Outcome, LogError>>>;

/// What is under way on one group, by id. Bounded by [`ROOM`].
pub(in crate::log_store) struct InFlight {
    room: Arc<Semaphore>,
    flights: Mutex<HashMap<OperationId, Flight>>,
}

/// Where an operation's outcome will be told: in whose chunk, and at which place.
#[derive(Clone)]
pub(super) struct Flight {
    landed: watch::Receiver<Option<Landed>>,
    at: usize,
}

/// The numbers of those that the store holds.
pub(super) type Landed = Arc<[Option<u64>]>;

/// The ids of one chunk, until it is settled or dropped.
pub(super) struct Claims {
    in_flight: Arc<InFlight>,
    ids: Vec<OperationId>,
    land: watch::Sender<Option<Landed>>,
}

impl InFlight {
    /// Room for these operations; where it must not be waited for, none if there is none now.
    pub(super) async fn room(
        &self,
        operations: &[Operation],
        wait: bool,
    ) -> Option<OwnedSemaphorePermit> {
        let weight: usize = operations.iter().map(|it| length(it) + WEIGHT).sum();
        let weight = u32::try_from(weight.min(ROOM)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room);
        match Arc::clone(&room).try_acquire_many_owned(weight) {
            Ok(permit) => Some(permit),
            // The semaphore is never closed.
            Err(TryAcquireError::NoPermits) if wait => room.acquire_many_owned(weight).await.ok(),
            Err(_) => None,
        }
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.flights().len()
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<OperationId, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for InFlight {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(ROOM)),
            flights: Mutex::default(),
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight")
            .field("operations", &self.flights().len())
            .finish_non_exhaustive()
    }
}

impl Flight {
    /// What the other chunk had from the store, if it tells in time and the store holds it.
    pub(super) async fn outcome(mut self, deadline: Instant) -> Option<Outcome> {
        let landed = self.landed.wait_for(Option::is_some);
        let landed = timeout_at(deadline, landed).await.ok()?.ok()?;
        let number = (*landed.as_ref()?.get(self.at)?)?;
        Some(Outcome::Held { number })
    }
}

impl Claims {
    pub(super) fn none(in_flight: Arc<InFlight>) -> Self {
        Self {
            in_flight,
            ids: Vec::new(),
            land: watch::Sender::new(None),
        }
    }

    /// Claims the id, or tells who has it under way.
    pub(super) fn claim(&mut self, id: OperationId, at: usize) -> Option<Flight> {
        let mut flights = self.in_flight.flights();
        if let Some(flight) = flights.get(&id) {
            return Some(flight.clone());
        }
        let flight = Flight {
            landed: self.land.subscribe(),
            at,
        };
        flights.insert(id, flight);
        drop(flights);
        self.ids.push(id);
        None
    }

    /// Tells those who wait, and lets go of the ids.
    pub(super) fn land(&mut self, outcomes: &Outcomes) {
        let number = |outcome: &Option<Result<Outcome, LogError>>| match outcome {
            Some(Ok(outcome)) => outcome.number(),
            _ => None,
        };
        let landed: Landed = outcomes.iter().map(number).collect();
        self.land.send_replace(Some(landed));
        self.release();
    }

    fn release(&mut self) {
        let mut flights = self.in_flight.flights();
        for id in self.ids.drain(..) {
            flights.remove(&id);
        }
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.release();
    }
}

pub(super) fn length(operation: &Operation) -> usize {
    operation.header().len() + operation.body().map_or(0, bytes::Bytes::len)
}
