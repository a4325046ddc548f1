//! A member in a process of its own, which can be killed and comes back.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use quorate::{
    GroupTicket, Node,
    log_store::{LogStore, Logs},
    sync::{Sync, SyncOptions},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{ChildStdin, ChildStdout, Command},
    sync::oneshot,
};

use crate::{cluster, peer::Group, stock};

const TICKET: &str = "QUORATE_INTEROP_TICKET";
const DIRECTORY: &str = "QUORATE_INTEROP_DIRECTORY";

pub(crate) struct Child {
    process: tokio::process::Child,
    stdin: Option<ChildStdin>,
    directory: Option<PathBuf>,
    /// Where a stock node finds it, as `--peer` takes it.
    pub(crate) address: String,
    told: Arc<Mutex<Told>>,
}

/// What it has said of itself.
#[derive(Default)]
struct Told {
    /// When it had sent more to stock nodes than before.
    sent: Vec<Instant>,
    resent: u64,
}

impl Child {
    /// Starts it, in memory or on a directory, and waits until it serves.
    pub(crate) async fn start(group: &Group, directory: Option<&Path>) -> Self {
        let founder = &group.members[0].member;
        let exe = env::current_exe().expect("a test is a program");
        let mut command = Command::new(exe);
        if let Some(directory) = directory {
            command.env(DIRECTORY, directory);
        }
        let mut process = command
            .args(["member_process", "--exact", "--nocapture"])
            .env(TICKET, &*founder.group.ticket().expose())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a child process");
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().expect("it is piped");
        let (tell, told) = oneshot::channel();
        let said = Arc::default();
        tokio::spawn(listen(stdout, tell, Arc::clone(&said)));
        let address = cluster::within("the child serves", told).await;
        Self {
            process,
            stdin,
            directory: directory.map(Path::to_owned),
            address: address.expect("the child serves before it ends"),
            told: said,
        }
    }

    /// Waits until so many vote.
    pub(crate) async fn voters(group: &Group, count: usize) {
        let founder = &group.members[0].member;
        let voting = |it: &quorate::Status| cluster::voters(it) == count;
        founder.status_when("all vote", voting).await;
    }

    /// Operations that it has counted as sent again.
    pub(crate) fn resent(&self) -> u64 {
        self.told.lock().expect("no panic").resent
    }

    /// When it had sent something to a stock node that it had not before this.
    pub(crate) fn sent_after(&self, moment: Instant) -> Option<Instant> {
        let told = self.told.lock().expect("no panic");
        told.sent.iter().find(|it| **it > moment).copied()
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.expect("it is killed");
    }

    /// Has it leave in order.
    pub(crate) async fn stop(&mut self) {
        drop(self.stdin.take());
        let ended = cluster::within("the child ends", self.process.wait());
        ended.await.expect("it is waited for");
    }

    /// Starts it again on its directory.
    pub(crate) async fn come_back(&mut self, group: &Group) {
        let directory = self.directory.take();
        *self = Self::start(group, directory.as_deref()).await;
    }
}

async fn listen(stdout: ChildStdout, tell: oneshot::Sender<String>, told: Arc<Mutex<Told>>) {
    let mut lines = BufReader::new(stdout).lines();
    let mut tell = Some(tell);
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, address)) = line.split_once("serves at ")
            && let Some(tell) = tell.take()
        {
            let _ = tell.send(address.to_owned());
        }
        if let Some(resent) = line.strip_prefix("sent more, again ") {
            let mut told = told.lock().expect("no panic");
            told.sent.push(Instant::now());
            told.resent = resent.parse().expect("a number");
        }
    }
}

/// The child's part: joins, serves, and goes on until its parent is gone.
pub(crate) async fn run() {
    let Ok(ticket) = env::var(TICKET) else {
        return;
    };
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        let logs = tracing_subscriber::fmt().with_writer(std::io::stderr);
        logs.with_env_filter(filter).init();
    }
    let ticket: GroupTicket = ticket.parse().expect("a ticket");
    let builder = match env::var_os(DIRECTORY) {
        Some(directory) => Node::builder(PathBuf::from(directory)),
        None => Node::in_memory(),
    };
    let node = builder.bind_loopback().open().await;
    let node = node.expect("the node opens");
    let joined = node.join(&ticket, LogStore::new()).await;
    let logs = Logs::new(joined.expect("it joins"));
    let options = SyncOptions {
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        ..SyncOptions::default()
    };
    let sync = node.serve_sync(&logs, options).await.expect("it serves");
    let addr = sync.addr();
    let socket = addr.addrs.iter().next().expect("it listens");
    println!("serves at {}@{socket}", stock::hex(addr.peer.as_bytes()));
    tokio::spawn(count(sync));
    let mut end = Vec::new();
    // The parent never writes: its end is the end.
    let _ = tokio::io::stdin().read_to_end(&mut end).await;
    node.shutdown().await;
}

async fn count(sync: Sync) {
    let mut told = 0;
    loop {
        let peers = sync.status().peers;
        let sent: u64 = peers.iter().map(|it| it.sent).sum();
        if sent > told {
            let resent: u64 = peers.iter().map(|it| it.resent).sum();
            println!("sent more, again {resent}");
            told = sent;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
