//! Messages of a group's members at stock nodes, and theirs at members.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::select_all};
use quorate::{
    PeerId,
    log_store::{Author, Line},
    streams::{Acknowledge, Received, Source, StreamEvent, StreamFrom, Subscription, TopicStream},
};

use crate::{
    cluster::within,
    peer::{Dials, Group},
    stock::{PATIENCE, Seen, Stock},
};

crate::on_both_lines! {
    a_stock_node_reads_what_members_publish;
    a_member_reads_what_a_stock_node_publishes;
    a_stock_node_lets_go_of_what_a_member_pruned;
    ephemeral_messages_go_both_ways;
}

fn streams(group: &Group) -> Vec<TopicStream> {
    let topic = |it: &crate::peer::Serving| it.member.group.topic(group.topic);
    group.members.iter().map(topic).collect()
}

/// Publishes so many texts at each member; each text by the id of its operation.
async fn publish(streams: &[TopicStream], what: &str, count: usize) -> BTreeMap<String, String> {
    let publishing = streams.iter().enumerate().map(|(who, stream)| async move {
        let mut under_way = Vec::new();
        for n in 0..count {
            let text = format!("{what} {n} of member {who}, with an ümlaut");
            let publishing = stream.publish(&text).await.expect("it is signed");
            under_way.push(async { (publishing.await.expect("published"), text) });
        }
        join_all(under_way).await
    });
    let published = within("the commits", join_all(publishing)).await;
    let published = published.into_iter().flatten();
    published
        .map(|(it, text)| (it.id.to_string(), text))
        .collect()
}

async fn reads(stock: &Stock, group: &Group, wanted: &BTreeMap<String, String>) {
    let topic = group.topic.to_string();
    stock.processed(group.topic, wanted.len()).await;
    let all = |seen: &Seen| {
        let messages = seen.messages.get(&topic)?;
        (messages.len() >= wanted.len()).then(|| messages.clone())
    };
    assert_eq!(&stock.when("it tells all texts", all).await, wanted);
    assert_eq!(stock.seen().failed, Vec::<String>::new());
}

async fn a_stock_node_reads_what_members_publish(line: Line) {
    let group = Group::of(3, line).await;
    let streams = streams(&group);
    let mut published = publish(&streams, "old", 40).await;
    let stock = group.meet("reader", Dials::Stock, &[0]).await;
    reads(&stock, &group, &published).await;
    // And while it is live.
    published.extend(publish(&streams, "new", 5).await);
    reads(&stock, &group, &published).await;
    stock.stop().await;
    group.end().await;
}

