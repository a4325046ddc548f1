//! A member serves from what the group holds, or not at all.

use futures_util::StreamExt;

use super::{
    super::Patience,
    doors::served,
    guest::{Guest, House, soon, topic, until},
};
use crate::{
    log_store::{Heights, Line, mint::Writer},
    sync::codec::Message,
};

/// Three members, all of which vote.
async fn three() -> House {
    let house = House::of(3).await;
    let group = house.logs[0].group();
    let mut status = group.watch_status();
    soon("three vote", status.wait_for(|it| it.voters() == 3)).await;
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_door_ends_its_sessions_takes_none_and_says_so() {
    let line = Line::V07;
    let mut house = three().await;
    let door = house.door(0, Patience::default()).await;
    let guest = Guest::new().await;
    let mut talk = served(&guest, &door, line, None).await;
    let disk = house.stop(1).await;
    house.stop(2).await;
    until("it says so", || !door.status().serving).await;
    while talk.hear().await.is_some() {}
    until("no session is left", || door.status().sessions == 0).await;
    assert!(!guest.is_let_in(&door, line).await);
    assert!(!door.status().serving);

    house.start(1, disk).await;
    until("it serves again", || door.status().serving).await;
    assert!(guest.is_let_in(&door, line).await);
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lags_says_what_the_group_holds_and_never_what_it_held() {
    const MISSED: usize = 10_000;
    let line = Line::V07;
    let mut house = three().await;
    let mut writer = Writer::new(1, topic(line), line);
    house.append(writer.many(10)).await;
    let disk = house.stop(2).await;
    let appending = house.logs[0].append_many(topic(line), writer.many(MISSED));
    let appended = soon("the appends", appending.count()).await;
    assert_eq!(appended, MISSED);

    // It serves as soon as it reaches the others, long before it has what it missed.
    house.start(2, disk).await;
    let door = house.door(2, Patience::default()).await;
    let behind = house.logs[2].heights_local(topic(line)).expect("readable");
    let lags = behind != house.heights(line).await;
    println!("when it begins to serve it lags: {lags}");
    let guest = Guest::new().await;
    let held = loop {
        let mut talk = guest.talk(&door, line).await;
        talk.say(&[Message::Have(Heights::new())]).await;
        match talk.hear().await {
            Some(Message::Have(held)) => break held,
            // It does not know yet: no answer is no wrong one.
            None => {}
            other => panic!("no Have but {other:?}"),
        }
    };
    assert_eq!(held, house.heights(line).await);
    door.stop().await;
    guest.close().await;
    house.close().await;
}
