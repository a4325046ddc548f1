//! A member's door with HTTP beside QUIC: found by its ticket, kept over a restart, and with the
//! same admission.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use quorate::{
    GroupKey, Node,
    log_store::{LogStore, Logs, Operation},
    sync::{
        Admission, Have, Http, LogTicket, MemberAddr, Outsiders, Pull, PullStatus, Push,
        PushOutcome, Secret, Sync, SyncOptions, Transports,
    },
};

use crate::client::ground::{LINE, Writer, append, soon, topic};

pub(super) fn options() -> SyncOptions {
    let anywhere = ([127, 0, 0, 1], 0).into();
    SyncOptions {
        bind: vec![anywhere],
        transports: Transports::none().with("http", Http::new().bind(anywhere)),
        ..SyncOptions::default()
    }
}

pub(super) async fn open(logs: &Logs, node: &Node, options: SyncOptions) -> Sync {
    let door = soon("the door", node.serve_sync(logs, options)).await;
    let door = door.expect("loopback can be bound");
    let mut status = door.watch_status();
    soon("it serves", status.wait_for(|it| it.serving)).await;
    door
}

/// The members without QUIC, as where nothing else passes.
fn by_http(ticket: &LogTicket) -> LogTicket {
    let alone = |it: &MemberAddr| {
        let member = MemberAddr::from(quorate::PeerAddr::new(it.peer(), []));
        let urls = it.addrs("http").into_iter();
        urls.fold(member, |it, url| it.with("http", &url))
    };
    let members: Vec<_> = ticket.members().iter().map(alone).collect();
    LogTicket::new(ticket.network(), [(topic(), LINE)], members)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_serves_over_http_and_is_found_again_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = GroupKey::generate();
    let start = async || {
        let node = Node::builder(dir.path()).bind_loopback().open().await;
        let node = node.expect("the directory is there");
        let group = node.create(key.clone(), LogStore::new()).await;
        let logs = group.expect("it is founded, or resumed").logs();
        (node, logs)
    };
    let (node, logs) = start().await;
    let outsiders = Outsiders::of(&logs);
    let opened = outsiders.open_topic(topic(), LINE, Admission::everyone());
    soon("the topic", opened).await.expect("it opens");
    let mut ada = Writer::new(1);
    append(&logs, &ada.many(100)).await;
    let door = open(&logs, &node, options()).await;
    let ticket = door.ticket();
    let ways = door.transports();
    assert_eq!(ways.keys().collect::<Vec<_>>(), ["http", "quic"]);
    assert_eq!(ways, door.status().transports);
    assert_eq!(ticket.members()[0].addrs("http"), ways["http"]);

    let ticket_by_http: LogTicket = by_http(&ticket).to_string().parse().expect("a ticket");
    let pull = Pull::new(&ticket_by_http, topic(), Have::new());
    let pull = pull.retry(Duration::from_millis(5), Duration::from_millis(50));
    let mut puller = pull.start();
    let taken: Vec<Operation> = soon("all", (&mut puller).take(100).collect()).await;
    let push = Push::new(&ticket_by_http, topic());
    let more = ada.many(50);
    let pushed = push.start(stream::iter(more.clone())).collect::<Vec<_>>();
    let pushed = soon("the push", pushed).await;
    let appended = |it: &PushOutcome| matches!(it, PushOutcome::Appended { .. });
    assert!(pushed.iter().all(|it| appended(&it.outcome)), "{pushed:?}");
    let news: Vec<Operation> = soon("news", (&mut puller).take(50).collect()).await;
    assert_eq!((taken.len(), news), (100, more));
    soon("it stops", node.shutdown()).await;
    // A handle on the former door does not keep its sockets.
    drop((node, logs));

    // What was left open the first time is as it was, by default too.
    let (node, logs) = start().await;
    assert!(door.transports().values().all(Vec::is_empty), "it is open");
    let again = SyncOptions {
        bind: Vec::new(),
        transports: Transports::none().with("http", Http::new()),
        ..SyncOptions::default()
    };
    let door = open(&logs, &node, again).await;
    assert_eq!(door.transports(), ways);
    assert_eq!(door.ticket().members(), ticket.members());
    let news = ada.many(5);
    append(&logs, &news).await;
    let taken: Vec<Operation> = soon("the rest", (&mut puller).take(5).collect()).await;
    assert_eq!(taken, news);
    drop(puller);
    soon("it stops", node.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_change_leave_the_other_transports_where_they_were() {
    let node = Node::in_memory().bind_loopback().open().await;
    let node = node.expect("loopback can be bound");
    let group = node.create(GroupKey::generate(), LogStore::new()).await;
    let logs = group.expect("it is founded").logs();
    let outsiders = Outsiders::of(&logs);
    let opened = outsiders.open_topic(topic(), LINE, Admission::everyone());
    soon("the topic", opened).await.expect("it opens");
    let door = open(&logs, &node, options()).await;
    let ways = door.transports();
    let ticket = by_http(&door.ticket());
    let mut ada = Writer::new(1);
    append(&logs, &ada.many(5)).await;
    let pull = Pull::new(&ticket, topic(), Have::new());
    let pull = pull.retry(Duration::from_millis(5), Duration::from_millis(50));
    let mut puller = pull.start();
    soon("all", (&mut puller).take(5).collect::<Vec<_>>()).await;

    // Another network and back: all transports are opened again, where they were.
    let network = door.options().network;
    for network in [[7; 32], network] {
        let options = SyncOptions {
            network,
            ..door.options()
        };
        let changed = soon("the settings", door.configure(options)).await;
        changed.expect("they make sense");
        assert_eq!(door.transports(), ways);
    }
    let news = ada.many(5);
    append(&logs, &news).await;
    let taken: Vec<Operation> = soon("the rest", (&mut puller).take(5).collect()).await;
    assert_eq!(taken, news);

    // A port of its choice for one; the other stays, and both are found again.
    let port = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let bind = vec![port.local_addr().expect("it is bound")];
    drop(port);
    let moved = SyncOptions {
        bind: bind.clone(),
        ..door.options()
    };
    let changed = soon("the settings", door.configure(moved)).await;
    changed.expect("the port is free");
    assert_eq!(door.transports()["http"], ways["http"]);
    assert_eq!(door.transports()["quic"], [bind[0].to_string()]);
    soon("it stops", node.stop_sync(&logs)).await;
    let door = open(&logs, &node, options()).await;
    assert_eq!(door.transports()["quic"], [bind[0].to_string()]);
    assert_eq!(door.transports()["http"], ways["http"]);
    drop(puller);
    soon("it stops", node.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_over_http_is_admitted_by_its_key_and_every_member_is_in_the_ticket() {
    let (mut nodes, mut logs): (Vec<Node>, Vec<Logs>) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let node = Node::in_memory().bind_loopback().open().await;
        let node = node.expect("loopback can be bound");
        let group = match logs.first() {
            None => node
                .create(GroupKey::generate(), LogStore::new())
                .await
                .ok(),
            Some(first) => node
                .join(&first.group().ticket(), LogStore::new())
                .await
                .ok(),
        };
        logs.push(group.expect("it is let in").logs());
        nodes.push(node);
    }
    let mut watch = logs[0].group().watch_status();
    soon("all vote", watch.wait_for(|it| it.voters() == 3)).await;
    let outsiders = Outsiders::of(&logs[0]);
    let me = Secret::generate();
    let admission = Admission::peers([me.peer()]);
    let opened = outsiders.open_topic(topic(), LINE, admission);
    soon("the topic", opened).await.expect("it opens");
    let all = Writer::new(1).many(20);
    append(&logs[0], &all).await;
    let mut doors = Vec::new();
    for (node, logs) in nodes.iter().zip(&logs) {
        doors.push(open(logs, node, options()).await);
    }
    let all_heard = async {
        let with_http = |it: &MemberAddr| !it.addrs("http").is_empty();
        while doors[0]
            .ticket()
            .members()
            .iter()
            .filter(|it| with_http(it))
            .count()
            < 3
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("all doors are heard of", all_heard).await;
    let ticket = by_http(&doors[0].ticket());
    let pull = || {
        let pull = Pull::new(&ticket, topic(), Have::new());
        pull.retry(Duration::from_millis(5), Duration::from_millis(50))
    };
    let mut known = pull().with_key(me).start();
    let taken: Vec<Operation> = soon("all", (&mut known).take(20).collect()).await;
    assert_eq!(taken, all);
    let mut stranger = pull().start();
    let failed = |it: &PullStatus| it.failures >= 3;
    let handle = stranger.handle();
    let mut watch = handle.watch_status();
    let status = soon("refusals", watch.wait_for(failed)).await;
    assert_eq!(status.expect("it goes on").verified, 0);
    let nothing = tokio::time::timeout(Duration::from_millis(1), stranger.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    for node in nodes {
        soon("it stops", node.shutdown()).await;
    }
}
