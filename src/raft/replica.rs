//! One group on this node: what it is made of, how it starts, how it stops.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    MemberNode, Raft, ReplicaState, Role,
    inbound::Inbound,
    journal::Log,
    machine::{Applied, StateHandle},
    membership::{MembershipError, Request},
    network::Network,
    read_index::ReadRounds,
};
use crate::{
    bond::{Introduction, MeshEvent, Proven, Refusal},
    config::Config,
    error::Cause,
    identity::{BootId, Genesis, GroupKey, MemberId, PeerAddr, PeerId},
    machine::{CheckCommand, Machine},
    mesh::{Links, Mesh, MeshSpec},
    metrics::Counters,
    storage::{GroupRecord, Journal, LocalGroup, Snapshots, Store},
};

/// The version of what commands, snapshots and Raft messages look like. Members of one group may
/// differ in their program, not in this.
pub(crate) const FORMAT: u32 = 1;
/// How long one request to be admitted may take before it is made again.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// Superseded starts of a member that are remembered, to know a copy of its data by.
const BOOTS_MAX: usize = 64;

/// What a replica is started with.
pub(crate) struct ReplicaSpec {
    pub(crate) key: GroupKey,
    pub(crate) record: GroupRecord,
    pub(crate) machine: Box<dyn Machine>,
    /// Peers to dial besides those the store remembers: a ticket's.
    pub(crate) contacts: Vec<PeerAddr>,
    pub(crate) store: Store,
    pub(crate) links: Links,
    pub(crate) config: Arc<Config>,
    pub(crate) counters: Arc<Counters>,
}

/// One group on this node.
///
/// # Invariants
/// - The genesis is synced before a Raft instance exists, so before any Raft message.
/// - The Raft instance may be put away and started again at any time on the same journal and
///   state; nobody outside keeps it.
/// - Once `stopped` is set it stays, and nothing is proposed, answered or applied any more.
pub(crate) struct Replica {
    me: Weak<Self>,
    record: GroupRecord,
    key: GroupKey,
    store: Store,
    links: Links,
    config: Arc<Config>,
    counters: Arc<Counters>,
    log: Log,
    handle: StateHandle,
    check: CheckCommand,
    applied: watch::Receiver<Applied>,
    genesis: watch::Sender<Option<Genesis>>,
    mesh: OnceLock<Mesh>,
    raft: RwLock<Option<Raft>>,
    told: watch::Sender<ReplicaState>,
    lost: watch::Sender<Option<MemberId>>,
    departed: Mutex<BTreeSet<MemberId>>,
    boots: Mutex<HashMap<MemberId, Boots>>,
    reads: ReadRounds,
    /// Callers that have stopped the intake of commands, see [`Replica::close_intake`].
    intake_closed: AtomicUsize,
    change_turn: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// The starts of one member that were seen.
struct Boots {
    peer: PeerId,
    current: BootId,
    superseded: Vec<BootId>,
}

impl Replica {
    /// Opens the journal and the mesh and starts the tasks. Raft itself starts once the genesis is
    /// known: at once for a founder or a member that resumes.
    pub(crate) fn start(spec: ReplicaSpec) -> io::Result<Arc<Self>> {
        let local = spec.record.local;
        let journal = spec.store.journal(local)?;
        let snapshots = spec.store.snapshots(local)?;
        let check = spec.machine.check();
        let handle = StateHandle::new(spec.machine, snapshots, Arc::clone(&spec.counters));
        let (reads, asked) = ReadRounds::new();
        let known = known_peers(&spec.store, local, &spec.contacts)?;
        let replica = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            genesis: watch::Sender::new(spec.record.genesis),
            record: spec.record,
            key: spec.key,
            store: spec.store,
            links: spec.links,
            config: spec.config,
            counters: spec.counters,
            log: Log::new(journal),
            applied: handle.applied(),
            handle,
            check,
            mesh: OnceLock::new(),
            raft: RwLock::new(None),
            told: watch::Sender::new(ReplicaState::default()),
            lost: watch::Sender::new(None),
            departed: Mutex::default(),
            boots: Mutex::default(),
            reads,
            intake_closed: AtomicUsize::new(0),
            change_turn: tokio::sync::Mutex::new(()),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        let mesh = replica.links.open_mesh(MeshSpec {
            key: replica.key.clone(),
            group: replica.record.id,
            service: Arc::new(Inbound(Arc::downgrade(&replica))),
            known,
        });
        // Set once, here; before it nobody can have a handle to this replica.
        let _ = replica.mesh.set(mesh);
        replica.spawn_tasks(asked);
        Ok(replica)
    }

