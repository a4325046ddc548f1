//! Topics in which peers catch up, and no more.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    super::{Patience, PeerState, Sync, SyncOptions},
    doors::{live, next, open_guest},
    guest::{Guest, House, Talk, operations, soon, topic},
};
use crate::{
    log_store::{Heights, Line, mint::Writer},
    sync::{
        Admission,
        codec::Message,
        wire::{Knock, Membership, Neighbour, Service},
    },
};

async fn door(house: &House) -> Sync {
    let options = SyncOptions {
        bind: vec![([127, 0, 0, 1], 0).into()],
        ask_again: Duration::from_secs(1),
        ..SyncOptions::default()
    };
    house.door_with(0, Patience::default(), options).await
}

/// Says that we hold this and have nothing to give; what the door has said when it closes.
async fn catches_up(talk: Talk, holds: Heights) -> Vec<Message> {
    let heard = tries_to_catch_up(talk, holds).await;
    heard.expect("it ends with a Close")
}

/// The same; none where the session ended otherwise.
async fn tries_to_catch_up(mut talk: Talk, holds: Heights) -> Option<Vec<Message>> {
    talk.say(&[Message::Have(holds), Message::Done]).await;
    let mut heard = Vec::new();
    while heard.last() != Some(&Message::Close) {
        heard.push(talk.hear().await?);
    }
    talk.finish();
    assert_eq!(talk.hear().await, None, "nothing follows");
    talk.connection.close("done");
    Some(heard)
}

async fn where_peers_catch_up_only(line: Line) {
    let house = House::of(1).await;
    house
        .admit(line, Admission::everyone().catch_up_only())
        .await;
    let mut ada = Writer::new(1, topic(line), line);
    house.append(ada.many(5)).await;
    let door = door(&house).await;
    let (guest, mut coming) = open_guest().await;
    let heard = catches_up(guest.talk(&door, line).await, Heights::new()).await;
    assert_eq!(operations(&heard), 5);

    // It is dialled. With nothing to say the door ends the session too, after what it is given.
    let mut ben = Writer::new(2, topic(line), line);
    let given = ben.many(3);
    let mut talk = next(&mut coming, line).await;
    talk.say(&[
        Message::Have(house.heights(line).await),
        Message::PreSync {
            operations: 3,
            bytes: given.iter().map(|it| it.bytes()).sum(),
        },
    ])
    .await;
    for operation in &given {
        let (header, body) = (operation.header().clone(), operation.body().cloned());
        talk.say(&[Message::Operation { header, body }]).await;
    }
    talk.say(&[Message::Done]).await;
    let words = [talk.hear().await, talk.hear().await, talk.hear().await];
    let [
        Some(Message::Have(_)),
        Some(Message::Done),
        Some(Message::Close),
    ] = words
    else {
        panic!("it said {words:?}");
    };
    talk.finish();
    assert_eq!(talk.hear().await, None);
    talk.connection.close("done");
    let mut status = door.watch_status();
    let caught_up = status.wait_for(|it| {
        assert!(it.peers.iter().all(|it| it.state != PeerState::Live));
        let of = it.peers.iter().find(|it| it.peer == guest.id());
        of.is_some_and(|it| it.appended == 3 && it.last_success.is_some() && it.is_complete())
    });
    soon("the status", caught_up)
        .await
        .expect("the door is open");

    // What is new comes with the next session, and that comes by itself.
    let held = house.heights(line).await;
    house.append(ada.many(2)).await;
    let heard = catches_up(next(&mut coming, line).await, held).await;
    assert_eq!(operations(&heard), 2);
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_peers_catch_up_only_sessions_end_and_begin_again_on_line_0_6() {
    where_peers_catch_up_only(Line::V06).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_peers_catch_up_only_sessions_end_and_begin_again_on_line_0_7() {
    where_peers_catch_up_only(Line::V07).await;
}

/// A guest that lets every knock in.
async fn sociable() -> Guest {
    let guest = Guest::that(|knock: Knock| {
        tokio::spawn(async move {
            match knock.accept(|_, _| true).await {
                Ok((Service::Gossip, _)) | Err(_) => {}
                Ok((_, connection)) => connection.close("not now"),
            }
        });
    });
    guest.await
}

async fn met(overlay: &mut Membership, met: Neighbour) {
    let meeting = async { while overlay.next().await.expect("it goes on") != met {} };
    soon("the overlay", meeting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_goes_over_to_catching_up_and_back() {
    let line = Line::V07;
    let house = House::of(1).await;
    let door = door(&house).await;
    let guest = sociable().await;
    let mut overlay = guest.join_with(&door, line).await;
    met(&mut overlay, Neighbour::Up(door.id())).await;
    let mut talk = guest.talk(&door, line).await;
    live(&mut talk).await;
    let channel = door.channel(topic(line)).expect("it is open");

    // Its live sessions end, and so does its part in gossip of either kind.
    let catch_up = Admission::everyone().catch_up_only();
    house.admit(line, catch_up).await;
    while talk.hear().await.is_some() {}
    met(&mut overlay, Neighbour::Down(door.id())).await;
    soon("its messages", channel.over()).await;
    assert!(door.channel(topic(line)).is_none());
    // The first ones may still be judged by what was before, and end with that.
    loop {
        let talk = guest.talk(&door, line).await;
        if tries_to_catch_up(talk, Heights::new()).await.is_some() {
            break;
        }
    }

    house.admit(line, Admission::everyone()).await;
    // As before.
    let mut ada = Writer::new(1, topic(line), line);
    let mut talk = loop {
        let mut talk = guest.talk(&door, line).await;
        let holds = house.heights(line).await;
        talk.say(&[Message::Have(holds), Message::Done]).await;
        let answer = [talk.hear().await, talk.hear().await];
        if !matches!(answer, [Some(Message::Have(_)), Some(Message::Done)]) {
            continue;
        }
        house.append(ada.many(1)).await;
        if let Some(Message::Live { .. }) = talk.hear().await {
            break talk;
        }
    };
    // The door is back in the overlay a moment later, and asks nobody in whom it did not meet.
    let back = async {
        loop {
            let invited = overlay.invite(&[door.id()]).await;
            invited.expect("gossip is open");
            let meeting = met(&mut overlay, Neighbour::Up(door.id()));
            if timeout(Duration::from_secs(1), meeting).await.is_ok() {
                break;
            }
        }
    };
    soon("the overlay", back).await;
    talk.finish();
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_opened_for_catching_up_is_in_no_overlay_from_the_start() {
    let line = Line::V06;
    let house = House::of(1).await;
    house
        .admit(line, Admission::everyone().catch_up_only())
        .await;
    let door = door(&house).await;
    let guest = sociable().await;
    let mut overlay = guest.join_with(&door, line).await;
    let mut other = guest.join_with(&door, Line::V07).await;
    // In the other topic they meet, so this one had its time.
    met(&mut other, Neighbour::Up(door.id())).await;
    let met = timeout(Duration::from_millis(500), overlay.next()).await;
    assert!(met.is_err(), "{met:?}");
    door.stop().await;
    guest.close().await;
    house.close().await;
}
