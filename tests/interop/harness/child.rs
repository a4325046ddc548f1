//! A member in a process of its own, which can be killed.

use std::{env, net::SocketAddr, process::Stdio};

use quorate::{
    GroupTicket, Node,
    log_store::{LogStore, Logs},
    sync::SyncOptions,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
};

use crate::{cluster, peer::Group, stock};

const TICKET: &str = "QUORATE_INTEROP_TICKET";

pub(crate) struct Child {
    process: tokio::process::Child,
    /// Where a stock node finds it, as `--peer` takes it.
    pub(crate) address: String,
}

impl Child {
    /// Starts it, and waits until it votes in the group.
    pub(crate) async fn start(group: &Group) -> Self {
        let founder = &group.members[0].member;
        let exe = env::current_exe().expect("a test is a program");
        let mut process = Command::new(exe)
            .args(["member_process", "--exact", "--nocapture"])
            .env(TICKET, &*founder.group.ticket().expose())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a child process");
        let stdout = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines();
        let address = cluster::within("the child serves", async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, address)) = line.split_once("serves at ") {
                    return address.to_owned();
                }
            }
            panic!("the child has ended");
        });
        let address = address.await;
        let voting = |it: &quorate::Status| cluster::voters(it) == 3;
        founder.status_when("three vote", voting).await;
        Self { process, address }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.expect("it is killed");
    }
}

/// The child's part: joins, serves, and goes on until its parent is gone.
pub(crate) async fn run() {
    let Ok(ticket) = env::var(TICKET) else {
        return;
    };
    let ticket: GroupTicket = ticket.parse().expect("a ticket");
    let node = Node::in_memory().bind_loopback().open();
    let node = node.await.expect("the node opens");
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
    let mut end = Vec::new();
    // The parent never writes: its end is the end.
    let _ = tokio::io::stdin().read_to_end(&mut end).await;
}
