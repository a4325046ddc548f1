//! Claims of peers that have several topics.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{
    super::{Patience, peers::Rank},
    doors::live,
    guest::{Guest, House, soon, topic, until},
};
use crate::{
    log_store::{Line, Topic},
    sync::{Admission, Outsiders},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_gone_is_given_up_in_each_topic_and_then_forgotten() {
    let hasty = Patience {
        beat: Duration::from_millis(100),
        tries: 2,
        ..Patience::default()
    };
    let house = House::of(1).await;
    let door = house.door(0, hasty).await;
    let shared = door.shared();
    // It comes in, and lets nobody in.
    let guest = Guest::new().await;
    let mut first = guest.talk(&door, Line::V06).await;
    live(&mut first).await;
    let mut second = guest.talk(&door, Line::V07).await;
    live(&mut second).await;
    let kept = |line| shared.is_kept(guest.id(), topic(line));
    drop(first);
    until("it is dialled", || kept(Line::V06)).await;
    until("it is given up", || !kept(Line::V06)).await;
    // The claims are looked through with each beat, and it stays that way.
    let looks = async {
        for _ in 0..20 {
            let before = shared.logs.notes_changed().expect("readable");
            let beat = || shared.logs.notes_changed().expect("readable") > before;
            until("a beat", beat).await;
            assert!(!kept(Line::V06), "it is given up in this topic");
        }
    };
    soon("twenty beats", looks).await;
    assert!(shared.claims.version(guest.id()).is_some());
    // It comes in again: so it is looked for again.
    let mut first = guest.talk(&door, Line::V06).await;
    live(&mut first).await;
    drop(first);
    until("it is dialled again", || kept(Line::V06)).await;
    drop(second);
    let forgotten = || shared.claims.version(guest.id()).is_none();
    until("it is forgotten in all topics", forgotten).await;
    assert!(!kept(Line::V06) && !kept(Line::V07));
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_sessions_of_a_new_peer_claim_it_at_once() {
    let line = Line::V07;
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let shared = door.shared();
    let topics: Vec<_> = (0..16)
        .map(|number| Topic::named(&format!("birds {number}")))
        .collect();
    for topic in &topics {
        let outsiders = Outsiders::of(&house.logs[0]);
        let opening = outsiders.open_topic(*topic, line, Admission::everyone());
        soon("the topic", opening).await.expect("a quorum is there");
    }
    let guest = Guest::new().await;
    assert!(shared.learn(&guest.addr(), Rank::Met));
    let claims = topics.iter().map(|topic| {
        let (shared, topic, peer) = (Arc::clone(&shared), *topic, guest.id());
        tokio::spawn(async move { shared.claim(peer, topic, line).await })
    });
    for claimed in soon("the claims", join_all(claims)).await {
        assert!(claimed.expect("no panic"), "no other member serves it");
    }
    let all = shared.claims.all();
    let named = all.iter().find(|it| it.peer == guest.id());
    let mut named = named.expect("it is claimed").topics.clone();
    named.sort();
    let mut wanted: Vec<_> = topics.into_iter().map(|it| (it, line)).collect();
    wanted.sort();
    assert_eq!(named, wanted);
    drop(shared);
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_names_where_the_peer_is_now() {
    let line = Line::V07;
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let shared = door.shared();
    let guest = Guest::new().await;
    for relay in ["https://b.example/", "https://a.example/"] {
        let mut now = guest.addr();
        now.relay = Some(relay.to_owned());
        assert!(shared.learn(&now, Rank::Met));
        assert!(shared.claim(guest.id(), topic(line), line).await);
        let known = shared.peers.addr(guest.id());
        assert_eq!(known.relay.as_deref(), Some(relay));
        // It is named there: to claim it again changes nothing.
        let version = shared.claims.version(guest.id());
        assert!(shared.claim(guest.id(), topic(line), line).await);
        assert_eq!(shared.claims.version(guest.id()), version);
    }
    drop(shared);
    door.stop().await;
    guest.close().await;
    house.close().await;
}
