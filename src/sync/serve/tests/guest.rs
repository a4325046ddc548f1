//! Members with doors, and peers that say to them whatever a test wants.

use std::{collections::BTreeMap, future, net::Ipv4Addr, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use zeroize::Zeroizing;

use super::super::{Kept, Patience, Sync, SyncOptions, shake};
use crate::{
    identity::{GroupKey, PeerAddr, PeerId},
    log_store::{Heights, Line, LogStore, Logs, Operation, Topic},
    net::RelayChoice,
    node::{MemoryDisk, Node},
    sync::{
        Admission, Outsiders, client,
        codec::{self, Decoder, Limits, Message},
        wire::{Connection, Knock, Membership, Recv, Send, Service, Wire, WireOptions},
    },
};

const STUCK: Duration = Duration::from_secs(60);

/// What must happen, and soon.
pub(super) async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// Looks again until it holds.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, waiting).await;
}

pub(super) fn topic(line: Line) -> Topic {
    Topic::named(&format!("cats {line}"))
}

/// A group in memory that serves one topic of each line.
pub(super) struct House {
    pub(super) nodes: Vec<Node>,
    pub(super) logs: Vec<Logs>,
}

impl House {
    pub(super) async fn of(members: usize) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        let mut logs: Vec<Logs> = Vec::new();
        for _ in 0..members {
            let node = Node::in_memory().bind_loopback().open().await;
            let node = node.expect("loopback can be bound");
            let group = match logs.first() {
                None => node.create(GroupKey::generate(), LogStore::new()).await,
                Some(first) => Ok(soon(
                    "the join",
                    node.join(&first.group().ticket(), LogStore::new()),
                )
                .await
                .expect("the group is there")),
            };
            logs.push(group.expect("it can be founded").logs());
            nodes.push(node);
        }
        for line in Line::ALL {
            let outsiders = Outsiders::of(&logs[0]);
            let opening = outsiders.open_topic(topic(line), line, Admission::everyone());
            soon("the topic", opening).await.expect("a quorum is there");
        }
        let house = Self { nodes, logs };
        for member in &house.logs {
            let opened = || member.topics().expect("readable").len() == 2;
            until("every member knows the topics", opened).await;
        }
        house
    }

    pub(super) async fn door(&self, member: usize, patience: Patience) -> Sync {
        let options = SyncOptions {
            bind: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            ..SyncOptions::default()
        };
        self.door_with(member, patience, options).await
    }

    pub(super) async fn door_with(
        &self,
        member: usize,
        patience: Patience,
        options: SyncOptions,
    ) -> Sync {
        let secret = Zeroizing::new([100 + member as u8; 32]);
        let opened = Sync::start_with(
            &self.logs[member],
            secret,
            (
                options,
                Kept::new(BTreeMap::new(), |_| future::ready(()).boxed()),
            ),
            patience,
        )
        .await;
        let sync = opened.expect("loopback can be bound");
        let mut status = sync.watch_status();
        soon("it serves", status.wait_for(|it| it.serving)).await;
        sync
    }

    /// Changes what a topic admits, and how it is served.
    pub(super) async fn admit(&self, line: Line, admission: Admission) {
        let outsiders = Outsiders::of(&self.logs[0]);
        let admitting = outsiders.admit(topic(line), admission);
        soon("the change", admitting)
            .await
            .expect("a quorum is there");
    }

    pub(super) async fn append(&self, operations: Vec<Operation>) {
        for operation in operations {
            let topic = topic(operation.line());
            let appending = self.logs[0].append(topic, operation);
            soon("an append", appending)
                .await
                .expect("it keeps the rules");
        }
    }

    pub(super) async fn heights(&self, line: Line) -> Heights {
        let heights = soon("the heights", self.logs[0].heights(topic(line))).await;
        heights.expect("a quorum is there")
    }

    /// Ends a member's node; the disk on which [`House::start`] starts it again.
    pub(super) async fn stop(&self, member: usize) -> MemoryDisk {
        let disk = self.nodes[member].memory_disk().expect("it is in memory");
        soon("the end", self.nodes[member].shutdown()).await;
        disk
    }

    pub(super) async fn start(&mut self, member: usize, disk: MemoryDisk) {
        let node = Node::on_memory(disk).bind_loopback().open().await;
        let node = node.expect("loopback can be bound");
        let ticket = self.logs[member].group().ticket();
        let joined = soon("the join", node.join(&ticket, LogStore::new())).await;
        self.logs[member] = joined.expect("it was there before").logs();
        self.nodes[member] = node;
    }

    pub(super) async fn close(self) {
        for node in self.nodes {
            soon("the end", node.shutdown()).await;
        }
    }
}

/// A peer that is no member.
pub(super) struct Guest {
    wire: Wire,
    knocks: tokio::task::JoinHandle<()>,
}

impl Guest {
    /// One that lets nobody in.
    pub(super) async fn new() -> Self {
        Self::that(Knock::refuse).await
    }

    /// One that does this with whoever knocks.
    pub(super) async fn that(answer: impl Fn(Knock) + std::marker::Send + 'static) -> Self {
        let wire = Wire::bind(WireOptions {
            secret: Zeroizing::new(rand::random()),
            bind: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            former: client::Settings::default(),
            relay: RelayChoice::Off,
            network: *blake3::hash(b"p2panda").as_bytes(),
            own: Vec::new(),
        });
        let wire = wire.await.expect("loopback can be bound");
        let knocks = tokio::spawn({
            let wire = wire.clone();
            async move {
                while let Some(knock) = wire.accept().await {
                    answer(knock);
                }
            }
        });
        Self { wire, knocks }
    }

