//! What was committed before a subscription, and when it has been delivered.

use std::time::Duration;

use quorate::{
    config::Config,
    log_store::LogStore,
    streams::{Acknowledge, StreamEvent, StreamFrom},
};

use super::{chat_of, committed, event, from_start, opened, say_many, subscribed, texts, topic};
use crate::cluster::{Place, Resting, group_at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_nothing_begins_and_ends() {
    let (_members, chats) = chat_of(2).await;
    let from = [
        StreamFrom::Start,
        StreamFrom::Frontier,
        StreamFrom::cursor("reader"),
        StreamFrom::Number(7),
    ];
    for from in from {
        let wanted = if from == StreamFrom::Number(7) { 7 } else { 0 };
        let mut inbox = subscribed(&chats[1], from, Acknowledge::Explicit).await;
        let told = event(&mut inbox).await;
        assert!(
            matches!(told, StreamEvent::ReplayStarted { from, until }
                if (from, until) == (wanted, wanted)),
            "{told:?}"
        );
        let told = event(&mut inbox).await;
        assert!(matches!(told, StreamEvent::ReplayEnded), "{told:?}");
    }
}

/// A member that was away subscribes before it has heard of what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_ends_behind_what_a_lagging_member_did_not_know_at_its_start() {
    let config = Config {
        query_timeout: Duration::from_secs(2),
        ..Config::default()
    };
    let mut members = group_at::<LogStore>(vec![Place::MEMORY; 3], &config).await;
    let chats = opened(&members).await;
    committed(say_many(&chats[0], texts("before", 3)).await).await;
    members[2].group.ready().await.expect("it runs");
    let away = members.pop().expect("the third").rest().await;
    committed(say_many(&chats[0], texts("meanwhile", 500)).await).await;
    drop(chats);
    let mut down = Vec::new();
    for member in members {
        down.push(member.rest().await);
    }

    let lagging = away.start::<LogStore>().await;
    let mut inbox = from_start(&lagging.group.topic(topic())).await;
    let told = event(&mut inbox).await;
    assert!(
        matches!(told, StreamEvent::ReplayStarted { from: 0, until: 3 }),
        "{told:?}"
    );
    for _ in 0..3 {
        let told = event(&mut inbox).await;
        assert!(matches!(told, StreamEvent::Message(_)), "{told:?}");
    }
    let told = event(&mut inbox).await;
    assert!(
        matches!(told, StreamEvent::ReplayDelayed { .. }),
        "{told:?}"
    );
    let starting = down.into_iter().map(Resting::start::<LogStore>);
    let starting = futures_util::future::join_all(starting);
    let catching_up = async {
        let mut heard = 0;
        loop {
            match event(&mut inbox).await {
                StreamEvent::Message(received) => {
                    assert_eq!(received.number, 3 + heard);
                    heard += 1;
                }
                StreamEvent::ReplayEnded => return heard,
                told => panic!("{told:?}"),
            }
        }
    };
    let (_back, heard) = tokio::join!(starting, catching_up);
    assert_eq!(heard, 500);
}
