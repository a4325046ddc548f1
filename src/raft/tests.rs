//! openraft's own suite on our journal and state, on both stores; and what it does not test.

mod refusals;

use std::{io, sync::Arc};

use bytes::Bytes;
use openraft::{
    EntryPayload, RaftLogReader, StorageError,
    storage::{
        IOFlushed, RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine,
    },
    testing::log::{StoreBuilder, Suite},
};

use super::{
    Command, Entry, Types, Vote,
    entry::Batch,
    journal::Log,
    log_id,
    machine::{SnapshotFile, StateHandle},
};
use crate::{
    identity::{Genesis, GroupId, MemberId},
    machine::{Host, Map, MapCommand, MapQuery, Views, encode},
    metrics::Counters,
    storage::{NewGroup, Store},
};

/// A store with one group, and its directory if it is on disk.
struct Disk {
    store: Store,
    _dir: Option<tempfile::TempDir>,
}

fn in_memory() -> Disk {
    Disk {
        store: Store::in_memory(Arc::default()),
        _dir: None,
    }
}

#[cfg(feature = "rocksdb")]
fn on_disk() -> Disk {
    let dir = tempfile::tempdir().expect("a directory");
    let config = crate::config::Config::default();
    let store = Store::open(dir.path(), &config, Arc::default()).expect("opens");
    Disk {
        store,
        _dir: Some(dir),
    }
}

fn open(store: &Store) -> (Log, StateHandle, Views<Map>) {
    let id = GroupId::from_bytes([7; 32]);
    let record = store.group(&id).expect("reads").unwrap_or_else(|| {
        let new = NewGroup {
            id,
            name: "quorate.map".into(),
            founder: true,
            member: MemberId::mint(),
            genesis: Some(Genesis::mint()),
        };
        store.create_group(new).expect("creates")
    });
    let (host, views) = Host::new(Map::new(), None);
    let snapshots = store.snapshots(record.local).expect("snapshots");
    let log = Log::new(store.journal(record.local).expect("journal"));
    let counters = Arc::<Counters>::default();
    (
        log,
        StateHandle::new(Box::new(host), None, snapshots, counters).expect("opens"),
        views,
    )
}

struct Builder(fn() -> Disk);

impl StoreBuilder<Types, Log, StateHandle, Disk> for Builder {
    async fn build(&self) -> Result<(Disk, Log, StateHandle), StorageError<Types>> {
        let disk = (self.0)();
        let (log, state, _) = open(&disk.store);
        Ok((disk, log, state))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_in_memory() {
    Suite::test_all(Builder(in_memory)).await.expect("passes");
}

#[cfg(feature = "rocksdb")]
#[tokio::test]
async fn openrafts_suite_passes_on_rocksdb() {
    Suite::test_all(Builder(on_disk)).await.expect("passes");
}

fn put(index: u64, key: &str) -> Entry {
    let command = encode(&MapCommand::put(key, key)).expect("encodes");
    let batch = Batch::Commands {
        session: 1,
        first_seq: index,
        lowest_unanswered: 0,
        commands: vec![command],
    };
    entry(1, index, batch.encode())
}

fn entry(term: u64, index: u64, command: Bytes) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Command(command)),
    }
}

async fn apply(state: &mut StateHandle, entries: Vec<Entry>) -> io::Result<()> {
    let entries = entries.into_iter().map(|it| Ok((it, None)));
    state.apply(futures_util::stream::iter(entries)).await
}

async fn terms(log: &mut Log, from: u64, to: u64) -> Vec<(u64, u64)> {
    let read = log.try_get_log_entries(from..to).await.expect("reads");
    read.iter()
        .map(|it| (it.log_id.leader_id.term, it.log_id.index))
        .collect()
}

#[tokio::test]
async fn entries_behind_a_truncation_replace_what_was_there() {
    let disk = in_memory();
    let (mut log, ..) = open(&disk.store);
    let old = (0..10).map(|it| entry(1, it, Batch::Open.encode()));
    log.blocking_append(old).await.expect("appends");
    log.truncate_after(Some(log_id(1, 4)))
        .await
        .expect("truncates");
    let new = (5..7).map(|it| entry(2, it, Batch::Open.encode()));
    log.blocking_append(new).await.expect("appends");
    let expected = [(1, 3), (1, 4), (2, 5), (2, 6)];
    assert_eq!(terms(&mut log, 3, 99).await, expected);
    // And without the tail kept in memory, from the store alone.
    let (mut fresh, ..) = open(&disk.store);
    assert_eq!(terms(&mut fresh, 3, 99).await, expected);
}

