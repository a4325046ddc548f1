//! Kills a process between any two steps of what the store does, and looks at what is left.
//!
//! A child process (this test binary again) works through a script and aborts at the nth pass of
//! one failpoint. It tells each finished step. The parent reopens the directory: what it sees must
//! be the picture after the last finished step, or after the one that was under way. The pictures
//! are taken from the same script on the in-memory store. Every pass of every failpoint is tried.

use std::{
    io::Write,
    ops::ControlFlow,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    engine::Visit,
    tests::{append, content, genesis, new_group, open, raw, receive, records, wait},
    *,
};

const DIR: &str = "QUORATE_CRASH_DIR";
const POINT: &str = "QUORATE_CRASH_POINT";
const PASSES: &str = "QUORATE_CRASH_PASSES";
/// More passes of one failpoint than the script has.
const PASSES_MAX: u64 = 150;

type Step = fn(&Store);

const SCRIPT: &[Step] = &[
    |store| drop(store.create_group(new_group(1)).expect("created")),
    |store| store.set_genesis(local(store, 0), genesis(7)).expect("set"),
    |store| vote(store, "one"),
    |store| append(&journal(store), 0..10, 1),
    |store| append(&journal(store), 10..50, 1),
    |store| vote(store, "two"),
    |store| journal(store).truncate_from(45).expect("truncated"),
    |store| append(&journal(store), 45..60, 2),
    |store| journal(store).truncate_from(10).expect("truncated"),
    |store| append(&journal(store), 10..80, 3),
    |store| build(store, 0, b"one"),
    |store| journal(store).purge_through(3, 40).expect("purged"),
    |store| journal(store).purge_through(3, 45).expect("purged"),
    |store| build(store, 0, b"two"),
    |store| install(store, b"three"),
    |store| journal(store).purge_through(9, 200).expect("purged"),
    |store| append(&journal(store), 201..210, 9),
    |store| table_write(store, 0, &["one"], b"answers"),
    |store| table_write(store, 0, &["two", "three"], b"more answers"),
    |store| table_checkpoint(store, "four", 700_000),
    |store| table_write(store, 0, &["five"], b"answers after"),
    |store| table_restore(store, 100, 300_000),
    |store| table_write(store, 0, &["six"], b"answers again"),
    |store| table_restore(store, 3, 10),
    |store| drop(store.create_group(new_group(2)).expect("created")),
    |store| table_write(store, 1, &["other"], b"other answers"),
    |store| append(&store.journal(local(store, 1)).expect("journal"), 0..40, 1),
    |store| build(store, 1, b"other"),
    |store| store.remove_group(local(store, 1)).expect("removed"),
    |store| drop(store.create_group(new_group(2)).expect("created")),
    |store| append(&store.journal(local(store, 1)).expect("journal"), 0..3, 5),
];

fn local(store: &Store, nth: usize) -> LocalGroup {
    store.groups().expect("groups")[nth].local
}

fn journal(store: &Store) -> Journal {
    store.journal(local(store, 0)).expect("journal")
}

fn vote(store: &Store, vote: &'static str) {
    wait(|done| journal(store).save_vote(vote.into(), done)).expect("voted");
}

/// Content of more than one chunk, other for each meta.
fn state(meta: &[u8]) -> Vec<u8> {
    meta.repeat(50_000)
}

fn build(store: &Store, nth: usize, meta: &'static [u8]) {
    let snapshots = store.snapshots(local(store, nth)).expect("snapshots");
    snapshots
        .build_next(meta.into(), |out| out.write_all(&state(meta)))
        .expect("built");
}

fn install(store: &Store, meta: &[u8]) {
    let snapshots = store.snapshots(local(store, 0)).expect("snapshots");
    let staged = receive(&snapshots, &raw(meta, &state(meta))).expect("whole");
    snapshots.install(staged).expect("installed");
}

