//! Early election: when the leader falls silent or departs, do not wait for Raft's own clock.
//!
//! A member that hears nothing more from the leader drops its own lease, which lets it grant
//! votes; voters then campaign after a little jitter. Members that still hear the leader refuse
//! the pre-vote, so a majority must have lost it before anybody's term grows.

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
            let jitter = timing.campaign_jitter.as_micros().try_into().unwrap_or(u64::MAX);
            let pause = rand::rng().random_range(0..=jitter);
            tokio::time::sleep(std::time::Duration::from_micros(pause)).await;
            let voter = matches!(self.state().role, Role::Follower | Role::Candidate);
            if voter && self.state().leader.is_none_or(|it| it == lost) {
                tracing::info!(%lost, "the leader is lost: campaigning");
                let _ = raft.trigger().elect(true).await;
            }
            tokio::time::sleep(timing.heartbeat / 2).await;
        }
    }

    /// Whether this member is out of reach: no bond with it, or a silent one.
    fn is_lost(&self, member: MemberId) -> bool {
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
