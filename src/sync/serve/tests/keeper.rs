//! Peers that are dialled, and do not answer.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};

use super::{
    super::{Patience, Shared, keeper, peers::Rank},
    doors,
    guest::{Guest, House, soon, topic, until},
};
use crate::{
    log_store::{Line, mint::Writer},
    sync::{codec::Message, outsiders, wire::Knock},
};

const LINE: Line = Line::V07;

/// A guest that leaves what it does about a knock to the test.
async fn knocked_at() -> (Guest, mpsc::Receiver<Knock>) {
    let (came, coming) = mpsc::channel(64);
    let guest = Guest::that(move |knock| {
        let _ = came.try_send(knock);
    });
    (guest.await, coming)
}

async fn next(knocks: &mut mpsc::Receiver<Knock>) -> Knock {
    let knock = soon("a knock", knocks.recv()).await;
    knock.expect("the guest is there")
}

fn heard_of(shared: &Arc<Shared>, guest: &Guest) {
    assert!(shared.learn(&guest.addr(), Rank::Met));
    shared.keep(guest.id(), topic(LINE));
}

fn tries(shared: &Shared, guest: &Guest) -> u32 {
    let tries = shared.peers.look(guest.id(), topic(LINE), |it| it.tries);
    tries.expect("it is kept")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_heard_of_while_it_is_dialled_is_dialled_again_at_once() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let shared = door.shared();
    let (guest, mut knocks) = knocked_at().await;
    heard_of(&shared, &guest);
    for _ in 0..4 {
        next(&mut knocks).await.refuse();
    }
    let knock = next(&mut knocks).await;
    heard_of(&shared, &guest);
    knock.refuse();
    // The pause would be four seconds at least.
    let again = timeout(Duration::from_secs(3), knocks.recv()).await;
    assert!(matches!(again, Ok(Some(_))), "it waits for its pause");
    drop((again, shared));
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_on_this_side_is_not_held_against_a_peer() {
    let house = House::of(1).await;
    let hasty = Patience {
        tries: 2,
        ..Patience::default()
    };
    let door = house.door(0, hasty).await;
    let shared = door.shared();
    let (guest, mut knocks) = knocked_at().await;
    // No session more is to be had here.
    let max = shared.options.sessions_of_peer_max;
    assert!(shared.learn(&guest.addr(), Rank::Met));
    let count = || shared.peers.count(guest.id(), max);
    let all: Vec<_> = (0..max).map(|_| count().expect("there is room")).collect();
    heard_of(&shared, &guest);
    let mut came = 0;
    while came < 4 {
        // A packet that comes twice knocks twice, and nobody is behind the second one.
        let knock = next(&mut knocks).await;
        if let Ok((_, connection)) = knock.accept(|_, _| true).await {
            soon("its end", connection.closed()).await;
            came += 1;
        }
    }
    let told = door.status().peers;
    let error = told.iter().find_map(|it| it.last_error.clone());
    assert!(error.is_some_and(|it| it.contains(super::super::FULL)));
    assert!(shared.is_kept(guest.id(), topic(LINE)));
    assert_eq!(tries(&shared, &guest), 0);
    let register = house.logs[0].notes(outsiders::register_prefix());
    assert_eq!(
        register.expect("readable").len(),
        0,
        "nothing is said of it"
    );
    drop(all);
    // Its own faults are.
    until("it counts", || {
        if let Ok(knock) = knocks.try_recv() {
            knock.refuse();
        }
        tries(&shared, &guest) > 0
    })
    .await;
    drop(shared);
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_did_not_answer_hold_up_no_other() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let shared = door.shared();
    // As many as there may be of them are dialled, and nobody answers.
    let again = &shared.dials.again;
    let all = again.available_permits() as u32;
    let gone = again.acquire_many(all).await.expect("it is open");
    let (guest, mut knocks) = knocked_at().await;
    heard_of(&shared, &guest);
    next(&mut knocks).await.refuse();
    until("it counts", || tries(&shared, &guest) == 1).await;
    let second = timeout(Duration::from_secs(2), knocks.recv()).await;
    assert!(second.is_err(), "it waits behind those that are gone");
    let (other, mut others) = knocked_at().await;
    heard_of(&shared, &other);
    next(&mut others).await.refuse();
    drop(gone);
    next(&mut knocks).await.refuse();
    drop(shared);
    door.stop().await;
    guest.close().await;
    other.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_dropped_is_told_to_have_ended_and_holds_no_chunk() {
    let house = House::of(1).await;
    let mut ada = Writer::new(1, topic(LINE), LINE);
    house.append(ada.many(5)).await;
    let door = house.door(0, Patience::default()).await;
    let shared = door.shared();
    let mut news = house.logs[0].hear_sessions();
    let (guest, mut coming) = doors::open_guest().await;
    assert!(shared.learn(&guest.addr(), Rank::Met));
    let (serving, peer) = (Arc::clone(&shared), guest.id());
    let serve = move || {
        let shared = Arc::clone(&serving);
        tokio::spawn(async move { keeper::serve_once(&shared, peer, topic(LINE), true).await })
    };
    for _ in 0..2 {
        let serving = serve();
        let mut talk = doors::next(&mut coming, LINE).await;
        talk.have_nothing().await;
        // It is sent a chunk, the second time too, and has not said that it has it.
        let heard = talk.hear().await;
        let all = matches!(heard, Some(Message::PreSync { operations: 5, .. }));
        assert!(all, "{heard:?}");
        let began = soon("its beginning", news.recv()).await;
        assert!(began.expect("it is told").ended.is_none());
        serving.abort();
        let ended = soon("its end", news.recv()).await.expect("it is told");
        let error = ended.ended.and_then(|it| it.error);
        assert!(error.is_some(), "it did not end by itself");
        assert!(serving.await.is_err(), "it is dropped");
    }
    drop((serve, shared));
    door.stop().await;
    guest.close().await;
    house.close().await;
}