/// Clears what was there, puts these, and notes the last.
fn table_write(store: &Store, nth: usize, keys: &[&'static str], answers: &[u8]) {
    let (state, _) = store.state(local(store, nth)).expect("state");
    let mut batch = state.batch(0);
    state.delete_range(&mut batch, b"", &[0xff]).expect("sound");
    for key in keys {
        state.put(&mut batch, key.as_bytes(), key.as_bytes());
    }
    let note = SessionsNote::Answers(answers.to_vec());
    let last = keys.last().expect("there is one").as_bytes();
    state.write(batch, note, last.into()).expect("written");
}

fn table_checkpoint(store: &Store, key: &'static str, bytes: usize) {
    let (state, _) = store.state(local(store, 0)).expect("state");
    let mut batch = state.batch(0);
    state.put(&mut batch, key.as_bytes(), b"checkpointed");
    let checkpoint = state.write_checkpoint(|out| out.write_all(&vec![7; bytes]));
    let note = SessionsNote::Checkpoint(checkpoint.expect("written"));
    state.write(batch, note, key.into()).expect("written");
}

/// Replaces the table by so many pairs.
fn table_restore(store: &Store, pairs: u8, bytes: usize) {
    let (state, _) = store.state(local(store, 0)).expect("state");
    state.start_over().expect("begun");
    for n in 0..pairs {
        let pair = (Bytes::from(vec![n]), Bytes::from(vec![n; 1_000]));
        state.fill(&[pair]).expect("filled");
    }
    let checkpoint = state.write_checkpoint(|out| out.write_all(&vec![pairs; bytes]));
    let note = SessionsNote::Checkpoint(checkpoint.expect("written"));
    state
        .write(state.batch(0), note, vec![pairs].into())
        .expect("switched");
}

/// All that can be seen of a store.
#[derive(Clone, Debug, PartialEq)]
struct Picture(Vec<GroupPicture>);

#[derive(Clone, Debug, PartialEq)]
struct GroupPicture {
    record: GroupRecord,
    vote: Option<Bytes>,
    purged: Option<(u64, u64)>,
    last: Option<(u64, u64)>,
    records: Vec<Record>,
    snapshot: Option<Bytes>,
    state: StatePicture,
}

#[derive(Clone, Debug, PartialEq)]
struct StatePicture {
    note: Option<Bytes>,
    sessions: (Option<u64>, Vec<Bytes>),
    table: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of the whole family, so that nothing is left over.
    keys: usize,
}

impl StatePicture {
    fn of(store: &Store, local: LocalGroup) -> Self {
        let (state, resumed) = store.state(local).expect("sound");
        let mut table = Vec::new();
        let order = Order::Ascending;
        state
            .scan(b"", &[0xff; 9], order, &mut |key, value| {
                table.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .expect("sound");
        let mut keys = 0;
        let (from, to) = keys::state_range(local.number());
        let count: Visit<'_> = &mut |_, _| {
            keys += 1;
            ControlFlow::Continue(())
        };
        let flusher = store.flusher();
        flusher
            .scan(Family::State, &from, &to, order, count)
            .expect("sound");
        let checkpoint = resumed
            .checkpoint
            .map(|it| it.iter().map(|it| u64::from(*it)).sum());
        Self {
            note: resumed.note,
            sessions: (checkpoint, resumed.answers),
            table,
            keys,
        }
    }
}

impl Picture {
    fn of(store: &Store) -> Self {
        let groups = store.groups().expect("sound");
        Self(
            groups
                .into_iter()
                .map(|record| GroupPicture::of(store, record))
                .collect(),
        )
    }
}

impl GroupPicture {
    fn of(store: &Store, record: GroupRecord) -> Self {
        let journal = store.journal(record.local).expect("sound");
        let current = store.snapshots(record.local).expect("sound").current();
        let snapshot = current.map(|snapshot| {
            assert!(
                content(&snapshot) == state(snapshot.meta()),
                "the content is its meta's"
            );
            snapshot.meta().clone()
        });
        let state = StatePicture::of(store, record.local);
        Self {
            record,
            state,
            vote: journal.vote(),
            purged: journal.purged(),
            last: journal.last(),
            records: journal
                .read(0..u64::MAX, usize::MAX)
                .expect("sound and contiguous"),
            snapshot,
        }
    }
}

/// Pictures after no step, after the first, and so on.
fn pictures() -> Vec<Picture> {
    let store = Store::in_memory(Arc::default());
    let mut pictures = vec![Picture::of(&store)];
    for step in SCRIPT {
        step(&store);
        pictures.push(Picture::of(&store));
    }
    pictures
}

fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}")
        .and_then(|()| out.flush())
        .expect("the parent listens");
}

