//! The group under test: members in this process that serve a topic, and logs made for it.

use std::{collections::BTreeSet, net::SocketAddr};

use futures_util::{StreamExt, TryStreamExt};
use quorate::{
    PeerAddr, PeerId,
    config::Config,
    log_store::{Line, LogStore, Logs, Operation, Topic},
    sync::{Admission, Outsiders, Sync, SyncOptions},
};
use tempfile::TempDir;

use crate::{
    cluster::{self, Member},
    mint::Mint,
    stock::{Options, Stock},
};

/// One member, its logs and its door to the outside.
pub(crate) struct Serving {
    pub(crate) member: Member<LogStore>,
    pub(crate) logs: Logs,
    pub(crate) sync: Sync,
}

/// A group that serves one topic of one line.
pub(crate) struct Group {
    pub(crate) line: Line,
    pub(crate) topic: Topic,
    pub(crate) members: Vec<Serving>,
    pub(crate) root: TempDir,
}

/// Who makes the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dials {
    Member,
    Stock,
}

impl Group {
    /// Members in memory, all of which serve everybody.
    pub(crate) async fn of(count: usize, line: Line) -> Self {
        Self::admitting(count, line, Admission::everyone()).await
    }

    /// Members in memory, all of which serve whom the topic admits.
    pub(crate) async fn admitting(count: usize, line: Line, admission: Admission) -> Self {
        let options = SyncOptions {
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            ..SyncOptions::default()
        };
        Self::with(line, admission, vec![options; count]).await
    }

    /// Members in memory, a door of these settings each.
    pub(crate) async fn with(
        line: Line,
        admission: Admission,
        doors: impl IntoIterator<Item = SyncOptions>,
    ) -> Self {
        let config = Config::default();
        let doors: Vec<SyncOptions> = doors.into_iter().collect();
        let members = cluster::group_at(vec![cluster::Place::MEMORY; doors.len()], &config);
        let topic = Topic::from_bytes(rand::random());
        let mut serving = Vec::new();
        for (member, options) in members.await.into_iter().zip(doors) {
            let logs = Logs::new(member.group.clone());
            if serving.is_empty() {
                let outsiders = Outsiders::of(&logs);
                let opened = outsiders.open_topic(topic, line, admission.clone());
                opened.await.expect("the topic opens");
            }
            let sync = member.node.serve_sync(&logs, options).await;
            serving.push(Serving {
                member,
                logs,
                sync: sync.expect("the member serves"),
            });
        }
        Self {
            line,
            topic,
            members: serving,
            root: cluster::temporary(),
        }
    }

    /// The ids of everything that the group holds of its topic.
    pub(crate) async fn ids(&self) -> BTreeSet<String> {
        let logs = &self.members[0].logs;
        let heights = logs.heights(self.topic).await.expect("a quorum answers");
        let mut ids = BTreeSet::new();
        for (author, of_author) in heights {
            for log in of_author.into_keys() {
                let read = logs.read(author, log, 0..=u32::MAX);
                let operations: Vec<Operation> = read.try_collect().await.expect("it reads");
                let fresh = operations.iter().map(|it| it.id().to_string());
                let count = operations.len();
                let before = ids.len();
                ids.extend(fresh);
                assert_eq!(ids.len(), before + count, "an id is held twice");
            }
        }
        ids
    }

    /// Waits until the group holds this many operations.
    pub(crate) async fn holds(&self, count: usize) -> BTreeSet<String> {
        let arrived = self.members[0].logs.subscribe(self.topic, 0);
        let mut arrived = std::pin::pin!(arrived);
        for got in 0..count {
            let next = tokio::time::timeout(crate::stock::PATIENCE, arrived.next()).await;
            let next = next.unwrap_or_else(|_| panic!("the group holds {got} of {count}"));
            next.expect("the stream goes on").expect("it reads");
        }
        self.ids().await
    }

    /// Appends a log of this many operations by one author.
    pub(crate) async fn mint(&self, author: u8, count: u32, bytes: usize) -> BTreeSet<String> {
        let mut log = Mint::new(self.line, self.topic, author);
        let operations: Vec<_> = (0..count).map(|_| log.next(bytes)).collect();
        let ids = operations.iter().map(|it| it.id().to_string()).collect();
        self.append(operations).await;
        ids
    }

    /// Appends operations, all of which are taken.
    pub(crate) async fn append(
        &self,
        operations: impl IntoIterator<Item = Operation, IntoIter: Send + 'static>,
    ) {
        let appended = self.members[0].logs.append_many(self.topic, operations);
        let mut appended = std::pin::pin!(appended);
        while let Some(outcome) = appended.next().await {
            let number = outcome.expect("it is appended").number();
            assert!(number.is_some(), "an operation was refused");
        }
    }

    /// Where a stock node finds a member, as `--peer` takes it.
    pub(crate) fn address(&self, member: usize) -> String {
        let addr = self.members[member].sync.addr();
        let socket = addr.addrs.iter().next().expect("it listens somewhere");
        format!("{}@{socket}", crate::stock::hex(addr.peer.as_bytes()))
    }

    /// How to start a stock node that knows nobody.
    pub(crate) fn options(&self, name: &str) -> Options {
        Options {
            line: self.line,
            db: self.root.path().join(format!("{name}.sqlite")),
            key: rand::random(),
            port: 0,
            peers: Vec::new(),
            mdns: false,
        }
    }

    /// Starts a stock node, subscribes it, and sees to it that it and the members meet.
    pub(crate) async fn meet(&self, name: &str, dials: Dials, members: &[usize]) -> Stock {
        let mut options = self.options(name);
        if dials == Dials::Stock {
            options.peers = members.iter().map(|it| self.address(*it)).collect();
        }
        let mut stock = Stock::start(&options).await;
        stock.subscribe(self.topic).await;
        if dials == Dials::Member {
            self.introduce(&stock, members);
        }
        stock
    }

    /// Tells members where a stock node is.
    pub(crate) fn introduce(&self, stock: &Stock, members: &[usize]) {
        let (id, addr) = stock.address();
        let id: PeerId = id.parse().expect("a peer id");
        for member in members {
            self.members[*member]
                .sync
                .add_peer(PeerAddr::new(id, [addr]));
        }
    }

    pub(crate) async fn end(self) {
        for member in self.members {
            member.member.node.shutdown().await;
        }
    }
}
