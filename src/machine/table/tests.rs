//! What a table shows of what was written and what was changed since.

use std::{collections::BTreeMap, io, ops::ControlFlow};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::machine::Snapshot;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn all(scan: impl FnOnce(Visit<'_>)) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    scan(&mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    });
    found
}

fn modelled(model: &Model, from: &[u8], to: &[u8], order: Order) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inside = |key: &[u8]| key >= from && (to.is_empty() || key < to);
    let found = model.iter().filter(|(key, _)| inside(key));
    let mut found: Vec<_> = found
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if order == Order::Descending {
        found.reverse();
    }
    found
}

/// A backing that is written now and then, as the runtime writes one.
fn layered() -> (Table, Arc<MemoryBacking>) {
    let backing = Arc::<MemoryBacking>::default();
    (Table::over(Arc::clone(&backing) as _), backing)
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
    Scan(Vec<u8>, Vec<u8>, bool),
    Write,
}

fn step() -> impl Strategy<Value = Step> {
    // Few and short, so that they meet.
    let key = || prop::collection::vec(0_u8..4, 0..3);
    let value = prop::collection::vec(any::<u8>(), 0..3);
    prop_oneof![
        4 => (key(), value).prop_map(|(key, value)| Step::Put(key, value)),
        2 => key().prop_map(Step::Delete),
        2 => (key(), key()).prop_map(|(from, to)| Step::DeleteRange(from, to)),
        3 => (key(), key(), any::<bool>()).prop_map(|(from, to, up)| Step::Scan(from, to, up)),
        1 => Just(Step::Write),
    ]
}

proptest! {
    #[test]
    fn changes_over_what_is_written_read_as_one_map(steps in prop::collection::vec(step(), 0..60)) {
        let (table, backing) = layered();
        let (direct, mut model) = (Table::in_memory(), Model::new());
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    table.put(&key, value.clone());
                    direct.put(&key, value.clone());
                    model.insert(key, value);
                }
                Step::Delete(key) => {
                    table.delete(&key);
                    direct.delete(&key);
                    model.remove(&key);
                }
                Step::DeleteRange(from, to) => {
                    table.delete_range(&from, &to);
                    direct.delete_range(&from, &to);
                    model.retain(|key, _| *key < from || (!to.is_empty() && *key >= to));
                }
                Step::Scan(from, to, up) => {
                    let order = if up { Order::Ascending } else { Order::Descending };
                    let expected = modelled(&model, &from, &to, order);
                    let found = all(|visit| table.scan(&from, &to, order, visit));
                    prop_assert_eq!(&found, &expected);
                    let found = all(|visit| direct.scan(&from, &to, order, visit));
                    prop_assert_eq!(&found, &expected);
                    let value = model.get(&from).map(|it| Bytes::from(it.clone()));
                    prop_assert_eq!(&table.get(&from), &value);
                    prop_assert_eq!(&direct.get(&from), &value);
                }
                Step::Write => backing.write(&table.take_changes().expect("sound")),
            }
        }
        backing.write(&table.take_changes().expect("sound"));
        let written = all(|visit| {
            let read = |moment: &Moment<'_>| moment.scan(b"", b"", Order::Ascending, visit);
            table.view().read(read).expect("open").expect("sound");
        });
        prop_assert_eq!(written, modelled(&model, b"", b"", Order::Ascending));
    }

    #[test]
    fn garbage_is_no_snapshot_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
        let _ = Table::in_memory().restore(SnapshotReader::new(&mut &bytes[..]));
    }
}

#[test]
fn readers_see_nothing_before_it_is_written() {
    let (table, backing) = layered();
    table.put(b"k", "v");
    let seen = |table: &Table| {
        let read = |moment: &Moment<'_>| moment.get(b"k").expect("sound");
        table.view().read(read).expect("open")
    };
    assert_eq!((table.get(b"k"), seen(&table)), (Some("v".into()), None));
    backing.write(&table.take_changes().expect("sound"));
    assert_eq!(seen(&table), Some("v".into()));
    assert_eq!(table.unwritten_bytes(), 0);
}

#[test]
fn a_scan_does_not_meet_what_its_visitor_changes() {
    for (table, _) in [layered(), (Table::in_memory(), Arc::default())] {
        for key in [b"a", b"c", b"e"] {
            table.put(key, "old");
        }
        let mut seen = Vec::new();
        table.scan(b"", b"", Order::Ascending, &mut |key, _| {
            seen.push(key.to_vec());
            table.put(b"d", "new");
            table.delete_range(b"b", b"d");
            ControlFlow::Continue(())
        });
        assert_eq!(seen, [b"a", b"c", b"e"]);
        let after = all(|visit| table.scan(b"", b"", Order::Ascending, visit));
        let keys: Vec<_> = after.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"a", b"d", b"e"]);
    }
}

