//! What a store does, on both engines.

use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use bytes::Bytes;

use super::{flusher::Synced, *};
use crate::identity::{Genesis, GroupId, MemberId};

/// Runs a test on the memory engine and, where it is built, on RocksDB.
fn on_both(test: impl Fn(&Store)) {
    test(&Store::in_memory(Arc::default()));
    #[cfg(feature = "rocksdb")]
    {
        let dir = tempfile::tempdir().expect("a directory");
        test(&open(dir.path()));
    }
}

#[cfg(feature = "rocksdb")]
pub(super) fn open(dir: &std::path::Path) -> Store {
    Store::open(dir, &crate::config::Config::default(), Arc::default()).expect("it opens")
}

pub(super) fn new_group(byte: u8) -> NewGroup {
    NewGroup {
        id: GroupId::from_bytes([byte; 32]),
        name: format!("test.{byte}"),
        founder: true,
        member: MemberId::from_bytes([byte; 16]),
        genesis: None,
    }
}

pub(super) fn genesis(number: u8) -> Genesis {
    assert!(number < 128, "one byte of postcard");
    postcard::from_bytes(&[number]).expect("a small number")
}

pub(super) fn group(store: &Store) -> LocalGroup {
    store.create_group(new_group(1)).expect("created").local
}

pub(super) fn record(index: u64, term: u64) -> Record {
    let payload = Bytes::from(format!("record {index} of term {term}"));
    Record {
        index,
        term,
        kind: (index % 3) as u8,
        payload,
    }
}

pub(super) fn records(indexes: std::ops::Range<u64>, term: u64) -> Vec<Record> {
    indexes.map(|index| record(index, term)).collect()
}

/// Starts something that answers after a sync, and waits for the answer.
pub(super) fn wait(start: impl FnOnce(Synced) -> io::Result<()>) -> io::Result<()> {
    let (tell, told) = mpsc::sync_channel(1);
    start(Box::new(move |result| {
        tell.send(result).expect("somebody waits")
    }))?;
    told.recv().expect("every callback is called")
}

pub(super) fn append(journal: &Journal, indexes: std::ops::Range<u64>, term: u64) {
    wait(|done| journal.append(&records(indexes, term), done)).expect("appended");
}

fn read_all(journal: &Journal) -> Vec<Record> {
    journal.read(0..u64::MAX, usize::MAX).expect("read")
}

pub(super) fn content(snapshot: &StoredSnapshot) -> Vec<u8> {
    let mut content = Vec::new();
    snapshot.reader().read_to_end(&mut content).expect("sound");
    content
}

pub(super) fn raw(meta: &[u8], content: &[u8]) -> Vec<u8> {
    let mut writer = snapshot_file::ChunkWriter::start(Vec::new()).expect("memory");
    writer.write_all(content).expect("memory");
    writer.finish(meta).expect("memory")
}

pub(super) fn receive(snapshots: &Snapshots, raw: &[u8]) -> io::Result<StagedSnapshot> {
    let mut receiver = snapshots.receive()?;
    for chunk in raw.chunks(10_000) {
        receiver.write_chunk(receiver.received(), chunk)?;
    }
    receiver.finish()
}

#[test]
fn records_come_back_as_they_were_appended() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        assert_eq!(journal.last(), None);
        append(&journal, 0..5, 1);
        append(&journal, 5..9, 2);
        let expected = [records(0..5, 1), records(5..9, 2)].concat();
        assert_eq!(read_all(&journal), expected);
        assert_eq!(
            journal.read(3..7, usize::MAX).expect("read"),
            expected[3..7]
        );
        assert_eq!(journal.read(9..20, usize::MAX).expect("read"), []);
        assert_eq!(journal.last(), Some((2, 8)));
    });
}

#[test]
fn a_record_is_readable_as_soon_as_append_returns() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        journal
            .append(&records(0..1, 1), Box::new(|_| ()))
            .expect("appended");
        assert_eq!(read_all(&journal), records(0..1, 1));
    });
}

#[test]
fn nothing_is_overwritten_and_no_gap_is_left() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        append(&journal, 0..5, 1);
        for misplaced in [3..6, 4..5, 6..8] {
            let error = wait(|done| journal.append(&records(misplaced, 2), done))
                .expect_err("it is not what comes next");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
        let gap = [record(5, 2), record(7, 2)];
        wait(|done| journal.append(&gap, done)).expect_err("6 is missing");
        assert_eq!(read_all(&journal), records(0..5, 1));
        append(&journal, 5..6, 2);
    });
}

