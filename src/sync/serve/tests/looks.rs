//! Several looks at what the group holds, at the same time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use tokio::time::timeout;

use super::{
    super::Patience,
    guest::{House, soon, until},
};
use crate::{
    log_store::{Line, Topic},
    sync::{Admission, Outsiders},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_look_at_the_topics_closes_none_that_was_opened_since() {
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let shared = door.shared();
    // The first to look is held up once it has read.
    let scenario = fail::FailScenario::setup();
    let (has_read, reads) = mpsc::sync_channel(1);
    let (goes_on, waits) = mpsc::sync_channel::<()>(1);
    let (held, waits) = (AtomicBool::new(false), Mutex::new(waits));
    let holding_up = fail::cfg_callback("sync::topics_read", move || {
        if !held.swap(true, Relaxed) {
            let _ = has_read.send(());
            let _ = waits.lock().expect("no panic").recv();
        }
    });
    holding_up.expect("it is a name");
    let follow = || {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { shared.follow_topics().await })
    };
    let slow = follow();
    until("it has read", || reads.try_recv().is_ok()).await;
    let topic = Topic::named("birds");
    let outsiders = Outsiders::of(&house.logs[0]);
    let opening = outsiders.open_topic(topic, Line::V07, Admission::everyone());
    soon("the topic", opening).await.expect("a quorum is there");
    let mut later = follow();
    // It may wait for the slow one.
    let before = timeout(Duration::from_millis(500), &mut later).await;
    let opened = shared.feed(topic);
    goes_on.send(()).expect("it waits");
    soon("the slow look", slow).await.expect("no panic");
    if before.is_err() {
        soon("the later look", later).await.expect("no panic");
    }
    let open = opened.or_else(|| shared.feed(topic)).expect("it is open");
    assert!(!open.over.is_cancelled(), "it was closed and opened again");
    assert!(shared.feed(topic).is_some());
    scenario.teardown();
    drop(shared);
    door.stop().await;
    house.close().await;
}
