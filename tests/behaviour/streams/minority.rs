//! Publishing without a quorum: it is told in time, and nothing is lost or doubled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use quorate::{
    config::Config,
    log_store::LogStore,
    streams::{PublishError, Published, Publishing, TopicStream},
};

use super::{from_start, heard_many, opened, topic};
use crate::cluster::{Member, PATIENCE, Place, Resting, group_at, settled, within};

const EXECUTE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Batches of one publisher that are under way.
const UNDER_WAY_MAX: usize = 8;

fn impatient() -> Config {
    Config {
        execute_timeout: EXECUTE_TIMEOUT,
        query_timeout: Duration::from_millis(1_000),
        ..Config::default()
    }
}

/// What was tried while a member was alone.
#[derive(Default)]
struct Alone {
    /// Which one was signed when.
    order: BTreeMap<String, usize>,
    /// Their fate is not told yet.
    open: Vec<(String, Publishing)>,
    /// Told that no quorum has them.
    given_up: BTreeSet<String>,
    committed: BTreeSet<String>,
}

impl Alone {
    /// Publishes messages, all at once; each call must answer although nothing else happens.
    async fn publish(&mut self, chat: &TopicStream, texts: impl Iterator<Item = String>) {
        let signed = AtomicUsize::new(self.order.len());
        let publishing = texts.map(|text| async {
            let called = Instant::now();
            let answer = within("an answer to publish", chat.publish(&text)).await;
            // These are on one task, and a call returns where it has signed.
            let nth = signed.fetch_add(1, Ordering::Relaxed);
            (text, nth, called.elapsed(), answer)
        });
        for (text, nth, took, answer) in join_all(publishing).await {
            assert!(took < 10 * EXECUTE_TIMEOUT, "{text}: {took:?}");
            self.order.insert(text.clone(), nth);
            match answer {
                Ok(publishing) => self.open.push((text, publishing)),
                Err(PublishError::NoQuorum) => self.end(text, false),
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }

    fn end(&mut self, text: String, committed: bool) {
        let ended = match committed {
            true => &mut self.committed,
            false => &mut self.given_up,
        };
        assert!(ended.insert(text));
    }

    /// Waits for what is told without a quorum.
    async fn wait(&mut self, patience: Duration) {
        let open = std::mem::take(&mut self.open);
        let waits = open.into_iter().map(|(text, mut publishing)| async move {
            let told = tokio::time::timeout(patience, &mut publishing).await;
            (text, told, publishing)
        });
        for (text, told, publishing) in join_all(waits).await {
            match told {
                Ok(Ok(_)) => self.end(text, true),
                Ok(Err(PublishError::NoQuorum)) => self.end(text, false),
                Ok(Err(error)) => panic!("{text}: {error}"),
                Err(_) => self.open.push((text, publishing)),
            }
        }
    }
}

/// Publishes once a quorum is there.
async fn say_at_last(chat: &TopicStream, text: &str) -> Published {
    let said = async {
        loop {
            let told = match chat.publish(text).await {
                Ok(publishing) => publishing.await,
                Err(error) => Err(error),
            };
            match told {
                Ok(published) => return published,
                Err(PublishError::NoQuorum) => {}
                Err(error) => panic!("{text}: {error}"),
            }
        }
    };
    within("a quorum", said).await
}

/// One member is left alone and publishes; then the others are back.
async fn alone(leader: bool) {
    let mut members = group_at::<LogStore>(vec![Place::MEMORY; 3], &impatient()).await;
    let mut chats = opened(&members).await;
    let leads = settled(&members).await;
    let stays = if leader { leads } else { (leads + 1) % 3 };
    let chat = chats.swap_remove(stays);
    say_at_last(&chat, "before").await;
    drop(chats);
    let _alone = members.swap_remove(stays);
    let resting = members.into_iter().map(Member::rest);
    // While they go, so that some is on its way.
    let mut tried = Alone::default();
    let texts = |what: &str, count| super::texts(what, count).collect::<Vec<_>>().into_iter();
    let going = tried.publish(&chat, texts("going", 40));
    let (down, ()) = tokio::join!(join_all(resting), going);
    // More than may be on their way.
    tried.publish(&chat, texts("alone", 1_200)).await;
    tried.wait(5 * EXECUTE_TIMEOUT).await;
    let mut open = std::mem::take(&mut tried.open);
    assert!(tried.given_up.len() > 100, "{}", tried.given_up.len());
    // Later ones are told as well, but for those that a leader takes: it has no quorum, and a
    // follower whose leader has handed over to it is one. Soon it has as many as may be under way.
    let (mut rounds, mut told) = (0, 0);
    while told < 3 {
        let texts = texts(&format!("later {rounds}"), 5);
        tried.publish(&chat, texts).await;
        tried.wait(5 * EXECUTE_TIMEOUT).await;
        told += usize::from(tried.open.is_empty());
        open.append(&mut tried.open);
        rounds += 1;
        assert!(rounds <= 3 + UNDER_WAY_MAX, "{told} of {rounds} were told");
    }
    tried.open = open;
    println!(
        "{} may have been applied, {} were not",
        tried.open.len(),
        tried.given_up.len()
    );

    let back = join_all(down.into_iter().map(Resting::start::<LogStore>)).await;
    tried.wait(PATIENCE).await;
    assert!(tried.open.is_empty(), "{} are not told", tried.open.len());
    let last = say_at_last(&chat, "behind/0").await;
    let count = tried.committed.len() + 2;
    assert_eq!(last.number, count as u64 - 1, "as many as were told");
    for stream in [&chat, &back[0].group.topic(topic())] {
        let all = heard_many(&mut from_start(stream).await, count).await;
        assert_eq!(
            (all[0].1.as_str(), all[count - 1].1.as_str()),
            ("before", "behind/0")
        );
        let between: Vec<&String> = all[1..count - 1].iter().map(|it| &it.1).collect();
        assert!(
            between
                .iter()
                .copied()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .eq(&tried.committed)
        );
        let out_of_order = between
            .windows(2)
            .find(|it| tried.order[it[0]] > tried.order[it[1]]);
        assert_eq!(out_of_order, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_left_alone_tells_its_publishers() {
    alone(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_left_alone_tells_its_publishers() {
    alone(false).await;
}

/// What goes behind messages that were given up is signed anew, though it fits where they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_behind_what_was_given_up_leaves_no_hole() {
    let mut members = group_at::<LogStore>(vec![Place::MEMORY; 3], &impatient()).await;
    let mut chats = opened(&members).await;
    let leads = settled(&members).await;
    let chat = chats.swap_remove(leads);
    say_at_last(&chat, "before").await;
    drop(chats);
    let alone = members.swap_remove(leads);
    let mut tried = Alone::default();
    let resting = async {
        let resting = members.into_iter().map(Member::rest);
        join_all(resting).await
    };
    // Until a leader that has lost the others has taken one of them, and does not know yet.
    let going = async {
        for nth in 0.. {
            let text = format!("going/{nth}");
            tried.publish(&chat, std::iter::once(text)).await;
            tried.wait(EXECUTE_TIMEOUT / 3).await;
            if !tried.open.is_empty() {
                break;
            }
        }
    };
    let (down, ()) = tokio::join!(resting, going);
    let mut status = alone.group.watch_status();
    let lost = status.wait_for(|it| !it.quorum);
    within("it knows that it is alone", lost).await;
    // These nobody takes, sooner or later.
    let mut round = 0;
    while tried.given_up.len() < 50 {
        let texts = super::texts(&format!("alone {round}"), 50);
        tried.publish(&chat, texts).await;
        tried.wait(5 * EXECUTE_TIMEOUT).await;
        round += 1;
        assert!(round < 4, "a leader without a quorum takes everything");
    }
    assert!(!tried.open.is_empty(), "it may have been applied");

    let prune = async {
        loop {
            let told = match chat.prune(Some("state")).await {
                Ok(publishing) => publishing.await,
                Err(error) => Err(error),
            };
            match told {
                Ok(published) => return published,
                Err(PublishError::NoQuorum) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let back = join_all(down.into_iter().map(Resting::start::<LogStore>));
    let (_back, pruned) = tokio::join!(back, within("a quorum", prune));
    let heights = alone.group.logs().heights(topic()).await;
    let heights = heights.expect("a quorum is there");
    let highest: Vec<u32> = heights
        .values()
        .flat_map(|it| it.values())
        .copied()
        .collect();
    // One author wrote all of the topic: its last operation has the place of its number.
    assert_eq!(highest, [pruned.number as u32]);
}

/// Nobody was there from the start: the end of the log cannot be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_message_without_a_quorum_is_refused_in_time() {
    let mut members = group_at::<LogStore>(vec![Place::MEMORY; 2], &impatient()).await;
    let chats = opened(&members).await;
    let down = members.remove(0).rest().await;
    let mut tried = Alone::default();
    let texts = super::texts("alone", 50);
    tried.publish(&chats[1], texts).await;
    assert_eq!(tried.given_up.len(), 50);
    let _back = down.start::<LogStore>().await;
    assert_eq!(say_at_last(&chats[1], "behind").await.number, 0);
}
