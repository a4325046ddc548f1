//! Several members, one peer: who serves it, and who does when that one does no more.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    super::{Patience, PeerState, Sync, SyncOptions},
    guest::{Guest, House, Talk, operations, soon, topic, until},
};
use crate::{
    log_store::{Heights, Line, mint::Writer},
    sync::{
        codec::Message,
        wire::{Connection, Service},
    },
};

fn quick() -> Patience {
    Patience {
        beat: Duration::from_millis(300),
        silence: Duration::from_millis(1_500),
        ..Patience::default()
    }
}

/// A guest that lets doors in, and their sessions.
pub(super) async fn open_guest() -> (Guest, mpsc::Receiver<Connection>) {
    let (came, coming) = mpsc::channel(64);
    let guest = Guest::that(move |knock| {
        let came = came.clone();
        tokio::spawn(async move {
            if let Ok((Service::Sync, connection)) = knock.accept(|_, _| true).await {
                let _ = came.send(connection).await;
            }
        });
    });
    (guest.await, coming)
}

/// The next session that a door begins with the guest.
pub(super) async fn next(coming: &mut mpsc::Receiver<Connection>, line: Line) -> Talk {
    let connection = soon("a door dials", coming.recv()).await;
    Talk::answer(connection.expect("the guest is there"), line).await
}

pub(super) async fn live(talk: &mut Talk) {
    assert!(goes_live(talk).await, "the session has ended");
}

/// False if the door ends the session: no quorum has told it in time what the group holds.
async fn goes_live(talk: &mut Talk) -> bool {
    talk.say(&[Message::Have(Heights::new()), Message::Done])
        .await;
    let Some(heard) = talk.hear().await else {
        return false;
    };
    assert!(matches!(heard, Message::Have(_)), "{heard:?}");
    assert_eq!(talk.hear().await, Some(Message::Done));
    true
}

/// The live session in which the door serves the guest. What a peer does is done: it tries again
/// where it is not told in time, and where no quorum has agreed in time that it is served here, the
/// door dials it, if it lets doors in.
pub(super) async fn served(
    guest: &Guest,
    door: &Sync,
    line: Line,
    mut coming: Option<&mut mpsc::Receiver<Connection>>,
) -> Talk {
    let mut talk = guest.talk(door, line).await;
    loop {
        if goes_live(&mut talk).await {
            tokio::select! {
                () = until("it serves it", || serves(door, guest)) => return talk,
                heard = talk.hear() => assert_eq!(heard, Some(Message::Close)),
            }
            if let Some(coming) = &mut coming {
                talk = next(coming, line).await;
                continue;
            }
        }
        talk = guest.talk(door, line).await;
    }
}