/// What the child process runs; nothing in the parent.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let point = std::env::var(POINT).expect("set with the directory");
    let passes: u64 = std::env::var(PASSES)
        .ok()
        .and_then(|it| it.parse().ok())
        .expect("set");
    let store = open(Path::new(&dir));
    let passed = AtomicU64::new(0);
    fail::cfg_callback(point, move || {
        if passed.fetch_add(1, Ordering::SeqCst) == passes {
            tell("fired");
            std::process::abort();
        }
    })
    .expect("a failpoint");
    for step in SCRIPT {
        step(&store);
        tell("done");
    }
}

/// Runs the child on a fresh directory; steps finished and whether the failpoint fired.
fn run_child(dir: &Path, point: &str, passes: u64) -> (usize, bool) {
    let (_, module) = module_path!()
        .split_once("::")
        .expect("a path inside the crate");
    let output = Command::new(std::env::current_exe().expect("this test binary"))
        .args([
            &format!("{module}::child"),
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .env(POINT, point)
        .env(PASSES, passes.to_string())
        .stderr(Stdio::null())
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout);
    let fired = told.matches("@fired").count();
    assert!(fired <= 1, "{told}");
    assert_eq!(
        output.status.success(),
        fired == 0,
        "{point}, pass {passes}: {told}"
    );
    (told.matches("@done").count(), fired == 1)
}

fn crash_at(point: &str) {
    let pictures = pictures();
    for passes in 0..PASSES_MAX {
        let dir = tempfile::tempdir().expect("a directory");
        let (finished, fired) = run_child(dir.path(), point, passes);
        if !fired {
            assert!(passes > 0, "{point} never fired");
            assert_eq!(finished, SCRIPT.len());
            return;
        }
        let store = open(dir.path());
        let found = Picture::of(&store);
        let allowed = &pictures[finished..(finished + 2).min(pictures.len())];
        assert!(
            allowed.contains(&found),
            "{point}, pass {passes}: after step {finished} of the script\n{found:#?}\nis none of\n\
             {allowed:#?}"
        );
        no_strays(dir.path(), &store);
        goes_on(&store);
    }
    panic!("{point} was passed more than {PASSES_MAX} times");
}

fn no_strays(dir: &Path, store: &Store) {
    let held: Vec<u64> = store
        .groups()
        .expect("groups")
        .iter()
        .map(|it| it.local.number())
        .collect();
    let (from, to) = ([0; 8], [0xff; 8]);
    let of_held: Visit<'_> = &mut |key, _| {
        let group = u64::from_be_bytes(key[..8].try_into().expect("a group"));
        assert!(
            held.contains(&group),
            "state of a group that is gone: {group}"
        );
        ControlFlow::Continue(())
    };
    let flusher = store.flusher();
    flusher
        .scan(Family::State, &from, &to, Order::Ascending, of_held)
        .expect("sound");
    let shelves = std::fs::read_dir(dir.join("snapshots")).expect("a directory");
    let held: Vec<_> = store
        .groups()
        .expect("groups")
        .iter()
        .map(|it| it.local.number().to_string())
        .collect();
    for shelf in shelves {
        let shelf = shelf.expect("readable");
        let name = shelf.file_name().into_string().expect("text");
        assert!(
            held.contains(&name),
            "a directory of a group that is gone: {name}"
        );
        let files = std::fs::read_dir(shelf.path())
            .expect("a directory")
            .count();
        assert!(files <= 1, "{files} files in {}", shelf.path().display());
    }
}