#[tokio::test]
async fn entries_older_than_the_tail_in_memory_come_from_the_store() {
    let disk = in_memory();
    let (mut log, ..) = open(&disk.store);
    let large = Bytes::from(vec![7; 700_000]);
    for index in 0..40 {
        let one = [entry(1, index, large.clone())];
        log.blocking_append(one).await.expect("appends");
    }
    let all: Vec<(u64, u64)> = (0..40).map(|it| (1, it)).collect();
    assert_eq!(terms(&mut log, 0, 40).await, all);
    let some = log.limited_get_log_entries(0, 40).await.expect("reads");
    assert!(
        (1..10).contains(&some.len()),
        "bounded by bytes: {}",
        some.len()
    );
}

#[tokio::test]
async fn a_log_that_restarts_behind_a_snapshot_has_no_hole() {
    let disk = in_memory();
    let (mut log, ..) = open(&disk.store);
    let old = (0..10).map(|it| entry(1, it, Batch::Open.encode()));
    log.blocking_append(old).await.expect("appends");
    log.purge(log_id(3, 50)).await.expect("purges");
    let new = (51..53).map(|it| entry(3, it, Batch::Open.encode()));
    log.blocking_append(new).await.expect("appends");
    assert_eq!(terms(&mut log, 0, 99).await, [(3, 51), (3, 52)]);
}

#[tokio::test]
async fn a_snapshot_carries_the_machine_the_sessions_and_the_membership() {
    let disk = in_memory();
    let (_, mut state, _) = open(&disk.store);
    let mut entries = vec![entry(1, 1, Batch::Open.encode())];
    entries.extend((2..50).map(|it| put(it, &format!("key {it}"))));
    apply(&mut state, entries).await.expect("applies");
    let mut builder = state.get_snapshot_builder().await;
    // Applied behind the capture: not in the snapshot.
    apply(&mut state, vec![put(50, "late")])
        .await
        .expect("applies");
    let built = builder.build_snapshot().await.expect("builds");
    assert_eq!(built.meta.last_log_id, Some(log_id(1, 49)));

    let (_, mut other, views) = open(&disk.store);
    other
        .install_snapshot(&built.meta, built.snapshot)
        .await
        .expect("installs");
    assert_eq!(
        other.applied_state().await.expect("state").0,
        Some(log_id(1, 49))
    );
    let get = |key: &str| views.query(MapQuery::get(key)).1.into_value();
    assert_eq!(get("key 7").as_deref(), Some(&b"key 7"[..]));
    assert_eq!(get("late"), None);
    // The sessions came along: a command of before is not applied again.
    let again = Entry {
        log_id: log_id(1, 50),
        payload: put(7, "changed").payload,
    };
    apply(&mut other, vec![again]).await.expect("applies");
    assert_eq!(get("changed"), None);
}

#[tokio::test]
async fn a_snapshot_under_another_name_is_not_installed() {
    let disk = in_memory();
    let (_, mut state, _) = open(&disk.store);
    apply(&mut state, vec![entry(1, 1, Batch::Open.encode())])
        .await
        .expect("applies");
    let built = state
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .expect("builds");
    let mut other = built.meta.clone();
    other.last_log_id = Some(log_id(1, 2));
    assert!(
        state
            .install_snapshot(&other, built.snapshot)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn votes_and_commit_marks_are_found_again() {
    let disk = in_memory();
    let (mut log, ..) = open(&disk.store);
    let vote = Vote::new_committed(4, MemberId::from(9));
    log.save_vote(&vote).await.expect("saves");
    log.save_committed(Some(log_id(3, 17)))
        .await
        .expect("saves");
    let (mut again, ..) = open(&disk.store);
    assert_eq!(again.read_vote().await.expect("reads"), Some(vote));
    assert_eq!(
        again.read_committed().await.expect("reads"),
        Some(log_id(3, 17))
    );
}

#[tokio::test]
async fn an_append_that_the_store_refuses_is_not_readable() {
    let disk = in_memory();
    let (mut log, ..) = open(&disk.store);
    let first = [entry(1, 0, Batch::Open.encode())];
    log.blocking_append(first).await.expect("appends");
    disk.store.close();
    let second = vec![entry(1, 1, Batch::Open.encode())];
    assert!(log.append(second, IOFlushed::noop()).await.is_err());
    assert_eq!(terms(&mut log, 0, 9).await, [(1, 0)]);
}

#[tokio::test]
async fn the_current_snapshot_is_the_one_built_last() {
    let disk = in_memory();
    let (_, mut state, _) = open(&disk.store);
    assert!(state.get_current_snapshot().await.expect("reads").is_none());
    apply(&mut state, vec![entry(1, 1, Batch::Open.encode())])
        .await
        .expect("applies");
    state
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .expect("builds");
    let current = state
        .get_current_snapshot()
        .await
        .expect("reads")
        .expect("is there");
    assert_eq!(current.meta.last_log_id, Some(log_id(1, 1)));
    assert!(matches!(current.snapshot, SnapshotFile::Stored(_)));
}
