//! Members played by scripts, over streams in memory.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::super::{
    Dial, DialError, DialFuture, Dialled, Have, Pull,
    frames::{FRAME_MAX, Frame, Head, Heads, Height, PullRequest, Run},
    stream::FrameReader,
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{AuthorKey, Draft, Line, Operation, RawOperation, Topic},
    sync::{LogTicket, MemberAddr},
};

pub(super) const LINE: Line = Line::V07;

pub(super) fn topic() -> Topic {
    Topic::named("cats")
}

pub(super) fn peer(at: u8) -> PeerId {
    PeerId::from_bytes([at; 32])
}

pub(super) fn ticket(members: u8) -> LogTicket {
    let members = (0..members).map(|at| PeerAddr::new(peer(at), []));
    LogTicket::new([0; 32], [(topic(), LINE)], members)
}

pub(super) async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

type Played = Pin<Box<dyn Future<Output = Option<()>> + Send>>;
type Script = dyn Fn(Client) -> Played + Send + Sync;

/// What each member does with a client that dials it.
#[derive(Default)]
pub(super) struct Stage(Mutex<BTreeMap<PeerId, Arc<Script>>>);

impl Stage {
    /// The member with this number does this, each time. It leaves when the script ends.
    pub(super) fn plays<F>(&self, at: u8, script: impl Fn(Client) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let script: Arc<Script> = Arc::new(move |client| Box::pin(script(client)));
        self.0.lock().expect("no panic").insert(peer(at), script);
    }

    pub(super) fn pull(self: &Arc<Self>, members: u8, have: Have) -> Pull {
        let pull = Pull::new(&ticket(members), topic(), have).over(self.clone());
        let pull = pull.in_order().silent_after(Duration::from_secs(20));
        pull.retry(Duration::from_millis(1), Duration::from_millis(5))
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stage")
    }
}

impl Dial for Stage {
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a> {
        Box::pin(async move {
            let script = self
                .0
                .lock()
                .expect("no panic")
                .get(&member.peer())
                .cloned();
            let script = script.ok_or_else(|| DialError::new("it is down"))?;
            let (near, far) = tokio::io::duplex(STREAM_BYTES);
            tokio::spawn(script(Client::new(far)));
            let (read, write) = tokio::io::split(near);
            Ok(Dialled {
                read: Box::new(read),
                write: Box::new(write),
            })
        })
    }
}

/// What a stream in memory holds in each direction.
pub(super) const STREAM_BYTES: usize = 64 * 1024;

/// A client as a member sees it. `None` is the end of its stream.
pub(super) struct Client {
    read: FrameReader<ReadHalf<DuplexStream>>,
    write: WriteHalf<DuplexStream>,
}

impl Client {
    fn new(stream: DuplexStream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            read: FrameReader::new(read, FRAME_MAX),
            write,
        }
    }

    pub(super) async fn asked(&mut self) -> Option<Frame> {
        self.read.next_frame(Duration::MAX).await.ok()?
    }

    pub(super) async fn pulls(&mut self) -> Option<PullRequest> {
        match self.asked().await? {
            Frame::Pull(request) => Some(request),
            _ => None,
        }
    }

    pub(super) async fn is_sent(&mut self, frame: Frame) -> Option<()> {
        self.is_sent_bytes(&frame.encode()).await
    }

    pub(super) async fn is_sent_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.write.write_all(bytes).await.ok()
    }

    /// Waits until it leaves.
    pub(super) async fn leaves(mut self) -> Option<()> {
        while self.asked().await.is_some() {}
        Some(())
    }
}

/// A member that has one log and sends what is lacking, in runs of so many; then it has no news.
pub(super) async fn honest(mut client: Client, log: Vec<Operation>, run: usize) -> Option<()> {
    let request = client.pulls().await?;
    let have = request.have.first().map_or(0, |it| it.seq as usize + 1);
    client.is_sent(heads(&log, have)).await?;
    for operations in log[have..].chunks(run) {
        client.is_sent(Frame::Run(self::run(operations))).await?;
    }
    client.is_sent(Frame::CaughtUp(heights(&log))).await?;
    client.leaves().await
}

pub(super) fn heads(log: &[Operation], have: usize) -> Frame {
    let logs = log.last().map(|it| Head {
        author: it.author(),
        log: it.log_id(),
        last: it.seq(),
        operations: (log.len() - have) as u64,
    });
    Frame::Heads(Heads {
        line: LINE,
        logs: logs.into_iter().collect(),
        operations: (log.len() - have) as u64,
        bytes: log[have..].iter().map(Operation::bytes).sum(),
    })
}

pub(super) fn heights(log: &[Operation]) -> Vec<Height> {
    let height = log.last().map(|it| Height {
        author: it.author(),
        log: it.log_id(),
        seq: it.seq(),
    });
    height.into_iter().collect()
}

pub(super) fn run(operations: &[Operation]) -> Run {
    Run {
        author: operations[0].author(),
        log: operations[0].log_id(),
        first: operations[0].seq(),
        operations: operations.iter().map(raw).collect(),
    }
}

pub(super) fn raw(operation: &Operation) -> RawOperation {
    RawOperation {
        header: operation.header().clone(),
        body: operation.body().cloned(),
    }
}

/// An author's log: so many operations, on a line, in a topic's log.
pub(super) fn log_of(key: u8, line: Line, topic: Topic, count: usize) -> Vec<Operation> {
    let key = AuthorKey::from_bytes(&[key; 32]);
    let mut log: Vec<Operation> = Vec::with_capacity(count);
    for at in 0..count {
        let body = Some(Bytes::from(format!("{at}")));
        let draft = match log.last() {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(line, topic.log_id(), 7, body),
        };
        log.push(Operation::sign(draft, &key).expect("by the rules"));
    }
    log
}

pub(super) fn log(count: usize) -> Vec<Operation> {
    log_of(1, LINE, topic(), count)
}
