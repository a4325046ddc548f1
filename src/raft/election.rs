//! Early election: when the leader falls silent or departs, do not wait for Raft's own clock.
//!
//! A member that hears nothing more from the leader drops its own lease, which lets it grant
//! votes; voters then campaign after a little jitter. Members that still hear the leader refuse
//! the pre-vote, so a majority must have lost it before anybody's term grows.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use openraft::raft::TransferLeaderRequest;
use rand::RngExt;

use super::{Raft, Role, replica::Replica};
use crate::identity::MemberId;

impl Replica {
    /// Reacts to every loss of a leader until the replica stops.
    pub(super) async fn elect_early(&self) {
        let mut lost = self.losses();
        loop {
            let Ok(()) = lost.changed().await else { return };
            let leader = *lost.borrow_and_update();
            if let Some(leader) = leader {
                self.replace_leader(leader).await;
            }
        }
    }

    /// Campaigns until there is another leader, or this one is heard again.
    async fn replace_leader(&self, lost: MemberId) {
        let timing = self.config().timing;
        self.counters().early_elections.add(1);
        // Raft's own clock takes over after this; until then a refused pre-vote is tried again,
        // since the others may notice the silence a heartbeat later than we do.
        let give_up = tokio::time::Instant::now() + timing.election_timeout_max;
        while tokio::time::Instant::now() < give_up {
            let state = self.state();
            if state.leader.is_some_and(|it| it != lost) || !self.is_lost(lost) {
                return;
            }
            let Some(raft) = self.raft() else { return };
            drop_lease(&raft, lost).await;
            let jitter = timing
                .campaign_jitter
                .as_micros()
                .try_into()
                .unwrap_or(u64::MAX);
            let pause = rand::rng().random_range(0..=jitter);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            // A candidate's election runs already; another would undo it.
            let voter = self.state().role == Role::Follower;
            if voter && self.state().leader.is_none_or(|it| it == lost) {
                tracing::info!(%lost, "the leader is lost: campaigning");
                let _ = raft.trigger().elect(true).await;
            }
            tokio::time::sleep(timing.heartbeat / 2).await;
        }
    }

    /// Whether this member is out of reach: no bond with it, or a silent one, or it said goodbye;
    /// or nothing is taken of it as the leader.
    fn is_lost(&self, member: MemberId) -> bool {
        let state = self.state();
        if state.leader == Some(member) && self.refuses_leader(state.term, member) {
            return true;
        }
        match self.mesh().bond_to(member) {
            Some(bond) => bond.is_silent() || self.has_departed(member),
            None => true,
        }
    }
}

/// openraft clears the lease of the vote it holds when it hears that this vote's leader hands
/// over to somebody; told that it hands over to itself, it does nothing else.
async fn drop_lease(raft: &Raft, lost: MemberId) {
    let vote = raft.with_raft_state(|it| *it.vote_ref()).await;
    if let Ok(vote) = vote
        && vote.committed
        && vote.leader_id.voted_for == lost
    {
        let request = TransferLeaderRequest::new(vote, lost, None);
        let _ = raft.handle_transfer_leader(request).await;
    }
}

/// When the appends of the current leader were last heard here.
///
/// openraft's own lease does not come back for the rest of a term once [`drop_lease`] has cleared
/// it; this one does, so that a leader which was out of reach for a moment is as hard to depose
/// afterwards as before.
#[derive(Debug)]
pub(super) struct Heard {
    started: Instant,
    /// Milliseconds after `started`, plus one; 0 means never.
    at: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            at: AtomicU64::new(0),
        }
    }
}

impl Heard {
    pub(super) fn now(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.at.store(millis + 1, Ordering::Relaxed);
    }

    fn within(&self, span: Duration) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        let Some(at) = at.checked_sub(1) else {
            return false;
        };
        let age = self
            .started
            .elapsed()
            .saturating_sub(Duration::from_millis(at));
        age < span
    }
}

impl Replica {
    /// Whether this member has a leader that works, as far as it can tell: votes for others are
    /// then refused, as a lease would.
    pub(super) fn follows_a_live_leader(&self, candidate: MemberId) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        leader != candidate
            && leader != self.member()
            && !self.is_lost(leader)
            && self
                .heard()
                .within(self.config().timing.election_timeout_min)
    }
}