    fn spawn_tasks(self: &Arc<Self>, asked: mpsc::Receiver<tokio::sync::oneshot::Sender<u64>>) {
        self.spawn(|it| async move { it.run_raft().await });
        self.spawn(|it| async move { it.serve_reads(asked).await });
        self.spawn(|it| async move { it.elect_early().await });
        self.spawn(|it| async move { it.keep_membership().await });
        self.spawn(|it| async move { it.keep_snapshots().await });
        self.spawn(|it| async move { it.keep_contacts().await });
        self.spawn(|it| async move { it.seek_admission().await });
        self.spawn(|it| async move { it.watch_store().await });
        self.spawn(|it| async move { it.watch_machine().await });
    }

    /// Runs a task that ends with the replica.
    pub(crate) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn spawn<F>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.run(task(Arc::clone(self)));
    }

    /// Starts Raft once the genesis is synced, and follows the instance.
    async fn run_raft(self: Arc<Self>) {
        let mut genesis = self.genesis.subscribe();
        if genesis.wait_for(Option::is_some).await.is_err() {
            return;
        }
        if let Err(cause) = self.start_raft().await {
            self.stop_from_within(cause);
        }
    }

    async fn start_raft(self: &Arc<Self>) -> Result<(), Cause> {
        let mesh = self.mesh().clone();
        let config = Arc::new(raft_config(&self.config, &self.record)?);
        let raft = Raft::new(
            self.record.member,
            config,
            Network { mesh },
            self.log.clone(),
            self.handle.clone(),
        )
        .await
        .map_err(|error| Cause::new(format!("the journal cannot be resumed: {error}")))?;
        if self.record.founder && !raft.is_initialized().await.unwrap_or(true) {
            let node = MemberNode {
                addr: self.links.addr(),
            };
            let members = BTreeMap::from([(self.record.member, node)]);
            raft.initialize(members)
                .await
                .map_err(|error| Cause::new(format!("the group cannot be founded: {error}")))?;
        }
        *write(&self.raft) = Some(raft.clone());
        let watched = raft.clone();
        self.spawn(|it| async move {
            it.follow(watched.clone()).await;
            it.instance_ended(&watched).await;
        });
        Ok(())
    }

    /// An instance that ends by itself has met a fault that it will not survive.
    async fn instance_ended(&self, ended: &Raft) {
        let current = self.raft();
        if current.is_some() && self.stopped().is_none() {
            let metrics = ended.metrics();
            let state = metrics.borrow_watched().running_state.clone();
            let why = state.err().map_or_else(|| "it stopped".into(), |it| it.to_string());
            let failed = self.store.failed().borrow().clone();
            let broken = self.handle.broken().borrow().clone();
            let cause = broken.or(failed);
            self.stop_from_within(cause.unwrap_or_else(|| Cause::new(format!("Raft: {why}"))));
        }
    }

    /// Puts the Raft instance away and starts another on the same journal and state.
    pub(super) async fn restart_raft(&self) {
        let Some(replica) = self.me.upgrade() else {
            return;
        };
        let Some(old) = write(&self.raft).take() else {
            return;
        };
        tracing::warn!(group = %self.record.id, "starting the Raft instance anew");
        let _ = old.shutdown().await;
        if let Err(cause) = replica.start_raft().await {
            self.stop_from_within(cause);
        }
    }

    /// Ends everything of the group on this node, in order. Idempotent.
    pub(crate) async fn stop(&self, cause: Cause) {
        self.stop_from_within(cause.clone());
        self.tasks.close();
        let raft = write(&self.raft).take();
        if let Some(raft) = raft {
            let _ = raft.shutdown().await;
        }
        self.mesh().close(cause.as_str()).await;
        self.tasks.wait().await;
    }

