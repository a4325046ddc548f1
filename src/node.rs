//! A node: this process's endpoint, database and groups. Everything is wired here.

mod builder;

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;

use self::builder::Place;
pub use self::builder::{NodeBuilder, OpenError, Relay};
use crate::{
    bond::Refusal,
    config::Config,
    error::Cause,
    group::{Group, Registry, Stopped},
    identity::{Genesis, GroupId, GroupKey, GroupTicket, MemberId, NodeSecret, PeerAddr, PeerId},
    log_store::Logs,
    machine::{Host, StateMachine, Views},
    mesh::Links,
    metrics::{Counters, Metrics},
    raft::{Replica, ReplicaSpec, Role, Stored},
    storage::{GroupRecord, NewGroup, Store},
    sync::{Kept, OpenSyncError, Sync, SyncOptions},
};

/// What the key of the door for outsiders is derived for. Frozen: its name follows from it.
const SYNC_KEY: &str = "quorate/sync-endpoint/1";

/// One process's part in any number of groups: one endpoint, one database.
///
/// Clones are handles on the same node. It runs until [`Node::shutdown`], or the process ends;
/// ending without a shutdown is safe, and costs the others the time to notice. [The crate](crate)
/// has an example.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    links: Links,
    registry: Registry,
    config: Arc<Config>,
    counters: Arc<Counters>,
    memory: Option<MemoryDisk>,
    secret: Arc<NodeSecret>,
    /// The doors for outsiders, one a group.
    doors: Mutex<BTreeMap<GroupId, Sync>>,
    /// Held while one is opened or closed.
    opening: tokio::sync::Mutex<()>,
}

/// What an in-memory node leaves behind, to open another one on: a restart without a disk.
///
/// For tests. It holds the data and the node's secret key.
///
/// ```
/// use quorate::{GroupKey, Map, MapCommand, Node};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let key = GroupKey::generate();
/// let group = node.create(key.clone(), Map::new()).await?;
/// group.execute(MapCommand::put("k", "v")).await?;
/// let disk = node.memory_disk().expect("it is in memory");
/// node.shutdown().await;
/// let node = Node::on_memory(disk).bind_loopback().open().await?;
/// let group = node.create(key, Map::new()).await?; // resumes it
/// assert_eq!(group.view().1.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryDisk {
    store: Store,
    secret: Arc<NodeSecret>,
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").finish_non_exhaustive()
    }
}

impl Node {
    /// Opens the node that lives in this directory, or makes one there, with the defaults: every
    /// interface, the port of the last time if it is free, no relay, [`Config::default`].
    ///
    /// The directory holds the database, the snapshots and the node's secret key (mode 0600). One
    /// process at a time can have it open.
    ///
    /// # Errors
    /// [`OpenError`].
    #[cfg(feature = "rocksdb")]
    pub async fn open(directory: impl AsRef<std::path::Path>) -> Result<Self, OpenError> {
        Self::builder(directory).open().await
    }

    /// Like [`Node::open`], with settings.
    #[must_use]
    #[cfg(feature = "rocksdb")]
    pub fn builder(directory: impl AsRef<std::path::Path>) -> NodeBuilder {
        NodeBuilder::new(Place::Directory(directory.as_ref().to_owned()))
    }

    /// A node that keeps everything in memory. Nothing it acknowledges outlives the process: for
    /// tests, and for groups whose state may be lost when all of them stop.
    #[must_use]
    pub fn in_memory() -> NodeBuilder {
        NodeBuilder::new(Place::Memory(None))
    }

    /// Another in-memory node on what a former one left, see [`Node::memory_disk`].
    #[must_use]
    pub fn on_memory(disk: MemoryDisk) -> NodeBuilder {
        NodeBuilder::new(Place::Memory(Some(disk)))
    }

