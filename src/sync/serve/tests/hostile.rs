//! Peers that break rules, and peers that keep them and mean harm: what they cost is bounded, who
//! is honest is served beside them, and the group has of theirs what keeps its rules.

use std::time::Duration;

use bytes::Bytes;
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::{
    super::{Patience, Sync, SyncOptions},
    guest::{Guest, House, Talk, operations, soon, topic, until},
};
use crate::{
    log_store::{
        Heights, Line, Operation,
        mint::{Writer, forged},
    },
    sync::{codec::Message, wire::Service},
};

/// Little time, so that tests need little.
fn short() -> Patience {
    Patience {
        knock: Duration::from_millis(1_500),
        handshake: Duration::from_millis(700),
        haves: Duration::from_millis(1_500),
        standstill: Duration::from_millis(1_500),
        closing: Duration::from_secs(1),
        ..Patience::default()
    }
}

fn have_nothing() -> Message {
    Message::Have(Heights::new())
}

async fn nobody_is_left(door: &Sync) {
    until("all sessions end", || door.status().sessions == 0).await;
}

/// An honest guest gets the whole log and leaves.
async fn an_honest_guest_is_served(door: &Sync, line: Line, count: usize) {
    let guest = Guest::new().await;
    let mut talk = guest.talk(door, line).await;
    talk.have_nothing().await;
    talk.say(&[Message::Done]).await;
    let heard = talk.leave().await;
    assert_eq!(operations(&heard), count, "{heard:?}");
    guest.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_gone_in_time_and_leaves_nothing_behind() {
    let house = House::of(1).await;
    let door = house.door(0, short()).await;
    let guest = Guest::new().await;
    let mut silent = Vec::new();
    for service in [Service::Sync, Service::Discovery, Service::Client] {
        for _ in 0..8 {
            silent.push(guest.dial(&door, service).await);
        }
    }
    // Some get as far as the session.
    let mut talks = Vec::new();
    for line in Line::ALL {
        talks.push(guest.talk(&door, line).await);
    }
    for (at, connection) in silent.iter().enumerate() {
        let ended = soon(&format!("the end of {at}"), connection.closed()).await;
        drop(ended);
    }
    for talk in &talks {
        soon("the end of a silent session", talk.connection.closed()).await;
    }
    nobody_is_left(&door).await;
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_trickles_is_gone_in_time() {
    let house = House::of(1).await;
    let door = house.door(0, short()).await;
    let guest = Guest::new().await;
    for line in Line::ALL {
        let mut talk = guest.talk(&door, line).await;
        let connection = talk.connection.clone();
        // The front of something that would go on for long, a byte at a time.
        let trickle = async {
            let front: &[u8] = match line {
                Line::V06 => &[0x82, 0x64, b'H', b'a', b'v', b'e', 0xb9, 0xff, 0xff],
                Line::V07 => &[0, 0x10, 0, 0, 0],
            };
            talk.say_bytes(front).await;
            loop {
                let byte: &[u8] = match line {
                    Line::V06 => &[0x58],
                    Line::V07 => &[0],
                };
                talk.say_bytes(byte).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = trickle => {}
            _ = soon("the end", connection.closed()) => {}
        }
        nobody_is_left(&door).await;
    }
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_lengths_that_lie_end_their_session_and_nothing_else() {
    let house = House::of(1).await;
    // Nothing here is to wait for a deadline.
    let door = house.door(0, Patience::default()).await;
    let guest = Guest::new().await;
    let mut runner = TestRunner::deterministic();
    for line in Line::ALL {
        let all = Writer::new(1, topic(line), line).many(5);
        house.append(all).await;
        let mut said: Vec<Vec<u8>> = vec![
            vec![0xff; 64],
            // A frame of 4 GiB; a map of 2^63 entries; a text of 2^62 bytes.
            [&[0xff; 4][..], &[0; 64]].concat(),
            [&[0xbb, 0x80][..], &[0; 64]].concat(),
            [&[0x82, 0x7b, 0x40][..], &[0; 64]].concat(),
        ];
        for _ in 0..12 {
            let bytes = prop::collection::vec(any::<u8>(), 64..512);
            let bytes = bytes.new_tree(&mut runner).expect("it has no condition");
            said.push(bytes.current());
        }
        for bytes in said {
            let mut talk = guest.talk(&door, line).await;
            talk.say_bytes(&bytes).await;
            // Some of it is the front of a frame that may still come: no more comes.
            talk.finish();
            soon(
                &format!("the end after {bytes:x?}"),
                talk.connection.closed(),
            )
            .await;
        }
        nobody_is_left(&door).await;
        an_honest_guest_is_served(&door, line, 5).await;
    }
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_a_rule_of_logs_is_refused_and_the_rest_is_taken() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    for line in Line::ALL {
        let guest = Guest::new().await;
        let mut ada = Writer::new(1, topic(line), line);
        let good = ada.many(3);
        let fork = ada.aside(1, Some(good[0].id()), false);
        let replay = good[0].clone();
        let forgery = forged(&ada.next("never signed"));
        let other = Topicless::operation(line);
        let pushed = [&good[..], &[fork, replay, forgery, other]].concat();
        let heard = guest.talk(&door, line).await.push(&pushed).await;
        assert_eq!(heard, [Message::Done]);
        let told = || {
            let peers = door.status().peers;
            peers.into_iter().find(|it| it.peer == guest.id())
        };
        until("it is counted", || told().is_some_and(|it| it.sessions > 0)).await;
        let told = told().expect("it is there");
        assert_eq!((told.received, told.appended), (7, 3), "{told:?}");
        assert_eq!(told.refused, 3, "fork, forgery and another log: {told:?}");
        assert!(told.last_error.is_some());
        let heights = house.heights(line).await;
        assert_eq!(heights.len(), 1);
        assert_eq!(heights[&ada.author()][&ada.log()], 2);
        guest.close().await;
    }
    door.stop().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_stripped_on_the_way_is_asked_for_and_not_lost() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    for line in Line::ALL {
        let whole = Writer::new(1, topic(line), line).next("purr");
        let header = whole.header().clone();
        let stripped = Operation::decode(line, header, None).expect("a body may be elsewhere");
        let (liar, author) = (Guest::new().await, Guest::new().await);
        liar.talk(&door, line).await.push(&[stripped]).await;
        let told = |guest: &Guest| {
            let peers = door.status().peers;
            let told = peers.into_iter().find(|it| it.peer == guest.id());
            told.map_or((0, 0), |it| (it.refused, it.appended))
        };
        until("it is refused", || told(&liar) == (1, 0)).await;
        assert!(house.heights(line).await.is_empty());
        author.talk(&door, line).await.push(&[whole]).await;
        until("it is taken", || told(&author) == (0, 1)).await;
        liar.close().await;
        author.close().await;
    }
    door.stop().await;
    house.close().await;
}

struct Topicless;

impl Topicless {
    /// An operation of a log that belongs to another topic.
    fn operation(line: Line) -> Operation {
        let other = crate::log_store::Topic::named("dogs");
        Writer::new(2, other, line).next("woof")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_is_gone_and_holds_no_place() {
    let house = House::of(1).await;
    let door = house.door(0, short()).await;
    for line in Line::ALL {
        let mut ada = Writer::new(1, topic(line), line);
        let body = "m".repeat(64 * 1024);
        let all: Vec<Operation> = (0..64).map(|_| ada.next(&body)).collect();
        house.append(all).await;
        let guest = Guest::new().await;
        let mut talk = guest.talk(&door, line).await;
        talk.say(&[have_nothing()]).await;
        soon("the end", talk.connection.closed()).await;
        nobody_is_left(&door).await;
        let peers = door.status().peers;
        let told = peers.iter().find(|it| it.peer == guest.id());
        assert!(told.is_some_and(|it| it.last_error.is_some()), "{told:?}");
        guest.close().await;
    }
    door.stop().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_out_of_order_takes_bounded_memory_and_nothing_of_it_is_taken() {
    const FLOOD: u32 = 100_000;
    let house = House::of(1).await;
    let options = SyncOptions {
        bind: vec![([127, 0, 0, 1], 0).into()],
        inbound_bytes_max: 256 * 1024,
        ..SyncOptions::default()
    };
    let door = house.door_with(0, Patience::default(), options).await;
    let line = Line::V07;
    let guest = Guest::new().await;
    let mut ada = Writer::new(1, topic(line), line);
    let mut all = ada.many(101);
    all.reverse();
    // The first one, without which none is taken.
    let first = all.pop().expect("there are many");
    let mut talk = guest.talk(&door, line).await;
    talk.have_nothing().await;
    talk.say(&[Message::PreSync {
        operations: FLOOD,
        bytes: 1,
    }])
    .await;
    for operation in all.iter().cycle().take(FLOOD as usize) {
        let (header, body) = (operation.header().clone(), operation.body().cloned());
        talk.say(&[Message::Operation { header, body }]).await;
    }
    talk.say(&[Message::Done]).await;
    assert_eq!(talk.leave().await, [Message::Done]);
    assert!(house.heights(line).await.is_empty());
    let told = || {
        let peers = door.status().peers;
        let told = peers.into_iter().find(|it| it.peer == guest.id());
        told.map_or((0, 0), |it| (it.received, it.appended))
    };
    until("it is counted", || told() == (u64::from(FLOOD), 0)).await;
    // In order it is taken.
    all.push(first);
    all.reverse();
    guest.talk(&door, line).await.push(&all).await;
    until("all are taken", || told().1 == 101).await;
    door.stop().await;
    guest.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_sessions_at_once_one_serves_and_the_other_says_what_is_held() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    for line in Line::ALL {
        house
            .append(Writer::new(1, topic(line), line).many(5))
            .await;
        let guest = Guest::new().await;
        let mut first = guest.talk(&door, line).await;
        first.have_nothing().await;
        let mut second = guest.talk(&door, line).await;
        assert_eq!(second.have_nothing().await.len(), 1);
        second.say(&[Message::Done]).await;
        assert_eq!(operations(&second.leave().await), 0);
        first.say(&[Message::Done]).await;
        assert_eq!(operations(&first.leave().await), 5);
        guest.close().await;
    }
    door.stop().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_has_so_many_sessions_and_no_more() {
    let house = House::of(1).await;
    let options = SyncOptions {
        bind: vec![([127, 0, 0, 1], 0).into()],
        sessions_of_peer_max: 3,
        ..SyncOptions::default()
    };
    let door = house.door_with(0, Patience::default(), options).await;
    let greedy = Guest::new().await;
    let mut talks: Vec<Talk> = Vec::new();
    for _ in 0..3 {
        talks.push(greedy.talk(&door, Line::V07).await);
    }
    until("they have their places", || door.status().sessions == 3).await;
    let more = greedy.ask(&door, Line::V07).await;
    soon("it is turned away", more.closed()).await;
    assert_eq!(door.status().sessions, 3);
    // Connections that say nothing are few as well.
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(greedy.dial(&door, Service::Sync).await);
    }
    let away = futures_util::future::select_all(silent.iter().map(|it| Box::pin(it.closed())));
    let at_once = tokio::time::timeout(Patience::default().knock / 2, away).await;
    assert!(at_once.is_ok(), "some are turned away");
    an_honest_guest_is_served(&door, Line::V07, 0).await;
    drop(talks);
    nobody_is_left(&door).await;
    door.stop().await;
    greedy.close().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_discovery_and_among_clients_is_turned_away() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let guest = Guest::new().await;
    for service in [Service::Discovery, Service::Client, Service::Sync] {
        for bytes in [&[0xff; 300][..], &[0; 300], &[0xa1, 0x7b, 0xff]] {
            let connection = guest.dial(&door, service).await;
            let (mut send, _recv) = connection.open().await.expect("it takes the stream");
            let _ = send.write_all(Bytes::copy_from_slice(bytes)).await;
            send.finish();
            soon(&format!("the end in {service:?}"), connection.closed()).await;
        }
    }
    nobody_is_left(&door).await;
    an_honest_guest_is_served(&door, Line::V06, 0).await;
    door.stop().await;
    guest.close().await;
    house.close().await;
}
