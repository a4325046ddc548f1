//! Pulling from members: everything once, in order, from whoever is there.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use quorate::{
    log_store::Operation,
    sync::{
        Denied, Have, LogServer, LogServerOptions, MemberFault, Pull, Puller, Quic, QuicDial,
        Transports,
    },
};

use super::ground::{Ground, STUCK, Writer, append, member, soon, topic};

async fn take(puller: &mut Puller, count: usize) -> Vec<Operation> {
    let taken = puller.take(count).collect();
    soon("the operations", taken).await
}

fn by_author(mut operations: Vec<Operation>) -> Vec<Operation> {
    operations.sort_by_key(|it| (it.author(), it.seq()));
    operations
}

fn pull(ground: &Ground, have: Have) -> Pull {
    let pull = Pull::new(&ground.ticket(), topic(), have).over(ground.ways.clone());
    pull.in_order()
        .retry(Duration::from_millis(5), Duration::from_millis(50))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_catches_up_and_follows() {
    let ground = Ground::open(1).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    let all = [ada.many(5_000), ben.many(300)].concat();
    append(&ground.logs[0], &all).await;

    let mut puller = pull(&ground, Have::new()).start();
    let handle = puller.handle();
    assert_eq!(
        by_author(take(&mut puller, all.len()).await),
        by_author(all.clone())
    );
    let synced = tokio::spawn(async move { handle.wait_for_initial_sync(STUCK).await });
    let news = [ada.many(3), ben.many(2)].concat();
    append(&ground.logs[0], &news).await;
    assert_eq!(
        by_author(take(&mut puller, news.len()).await),
        by_author(news)
    );
    let handle = puller.handle();
    let reading = tokio::spawn(async move { puller.next().await });
    let status = soon("the first sync", synced)
        .await
        .expect("no panic")
        .expect("it is in time");
    assert_eq!(
        (status.member, status.line),
        (Some(member(0).peer), Some(super::ground::LINE))
    );

    let done = |it: &quorate::sync::PullStatus| it.complete;
    let status = soon("complete", handle.watch_status().wait_for(done)).await;
    let status = status.expect("it goes on");
    assert_eq!((status.verified, status.delivered), (5_305, 5_305));
    assert_eq!(
        (status.behind, status.failures, status.last_error),
        (Some(0), 0, None)
    );
    assert!(status.signatures < 50, "one a run: {}", status.signatures);
    reading.abort();
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_something_is_sent_the_rest_and_then_it_ends() {
    let ground = Ground::open(1).await;
    let all = Writer::new(1).many(1_000);
    append(&ground.logs[0], &all).await;
    for have_count in [0, 1, 999, 1_000] {
        let mut have = Have::new();
        all[..have_count].iter().for_each(|it| have.advance(it));
        let puller = pull(&ground, have).once().verify_all().start();
        let rest: Vec<Operation> = soon("the rest", puller.collect()).await;
        assert_eq!(rest, all[have_count..]);
    }
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_killed_in_the_middle_costs_no_operation_and_doubles_none() {
    let ground = Ground::open(3).await;
    let mut ada = Writer::new(1);
    let all = ada.many(30_000);
    append(&ground.logs[0], &all).await;
    let mut puller = pull(&ground, Have::new()).start();
    let mut taken = Vec::new();
    let mut killed = Vec::new();
    while taken.len() < all.len() {
        taken.extend(take(&mut puller, 1).await);
        if killed.len() < 2 && taken.len() >= 4_000 * (killed.len() + 1) {
            // What is read now may have been sent by one that is gone.
            let serving = puller.status().member;
            if let Some(serving) = serving.filter(|it| !killed.contains(it)) {
                ground.ways.kill(serving);
                killed.push(serving);
            }
        }
    }
    assert_eq!(taken, all);
    assert_eq!(killed.len(), 2, "there was time to kill them");
    let status = puller.status();
    assert_eq!((status.failures >= 2, status.delivered), (true, 30_000));
    assert!(status.last_error.is_some());
    // From the one that is left it follows.
    let news = ada.many(2);
    append(&ground.logs[1], &news).await;
    assert_eq!(take(&mut puller, 2).await, news);
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pruned_is_gone_with_the_flag_and_cut_off_without() {
    let ground = Ground::open(1).await;
    let logs = &ground.logs[0];
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    let old = [ada.many(10), ben.many(10)].concat();
    append(logs, &old).await;
    let mut have = Have::new();
    [&old[..5], &old[10..15]]
        .concat()
        .iter()
        .for_each(|it| have.advance(it));
    let kept = vec![ada.prune(), ada.next()];
    append(logs, &kept).await;
    soon(
        "the prune",
        logs.prune(old[10].author(), topic().log_id(), 8),
    )
    .await
    .expect("a quorum is there");

    let mut puller = pull(&ground, have).start();
    assert_eq!(take(&mut puller, 2).await, kept);
    let handle = puller.handle();
    let reading = tokio::spawn(async move { puller.next().await });
    let status = soon("the sync", handle.wait_for_initial_sync(STUCK)).await;
    assert_eq!(
        status.expect("it is in time").cut_off,
        1,
        "ben's log cannot go on"
    );
    reading.abort();
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_quorum_refuses_and_a_deadline_tells_so() {
    let ground = Ground::open(3).await;
    append(&ground.logs[0], &Writer::new(1).many(10)).await;
    for node in &ground.nodes[1..] {
        soon("it stops", node.shutdown()).await;
    }
    ground.ways.kill(member(1).peer);
    ground.ways.kill(member(2).peer);
    let mut puller = pull(&ground, Have::new()).start();
    let handle = puller.handle();
    let denied = |it: &quorate::sync::PullStatus| {
        let fault = it.last_error.as_ref().map(|it| &it.fault);
        matches!(
            fault,
            Some(MemberFault::Denied {
                why: Denied::NoQuorum,
                ..
            })
        )
    };
    soon("the refusal", handle.watch_status().wait_for(denied))
        .await
        .expect("it goes on");
    let late = handle
        .wait_for_initial_sync(Duration::from_millis(20))
        .await;
    let late = late.expect_err("there is no quorum");
    assert!(
        late.to_string()
            .contains("0 operations so far; the latest failure: member "),
        "{late}"
    );
    let nothing = tokio::time::timeout(Duration::from_millis(1), puller.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_carries_it_and_a_second_server_takes_over() {
    let ground = Ground::open(1).await;
    let all = Writer::new(1).many(20_000);
    append(&ground.logs[0], &all).await;
    let mut servers = Vec::new();
    for _ in 0..2 {
        let logs = ground.logs[0].clone();
        let quic = Quic::new().bind(([127, 0, 0, 1], 0).into());
        let options = LogServerOptions {
            transports: Transports::none().with("quic", quic),
            ..LogServerOptions::default()
        };
        let admit = Arc::new(move |_, _, _| Ok(logs.clone()));
        servers.push(
            LogServer::open(options, admit)
                .await
                .expect("loopback can be bound"),
        );
    }
    let ticket = servers[0].ticket([(topic(), super::ground::LINE)], []);
    let dial = QuicDial::bound_to(ticket.network(), ([127, 0, 0, 1], 0).into());
    let puller = Pull::new(&ticket, topic(), Have::new()).over(Arc::new(dial));
    let mut puller = puller
        .retry(Duration::from_millis(5), Duration::from_millis(50))
        .start();
    puller.handle().add_address(servers[1].addr());
    let mut taken = take(&mut puller, 3_000).await;
    let serving = puller.status().member.expect("somebody serves");
    let at = servers
        .iter()
        .position(|it| it.addr().peer() == serving)
        .expect("one of ours");
    soon("it closes", servers.remove(at).close()).await;
    taken.extend(take(&mut puller, all.len() - 3_000).await);
    assert_eq!(taken, all);
    drop(puller);
    soon("it closes", servers.remove(0).close()).await;
    ground.close().await;
}
