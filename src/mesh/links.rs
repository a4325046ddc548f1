//! All connections of this node, shared by its groups: which peer is linked how, and under which
//! boot id.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Mesh, MeshSpec, acceptor,
    admission::Redundant,
    group::Group,
    link::{self, Link, LinkId, code},
};
use crate::{
    config::{Config, Timing},
    identity::{BootId, GroupId, PeerAddr, PeerId},
    metrics::Counters,
    net::{self, Transport, WireError},
};

/// Links that peers may have without a proof, all together.
const STRANGERS_MAX: usize = 64;

/// Links to one peer at a time. More than one is only until it is decided which is kept.
const LINKS_A_PEER: usize = 4;

/// Process starts of a peer that are remembered as over.
const RETIRED_MAX: usize = 8;

/// The age from which both sides know of a link or a bond, if it still exists.
pub(super) const SETTLED: Duration = Duration::from_secs(1);

/// How long a shutdown waits for the node's own tasks.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// The node's links; a handle that is cheap to clone. Lives until [`Links::shutdown`].
#[derive(Clone)]
pub(crate) struct Links(Arc<Inner>);

struct Inner {
    transport: Arc<dyn Transport>,
    config: Arc<Config>,
    counters: Arc<Counters>,
    boot: BootId,
    strangers: Arc<Semaphore>,
    table: Mutex<Table>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Table {
    peers: HashMap<PeerId, Peer>,
    groups: BTreeMap<GroupId, Arc<Group>>,
    /// Changes with `groups`.
    generation: u64,
    stopped: bool,
}

/// What is known of one peer's connections.
///
/// # Invariants
/// - `kept` is in `links`, and proven; all bonds with the peer are on it or about to end.
/// - `boot` is not in `retired`.
#[derive(Default)]
struct Peer {
    links: Vec<Arc<Link>>,
    kept: Option<Kept>,
    /// The last process start of the peer that has introduced itself.
    boot: Option<BootId>,
    /// Those before, oldest first.
    retired: VecDeque<BootId>,
    door: Door,
}

struct Kept {
    link: Arc<Link>,
    since: Instant,
}

/// One dial to a peer at a time, and how the last one failed.
pub(super) type Door = Arc<tokio::sync::Mutex<Option<(Instant, WireError)>>>;

impl Links {
    /// Starts to accept.
    pub(crate) fn start(
        transport: Arc<dyn Transport>,
        config: Arc<Config>,
        counters: Arc<Counters>,
    ) -> Self {
        let links = Self(Arc::new(Inner {
            transport,
            config,
            counters,
            boot: BootId::mint(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            table: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }));
        links.spawn(acceptor::accept(links.clone()));
        links.spawn(announce(links.clone()));
        links
    }

    pub(crate) fn peer_id(&self) -> PeerId {
        self.0.transport.peer_id()
    }

    /// Where this node can be dialled at the moment.
    pub(crate) fn addr(&self) -> PeerAddr {
        self.0.transport.local_addr().capped()
    }

    /// This start of this process.
    pub(crate) fn boot(&self) -> BootId {
        self.0.boot
    }

    /// Connections that are open.
    pub(crate) fn count(&self) -> usize {
        let table = self.lock();
        table
            .peers
            .values()
            .flat_map(|peer| &peer.links)
            .filter(|link| link.is_alive())
            .count()
    }

    /// Opens a group's mesh: peers that know its key are answered from now on, those known dialled.
    /// One mesh a group at a time.
    pub(crate) fn open_mesh(&self, spec: MeshSpec) -> Mesh {
        let id = spec.group;
        let known = spec.known.clone();
        let group = Group::new(self.clone(), spec);
        {
            let mut table = self.lock();
            table.groups.insert(id, Arc::clone(&group));
            table.generation += 1;
        }
        for addr in known {
            group.learn(addr);
        }
        Mesh::new(group)
    }

    /// Closes every mesh and every connection, so that peers notice at once, and the transport.
    /// Idempotent.
    pub(crate) async fn shutdown(&self) {
        self.0.stop.cancel();
        let groups: Vec<Arc<Group>> = {
            let mut table = self.lock();
            table.stopped = true;
            table.groups.values().cloned().collect()
        };
        const WHY: &str = "the node shuts down";
        futures_util::future::join_all(groups.iter().map(|group| group.close(WHY))).await;
        for link in self.all() {
            link.connection.close(code::SHUTDOWN, WHY);
        }
        self.0.transport.close().await;
        self.0.tasks.close();
        if tokio::time::timeout(SHUTDOWN_WAIT, self.0.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.0.tasks.len(),
                "tasks of the node's links do not end"
            );
        }
    }

    /// Tasks of the links themselves that are alive; those of groups are theirs.
    #[cfg(test)]
    pub(crate) fn tasks(&self) -> usize {
        self.0.tasks.len()
    }

    pub(super) fn transport(&self) -> &dyn Transport {
        &*self.0.transport
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.0.config.timing
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Runs a task until it ends or the links are shut down.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Room for one more link without a proof.
    pub(super) fn stranger(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.strangers).try_acquire_owned().ok()
    }

