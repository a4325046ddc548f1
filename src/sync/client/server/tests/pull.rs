//! When a follower's member looks for news.

use super::*;
use crate::{
    identity::GroupKey,
    log_store::{LogStore, mint::Writer},
    node::Node,
};

#[tokio::test]
async fn the_heads_are_looked_at_when_something_was_appended_or_it_is_time() {
    let node = Node::in_memory().bind_loopback().open().await;
    let node = node.expect("loopback can be bound");
    let group = node.create(GroupKey::generate(), LogStore::new()).await;
    let logs = group.expect("it is founded").logs();
    let (topic, line) = (Topic::named("cats"), Line::V07);
    logs.open_topic(topic, line).await.expect("it opens");
    let limits = ServeLimits::default();
    let mut sender = Sender {
        logs: logs.clone(),
        sent: Sent::new(),
        seen: None,
        limits: &limits,
    };
    let mut writer = Writer::new(1, topic, line);
    let first = writer.next("a");
    let (author, log) = (first.author(), first.log_id());
    logs.append(topic, first).await.expect("a quorum is there");
    let count = async |sender: &mut Sender<'_>, look| {
        let news = sender.news(topic, line, look).await;
        news.map(|it| it.len())
    };
    assert_eq!(count(&mut sender, Look::Glance).await.ok(), Some(1));
    // Until something is appended, the topic is not read, or it would be found again.
    assert_eq!(count(&mut sender, Look::Glance).await.ok(), Some(0));
    assert_eq!(count(&mut sender, Look::All).await.ok(), Some(1));
    logs.append(topic, writer.next("b"))
        .await
        .expect("a quorum is there");
    assert_eq!(count(&mut sender, Look::Glance).await.ok(), Some(1));

    logs.dissociate(topic, author).await.expect("it goes");
    assert_eq!(count(&mut sender, Look::All).await.ok(), Some(0));
    logs.associate(topic, author, log).await.expect("it comes");
    assert_eq!(count(&mut sender, Look::Glance).await.ok(), Some(0));
    assert_eq!(count(&mut sender, Look::All).await.ok(), Some(1));

    logs.close_topic(topic).await.expect("it closes");
    let closed = count(&mut sender, Look::Glance).await;
    let unknown = Denied::UnknownTopic;
    assert!(
        matches!(closed, Err(ServeError::Denied { why, .. }) if why == unknown),
        "{closed:?}"
    );
    node.shutdown().await;
}
