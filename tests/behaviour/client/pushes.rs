//! Pushing to members: committed once, whoever is lost on the way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use quorate::{
    log_store::{Operation, OperationId},
    sync::{Push, PushOutcome, PushRule, Pushed, Pusher, ServeLimits},
};
use tokio::sync::Notify;

use super::ground::{Ground, Writer, soon, topic};

fn push(ground: &Ground, operations: Vec<Operation>) -> Pusher {
    let push = Push::new(&ground.ticket(), topic())
        .over(ground.ways.clone())
        .in_order();
    let push = push.retry(Duration::from_millis(5), Duration::from_millis(50));
    push.start(stream::iter(operations))
}

fn ids(operations: &[Operation]) -> Vec<OperationId> {
    operations.iter().map(Operation::id).collect()
}

async fn committed(ground: &Ground, at: usize, count: usize) -> Vec<OperationId> {
    let commits = ground.logs[at].subscribe(topic(), 0).take(count);
    let commits = soon("the commits", commits.collect::<Vec<_>>()).await;
    let id = |it: Result<(u64, Operation), _>| it.expect("it can be read").1.id();
    commits.into_iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_answered_in_order_once_it_is_committed() {
    let ground = Ground::open(1).await;
    let all = Writer::new(1).many(3_000);
    let pusher = push(&ground, all.clone());
    let handle = pusher.handle();
    let pushed: Vec<Pushed> = soon("the answers", pusher.collect()).await;
    assert_eq!(pushed.iter().map(|it| it.id).collect::<Vec<_>>(), ids(&all));
    for (number, it) in (0..).zip(&pushed) {
        assert_eq!(it.outcome, PushOutcome::Appended { number });
    }
    assert_eq!(committed(&ground, 0, all.len()).await, ids(&all));
    let status = handle.status();
    assert_eq!(
        (status.sent, status.resent, status.answered),
        (3_000, 0, 3_000)
    );
    assert!(status.complete);

    // Once more: it is held.
    let pushed: Vec<Pushed> = soon("the answers", push(&ground, all).collect()).await;
    for (number, it) in (0..).zip(pushed) {
        assert_eq!(it.outcome, PushOutcome::Held { number });
    }
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_operations_are_named_and_the_others_are_taken() {
    let ground = Ground::open(1).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    let (ada, ben) = (ada.many(3), ben.many(3));
    let mut forged = ben[1].header().to_vec();
    forged[50] ^= 1;
    let body = ben[1].body().cloned();
    let forged = Operation::decode(ben[1].line(), forged.into(), body).expect("well-formed");
    let given = vec![
        ada[0].clone(),
        ben[0].clone(),
        forged,
        ada[2].clone(),
        ada[1].clone(),
    ];
    let pushed: Vec<Pushed> = soon("the answers", push(&ground, given).collect()).await;
    let rules: Vec<_> = pushed
        .iter()
        .map(|it| match &it.outcome {
            PushOutcome::Refused(refused) => Some(refused.rule),
            _ => None,
        })
        .collect();
    assert_eq!(rules[..3], [None, None, Some(PushRule::Invalid)]);
    assert!(rules[4].is_none(), "ada's second: {rules:?}");
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_member_did_not_answer_is_sent_to_the_next_and_committed_once() {
    let ground = Ground::open(3).await;
    let all = Writer::new(1).many(12_000);
    let mut pusher = push(&ground, all.clone());
    let handle = pusher.handle();
    let mut pushed: Vec<Pushed> = Vec::new();
    let mut killed = 0;
    while let Some(one) = soon("an answer", pusher.next()).await {
        assert!(!matches!(one.outcome, PushOutcome::Refused(_)), "{one:?}");
        pushed.push(one);
        if killed < 2 && pushed.len() == 2_500 * (killed + 1) {
            let serving = handle.status().member.expect("somebody takes them");
            ground.ways.kill(serving);
            killed += 1;
        }
    }
    assert_eq!(pushed.iter().map(|it| it.id).collect::<Vec<_>>(), ids(&all));
    let numbers = pushed.iter().map(|it| match it.outcome {
        PushOutcome::Appended { number } | PushOutcome::Held { number } => number,
        PushOutcome::Refused(_) => u64::MAX,
    });
    assert!(numbers.eq(0..12_000), "each has one number");
    for at in 0..3 {
        assert_eq!(committed(&ground, at, all.len()).await, ids(&all));
    }
    let heights = soon("heights", ground.logs[2].heights(topic()))
        .await
        .expect("a quorum");
    assert_eq!(heights[&all[0].author()][&topic().log_id()], 11_999);
    assert!(handle.status().resent > 0);
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_a_client_wait_for_its_turn_is_not_given_up() {
    let ground = Ground::open(1).await;
    // The fewest that it may be, and so often that the client would not put up with it.
    *ground.ways.limits.lock().expect("no panic") = ServeLimits {
        pushed_per_second: 1,
        heartbeat: Duration::from_millis(1),
        ..ServeLimits::default()
    };
    let mut all = Writer::new(1).many(41);
    let last = all.pop();
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let then = stream::once(async move {
        opened.notified().await;
        last.expect("41 were written")
    });
    let push = Push::new(&ground.ticket(), topic()).over(ground.ways.clone());
    let push = push.silent_after(Duration::from_secs(2));
    let mut pusher = push.start(Box::pin(stream::iter(all).chain(then)));
    for _ in 0..40 {
        soon("an answer", pusher.next()).await.expect("it goes on");
    }
    // What was pushed is waited for: five seconds for what is next.
    let begun = Instant::now();
    gate.notify_one();
    let answered = soon("the last answer", pusher.next()).await;
    assert!(answered.is_some());
    let status = pusher.status();
    assert_eq!((status.failures, status.resent), (0, 0), "{status:?}");
    assert!(begun.elapsed() > Duration::from_secs(4), "it had to wait");
    ground.close().await;
}
