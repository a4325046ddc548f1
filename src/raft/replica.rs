//! One group on this node: what it is made of, how it starts, how it stops.

mod peers;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    MemberNode, Raft, ReplicaState, Role,
    election::Heard,
    inbound::Inbound,
    journal::Log,
    machine::{Applied, StateHandle},
    network::Network,
    read_index::ReadRounds,
    stored::Stored,
    validate::{RefusedLeader, Turns, Validator},
};
use crate::{
    config::Config,
    error::Cause,
    identity::{Genesis, GroupKey, MemberId, PeerAddr, PeerId},
    machine::{CheckCommand, Machine},
    mesh::{Links, Mesh, MeshSpec},
    metrics::Counters,
    storage::{GroupRecord, Journal, LocalGroup, Snapshots, Store},
};

/// The version of what commands, snapshots and Raft messages look like. Members of one group may
/// differ in their program, not in this.
pub(crate) const FORMAT: u32 = 1;

/// What a replica is started with.
pub(crate) struct ReplicaSpec {
    pub(crate) key: GroupKey,
    pub(crate) record: GroupRecord,
    pub(crate) machine: Box<dyn Machine>,
    /// Where the machine keeps its state, if not in memory.
    pub(crate) stored: Option<Stored>,
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
    validator: Option<Validator>,
    turns: Turns,
    refused: RefusedLeader,
    applied: watch::Receiver<Applied>,
    genesis: watch::Sender<Option<Genesis>>,
    mesh: OnceLock<Mesh>,
    raft: RwLock<Option<Instance>>,
    generation: AtomicU64,
    heard: Heard,
    roster: watch::Sender<Vec<PeerAddr>>,
    told: watch::Sender<ReplicaState>,
    lost: watch::Sender<Option<MemberId>>,
    departed: Mutex<BTreeSet<MemberId>>,
    reads: ReadRounds,
    /// Callers that have stopped the intake of commands, see [`Replica::close_intake`].
    intake_closed: AtomicUsize,
    change_turn: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// One run of openraft on this replica.
struct Instance {
    generation: u64,
    raft: Raft,
}

impl Replica {
    /// Opens the journal and the mesh and starts the tasks. Raft itself starts once the genesis is
    /// known: at once for a founder or a member that resumes.
    pub(crate) fn start(spec: ReplicaSpec) -> io::Result<Arc<Self>> {
        let local = spec.record.local;
        let journal = spec.store.journal(local)?;
        let snapshots = spec.store.snapshots(local)?;
        let check = spec.machine.check();
        let validator = spec.machine.validate().map(Validator::new);
        let handle = StateHandle::new(
            spec.machine,
            spec.stored,
            snapshots,
            Arc::clone(&spec.counters),
        )?;
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
            validator,
            turns: Turns::default(),
            refused: RefusedLeader::default(),
            mesh: OnceLock::new(),
            raft: RwLock::new(None),
            generation: AtomicU64::new(0),
            heard: Heard::default(),
            roster: watch::Sender::new(Vec::new()),
            told: watch::Sender::new(ReplicaState::default()),
            lost: watch::Sender::new(None),
            departed: Mutex::default(),
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
        self.spawn(|it| async move { it.heed_refusals().await });
        self.spawn(|it| async move { it.store_roster().await });
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
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        *write(&self.raft) = Some(Instance {
            generation,
            raft: raft.clone(),
        });
        if self.stopped().is_some() {
            // The group was stopped while this was starting, and may have found nothing to end.
            *write(&self.raft) = None;
            let _ = raft.shutdown().await;
            return Ok(());
        }
        self.spawn(|it| async move {
            it.follow(raft.clone()).await;
            it.instance_ended(generation, &raft);
        });
        Ok(())
    }