#[test]
fn a_scan_ends_where_it_is_told_to() {
    let (table, backing) = layered();
    for key in [b"a", b"c", b"e"] {
        table.put(key, "written");
    }
    backing.write(&table.take_changes().expect("sound"));
    table.put(b"b", "changed");
    table.put(b"f", "changed");
    for (order, keys) in [
        (Order::Ascending, ["a", "b", "c", "e", "f"]),
        (Order::Descending, ["f", "e", "c", "b", "a"]),
    ] {
        for count in 1..=5 {
            let mut seen = Vec::new();
            table.scan(b"", b"", order, &mut |key, _| {
                seen.push(String::from_utf8_lossy(key).into_owned());
                if seen.len() == count {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            assert_eq!(seen, keys[..count]);
        }
    }
}

/// Fails each read; counts them.
#[derive(Default)]
struct Failing(std::sync::atomic::AtomicUsize);

impl Failing {
    fn fail<T>(&self) -> io::Result<T> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Err(io::Error::other("the disk is gone"))
    }
}

impl Backing for Failing {
    fn get(&self, _: &[u8]) -> io::Result<Option<Bytes>> {
        self.fail()
    }
    fn scan(&self, _: &[u8], _: &[u8], _: Order, _: Visit<'_>) -> io::Result<()> {
        self.fail()
    }
    fn at_one_moment(&self, _: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        self.fail()
    }
    fn pin(&self) -> io::Result<Pinned> {
        self.fail()
    }
    fn start_over(&self) -> io::Result<()> {
        self.fail()
    }
    fn fill(&self, _: &[(Bytes, Bytes)]) -> io::Result<()> {
        self.fail()
    }
}

#[test]
fn after_a_failed_read_nothing_is_read_or_written() {
    let backing = Arc::<Failing>::default();
    let table = Table::over(Arc::clone(&backing) as _);
    table.put(b"k", "v");
    assert_eq!(table.get(b"k"), Some("v".into()));
    assert_eq!((table.failed(), table.get(b"other")), (None, None));
    let cause = table.failed().expect("it failed");
    assert!(cause.as_str().contains("the disk is gone"), "{cause}");
    assert_eq!(table.get(b"k"), None);
    table.scan(b"", b"", Order::Ascending, &mut |_, _| panic!("nothing"));
    assert_eq!(backing.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    table.put(b"k", "made of nothing");
    assert_eq!(table.take_changes().expect_err("not to be written"), cause);
    table.view().read(|_| ()).expect_err("it says so");
    let mut bytes = Vec::new();
    Snapshot::of_table(&table)
        .write_to(&mut bytes)
        .expect_err("it says so");
}

#[test]
fn a_snapshot_holds_the_moment_it_was_taken_at_and_restores_it() {
    let table = Table::in_memory();
    for n in 0..3_000_u32 {
        table.put(&n.to_be_bytes(), vec![7; 1_000]);
    }
    let snapshot = Snapshot::of_table(&table);
    table.delete_range(b"", b"");
    let mut bytes = Vec::new();
    snapshot.write_to(&mut bytes).expect("memory takes it");

    let other = Table::in_memory();
    other.put(b"former", "state");
    other
        .restore(SnapshotReader::new(&mut &bytes[..]))
        .expect("whole");
    let held = all(|visit| other.scan(b"", b"", Order::Ascending, visit));
    let expected: Vec<_> = (0..3_000_u32)
        .map(|n| (n.to_be_bytes().to_vec(), vec![7; 1_000]))
        .collect();
    assert!(held == expected);
}

#[test]
fn a_snapshot_cut_anywhere_or_longer_is_refused() {
    let table = Table::in_memory();
    table.put(b"", "empty key");
    table.put(b"key", "");
    let mut bytes = Vec::new();
    Snapshot::of_table(&table)
        .write_to(&mut bytes)
        .expect("memory takes it");
    let golden = "01000000000900000065 6d707479206b6579 030000006b6579 00000000 ffffffff";
    let golden = golden.replace(' ', "");
    assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden, "frozen");
    let read = |bytes: &[u8]| Table::in_memory().restore(SnapshotReader::new(&mut &bytes[..]));
    read(&bytes).expect("whole");
    for cut in 0..bytes.len() {
        read(&bytes[..cut]).expect_err("cut");
    }
    bytes.push(0);
    read(&bytes).expect_err("longer");
}

#[test]
#[should_panic(expected = "a table takes 1024")]
fn a_key_beyond_the_limit_panics() {
    Table::in_memory().put(&[0; KEY_BYTES_MAX + 1], "");
}