    /// Marks the group as stopped and cancels its tasks; [`Replica::stop`] does the rest.
    fn stop_from_within(&self, cause: Cause) {
        self.told.send_modify(|told| {
            if told.stopped.is_none() {
                tracing::info!(group = %self.record.id, %cause, "the group stops on this node");
                told.stopped = Some(cause);
                told.role = Role::Stopped;
                told.leader = None;
            }
        });
        self.cancel.cancel();
    }

    /// The state machine's panic stops this group here.
    async fn watch_machine(self: Arc<Self>) {
        let mut broken = self.handle.broken();
        let cause = broken.wait_for(Option::is_some).await.map(|it| it.clone());
        if let Ok(Some(cause)) = cause {
            self.stop_from_within(cause);
        }
    }

    /// The store's failure stops every group of the node.
    async fn watch_store(self: Arc<Self>) {
        let mut failed = self.store.failed();
        let cause = failed.wait_for(Option::is_some).await.map(|it| it.clone());
        if let Ok(Some(cause)) = cause {
            self.stop_from_within(cause);
        }
    }

    /// Asks to be admitted until the membership names us.
    async fn seek_admission(self: Arc<Self>) {
        let mut watch = self.told.subscribe();
        while !self.record.founder {
            if watch.wait_for(|it| it.role == Role::Joining).await.is_err() {
                return;
            }
            if self.genesis.borrow().is_none() || self.raft().is_none() {
                tokio::time::sleep(self.config.timing.heartbeat).await;
                continue;
            }
            let request = Request::Join {
                member: self.record.member,
                addr: self.links.addr(),
            };
            match self.ask_leader(request, JOIN_PATIENCE).await {
                // The membership comes with the journal, a moment later.
                Ok(()) => tokio::time::sleep(self.config.timing.heartbeat).await,
                Err(MembershipError::Refused(why)) => {
                    return self.stop_from_within(Cause::new(why));
                }
                Err(MembershipError::NoQuorum) => {}
                Err(MembershipError::Stopped(_)) => return,
            }
        }
    }

    /// Keeps the mesh looking for exactly the members: new ones are dialled, removed ones not.
    async fn keep_contacts(self: Arc<Self>) {
        use std::collections::btree_map::Entry;
        let mut applied = self.applied.clone();
        let mut known: BTreeMap<PeerId, PeerAddr> = BTreeMap::new();
        loop {
            let mesh = self.mesh();
            let membership = applied.borrow_and_update().membership.clone();
            let mut gone: BTreeSet<PeerId> = known.keys().copied().collect();
            for (_, node) in membership.nodes() {
                gone.remove(&node.peer());
                if let Entry::Vacant(new) = known.entry(node.peer()) {
                    mesh.learn(node.addr.clone());
                    new.insert(node.addr.clone());
                }
            }
            for peer in gone {
                known.remove(&peer);
                mesh.forget(peer);
            }
            let seen = membership;
            loop {
                if applied.changed().await.is_err() {
                    return;
                }
                if applied.borrow_and_update().membership != seen {
                    break;
                }
            }
        }
    }
}

/// What bonds ask and tell.
impl Replica {
    pub(super) fn introduction(&self) -> Introduction {
        Introduction {
            genesis: *self.genesis.borrow(),
            member: self.record.member,
            format: FORMAT,
            machine: self.record.name.clone(),
        }
    }

    /// Judges a peer that has proven the key.
    pub(super) async fn admit(
        &self,
        peer: PeerId,
        boot: BootId,
        theirs: &Introduction,
    ) -> Result<(), Refusal> {
        if self.stopped().is_some() {
            return Err(Refusal::Stopped);
        }
        if theirs.format != FORMAT {
            return Err(Refusal::Newer {
                ours: FORMAT,
                theirs: theirs.format,
            });
        }
        let ours = *self.genesis.borrow();
        match (ours, theirs.genesis) {
            (None, None) => return Err(Refusal::NotFounded),
            (Some(ours), Some(theirs)) if ours != theirs => return Err(Refusal::OtherGenesis),
            _ => {}
        }
        if self.is_removed(theirs.member) {
            return Err(Refusal::RemovedMember);
        }
        self.check_boot(peer, boot, theirs.member)?;
        if let (None, Some(genesis)) = (ours, theirs.genesis) {
            self.adopt(genesis).await?;
        }
        Ok(())
    }

