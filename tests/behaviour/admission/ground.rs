//! A group whose members all serve, and peers of it: each a group of one of its own, whose door
//! speaks to the members as a p2panda node does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::StreamExt;
use quorate::{
    GroupKey, Node, PeerId,
    config::Config,
    log_store::{AuthorKey, Draft, Line, LogStore, Logs, Operation, Topic},
    sync::{
        Admission, LogTicket, Outsiders, PeerStatus, Pull, Puller, Push, Pusher, QuicDial, Sync,
        SyncOptions,
    },
};

use crate::cluster::{Member, PATIENCE, Place, group_at, within};

pub(crate) const LINE: Line = Line::V07;

pub(crate) fn topic() -> Topic {
    Topic::named("cats")
}

pub(crate) fn options() -> SyncOptions {
    SyncOptions {
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        ask_again: Duration::from_secs(1),
        ..SyncOptions::default()
    }
}

/// Waits until it is so, looking again and again: for what gives no event.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, looking).await;
}

/// A member and its door.
pub(crate) struct Serving {
    pub(crate) member: Member<LogStore>,
    pub(crate) logs: Logs,
    pub(crate) sync: Sync,
    pub(crate) outsiders: Outsiders,
}

impl Serving {
    pub(crate) async fn of(member: Member<LogStore>, options: SyncOptions) -> Self {
        let logs = member.group.logs();
        let sync = within("a door opens", member.node.serve_sync(&logs, options)).await;
        let sync = sync.expect("loopback can be bound");
        Self {
            outsiders: sync.outsiders(),
            member,
            logs,
            sync,
        }
    }

    /// What it says of a peer in the topic.
    pub(crate) fn status_of(&self, peer: PeerId) -> Option<PeerStatus> {
        let status = self.sync.status().peers;
        status
            .into_iter()
            .find(|it| (it.peer, it.topic) == (peer, topic()))
    }
}

/// Members in memory that all serve.
pub(crate) async fn group(count: usize) -> Vec<Serving> {
    group_with(vec![Place::MEMORY; count], &options()).await
}

pub(crate) async fn group_with(places: Vec<Place>, options: &SyncOptions) -> Vec<Serving> {
    let mut serving = Vec::new();
    for member in group_at(places, &Config::default()).await {
        serving.push(Serving::of(member, options.clone()).await);
    }
    serving
}

pub(crate) async fn open(serving: &Serving, admission: Admission) {
    let opening = serving.outsiders.open_topic(topic(), LINE, admission);
    within("the topic opens", opening).await.expect("opened");
}

pub(crate) async fn shutdown(members: Vec<Serving>) {
    for it in members {
        within("it stops", it.member.node.shutdown()).await;
    }
}

/// A peer that is no member.
pub(crate) struct Friend {
    node: Node,
    pub(crate) logs: Logs,
    pub(crate) sync: Sync,
}

impl Friend {
    pub(crate) async fn new() -> Self {
        let node = Node::in_memory().bind_loopback().open().await;
        let node = node.expect("loopback can be bound");
        let logs = node.create(GroupKey::generate(), LogStore::new()).await;
        let logs = logs.expect("founded").logs();
        let opening = Outsiders::of(&logs);
        let opening = opening.open_topic(topic(), LINE, Admission::everyone());
        within("its topic opens", opening).await.expect("opened");
        let sync = node.serve_sync(&logs, options()).await;
        let sync = sync.expect("loopback can be bound");
        Self { node, logs, sync }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.sync.id()
    }

    /// Looks for a member from now on.
    pub(crate) fn meets(&self, member: &Serving) {
        self.sync.add_peer(member.sync.addr());
    }

    /// How the last session with a member went, as the friend sees it.
    pub(crate) fn last_error(&self, member: &Serving) -> Option<String> {
        let peers = self.sync.status().peers;
        let of = peers.into_iter().find(|it| it.peer == member.sync.id());
        of.and_then(|it| it.last_error)
    }

    pub(crate) async fn stop(self) {
        within("a friend stops", self.node.shutdown()).await;
    }
}

/// What somebody holds of the topic: the operations of an author.
pub(crate) async fn held(logs: &Logs, author: &Writer) -> usize {
    let heights = within("the heights", logs.heights(topic())).await;
    let heights = heights.expect("a quorum answers");
    let height = heights.get(&author.key.author());
    let height = height.and_then(|it| it.get(&topic().log_id()));
    height.map_or(0, |it| *it as usize + 1)
}

pub(crate) async fn holds(logs: &Logs, author: &Writer, count: usize) {
    let what = format!("{count} operations are held");
    until(&what, async || held(logs, author).await == count).await;
}

/// An author who writes one log.
pub(crate) struct Writer {
    key: AuthorKey,
    last: Option<Operation>,
}

impl Writer {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            key: AuthorKey::from_bytes(&[number; 32]),
            last: None,
        }
    }

    pub(crate) fn next(&mut self) -> Operation {
        let body = Some(vec![7; 100].into());
        let draft = match &self.last {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(LINE, topic().log_id(), 7, body),
        };
        let operation = Operation::sign(draft, &self.key).expect("by the rules");
        self.last = Some(operation.clone());
        operation
    }

    /// Writes so many operations into these logs.
    pub(crate) async fn write(&mut self, logs: &Logs, count: usize) {
        let operations: Vec<_> = (0..count).map(|_| self.next()).collect();
        let appending: Vec<_> = logs.append_many(topic(), operations).collect().await;
        for outcome in appending {
            let outcome = outcome.expect("a quorum answers");
            assert!(outcome.number().is_some(), "{outcome:?}");
        }
    }
}

/// Our own client, under a key.
pub(crate) struct Client {
    dial: Arc<QuicDial>,
    ticket: LogTicket,
}

impl Client {
    pub(crate) fn of(member: &Serving, key: u8) -> Self {
        let ticket = LogTicket::new(
            member.sync.ticket().network(),
            [(topic(), LINE)],
            [member.sync.addr()],
        );
        let bind = SocketAddr::from(([127, 0, 0, 1], 0));
        let dial = QuicDial::bound_to(ticket.network(), bind).with_key([key; 32]);
        Self {
            dial: Arc::new(dial),
            ticket,
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.dial.id()
    }

    pub(crate) fn pulls(&self) -> Puller {
        let pull = Pull::new(&self.ticket, topic(), quorate::sync::Have::new());
        let pull = pull.over(self.dial.clone()).silent_after(PATIENCE);
        pull.retry(Duration::from_millis(20), Duration::from_millis(100))
            .start()
    }

    pub(crate) fn pushes(&self, operations: Vec<Operation>) -> Pusher {
        let push = Push::new(&self.ticket, topic()).over(self.dial.clone());
        let push = push.retry(Duration::from_millis(20), Duration::from_millis(100));
        push.start(futures_util::stream::iter(operations))
    }
}
