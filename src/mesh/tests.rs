//! Behaviours of the mesh, over real QUIC on loopback with a mock of what lies above.

mod converge;
mod lanes;
mod life;
mod strangers;

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use im::Vector;
use tokio::sync::{Semaphore, watch};

use super::{Links, Mesh, MeshSpec};
use crate::{
    bond::{
        Bond, Introduction, Lane, MeshEvent, Proven, Refusal, Service, StreamKind,
        TerminationReason,
    },
    config::{Config, Timing},
    identity::{Genesis, GroupId, GroupKey, MemberId, PeerAddr, PeerId},
    metrics::Counters,
    net::{BondStream, Quic, QuicOptions, RelayChoice, Transport},
};

/// Patient enough for two busy cores; what is about time says its own.
const CALM: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    heartbeats_missed: 10,
    bond_timeout: Duration::from_secs(10),
    election_timeout_min: Duration::from_secs(2),
    election_timeout_max: Duration::from_secs(4),
    ..Timing::LAN
};

/// Nothing here takes this long unless it is stuck.
const STUCK: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// What a mock has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Note {
    Formed(PeerId),
    Silent(PeerId),
    Heard(PeerId),
    Ended(PeerId, TerminationReason),
    Departed(PeerId),
}

/// A group without Raft.
struct Mock {
    introduction: Introduction,
    refuses: Mutex<Option<Refusal>>,
    /// Pulses come back only while this says true.
    alive: watch::Sender<bool>,
    notes: watch::Sender<Vector<Note>>,
    roster: Mutex<Vec<PeerAddr>>,
    /// Requests that begin with `wait` are answered after taking one of these.
    answers: Semaphore,
    /// Requests that are being answered.
    running: watch::Sender<usize>,
}

impl Mock {
    fn new(member: MemberId) -> Self {
        Self {
            introduction: Introduction {
                genesis: None,
                member,
                format: 1,
                machine: "test".into(),
            },
            refuses: Mutex::default(),
            alive: watch::Sender::new(true),
            notes: watch::Sender::default(),
            roster: Mutex::default(),
            answers: Semaphore::new(0),
            running: watch::Sender::new(0),
        }
    }

    /// Waits until the notes fulfil this.
    async fn noted(&self, what: &str, enough: impl Fn(&Vector<Note>) -> bool) -> Vector<Note> {
        let mut notes = self.notes.subscribe();
        let waited = tokio::time::timeout(STUCK, notes.wait_for(|notes| enough(notes))).await;
        match waited {
            Ok(notes) => notes.expect("the mock lives").clone(),
            Err(_) => panic!("never {what}: {:?}", *self.notes.borrow()),
        }
    }

    fn count(&self, wanted: impl Fn(&Note) -> bool) -> usize {
        self.notes
            .borrow()
            .iter()
            .filter(|note| wanted(note))
            .count()
    }
}

impl Service for Mock {
    fn introduction(&self) -> Introduction {
        self.introduction.clone()
    }

    fn admit<'a>(
        &'a self,
        _: PeerId,
        theirs: &'a Introduction,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        let ours = &self.introduction;
        let rivals = ours.genesis.is_some() && ours.genesis != theirs.genesis;
        let refusal = if rivals {
            Some(Refusal::OtherGenesis)
        } else {
            None
        };
        let refusal = refusal.or(*self.refuses.lock().expect("not poisoned"));
        async move { refusal.map_or(Ok(()), Err) }.boxed()
    }

    fn pulse(&self) -> BoxFuture<'_, bool> {
        let mut alive = self.alive.subscribe();
        async move { alive.wait_for(|alive| *alive).await.is_ok() }.boxed()
    }

    fn request(&self, _: Proven, lane: Lane, body: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        async move {
            self.running.send_modify(|running| *running += 1);
            let waits = body.starts_with(b"wait");
            if waits {
                self.answers.acquire().await.ok()?.forget();
            }
            self.running.send_modify(|running| *running -= 1);
            match (lane, &body[..]) {
                (_, b"refuse") => None,
                (Lane::Vote | Lane::Forward, _) => Some(body),
            }
        }
        .boxed()
    }

    fn stream(&self, _: Proven, kind: StreamKind, mut stream: BondStream) -> BoxFuture<'_, ()> {
        async move {
            while let Ok(Some(frame)) = stream.recv.read_frame(1 << 24).await {
                let mut answer = format!("{kind:?} ").into_bytes();
                answer.extend_from_slice(&frame);
                if stream.send.write_frame(answer.into()).await.is_err() {
                    return;
                }
            }
        }
        .boxed()
    }

    fn event(&self, event: MeshEvent) {
        let note = match event {
            MeshEvent::Formed(bond) => Note::Formed(bond.peer()),
            MeshEvent::Silent(bond) => Note::Silent(bond.peer()),
            MeshEvent::Heard(bond) => Note::Heard(bond.peer()),
            MeshEvent::Ended(bond, reason) => Note::Ended(bond.peer(), reason),
            MeshEvent::Departed(proven) => Note::Departed(proven.peer),
        };
        self.notes.send_modify(|notes| notes.push_back(note));
    }

    fn roster_changed(&self, roster: Vec<PeerAddr>) {
        *self.roster.lock().expect("not poisoned") = roster;
    }
}