    /// A member is one process on one node. Its data under another node's name, or a start of it
    /// that a later one had replaced, is a copy.
    fn check_boot(&self, peer: PeerId, boot: BootId, member: MemberId) -> Result<(), Refusal> {
        let elsewhere = self
            .applied
            .borrow()
            .membership
            .get_node(&member)
            .is_some_and(|it| it.peer() != peer);
        if elsewhere || member == self.record.member {
            tracing::error!(%peer, %member, "another node runs with a copy of a member's data");
            return Err(Refusal::ClonedMember);
        }
        let mut boots = lock(&self.boots);
        let known = boots.entry(member).or_insert_with(|| Boots {
            peer,
            current: boot,
            superseded: Vec::new(),
        });
        if known.peer != peer || known.superseded.contains(&boot) {
            tracing::error!(%peer, %member, "two processes run with one member's data");
            return Err(Refusal::ClonedMember);
        }
        if known.current != boot {
            let old = std::mem::replace(&mut known.current, boot);
            if known.superseded.len() == BOOTS_MAX {
                known.superseded.remove(0);
            }
            known.superseded.push(old);
        }
        Ok(())
    }

    /// Syncs the genesis that the group told us, before anything of Raft is sent or taken.
    async fn adopt(&self, genesis: Genesis) -> Result<(), Refusal> {
        let (store, local) = (self.store.clone(), self.record.local);
        let writing = tokio::task::spawn_blocking(move || store.set_genesis(local, genesis));
        match writing.await {
            Ok(Ok(())) => {
                self.genesis.send_replace(Some(genesis));
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the group's genesis cannot be kept");
                Err(Refusal::Stopped)
            }
            Err(_) => Err(Refusal::Stopped),
        }
    }

    pub(super) fn mesh_event(&self, event: MeshEvent) {
        match event {
            MeshEvent::Formed(bond) => {
                lock(&self.departed).remove(&bond.member());
                let (raft, member) = (self.raft(), bond.member());
                if let Some(raft) = raft {
                    // The member is there again: do not sit out a backoff from when it was not.
                    self.tasks.spawn(async move {
                        let _ = raft.trigger().reset_backoff([member]).await;
                    });
                }
            }
            MeshEvent::Silent(bond) => {
                self.lost_member(bond.member());
                self.told.send_modify(|_| {}); // whoever watches the status looks again
            }
            MeshEvent::Ended(bond, _) => self.lost_member(bond.member()),
            MeshEvent::Heard(_) => self.told.send_modify(|_| {}),
            MeshEvent::Departed(Proven { member, .. }) => {
                lock(&self.departed).insert(member);
                self.lost_member(member);
            }
        }
    }

    fn lost_member(&self, member: MemberId) {
        if self.leader() == Some(member) {
            self.lost.send_replace(Some(member));
        }
    }

    pub(super) fn keep_roster(&self, roster: &[PeerAddr]) {
        let kept = postcard::to_stdvec(roster).map_err(io::Error::other);
        let kept = kept.and_then(|bytes| self.store.put_roster(self.record.local, &bytes));
        if let Err(error) = kept {
            tracing::warn!(%error, "the members' addresses cannot be kept");
        }
    }
}

/// What the other parts of a replica, and `group/`, ask of it.
impl Replica {
    pub(crate) fn record(&self) -> &GroupRecord {
        &self.record
    }

