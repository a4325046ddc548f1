//! What the directory of a store survives, and what it refuses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    tests::{append, content, group, open, raw, receive, record, records, wait},
    *,
};
use crate::config::Config;

fn open_error(dir: &Path) -> OpenError {
    Store::open(dir, &Config::default(), Arc::default())
        .map(drop)
        .expect_err("it does not open")
}

/// The log file that holds the latest writes.
fn newest_log(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("db")).expect("a database");
    let mut logs: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|it| it == "log"))
        .filter(|path| path.metadata().expect("readable").len() > 0)
        .collect();
    logs.sort();
    logs.pop().expect("a log with something in it")
}

/// A store with a journal of 200 records in its log, closed.
fn written(dir: &Path) -> LocalGroup {
    let store = open(dir);
    let local = group(&store);
    let journal = store.journal(local).expect("journal");
    for index in 0..200 {
        wait(|done| journal.append(&[record(index, 1)], done)).expect("appended");
    }
    local
}

#[test]
fn everything_is_there_after_a_reopen() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let local = group(&store);
    let journal = store.journal(local).expect("journal");
    append(&journal, 0..100, 1);
    journal.truncate_from(90).expect("truncated");
    append(&journal, 90..95, 2);
    journal.purge_through(1, 49).expect("purged");
    let bytes = journal.bytes_since(60);
    wait(|done| journal.save_vote("vote".into(), done)).expect("voted");
    journal.save_committed("committed".into()).expect("noted");
    let snapshots = store.snapshots(local).expect("snapshots");
    snapshots
        .build_next("old".into(), |out| out.write_all(b"old"))
        .expect("built");
    snapshots
        .install(receive(&snapshots, &raw(b"new", b"state")).expect("whole"))
        .expect("in");
    let groups = store.groups().expect("groups");
    // Somebody still holds the journal: closing releases the directory all the same.
    store.close();

    let store = open(dir.path());
    assert_eq!(store.groups().expect("groups"), groups);
    let journal = store.journal(local).expect("journal");
    assert_eq!(
        (journal.purged(), journal.last()),
        (Some((1, 49)), Some((2, 94)))
    );
    let expected = [records(50..90, 1), records(90..95, 2)].concat();
    assert_eq!(
        journal.read(0..u64::MAX, usize::MAX).expect("read"),
        expected
    );
    assert_eq!(journal.bytes_since(60), bytes);
    assert_eq!(journal.vote(), Some("vote".into()));
    assert_eq!(journal.committed(), Some("committed".into()));
    let current = store
        .snapshots(local)
        .expect("snapshots")
        .current()
        .expect("installed");
    assert_eq!(current.meta(), "new");
    assert_eq!(content(&current), b"state");
}

#[test]
fn a_second_opener_is_refused_by_the_name_of_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains(&dir.path().display().to_string()),
        "{error}"
    );
    drop(store);
    open(dir.path());
}

#[test]
fn a_newer_format_is_refused_by_name_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("FORMAT"), "quorate store format 7\n").expect("written");
    let error = open_error(dir.path());
    assert!(
        matches!(error, OpenError::Newer { found: 7, known: 2 }),
        "{error}"
    );
    assert!(error.to_string().contains("format 7"), "{error}");
    assert!(!dir.path().join("db").exists());
}

#[test]
fn an_unreadable_or_missing_format_is_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    written(dir.path());
    let path = dir.path().join("FORMAT");
    fs::write(&path, "quorate").expect("written");
    assert!(matches!(open_error(dir.path()), OpenError::Corrupt(_)));
    fs::remove_file(&path).expect("removed");
    assert!(matches!(open_error(dir.path()), OpenError::Corrupt(_)));
}

#[test]
fn a_torn_tail_of_the_log_loses_only_the_tail() {
    for torn in [1, 7, 40, 300] {
        let dir = tempfile::tempdir().expect("a directory");
        let local = written(dir.path());
        let log = fs::File::options()
            .write(true)
            .open(newest_log(dir.path()))
            .expect("opened");
        log.set_len(log.metadata().expect("readable").len() - torn)
            .expect("torn");
        let store = open(dir.path());
        let journal = store.journal(local).expect("journal");
        let left = journal.read(0..u64::MAX, usize::MAX).expect("sound");
        assert!(
            (190..200).contains(&left.len()),
            "{} left of {torn} torn",
            left.len()
        );
        assert_eq!(left, records(0..left.len() as u64, 1));
        append(&journal, left.len() as u64..300, 2);
    }
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    written(dir.path());
    let path = newest_log(dir.path());
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).expect("written");
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn strays_are_removed_and_a_damaged_snapshot_is_not_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let local = group(&store);
    let build = |store: &Store, meta: &'static str| {
        let snapshots = store.snapshots(local).expect("snapshots");
        snapshots
            .build_next(meta.into(), |out| out.write_all(b"state"))
            .expect("built");
    };
    build(&store, "one");
    store.close();
    let place = dir.path().join("snapshots/1");
    fs::write(place.join("0.part"), b"cut short").expect("written");
    fs::copy(place.join("1.snapshot"), place.join("0.snapshot")).expect("copied");

    let store = open(dir.path());
    build(&store, "two");
    store.close();
    let names: Vec<_> = fs::read_dir(&place)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    assert_eq!(names, ["2.snapshot"]);

    let newest = place.join("2.snapshot");
    let mut bytes = fs::read(&newest).expect("read");
    bytes.pop();
    fs::write(&newest, bytes).expect("written");
    let error = open(dir.path())
        .snapshots(local)
        .expect_err("the journal behind it is gone");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}

#[test]
fn a_dropped_receiver_and_a_dropped_stage_leave_no_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let snapshots = store.snapshots(group(&store)).expect("snapshots");
    let whole = raw(b"meta", &[1; 100_000]);
    let mut receiver = snapshots.receive().expect("room");
    receiver.write_chunk(0, &whole[..50_000]).expect("taken");
    drop(receiver);
    drop(receive(&snapshots, &whole).expect("whole"));
    snapshots
        .build_next("m".into(), |_| Err(io::Error::other("no")))
        .expect_err("failed");
    let place = dir.path().join("snapshots/1");
    assert_eq!(fs::read_dir(place).expect("a directory").count(), 0);
}

#[test]
fn concurrent_writers_share_syncs() {
    let dir = tempfile::tempdir().expect("a directory");
    let counters = Arc::<Counters>::default();
    let store = Store::open(dir.path(), &Config::default(), Arc::clone(&counters)).expect("opens");
    std::thread::scope(|scope| {
        for byte in 1..=8 {
            let local = store
                .create_group(super::tests::new_group(byte))
                .expect("made")
                .local;
            let journal = store.journal(local).expect("journal");
            scope.spawn(move || {
                for index in 0..50 {
                    append(&journal, index..index + 1, 1);
                }
            });
        }
    });
    let metrics = counters.read();
    assert_eq!(metrics.journal_entries, 400);
    assert_eq!(metrics.synced_writes, 408);
    assert!(metrics.syncs <= metrics.synced_writes, "{metrics:?}");
}
