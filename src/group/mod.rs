//! A group as its user holds it: the typed handle on one replica.

mod execute;
mod query;
mod registry;
mod status;
mod submit;

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;
use zeroize::Zeroizing;

pub(crate) use self::registry::Registry;
use self::submit::Submitter;
pub use self::{
    execute::{ExecuteError, NotApplied, Unresolved},
    query::QueryError,
    status::{Health, MemberStatus, Status, StatusWatch, Warning},
};
use crate::{
    error::Cause,
    identity::{GroupId, GroupTicket, MemberId, NodeSecret, PeerId},
    machine::{Position, StateMachine, Views},
    mesh::Bonds,
    raft::{MembershipError, MembershipRefusal, Replica, Request},
};

/// Between two rounds of [`Group::ready`].
const READY_PAUSE: Duration = Duration::from_millis(20);
/// How long a change of the membership may take before the caller is told that it is late.
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);

/// A handle on one group, on one member.
///
/// Clones are cheap and share everything; dropping them all
/// does not stop the group: the node keeps it until [`Group::leave`] or
/// [`Node::shutdown`](crate::Node::shutdown).
///
/// ```
/// use futures_util::TryStreamExt;
/// use quorate::{ExecuteError, GroupKey, Map, MapCommand, MapOutput, MapQuery, Node};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let group = node.create(GroupKey::generate(), Map::new()).await?;
///
/// // One command: its output, applied exactly once.
/// let mut result = group.execute(MapCommand::put_if_absent("lock", "mine")).await;
/// if let Err(ExecuteError::Unknown(unresolved)) = result {
///     result = group.retry(unresolved).await; // never a second time
/// }
/// assert!(matches!(result?, MapOutput::Compared { swapped: true, .. }));
///
/// // Many commands, packed: their outputs, in their order.
/// let commands = (0..1_000).map(|n| MapCommand::put(format!("key/{n}"), "value"));
/// let outputs: Vec<MapOutput> = group.execute_many(commands).try_collect().await?;
/// assert_eq!(outputs.len(), 1_000);
///
/// // A linearizable read, and one of what this member has applied.
/// assert_eq!(group.query(MapQuery::prefix("key/", 10)).await?.into_entries().len(), 10);
/// let (position, map) = group.view();
/// assert_eq!((map.len(), position.term), (1_001, 1));
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Group<M: StateMachine> {
    replica: Arc<Replica>,
    views: Views<M>,
    submitter: Submitter,
    registry: Registry,
    secret: Arc<NodeSecret>,
}

impl<M: StateMachine> Group<M> {
    pub(crate) fn new(
        replica: Arc<Replica>,
        views: Views<M>,
        registry: Registry,
        secret: Arc<NodeSecret>,
    ) -> Self {
        let submitter = Submitter::start(Arc::clone(&replica));
        Self {
            replica,
            views,
            submitter,
            registry,
            secret,
        }
    }

