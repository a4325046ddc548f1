//! A machine in the store: what a restart finds, what a snapshot carries, what a fault leaves.

mod history;

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use openraft::{
    EntryPayload, StorageError,
    storage::{RaftSnapshotBuilder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};

use super::{
    Command, Entry, Types,
    entry::Batch,
    journal::Log,
    log_id,
    machine::{SnapshotFile, StateHandle},
    sessions::Sessions,
    stored::Stored,
};
use crate::{
    identity::{Genesis, GroupId, MemberId},
    machine::{
        Host, Order, Position, Snapshot, SnapshotReader, StateMachine, Table, TableView, Views,
        encode,
    },
    storage::{GroupRecord, NewGroup, Store},
};

/// A sum for each key. A key of `clear` deletes a range, one of `panic` panics.
#[derive(Default)]
struct Sums {
    table: Table,
    /// Said instead of restoring the table.
    forgets_to_restore: Arc<AtomicBool>,
}

type Change = (String, i64, u32);

impl StateMachine for Sums {
    const NAME: &'static str = "test.sums";
    const STORED: bool = true;
    type Command = Change;
    /// The sum, and as many bytes as were asked for.
    type Output = (i64, Vec<u8>);
    type Query = ();
    type Answer = ();
    type View = TableView;

    fn open(&mut self, table: Table) {
        self.table = table;
    }
    fn apply(&mut self, _: Position, (key, by, bytes): Change) -> (i64, Vec<u8>) {
        if let Some(from) = key.strip_prefix("clear ") {
            self.table.delete_range(from.as_bytes(), b"");
            return (0, Vec::new());
        }
        assert!(key != "panic", "asked to");
        let before = self.table.get(key.as_bytes());
        let before = before.map_or(0, |it| {
            i64::from_be_bytes(it[..].try_into().expect("8 bytes"))
        });
        let sum = before + by;
        self.table.put(key.as_bytes(), sum.to_be_bytes().to_vec());
        (sum, vec![7; bytes as usize])
    }
    fn view(&self) -> TableView {
        self.table.view()
    }
    fn query(_: &TableView, (): ()) {}
    fn snapshot(&self) -> Snapshot {
        Snapshot::of_table(&self.table)
    }
    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        if self.forgets_to_restore.load(Relaxed) {
            return Ok(());
        }
        self.table.restore(from)
    }
}

type Content = BTreeMap<String, i64>;

fn content(view: &TableView) -> io::Result<(Position, Content)> {
    view.read(|moment| {
        let mut content = Content::new();
        moment.scan(b"", b"", Order::Ascending, &mut |key, value| {
            let sum = i64::from_be_bytes(value.try_into().expect("8 bytes"));
            content.insert(String::from_utf8_lossy(key).into_owned(), sum);
            ControlFlow::Continue(())
        })?;
        Ok((moment.applied(), content))
    })?
}

fn group(store: &Store) -> GroupRecord {
    let id = GroupId::from_bytes([7; 32]);
    store.group(&id).expect("reads").unwrap_or_else(|| {
        let new = NewGroup {
            id,
            name: Sums::NAME.into(),
            founder: true,
            member: MemberId::mint(),
            genesis: Some(Genesis::mint()),
        };
        store.create_group(new).expect("creates")
    })
}

fn start_with(store: &Store, machine: Sums) -> (StateHandle, Views<Sums>) {
    let local = group(store).local;
    let stored = Stored::open(store, local).expect("opens");
    let (host, views) = Host::new(machine, Some(stored.table()));
    let snapshots = store.snapshots(local).expect("snapshots");
    let state = StateHandle::new(Box::new(host), Some(stored), snapshots, Arc::default());
    (state.expect("opens"), views)
}

fn start(store: &Store) -> (StateHandle, Views<Sums>) {
    start_with(store, Sums::default())
}

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

struct Builder(fn() -> Disk);