    /// This node's public name.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.inner.links.peer_id()
    }

    /// Where this node can be dialled at the moment.
    #[must_use]
    pub fn addr(&self) -> PeerAddr {
        self.inner.links.addr()
    }

    /// How many nodes this one is connected to. All groups with one node share one connection.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.links.count()
    }

    /// The groups that run on this node.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.registry.ids()
    }

    /// The node's counters, all of its groups together.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.inner.counters.read()
    }

    /// Founds a group, with this node as its only voter for now, or resumes it if this directory
    /// already holds the group with this key and machine.
    ///
    /// Others join with [`Group::ticket`]. Keep the key, as [`GroupKey::expose`] gives it, where
    /// nobody else can read it: the node's directory does not hold it, and after a restart this is
    /// called with the same one. Two groups founded with one key are two groups for good; their
    /// members refuse each other.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create<M: StateMachine>(
        &self,
        key: GroupKey,
        machine: M,
    ) -> Result<Group<M>, CreateError> {
        let id = key.group_id(M::NAME);
        let place = self.reserve(id)?;
        let record = match self.inner.store.group(&id)? {
            Some(record) => record,
            None => self.new_group::<M>(id, true).await?,
        };
        let contacts = Vec::new();
        let (group, replica) = self.start(key, record, machine, contacts)?;
        let opening = place.taken(Arc::clone(&replica))?;
        // A founder leads as soon as it has its own vote on disk. Wait for that and for the
        // founding membership to be committed, so that the first `execute` finds a leader and
        // the first `status` a voter.
        let mut watch = replica.watch();
        let limit = self.inner.config.timing.election_timeout_max * 4;
        let settled = watch.wait_for(|it| {
            let founded = it.members.iter().any(|it| it.settled_voter);
            (it.leader.is_some() && founded) || it.stopped.is_some()
        });
        let _ = tokio::time::timeout(limit, settled).await;
        match replica.stopped() {
            Some(cause) => {
                opening.give_up().await;
                Err(CreateError::Stopped(Stopped::new(cause)))
            }
            None => {
                opening.done();
                Ok(group)
            }
        }
    }

    /// Joins a group through any of the ticket's members, or resumes it if this directory already
    /// holds the group.
    ///
    /// Returns once the group has admitted this node as a learner; [`Group::ready`] waits until it
    /// has caught up. It becomes a voter by itself while there are fewer than
    /// [`max_voters`](Config::max_voters). A resumed member returns at once.
    ///
    /// # Errors
    /// [`JoinError`]. After [`JoinError::NoAnswer`] trying again goes on where this ended.
    pub async fn join<M: StateMachine>(
        &self,
        ticket: &GroupTicket,
        machine: M,
    ) -> Result<Group<M>, JoinError> {
        let id = ticket.key().group_id(M::NAME);
        if id != ticket.group() {
            return Err(JoinError::OtherMachine { name: M::NAME });
        }
        let place = self.reserve(id).map_err(|_| JoinError::AlreadyOpen)?;
        let (record, fresh) = match self.inner.store.group(&id)? {
            Some(record) => (record, false),
            None => (self.new_group::<M>(id, false).await?, true),
        };
        let contacts = ticket.members().to_vec();
        let (group, replica) = self.start(ticket.key().clone(), record, machine, contacts)?;
        let opening = place.taken(Arc::clone(&replica))?;
        match self.admitted(&replica).await {
            Ok(()) => {
                opening.done();
                Ok(group)
            }
            Err(error) => {
                replica.stop(Cause::new("joining failed")).await;
                let final_no = !matches!(error, JoinError::NoAnswer { .. });
                if fresh && final_no {
                    let (store, local) = (self.inner.store.clone(), replica.record().local);
                    let removing = tokio::task::spawn_blocking(move || store.remove_group(local));
                    removing.await.map_err(io::Error::other)??;
                }
                opening.give_up().await;
                Err(error)
            }
        }
    }

    /// Stops every group in order (leadership handed over, departure told), closes the
    /// connections, then the database. Idempotent. Bounded: a few seconds at most.
    pub async fn shutdown(&self) {
        {
            let _opening = self.inner.opening.lock().await;
            let doors = std::mem::take(&mut *self.doors());
            futures_util::future::join_all(doors.values().map(Sync::stop)).await;
        }
        let cause = Cause::new("the node was shut down");
        let replicas = self.inner.registry.take_all();
        let stopping = replicas.iter().map(|replica| async {
            replica.retire().await;
            replica.stop(cause.clone()).await;
        });
        futures_util::future::join_all(stopping).await;
        self.inner.links.shutdown().await;
        let store = self.inner.store.clone();
        // Closing flushes and joins a thread.
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }

    /// Opens this member's door for outsiders: from now on unmodified p2panda nodes sync the topics
    /// that were opened to them ([`Outsiders`](crate::sync::Outsiders)) with it. Until then nothing
    /// listens for them, and nothing after [`Node::stop_sync`].
    ///
    /// The door has a port of its own and, derived from the node's, a key of its own. If it is
    /// open already, that one is given and `options` are without effect.
    ///
    /// # Errors
    /// [`OpenSyncError`] when no socket can be had at the address wanted.
    pub async fn serve_sync(
        &self,
        logs: &Logs,
        options: SyncOptions,
    ) -> Result<Sync, OpenSyncError> {
        let id = logs.group().id();
        // Of two that open it at once the second finds it open.
        let _opening = self.inner.opening.lock().await;
        let open = self.doors().get(&id).cloned();
        if let Some(open) = open
            && !open.is_stopped().await
        {
            return Ok(open);
        }
        let secret = self.inner.secret.derive(SYNC_KEY, id.as_bytes());
        let store = self.inner.store.clone();
        let kept = Kept::new(self.former_door(id).await, move |settings| {
            keep_door(store.clone(), id, settings).boxed()
        });
        let opened = Sync::start(logs, secret, options, kept).await?;
        self.doors().insert(id, opened.clone());
        Ok(opened)
    }

    /// Closes this member's door for outsiders: all of their sessions end. No error if there is
    /// none.
    pub async fn stop_sync(&self, logs: &Logs) {
        let _opening = self.inner.opening.lock().await;
        let door = self.doors().remove(&logs.group().id());
        if let Some(door) = door {
            door.stop().await;
        }
    }

    /// Where the door was the last time. Not to know it costs peers the way here, and no more.
    async fn former_door(&self, id: GroupId) -> BTreeMap<String, String> {
        let store = self.inner.store.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let group = store.group(&id)?;
            let kept = group.map(|it| store.door(it.local)).transpose()?;
            Ok::<_, io::Error>(kept.flatten())
        });
        let kept = reading.await.map_err(io::Error::other).flatten();
        let kept = kept.unwrap_or_else(|error| {
            tracing::warn!(%error, "where outsiders found this member cannot be read");
            None
        });
        let read = kept.map(|it| postcard::from_bytes(&it)).transpose();
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "where outsiders found this member is damaged and left out");
            None
        })
        .unwrap_or_default()
    }

    fn doors(&self) -> MutexGuard<'_, BTreeMap<GroupId, Sync>> {
        self.inner
            .doors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, id: GroupId) -> Result<Reserved, CreateError> {
        if self.inner.registry.len() >= self.inner.config.groups_max {
            return Err(CreateError::TooManyGroups {
                max: self.inner.config.groups_max,
            });
        }
        if !self.inner.registry.reserve(id) {
            return Err(CreateError::AlreadyOpen);
        }
        Ok(Reserved {
            registry: self.inner.registry.clone(),
            id: Some(id),
        })
    }

    /// Mints the member and, for a founder, the genesis; both are synced before this returns.
    async fn new_group<M: StateMachine>(
        &self,
        id: GroupId,
        founder: bool,
    ) -> io::Result<GroupRecord> {
        let store = self.inner.store.clone();
        let new = NewGroup {
            id,
            name: M::NAME.to_owned(),
            founder,
            member: MemberId::mint(),
            genesis: founder.then(Genesis::mint),
        };
        let creating = tokio::task::spawn_blocking(move || store.create_group(new));
        creating.await.map_err(io::Error::other)?
    }

    fn start<M: StateMachine>(
        &self,
        key: GroupKey,
        record: GroupRecord,
        machine: M,
        contacts: Vec<PeerAddr>,
    ) -> io::Result<(Group<M>, Arc<Replica>)> {
        let stored = M::STORED.then(|| Stored::open(&self.inner.store, record.local));
        let stored = stored.transpose()?;
        let table = stored.as_ref().map(Stored::table);
        let (host, views): (Host<M>, Views<M>) = Host::new(machine, table);
        let replica = Replica::start(ReplicaSpec {
            key,
            record,
            machine: Box::new(host),
            stored,
            contacts,
            store: self.inner.store.clone(),
            links: self.inner.links.clone(),
            config: Arc::clone(&self.inner.config),
            counters: Arc::clone(&self.inner.counters),
        })?;
        let registry = self.inner.registry.clone();
        let secret = Arc::clone(&self.inner.secret);
        let group = Group::new(Arc::clone(&replica), views, registry, secret);
        Ok((group, replica))
    }

    /// Waits until the membership names this node, or something final stands in the way.
    async fn admitted(&self, replica: &Replica) -> Result<(), JoinError> {
        let mesh = replica.mesh();
        let mut state = replica.watch();
        let mut refusals = mesh.refusals();
        let settled = async {
            loop {
                let (role, stopped) = {
                    let seen = state.borrow_and_update();
                    (seen.role, seen.stopped.clone())
                };
                if let Some(cause) = stopped {
                    return Err(JoinError::Stopped(Stopped::new(cause)));
                }
                if role != Role::Joining {
                    return Ok(());
                }
                let refused = *refusals.borrow_and_update();
                if let Some((peer, why)) = refused
                    && is_final(&why)
                {
                    let why = why.to_string();
                    return Err(JoinError::Refused { peer, why });
                }
                tokio::select! {
                    _ = state.changed() => {}
                    _ = refusals.changed() => {}
                }
            }
        };
        match tokio::time::timeout(self.inner.config.join_timeout, settled).await {
            Ok(result) => result,
            Err(_) => Err(JoinError::NoAnswer {
                tried: mesh.dial_errors(),
            }),
        }
    }

    /// What this in-memory node holds, to restart it from; none for a node on disk.
    #[must_use]
    pub fn memory_disk(&self) -> Option<MemoryDisk> {
        self.inner.memory.clone()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("peer", &self.peer_id())
            .field("groups", &self.inner.registry.len())
            .finish_non_exhaustive()
    }
}

