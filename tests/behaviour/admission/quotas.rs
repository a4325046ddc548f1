//! What one peer may cost, and all together: what is beyond waits, and nothing is lost.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use quorate::sync::{Admission, Denied, PushOutcome, SyncOptions};

use super::{
    ground::{Client, Friend, Serving, Writer, group_with, holds, open, options, shutdown, until},
    lists::pull_is_denied,
};
use crate::cluster::{Place, within};

async fn one(options: SyncOptions) -> Vec<Serving> {
    let members = group_with(vec![Place::MEMORY], &options).await;
    open(&members[0], Admission::everyone()).await;
    members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pushes_more_than_it_may_is_heard_in_time_and_loses_nothing() {
    let members = one(SyncOptions {
        operations_per_second_of_peer_max: 40,
        ..options()
    })
    .await;
    let mut ben = Writer::new(2);
    let friend = Friend::new().await;
    ben.write(&friend.logs, 160).await;
    let start = Instant::now();
    friend.meets(&members[0]);
    holds(&members[0].logs, &ben, 160).await;
    // 40 at once, and three seconds for the rest.
    let took = start.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    let status = members[0].status_of(friend.id()).expect("it is known");
    assert!(status.put_off > 0, "{status:?}");
    assert_eq!(status.refused, 0);
    friend.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_peers_together_push_no_more_than_they_may() {
    let members = one(SyncOptions {
        bytes_per_second_max: 20_000,
        ..options()
    })
    .await;
    let (mut ben, mut eve) = (Writer::new(2), Writer::new(3));
    let (one, two) = (Friend::new().await, Friend::new().await);
    // Some 300 bytes each.
    ben.write(&one.logs, 100).await;
    eve.write(&two.logs, 100).await;
    let start = Instant::now();
    one.meets(&members[0]);
    two.meets(&members[0]);
    holds(&members[0].logs, &ben, 100).await;
    holds(&members[0].logs, &eve, 100).await;
    let took = start.elapsed();
    assert!(took > Duration::from_secs(1), "{took:?}");
    one.stop().await;
    two.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_client_waits_for_its_turn() {
    let members = one(SyncOptions {
        operations_per_second_of_peer_max: 100,
        ..options()
    })
    .await;
    let mut ben = Writer::new(2);
    let operations: Vec<_> = (0..300).map(|_| ben.next()).collect();
    let start = Instant::now();
    // Two at a time are one peer as well.
    let client = Client::of(&members[0], 3);
    let mut pushed = client.pushes(operations);
    let mut ada = Writer::new(1);
    let others: Vec<_> = (0..100).map(|_| ada.next()).collect();
    let mut other = client.pushes(others);
    for _ in 0..300 {
        let next = within("an outcome", pushed.next()).await;
        let outcome = next.map(|it| it.outcome);
        assert!(
            matches!(outcome, Some(PushOutcome::Appended { .. })),
            "{outcome:?}"
        );
    }
    for _ in 0..100 {
        within("an outcome", other.next())
            .await
            .expect("it goes on");
    }
    // The last batch is answered before it is waited for.
    let more = vec![ada.next()];
    let mut last = client.pushes(more);
    within("an outcome", last.next()).await.expect("it goes on");
    let held = async || super::ground::held(&members[0].logs, &ben).await == 300;
    until("all is held", held).await;
    let took = start.elapsed();
    assert!(took > Duration::from_millis(2_500), "{took:?}");
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_counted_for_each_peer_and_for_all() {
    let members = one(SyncOptions {
        sessions_max: 3,
        sessions_of_peer_max: 2,
        ..options()
    })
    .await;
    let mut ada = Writer::new(1);
    ada.write(&members[0].logs, 3).await;
    let (one, two) = (Client::of(&members[0], 3), Client::of(&members[0], 4));
    let mut open = Vec::new();
    for client in [&one, &one, &two] {
        let mut puller = client.pulls();
        within("it follows", puller.next())
            .await
            .expect("it goes on");
        open.push(puller);
    }
    assert_eq!(members[0].sync.status().sessions, 3);
    pull_is_denied(&one, Denied::OverQuota).await;
    pull_is_denied(&two, Denied::OverQuota).await;
    open.remove(0);
    let mut puller = two.pulls();
    within("there is room again", puller.next())
        .await
        .expect("it goes on");
    pull_is_denied(&two, Denied::OverQuota).await;
    drop(open);
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let members = one(options()).await;
    let serving = &members[0];
    within("it stops", serving.member.node.stop_sync(&serving.logs)).await;
    let bad = SyncOptions {
        bytes_per_second_of_peer_max: 7,
        ..options()
    };
    let refused = serving.member.node.serve_sync(&serving.logs, bad).await;
    let why = refused.expect_err("it makes no sense").to_string();
    assert!(
        why.contains("bytes_per_second_of_peer_max is 7: give 16384 to"),
        "{why}"
    );
    shutdown(members).await;
}