async fn heard(inbox: &mut Subscription<String>) -> Received<String> {
    loop {
        let next = tokio::time::timeout(PATIENCE, inbox.next()).await;
        match next.expect("a message comes").expect("it goes on") {
            StreamEvent::Message(received) => return received,
            StreamEvent::DecodeFailed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
}

async fn a_member_reads_what_a_stock_node_publishes(line: Line) {
    let group = Group::of(3, line).await;
    let streams = streams(&group);
    let mut stock = group.meet("writer", Dials::Stock, &[0]).await;
    let author: Author = stock.address().0.parse().expect("an id");
    let from = StreamFrom::cursor("reader");
    let mut live = Vec::new();
    for stream in &streams {
        let subscribed = stream.subscribe::<String>(StreamFrom::Start, Acknowledge::Automatic);
        live.push(Box::pin(subscribed.await.expect("it runs").into_stream()));
    }
    // At another member than the one it is connected to.
    let inbox = streams[2].subscribe(from.clone(), Acknowledge::Explicit);
    let mut inbox = inbox.await.expect("a quorum");
    for n in 0..20 {
        let text = format!("text {n}, with an ümlaut");
        stock
            .tell(&format!("publish-text {} {text}", group.topic))
            .await;
        let received = heard(&mut inbox).await;
        assert_eq!((&received.message, received.author()), (&text, author));
        if n < 10 {
            received.ack().expect("it is held");
        }
    }
    inbox.flush().await.expect("it is held");
    let inbox = streams[1].subscribe(from, Acknowledge::Explicit);
    let mut inbox = inbox.await.expect("a quorum");
    assert!(heard(&mut inbox).await.message.starts_with("text 10,"));
    stock.stop().await;
    // Each came in at some member, which knows where from.
    let peer: PeerId = author.to_string().parse().expect("the same name");
    let (mut came, mut heard, mut started, mut brought) = (BTreeSet::new(), 0, 0, 0);
    let mut live = select_all(live);
    while heard < 60 || brought < 20 {
        let next = tokio::time::timeout(PATIENCE, live.next()).await;
        let next = next.expect("an event comes").expect("it goes on");
        match next.expect("it reads") {
            StreamEvent::Message(received) => {
                heard += 1;
                match received.source {
                    Source::Sync(from) if from == peer => drop(came.insert(received.number)),
                    source => assert_eq!(source, Source::Elsewhere),
                }
            }
            StreamEvent::SyncStarted { peer: who } if who == peer => started += 1,
            StreamEvent::SyncEnded {
                peer: who,
                appended,
                ..
            } if who == peer => brought += appended,
            _ => {}
        }
    }
    assert_eq!((came.len(), brought), (20, 20));
    assert!(started > 0);
    group.end().await;
}

async fn a_stock_node_lets_go_of_what_a_member_pruned(line: Line) {
    let group = Group::of(3, line).await;
    let streams = streams(&group);
    let old = publish(&streams[..1], "old", 30).await;
    let mut stock = group.meet("reader", Dials::Stock, &[0]).await;
    reads(&stock, &group, &old).await;
    let pruning = streams[0].prune(Some("the state")).await.expect("signed");
    let pruned = within("the commit", pruning).await.expect("published");
    let topic = group.topic.to_string();
    let told = |seen: &Seen| {
        let messages = seen.messages.get(&topic)?;
        messages.get(&pruned.id.to_string()).cloned()
    };
    let text = stock.when("it tells the message of the prune", told).await;
    assert_eq!(text, "the state");
    let alone = |heights: &[crate::stock::Height]| {
        heights.iter().any(|it| (it.highest, it.held) == (30, 1))
    };
    let what = "it holds the last operation alone";
    stock.heights_when(group.topic, what, alone).await;
    // A node that comes later begins there.
    let late = group.meet("late", Dials::Stock, &[1]).await;
    let wanted = BTreeMap::from([(pruned.id.to_string(), text)]);
    reads(&late, &group, &wanted).await;
    late.stop().await;
    stock.stop().await;
    group.end().await;
}

/// What is signed and not kept: at a node that meets one member of three, and back.
async fn ephemeral_messages_go_both_ways(line: Line) {
    let group = Group::of(3, line).await;
    let streams = streams(&group);
    let mut all = Vec::new();
    for (stream, serving) in streams.iter().zip(&group.members) {
        let presence = stream.ephemeral::<String>(&serving.sync);
        all.push(presence.expect("the topic is open"));
    }
    let mut stock = group.meet("talker", Dials::Stock, &[0]).await;
    let author: Author = stock.address().0.parse().expect("an id");
    stock
        .tell(&format!("ephemeral-subscribe {}", group.topic))
        .await;
    // Nothing is repeated, so what is said before they have met is lost: it is said until heard.
    let mut last = all.pop().expect("three members");
    let talking = async {
        loop {
            stock
                .tell(&format!("ephemeral {} typing", group.topic))
                .await;
            let next = tokio::time::timeout(PAUSE, last.next()).await;
            if let Ok(heard) = next {
                let heard = heard.expect("open").expect("a text");
                assert_eq!((heard.message.as_str(), heard.author), ("typing", author));
                break;
            }
        }
    };
    let talked = tokio::time::timeout(PATIENCE, talking).await;
    talked.expect("a member hears a stock node");
    let talking = async {
        loop {
            last.publish(&"member".to_owned()).await.expect("open");
            let name = streams[2].author().to_string();
            let heard = stock.seen().ephemeral;
            if heard.contains(&(name, "member".to_owned())) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let talked = tokio::time::timeout(PATIENCE, talking).await;
    talked.expect("a stock node hears a member");
    stock.stop().await;
    group.end().await;
}

/// Between two tries of what may get lost.
const PAUSE: Duration = Duration::from_millis(500);