#[test]
fn a_read_stops_before_too_many_bytes_but_never_before_the_first() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        append(&journal, 0..10, 1);
        let one = record(0, 1).payload.len();
        for (bytes_max, count) in [(0, 1), (one, 1), (3 * one, 3), (3 * one + 1, 3)] {
            let read = journal.read(0..10, bytes_max).expect("read");
            assert_eq!(read.len(), count, "{bytes_max} bytes");
        }
    });
}

#[test]
fn what_is_truncated_is_gone_and_replaced() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        append(&journal, 0..100, 1);
        // Point deletes, then a range.
        for from in [90, 10] {
            journal.truncate_from(from).expect("truncated");
            assert_eq!(journal.last(), Some((1, from - 1)));
            assert_eq!(read_all(&journal), records(0..from, 1));
        }
        append(&journal, 10..12, 2);
        assert_eq!(
            read_all(&journal),
            [records(0..10, 1), records(10..12, 2)].concat()
        );
        journal.truncate_from(50).expect("nothing to do");
        assert_eq!(journal.last(), Some((2, 11)));
        journal.truncate_from(0).expect("truncated");
        assert_eq!(journal.last(), None);
        append(&journal, 0..3, 3);
    });
}

#[test]
fn a_purged_journal_begins_behind_its_purged_point() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        append(&journal, 0..100, 1);
        for through in [9, 60] {
            journal.purge_through(1, through).expect("purged");
            assert_eq!(journal.purged(), Some((1, through)));
            assert_eq!(read_all(&journal), records(through + 1..100, 1));
        }
        journal.purge_through(1, 30).expect("never goes back");
        assert_eq!(journal.purged(), Some((1, 60)));
        journal
            .truncate_from(0)
            .expect("never below the purged point");
        assert_eq!(journal.last(), Some((1, 60)));
        append(&journal, 61..65, 2);
        assert_eq!(read_all(&journal), records(61..65, 2));
    });
}

#[test]
fn a_purge_beyond_the_end_empties_the_journal() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        append(&journal, 0..10, 1);
        journal.purge_through(7, 500).expect("purged");
        assert_eq!(journal.last(), Some((7, 500)));
        assert_eq!(read_all(&journal), []);
        assert_eq!(journal.bytes_since(0), 0);
        append(&journal, 501..503, 8);
        assert_eq!(read_all(&journal), records(501..503, 8));
    });
}

#[test]
fn the_bytes_behind_an_index_are_counted() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        let size = |records: &[Record]| -> u64 {
            let of = |r: &Record| (r.payload.len() + keys::RECORD_OVERHEAD_BYTES) as u64;
            records.iter().map(of).sum()
        };
        append(&journal, 0..100, 1);
        assert_eq!(journal.bytes_since(99), 0);
        assert_eq!(journal.bytes_since(49), size(&records(50..100, 1)));
        journal.truncate_from(90).expect("truncated");
        append(&journal, 90..95, 2);
        let tail = size(&records(50..90, 1)) + size(&records(90..95, 2));
        assert_eq!(journal.bytes_since(49), tail);
        journal.purge_through(1, 49).expect("purged");
        assert_eq!(journal.bytes_since(49), tail);
        assert_eq!(journal.bytes_since(3), tail);
    });
}

#[test]
fn votes_and_hints_are_kept() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        assert_eq!((journal.vote(), journal.committed()), (None, None));
        wait(|done| journal.save_vote("a".into(), done)).expect("voted");
        wait(|done| journal.save_vote("b".into(), done)).expect("voted");
        journal.save_committed("c".into()).expect("noted");
        let other = store
            .journal(store.groups().expect("groups")[0].local)
            .expect("journal");
        assert_eq!(other.vote(), Some("b".into()));
        assert_eq!(other.committed(), Some("c".into()));
    });
}

