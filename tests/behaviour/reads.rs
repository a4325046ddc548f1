//! Queries, `ready`, and the status.

use std::time::Instant;

use quorate::{Health, Map, MapAnswer, MapCommand, MapQuery, Role, Warning, config::Config};

use crate::cluster::{Member, Place, group_of, settled, voters, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_on_any_member_sees_a_write_through_another() {
    let members = group_of::<Map>(3).await;
    let started = Instant::now();
    for round in 0..500 {
        let writer = &members[round % 3].group;
        let reader = &members[(round + 1 + round / 3 % 2) % 3].group;
        let value = format!("{round}");
        let written = writer.execute(MapCommand::put("key", value.clone()));
        within("a write", written).await.expect("written");
        let answer = within("a query", reader.query(MapQuery::get("key"))).await;
        let seen = answer.expect("answered").into_value();
        assert_eq!(seen.as_deref(), Some(value.as_bytes()), "in round {round}");
    }
    println!(
        "500 writes, each read on another member, in {:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_ready_has_what_was_acknowledged_before() {
    let members = group_of::<Map>(3).await;
    for round in 0..50 {
        let writer = &members[round % 3].group;
        let reader = &members[(round + 1) % 3].group;
        let key = format!("{round}");
        let written = writer.execute(MapCommand::put(key.clone(), "there"));
        within("a write", written).await.expect("written");
        within("ready", reader.ready()).await.expect("it runs");
        let seen = reader.query_local(MapQuery::get(key)).into_value();
        assert_eq!(seen.as_deref(), Some(&b"there"[..]), "in round {round}");
    }
    let ticket = members[0].group.ticket();
    let joined = Member::<Map>::join(Place::MEMORY, &Config::default(), &ticket).await;
    within("the new member is ready", joined.group.ready())
        .await
        .expect("it runs");
    assert_eq!(joined.group.query_local(MapQuery::Len), MapAnswer::Len(50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_watch_tells_of_a_new_leader() {
    let members = group_of::<Map>(3).await;
    let leader = settled(&members).await;
    let heir = (leader + 1) % 3;
    let observer = &members[(leader + 2) % 3].group;
    let before = observer.status();
    let mut watch = observer.watch_status();
    let (old, new) = (members[leader].id(), members[heir].id());
    let told = tokio::spawn(async move {
        let mut status = watch.now();
        while status.leader != Some(new) {
            status = watch.changed().await;
        }
        status
    });
    let asked = observer.transfer_leadership(new);
    within("the transfer", asked).await.expect("handed over");
    let after = within("the watch", told).await.expect("no panic");
    assert_eq!(before.leader, Some(old));
    assert!(
        after.term > before.term,
        "{} is not behind {}",
        after.term,
        before.term
    );
    members[heir]
        .status_when("the heir leads", |it| it.role == Role::Leader)
        .await;
    members[leader]
        .status_when("the old one follows", |it| it.role == Role::Follower)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_shows_members_their_health_and_their_lag() {
    let mut members = group_of::<Map>(3).await;
    let leader = settled(&members).await;
    for n in 0..20 {
        let written = members[leader]
            .group
            .execute(MapCommand::put(format!("{n}"), "x"));
        within("a write", written).await.expect("written");
    }
    let status = members[leader]
        .status_when("nobody lags, and round trips are known", |it| {
            let others = || {
                it.members
                    .iter()
                    .filter(|member| member.health != Health::Here)
            };
            it.members.iter().all(|member| member.lag == Some(0))
                && it.applied.index == it.committed_index
                && others().all(|member| member.health == Health::Good && member.rtt.is_some())
        })
        .await;
    assert_eq!(
        (voters(&status), status.role, status.quorum),
        (3, Role::Leader, true)
    );
    assert_eq!(status.warnings, vec![]);
    assert_eq!(status.stopped, None);
    println!(
        "round trips: {:?}",
        status.members.iter().map(|it| it.rtt).collect::<Vec<_>>()
    );

    let gone = members.remove((leader + 1) % 3);
    let (gone_id, observer) = (gone.id(), members[0].id());
    gone.node.shutdown().await;
    let status = members[0]
        .status_when("the lost voter shows", |it| {
            it.warnings.contains(&Warning::VoterDown)
        })
        .await;
    assert!(status.quorum);
    for member in status.members {
        let expected = match member.member {
            it if it == gone_id => Health::Unreachable,
            it if it == observer => Health::Here,
            _ => Health::Good,
        };
        assert_eq!(member.health, expected);
    }
}
