//! A client that stays while the members change: it learns of those that come, over each transport,
//! and needs none of those that its ticket names.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};
use quorate::{
    GroupKey, Node, PeerId,
    log_store::{LogStore, Logs, Operation},
    sync::{
        Admission, Have, Http, LogTicket, Outsiders, Pull, PullHandle, Push, PushOutcome, Quic,
        Sync, Transports,
    },
};

use super::doors::{open, options};
use crate::client::ground::{LINE, Writer, append, soon, topic};

struct Member {
    node: Node,
    logs: Logs,
    door: Sync,
}

async fn member(ticket_of: Option<&Logs>) -> Member {
    let node = Node::in_memory().bind_loopback().open().await;
    let node = node.expect("loopback can be bound");
    let store = LogStore::new();
    let group = match ticket_of {
        None => node.create(GroupKey::generate(), store).await.ok(),
        Some(logs) => {
            let ticket = logs.group().ticket();
            soon("the join", node.join(&ticket, store)).await.ok()
        }
    };
    let logs = group.expect("it is let in").logs();
    let door = open(&logs, &node, options()).await;
    Member { node, logs, door }
}

/// They are the group, and three of them vote: a fourth one waits for a fifth.
async fn vote(members: &[Member]) {
    for it in members {
        let mut watch = it.logs.group().watch_status();
        let (all, voters) = (members.len(), members.len().min(3));
        let settled = watch.wait_for(|it| it.members.len() == all && it.voters() == voters);
        soon("they vote", settled).await;
    }
}

fn names(ticket: &LogTicket) -> BTreeSet<PeerId> {
    ticket.members().iter().map(|it| it.peer()).collect()
}

fn ids<'a>(members: impl IntoIterator<Item = &'a Member>) -> BTreeSet<PeerId> {
    members.into_iter().map(|it| it.door.id()).collect()
}

/// Waits until a client knows these members.
async fn knows(handle: &PullHandle, wanted: &BTreeSet<PeerId>) {
    let mut watch = handle.watch_status();
    let known = watch.wait_for(|_| names(&handle.ticket()).is_superset(wanted));
    soon("the client hears of the members", known)
        .await
        .expect("it goes on");
}

async fn a_follower_stays_while_all_members_are_replaced(by: Transports) {
    let mut members = vec![member(None).await];
    let outsiders = Outsiders::of(&members[0].logs);
    let opened = outsiders.open_topic(topic(), LINE, Admission::everyone());
    soon("the topic", opened).await.expect("it opens");
    let ticket = members[0].door.ticket();
    for _ in 0..2 {
        members.push(member(Some(&members[0].logs)).await);
    }
    vote(&members).await;
    let mut ada = Writer::new(1);
    let mut all = ada.many(10);
    append(&members[0].logs, &all).await;
    // One member alone is in the ticket.
    let mut puller = Pull::new(&ticket, topic(), Have::new())
        .through(by.clone())
        .retry(Duration::from_millis(5), Duration::from_millis(50))
        .start();
    let handle = puller.handle();
    let taken: Vec<Operation> = soon("all", (&mut puller).take(10).collect()).await;
    assert_eq!(taken, all);
    knows(&handle, &ids(&members)).await;

    for _ in 0..3 {
        let new = member(Some(&members[0].logs)).await;
        members.push(new);
        vote(&members).await;
        knows(&handle, &ids(&members)).await;
        let old = members.remove(0);
        soon("the door closes", old.node.stop_sync(&old.logs)).await;
        soon("it leaves", old.logs.group().leave())
            .await
            .expect("the others are there");
        soon("it stops", old.node.shutdown()).await;
        vote(&members).await;
        let news = ada.many(10);
        append(&members[0].logs, &news).await;
        let taken: Vec<Operation> = soon("news", (&mut puller).take(10).collect()).await;
        assert_eq!(taken, news, "it goes on");
        all.extend(news);
    }
    let status = handle.status();
    assert!(status.failures > 0 && status.learned > 0, "{status:?}");
    let serving = status.member.expect("somebody serves");
    assert!(ids(&members).contains(&serving), "{status:?}");
    drop(puller);

    // What it has learned is enough for the next run, beside the ticket that names nobody any more.
    let kept: LogTicket = handle.ticket().to_string().parse().expect("a ticket");
    assert!(names(&kept).is_superset(&ids(&members)));
    let puller = Pull::new(&ticket, topic(), Have::new())
        .remembering(&kept)
        .through(by.clone());
    let again: Vec<Operation> = soon("all", puller.once().start().collect()).await;
    assert_eq!(again, all);
    let mine = ada.many(5);
    let pusher = Push::new(&ticket, topic()).remembering(&kept).through(by);
    let mut pusher = pusher.start(stream::iter(mine));
    for _ in 0..5 {
        let pushed = soon("an answer", pusher.next()).await.expect("it goes on");
        let appended = matches!(pushed.outcome, PushOutcome::Appended { .. });
        assert!(appended, "{pushed:?}");
    }
    assert!(names(&pusher.ticket()).is_superset(&ids(&members)));
    for it in members {
        soon("it stops", it.node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_over_quic_stays_while_all_members_are_replaced() {
    let quic = Quic::new().bind(([127, 0, 0, 1], 0).into());
    let by = Transports::none().with("quic", quic);
    a_follower_stays_while_all_members_are_replaced(by).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_over_http_stays_while_all_members_are_replaced() {
    let by = Transports::none().with("http", Http::new());
    a_follower_stays_while_all_members_are_replaced(by).await;
}

/// A push that waits for what is next hears of the members, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_learns_of_the_members() {
    let first = member(None).await;
    let outsiders = Outsiders::of(&first.logs);
    let opened = outsiders.open_topic(topic(), LINE, Admission::everyone());
    soon("the topic", opened).await.expect("it opens");
    let ticket = first.door.ticket();
    let members = [member(Some(&first.logs)).await, first];
    vote(&members).await;
    let both = || names(&members[0].door.ticket()).is_superset(&ids(&members));
    let mut status = members[0].door.watch_status();
    soon("the doors are heard of", status.wait_for(|_| both())).await;
    let mut ada = Writer::new(1);
    let operations = stream::repeat_with(move || ada.next());
    let slowly = operations.then(|it| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        it
    });
    let mut pusher = Push::new(&ticket, topic()).start(Box::pin(slowly));
    let learned = async {
        while !names(&pusher.ticket()).is_superset(&ids(&members)) {
            pusher.next().await.expect("it goes on");
        }
    };
    soon("it learns", learned).await;
    assert!(pusher.status().learned > 0);
    drop(pusher);
    for it in members {
        soon("it stops", it.node.shutdown()).await;
    }
}