impl StoreBuilder<Types, Log, StateHandle, Disk> for Builder {
    async fn build(&self) -> Result<(Disk, Log, StateHandle), StorageError<Types>> {
        let disk = (self.0)();
        let (state, _) = start(&disk.store);
        let log = Log::new(
            disk.store
                .journal(group(&disk.store).local)
                .expect("journal"),
        );
        Ok((disk, log, state))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_with_a_machine_in_the_memory_store() {
    Suite::test_all(Builder(in_memory)).await.expect("passes");
}

#[cfg(feature = "rocksdb")]
#[tokio::test]
async fn openrafts_suite_passes_with_a_machine_in_rocksdb() {
    Suite::test_all(Builder(on_disk)).await.expect("passes");
}

fn normal(index: u64, batch: &Batch) -> Entry {
    Entry {
        log_id: log_id(1, index),
        payload: EntryPayload::Normal(Command(batch.encode())),
    }
}

fn commands(session: u64, first_seq: u64, lowest_unanswered: u64, changes: &[Change]) -> Batch {
    Batch::Commands {
        session,
        first_seq,
        lowest_unanswered,
        commands: changes
            .iter()
            .map(|it| encode(it).expect("encodes"))
            .collect(),
    }
}

async fn apply(state: &mut StateHandle, entries: Vec<Entry>) -> io::Result<()> {
    let entries = entries.into_iter().map(|it| Ok((it, None)));
    state.apply(futures_util::stream::iter(entries)).await
}

fn bytes_of(sessions: &Sessions) -> Vec<u8> {
    let mut bytes = Vec::new();
    sessions.write(&mut bytes).expect("memory takes it");
    bytes
}

fn change(key: &str) -> Change {
    (key.into(), 1, 0)
}

fn opened() -> Entry {
    normal(1, &Batch::Open)
}

#[tokio::test]
async fn a_restart_applies_nothing_again() {
    let disk = in_memory();
    let (mut state, _) = start(&disk.store);
    let batch = commands(1, 0, 0, &[change("k")]);
    apply(&mut state, vec![opened(), normal(2, &batch)])
        .await
        .expect("applies");
    drop(state);
    let (mut state, views) = start(&disk.store);
    let applied = state.applied_state().await.expect("sound").0;
    assert_eq!(applied, Some(log_id(1, 2)));
    // What stands in the journal twice, by a retry, is answered and not applied.
    apply(&mut state, vec![normal(3, &batch)])
        .await
        .expect("applies");
    let (at, held) = content(&views.latest().1).expect("reads");
    assert_eq!((at.index, held), (3, Content::from([("k".into(), 1)])));
}

#[tokio::test]
async fn more_than_fits_one_batch_is_written_in_several() {
    let disk = in_memory();
    let (mut state, views) = start(&disk.store);
    let keys = (0..3_000).map(|it| commands(1, it, it, &[(it.to_string(), 1, 2_000)]));
    let mut entries = vec![opened()];
    entries.extend((2..).zip(keys).map(|(index, batch)| normal(index, &batch)));
    apply(&mut state, entries).await.expect("applies");
    assert_eq!(content(&views.latest().1).expect("reads").1.len(), 3_000);
    let table = state.sessions().await;
    drop(state);
    let (state, views) = start(&disk.store);
    assert!(state.sessions().await == table);
    assert_eq!(content(&views.latest().1).expect("reads").1.len(), 3_000);
}

async fn a_snapshot_is_taken_over_by(from: &Disk, to: &Disk) {
    let (mut state, _) = start(&from.store);
    let changes: Vec<Change> = (0..200).map(|it| change(&format!("{it}"))).collect();
    let entries = vec![opened(), normal(2, &commands(1, 0, 0, &changes))];
    apply(&mut state, entries).await.expect("applies");
    let mut builder = state.get_snapshot_builder().await;
    // Applied behind the capture: not in the snapshot.
    let late = commands(1, 200, 0, &[change("late"), change("clear ")]);
    apply(&mut state, vec![normal(3, &late)])
        .await
        .expect("applies");
    let built = builder.build_snapshot().await.expect("builds");

    let (mut other, views) = start(&to.store);
    let former = commands(1, 0, 0, &[change("former")]);
    apply(&mut other, vec![opened(), normal(2, &former)])
        .await
        .expect("applies");
    let view = views.latest().1;
    let meta = built.meta.clone();
    other
        .install_snapshot(&meta, built.snapshot)
        .await
        .expect("installs");
    let expected: Content = (0..200).map(|it| (it.to_string(), 1)).collect();
    // The view taken before sees the latest, too.
    for view in [view, views.latest().1] {
        let (at, held) = content(&view).expect("reads");
        assert_eq!((at.index, &held), (2, &expected));
    }
    let again = commands(1, 0, 0, &changes);
    apply(&mut other, vec![normal(3, &again)])
        .await
        .expect("applies");
    let table = other.sessions().await;
    drop(other);
    let (other, views) = start(&to.store);
    assert!(other.sessions().await == table);
    assert_eq!(content(&views.latest().1).expect("reads").1, expected);
}

#[tokio::test]
async fn a_snapshot_carries_the_table_from_store_to_store() {
    a_snapshot_is_taken_over_by(&in_memory(), &in_memory()).await;
}

#[cfg(feature = "rocksdb")]
#[tokio::test]
async fn a_snapshot_carries_the_table_from_disk_to_disk() {
    a_snapshot_is_taken_over_by(&on_disk(), &on_disk()).await;
}

#[tokio::test]
async fn a_restore_that_leaves_the_table_alone_is_refused() {
    let disk = in_memory();
    let (mut state, _) = start(&disk.store);
    apply(&mut state, vec![opened()]).await.expect("applies");
    let built = state
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .expect("builds");
    let other = in_memory();
    let machine = Sums::default();
    machine.forgets_to_restore.store(true, Relaxed);
    let (mut state, _) = start_with(&other.store, machine);
    let error = state.install_snapshot(&built.meta, built.snapshot).await;
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("Table::restore"), "{error}");
}

#[tokio::test]
async fn a_damaged_snapshot_leaves_the_former_state() {
    let disk = in_memory();
    let (mut state, _) = start(&disk.store);
    apply(
        &mut state,
        vec![opened(), normal(2, &commands(1, 0, 0, &[change("k")]))],
    )
    .await
    .expect("applies");
    let built = state
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .expect("builds");
    let SnapshotFile::Stored(whole) = built.snapshot else {
        panic!("it was built here");
    };
    // The machine's part cut short, in a file that is whole itself.
    let mut inside = Vec::new();
    io::Read::read_to_end(&mut whole.reader(), &mut inside).expect("reads");
    let snapshots = disk
        .store
        .snapshots(group(&disk.store).local)
        .expect("snapshots");
    let cut = snapshots
        .build_next(whole.meta().clone(), |out| {
            out.write_all(&inside[..inside.len() - 6])
        })
        .expect("built");

    let other = in_memory();
    let (mut state, views) = start(&other.store);
    apply(&mut state, vec![opened()]).await.expect("applies");
    let before = content(&views.latest().1).expect("reads");
    let installed = state
        .install_snapshot(&built.meta, SnapshotFile::Stored(cut))
        .await;
    installed.expect_err("it is cut");
    let error = apply(&mut state, vec![normal(3, &Batch::Open)])
        .await
        .expect_err("stopped");
    assert!(state.broken().borrow().is_some(), "{error}");
    assert_eq!(content(&views.latest().1).expect("reads"), before);
    drop(state);
    let (mut state, views) = start(&other.store);
    assert_eq!(
        state.applied_state().await.expect("sound").0,
        Some(log_id(1, 1))
    );
    assert_eq!(content(&views.latest().1).expect("reads"), before);
}

#[tokio::test]
async fn nothing_of_an_apply_that_panicked_or_met_a_closed_store_is_seen() {
    for fault in ["panic", "close"] {
        let disk = in_memory();
        let (mut state, views) = start(&disk.store);
        let sound = normal(2, &commands(1, 0, 0, &[change("sound")]));
        apply(&mut state, vec![opened(), sound])
            .await
            .expect("applies");
        let view = views.latest().1;
        let before = content(&view).expect("reads");
        if fault == "close" {
            disk.store.close();
        }
        let changes = [change("half"), change(fault), change("other")];
        let entries = vec![normal(3, &commands(1, 1, 0, &changes))];
        let error = apply(&mut state, entries).await.expect_err("it cannot");
        let cause = state.broken().borrow().clone().expect("it stops the group");
        assert!(error.to_string().contains(cause.as_str()), "{error}");
        if fault == "close" {
            assert!(cause.as_str().contains("closed"), "{cause}");
            content(&view).expect_err("an error, not a panic");
        } else {
            assert_eq!(content(&view).expect("reads"), before);
        }
        let more = vec![normal(4, &Batch::Open)];
        apply(&mut state, more)
            .await
            .expect_err("nothing more is applied");
        let store = disk.store.reopened(Arc::default()).expect("in memory");
        let (mut state, views) = start(&store);
        assert_eq!(
            state.applied_state().await.expect("sound").0,
            Some(log_id(1, 2))
        );
        assert_eq!(content(&views.latest().1).expect("reads"), before);
    }
}

#[tokio::test]
async fn a_former_owner_writes_no_more() {
    let disk = in_memory();
    let (mut former, _) = start(&disk.store);
    apply(&mut former, vec![opened()]).await.expect("applies");
    let (mut state, _) = start(&disk.store);
    let error = apply(&mut former, vec![normal(2, &Batch::Open)])
        .await
        .expect_err("too late");
    assert!(error.to_string().contains("opened anew"), "{error}");
    apply(&mut state, vec![normal(2, &Batch::Open)])
        .await
        .expect("applies");
}

#[tokio::test]
async fn a_pinned_snapshot_that_nobody_writes_holds_nothing_up() {
    let disk = in_memory();
    let (mut state, _) = start(&disk.store);
    apply(&mut state, vec![opened()]).await.expect("applies");
    drop(state.get_snapshot_builder().await);
    let kept = state.get_snapshot_builder().await;
    disk.store.close();
    let mut kept = kept;
    assert!(kept.build_snapshot().await.is_err());
}

#[tokio::test]
async fn a_start_reads_no_more_answers_than_a_checkpoint_leaves() {
    let disk = in_memory();
    let (mut state, _) = start(&disk.store);
    apply(&mut state, vec![opened()]).await.expect("applies");
    for index in 2..200 {
        let large = commands(1, index, index, &[("k".into(), 1, 50_000)]);
        apply(&mut state, vec![normal(index, &large)])
            .await
            .expect("applies");
    }
    let table = state.sessions().await;
    drop(state);
    let local = group(&disk.store).local;
    let (_, resumed) = disk.store.state(local).expect("reads");
    let bytes: usize = resumed.answers.iter().map(Bytes::len).sum();
    assert!(bytes < 1_100_000, "{bytes} of 10 MB");
    assert!(resumed.checkpoint.is_some());
    let (state, _) = start(&disk.store);
    assert!(state.sessions().await == table);
}

#[tokio::test]
async fn answers_keep_their_bytes() {
    // The frozen bytes of what the sessions are rebuilt from.
    let disk = in_memory();
    let (mut state, _) = start(&disk.store);
    let batch = commands(1, 0, 0, &[("k".into(), 300, 1)]);
    apply(&mut state, vec![opened(), normal(2, &batch)])
        .await
        .expect("applies");
    drop(state);
    let (_, resumed) = disk.store.state(group(&disk.store).local).expect("reads");
    let written: Vec<String> = resumed
        .answers
        .iter()
        .map(|it: &Bytes| data_encoding::HEXLOWER.encode(it))
        .collect();
    assert_eq!(
        written,
        ["0001010102000100000101".to_owned() + "04d8040107"]
    );
}