fn serves(door: &Sync, guest: &Guest) -> bool {
    let peers = door.status().peers;
    peers.iter().any(|it| {
        let here = it.server == Some(door.shared().here());
        it.peer == guest.id() && here && it.state == PeerState::Live
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_that_falls_silent_is_taken_over_though_its_member_is_bonded() {
    let line = Line::V07;
    let house = House::of(3).await;
    let first = house.door(0, quick()).await;
    let second = house.door(1, quick()).await;
    let (guest, mut coming) = open_guest().await;
    let _talk = served(&guest, &first, line, Some(&mut coming)).await;
    let elsewhere = || second.shared().is_served_elsewhere(guest.id());
    until("the second one knows", elsewhere).await;
    // It beats: nobody takes over while it does.
    tokio::time::sleep(quick().silence * 2).await;
    assert!(elsewhere() && coming.try_recv().is_err());
    // Its tasks end without a word, as if they hung; the bond stands.
    first.shared().stop.cancel();
    let mut talk = next(&mut coming, line).await;
    live(&mut talk).await;
    until("the second one serves it", || serves(&second, &guest)).await;
    let mut ada = Writer::new(1, topic(line), line);
    house.append(ada.many(1)).await;
    assert!(matches!(talk.hear().await, Some(Message::Live { .. })));
    first.stop().await;
    second.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_session_of_a_peer_is_told_what_we_hold_and_closed() {
    for line in Line::ALL {
        let house = House::of(1).await;
        let door = house.door(0, quick()).await;
        let guest = Guest::new().await;
        let mut first = served(&guest, &door, line, None).await;
        // Its words come in one packet, before ours.
        let mut second = guest.talk(&door, line).await;
        live(&mut second).await;
        assert_eq!(second.hear().await, Some(Message::Close));
        second.finish();
        assert_eq!(second.hear().await, None);
        // The first one goes on.
        let mut ada = Writer::new(1, topic(line), line);
        house.append(ada.many(1)).await;
        assert!(matches!(first.hear().await, Some(Message::Live { .. })));
        door.stop().await;
        guest.close().await;
        house.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_that_closes_in_good_order_is_taken_over_at_once() {
    let line = Line::V06;
    let house = House::of(2).await;
    // Silence would take minutes.
    let slow = Patience {
        silence: Duration::from_secs(600),
        ..Patience::default()
    };
    let first = house.door(0, slow).await;
    let second = house.door(1, slow).await;
    let (guest, mut coming) = open_guest().await;
    let _talk = served(&guest, &first, line, Some(&mut coming)).await;
    first.stop().await;
    let mut talk = next(&mut coming, line).await;
    live(&mut talk).await;
    until("the second one serves it", || serves(&second, &guest)).await;
    second.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_finds_one_door_finds_them_all() {
    let house = House::of(2).await;
    let doors = [
        house.door(0, Patience::default()).await,
        house.door(1, Patience::default()).await,
    ];
    let ids = doors.each_ref().map(Sync::id);
    for (door, other) in [(&doors[0], ids[1]), (&doors[1], ids[0])] {
        until("it has heard of the other", || {
            door.shared().doors.is_door(other)
        })
        .await;
        let members: Vec<_> = door.ticket().members().iter().map(|it| it.peer()).collect();
        assert_eq!(members, [door.id(), other]);
        for line in Line::ALL {
            let infos = door.shared().other_infos(line);
            assert!(infos.contains_key(&other), "stock nodes are told of it");
        }
    }
    // Members are no peers of each other: they have the logs by themselves.
    doors[0].add_peer(doors[1].addr());
    assert!(doors[0].status().peers.is_empty());
    // One that was removed is told of no more, whatever it has said.
    let removing = house.logs[0].group().remove(house.logs[1].group().member());
    soon("the removal", removing)
        .await
        .expect("a quorum is there");
    for line in Line::ALL {
        let told = || !doors[0].shared().other_infos(line).is_empty();
        until("it is not told of", || !told()).await;
    }
    let notes = house.logs[0].notes(b"sync/door/").expect("readable");
    assert_eq!(notes.len(), 2, "what it has said is still there");
    for door in &doors {
        door.stop().await;
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_another_member_serves_is_told_what_is_held_and_no_more() {
    let line = Line::V07;
    let house = House::of(2).await;
    let doors = [
        house.door(0, Patience::default()).await,
        house.door(1, Patience::default()).await,
    ];
    house
        .append(Writer::new(1, topic(line), line).many(5))
        .await;
    let guest = Guest::new().await;
    let mut first = guest.talk(&doors[0], line).await;
    first.have_nothing().await;
    let elsewhere = || doors[1].shared().is_served_elsewhere(guest.id());
    until("the second one knows", elsewhere).await;
    let mut second = guest.talk(&doors[1], line).await;
    assert_eq!(second.have_nothing().await.len(), 1);
    second.say(&[Message::Done]).await;
    assert_eq!(operations(&second.leave().await), 0);
    drop(first);
    for door in &doors {
        door.stop().await;
    }
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_that_was_closed_by_its_handle_is_opened_again() {
    let house = House::of(1).await;
    let options = || SyncOptions {
        bind: vec![([127, 0, 0, 1], 0).into()],
        ..SyncOptions::default()
    };
    let (node, logs) = (&house.nodes[0], &house.logs[0]);
    let first = node.serve_sync(logs, options()).await.expect("it opens");
    first.stop().await;
    let second = node.serve_sync(logs, options()).await.expect("it opens");
    let guest = Guest::new().await;
    let mut talk = guest.talk(&second, Line::V07).await;
    live(&mut talk).await;
    drop(talk);
    guest.close().await;
    house.close().await;
}
