//! Messages out: what is told of each, and of those that are none.

use futures_util::FutureExt;
use quorate::{
    log_store::{Author, Line, Operation},
    streams::{Acknowledge, Source, StreamEvent, StreamFrom},
};
use serde::{Deserialize, Serialize};

use super::{chat_of, committed, event, from_start, heard, say, say_many, subscribed, texts};
use crate::{cluster::within, logs::Writer};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Move {
    piece: String,
    to: (u8, u8),
    takes: Option<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_of_any_type() {
    let (_members, chats) = chat_of(2).await;
    let sent = Move {
        piece: "knight".into(),
        to: (3, 5),
        takes: None,
    };
    let publishing = chats[0].publish(&sent).await.expect("signed");
    within("the commit", publishing).await.expect("published");
    let subscribed = chats[1].subscribe::<Move>(StreamFrom::Start, Acknowledge::Automatic);
    let mut inbox = subscribed.await.expect("it runs");
    loop {
        let next = within("an event", inbox.next()).await.expect("it goes on");
        if let StreamEvent::Message(received) = next {
            assert_eq!(received.message, sent);
            break;
        }
    }
}

/// Says on which thread it was decoded.
#[derive(Debug)]
struct Telling(std::thread::ThreadId, usize);

impl<'de> Deserialize<'de> for Telling {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Ok(Self(std::thread::current().id(), text.len()))
    }
}

/// The runtime has this thread only, and those for blocking work.
#[tokio::test(flavor = "current_thread")]
async fn a_large_message_is_decoded_on_a_thread_for_blocking_work() {
    let (_members, chats) = chat_of(1).await;
    let lengths = [10, 1_000_000, 1_000, 20_000];
    let sent = lengths.map(|it| "x".repeat(it));
    committed(say_many(&chats[0], sent).await).await;
    for dropped in [false, true] {
        let from = StreamFrom::cursor("reader");
        let subscribed = chats[0].subscribe::<Telling>(from, Acknowledge::Automatic);
        let mut inbox = subscribed.await.expect("it runs");
        let mut told = Vec::new();
        while told.len() < lengths.len() {
            let next = match dropped {
                // In the middle of the decoding, now and then: nothing is lost or acknowledged.
                true => match inbox.next().now_or_never() {
                    Some(next) => next,
                    None => {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                        continue;
                    }
                },
                false => within("an event", inbox.next()).await,
            };
            if let StreamEvent::Message(received) = next.expect("it goes on") {
                let Telling(thread, length) = received.message;
                told.push((length, thread == std::thread::current().id()));
            }
        }
        let wanted = lengths.map(|it| (it, it < 16_000));
        assert_eq!(told, wanted);
        drop(inbox);
        chats[0].forget_cursor("reader").await.expect("a quorum");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_is_told_apart_from_what_is_new() {
    let (_members, chats) = chat_of(2).await;
    committed(say_many(&chats[0], texts("old", 3)).await).await;
    let mut inbox = from_start(&chats[0]).await;
    let started = event(&mut inbox).await;
    assert!(
        matches!(started, StreamEvent::ReplayStarted { from: 0, until: 3 }),
        "{started:?}"
    );
    for _ in 0..3 {
        let told = event(&mut inbox).await;
        assert!(matches!(told, StreamEvent::Message(_)), "{told:?}");
    }
    let told = event(&mut inbox).await;
    assert!(matches!(told, StreamEvent::ReplayEnded), "{told:?}");
    say(&chats[1], "new").await;
    let told = event(&mut inbox).await;
    match told {
        StreamEvent::Message(received) => {
            assert_eq!(received.message, "new");
            assert_eq!(received.source, Source::Elsewhere);
        }
        told => panic!("{told:?}"),
    }
    say(&chats[0], "mine").await;
    assert_eq!(heard(&mut inbox).await.source, Source::Own);
    // From a number on: nothing is replayed that lies before.
    let mut late = subscribed(&chats[0], StreamFrom::Number(4), Acknowledge::Automatic).await;
    assert_eq!(heard(&mut late).await.message, "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_is_told_and_passed() {
    let (members, chats) = chat_of(1).await;
    let logs = members[0].group.logs();
    let mut writer = Writer::of(9, super::topic(), Line::V07);
    let author: Author = writer.author();
    // No CBOR, another type, and a text that is not in its shortest form.
    let bodies: [&[u8]; 3] = [b"\xff\xff", b"\x07", b"\x78\x02hi"];
    let mut broken: Vec<Operation> = Vec::new();
    for body in bodies {
        broken.push(writer.next(body));
    }
    for operation in &broken {
        let appended = logs.append(super::topic(), operation.clone()).await;
        appended.expect("appended");
    }
    say(&chats[0], "fine").await;
    let reader = StreamFrom::cursor("reader");
    let mut inbox = subscribed(&chats[0], reader.clone(), Acknowledge::Explicit).await;
    event(&mut inbox).await;
    for operation in &broken {
        match event(&mut inbox).await {
            StreamEvent::DecodeFailed { received, error } => {
                assert_eq!((received.id(), received.author()), (operation.id(), author));
                assert!(error.to_string().contains("no message"), "{error}");
                received.ack().expect("it is held");
            }
            told => panic!("{told:?}"),
        }
    }
    let fine = heard(&mut inbox).await;
    assert_eq!((fine.message.as_str(), fine.number), ("fine", 3));
    within("the group knows", inbox.flush())
        .await
        .expect("it is held");
    drop(inbox);
    // They are behind it.
    let mut inbox = subscribed(&chats[0], reader, Acknowledge::Explicit).await;
    assert_eq!(heard(&mut inbox).await.number, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_asks_for_moments_only_gets_everything() {
    let (_members, chats) = chat_of(1).await;
    committed(say_many(&chats[0], texts("word", 5)).await).await;
    let mut inbox = from_start(&chats[0]).await;
    let mut got = 0;
    let asking = async {
        while got < 5 {
            // Dropped at once, in the middle of whatever it reads.
            match inbox.next().now_or_never() {
                Some(event) => {
                    let event = event.expect("it goes on");
                    got += usize::from(matches!(event, StreamEvent::Message(_)));
                }
                None => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    };
    within("all messages", asking).await;
}
