//! Pushes over each transport: answered when committed and not before, each once, whoever is lost.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use quorate::{
    log_store::{Operation, OperationId},
    sync::{Denied, MemberFault, PushOutcome, PushStatus, Pushed},
};

use super::{
    Kind,
    carrier::{Carrier, addrs},
    over_each,
};
use crate::client::ground::{Ground, Writer, soon, topic};

over_each!(
    a_push_is_answered_when_it_is_committed,
    without_a_quorum_nothing_is_answered,
    a_push_goes_on_at_another_member_and_commits_once,
    answers_that_nobody_reads_hold_the_push_back,
);

fn ids(operations: &[Operation]) -> Vec<OperationId> {
    operations.iter().map(Operation::id).collect()
}

async fn committed(ground: &Ground, at: usize, count: usize) -> Vec<OperationId> {
    let commits = ground.logs[at].subscribe(topic(), 0).take(count);
    let commits = soon("the commits", commits.collect::<Vec<_>>()).await;
    let id = |it: Result<(u64, Operation), _>| it.expect("it can be read").1.id();
    commits.into_iter().map(id).collect()
}

async fn a_push_is_answered_when_it_is_committed(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let server = carrier.serve(&ground.logs[0]).await;
    let all = Writer::new(1).many(5_000);
    let pusher = carrier.push(&[server.addr()]);
    let mut pusher = pusher.start(stream::iter(all.clone()));
    let mut number = 0;
    while let Some(pushed) = soon("an answer", pusher.next()).await {
        assert_eq!(pushed.outcome, PushOutcome::Appended { number });
        assert_eq!(pushed.id, all[number as usize].id());
        if number.is_multiple_of(500) {
            let held = ground.logs[0].heights_local(topic()).expect("it is read");
            let height = held[&pushed.author][&topic().log_id()];
            assert!(height >= pushed.seq, "answered, and not there");
        }
        number += 1;
    }
    assert_eq!(committed(&ground, 0, all.len()).await, ids(&all));
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn without_a_quorum_nothing_is_answered(kind: Kind) {
    let (ground, carrier) = (Ground::open(3).await, Carrier::new(kind));
    let server = carrier.serve(&ground.logs[0]).await;
    for node in &ground.nodes[1..] {
        soon("it stops", node.shutdown()).await;
    }
    let pusher = carrier.push(&[server.addr()]);
    let mut pusher = pusher.start(stream::iter(Writer::new(1).many(10)));
    let denied = |it: &PushStatus| {
        let fault = it.last_error.as_ref().map(|it| &it.fault);
        matches!(
            fault,
            Some(MemberFault::Denied {
                why: Denied::NoQuorum,
                ..
            })
        )
    };
    let mut watch = pusher.handle().watch_status();
    soon("the refusal", watch.wait_for(denied))
        .await
        .expect("it goes on");
    let answer = tokio::time::timeout(Duration::from_millis(100), pusher.next()).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(pusher.status().answered, 0);
    drop(pusher);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_push_goes_on_at_another_member_and_commits_once(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(carrier.serve(&ground.logs[0]).await);
    }
    let all = Writer::new(1).many(10_000);
    let pusher = carrier.push(&addrs(&servers));
    let mut pusher = pusher.start(stream::iter(all.clone()));
    let handle = pusher.handle();
    let mut pushed: Vec<Pushed> = Vec::new();
    while let Some(one) = soon("an answer", pusher.next()).await {
        pushed.push(one);
        let next = servers.len() > 1 && pushed.len() == 2_000 * (4 - servers.len());
        if let Some(serving) = handle.status().member.filter(|_| next) {
            let at = servers.iter().position(|it| it.addr().peer() == serving);
            let at = at.expect("one of ours");
            soon("it closes", servers.remove(at).close()).await;
        }
    }
    assert_eq!(pushed.iter().map(|it| it.id).collect::<Vec<_>>(), ids(&all));
    let numbers = pushed.iter().map(|it| match it.outcome {
        PushOutcome::Appended { number } | PushOutcome::Held { number } => number,
        PushOutcome::Refused(_) => u64::MAX,
    });
    assert!(numbers.eq(0..all.len() as u64), "each has one number");
    assert_eq!(committed(&ground, 0, all.len()).await, ids(&all));
    for server in servers {
        soon("it closes", server.close()).await;
    }
    ground.close().await;
}

async fn answers_that_nobody_reads_hold_the_push_back(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let server = carrier.serve(&ground.logs[0]).await;
    let all = Writer::new(1).many(36_000);
    let pusher = carrier.push(&[server.addr()]);
    let mut pusher = pusher.start(stream::iter(all.clone()));
    let first = soon("an answer", pusher.next()).await;
    assert!(first.is_some());
    let stands_still = async {
        let mut before = u64::MAX;
        while before != pusher.status().sent {
            before = pusher.status().sent;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        before
    };
    let sent = soon("the push waits", stands_still).await;
    // One with the reader, two that wait for it, four under way, and one cut off behind.
    assert!(sent <= 8 * 4_096, "{sent} operations");
    let rest: Vec<Pushed> = soon("the rest", pusher.collect()).await;
    assert_eq!(rest.len(), all.len() - 1);
    soon("it closes", server.close()).await;
    ground.close().await;
}