/// Whether a refusal cannot be cured by waiting.
fn is_final(why: &Refusal) -> bool {
    !matches!(why, Refusal::NotFounded | Refusal::Stopped)
}

/// A group's reserved place; given back unless it is taken.
struct Reserved {
    registry: Registry,
    id: Option<GroupId>,
}

impl Reserved {
    /// Puts the replica there; refused once the node is shutting down.
    fn taken(mut self, replica: Arc<Replica>) -> io::Result<Opening> {
        let opening = Opening {
            registry: self.registry.clone(),
            replica: Some(Arc::clone(&replica)),
        };
        if !self.registry.put(replica) {
            return Err(io::Error::other("the node is shutting down"));
        }
        self.id = None;
        Ok(opening)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.registry.remove(&id);
        }
    }
}

/// A group that runs and that nobody holds yet. Unless it is handed out it is stopped again, also
/// when the caller does not wait for the end of `create` or `join`.
struct Opening {
    registry: Registry,
    replica: Option<Arc<Replica>>,
}

impl Opening {
    fn done(mut self) {
        self.replica = None;
    }

    /// Stops the group and frees its place before this returns, so that a caller who is told of
    /// the failure can try again at once.
    async fn give_up(mut self) {
        if let Some(replica) = &self.replica {
            give_up(replica, &self.registry).await;
        }
        self.replica = None;
    }
}

