//! Who has gone away leaves nothing behind.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::{sync::oneshot, time::timeout};

use super::writer;
use crate::{
    identity::GroupKey,
    log_store::{Line, LogStore, Topic},
    node::Node,
};

/// Else whoever connects, pushes and hangs up, over and over, leaves something here each time.
#[tokio::test]
async fn who_has_gone_waits_for_no_room() {
    let node = Node::in_memory().bind_loopback().open().await;
    let node = node.expect("loopback can be bound");
    let founded = node.create(GroupKey::generate(), LogStore::new()).await;
    let logs = founded.expect("founded").logs();
    let topic = Topic::named("cats");
    let opened = logs.open_topic(topic, Line::V07).await;
    opened.expect("opened");
    let operation = writer(1).next("a");
    let many = vec![operation.clone(); 200_000];
    let _all = logs.in_flight.room(&many, false).await.expect("it is free");

    let (held, let_go) = oneshot::channel::<()>();
    let source = std::iter::once(operation).inspect(move |_| {
        let _ = &held;
    });
    let mut outcomes = Box::pin(logs.append_many(topic, source));
    let waits = timeout(Duration::from_millis(100), outcomes.next()).await;
    assert!(waits.is_err(), "there is room: {waits:?}");
    drop(outcomes);
    let gone = timeout(Duration::from_secs(30), let_go).await;
    gone.expect("it is let go of").expect_err("nothing is sent");
    node.shutdown().await;
}
