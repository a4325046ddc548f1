//! Streams of messages over the log store.

mod cursors;
mod delivery;
mod ephemeral;
mod minority;
mod publishing;
mod refusals;
mod replays;

use futures_util::future::join_all;
use quorate::{
    log_store::{Line, LogStore, Topic},
    streams::{
        Acknowledge, Published, Publishing, Received, StreamEvent, StreamFrom, Subscription,
        TopicStream,
    },
};

use crate::cluster::{Member, group_of, within};

fn topic() -> Topic {
    Topic::named("chat")
}

/// A group of so many members, and the topic as each of them has it.
async fn chat_of(count: usize) -> (Vec<Member<LogStore>>, Vec<TopicStream>) {
    let members = group_of::<LogStore>(count).await;
    let chats = opened(&members).await;
    (members, chats)
}

async fn opened(members: &[Member<LogStore>]) -> Vec<TopicStream> {
    let chats: Vec<_> = members.iter().map(|it| it.group.topic(topic())).collect();
    let opened = within("the topic is opened", chats[0].open(Line::V07)).await;
    opened.expect("opened");
    for member in members {
        within("all know the topic", member.group.ready())
            .await
            .expect("it runs");
    }
    chats
}

/// Publishes one message and waits for its commit.
async fn say(chat: &TopicStream, text: &str) -> Published {
    let publishing = within("a place", chat.publish(text)).await;
    let published = within("the commit", publishing.expect("it is signed")).await;
    published.expect("it is published")
}

/// Publishes many without waiting in between; what each is to become.
async fn say_many(
    chat: &TopicStream,
    texts: impl IntoIterator<Item = String>,
) -> Vec<(String, Publishing)> {
    let mut under_way = Vec::new();
    for text in texts {
        let publishing = within("a place", chat.publish(&text)).await;
        under_way.push((text, publishing.expect("it is signed")));
    }
    under_way
}

/// Waits for all commits.
async fn committed(under_way: Vec<(String, Publishing)>) -> Vec<(String, Published)> {
    let commits = under_way.into_iter().map(|(text, publishing)| async {
        let published = publishing.await;
        (text, published.expect("it is published"))
    });
    within("the commits", join_all(commits)).await
}

async fn subscribed(
    chat: &TopicStream,
    from: StreamFrom,
    acknowledge: Acknowledge,
) -> Subscription<String> {
    let subscribed = chat.subscribe(from, acknowledge);
    within("a subscription", subscribed).await.expect("it runs")
}

async fn from_start(chat: &TopicStream) -> Subscription<String> {
    subscribed(chat, StreamFrom::Start, Acknowledge::Automatic).await
}

async fn event(subscription: &mut Subscription<String>) -> StreamEvent<String> {
    let next = within("an event", subscription.next()).await;
    next.expect("the subscription goes on")
}

/// The next message, whatever is told before it.
async fn heard(subscription: &mut Subscription<String>) -> Received<String> {
    loop {
        if let StreamEvent::Message(received) = event(subscription).await {
            return received;
        }
    }
}

/// The next messages, with their numbers.
async fn heard_many(subscription: &mut Subscription<String>, count: usize) -> Vec<(u64, String)> {
    let mut messages = Vec::new();
    for _ in 0..count {
        let received = heard(subscription).await;
        messages.push((received.number, received.message));
    }
    messages
}

fn texts(of: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let of = of.to_owned();
    (0..count).map(move |n| format!("{of}/{n}"))
}