async fn give_up(replica: &Replica, registry: &Registry) {
    replica
        .stop(Cause::new("opening the group was given up"))
        .await;
    registry.remove(&replica.record().id);
}

impl Drop for Opening {
    fn drop(&mut self) {
        let Some(replica) = self.replica.take() else {
            return;
        };
        let registry = self.registry.clone();
        tokio::spawn(async move { give_up(&replica, &registry).await });
    }
}

/// A group could not be founded or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The group already runs on this node.
    #[error("the group already runs on this node: use the handle you have")]
    AlreadyOpen,
    /// The node has as many groups as it may have.
    #[error("the node already has {max} groups, its groups_max")]
    TooManyGroups {
        /// [`groups_max`](Config::groups_max).
        max: usize,
    },
    /// The group cannot run here; the text says why.
    #[error(transparent)]
    Stopped(Stopped),
    /// The store refused.
    #[error("the store: {0}")]
    Io(#[from] io::Error),
}

/// A group could not be joined or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The ticket is for a group with another state machine.
    #[error("the ticket is for a group of another state machine, not of {name}")]
    OtherMachine {
        /// The name of the machine given.
        name: &'static str,
    },
    /// The group already runs on this node, or no further group may.
    #[error("the group already runs on this node, or the node has its full count of groups")]
    AlreadyOpen,
    /// Nobody admitted us within [`join_timeout`](Config::join_timeout).
    #[error("no member of the ticket let us in in time; tried: {}", list(.tried))]
    NoAnswer {
        /// Each address of the ticket that did not work, with what went wrong last.
        tried: Vec<(PeerAddr, String)>,
    },
    /// A member that holds the key refuses this node; waiting will not help.
    #[error("{} refuses this node: {why}", .peer.short())]
    Refused {
        /// Who refuses.
        peer: PeerId,
        /// In words, with what to do.
        why: String,
    },
    /// The group cannot run here; the text says why.
    #[error(transparent)]
    Stopped(Stopped),
    /// The store refused.
    #[error("the store: {0}")]
    Io(#[from] io::Error),
}

fn list(tried: &[(PeerAddr, String)]) -> String {
    if tried.is_empty() {
        return "a leader that answers too late or lacks a quorum".into();
    }
    let one = |(addr, why): &(PeerAddr, String)| format!("{}: {why}", addr.peer.short());
    tried.iter().map(one).collect::<Vec<_>>().join("; ")
}

async fn keep_door(store: Store, id: GroupId, settings: BTreeMap<String, String>) {
    let keeping = tokio::task::spawn_blocking(move || {
        let settings = postcard::to_stdvec(&settings).map_err(io::Error::other)?;
        match store.group(&id)? {
            Some(group) => store.put_door(group.local, &settings),
            None => Ok(()),
        }
    });
    if let Err(error) = keeping.await.map_err(io::Error::other).flatten() {
        tracing::warn!(%error, "where outsiders find this member cannot be kept");
    }
}
