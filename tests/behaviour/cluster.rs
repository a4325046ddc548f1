//! Nodes in one process: how the tests start them, stop them, bring them back and compare them.

use std::{
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use futures_util::future::join_all;
use quorate::{
    Group, GroupKey, GroupTicket, MemberId, MemoryDisk, Node, NodeBuilder, PeerId, Role,
    StateMachine, Status, config::Config,
};
use tempfile::TempDir;

/// What any step of a test may take, on cores that others load as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits, and says for what if it takes too long.
pub(crate) async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// A machine that starts empty, as at the founding.
pub(crate) trait Fresh: StateMachine + Default {}
impl<M: StateMachine + Default> Fresh for M {}

/// A node that holds one group.
pub(crate) struct Member<M: StateMachine> {
    pub(crate) node: Node,
    pub(crate) group: Group<M>,
    pub(crate) place: Place,
    pub(crate) config: Config,
}

/// Where a node keeps its data while it is down.
#[derive(Clone)]
pub(crate) enum Place {
    Memory(Option<MemoryDisk>),
    Directory(PathBuf),
}

/// A node that is down, and what it needs to come back.
pub(crate) struct Resting {
    pub(crate) place: Place,
    pub(crate) config: Config,
    pub(crate) ticket: GroupTicket,
}

impl Place {
    pub(crate) const MEMORY: Self = Self::Memory(None);

    fn builder(&self) -> NodeBuilder {
        match self {
            Self::Memory(None) => Node::in_memory(),
            Self::Memory(Some(disk)) => Node::on_memory(disk.clone()),
            Self::Directory(path) => Node::builder(path),
        }
    }

    pub(crate) async fn open(&self, config: &Config) -> Node {
        log();
        let builder = self.builder().bind_loopback().config(config.clone());
        within("a node opens", builder.open()).await.expect("the node opens")
    }
}

/// A directory of this name below a temporary one.
pub(crate) fn below(root: &TempDir, name: &str) -> Place {
    Place::Directory(root.path().join(name))
}

pub(crate) fn temporary() -> TempDir {
    tempfile::tempdir().expect("there is room for a temporary directory")
}

impl<M: Fresh> Member<M> {
    pub(crate) async fn found(place: Place, config: &Config) -> Self {
        let node = place.open(config).await;
        let created = node.create(GroupKey::generate(), M::default());
        let group = within("founding", created).await.expect("founded");
        Self { node, group, place, config: config.clone() }
    }

    pub(crate) async fn join(place: Place, config: &Config, ticket: &GroupTicket) -> Self {
        let node = place.open(config).await;
        let joined = within("joining", node.join(ticket, M::default())).await;
        Self { node, group: joined.expect("joined"), place, config: config.clone() }
    }

    /// Stops the node in order.
    pub(crate) async fn rest(self) -> Resting {
        let place = match &self.place {
            Place::Memory(_) => Place::Memory(self.node.memory_disk()),
            Place::Directory(path) => Place::Directory(path.clone()),
        };
        let ticket = self.group.ticket();
        within("the shutdown of a node", self.node.shutdown()).await;
        Resting { place, config: self.config, ticket }
    }

    pub(crate) fn id(&self) -> MemberId {
        self.group.member()
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.node.peer_id()
    }

    pub(crate) async fn status_when(
        &self,
        what: &str,
        wanted: impl FnMut(&Status) -> bool,
    ) -> Status {
        let mut watch = self.group.watch_status();
        match tokio::time::timeout(PATIENCE, watch.wait_for(wanted)).await {
            Ok(status) => status,
            Err(_) => panic!("waited {PATIENCE:?} in vain: {what}; it is {:#?}", watch.now()),
        }
    }

    /// Why the group has stopped here, once it has.
    pub(crate) async fn stop_reason(&self) -> String {
        let status = self.status_when("the group stops", |it| it.stopped.is_some()).await;
        let stopped = status.stopped.expect("it has stopped");
        assert_eq!(status.role, Role::Stopped);
        stopped.to_string()
    }
}

impl Resting {
    pub(crate) async fn start<M: Fresh>(self) -> Member<M> {
        Member::join(self.place, &self.config, &self.ticket).await
    }
}

/// This many members in memory, with the default settings.
pub(crate) async fn group_of<M: Fresh>(count: usize) -> Vec<Member<M>> {
    let places = vec![Place::MEMORY; count];
    group_at(places, &Config::default()).await
}

/// A member at each place; returns once as many vote as may, known to all, under one leader.
pub(crate) async fn group_at<M: Fresh>(places: Vec<Place>, config: &Config) -> Vec<Member<M>> {
    let count = places.len();
    let mut places = places.into_iter();
    let first = places.next().expect("a group has members");
    let mut members = vec![Member::<M>::found(first, config).await];
    for place in places {
        let ticket = members[0].group.ticket();
        members.push(Member::join(place, config, &ticket).await);
    }
    let even = count >= 4 && count.is_multiple_of(2);
    let voting = count.min(config.max_voters) - usize::from(even);
    for member in &members {
        let what = format!("{voting} of {count} members vote");
        member.status_when(&what, |it| voters(it) == voting && it.members.len() == count).await;
    }
    settled(&members).await;
    members
}

pub(crate) fn voters(status: &Status) -> usize {
    status.members.iter().filter(|it| it.voter).count()
}

/// Waits until all know one leader, which is one of them, and gives its place in the list.
pub(crate) async fn settled<M: Fresh>(members: &[Member<M>]) -> usize {
    let settle = async {
        loop {
            let leads = |it: &Member<M>| it.group.status().role == Role::Leader;
            if let Some(at) = members.iter().position(leads) {
                let leader = Some(members[at].id());
                let agreed = |it: &Member<M>| it.group.status().leader == leader;
                if members.iter().all(agreed) {
                    return at;
                }
            }
            let mut watches: Vec<_> = members.iter().map(|it| it.group.watch_status()).collect();
            let changes = watches.iter_mut().map(|it| Box::pin(it.changed()));
            let first = futures_util::future::select_all(changes);
            let _ = tokio::time::timeout(Duration::from_millis(20), first).await;
        }
    };
    within("the members agree on a leader", settle).await
}

/// Waits until every member has applied all that is committed, and gives what each then holds.
pub(crate) async fn views<M: Fresh>(members: &[Member<M>]) -> Vec<M::View> {
    let ready = members.iter().map(|it| it.group.ready());
    for result in within("all members are ready", join_all(ready)).await {
        result.expect("the group runs");
    }
    members.iter().map(|it| it.group.view().1).collect()
}

/// A ticket that names these peers only.
pub(crate) fn ticket_of(ticket: &GroupTicket, peers: &[PeerId]) -> GroupTicket {
    let named = ticket.members().iter().filter(|it| peers.contains(&it.peer));
    GroupTicket::new(ticket.key().clone(), ticket.group(), named.cloned().collect())
}

/// Copies a directory with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory is made");
    for entry in std::fs::read_dir(from).expect("a directory is read") {
        let entry = entry.expect("an entry is read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file is copied");
        }
    }
}

fn log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env();
        if let Ok(filter) = filter {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
    });
}
