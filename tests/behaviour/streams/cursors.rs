//! What is acknowledged, and who says so.

use quorate::{
    log_store::{LogStore, Topic},
    streams::{
        AckError, Acknowledge, CursorName, StreamError, StreamEvent, StreamFrom, SubscribeError,
        Subscription, UNACKNOWLEDGED_MAX,
    },
};

use super::{
    chat_of, committed, event, heard, heard_many, say, say_many, subscribed, texts, topic,
};
use crate::cluster::within;

/// What a subscription ends with.
async fn end(subscription: &mut Subscription<String>) -> StreamError {
    loop {
        if let Err(error) = subscription.next().await {
            return error;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_is_delivered_again_after_a_restart() {
    for from in [StreamFrom::Frontier, StreamFrom::cursor("reader")] {
        let (mut members, mut chats) = chat_of(1).await;
        committed(say_many(&chats[0], texts("me", 10)).await).await;
        let mut inbox = subscribed(&chats[0], from.clone(), Acknowledge::Explicit).await;
        let mut received = Vec::new();
        for _ in 0..8 {
            received.push(heard(&mut inbox).await);
        }
        // Out of order, and not the fifth: 4 is where the next one begins.
        for n in [7, 2, 0, 1, 3, 5] {
            received[n].ack().expect("it is held");
        }
        within("the group knows", inbox.flush())
            .await
            .expect("it is held");
        drop((inbox, received));
        chats.clear();
        let member = members.remove(0).rest().await.start::<LogStore>().await;
        let chat = member.group.topic(topic());
        let mut inbox = subscribed(&chat, from, Acknowledge::Explicit).await;
        let again = heard_many(&mut inbox, 6).await;
        let wanted: Vec<_> = (4..10).map(|n| (n, format!("me/{n}"))).collect();
        assert_eq!(again, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn automatic_acknowledgement_follows_the_next_question() {
    let (_members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("me", 5)).await).await;
    let reader = StreamFrom::cursor("reader");
    for (count, begins) in [(3, 0), (1, 2), (1, 2)] {
        let mut inbox = subscribed(&chats[0], reader.clone(), Acknowledge::Automatic).await;
        let heard = heard_many(&mut inbox, count).await;
        assert_eq!(heard[0].0, begins);
        // The last one is worked on, and not worked off.
        within("the group knows", inbox.flush())
            .await
            .expect("it is held");
    }
    let mut inbox = subscribed(&chats[0], reader.clone(), Acknowledge::Automatic).await;
    heard(&mut inbox).await.ack().expect("it is held");
    within("the group knows", inbox.flush())
        .await
        .expect("it is held");
    let mut inbox = subscribed(&chats[0], reader, Acknowledge::Automatic).await;
    assert_eq!(heard(&mut inbox).await.number, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_moves_to_another_member_and_the_former_one_ends() {
    let (members, chats) = chat_of(3).await;
    committed(say_many(&chats[0], texts("me", 30)).await).await;
    let reader = StreamFrom::cursor("reader");
    let mut former = subscribed(&chats[0], reader.clone(), Acknowledge::Explicit).await;
    let mut unacknowledged = Vec::new();
    for n in 0..20 {
        let received = heard(&mut former).await;
        if n < 10 {
            received.ack().expect("it is held");
        } else {
            unacknowledged.push(received);
        }
    }
    within("the group knows", former.flush())
        .await
        .expect("it is held");
    let mut newer = subscribed(&chats[2], reader.clone(), Acknowledge::Explicit).await;
    assert_eq!(heard(&mut newer).await.number, 10);
    // The former one still hears what it has read, and is then told.
    let taken_over = AckError::TakenOver {
        by: members[2].id(),
    };
    match within("it ends", end(&mut former)).await {
        StreamError::Ack(error) => assert_eq!(error, taken_over),
        other => panic!("{other:?}"),
    }
    for received in &unacknowledged {
        assert_eq!(received.ack(), Err(taken_over.clone()));
    }
    assert_eq!(former.flush().await, Err(taken_over));
    // Its late acknowledgements changed nothing.
    drop(newer);
    let mut third = subscribed(&chats[1], reader, Acknowledge::Explicit).await;
    assert_eq!(heard(&mut third).await.number, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_that_comes_after_a_takeover_errs() {
    let (members, chats) = chat_of(3).await;
    committed(say_many(&chats[0], texts("me", 3)).await).await;
    let reader = StreamFrom::cursor("reader");
    let mut former = subscribed(&chats[0], reader.clone(), Acknowledge::Explicit).await;
    let received = heard(&mut former).await;
    let _newer = subscribed(&chats[1], reader, Acknowledge::Explicit).await;
    // Whether or not the first member has heard of it by now.
    let told = match received.ack() {
        Ok(()) => within("it is told", former.flush()).await,
        told => told,
    };
    assert_eq!(
        told,
        Err(AckError::TakenOver {
            by: members[1].id()
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_under_way_does_not_take_the_cursor_back() {
    let (members, chats) = chat_of(3).await;
    say(&chats[0], "one").await;
    let mut late = 0;
    for round in 0..60 {
        let reader = StreamFrom::cursor(format!("reader {round}"));
        let former = subscribed(&chats[round % 3], reader.clone(), Acknowledge::Explicit);
        let mut former = former.await;
        heard(&mut former).await.ack().expect("it is held");
        let newer = &chats[(round + 1) % 3];
        let (told, mut newer) = tokio::join!(
            former.flush(),
            subscribed(newer, reader, Acknowledge::Explicit)
        );
        late += usize::from(told.is_err());
        // It begins behind what the former one was told, and nothing is taken from it.
        say(&chats[0], "more").await;
        let received = heard(&mut newer).await;
        assert!(told.is_err() || received.number > 0, "it was acknowledged");
        received.ack().expect("it is held");
        let flushed = within("the group knows", newer.flush()).await;
        assert_eq!(flushed, Ok(()), "round {round}");
    }
    println!("{late} of 60 came too late");
    drop(members);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_are_written_together() {
    let (members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("me", 1_000)).await).await;
    let reader = StreamFrom::cursor("reader");
    let mut inbox = subscribed(&chats[0], reader, Acknowledge::Automatic).await;
    // What is applied, not the status: that is told a little later.
    let before = members[0].group.view().0.index;
    let start = std::time::Instant::now();
    heard_many(&mut inbox, 1_000).await;
    within("the group knows", inbox.flush())
        .await
        .expect("it is held");
    let written = members[0].group.view().0.index - before;
    let tenths = start.elapsed().as_millis() as u64 / 100;
    assert!(written <= 3 + tenths, "{written} entries in {tenths}/10 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_of_a_name_and_members_frontiers_are_apart() {
    let (_members, chats) = chat_of(2).await;
    say(&chats[0], "one").await;
    let all = [
        (0, StreamFrom::cursor("a")),
        (0, StreamFrom::cursor("b")),
        (0, StreamFrom::Frontier),
        (1, StreamFrom::Frontier),
    ];
    for (at, from) in all {
        let mut inbox = subscribed(&chats[at], from, Acknowledge::Automatic).await;
        assert_eq!(heard(&mut inbox).await.number, 0);
        within("the group knows", inbox.flush())
            .await
            .expect("it is held");
    }
    for name in ["", &"x".repeat(201)] {
        let from = StreamFrom::cursor(name);
        let refused = chats[0].subscribe::<String>(from, Acknowledge::Automatic);
        let refused = refused.await.expect_err("no such name");
        assert!(matches!(refused, SubscribeError::CursorName), "{refused}");
    }
    // A name that is forgotten begins at the start, and its holder ends.
    let from = StreamFrom::cursor("a");
    let mut inbox = subscribed(&chats[0], from.clone(), Acknowledge::Automatic).await;
    chats[1].forget_cursor("a").await.expect("forgotten");
    let ended = within("it ends", end(&mut inbox)).await;
    assert!(
        matches!(ended, StreamError::Ack(AckError::Forgotten)),
        "{ended}"
    );
    let mut inbox = subscribed(&chats[0], from, Acknowledge::Automatic).await;
    assert_eq!(heard(&mut inbox).await.number, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_more_comes_behind_too_many_that_are_not_acknowledged() {
    let (_members, chats) = chat_of(1).await;
    let count = UNACKNOWLEDGED_MAX + 10;
    committed(say_many(&chats[0], texts("me", count)).await).await;
    let from = StreamFrom::cursor("reader");
    let mut inbox = subscribed(&chats[0], from, Acknowledge::Explicit).await;
    let first = heard(&mut inbox).await;
    for _ in 1..UNACKNOWLEDGED_MAX {
        heard(&mut inbox).await.ack().expect("it is held");
    }
    let told = event(&mut inbox).await;
    assert!(
        matches!(told, StreamEvent::Unacknowledged { oldest: 0 }),
        "{told:?}"
    );
    let waits = tokio::time::timeout(std::time::Duration::from_millis(50), inbox.next());
    assert!(waits.await.is_err(), "more came");
    first.ack().expect("it is held");
    for number in UNACKNOWLEDGED_MAX..count {
        assert_eq!(heard(&mut inbox).await.number, number as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_are_listed_and_removed_also_those_of_members_that_are_gone() {
    let (mut members, mut chats) = chat_of(3).await;
    committed(say_many(&chats[0], texts("me", 5)).await).await;
    // Of another topic, which is not listed with these.
    let other = members[0].group.topic(Topic::named("other"));
    let _other = subscribed(
        &other,
        StreamFrom::cursor("elsewhere"),
        Acknowledge::Explicit,
    )
    .await;
    let (author, left) = (chats[2].author(), members[2].id());
    let consumers = [
        (0, StreamFrom::cursor("reader"), 1),
        (1, StreamFrom::cursor("ärger"), 2),
        (2, StreamFrom::Frontier, 3),
    ];
    for (at, from, count) in consumers {
        let mut inbox = subscribed(&chats[at], from, Acknowledge::Explicit).await;
        for _ in 0..count {
            heard(&mut inbox).await.ack().expect("it is held");
        }
        within("the group knows", inbox.flush())
            .await
            .expect("it is held");
    }
    let frontier = CursorName::Frontier(author);
    let wanted = [
        (frontier.clone(), 3, left),
        ("reader".into(), 1, members[0].id()),
        ("ärger".into(), 2, members[1].id()),
    ];
    for chat in &chats {
        let cursors = within("a list", chat.cursors()).await.expect("a quorum");
        let cursors: Vec<_> = cursors
            .into_iter()
            .map(|it| (it.name, it.next, it.member))
            .collect();
        assert_eq!(cursors, wanted);
    }
    // The third member leaves, and its cursor stays until it is removed.
    chats.pop();
    let leaving = members.pop().expect("the third");
    within("it leaves", leaving.group.leave())
        .await
        .expect("left");
    let cursors = within("a list", chats[0].cursors()).await;
    let cursors = cursors.expect("a quorum");
    let present = |it| members.iter().any(|member| member.id() == it);
    let gone: Vec<_> = cursors.iter().filter(|it| !present(it.member)).collect();
    assert_eq!(gone.len(), 1);
    let forgotten = chats[1].forget_cursor(gone[0].name.clone());
    within("it is removed", forgotten).await.expect("a quorum");
    // Once more: nothing is there.
    let forgotten = chats[0].forget_cursor(author);
    within("it is removed", forgotten).await.expect("a quorum");
    let cursors = within("a list", chats[0].cursors()).await;
    let names: Vec<_> = cursors
        .expect("a quorum")
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(names, ["reader".into(), "ärger".into()]);
}