    /// The group's name: equal at all members, for good.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.replica.record().id
    }

    /// This node's name in the group.
    #[must_use]
    pub fn member(&self) -> MemberId {
        self.replica.member()
    }

    #[cfg(test)]
    pub(crate) fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// A secret of this member for one purpose: derived from the node's, which is synced before it
    /// is used, and from the member's id, which is never used twice.
    pub(crate) fn member_secret(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        self.secret.derive(purpose, &self.member().to_bytes())
    }

    /// A ticket with which another node can join. It holds the group's key: treat it as a password.
    ///
    /// It names every member known here, this one included, with all of their addresses.
    #[must_use]
    pub fn ticket(&self) -> GroupTicket {
        let members = self.replica.mesh().roster();
        GroupTicket::new(self.replica.key().clone(), self.id(), members)
    }

    /// The bonds of this node in the group, watchable.
    ///
    /// A bond says who can be reached, never who counts: that is [`Status::members`].
    #[must_use]
    pub fn bonds(&self) -> Bonds {
        self.replica.mesh().bonds()
    }

    /// Whether a peer is bonded, and was heard so lately that it is not to be replaced.
    pub(crate) fn hears(&self, peer: &PeerId) -> bool {
        let bond = self.bonds().get(peer);
        bond.is_some_and(|it| it.silent_for().is_none_or(|it| it < self.suspicion()))
    }

    /// When the next bond will have been silent for too long to [hear](Self::hears) its peer.
    pub(crate) fn next_unheard(&self) -> Option<Duration> {
        let silent = self.bonds().iter().filter_map(|it| it.1.silent_for());
        silent
            .filter_map(|it| self.suspicion().checked_sub(it))
            .min()
    }

    /// Silence, beyond the heartbeats that were missed, after which what a peer does for others is
    /// done by somebody else. Far less than ends a bond, and far more than a disk takes to sync.
    fn suspicion(&self) -> Duration {
        self.replica.config().timing.bond_timeout / 5
    }

    /// Tells of each change of role, leader or members, and of each peer that falls silent or is
    /// heard again.
    pub(crate) fn watch_peers(&self) -> watch::Receiver<impl Sized + use<M>> {
        self.replica.watch()
    }

    /// The latest state that this member has applied, and through which position: it holds every
    /// command that stands there or before, and none behind. It may be behind the group's; see
    /// [`Group::query`] for reads that are not.
    #[must_use]
    pub fn view(&self) -> (Position, M::View) {
        self.views.latest()
    }

    /// Waits until this member has applied everything that was committed when this was called.
    ///
    /// # Errors
    /// The group does not run on this node any more. There is no deadline: without a quorum this
    /// waits for one.
    pub async fn ready(&self) -> Result<(), Stopped> {
        let patience = self.replica.config().query_timeout;
        loop {
            match self.confirmed_through(patience).await {
                Ok(()) => return Ok(()),
                Err(QueryError::NoLeader) => tokio::time::sleep(READY_PAUSE).await,
                Err(QueryError::Stopped(stopped)) => return Err(stopped),
            }
        }
    }

    /// Hands leadership to another voter; can be asked of any member.
    ///
    /// # Errors
    /// [`MembershipChangeError`]; the group goes on under whoever leads.
    pub async fn transfer_leadership(&self, to: MemberId) -> Result<(), MembershipChangeError> {
        self.ask(Request::Transfer { to }).await
    }

    /// Removes a member for good, dead or alive; can be asked of any member. Its id is never
    /// accepted again: the node may come back as a new member with its data removed.
    ///
    /// # Errors
    /// [`MembershipChangeError`]. After [`MembershipChangeError::NoQuorum`] it may still happen.
    pub async fn remove(&self, member: MemberId) -> Result<(), MembershipChangeError> {
        self.ask(Request::Remove { member }).await
    }

    /// Leaves the group: hands leadership over, is removed from the membership, then deletes the
    /// group's data on this node. A later join makes a new member.
    ///
    /// The last voter takes the group with it. A member that others have removed, whose group has
    /// therefore stopped here, leaves the same way.
    ///
    /// # Errors
    /// [`MembershipChangeError`]; then nothing was deleted and the group still runs here.
    pub async fn leave(&self) -> Result<(), MembershipChangeError> {
        let member = self.member();
        match self.ask(Request::Remove { member }).await {
            Ok(()) => {}
            Err(MembershipChangeError::Stopped(_)) if self.replica.state().removed => {}
            Err(MembershipChangeError::Refused { why })
                if why == MembershipRefusal::LastVoter.to_string() => {}
            Err(error) => return Err(error),
        }
        self.replica.mesh().depart().await;
        self.replica
            .stop(Cause::new("this node has left the group"))
            .await;
        self.registry.remove(&self.id());
        let (store, local) = (self.replica.store().clone(), self.replica.record().local);
        let removing = tokio::task::spawn_blocking(move || store.remove_group(local));
        match removing.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(MembershipChangeError::NotDeleted {
                why: error.to_string(),
            }),
            Err(error) => Err(MembershipChangeError::NotDeleted {
                why: error.to_string(),
            }),
        }
    }

    async fn ask(&self, request: Request) -> Result<(), MembershipChangeError> {
        let asked = self.replica.ask_leader(request, CHANGE_PATIENCE).await;
        asked.map_err(|error| match error {
            MembershipError::Refused(why) => MembershipChangeError::Refused {
                why: why.to_string(),
            },
            MembershipError::NoQuorum => MembershipChangeError::NoQuorum,
            MembershipError::Stopped(cause) => MembershipChangeError::Stopped(Stopped::new(cause)),
        })
    }

    /// This node's name among peers.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.replica.peer()
    }
}

impl<M: StateMachine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self {
            replica: Arc::clone(&self.replica),
            views: self.views.clone(),
            submitter: self.submitter.clone(),
            registry: self.registry.clone(),
            secret: Arc::clone(&self.secret),
        }
    }
}

impl<M: StateMachine> fmt::Debug for Group<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("machine", &M::NAME)
            .field("id", &self.id())
            .field("member", &self.member())
            .finish_non_exhaustive()
    }
}

/// The group does not run on this node any more; the text says why and what to do.
///
/// It is final for this handle. What the group has acknowledged is safe with the other members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the group has stopped on this node: {cause}")]
pub struct Stopped {
    cause: Cause,
}

impl Stopped {
    pub(crate) fn new(cause: Cause) -> Self {
        Self { cause }
    }

    /// Why, in words.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.cause.as_str()
    }
}

/// A change of the membership or of the leadership did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipChangeError {
    /// The leader refuses it; the text says why.
    #[error("{why}")]
    Refused {
        /// In words.
        why: String,
    },
    /// No leader with a quorum carried it out in 30 s. It may still happen.
    #[error("no leader with a quorum carried it out in time: look at the status before retrying")]
    NoQuorum,
    /// The group does not run on this node any more.
    #[error(transparent)]
    Stopped(Stopped),
    /// This node has left, but its data could not be deleted.
    #[error("this node has left the group, but its data could not be deleted: {why}")]
    NotDeleted {
        /// In words.
        why: String,
    },
}
