//! Without a quorum nothing is acknowledged and nothing is read as if it were the latest.

use std::time::Duration;

use quorate::{ExecuteError, NotApplied, QueryError, Unresolved, Warning, config::Config};

use crate::{
    cluster::{Member, Place, Resting, group_at, settled, views, within},
    ledger::{Ledger, assert_equal},
};

fn impatient() -> Config {
    Config {
        execute_timeout: Duration::from_millis(1_500),
        query_timeout: Duration::from_millis(1_500),
        ..Config::default()
    }
}

/// Not acknowledged, however it is put.
async fn refused(member: &Member<Ledger>, command: &str) -> Option<Unresolved> {
    match within(
        "a write without a quorum",
        member.group.execute(command.into()),
    )
    .await
    {
        Err(ExecuteError::NotApplied(NotApplied::NoLeader)) => None,
        Err(ExecuteError::Unknown(unknown)) => Some(unknown),
        other => panic!("{command}: {other:?}"),
    }
}

async fn is_cut_off(member: &Member<Ledger>) {
    let cut = |it: &quorate::Status| !it.quorum && it.warnings.contains(&Warning::NoQuorum);
    member
        .status_when("the minority knows that it is one", cut)
        .await;
    let unread = within("a query", member.group.query(())).await;
    assert_eq!(unread, Err(QueryError::NoLeader));
    assert_eq!(
        member.group.query_local(()).len(),
        1,
        "what it has it still shows"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_two_node_group_never_acknowledges_alone() {
    let mut members = group_at::<Ledger>(vec![Place::MEMORY; 2], &impatient()).await;
    let leader = settled(&members).await;
    within("a write", members[leader].group.execute("both".into()))
        .await
        .expect("written");
    for (round, cut) in [1 - leader, leader].into_iter().enumerate() {
        // First the follower goes, then the leader.
        views(&members).await;
        let down: Resting = members.remove(cut).rest().await;
        let alone = &members[0];
        if round == 0 {
            is_cut_off(alone).await;
        }
        let unknown = refused(alone, &format!("alone {round}")).await;
        members.insert(cut, down.start().await);
        settled(&members).await;
        if let Some(unknown) = unknown {
            let retried = members[1 - cut].group.retry(unknown);
            within("the retry", retried)
                .await
                .expect("resolved by the quorum");
        }
    }
    let views = views(&members).await;
    assert_equal(&views);
    for (_, command) in &views[0] {
        let count = views[0].iter().filter(|(_, it)| it == command).count();
        assert_eq!(count, 1, "{command}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_writes_and_reads_and_its_entries_are_gone_after_the_heal() {
    let mut members = group_at::<Ledger>(vec![Place::MEMORY; 3], &impatient()).await;
    let leader = settled(&members).await;
    within("a write", members[leader].group.execute("all".into()))
        .await
        .expect("written");
    views(&members).await;
    let old_leader = members.remove(leader);
    let mut down = Vec::new();
    for member in members {
        down.push(member.rest().await);
    }
    // At once, while it may still think that it leads, and once it knows better.
    let mut unknown = 0;
    for n in 0..3 {
        unknown += usize::from(refused(&old_leader, &format!("lost {n}")).await.is_some());
        is_cut_off(&old_leader).await;
    }
    println!("{unknown} of 3 writes on the minority are unknown, the others not applied");
    let alone = old_leader.rest().await;

    let starting = down.into_iter().map(Resting::start);
    let mut members: Vec<Member<Ledger>> = futures_util::future::join_all(starting).await;
    settled(&members).await;
    within("a write", members[0].group.execute("kept".into()))
        .await
        .expect("written");
    members.push(alone.start().await);
    settled(&members).await;
    within("a write", members[2].group.execute("healed".into()))
        .await
        .expect("written");
    let views = views(&members).await;
    assert_equal(&views);
    let commands: Vec<&str> = views[2].iter().map(|(_, it)| it.as_str()).collect();
    assert_eq!(commands, ["all", "kept", "healed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_left_alone_refuses_too_and_recovers() {
    let mut members = group_at::<Ledger>(vec![Place::MEMORY; 3], &impatient()).await;
    let leader = settled(&members).await;
    within("a write", members[leader].group.execute("all".into()))
        .await
        .expect("written");
    views(&members).await;
    let alone = members.remove((leader + 1) % 3);
    let mut down = Vec::new();
    for member in members {
        down.push(member.rest().await);
    }
    is_cut_off(&alone).await;
    let unknown = refused(&alone, "asked alone").await;
    let started = std::time::Instant::now();
    let mut members: Vec<Member<Ledger>> = vec![alone];
    members.push(down.remove(0).start().await);
    // One more makes the quorum.
    members[0]
        .status_when("the quorum is back", |it| it.quorum && it.leader.is_some())
        .await;
    within("a write", members[0].group.execute("again".into()))
        .await
        .expect("written");
    println!(
        "with the quorum back, a write after {:?}",
        started.elapsed()
    );
    let resolved = usize::from(unknown.is_some());
    if let Some(unknown) = unknown {
        let retried = members[0].group.retry(unknown);
        within("the retry", retried).await.expect("resolved");
    }
    members.push(down.remove(0).start().await);
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[0].len(), 2 + resolved);
}
