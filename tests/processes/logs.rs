//! Memory does not grow with the size of the logs.
//!
//! A process of its own appends, reads and follows a long log on RocksDB. It runs with one arena of
//! glibc's allocator: with one a thread, as is the default, what RocksDB's threads give back to
//! each other's arenas adds about 100 MiB over time, which is not the store's to bound.

use std::{fs, process::Command};

use futures_util::{StreamExt, TryStreamExt};
use quorate::{
    GroupKey, Node,
    log_store::{AuthorKey, Draft, Line, LogStore, Logs, Operation, Outcome, Topic},
};

use crate::{cluster::Turn, heavy};

/// The highest that a process may come to, in KiB, however long the logs are: 48 MiB of RocksDB's
/// write buffers and 32 MiB of its caches, what it compacts with, 26 MiB of tables that one of
/// openraft's dependencies makes once, chunks and commands under way, a page of each stream, the
/// program, and what lies idle in the allocator's one arena, up to 60 MiB. The 10,000,000 of the
/// heavy run, appended, read and followed in 50 minutes: 193 MiB, in the release profile.
const BOUND_KIB: u64 = 200 * 1024;
const BODY: usize = 128;
const DIRECTORY: &str = "QUORATE_LOGS_DIRECTORY";
const COUNT: &str = "QUORATE_LOGS_COUNT";

#[test]
fn memory_does_not_grow_with_the_logs() {
    let _turn = Turn::Shared.take();
    // Three quarters of a kilobyte each: of the lighter run too, what is kept by mistake shows.
    let count = if heavy() { 10_000_000 } else { 250_000 };
    let directory = tempfile::tempdir().expect("there is room");
    let child = Command::new(std::env::current_exe().expect("this is it"))
        .args(["logs::log_store_process", "--exact", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .env(COUNT, count.to_string())
        .env("MALLOC_ARENA_MAX", "1")
        .status();
    assert!(child.expect("it starts").success(), "the child failed");
    let peak = fs::read_to_string(directory.path().join("peak")).expect("the child told it");
    let peak: u64 = peak.parse().expect("a number");
    println!("{count} operations: at most {} MiB", peak / 1024);
    assert!(peak < BOUND_KIB, "{} MiB", peak / 1024);
}

/// What the child runs; without its environment it is a test that holds nothing up.
#[test]
fn log_store_process() {
    let (Ok(directory), Ok(count)) = (std::env::var(DIRECTORY), std::env::var(COUNT)) else {
        return;
    };
    let count = count.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let builder = Node::builder(format!("{directory}/node")).bind_loopback();
        let node = builder.open().await.expect("opened");
        let created = node.create(GroupKey::generate(), LogStore::new()).await;
        live(&created.expect("founded").logs(), count).await;
        node.shutdown().await;
    });
    let status = fs::read_to_string("/proc/self/status").expect("of this process");
    let peak = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|it| it.split_whitespace().next());
    let peak = peak.expect("the kernel tells it");
    fs::write(format!("{directory}/peak"), peak).expect("there is room");
}

async fn live(logs: &Logs, count: usize) {
    let topic = Topic::named("long");
    let opened = logs.open_topic(topic, Line::V07).await;
    opened.expect("opened");
    let key = AuthorKey::from_bytes(&[1; 32]);
    let author = key.author();
    let mut last: Option<Operation> = None;
    let minted = (0..count).map(move |_| {
        let body = Some(vec![7; BODY].into());
        let draft = match &last {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(Line::V07, topic.log_id(), 7, body),
        };
        let operation = Operation::sign(draft, &key).expect("an honest draft");
        last = Some(operation.clone());
        operation
    });
    let mut appended = 0;
    let mut outcomes = std::pin::pin!(logs.append_many(topic, minted));
    while let Some(outcome) = outcomes.try_next().await.expect("a quorum of one") {
        assert!(
            matches!(outcome, Outcome::Appended { .. }),
            "{outcome:?} at {appended}"
        );
        appended += 1;
    }
    assert_eq!(appended, count);
    let counted = |count, _| async move { Ok(count + 1) };
    let read = logs.read(author, topic.log_id(), ..).try_fold(0, counted);
    assert_eq!(read.await.expect("read"), count);
    let commits = logs.subscribe(topic, 0).take(count);
    let followed = commits.try_fold(0, |count, _| async move { Ok(count + 1) });
    assert_eq!(followed.await.expect("followed"), count);
}
