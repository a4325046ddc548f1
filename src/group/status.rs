//! What a member sees of its group.

use std::{fmt, time::Duration};

use tokio::sync::watch;

use super::{Group, Stopped};
use crate::{
    identity::{GroupId, MemberId, PeerId},
    machine::{Position, StateMachine},
    mesh::Bonds,
    raft::{ReplicaState, Role},
};

/// How long [`StatusWatch::changed`] waits at most before it looks at lags and round trips again.
const REFRESH: Duration = Duration::from_secs(1);

/// One member's picture of the group at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// The group.
    pub group: GroupId,
    /// This node's name in it.
    pub member: MemberId,
    /// What this member does.
    pub role: Role,
    /// The highest Raft term this member has seen; 0 before the first.
    pub term: u64,
    /// Who leads, as far as this member knows.
    pub leader: Option<MemberId>,
    /// Everybody in the membership, this member included, in the order of their ids.
    pub members: Vec<MemberStatus>,
    /// Through which position the state that local queries see holds every command.
    pub applied: Position,
    /// The last journal index known here to be committed.
    pub committed_index: u64,
    /// The last journal index in this member's newest snapshot; 0 without one.
    pub snapshot_index: u64,
    /// The last journal index that this member has purged behind a snapshot; 0 if none. A member
    /// that lacks entries up to it is sent the snapshot.
    pub purged_index: u64,
    /// Whether this member can reach a majority of the voters at the moment.
    pub quorum: bool,
    /// How often other members have sent this one commands that the machine refuses, since the
    /// group was opened here: entries forwarded to it as the leader, and terms of leaders that it
    /// takes nothing more from. See [`StateMachine::validate`].
    pub invalid_commands: u64,
    /// What somebody should look after; none once the group has stopped here.
    pub warnings: Vec<Warning>,
    /// Why the group does not run on this node any more, if so.
    pub stopped: Option<Stopped>,
}

impl Status {
    /// How many members vote.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.members.iter().filter(|it| it.voter).count()
    }
}

/// One member as another sees it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemberStatus {
    /// Its name in the group.
    pub member: MemberId,
    /// Its node.
    pub peer: PeerId,
    /// Whether it votes; learners do not. Said once a change is through: a member that is being
    /// made a voter, or ceases to be one, does not count yet, or no more.
    pub voter: bool,
    /// How it is reached from here.
    pub health: Health,
    /// Journal entries it is known to lack; only the leader knows.
    pub lag: Option<u64>,
    /// The round trip through its Raft core, smoothed; `None` without a bond, and for this node.
    pub rtt: Option<Duration>,
}

/// How a member is reached from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// It is this node.
    Here,
    /// Bonded, and it answers.
    Good,
    /// Bonded, but it has missed heartbeats.
    Silent,
    /// No bond; it is being dialled.
    Unreachable,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Here => "here",
            Self::Good => "good",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
        })
    }
}

/// What somebody should look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// Fewer than three voters: with two, each write needs both; with one, its disk is all there
    /// is.
    FewVoters,
    /// No majority of the voters can be reached from here: nothing is acknowledged.
    NoQuorum,
    /// Some voter cannot be reached; one more may cost the quorum.
    VoterDown,
    /// Another group was founded with the same key; a node of it has been met and refused. Stays
    /// until this node is restarted.
    RivalGroup,
    /// Another member sent commands that the machine refuses, forged ones of the log store for
    /// instance: it is broken or in foreign hands, and the log of this node names it. Nothing of
    /// them was applied here. Stays until this node is restarted.
    InvalidCommands,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FewVoters => "fewer than three voters: the loss of one stops the group",
            Self::NoQuorum => "no majority of the voters can be reached from here",
            Self::VoterDown => "a voter cannot be reached",
            Self::RivalGroup => {
                "another group was founded with the same key: remove the data of one of the two, \
                 then join the other"
            }
            Self::InvalidCommands => {
                "a member sent invalid commands, which were refused: find out which in the log, \
                 and remove it"
            }
        })
    }
}

