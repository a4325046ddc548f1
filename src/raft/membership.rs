//! Who is a member: admitting, promoting, removing, handing leadership over.
//!
//! All of it is the leader's to do, one change at a time; other members pass requests on. A
//! change is done when its entry is committed, never because of what a bond says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    ChangeMembers,
    async_runtime::watch::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use rand::seq::IteratorRandom;
use serde::{Deserialize, Serialize};

use super::{MemberNode, Raft, Role, Types, codec, replica::Replica};
use crate::{
    bond::{Lane, Proven},
    error::Cause,
    identity::{MemberId, PeerAddr},
};

/// The request's first byte on [`Lane::Forward`].
pub(super) const MEMBERSHIP: u8 = 17;

/// How often the leader looks whether a learner has caught up or a change was left half done.
const UPKEEP_EVERY: Duration = Duration::from_millis(100);
/// Members of one group, learners included; far below what a membership entry can hold.
const MEMBERS_MAX: usize = 128;
/// Members that one group can have removed in its life: their ids are kept for good.
const REMOVED_MAX: usize = 65_536;
/// How long one membership change may take before the caller is told that there is no quorum.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(10);

/// What a member asks of the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Admit the sender as a learner.
    Join { member: MemberId, addr: PeerAddr },
    /// Remove a member for good.
    Remove { member: MemberId },
    /// Hand leadership over to a voter.
    Transfer { to: MemberId },
}

/// What the leader answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Response {
    Done,
    /// Ask this one, or again soon.
    NotLeader(Option<MemberId>),
    /// Another change is under way; ask again.
    Busy,
    Refused(MembershipRefusal),
}

/// Why the leader will not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum MembershipRefusal {
    /// The member id was removed before.
    #[error("this member was removed from the group; its data cannot be used again")]
    Removed,
    /// The request speaks for somebody else.
    #[error("a node may ask to join only for itself")]
    NotYourself,
    /// Nobody of that name is in the group.
    #[error("no such member")]
    NoSuchMember,
    /// The voters that would remain, or those there are, could not decide anything.
    #[error(
        "too few of the voters can be reached to change who votes: bring one back, or remove \
         those that are gone for good first"
    )]
    NoMajority,
    /// The group has as many members as it may have.
    #[error("the group has as many members as it may have; remove some first")]
    Full,
    /// A group without voters would be lost.
    #[error("the last voter cannot be removed; it can only leave, which ends the group")]
    LastVoter,
    /// Leadership goes to voters that are connected.
    #[error("leadership can go only to a voter that is bonded with the leader")]
    NotAVoter,
    /// The target lacks too much of the journal.
    #[error("the chosen member is too far behind to lead; try again when it has caught up")]
    TooFarBehind,
    /// The target did not take over; the old leader or another one goes on.
    #[error("the chosen member did not take over in time; the group goes on")]
    NotTaken,
}

/// Why a membership request did not succeed.
#[derive(Clone, Debug)]
pub(crate) enum MembershipError {
    Refused(MembershipRefusal),
    /// No leader with a quorum carried it out in time; it may still happen.
    NoQuorum,
    Stopped(Cause),
}

