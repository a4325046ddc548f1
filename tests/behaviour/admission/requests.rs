//! Topics that are for those who ask: requests, what is decided on them, and what is taken back.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use quorate::sync::{Admission, Decision, Denied, PeerState, Rights};

use super::{
    ground::{
        Client, Friend, Serving, Writer, group, group_with, held, holds, open, options, shutdown,
        topic, until,
    },
    lists::pull_is_denied,
};
use crate::cluster::{Place, settled, within};

async fn requests(member: &Serving) -> Vec<quorate::sync::Request> {
    let requests = within("the requests", member.outsiders.requests()).await;
    requests.expect("they can be read")
}

async fn approve(member: &Serving, friend: &Friend, rights: Rights) {
    let approving = member.outsiders.approve(topic(), friend.id(), rights);
    within("the approval", approving).await.expect("approved");
}

async fn refuse(member: &Serving, friend: &Friend) {
    let refusing = member.outsiders.refuse(topic(), friend.id());
    within("the refusal", refusing).await.expect("refused");
}

async fn is_asked_for(member: &Serving, friend: &Friend) {
    until("the request is known", async || {
        let asked = requests(member).await;
        asked.len() == 1 && asked[0].peer == friend.id()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_is_noted_once_and_served_when_let_in_by_any_member() {
    let members = group(3).await;
    open(&members[0], Admission::on_request()).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    ada.write(&members[0].logs, 50).await;
    let friend = Friend::new().await;
    ben.write(&friend.logs, 20).await;
    friend.meets(&members[0]);
    for member in &members {
        is_asked_for(member, &friend).await;
    }
    let asked = requests(&members[1]).await.remove(0);
    assert_eq!((asked.topic, asked.wants), (topic(), Rights::ALL));
    // It goes on knocking; that is no further request, and no further entry in the journal.
    let at = asked.at;
    let knocks = |friend: &Friend| friend.last_error(&members[0]);
    until("it is turned away", async || knocks(&friend).is_some()).await;
    let applied = members[0].member.group.status().applied;
    let client = Client::of(&members[0], 5);
    pull_is_denied(&client, Denied::NotYet).await;
    until("the client's request is known", async || {
        requests(&members[0]).await.len() == 2
    })
    .await;
    let later = members[0].member.group.status().applied;
    assert!(
        later.index - applied.index <= 12,
        "{applied:?} to {later:?}"
    );
    assert_eq!(
        requests(&members[0])
            .await
            .iter()
            .filter(|it| it.at == at)
            .count(),
        1
    );
    assert_eq!(held(&friend.logs, &ada).await, 0);
    assert_eq!(held(&members[0].logs, &ben).await, 0);
    assert!(members[0].status_of(friend.id()).is_none(), "no place yet");

    approve(&members[2], &friend, Rights::ALL).await;
    holds(&friend.logs, &ada, 50).await;
    holds(&members[0].logs, &ben, 20).await;
    let allowed = members[1]
        .outsiders
        .approve(topic(), client.id(), Rights::READ);
    within("the approval", allowed).await.expect("approved");
    let pulled = client.pulls().take(70).collect::<Vec<_>>();
    assert_eq!(within("the operations", pulled).await.len(), 70);
    assert!(requests(&members[0]).await.is_empty());
    friend.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_decisions_outlive_a_restart_of_all() {
    let members = group_with(vec![Place::MEMORY; 3], &options()).await;
    open(&members[0], Admission::on_request()).await;
    let mut ada = Writer::new(1);
    ada.write(&members[0].logs, 30).await;
    let (friend, foe) = (Friend::new().await, Friend::new().await);
    friend.meets(&members[0]);
    is_asked_for(&members[1], &friend).await;
    refuse(&members[1], &foe).await;
    let mut resting = Vec::new();
    for it in members {
        resting.push(it.member.rest().await);
    }
    let starting = resting.into_iter().map(crate::cluster::Resting::start);
    let started = futures_util::future::join_all(starting).await;
    settled(&started).await;
    let mut members = Vec::new();
    for member in started {
        members.push(Serving::of(member, options()).await);
    }
    is_asked_for(&members[2], &friend).await;
    let known = members[0].outsiders.decisions().await.expect("they read");
    let of = |peer| {
        known
            .iter()
            .find(|it| it.peer == peer)
            .map(|it| it.decision)
    };
    assert_eq!(of(friend.id()), Some(Decision::Pending));
    assert_eq!(of(foe.id()), Some(Decision::Refused));
    // The members dial it where it was when it asked: it does not know where they are now.
    approve(&members[1], &friend, Rights::READ).await;
    holds(&friend.logs, &ada, 30).await;
    friend.stop().await;
    foe.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_refused_stays_refused_until_that_is_changed() {
    let members = group(1).await;
    open(&members[0], Admission::on_request()).await;
    let mut ada = Writer::new(1);
    ada.write(&members[0].logs, 30).await;
    let friend = Friend::new().await;
    refuse(&members[0], &friend).await;
    friend.meets(&members[0]);
    until("it is turned away", async || {
        friend.last_error(&members[0]).is_some()
    })
    .await;
    assert!(requests(&members[0]).await.is_empty());
    // Not even where everybody is admitted.
    open(&members[0], Admission::everyone()).await;
    let other = Friend::new().await;
    other.meets(&members[0]);
    holds(&other.logs, &ada, 30).await;
    assert_eq!(held(&friend.logs, &ada).await, 0);
    let changing = members[0].outsiders.reconsider(topic(), friend.id());
    within("the change", changing).await.expect("changed");
    holds(&friend.logs, &ada, 30).await;
    friend.stop().await;
    other.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_ends_live_sessions_within_a_second() {
    let members = group(3).await;
    open(&members[0], Admission::on_request()).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    ada.write(&members[0].logs, 10).await;
    let friend = Friend::new().await;
    let client = Client::of(&members[1], 5);
    for peer in [friend.id(), client.id()] {
        let allowed = members[0].outsiders.approve(topic(), peer, Rights::ALL);
        within("the approval", allowed).await.expect("approved");
    }
    friend.meets(&members[0]);
    holds(&friend.logs, &ada, 10).await;
    until("it is live", async || {
        let live = |it: &Serving| it.status_of(friend.id());
        let live = members.iter().filter_map(live);
        live.into_iter().any(|it| it.state == PeerState::Live)
    })
    .await;
    let mut puller = client.pulls();
    for _ in 0..10 {
        within("it follows", puller.next())
            .await
            .expect("it goes on");
    }

    let sessions = || {
        members
            .iter()
            .map(|it| it.sync.status().sessions)
            .sum::<usize>()
    };
    assert!(sessions() >= 2);
    let start = Instant::now();
    refuse(&members[2], &friend).await;
    let taking = members[2].outsiders.refuse(topic(), client.id());
    within("the refusal", taking).await.expect("refused");
    until("no session is left", async || sessions() == 0).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    ada.write(&members[0].logs, 5).await;
    ben.write(&friend.logs, 5).await;
    pull_is_denied_or_closed(&client).await;
    assert_eq!(held(&friend.logs, &ada).await, 10);
    assert_eq!(held(&members[0].logs, &ben).await, 0);

    // The same peer, let in again.
    approve(&members[1], &friend, Rights::ALL).await;
    holds(&friend.logs, &ada, 15).await;
    holds(&members[0].logs, &ben, 5).await;
    friend.stop().await;
    shutdown(members).await;
}

/// A peer that may know of no topic is closed at the door.
async fn pull_is_denied_or_closed(client: &Client) {
    let mut puller = client.pulls();
    let handle = puller.handle();
    let mut watch = handle.watch_status();
    within("it fails", watch.wait_for(|it| it.failures >= 2))
        .await
        .expect("it goes on");
    let nothing = tokio::time::timeout(Duration::from_millis(1), puller.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_quorum_ends_its_sessions() {
    let mut members = group(3).await;
    open(&members[0], Admission::everyone()).await;
    let mut ada = Writer::new(1);
    ada.write(&members[0].logs, 10).await;
    let alone = members.remove(0);
    let friend = Friend::new().await;
    friend.meets(&alone);
    holds(&friend.logs, &ada, 10).await;
    let client = Client::of(&alone, 5);
    let mut puller = client.pulls();
    for _ in 0..10 {
        within("it follows", puller.next())
            .await
            .expect("it goes on");
    }
    shutdown(members).await;
    until("nobody is served", async || {
        let status = alone.sync.status();
        !status.serving && status.sessions == 0
    })
    .await;
    friend.stop().await;
    shutdown(vec![alone]).await;
}