    /// Takes a fresh connection in.
    pub(super) fn adopt(
        &self,
        connection: net::Link,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Arc<Link>, WireError> {
        let link = Link::new(self.peer_id(), connection, permit)?;
        {
            let mut table = self.lock();
            if table.stopped {
                link.connection.close(code::SHUTDOWN, "the node shuts down");
                return Err(WireError::new("the node shuts down"));
            }
            let peer = table.peers.entry(link.peer()).or_default();
            peer.links
                .retain(|link| link.is_alive() || link.bonds() > 0);
            if peer.links.len() >= LINKS_A_PEER {
                link.connection
                    .close(code::STRANGER, "too many connections");
                return Err(WireError::new("too many connections with this peer"));
            }
            peer.links.push(Arc::clone(&link));
        }
        self.counters().links_opened.add(1);
        // Not by `spawn`: it ends with its connection, which the shutdown closes.
        self.0
            .tasks
            .spawn(link::tend(self.clone(), Arc::clone(&link)));
        Ok(link)
    }

    /// A connection has ended.
    pub(super) fn remove(&self, link: &Arc<Link>) {
        self.counters().links_closed.add(1);
        let mut table = self.lock();
        let Some(peer) = table.peers.get_mut(&link.peer()) else {
            return;
        };
        peer.links.retain(|other| !Arc::ptr_eq(other, link));
        if peer
            .kept
            .as_ref()
            .is_some_and(|kept| Arc::ptr_eq(&kept.link, link))
        {
            peer.kept = None;
        }
        let waited_for = Arc::strong_count(&peer.door) > 1;
        if peer.links.is_empty() && peer.boot.is_none() && !waited_for {
            table.peers.remove(&link.peer());
        }
    }

    /// The link to use for this peer: the one that is kept, or any that may become so.
    pub(super) fn link_with(&self, peer: PeerId) -> Option<Arc<Link>> {
        let table = self.lock();
        let peer = table.peers.get(&peer)?;
        let kept = peer.kept.iter().map(|kept| &kept.link);
        kept.chain(peer.links.iter().rev())
            .find(|link| link.is_alive())
            .cloned()
    }

    pub(super) fn door(&self, peer: PeerId) -> Door {
        Arc::clone(&self.lock().peers.entry(peer).or_default().door)
    }

    /// The link with this peer that is kept at the moment.
    pub(super) fn kept(&self, peer: PeerId) -> Option<LinkId> {
        let table = self.lock();
        let kept = table.peers.get(&peer)?.kept.as_ref()?;
        kept.link.is_alive().then_some(kept.link.id)
    }

    /// A peer has told its boot id over this link. A new one ends the links of the old. False if it
    /// is one that another has replaced: then two processes run with one secret key.
    pub(super) fn note_boot(&self, link: &Arc<Link>, boot: BootId) -> bool {
        let mut table = self.lock();
        let peer = table.peers.entry(link.peer()).or_default();
        if peer.boot == Some(boot) {
            return true;
        }
        if peer.retired.contains(&boot) {
            return false;
        }
        if let Some(old) = peer.boot.replace(boot) {
            peer.retired.push_back(old);
            if peer.retired.len() > RETIRED_MAX {
                peer.retired.pop_front();
            }
        }
        if let Some(kept) = peer.kept.take() {
            kept.link
                .connection
                .close(code::REPLACED, "the peer was restarted");
        }
        true
    }

    /// Decides, as the lower peer id, whether this link is the one that is kept; `theirs` is the
    /// one that the peer keeps.
    pub(super) fn claim(
        &self,
        link: &Arc<Link>,
        boot: BootId,
        theirs: Option<LinkId>,
    ) -> Result<(), Redundant> {
        let mut table = self.lock();
        let peer = table.peers.entry(link.peer()).or_default();
        if peer.boot != Some(boot) || !link.is_alive() {
            return Err(Redundant::Link);
        }
        if let Some(kept) = &peer.kept
            && kept.link.is_alive()
            && !Arc::ptr_eq(&kept.link, link)
            && (theirs == Some(kept.link.id) || kept.since.elapsed() < SETTLED)
        {
            return Err(Redundant::Link);
        }
        peer.keep(link);
        Ok(())
    }

    /// Keeps this link, as the higher peer id, since the lower one has decided so.
    pub(super) fn keep(&self, link: &Arc<Link>) {
        self.lock().peers.entry(link.peer()).or_default().keep(link);
    }

    /// The groups, if they have changed since this generation.
    pub(super) fn groups_since(&self, generation: u64) -> Option<(u64, Vec<Arc<Group>>)> {
        let table = self.lock();
        (table.generation != generation)
            .then(|| (table.generation, table.groups.values().cloned().collect()))
    }

    /// A group's mesh is closed.
    pub(super) fn close_group(&self, group: &Group) {
        let mut table = self.lock();
        if table
            .groups
            .get(&group.id())
            .is_some_and(|open| std::ptr::eq(&**open, group))
        {
            table.groups.remove(&group.id());
            table.generation += 1;
        }
    }

    /// Every connection, for shutdown and for tests that cut them.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.lock()
            .peers
            .values()
            .flat_map(|peer| peer.links.iter().cloned())
            .collect()
    }

    /// Lets go of everything without a word, as a killed process does.
    #[cfg(test)]
    pub(super) fn abandon(&self) {
        let abandoned = std::mem::take(&mut *self.lock());
        drop(abandoned);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn keep(&mut self, link: &Arc<Link>) {
        if let Some(kept) = &self.kept {
            if Arc::ptr_eq(&kept.link, link) {
                return;
            }
            kept.link
                .connection
                .close(code::REPLACED, "another link is kept");
        }
        self.kept = Some(Kept {
            link: Arc::clone(link),
            since: Instant::now(),
        });
    }
}

/// Tells every bonded peer when this node's addresses change.
async fn announce(links: Links) {
    loop {
        links.transport().addr_changed().await;
        if let Some((_, groups)) = links.groups_since(u64::MAX) {
            for group in groups {
                group.announce();
            }
        }
    }
}
