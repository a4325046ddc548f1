//! Raft: openraft, fenced in. Nothing outside this folder names it.
//!
//! A [`Replica`] is one group on this node: its journal, its state, its Raft instance and the
//! tasks that keep them well. It speaks of bytes; what they mean to the user's machine is
//! decided above, in `group/`.

mod codec;
mod election;
mod entry;
mod inbound;
mod journal;
mod machine;
mod membership;
mod network;
mod propose;
mod read_index;
mod replica;
mod sessions;
mod snapshots;
mod stored;
mod validate;
mod watch;

#[cfg(test)]
mod stored_tests;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::identity::{MemberId, PeerAddr, PeerId};

pub use self::watch::Role;
pub(crate) use self::{
    entry::{BATCH_BYTES_TARGET, BATCH_COMMANDS_MAX, Batch, SessionId},
    membership::{MembershipError, MembershipRefusal, Request},
    propose::{Attempt, Reply},
    read_index::ReadError,
    replica::{Replica, ReplicaSpec},
    sessions::{Answer, WINDOW_MAX},
    stored::Stored,
    validate::Validator,
    watch::ReplicaState,
};

/// The types of our Raft: opaque commands in, opaque answers out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Command;
    type R = Reply;
    type NodeId = MemberId;
    type Node = MemberNode;
    type Term = u64;
    // One leader a term, so that (term, index) is a whole log id.
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, MemberId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Command, MemberId, MemberNode>;
    type Entry =
        openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = openraft::TokioRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type Raft = openraft::Raft<Types, machine::StateHandle>;
pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<MemberId, MemberNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;

/// What Raft replicates: an encoded [`Batch`], opaque to openraft.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command(pub(crate) bytes::Bytes);

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What the membership says of a member: which peer it is, and where it was last known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberNode {
    pub(crate) addr: PeerAddr,
}

impl MemberNode {
    pub(crate) fn peer(&self) -> PeerId {
        self.addr.peer
    }
}

impl Default for MemberNode {
    fn default() -> Self {
        Self {
            addr: PeerAddr::new(PeerId::from_bytes([0; 32]), []),
        }
    }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}