#[test]
fn a_reader_never_sees_the_middle_of_a_cut() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        append(&journal, 0..100, 1);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let read = read_all(&journal);
                    let first = read.first().map_or(0, |r| r.index);
                    assert!((first..).zip(&read).all(|(index, r)| r.index == index));
                    assert!(read.is_sorted_by_key(|r| r.term));
                }
            });
            for round in 2..200 {
                journal.truncate_from(60).expect("truncated");
                append(&journal, 60..100, round);
                journal.purge_through(1, round / 4).expect("purged");
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn groups_are_found_by_id_and_do_not_share_journals() {
    on_both(|store| {
        let one = store.create_group(new_group(1)).expect("created");
        let two = store.create_group(new_group(2)).expect("created");
        assert_ne!(one.local, two.local);
        assert_eq!(store.group(&one.id).expect("found"), Some(one.clone()));
        assert_eq!(store.groups().expect("groups"), [one.clone(), two.clone()]);
        append(&store.journal(one.local).expect("journal"), 0..3, 1);
        let other = store.journal(two.local).expect("journal");
        assert_eq!(read_all(&other), []);
        append(&other, 0..2, 5);
        other.truncate_from(0).expect("truncated");
        assert_eq!(
            read_all(&store.journal(one.local).expect("journal")),
            records(0..3, 1)
        );
        let error = store.create_group(new_group(1)).expect_err("it is there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    });
}

#[test]
fn a_genesis_is_set_once() {
    on_both(|store| {
        let local = group(store);
        store.set_genesis(local, genesis(5)).expect("set");
        store
            .set_genesis(local, genesis(5))
            .expect("the same again");
        let error = store.set_genesis(local, genesis(6)).expect_err("another");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(store.groups().expect("groups")[0].genesis, Some(genesis(5)));
    });
}

#[test]
fn a_removed_group_leaves_nothing_and_its_number_is_not_used_again() {
    on_both(|store| {
        let old = store.create_group(new_group(1)).expect("created");
        let journal = store.journal(old.local).expect("journal");
        let snapshots = store.snapshots(old.local).expect("snapshots");
        append(&journal, 0..100, 1);
        snapshots
            .build_next("m".into(), |out| out.write_all(b"state"))
            .expect("built");
        store.put_roster(old.local, b"roster").expect("put");
        store.remove_group(old.local).expect("removed");

        assert_eq!(store.groups().expect("groups"), []);
        let error = wait(|done| journal.append(&records(100..101, 1), done)).expect_err("gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(snapshots.build_next("m".into(), |_| Ok(())).is_err());
        store.journal(old.local).expect_err("no such group");
        store
            .put_roster(old.local, b"x")
            .expect_err("no such group");
        store.remove_group(old.local).expect_err("no such group");

        let new = store.create_group(new_group(1)).expect("created");
        assert!(new.local > old.local);
        assert_eq!(store.journal(new.local).expect("journal").last(), None);
        assert!(
            store
                .snapshots(new.local)
                .expect("snapshots")
                .current()
                .is_none()
        );
        assert_eq!(store.roster(new.local).expect("roster"), None);
    });
}

#[test]
fn the_node_and_the_roster_are_remembered() {
    on_both(|store| {
        assert_eq!(store.node_record().expect("read"), None);
        store.put_node_record(b"port").expect("put");
        assert_eq!(store.node_record().expect("read"), Some("port".into()));
        let local = group(store);
        store.put_roster(local, b"addresses").expect("put");
        assert_eq!(store.roster(local).expect("read"), Some("addresses".into()));
        assert_eq!(store.door(local).expect("read"), None);
        store.put_door(local, b"bind").expect("put");
        assert_eq!(store.door(local).expect("read"), Some("bind".into()));
        assert_eq!(store.roster(local).expect("read"), Some("addresses".into()));
    });
}

#[test]
fn a_snapshot_is_read_while_a_newer_one_replaces_it() {
    on_both(|store| {
        let snapshots = store.snapshots(group(store)).expect("snapshots");
        assert!(snapshots.current().is_none());
        let old_state = vec![1; 200_000];
        let old = snapshots
            .build_next("old".into(), |out| out.write_all(&old_state))
            .expect("built");
        let mut reader = old.reader();
        let mut begin = vec![0; 1_000];
        reader.read_exact(&mut begin).expect("read");

        snapshots
            .build_next("new".into(), |out| out.write_all(b"new"))
            .expect("built");
        let mut rest = Vec::new();
        reader
            .read_to_end(&mut rest)
            .expect("the old one stays readable");
        assert_eq!([begin, rest].concat(), old_state);
        assert_eq!(old.meta(), "old");

        let current = snapshots.current().expect("built");
        assert_eq!(
            (current.meta().as_ref(), content(&current)),
            (&b"new"[..], b"new".to_vec())
        );
    });
}

#[test]
fn a_snapshot_is_sent_raw_and_installed() {
    on_both(|store| {
        let one = store.snapshots(group(store)).expect("snapshots");
        let state: Vec<u8> = (0..300_000).map(|i| (i % 253) as u8).collect();
        let sent = one
            .build_next("meta".into(), |out| out.write_all(&state))
            .expect("built");
        let other = store.create_group(new_group(2)).expect("created").local;
        let two = store.snapshots(other).expect("snapshots");
        let mut receiver = two.receive().expect("room");
        while receiver.received() < sent.len() {
            let chunk = sent.read_at(receiver.received(), 4_000).expect("read");
            receiver
                .write_chunk(receiver.received(), &chunk)
                .expect("taken");
        }
        let error = receiver.write_chunk(7, b"x").expect_err("out of order");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(sent.read_at(sent.len(), 10).expect("the end"), Bytes::new());
        let staged = receiver.finish().expect("whole");
        assert!(two.current().is_none(), "not before the switch");
        assert_eq!(staged.meta(), "meta");
        let installed = two.install(staged).expect("installed");
        assert_eq!(content(&installed), state);
        assert_eq!(content(&two.current().expect("current")), state);
    });
}

#[test]
fn a_damaged_or_cut_snapshot_is_not_staged() {
    on_both(|store| {
        let snapshots = store.snapshots(group(store)).expect("snapshots");
        let whole = raw(b"meta", &[9; 150_000]);
        let mut flipped = whole.clone();
        flipped[100_000] ^= 1;
        for bad in [&flipped[..], &whole[..whole.len() - 1], &whole[1..], b""] {
            let error = receive(&snapshots, bad).expect_err("not whole");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        receive(&snapshots, &whole).expect("whole");
    });
}

#[test]
fn a_failed_build_changes_nothing() {
    on_both(|store| {
        let snapshots = store.snapshots(group(store)).expect("snapshots");
        snapshots
            .build_next("old".into(), |out| out.write_all(b"old"))
            .expect("built");
        snapshots
            .build_next("bad".into(), |_| Err(io::Error::other("no")))
            .expect_err("failed");
        assert_eq!(snapshots.current().expect("old").meta(), "old");
    });
}

#[test]
fn a_build_that_was_overtaken_does_not_replace_what_overtook_it() {
    on_both(|store| {
        let snapshots = store.snapshots(group(store)).expect("snapshots");
        let returned = snapshots
            .build_next("slow".into(), |out| {
                let staged = receive(&snapshots, &raw(b"fast", b"fast"))?;
                snapshots.install(staged)?;
                out.write_all(b"slow")
            })
            .expect("built");
        assert_eq!(returned.meta(), "fast");
        assert_eq!(snapshots.current().expect("current").meta(), "fast");
    });
}

#[test]
fn a_closed_store_says_so() {
    on_both(|store| {
        let journal = store.journal(group(store)).expect("journal");
        store.close();
        store.close();
        let error = wait(|done| journal.append(&records(0..1, 1), done)).expect_err("closed");
        assert!(error.to_string().contains("closed"), "{error}");
        store.groups().expect_err("closed");
        assert_eq!(*store.failed().borrow(), None, "closing is no failure");
    });
}

#[test]
fn an_in_memory_store_is_found_again_after_a_restart() {
    let store = Store::in_memory(Arc::default());
    let local = group(&store);
    append(&store.journal(local).expect("journal"), 0..3, 1);
    store
        .snapshots(local)
        .expect("snapshots")
        .build_next("m".into(), |_| Ok(()))
        .expect("built");
    store.close();
    let store = store.reopened(Arc::default()).expect("in memory");
    assert_eq!(
        read_all(&store.journal(local).expect("journal")),
        records(0..3, 1)
    );
    assert!(
        store
            .snapshots(local)
            .expect("snapshots")
            .current()
            .is_some()
    );
}
