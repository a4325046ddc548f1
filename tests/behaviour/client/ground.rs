//! Members in this process, streams to them in memory, and authors.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use quorate::{
    GroupKey, Node, PeerAddr, PeerId,
    log_store::{AuthorKey, Draft, Line, LogStore, Logs, Operation, Topic},
    sync::{
        Access, Admit, Denied, Dial, DialError, DialFuture, Dialled, LogTicket, MemberAddr,
        ServeLimits, serve_logs,
    },
};
use tokio::{io::DuplexStream, task::JoinHandle};

pub(crate) const STUCK: Duration = Duration::from_secs(60);
pub(crate) const LINE: Line = Line::V07;

/// The value of what must happen, and soon.
pub(crate) async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

pub(crate) fn topic() -> Topic {
    Topic::named("cats")
}

/// A group of members in memory that serve one topic.
pub(crate) struct Ground {
    pub(crate) nodes: Vec<Node>,
    pub(crate) logs: Vec<Logs>,
    pub(crate) ways: Arc<Ways>,
}

impl Ground {
    pub(crate) async fn open(members: usize) -> Self {
        let ways = Arc::new(Ways::default());
        let (mut nodes, mut logs): (Vec<Node>, Vec<Logs>) = (Vec::new(), Vec::new());
        for at in 0..members {
            let node = Node::in_memory().bind_loopback().open().await;
            let node = node.expect("loopback can be bound");
            let store = LogStore::new();
            let group = match logs.first() {
                None => node
                    .create(GroupKey::generate(), store)
                    .await
                    .expect("it is founded"),
                Some(first) => {
                    let ticket = first.group().ticket();
                    node.join(&ticket, store).await.expect("it is let in")
                }
            };
            ways.add(at as u8, group.logs());
            logs.push(group.logs());
            nodes.push(node);
        }
        for it in &logs {
            let mut watch = it.group().watch_status();
            soon("all vote", watch.wait_for(|it| it.voters() == members)).await;
        }
        soon("the topic opens", logs[0].open_topic(topic(), LINE))
            .await
            .expect("the topic opens");
        Self { nodes, logs, ways }
    }

    pub(crate) fn ticket(&self) -> LogTicket {
        let members = (0..self.nodes.len()).map(|at| member(at as u8));
        LogTicket::new([0; 32], [(topic(), LINE)], members)
    }

    pub(crate) async fn close(self) {
        for node in &self.nodes {
            soon("it stops", node.shutdown()).await;
        }
    }
}

pub(crate) fn member(at: u8) -> PeerAddr {
    PeerAddr::new(PeerId::from_bytes([at; 32]), [])
}

/// Streams in memory, each with a server of a member at its other end.
#[derive(Default)]
pub(crate) struct Ways {
    pub(crate) limits: Mutex<ServeLimits>,
    members: Mutex<BTreeMap<PeerId, Logs>>,
    sessions: Mutex<Vec<(PeerId, JoinHandle<()>)>>,
}

impl Ways {
    fn add(&self, at: u8, logs: Logs) {
        self.members
            .lock()
            .expect("no panic")
            .insert(member(at).peer, logs);
    }

    /// The member is gone for clients, sessions and all.
    pub(crate) fn kill(&self, peer: PeerId) {
        self.members.lock().expect("no panic").remove(&peer);
        self.sessions
            .lock()
            .expect("no panic")
            .retain(|(of, session)| {
                if *of == peer {
                    session.abort();
                }
                *of != peer
            });
    }

    /// A stream to a member, whatever the client says on it.
    pub(crate) fn stream(&self, peer: PeerId) -> Option<DuplexStream> {
        let logs = self.members.lock().expect("no panic").get(&peer).cloned()?;
        let admit: Admit = Arc::new(move |asked, access| match (asked == topic(), access) {
            (true, Access::Pull | Access::Push) => Ok(logs.clone()),
            _ => Err(Denied::UnknownTopic),
        });
        let limits = self.limits.lock().expect("no panic").clone();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let session = tokio::spawn(async move {
            let far = tokio::io::split(far);
            let _ = serve_logs(far, &admit, &limits).await;
        });
        self.sessions
            .lock()
            .expect("no panic")
            .push((peer, session));
        Some(near)
    }
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ways")
    }
}

impl Dial for Ways {
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a> {
        Box::pin(async move {
            let stream = self.stream(member.peer());
            let (read, write) = tokio::io::split(stream.ok_or(DialError::new("it is down"))?);
            Ok(Dialled {
                read: Box::new(read),
                write: Box::new(write),
            })
        })
    }
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
        self.write(false, 100)
    }

    pub(crate) fn prune(&mut self) -> Operation {
        self.write(true, 100)
    }

    pub(crate) fn many(&mut self, count: usize) -> Vec<Operation> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Operations with bodies of so many bytes.
    pub(crate) fn many_of(&mut self, count: usize, body: usize) -> Vec<Operation> {
        (0..count).map(|_| self.write(false, body)).collect()
    }

    fn write(&mut self, prune: bool, body: usize) -> Operation {
        let body = Some(vec![7; body].into());
        let draft = match &self.last {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(LINE, topic().log_id(), 7, body),
        };
        let operation = Operation::sign(Draft { prune, ..draft }, &self.key).expect("by the rules");
        self.last = Some(operation.clone());
        operation
    }
}

/// Appends operations and waits until they are committed.
pub(crate) async fn append(logs: &Logs, operations: &[Operation]) {
    use futures_util::StreamExt;
    let appending = logs.append_many(topic(), operations.to_vec());
    let outcomes: Vec<_> = soon("the append", appending.collect()).await;
    assert_eq!(outcomes.len(), operations.len());
    for outcome in outcomes {
        let outcome = outcome.expect("a quorum is there");
        assert!(outcome.number().is_some(), "{outcome:?}");
    }
}