    pub(super) fn id(&self) -> PeerId {
        self.wire.id()
    }

    pub(super) fn addr(&self) -> PeerAddr {
        self.wire.addr()
    }

    /// Its place in a topic's overlay.
    pub(super) async fn join(&self, topic: Topic) -> Membership {
        let joined = self.wire.join(*topic.derived().as_bytes()).await;
        joined.expect("its endpoint is open")
    }

    pub(super) async fn dial(&self, door: &Sync, service: Service) -> Connection {
        let dialled = soon("the door", self.wire.dial(&door.addr(), service)).await;
        dialled.expect("it is open")
    }

    /// Takes part in the overlay of a topic's sessions, and invites the door.
    pub(super) async fn join_with(&self, door: &Sync, line: Line) -> Membership {
        let overlay = self.join(topic(line)).await;
        self.wire.learn(&door.addr());
        let invited = overlay.invite(&[door.id()]).await;
        invited.expect("gossip is open");
        overlay
    }

    /// Whether the door lets it in, and serves the topic.
    pub(super) async fn is_let_in(&self, door: &Sync, line: Line) -> bool {
        let dialled = soon("the door", self.wire.dial(&door.addr(), Service::Sync)).await;
        let Ok(connection) = dialled else {
            return false;
        };
        let asked = shake::ask(&connection, line, topic(line), STUCK).await;
        connection.close("it was only a question");
        asked.is_ok()
    }

    /// Asks for the topic, whatever the door says to that.
    pub(super) async fn ask(&self, door: &Sync, line: Line) -> Connection {
        let connection = self.dial(door, Service::Sync).await;
        let _ = shake::ask(&connection, line, topic(line), STUCK).await;
        connection
    }

    /// A session after its topic handshake, in which nothing is said yet.
    pub(super) async fn talk(&self, door: &Sync, line: Line) -> Talk {
        let connection = self.dial(door, Service::Sync).await;
        let asked = shake::ask(&connection, line, topic(line), STUCK).await;
        asked.expect("the topic is served");
        let (send, recv) = connection.open().await.expect("it takes the stream");
        Talk::new(connection, send, recv, line)
    }

    pub(super) async fn close(self) {
        self.wire.close().await;
        self.knocks.await.expect("it ends with its endpoint");
    }
}

/// A peer's side of a session.
pub(super) struct Talk {
    pub(super) connection: Connection,
    send: Send,
    recv: Recv,
    decoder: Decoder,
    line: Line,
}

impl Talk {
    fn new(connection: Connection, send: Send, recv: Recv, line: Line) -> Self {
        Self {
            connection,
            send,
            recv,
            decoder: Decoder::new(line, Limits::of(line)),
            line,
        }
    }

    /// Answers a door that has dialled: its topic handshake, then the session.
    pub(super) async fn answer(connection: Connection, line: Line) -> Self {
        let asked = shake::answer(&connection, |_, _| true, STUCK).await;
        asked.expect("a door asks for a topic");
        let (send, recv) = connection.accept().await.expect("it opens the stream");
        Self::new(connection, send, recv, line)
    }

    pub(super) async fn say(&mut self, messages: &[Message]) {
        let mut bytes = BytesMut::new();
        for message in messages {
            codec::encode(self.line, message, &mut bytes).expect("it is not too long");
        }
        self.say_bytes(&bytes).await;
    }

    /// Says it as far as the door listens.
    pub(super) async fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.send.write_all(Bytes::copy_from_slice(bytes)).await;
    }

    pub(super) fn finish(&mut self) {
        self.send.finish();
    }

    /// What the door says next; none when it has nothing more to say.
    pub(super) async fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.next().expect("a door speaks well") {
                return Some(message);
            }
            match soon("a word", self.recv.read()).await {
                Ok(Some(bytes)) => self.decoder.push(bytes),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Says that we hold nothing, and hears what the door holds.
    pub(super) async fn have_nothing(&mut self) -> Heights {
        self.say(&[Message::Have(Heights::new())]).await;
        match self.hear().await {
            Some(Message::Have(held)) => held,
            other => panic!("no Have but {other:?}"),
        }
    }

    /// Ends the session in good order, after `Done`; what the door has said meanwhile.
    pub(super) async fn leave(mut self) -> Vec<Message> {
        let mut heard = Vec::new();
        while !heard.contains(&Message::Done) {
            match self.hear().await {
                Some(message) => heard.push(message),
                None => panic!("it ended behind {heard:?}"),
            }
        }
        self.say(&[Message::Close]).await;
        self.send.finish();
        while let Some(message) = self.hear().await {
            heard.push(message);
        }
        self.connection.close("done");
        heard
    }

    /// Says that we hold nothing and have these to give, and hears the session out.
    pub(super) async fn push(mut self, operations: &[Operation]) -> Vec<Message> {
        self.have_nothing().await;
        self.say(&[Message::PreSync {
            operations: operations.len() as u32,
            bytes: operations.iter().map(Operation::bytes).sum(),
        }])
        .await;
        for operation in operations {
            let (header, body) = (operation.header().clone(), operation.body().cloned());
            self.say(&[Message::Operation { header, body }]).await;
        }
        self.say(&[Message::Done]).await;
        self.leave().await
    }
}

/// The operations among what was heard.
pub(super) fn operations(heard: &[Message]) -> usize {
    let operations = heard
        .iter()
        .filter(|it| matches!(it, Message::Operation { .. }));
    operations.count()
}
