//! Messages that are signed and not kept.

use std::net::SocketAddr;

use quorate::{
    log_store::LogStore,
    streams::{EphemeralPublishError, EphemeralStream, TopicStream},
    sync::{Sync, SyncOptions},
};

use super::{chat_of, topic};
use crate::cluster::{Member, within};

async fn door(member: &Member<LogStore>) -> Sync {
    let options = SyncOptions {
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        ..SyncOptions::default()
    };
    let logs = member.group.logs();
    let opened = member.node.serve_sync(&logs, options);
    within("a door", opened).await.expect("it opens")
}

fn presence<M>(chat: &TopicStream, door: &Sync) -> EphemeralStream<M> {
    chat.ephemeral(door).expect("the topic is open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_a_door_hear_each_other() {
    let (members, chats) = chat_of(3).await;
    let mut doors = Vec::new();
    for member in &members {
        doors.push(door(member).await);
    }
    let mut all: Vec<EphemeralStream<String>> = chats
        .iter()
        .zip(&doors)
        .map(|(chat, door)| presence(chat, door))
        .collect();
    // Three doors that all know each other.
    for one in &all {
        within("it meets somebody", one.met()).await.expect("open");
    }
    let before = members[0].group.logs().heights(topic()).await;
    for from in 0..3 {
        let text = format!("from {from}");
        // What is said before all are connected is lost: it is said until it is heard.
        let saying = async {
            loop {
                all[from].publish(&text).await.expect("open");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        let others: Vec<_> = (0..3).filter(|it| *it != from).collect();
        let mut ears: Vec<EphemeralStream<String>> = others
            .iter()
            .map(|it| presence(&chats[*it], &doors[*it]))
            .collect();
        let hearing = async {
            for ear in &mut ears {
                loop {
                    let heard = ear.next().await.expect("open").expect("a text");
                    if heard.message == text {
                        assert_eq!(heard.author, chats[from].author());
                        assert!(heard.timestamp_micros > 1_700_000_000_000_000);
                        break;
                    }
                }
            }
        };
        tokio::select! {
            () = within("all others hear it", hearing) => {}
            () = saying => {}
        }
    }
    // Nothing of it is kept.
    let after = members[0].group.logs().heights(topic()).await;
    assert_eq!(after.expect("a quorum"), before.expect("a quorum"));

    let long = "x".repeat(4_096);
    let refused = all[0].publish(&long).await;
    assert!(
        matches!(refused, Err(EphemeralPublishError::TooLong { bytes }) if bytes > 4_096),
        "{refused:?}"
    );
    // The door closes: who listens is told.
    let mut last = all.remove(0);
    within("the door closes", doors[0].stop()).await;
    let end = async { while last.next().await.is_some() {} };
    within("it ends", end).await;
    assert_eq!(
        last.publish(&"x".to_owned()).await,
        Err(EphemeralPublishError::Closed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_takes_an_open_topic_and_the_groups_own_door() {
    let (members, chats) = chat_of(1).await;
    let (others, other_chats) = chat_of(1).await;
    let (own, other) = (door(&members[0]).await, door(&others[0]).await);
    let not_open =
        |it: Result<EphemeralStream<u8>, _>| matches!(it, Err(EphemeralPublishError::NotOpen));
    assert!(not_open(chats[0].ephemeral(&other)));
    assert!(not_open(other_chats[0].ephemeral(&own)));
    let closed = members[0]
        .group
        .topic(quorate::log_store::Topic::named("x"));
    assert!(not_open(closed.ephemeral(&own)));
    let presence: EphemeralStream<u8> = presence(&chats[0], &own);
    assert_eq!(presence.neighbours(), 0);
    presence.publish(&7).await.expect("nobody hears it");
}
