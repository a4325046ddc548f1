//! Messages in: their order, their ids, and what becomes of those behind one that is refused.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, future::join_all};
use quorate::{
    config::Config,
    log_store::{Draft, Line, LogRefused, LogStore, Operation, Refusal, Topic},
    streams::{PublishError, Source, StreamEvent, TopicStream},
};

use super::{
    chat_of, committed, event, from_start, heard, heard_many, opened, say, say_many, texts, topic,
};
use crate::cluster::{Member, Place, group_of, settled, within};

/// What the topic holds in its order, and whether each author's messages are in theirs.
async fn in_order(chat: &TopicStream, count: usize) -> Vec<(u64, String)> {
    let all = heard_many(&mut from_start(chat).await, count).await;
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, text) in &all {
        let (author, n) = text.split_once('/').expect("author and number");
        let next = next.entry(author).or_default();
        assert_eq!(n.parse(), Ok(*next), "{author} is out of order");
        *next += 1;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_hear_what_all_publish_in_one_order() {
    let (_members, chats) = chat_of(3).await;
    let publishing = chats.iter().enumerate().map(|(who, chat)| async move {
        let texts = texts(&who.to_string(), 700);
        committed(say_many(chat, texts).await).await
    });
    let told: BTreeMap<u64, String> = join_all(publishing)
        .await
        .into_iter()
        .flatten()
        .map(|(text, published)| (published.number, text))
        .collect();
    let first = in_order(&chats[0], 2_100).await;
    assert!(first.iter().map(|it| it.0).eq(0..2_100));
    assert!(first.iter().cloned().eq(told), "told another number");
    for chat in &chats[1..] {
        assert_eq!(in_order(chat, 2_100).await, first);
    }
    let authors: BTreeSet<_> = chats.iter().map(TopicStream::author).collect();
    assert_eq!(authors.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_told_at_once_and_is_that_of_the_operation() {
    let (_members, chats) = chat_of(1).await;
    let mut inbox = from_start(&chats[0]).await;
    for number in 0..5 {
        let publishing = chats[0].publish("hello").await.expect("it is signed");
        let id = publishing.id();
        let published = within("the commit", publishing).await.expect("published");
        assert_eq!((published.id, published.number), (id, number));
        let received = heard(&mut inbox).await;
        assert_eq!((received.id(), received.number), (id, number));
        assert_eq!(received.author(), chats[0].author());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_author_is_the_same_after_a_restart_and_another_elsewhere() {
    let (mut members, mut chats) = chat_of(1).await;
    let author = chats[0].author();
    say(&chats[0], "before").await;
    chats.clear();
    let member = members.remove(0).rest().await.start::<LogStore>().await;
    let chat = member.group.topic(topic());
    assert_eq!(chat.author(), author);
    assert_eq!(say(&chat, "after").await.number, 1);
    let other = group_of::<LogStore>(1).await;
    assert_ne!(other[0].group.topic(topic()).author(), author);
}

/// Somebody else writes the author's log with the author's key, and is faster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_displaced_is_signed_anew_with_all_behind_it() {
    let (members, chats) = chat_of(3).await;
    let first = say(&chats[0], "me/0").await;
    // The publisher does not know of this one.
    let logs = members[1].group.logs();
    let held: Vec<Operation> = {
        let log = topic().log_id();
        let read = logs.read(chats[0].author(), log, ..).try_collect();
        within("a read", read).await.expect("a quorum")
    };
    assert_eq!(held[0].id(), first.id);
    let body = Some(b"\x66meanie".to_vec().into());
    let draft = Draft::after(&held[0], 7, body);
    let stranger = Operation::sign(draft, &members[0].group.author_key()).expect("signed");
    let appended = logs.append(topic(), stranger).await.expect("appended");
    assert_eq!(appended.number, 1);

    let under_way = say_many(&chats[0], (1..300).map(|n| format!("me/{n}"))).await;
    let ids: Vec<_> = under_way.iter().map(|it| it.1.id()).collect();
    let published = committed(under_way).await;
    assert!(published.iter().map(|it| it.1.number).eq(2..301));
    assert_ne!(published[0].1.id, ids[0], "it was displaced");
    // What was given up is nowhere, and what was told is what is heard.
    let mut inbox = from_start(&chats[2]).await;
    let mut heard_ids = Vec::new();
    for n in 0..301 {
        let received = heard(&mut inbox).await;
        heard_ids.push(received.id());
        if n != 1 {
            let at = if n == 0 { 0 } else { n - 1 };
            assert_eq!(received.message, format!("me/{at}"));
        }
    }
    let finals: Vec<_> = published.iter().map(|it| it.1.id).collect();
    assert_eq!(heard_ids[2..], finals);
    // From here on ids are final again.
    let publishing = chats[0].publish("me/300").await.expect("signed");
    let id = publishing.id();
    let published = within("the commit", publishing).await.expect("published");
    assert_eq!((published.id, published.number), (id, 301));
}

/// Two members publish as one author, which nobody should do: nothing is lost, doubled or forked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_write_as_one_author_do_not_fork_it() {
    let (members, chats) = chat_of(3).await;
    let key = members[0].group.author_key();
    let double = TopicStream::new(members[1].group.logs(), &key, topic());
    let (one, two) = tokio::join!(
        async {
            for n in 0..40 {
                say(&chats[0], &format!("one/{n}")).await;
            }
        },
        async {
            for n in 0..40 {
                say(&double, &format!("two/{n}")).await;
            }
        }
    );
    ((), ()) = (one, two);
    let all = in_order(&chats[2], 80).await;
    let distinct: BTreeSet<_> = all.iter().map(|it| &it.1).collect();
    assert_eq!(distinct.len(), 80);
}

/// The topic at a member whose leader takes smaller commands than it does itself.
async fn under_a_strict_leader(command_bytes_max: usize) -> ([Member<LogStore>; 2], TopicStream) {
    let small = Config {
        command_bytes_max,
        ..Config::default()
    };
    let strict = Member::<LogStore>::found(Place::MEMORY, &small).await;
    let ticket = strict.group.ticket();
    let lax = Member::<LogStore>::join(Place::MEMORY, &Config::default(), &ticket).await;
    let members = [strict, lax];
    within("both run", members[1].group.ready())
        .await
        .expect("it runs");
    let chat = opened(&members).await.remove(1);
    assert_eq!(settled(&members).await, 0, "the strict one leads");
    (members, chat)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_refused_one_the_others_go_on() {
    let (_members, chat) = under_a_strict_leader(300 * 1024).await;
    let large = "x".repeat(400 * 1024);
    let texts = ["a", &large, "b", "c"].map(str::to_owned);
    let mut under_way = say_many(&chat, texts).await;
    let behind = under_way.split_off(2);
    let (_, large) = under_way.remove(1);
    let refused = within("the refusal", large).await;
    assert!(
        matches!(refused, Err(PublishError::NotTaken { .. })),
        "{refused:?}"
    );
    let ids: Vec<_> = behind.iter().map(|it| it.1.id()).collect();
    let numbers: Vec<_> = committed(behind)
        .await
        .iter()
        .zip(ids)
        .map(|((_, published), id)| {
            assert_ne!(published.id, id, "it still names one that was refused");
            published.number
        })
        .collect();
    assert_eq!(numbers, [1, 2]);
    let all = heard_many(&mut from_start(&chat).await, 3).await;
    assert!(all.iter().map(|it| it.1.as_str()).eq(["a", "b", "c"]));
    assert_eq!(say(&chat, "d").await.number, 3);
}

/// More refusals than another writer would be granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_ones_own_are_not_taken_for_another_writer() {
    let (_members, chat) = under_a_strict_leader(100 * 1024).await;
    let large = "x".repeat(150 * 1024);
    let texts = std::iter::repeat_n(large, 40).chain(["behind them".to_owned()]);
    let mut under_way = say_many(&chat, texts).await;
    let behind = under_way.split_off(40);
    for (_, large) in under_way {
        let refused = within("the refusal", large).await;
        assert!(
            matches!(refused, Err(PublishError::NotTaken { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(committed(behind).await[0].1.number, 0);
    assert_eq!(say(&chat, "and on").await.number, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_topic_takes_nothing_until_it_is_opened_again() {
    let (members, chats) = chat_of(1).await;
    say(&chats[0], "one").await;
    let logs = members[0].group.logs();
    logs.close_topic(topic()).await.expect("closed");
    let not_open = |refused: Result<_, PublishError>| {
        let refusal = Refusal::Topic(LogRefused::NotOpen);
        matches!(refused, Err(PublishError::Refused(it)) if it == refusal)
    };
    // Signed before the refusal is known, and then refused.
    for _ in 0..2 {
        let refused = match chats[0].publish("two").await {
            Ok(publishing) => within("the refusal", publishing).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(not_open(refused));
    }
    chats[0].open(Line::V07).await.expect("open again");
    assert_eq!(say(&chats[0], "three").await.number, 1);
    let never = members[0].group.topic(Topic::named("never opened"));
    assert!(not_open(never.publish("x").await.map(drop)));
    let large = "x".repeat(3 * 1024 * 1024);
    let refused = chats[0].publish(&large).await.map(drop);
    assert!(
        matches!(
            refused,
            Err(PublishError::Refused(Refusal::TooLarge { .. }))
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_the_leader_goes() {
    let (mut members, mut chats) = chat_of(3).await;
    for round in 0..2 {
        let leader = settled(&members).await;
        let follower = (leader + 1) % members.len();
        let chat = chats[follower].clone();
        let publishing = tokio::spawn(async move {
            let texts = texts(&format!("round {round}"), 3_000);
            let mut all = Vec::new();
            for text in texts {
                let publishing = chat.publish(&text).await.expect("it is signed");
                all.push((text, publishing));
            }
            let mut ended = BTreeMap::new();
            for (text, publishing) in all {
                ended.insert(text, publishing.await);
            }
            ended
        });
        // In the middle: some hundred are there.
        let wanted = if round == 0 { 300 } else { 3_300 };
        let mut inbox = from_start(&chats[follower]).await;
        heard_many(&mut inbox, wanted).await;
        if round == 0 {
            for (_, bond) in members[leader].group.bonds().iter() {
                bond.close("a test breaks it");
            }
        } else {
            let gone = members.remove(leader);
            chats.remove(leader);
            within("the shutdown", gone.node.shutdown()).await;
        }
        let ended = within("all end", publishing).await.expect("no panic");
        let published: BTreeMap<u64, String> = ended
            .into_iter()
            .filter_map(|(text, it)| Some((it.ok()?.number, text)))
            .collect();
        assert_eq!(published.len(), 3_000, "a quorum was there all the time");
        let all = heard_many(&mut from_start(&chats[0]).await, 3_000 * (round + 1)).await;
        let here = &all[3_000 * round..];
        assert!(
            here.iter().cloned().eq(published),
            "told another number or order"
        );
        let mine = here.iter().map(|it| it.1.clone());
        assert!(mine.eq(texts(&format!("round {round}"), 3_000)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prune_lets_go_of_what_was_published_before() {
    let (members, chats) = chat_of(3).await;
    let mut under_way = say_many(&chats[1], texts("old", 500)).await;
    let pruning = chats[1].prune(Some("state")).await.expect("signed");
    under_way.push(("state".into(), pruning));
    under_way.extend(say_many(&chats[1], texts("new", 50)).await);
    let other = say(&chats[2], "other").await;
    let published = committed(under_way).await;
    let state = published[500].1;
    let mut wanted: Vec<_> = published[500..]
        .iter()
        .map(|(text, it)| (it.number, text.clone()))
        .collect();
    wanted.push((other.number, "other".into()));
    wanted.sort();
    assert!(state.number >= 500);
    within("it is known everywhere", members[0].group.ready())
        .await
        .expect("it runs");
    assert_eq!(
        heard_many(&mut from_start(&chats[0]).await, 52).await,
        wanted
    );

    // Without a message nothing is delivered, and the numbers go on behind it.
    let pruning = chats[1].prune::<str>(None).await.expect("signed");
    let pruned = within("the commit", pruning).await.expect("published");
    let after = say(&chats[1], "after").await;
    assert_eq!(after.number, pruned.number + 1);
    let left = heard_many(&mut from_start(&chats[1]).await, 2).await;
    assert_eq!(
        left,
        [
            (other.number, "other".into()),
            (after.number, "after".into())
        ]
    );
    let log = topic().log_id();
    let read = members[0].group.logs().read(chats[1].author(), log, ..);
    let held: Vec<Operation> = within("a read", read.try_collect()).await.expect("read");
    assert_eq!(held.len(), 2);
    assert!(held[0].prune() && held[0].body().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_operations_are_imported() {
    let (_members, chats) = chat_of(1).await;
    let (other, others) = chat_of(1).await;
    committed(say_many(&others[0], texts("theirs", 20)).await).await;
    let exported = other[0].group.logs().subscribe(topic(), 0).take(20);
    let exported: Vec<Operation> = exported
        .map_ok(|(_, operation)| operation)
        .try_collect()
        .await
        .expect("read");
    let mut live = from_start(&chats[0]).await;
    let outcomes: Vec<_> = chats[0]
        .import(exported)
        .try_collect()
        .await
        .expect("a quorum");
    assert!(outcomes.iter().map(|it| it.number()).eq((0..20).map(Some)));
    assert_eq!(heard(&mut live).await.source, Source::Import);
    let mut inbox = from_start(&chats[0]).await;
    assert!(matches!(
        event(&mut inbox).await,
        StreamEvent::ReplayStarted { from: 0, until: 20 }
    ));
    let all = heard_many(&mut inbox, 20).await;
    assert!(all.into_iter().map(|it| it.1).eq(texts("theirs", 20)));
}
