//! Messages that their consumer refuses: they come again, not for ever, and are not lost.

use std::{collections::BTreeMap, time::Duration};

use quorate::{
    log_store::LogStore,
    streams::{
        AckError, Acknowledge, Received, Redelivery, StreamEvent, StreamFrom, Subscription,
        TopicStream,
    },
};

use super::{chat_of, committed, event, heard, say, say_many, subscribed, texts, topic};
use crate::cluster::within;

const QUICK: Redelivery = Redelivery {
    attempts_max: 3,
    pause_min: Duration::from_millis(20),
    pause_max: Duration::from_millis(30),
};

async fn reader(chat: &TopicStream, acknowledge: Acknowledge) -> Subscription<String> {
    let subscribed = subscribed(chat, StreamFrom::cursor("reader"), acknowledge).await;
    subscribed.with_redelivery(QUICK)
}

async fn known(inbox: &Subscription<String>) {
    let flushed = within("the group knows", inbox.flush()).await;
    flushed.expect("it is held");
}

/// The first message that a new consumer gets.
async fn first(chat: &TopicStream) -> Received<String> {
    heard(&mut reader(chat, Acknowledge::Explicit).await).await
}

/// The next failure: its number, attempts and reason. Messages before it are refused.
async fn failure(inbox: &mut Subscription<String>) -> (Received<()>, u32, String) {
    loop {
        match event(inbox).await {
            StreamEvent::Message(received) => received.nack("still not").expect("it is held"),
            StreamEvent::ProcessingFailed {
                received,
                attempts,
                why,
            } => return (received, attempts, why),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_comes_again_and_the_others_meanwhile() {
    let (_members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("me", 6)).await).await;
    for from in [StreamFrom::Start, StreamFrom::cursor("reader")] {
        let counted = from != StreamFrom::Start;
        let inbox = subscribed(&chats[0], from, Acknowledge::Explicit).await;
        let mut inbox = inbox.with_redelivery(QUICK);
        let mut order = Vec::new();
        // The second and the fourth are taken the third and the second time.
        let taken_at = BTreeMap::from([(1, 3), (3, 2)]);
        while order.len() < 9 {
            let received = heard(&mut inbox).await;
            assert_eq!(received.message, format!("me/{}", received.number));
            order.push((received.number, received.attempt));
            let wanted = taken_at.get(&received.number).copied().unwrap_or(1);
            if received.attempt < wanted {
                received.nack("not yet").expect("it is held");
            } else {
                received.ack().expect("it is held");
            }
        }
        let firsts: Vec<u64> = order.iter().filter(|it| it.1 == 1).map(|it| it.0).collect();
        assert_eq!(firsts, [0, 1, 2, 3, 4, 5]);
        order.retain(|it| it.1 > 1);
        order.sort_unstable();
        assert_eq!(order, [(1, 2), (1, 3), (3, 2)]);
        known(&inbox).await;
        drop(inbox);
        if counted {
            let next = say(&chats[0], "next").await;
            assert_eq!(first(&chats[0]).await.number, next.number);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_too_often_is_told_and_is_not_acknowledged() {
    for acknowledge in [Acknowledge::Explicit, Acknowledge::Automatic] {
        let (mut members, mut chats) = chat_of(1).await;
        committed(say_many(&chats[0], texts("me", 3)).await).await;
        let mut inbox = reader(&chats[0], acknowledge).await;
        let mut failed = Vec::new();
        for _ in 0..3 {
            let (received, attempts, why) = failure(&mut inbox).await;
            assert_eq!((attempts, received.attempt), (3, 3));
            assert_eq!(why, "still not");
            received.nack("too late").expect("it is held");
            failed.push(received);
        }
        failed.sort_by_key(|it| it.number);
        assert!(failed.iter().map(|it| it.number).eq(0..3));
        // The second and the third are given up; the first one holds the cursor.
        for received in &failed[1..] {
            received.ack().expect("it is held");
        }
        say(&chats[0], "next").await;
        let next = heard(&mut inbox).await;
        assert_eq!(next.message, "next", "nothing comes more often than that");
        next.ack().expect("it is held");
        known(&inbox).await;
        drop((inbox, failed, next));
        chats.clear();
        let member = members.remove(0).rest().await.start::<LogStore>().await;
        let chat = member.group.topic(topic());
        let mut inbox = reader(&chat, Acknowledge::Explicit).await;
        let again = heard(&mut inbox).await;
        assert_eq!((again.number, again.attempt), (0, 1), "it counts anew");
        again.ack().expect("it is held");
        known(&inbox).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_the_next_event_does_not_acknowledge_what_was_refused() {
    let (_members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("me", 3)).await).await;
    let inbox = reader(&chats[0], Acknowledge::Automatic).await;
    // It is not due while this test looks.
    let mut inbox = inbox.with_redelivery(Redelivery {
        pause_min: Duration::from_secs(3_600),
        pause_max: Duration::from_secs(3_600),
        ..QUICK
    });
    heard(&mut inbox).await;
    let refused = heard(&mut inbox).await;
    refused.nack("no").expect("it is held");
    heard(&mut inbox).await.ack().expect("it is held");
    known(&inbox).await;
    drop(inbox);
    assert_eq!(first(&chats[0]).await.number, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_ends_the_matter_whenever_it_comes() {
    let (_members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("me", 4)).await).await;
    let mut inbox = reader(&chats[0], Acknowledge::Explicit).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(heard(&mut inbox).await);
    }
    // Refused, and taken all the same before it is due; and the other way round.
    all[0].nack("no").expect("it is held");
    all[0].ack().expect("it is held");
    all[1].ack().expect("it is held");
    all[1].nack("no").expect("it is held");
    // Of two clones one refuses, and a late one refuses a delivery that is over.
    all[2].clone().nack("no").expect("it is held");
    let again = heard(&mut inbox).await;
    assert_eq!((again.number, again.attempt), (2, 2));
    all[2].nack("of the first delivery").expect("it is held");
    again.ack().expect("it is held");
    all[3].ack().expect("it is held");
    let next = say(&chats[0], "next").await;
    let received = heard(&mut inbox).await;
    assert_eq!((received.number, received.attempt), (next.number, 1));
    known(&inbox).await;
    drop(inbox);
    assert_eq!(first(&chats[0]).await.number, next.number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pruned_after_it_was_refused_does_not_come_again() {
    let (_members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("me", 2)).await).await;
    let inbox = reader(&chats[0], Acknowledge::Explicit).await;
    let mut inbox = inbox.with_redelivery(Redelivery {
        pause_min: Duration::from_secs(3),
        pause_max: Duration::from_secs(3),
        ..QUICK
    });
    for _ in 0..2 {
        heard(&mut inbox).await.nack("no").expect("it is held");
    }
    let pruning = chats[0].prune(Some("state")).await.expect("signed");
    let state = within("the commit", pruning).await.expect("published");
    let received = heard(&mut inbox).await;
    assert_eq!(received.number, state.number);
    received.ack().expect("it is held");
    // Once the others are due the cursor passes them.
    let pass = async {
        loop {
            tokio::select! {
                told = inbox.next() => panic!("{told:?}"),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            let cursors = chats[0].cursors().await.expect("a quorum");
            if cursors[0].next == state.number + 1 {
                return;
            }
        }
    };
    within("the cursor passes", pass).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_after_a_takeover_errs() {
    let (members, chats) = chat_of(2).await;
    say(&chats[0], "one").await;
    let mut former = reader(&chats[0], Acknowledge::Explicit).await;
    let received = heard(&mut former).await;
    assert_eq!(first(&chats[1]).await.number, received.number);
    let taken_over = AckError::TakenOver {
        by: members[1].id(),
    };
    let ended = async { while former.next().await.is_ok() {} };
    within("it ends", ended).await;
    assert_eq!(received.nack("no"), Err(taken_over));
}