    /// An instance that ends by itself has met a fault that it will not survive.
    fn instance_ended(&self, generation: u64, ended: &Raft) {
        let current = read(&self.raft).as_ref().map(|it| it.generation);
        if current == Some(generation) && self.stopped().is_none() {
            let metrics = ended.metrics();
            let state = metrics.borrow_watched().running_state.clone();
            let why = state
                .err()
                .map_or_else(|| "it stopped".into(), |it| it.to_string());
            let failed = self.store.failed().borrow().clone();
            let broken = self.handle.broken().borrow().clone();
            let cause = broken.or(failed);
            self.stop_from_within(cause.unwrap_or_else(|| Cause::new(format!("Raft: {why}"))));
        }
    }

    /// Puts the Raft instance away and starts another on the same journal and state. Goes on to
    /// its end whoever stops waiting for it.
    pub(super) async fn restart_raft(&self) {
        let Some(replica) = self.me.upgrade() else {
            return;
        };
        let (done, waited) = tokio::sync::oneshot::channel::<()>();
        self.run(async move {
            let old = write(&replica.raft).take();
            if let Some(old) = old {
                tracing::warn!(group = %replica.record.id, "starting the Raft instance anew");
                let _ = old.raft.shutdown().await;
                if let Err(cause) = replica.start_raft().await {
                    replica.stop_from_within(cause);
                }
            }
            drop(done);
        });
        let _ = waited.await;
    }

    /// Ends everything of the group on this node, in order. Idempotent.
    pub(crate) async fn stop(&self, cause: Cause) {
        self.mark_stopped(cause.clone());
        self.tasks.close();
        let instance = write(&self.raft).take();
        if let Some(instance) = instance {
            let _ = instance.raft.shutdown().await;
        }
        self.mesh().close(cause.as_str()).await;
        self.tasks.wait().await;
    }

    /// Marks the group as stopped and cancels its tasks; has [`Replica::stop`] do the rest, which
    /// waits for the task that this is called from.
    fn stop_from_within(&self, cause: Cause) {
        if self.mark_stopped(cause.clone())
            && let Some(replica) = self.me.upgrade()
        {
            tokio::spawn(async move { replica.stop(cause).await });
        }
    }

    /// False if it was marked before.
    fn mark_stopped(&self, cause: Cause) -> bool {
        let marked = self.told.send_if_modified(|told| {
            let first = told.stopped.is_none();
            if first {
                tracing::info!(group = %self.record.id, %cause, "the group stops on this node");
                told.stopped = Some(cause);
                told.role = Role::Stopped;
                told.leader = None;
            }
            first
        });
        self.cancel.cancel();
        marked
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
            && let Err(why) = self.try_hand_over(&raft, heir).await
        {
            tracing::info!(%why, "leaving without a successor");
        }
        self.mesh().depart().await;
    }

    pub(super) fn raft(&self) -> Option<Raft> {
        read(&self.raft).as_ref().map(|it| it.raft.clone())
    }

    pub(super) fn me(&self) -> Weak<Self> {
        self.me.clone()
    }

    /// Whether a Raft instance has run here: if there is none now, one is being started anew.
    pub(super) fn was_admitted(&self) -> bool {
        self.generation.load(Ordering::Acquire) > 0
    }

    /// When the leader's appends were last heard.
    pub(super) fn heard(&self) -> &Heard {
        &self.heard
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

    pub(crate) fn check_command(&self) -> CheckCommand {
        self.check
    }

    /// What asks the machine about commands of others; none if it takes all.
    pub(crate) fn validator(&self) -> Option<&Validator> {
        self.validator.as_ref()
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(super) fn refused(&self) -> &RefusedLeader {
        &self.refused
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

    pub(super) fn removed_count(&self) -> usize {
        self.applied.borrow().removed.len()
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

fn known_peers(
    store: &Store,
    local: LocalGroup,
    contacts: &[PeerAddr],
) -> io::Result<Vec<PeerAddr>> {
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
        // The bonds' own heartbeats notice silence. These renew leases, and their answer waits for
        // the disk: they must fit a slow sync and a long way.
        heartbeat_interval: millis(timing.election_timeout_min / 2),
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

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
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
