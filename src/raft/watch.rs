//! What a replica shows of itself: role, leader, term, members and how they are.

use openraft::async_runtime::watch::WatchReceiver;

use super::{MemberNode, replica::Replica};
use crate::{
    error::Cause,
    identity::{MemberId, PeerId},
    machine::Position,
};

/// What a member does in its group at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Has not been admitted yet; it is looking for a member that admits it.
    #[default]
    Joining,
    /// Receives the journal and does not vote.
    Learner,
    /// Votes and follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Orders the commands of the group.
    Leader,
    /// The group does not run on this node any more.
    Stopped,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Joining => "joining",
            Self::Learner => "learner",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Stopped => "stopped",
        })
    }
}

/// What changes seldom; watched.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReplicaState {
    pub(crate) role: Role,
    pub(crate) term: u64,
    pub(crate) leader: Option<MemberId>,
    pub(crate) members: Vec<MemberState>,
    /// Somebody founded another group with the same key, and has been met.
    pub(crate) rival: bool,
    /// How often others sent what the machine refuses.
    pub(crate) invalid_commands: u64,
    /// The group has removed this member.
    pub(crate) removed: bool,
    pub(crate) stopped: Option<Cause>,
}

/// One member as the membership names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub(crate) member: MemberId,
    pub(crate) peer: PeerId,
    /// In the latest membership, be it committed or not: what Raft goes by.
    pub(crate) voter: bool,
    /// In every configuration of the last committed membership: what others may rely on.
    pub(crate) settled_voter: bool,
}

/// What is measured when asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) applied: Position,
    pub(crate) last_index: u64,
    pub(crate) committed_index: u64,
    pub(crate) snapshot_index: u64,
    pub(crate) purged_index: u64,
    /// On the leader: the last index each other member is known to hold.
    pub(crate) matched: Vec<(MemberId, u64)>,
}

impl Replica {
    pub(crate) fn progress(&self) -> Progress {
        let Some(raft) = self.raft() else {
            return Progress::default();
        };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<super::LogId>| id.map_or(0, |it| it.index);
        Progress {
            applied: metrics
                .last_applied
                .map_or_else(Position::default, |it| Position {
                    term: it.leader_id.term,
                    index: it.index,
                    offset: 0,
                }),
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(metrics.local_committed),
            snapshot_index: index(metrics.snapshot),
            purged_index: index(metrics.purged),
            matched: metrics
                .replication
                .iter()
                .flatten()
                .map(|(member, matched)| (*member, index(*matched)))
                .collect(),
        }
    }

    /// Follows the Raft instance and tells what changed, until the instance ends.
    pub(super) async fn follow(&self, raft: super::Raft) {
        let mut metrics = raft.server_metrics();
        let mut applied = self.applied();
        loop {
            let committed = applied.borrow_and_update().membership.clone();
            {
                let seen = metrics.borrow_and_update();
                let members = members(seen.membership_config.membership(), committed.membership());
                let admitted = members.iter().any(|it| it.member == self.member());
                let role = match seen.state {
                    _ if !admitted => Role::Joining,
                    openraft::ServerState::Learner => Role::Learner,
                    openraft::ServerState::Follower => Role::Follower,
                    openraft::ServerState::Candidate => Role::Candidate,
                    openraft::ServerState::Leader => Role::Leader,
                    openraft::ServerState::Shutdown => Role::Stopped,
                };
                let (term, leader) = (seen.vote.leader_id.term, seen.current_leader);
                self.tell(|told| {
                    told.role = role;
                    told.term = term;
                    told.leader = leader;
                    told.members = members;
                });
            }
            let mut news = false;
            while !news {
                tokio::select! {
                    changed = metrics.changed() => match changed {
                        Ok(()) => news = true,
                        Err(_) => return,
                    },
                    changed = applied.changed() => match changed {
                        Ok(()) => news = applied.borrow_and_update().membership != committed,
                        Err(_) => return,
                    },
                }
            }
        }
    }
}

fn members(latest: &super::Membership, committed: &super::Membership) -> Vec<MemberState> {
    let voters: Vec<MemberId> = latest.voter_ids().collect();
    let settled = committed.get_joint_config();
    let state = |(member, node): (&MemberId, &MemberNode)| MemberState {
        member: *member,
        peer: node.peer(),
        voter: voters.contains(member),
        settled_voter: !settled.is_empty() && settled.iter().all(|it| it.contains(member)),
    };
    latest.nodes().map(state).collect()
}