/// What is left can be worked with.
fn goes_on(store: &Store) {
    for byte in [1, 2, 3] {
        // What is not there leaves nothing behind that would be in the way of a new one.
        let new = new_group(byte);
        if store.group(&new.id).expect("sound").is_none() {
            let local = store.create_group(new).expect("created").local;
            let journal = store.journal(local).expect("journal");
            assert_eq!((journal.last(), journal.vote()), (None, None));
            let state = StatePicture::of(store, local);
            assert_eq!((state.note, state.keys), (None, 0));
            assert!(
                store
                    .snapshots(local)
                    .expect("snapshots")
                    .current()
                    .is_none()
            );
        }
    }
    for group in store.groups().expect("groups") {
        let journal = store.journal(group.local).expect("journal");
        let next = journal.last().map_or(0, |(_, index)| index + 1);
        append(&journal, next..next + 2, 99);
        assert_eq!(
            journal.read(next..next + 2, 1_000).expect("read"),
            records(next..next + 2, 99)
        );
        let snapshots = store.snapshots(group.local).expect("snapshots");
        snapshots
            .build_next("after".into(), |out| out.write_all(b"after"))
            .expect("built");
    }
}

macro_rules! crashes {
    ($($name:ident: $point:literal,)+) => {
        const POINTS: &[&str] = &[$($point),+];
        $(
            #[test]
            fn $name() {
                crash_at($point);
            }
        )+
    };
}

crashes! {
    flusher_before_sync: "flusher::before_sync",
    flusher_after_sync: "flusher::after_sync",
    append_before_write: "journal::append::before_write",
    append_after_write: "journal::append::after_write",
    vote_before_write: "journal::vote::before_write",
    vote_after_write: "journal::vote::after_write",
    truncate_before_write: "journal::truncate::before_write",
    truncate_after_write: "journal::truncate::after_write",
    purge_before_write: "journal::purge::before_write",
    purge_after_write: "journal::purge::after_write",
    group_create_before_write: "group::create::before_write",
    group_create_before_sync: "group::create::before_sync",
    group_create_after_sync: "group::create::after_sync",
    group_genesis_before_write: "group::genesis::before_write",
    group_genesis_before_sync: "group::genesis::before_sync",
    group_remove_before_mark: "group::remove::before_mark",
    group_remove_after_mark: "group::remove::after_mark",
    group_remove_after_snapshots: "group::remove::after_snapshots",
    group_remove_after_data: "group::remove::after_data",
    group_remove_after_mapping: "group::remove::after_mapping",
    state_write_before: "state::write::before",
    state_write_after: "state::write::after",
    state_fill_before_write: "state::fill::before_write",
    state_checkpoint_before_chunk: "state::checkpoint::before_chunk",
    state_switch_before_old_deleted: "state::switch::before_old_deleted",
    state_switch_after_old_deleted: "state::switch::after_old_deleted",
    snapshot_build_started: "snapshot::build::started",
    snapshot_chunk_written: "snapshot::chunk_written",
    snapshot_build_before_sync: "snapshot::build::before_sync",
    snapshot_receive_chunk_written: "snapshot::receive::chunk_written",
    snapshot_receive_before_sync: "snapshot::receive::before_sync",
    snapshot_switch_before_rename: "snapshot::switch::before_rename",
    snapshot_switch_before_directory_sync: "snapshot::switch::before_directory_sync",
    snapshot_switch_before_old_removed: "snapshot::switch::before_old_removed",
    snapshot_switch_after_old_removed: "snapshot::switch::after_old_removed",
}

#[test]
fn every_failpoint_has_its_crash() {
    let sources = [
        include_str!("flusher.rs"),
        include_str!("groups.rs"),
        include_str!("journal.rs"),
        include_str!("snapshot_file.rs"),
        include_str!("snapshots.rs"),
        include_str!("state.rs"),
        include_str!("state/checkpoint.rs"),
    ];
    let marker = "fail_point!(\"";
    let mut found: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.split(marker).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    found.sort_unstable();
    let mut tested = POINTS.to_vec();
    tested.sort_unstable();
    assert_eq!(found, tested);
}