    pub(crate) fn key(&self) -> &GroupKey {
        &self.key
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn member(&self) -> MemberId {
        self.record.member
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The group's bonds. A message that comes in while the mesh is just being opened waits for
    /// the moment until it is set.
    pub(crate) fn mesh(&self) -> &Mesh {
        self.mesh.wait()
    }

    pub(crate) fn state(&self) -> ReplicaState {
        self.told.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<ReplicaState> {
        self.told.subscribe()
    }

    pub(crate) fn leader(&self) -> Option<MemberId> {
        self.told.borrow().leader
    }

    pub(crate) fn stopped(&self) -> Option<Cause> {
        self.told.borrow().stopped.clone()
    }

    /// Waits until the state has applied this index.
    ///
    /// # Errors
    /// The group stopped here before.
    pub(crate) async fn applied_through(&self, index: u64) -> Result<(), Cause> {
        let mut applied = self.applied.clone();
        let reached = |it: &Applied| it.log_id.is_some_and(|id| id.index >= index);
        if reached(&applied.borrow()) {
            return Ok(());
        }
        let mut told = self.told.subscribe();
        tokio::select! {
            _ = applied.wait_for(reached) => Ok(()),
            _ = told.wait_for(|it| it.stopped.is_some()) => {
                Err(self.stopped().unwrap_or_else(|| Cause::new("the group is stopping")))
            }
        }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.links.peer_id()
    }

    /// Prepares for [`Replica::stop`]: hands leadership over if there is an heir, and tells
    /// everybody not to wait for our silence.
    pub(crate) async fn retire(&self) {
        if self.leader() == Some(self.member())
            && let (Some(raft), Some(heir)) = (self.raft(), self.best_heir())
            && let Err(why) = self.hand_over(&raft, heir).await
        {
            tracing::info!(%why, "leaving without a successor");
        }
        self.mesh().depart().await;
    }

    pub(super) fn raft(&self) -> Option<Raft> {
        self.raft
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn journal(&self) -> &Journal {
        self.log.journal()
    }

    pub(super) fn snapshots(&self) -> &Snapshots {
        self.handle.snapshots()
    }

    pub(super) fn snapshot_bytes(&self) -> u64 {
        self.snapshots().current().map_or(0, |it| it.len())
    }

    pub(super) fn read_rounds(&self) -> &ReadRounds {
        &self.reads
    }

    pub(super) fn check_command(&self) -> CheckCommand {
        self.check
    }

    pub(super) fn losses(&self) -> watch::Receiver<Option<MemberId>> {
        self.lost.subscribe()
    }

    pub(super) fn has_departed(&self, member: MemberId) -> bool {
        lock(&self.departed).contains(&member)
    }

    pub(super) fn is_removed(&self, member: MemberId) -> bool {
        self.applied.borrow().removed.contains(&member)
    }

    pub(super) fn change_turn(&self) -> &tokio::sync::Mutex<()> {
        &self.change_turn
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut ReplicaState)) {
        self.told.send_if_modified(|told| {
            if told.stopped.is_some() {
                return false;
            }
            let before = told.clone();
            change(told);
            *told != before
        });
    }
}

fn known_peers(store: &Store, local: LocalGroup, contacts: &[PeerAddr]) -> io::Result<Vec<PeerAddr>> {
    let mut known: Vec<PeerAddr> = match store.roster(local)? {
        // A hint: what cannot be read is learnt anew.
        Some(bytes) => postcard::from_bytes(&bytes).unwrap_or_default(),
        None => Vec::new(),
    };
    known.extend(contacts.iter().cloned());
    Ok(known)
}

fn raft_config(config: &Config, record: &GroupRecord) -> Result<openraft::Config, Cause> {
    let timing = config.timing;
    let millis = |it: Duration| u64::try_from(it.as_millis()).unwrap_or(u64::MAX).max(1);
    let config = openraft::Config {
        cluster_name: record.id.to_string(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_timeout_min),
        election_timeout_max: millis(timing.election_timeout_max),
        install_snapshot_timeout: millis(timing.election_timeout_max).saturating_mul(20),
        max_payload_entries: 1_024,
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.journal_entries_kept,
        purge_batch_size: 1_024,
        replication_lag_threshold: config.journal_entries_kept,
        enable_pre_vote: Some(true),
        // After a power cut an unsynced commit index would let a restored leader serve stale reads.
        enable_leader_restore: Some(false),
        api_channel_size: Some(4_096),
        notification_channel_size: Some(4_096),
        ..openraft::Config::default()
    };
    config
        .validate()
        .map_err(|error| Cause::new(format!("the timing cannot work: {error}")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the intake of commands closed while it lives.
pub(super) struct IntakeClosed<'a>(&'a AtomicUsize);

impl Drop for IntakeClosed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Replica {
    pub(super) fn close_intake(&self) -> IntakeClosed<'_> {
        self.intake_closed.fetch_add(1, Ordering::AcqRel);
        IntakeClosed(&self.intake_closed)
    }

    pub(super) fn intake_is_closed(&self) -> bool {
        self.intake_closed.load(Ordering::Acquire) > 0
    }
}
