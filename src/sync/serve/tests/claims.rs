//! Claims of peers that have several topics.

use std::time::Duration;

use super::{
    super::Patience,
    doors::live,
    guest::{Guest, House, soon, topic, until},
};
use crate::log_store::Line;

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
    let first = guest.talk(&door, Line::V06).await;
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