impl<M: StateMachine> Group<M> {
    /// How the group is, as this member sees it now.
    #[must_use]
    pub fn status(&self) -> Status {
        let ReplicaState {
            role,
            term,
            leader,
            members,
            rival,
            invalid_commands,
            removed: _,
            stopped,
        } = self.replica.state();
        let progress = self.replica.progress();
        let here = self.member();
        let members: Vec<MemberStatus> = members
            .into_iter()
            .map(|it| {
                let bond = self.replica.mesh().bond_to(it.member);
                let matched = progress
                    .matched
                    .iter()
                    .find(|(member, _)| *member == it.member);
                let lead = leader == Some(here);
                MemberStatus {
                    member: it.member,
                    peer: it.peer,
                    voter: it.settled_voter,
                    health: match &bond {
                        _ if it.member == here => Health::Here,
                        Some(bond) if bond.is_silent() => Health::Silent,
                        Some(_) => Health::Good,
                        None => Health::Unreachable,
                    },
                    lag: match matched {
                        _ if it.member == here => lead.then_some(0),
                        Some((_, index)) => Some(progress.last_index.saturating_sub(*index)),
                        None => None,
                    },
                    rtt: bond.and_then(|it| it.rtt()),
                }
            })
            .collect();
        let quorum = reaches_quorum(&members);
        let warnings = match &stopped {
            Some(_) => Vec::new(),
            None => warnings(&members, quorum, rival, invalid_commands > 0),
        };
        Status {
            group: self.id(),
            member: here,
            role,
            term,
            leader,
            members,
            applied: self.views.applied(),
            committed_index: progress.committed_index,
            snapshot_index: progress.snapshot_index,
            purged_index: progress.purged_index,
            quorum,
            invalid_commands,
            warnings,
            stopped: stopped.map(Stopped::new),
        }
    }

    /// Watches the status; see [`StatusWatch::changed`].
    #[must_use]
    pub fn watch_status(&self) -> StatusWatch<M> {
        StatusWatch {
            state: self.replica.watch(),
            bonds: self.bonds(),
            group: self.clone(),
        }
    }
}

/// A status that tells when it changes; from [`Group::watch_status`].
///
/// ```
/// # use quorate::{GroupKey, Map, Node, Role};
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let node = Node::in_memory().bind_loopback().open().await?;
/// # let group = node.create(GroupKey::generate(), Map::new()).await?;
/// let status = group.watch_status().wait_for(|it| it.role == Role::Leader).await;
/// assert_eq!((status.voters(), status.quorum), (1, true));
/// assert_eq!(status.warnings, [quorate::Warning::FewVoters]);
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct StatusWatch<M: StateMachine> {
    group: Group<M>,
    state: watch::Receiver<ReplicaState>,
    bonds: Bonds,
}

impl<M: StateMachine> StatusWatch<M> {
    /// The status as it is now.
    #[must_use]
    pub fn now(&self) -> Status {
        self.group.status()
    }

    /// Waits for a change of role, leader, term, members or bonds, or for a second, and gives the
    /// status then. Cancel-safe.
    pub async fn changed(&mut self) -> Status {
        tokio::select! {
            _ = self.state.changed() => {}
            // Once closed they answer at once, every time.
            _ = self.bonds.changed(), if !self.bonds.is_closed() => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
        self.group.status()
    }

    /// Waits until the status is as wanted, or the group has stopped here, and gives it. A stopped
    /// group stays as it is: where that may be, look at [`Status::stopped`]. Cancel-safe.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.now();
        while !wanted(&status) && status.stopped.is_none() {
            status = self.changed().await;
        }
        status
    }
}

impl<M: StateMachine> fmt::Debug for StatusWatch<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusWatch")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

fn reaches_quorum(members: &[MemberStatus]) -> bool {
    let voters = members.iter().filter(|it| it.voter).count();
    let reached = members
        .iter()
        .filter(|it| it.voter && matches!(it.health, Health::Here | Health::Good))
        .count();
    reached > voters / 2
}

fn warnings(members: &[MemberStatus], quorum: bool, rival: bool, invalid: bool) -> Vec<Warning> {
    let voters = || members.iter().filter(|it| it.voter);
    let down = voters().any(|it| matches!(it.health, Health::Silent | Health::Unreachable));
    let all = [
        (voters().count() < 3, Warning::FewVoters),
        (!quorum, Warning::NoQuorum),
        (down, Warning::VoterDown),
        (rival, Warning::RivalGroup),
        (invalid, Warning::InvalidCommands),
    ];
    all.into_iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, it)| it)
        .collect()
}