impl Replica {
    /// Has the leader do it, wherever the leader is; tries until it is done, refused or late.
    pub(crate) async fn ask_leader(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<(), MembershipError> {
        let asking = async {
            let mut hint = None;
            loop {
                if let Some(cause) = self.stopped() {
                    return Err(MembershipError::Stopped(cause));
                }
                match self.ask_once(&request, hint).await {
                    Some(Response::Done) => return Ok(()),
                    Some(Response::Refused(why)) => return Err(MembershipError::Refused(why)),
                    Some(Response::NotLeader(leader)) => hint = leader,
                    Some(Response::Busy) => {}
                    None => hint = None,
                }
                tokio::time::sleep(self.config().timing.heartbeat).await;
            }
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(result) => result,
            Err(_) => Err(MembershipError::NoQuorum),
        }
    }

    async fn ask_once(&self, request: &Request, hint: Option<MemberId>) -> Option<Response> {
        let known = self.leader().or(hint);
        if known == Some(self.member()) {
            return Some(self.carry_out(request.clone()).await);
        }
        let mesh = self.mesh();
        // A joiner knows no leader yet: somebody it is bonded with can tell. Not always the same
        // one, which may be a joiner itself.
        let bond = known.and_then(|it| mesh.bond_to(it)).or_else(|| {
            mesh.bonds()
                .iter()
                .map(|(_, bond)| bond)
                .choose(&mut rand::rng())
        })?;
        let mut message = vec![MEMBERSHIP];
        message.extend(postcard::to_stdvec(request).ok()?);
        let answer = bond.request(Lane::Forward, message.into());
        let answer = tokio::time::timeout(CHANGE_TIME_MAX, answer)
            .await
            .ok()?
            .ok()?;
        postcard::from_bytes(&answer).ok()
    }

    /// Serves another member's request.
    pub(super) async fn membership_forwarded(&self, from: Proven, body: Bytes) -> Option<Bytes> {
        let request = decode(&body).ok()?;
        let speaks_for_itself = match &request {
            Request::Join { member, addr } => *member == from.member && addr.peer == from.peer,
            Request::Remove { .. } | Request::Transfer { .. } => true,
        };
        let response = if !speaks_for_itself {
            Response::Refused(MembershipRefusal::NotYourself)
        } else if self.leader() == Some(self.member()) {
            self.carry_out(request).await
        } else {
            Response::NotLeader(self.leader())
        };
        postcard::to_stdvec(&response).ok().map(Bytes::from)
    }

    async fn carry_out(&self, request: Request) -> Response {
        let Some(raft) = self.raft() else {
            return Response::NotLeader(None);
        };
        // One change at a time: openraft's issue 1544 is about several.
        let Ok(_turn) = self.change_turn().try_lock() else {
            return Response::Busy;
        };
        match request {
            Request::Join { member, addr } => self.admit_learner(&raft, member, addr).await,
            Request::Remove { member } => self.remove_member(&raft, member).await,
            Request::Transfer { to } => match self.hand_over(&raft, to).await {
                Ok(()) => Response::Done,
                Err(why) => Response::Refused(why),
            },
        }
    }

    async fn admit_learner(&self, raft: &Raft, member: MemberId, addr: PeerAddr) -> Response {
        if self.is_removed(member) {
            return Response::Refused(MembershipRefusal::Removed);
        }
        if self.state().members.iter().any(|it| it.member == member) {
            return Response::Done;
        }
        let removed = self.removed_count();
        if self.state().members.len() >= MEMBERS_MAX || removed >= REMOVED_MAX {
            return Response::Refused(MembershipRefusal::Full);
        }
        tracing::info!(%member, peer = %addr.peer, "admitting a learner");
        let adding = ChangeMembers::AddNodes(BTreeMap::from([(member, MemberNode { addr })]));
        self.change(raft, adding).await
    }

    async fn remove_member(&self, raft: &Raft, member: MemberId) -> Response {
        let members = self.state().members;
        let Some(target) = members.iter().find(|it| it.member == member) else {
            let gone = self.is_removed(member);
            let refusal = Response::Refused(MembershipRefusal::NoSuchMember);
            return if gone { Response::Done } else { refusal };
        };
        if target.voter && members.iter().filter(|it| it.voter).count() == 1 {
            return Response::Refused(MembershipRefusal::LastVoter);
        }
        if member == self.member() {
            // Nobody can lead the group out of which it goes; the successor does it.
            let Some(heir) = self.best_heir() else {
                return Response::Busy;
            };
            return match self.hand_over(raft, heir).await {
                Ok(()) => Response::NotLeader(Some(heir)),
                Err(_) => Response::Busy,
            };
        }
        if target.voter && !self.can_decide_without(member) {
            return Response::Refused(MembershipRefusal::NoMajority);
        }
        tracing::info!(%member, "removing a member");
        let one = BTreeSet::from([member]);
        let removing = if target.voter {
            ChangeMembers::RemoveVoters(one)
        } else {
            ChangeMembers::RemoveNodes(one)
        };
        self.change(raft, removing).await
    }

    async fn change(&self, raft: &Raft, change: ChangeMembers<MemberId, MemberNode>) -> Response {
        // Not retained: who loses its vote leaves the group, also when the second half of a joint
        // change is done by another leader.
        let changing = raft.change_membership(change, false);
        match tokio::time::timeout(CHANGE_TIME_MAX, changing).await {
            Ok(Ok(_)) => Response::Done,
            Ok(Err(error)) => refused_by_core(&error),
            Err(_) => Response::Busy,
        }
    }

    /// Whether a majority of the voters, and one of those that remain, can be reached: a joint
    /// change needs both, and one that cannot be finished blocks every other.
    fn can_decide_without(&self, removed: MemberId) -> bool {
        let voters: Vec<MemberId> = self
            .state()
            .members
            .iter()
            .filter(|it| it.voter)
            .map(|it| it.member)
            .collect();
        let majority = |of: Vec<MemberId>| {
            let reached = of.iter().filter(|it| self.reaches(**it)).count();
            reached > of.len() / 2
        };
        let remaining = voters.iter().copied().filter(|it| *it != removed).collect();
        majority(voters) && majority(remaining)
    }

    fn reaches(&self, member: MemberId) -> bool {
        let bond = self.mesh().bond_to(member);
        member == self.member() || bond.is_some_and(|it| !it.is_silent())
    }

    /// The voter that has most of the journal among those we are bonded with.
    pub(crate) fn best_heir(&self) -> Option<MemberId> {
        let mesh = self.mesh();
        let matched: BTreeMap<MemberId, u64> = self.progress().matched.into_iter().collect();
        self.state()
            .members
            .iter()
            .filter(|it| it.voter && it.member != self.member())
            .filter(|it| {
                mesh.bond_to(it.member)
                    .is_some_and(|bond| !bond.is_silent())
            })
            .max_by_key(|it| matched.get(&it.member).copied())
            .map(|it| it.member)
    }

    /// Hands leadership over. openraft never gives an attempt up; if nobody took over within an
    /// election timeout, the Raft instance is started anew, which every replica must bear at any
    /// time anyway.
    async fn hand_over(&self, raft: &Raft, heir: MemberId) -> Result<(), MembershipRefusal> {
        let handed = self.try_hand_over(raft, heir).await;
        if handed == Err(MembershipRefusal::NotTaken) {
            self.restart_raft().await;
        }
        handed
    }

    /// Takes no more commands, waits until the heir has everything, tells it to campaign at once.
    /// (Ongaro, *Consensus: Bridging Theory and Practice*, section 3.10.)
    pub(super) async fn try_hand_over(
        &self,
        raft: &Raft,
        heir: MemberId,
    ) -> Result<(), MembershipRefusal> {
        if heir == self.member() {
            return Ok(());
        }
        let votes = self
            .state()
            .members
            .iter()
            .any(|it| it.member == heir && it.voter);
        let bonded = self.mesh().bond_to(heir).is_some();
        if !votes || !bonded {
            return Err(MembershipRefusal::NotAVoter);
        }
        let limit = self.config().timing.election_timeout_max;
        let _intake = self.close_intake();
        if tokio::time::timeout(limit, self.matches_all(heir))
            .await
            .is_err()
        {
            return Err(MembershipRefusal::TooFarBehind);
        }
        let term = self.state().term;
        if raft.trigger().transfer_leader(heir).await.is_err() {
            return Err(MembershipRefusal::NotTaken);
        }
        let mut watch = self.watch();
        let taken = watch.wait_for(|it| it.term > term && it.leader.is_some());
        match tokio::time::timeout(limit, taken).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MembershipRefusal::NotTaken),
        }
    }

    async fn matches_all(&self, heir: MemberId) {
        loop {
            let progress = self.progress();
            let matched = progress.matched.iter().find(|(member, _)| *member == heir);
            if matched.is_some_and(|(_, index)| *index >= progress.last_index) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The leader's standing work: finish what a predecessor left in a joint configuration, promote
    /// learners that have caught up, drop members whose node has come back as another member.
    pub(super) async fn keep_membership(&self) {
        let mut watch = self.watch();
        loop {
            if watch.wait_for(|it| it.role == Role::Leader).await.is_err() {
                return;
            }
            tokio::time::sleep(UPKEEP_EVERY).await;
            let Some(raft) = self.raft() else { continue };
            let Ok(_turn) = self.change_turn().try_lock() else {
                continue;
            };
            if let Some(change) = self.next_change(&raft) {
                tracing::info!(?change, "changing the membership");
                let response = self.change(&raft, change).await;
                tracing::debug!(?response, "membership change");
            }
        }
    }

    fn next_change(&self, raft: &Raft) -> Option<ChangeMembers<MemberId, MemberNode>> {
        let state = self.state();
        if state.role != Role::Leader {
            return None;
        }
        if is_joint(raft) {
            // Adding nobody flattens the joint configuration.
            return Some(ChangeMembers::AddVoterIds(BTreeSet::new()));
        }
        let voters = state.members.iter().filter(|it| it.voter).count();
        if let Some(ghost) = self.ghost() {
            let one = BTreeSet::from([ghost]);
            let votes = state
                .members
                .iter()
                .any(|it| it.member == ghost && it.voter);
            if votes && !self.can_decide_without(ghost) {
                return None;
            }
            return Some(if votes {
                ChangeMembers::RemoveVoters(one)
            } else {
                ChangeMembers::RemoveNodes(one)
            });
        }
        let ready = self.caught_up();
        let room = self.config().max_voters.saturating_sub(voters);
        // Up to three voters one by one; from there in pairs, since an even one adds no safety.
        let step = if voters < 3 { 1 } else { 2 };
        if room < step || ready.len() < step {
            return None;
        }
        Some(ChangeMembers::AddVoterIds(
            ready.into_iter().take(step).collect(),
        ))
    }

    /// A member whose peer now speaks as another, newer member of the group: its data is gone.
    fn ghost(&self) -> Option<MemberId> {
        let mesh = self.mesh();
        let members = self.state().members;
        members
            .iter()
            .filter(|it| it.member != self.member())
            .find(|old| {
                mesh.bond_with(old.peer).is_some_and(|bond| {
                    let now = bond.member();
                    now != old.member && members.iter().any(|it| it.member == now)
                })
            })
            .map(|it| it.member)
    }

    fn caught_up(&self) -> Vec<MemberId> {
        let progress = self.progress();
        let mesh = self.mesh();
        let near = |member: &MemberId| {
            let matched = progress.matched.iter().find(|(it, _)| it == member);
            matched.is_some_and(|(_, index)| {
                progress.last_index.saturating_sub(*index) <= self.config().learner_lag_max
            })
        };
        let alive = |member: MemberId| mesh.bond_to(member).is_some_and(|it| !it.is_silent());
        self.state()
            .members
            .iter()
            .filter(|it| !it.voter && near(&it.member) && alive(it.member))
            .map(|it| it.member)
            .collect()
    }
}

fn is_joint(raft: &Raft) -> bool {
    let metrics = raft.server_metrics();
    let seen = metrics.borrow_watched();
    seen.membership_config.get_joint_config().len() > 1
}

fn refused_by_core(error: &RaftError<Types, ClientWriteError<Types>>) -> Response {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            Response::NotLeader(to.leader_id)
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::EmptyMembership(_),
        )) => Response::Refused(MembershipRefusal::LastVoter),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::LearnerNotFound(_),
        )) => Response::Refused(MembershipRefusal::NoSuchMember),
        // Another change in progress, a leader that is not settled yet, one that was deposed.
        _ => Response::Busy,
    }
}

fn decode(body: &[u8]) -> io::Result<Request> {
    match postcard::take_from_bytes::<Request>(body) {
        Ok((Request::Join { addr, .. }, _)) if addr.addrs.len() > PeerAddr::ADDRS_MAX => {
            Err(codec::malformed("more addresses than a peer may have"))
        }
        Ok((request, [])) => Ok(request),
        _ => Err(codec::malformed("a request that cannot be read")),
    }
}