/// A node with links and nothing else.
struct Node {
    secret: [u8; 32],
    links: Links,
    counters: Arc<Counters>,
}

/// A node in one group.
struct Member {
    node: Node,
    mesh: Mesh,
    mock: Arc<Mock>,
}

async fn quic(secret: [u8; 32], port: u16) -> Quic {
    let bind = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    // A port is free again a moment after its last user has closed it.
    for _ in 0..100 {
        let options = QuicOptions {
            secret,
            bind: bind.clone(),
            relay: RelayChoice::Off,
        };
        match Quic::bind(options).await {
            Ok(quic) => return quic,
            Err(error) if port == 0 => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("port {port} stays taken");
}

impl Node {
    async fn start(timing: Timing) -> Self {
        Self::start_as(rand::random(), 0, timing).await
    }

    async fn start_as(secret: [u8; 32], port: u16, timing: Timing) -> Self {
        let config = Arc::new(Config {
            timing,
            ..Config::default()
        });
        let counters = Arc::new(Counters::default());
        let transport = Arc::new(quic(secret, port).await);
        let links = Links::start(transport, config, Arc::clone(&counters));
        Self {
            secret,
            links,
            counters,
        }
    }

    fn peer(&self) -> PeerId {
        self.links.peer_id()
    }

    fn addr(&self) -> PeerAddr {
        self.links.addr()
    }

    fn port(&self) -> u16 {
        self.addr().addrs.first().expect("bound").port()
    }

    fn open(&self, key: &GroupKey, mock: Arc<Mock>, known: Vec<PeerAddr>) -> Mesh {
        let group = key.group_id("test");
        self.links.open_mesh(MeshSpec {
            key: key.clone(),
            group,
            service: mock,
            known,
        })
    }
}

impl Member {
    async fn start(key: &GroupKey, known: Vec<PeerAddr>) -> Self {
        Self::on(Node::start(CALM).await, key, known)
    }

    fn on(node: Node, key: &GroupKey, known: Vec<PeerAddr>) -> Self {
        Self::with(node, key, Mock::new(MemberId::mint()), known)
    }

    fn with(node: Node, key: &GroupKey, mock: Mock, known: Vec<PeerAddr>) -> Self {
        let mock = Arc::new(mock);
        let mesh = node.open(key, Arc::clone(&mock), known);
        Self { node, mesh, mock }
    }

    fn peer(&self) -> PeerId {
        self.node.peer()
    }

    fn addr(&self) -> PeerAddr {
        self.node.addr()
    }

    fn id(&self) -> MemberId {
        self.mock.introduction.member
    }

    /// Waits until there is a bond with that member.
    async fn bonded(&self, other: &Self) -> Bond {
        let bonded = async {
            let mut bonds = self.mesh.bonds();
            loop {
                if let Some(bond) = self.mesh.bond_to(other.id()) {
                    return bond;
                }
                bonds.changed().await;
            }
        };
        soon("a bond", bonded).await
    }

    async fn shut(&self) {
        soon("the shutdown", self.node.links.shutdown()).await;
    }
}

/// Two members that are bonded, the second knowing the first.
async fn pair(key: &GroupKey) -> (Member, Member, Bond, Bond) {
    let one = Member::start(key, vec![]).await;
    let two = Member::start(key, vec![one.addr()]).await;
    let (ours, theirs) = (one.bonded(&two).await, two.bonded(&one).await);
    (one, two, ours, theirs)
}

fn genesis() -> Genesis {
    Genesis::mint()
}

fn group(key: &GroupKey) -> GroupId {
    key.group_id("test")
}

/// Lets everything that is ready run once.
async fn yielded() {
    let mut first = true;
    poll_fn(|cx| {
        if std::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_bond_and_agree_on_its_name() {
    let (one, two, ours, theirs) = pair(&GroupKey::generate()).await;
    assert_eq!(ours.id(), theirs.id());
    assert_eq!((ours.peer(), theirs.peer()), (two.peer(), one.peer()));
    assert_eq!(ours.member(), two.id());
    assert!(one.mesh.bonds().contains_peer(&two.peer()));
    assert_eq!(two.mock.roster.lock().expect("not poisoned").len(), 2);
    let measured = async {
        while ours.rtt().is_none() {
            yielded().await;
        }
    };
    soon("a round trip", measured).await;
    one.shut().await;
    two.shut().await;
}
