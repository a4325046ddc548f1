//! What a store does when the disk fails, fills up, or loses what was never synced.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{
    engine::{Order, Reads, Visit},
    space::Space,
    tests::{append, group, records, wait},
    *,
};

/// A disk in memory: what was written is readable, only what was synced survives a power cut.
#[derive(Default)]
pub(super) struct FaultyDisk {
    cache: Memory,
    platter: Memory,
    unsynced: Mutex<Vec<Batch>>,
    fail_sync: AtomicBool,
    fail_write: AtomicBool,
}

impl FaultyDisk {
    /// The power goes: what is left is what was synced and the first `kept` of the later writes.
    pub(super) fn cut(&self, kept: usize) -> Arc<Memory> {
        // A sync that runs now is over before, or does not happen.
        let unsynced = locked(&self.unsynced);
        let left = Memory::default();
        for family in Family::ALL {
            let mut batch = Batch::new();
            let copy = &mut |key: &[u8], value: &[u8]| {
                let body = keys::unseal(key, value).expect("sound");
                batch.put(family, key, &[body]);
                std::ops::ControlFlow::Continue(())
            };
            let end = [0xff; 64];
            self.platter
                .scan(family, &[], &end, Order::Ascending, copy)
                .expect("memory");
            left.write(&batch).expect("memory");
        }
        for batch in unsynced.iter().take(kept) {
            left.write(batch).expect("memory");
        }
        Arc::new(left)
    }
}

impl Engine for FaultyDisk {
    fn write(&self, batch: &Batch) -> io::Result<()> {
        if self.fail_write.load(Ordering::SeqCst) {
            return Err(io::Error::other("the write failed"));
        }
        locked(&self.unsynced).push(batch.clone());
        self.cache.write(batch)
    }

    fn sync(&self) -> io::Result<()> {
        if self.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the sync failed"));
        }
        let mut unsynced = locked(&self.unsynced);
        for batch in unsynced.drain(..) {
            self.platter.write(&batch)?;
        }
        Ok(())
    }

    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.cache.value(family, key)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        self.cache.scan(family, from, to, order, visit)
    }

    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        self.cache.at_one_moment(read)
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn close(&self) {}
}

pub(super) fn over(disk: &Arc<FaultyDisk>, space: Space) -> Store {
    let engine: Arc<dyn Engine> = Arc::clone(disk) as _;
    let flusher = Flusher::start(Arc::clone(&engine), space, Arc::default()).expect("a thread");
    Store::over(
        engine,
        Arc::new(flusher),
        Arc::new(MemoryShelf::default()),
        Arc::default(),
    )
}

pub(super) fn over_memory(engine: Arc<Memory>) -> Store {
    Store::over_memory(engine, Arc::new(MemoryShelf::default()), Arc::default())
}

#[test]
fn after_a_failed_sync_every_group_stops_for_good() {
    let disk = Arc::<FaultyDisk>::default();
    let store = over(&disk, Space::unlimited());
    let one = store.journal(group(&store)).expect("journal");
    let two = store
        .create_group(super::tests::new_group(2))
        .expect("created")
        .local;
    let two = store.journal(two).expect("journal");
    append(&one, 0..3, 1);

    disk.fail_sync.store(true, Ordering::SeqCst);
    let error = wait(|done| one.append(&records(3..4, 1), done)).expect_err("not synced");
    assert!(error.to_string().contains("the sync failed"), "{error}");

    // The disk seems to be well again. It is not to be trusted.
    disk.fail_sync.store(false, Ordering::SeqCst);
    for journal in [&one, &two] {
        let error = wait(|done| journal.save_vote("v".into(), done)).expect_err("poisoned");
        assert!(error.to_string().contains("the sync failed"), "{error}");
    }
    store.put_node_record(b"x").expect_err("poisoned");
    store.check_writable().expect_err("poisoned");
    let failed = store.failed();
    let cause = failed.borrow().clone().expect("set");
    assert!(cause.as_str().contains("the sync failed"), "{cause}");
    assert_eq!(
        one.read(0..3, usize::MAX).expect("still readable"),
        records(0..3, 1)
    );
}

#[test]
fn after_a_failed_write_everyone_who_waits_is_told() {
    let disk = Arc::<FaultyDisk>::default();
    let store = over(&disk, Space::unlimited());
    let journal = store.journal(group(&store)).expect("journal");
    disk.fail_write.store(true, Ordering::SeqCst);
    let error = wait(|done| journal.append(&records(0..1, 1), done)).expect_err("not written");
    assert!(error.to_string().contains("the write failed"), "{error}");
    disk.fail_write.store(false, Ordering::SeqCst);
    wait(|done| journal.append(&[], done)).expect_err("poisoned");
    assert!(store.failed().borrow().is_some());
}

#[test]
fn a_full_disk_refuses_what_grows_and_heals() {
    let disk = Arc::<FaultyDisk>::default();
    let free = Arc::new(AtomicU64::new(1_000));
    let probed = Arc::clone(&free);
    let probe = Box::new(move || Ok(probed.load(Ordering::SeqCst)));
    let space = Space::with_probe(100, probe);
    let store = over(&disk, space);
    let journal = store.journal(group(&store)).expect("journal");
    append(&journal, 0..10, 1);

    // Below the reserve nothing new is to be begun, but what is under way goes on.
    free.store(99, Ordering::SeqCst);
    // The flusher looks once a second, after a sync.
    while store.check_writable().is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(50));
        wait(|done| journal.save_vote("v".into(), done)).expect("a vote may use the reserve");
    }
    append(&journal, 10..11, 1);

    // Below a quarter of it, that is refused too, before the engine sees it.
    free.store(24, Ordering::SeqCst);
    let error = std::iter::repeat_with(|| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        wait(|done| journal.save_vote("v".into(), done))
    })
    .find_map(Result::err)
    .expect("an endless iterator");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    journal
        .append(&records(11..12, 1), Box::new(|_| ()))
        .expect_err("refused");
    store.check_writable().expect_err("refused");
    journal
        .purge_through(1, 5)
        .expect("what frees space is taken");
    journal.truncate_from(8).expect("what frees space is taken");
    assert_eq!(*store.failed().borrow(), None, "a refusal is no failure");

    free.store(1_000, Ordering::SeqCst);
    while store.check_writable().is_err() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    append(&journal, 8..10, 2);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let disk = Arc::<FaultyDisk>::default();
    let store = over(&disk, Space::unlimited());
    let local = group(&store);
    store
        .set_genesis(local, super::tests::genesis(3))
        .expect("set");
    let journal = store.journal(local).expect("journal");
    append(&journal, 0..5, 1);
    wait(|done| journal.save_vote("v".into(), done)).expect("voted");
    store.put_node_record(b"n").expect("put");
    let removed = store
        .create_group(super::tests::new_group(2))
        .expect("created")
        .local;
    store.remove_group(removed).expect("removed");

    let store = over_memory(disk.cut(0));
    let groups = store.groups().expect("groups");
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].genesis, Some(super::tests::genesis(3)));
    let journal = store.journal(local).expect("journal");
    assert_eq!(
        journal.read(0..9, usize::MAX).expect("read"),
        records(0..5, 1)
    );
    assert_eq!(journal.vote(), Some("v".into()));
    assert_eq!(store.node_record().expect("read"), Some("n".into()));
}

/// What can be seen of a journal.
#[derive(Clone, Debug, PartialEq)]
struct Picture(Option<(u64, u64)>, Vec<(u64, u64)>, Option<Bytes>);

fn picture(journal: &Journal) -> Picture {
    let records = journal.read(0..u64::MAX, usize::MAX).expect("sound");
    let places = records.iter().map(|r| (r.index, r.term)).collect();
    Picture(journal.purged(), places, journal.vote())
}

fn random_step(journal: &Journal, rng: &mut StdRng, term: u64, synced: Arc<AtomicU64>, step: u64) {
    let done: super::flusher::Synced = Box::new(move |result| {
        result.expect("synced");
        synced.fetch_max(step, Ordering::SeqCst);
    });
    let next = journal.last().map_or(0, |(_, index)| index + 1);
    let first = journal.purged().map_or(0, |(_, index)| index + 1);
    match rng.random_range(0..10) {
        0 => journal
            .truncate_from(rng.random_range(first..=next))
            .expect("truncated"),
        1 if next > first => {
            let index = rng.random_range(first..next);
            let term = journal.read(index..index + 1, 1).expect("read")[0].term;
            journal.purge_through(term, index).expect("purged");
        }
        2 => journal
            .purge_through(term, next + rng.random_range(0..3))
            .expect("purged"),
        3 | 4 => journal
            .save_vote(format!("{step}").into(), done)
            .expect("voted"),
        _ => {
            let count = rng.random_range(1..60);
            journal
                .append(&records(next..next + count, term), done)
                .expect("appended");
        }
    }
}

#[test]
fn a_power_cut_leaves_a_moment_no_earlier_than_the_last_acknowledged() {
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Arc::<FaultyDisk>::default();
        let store = over(&disk, Space::unlimited());
        let local = group(&store);
        let journal = store.journal(local).expect("journal");
        let synced = Arc::new(AtomicU64::new(0));
        let mut moments = vec![picture(&journal)];
        for step in 1..60 {
            random_step(&journal, &mut rng, step, Arc::clone(&synced), step);
            moments.push(picture(&journal));
        }
        // In this order: what is acknowledged now is on the platter of the cut below.
        let acknowledged = synced.load(Ordering::SeqCst) as usize;
        let kept = rng.next_u64() as usize % 5;
        let left = over_memory(disk.cut(kept));
        let found = picture(&left.journal(local).expect("it opens"));
        assert!(
            moments[acknowledged..].contains(&found),
            "seed {seed}: acknowledged {acknowledged}, found {found:?}"
        );
    }
}

fn damaged_record(what: impl FnOnce(&Memory, LocalGroup)) -> (Store, Journal, io::Error) {
    let engine = Arc::new(Memory::default());
    let store = over_memory(Arc::clone(&engine));
    let local = group(&store);
    let journal = store.journal(local).expect("journal");
    append(&journal, 0..10, 1);
    what(&engine, local);
    let error = journal.read(0..10, usize::MAX).expect_err("damaged");
    (store, journal, error)
}

#[test]
fn a_flipped_bit_in_a_record_is_an_error_that_names_it() {
    let (_store, journal, error) = damaged_record(|engine, local| {
        engine.flip_bit(Family::Journal, &keys::journal(local.number(), 4), 100);
    });
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("group #1"), "{error}");
    assert!(error.to_string().contains("record 4"), "{error}");
    assert_eq!(
        journal.read(0..4, usize::MAX).expect("sound"),
        records(0..4, 1)
    );
}

#[test]
fn a_hole_is_an_error_that_names_it() {
    for read in [0..10, 3..5, 4..5, 4..10] {
        let (_store, journal, error) = damaged_record(|engine, local| {
            let mut batch = Batch::new();
            batch.delete(Family::Journal, &keys::journal(local.number(), 4));
            engine.write(&batch).expect("memory");
        });
        assert!(error.to_string().contains("record 4 is missing"), "{error}");
        let error = journal
            .read(read, usize::MAX)
            .expect_err("it passes the hole");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_missing_beginning_and_damaged_ends_show_at_open() {
    let damages: [fn(&Memory, u64); 5] = [
        |engine, group| {
            let mut batch = Batch::new();
            batch.delete(Family::Journal, &keys::journal(group, 3));
            engine.write(&batch).expect("memory");
        },
        |engine, group| engine.flip_bit(Family::Journal, &keys::journal(group, 3), 9),
        |engine, group| engine.flip_bit(Family::Journal, &keys::journal(group, 9), 9),
        |engine, group| engine.flip_bit(Family::Meta, &keys::meta(group, Tag::Vote), 9),
        |engine, group| engine.flip_bit(Family::Meta, &keys::meta(group, Tag::Purged), 9),
    ];
    for (case, damage) in damages.iter().enumerate() {
        let engine = Arc::new(Memory::default());
        let store = over_memory(Arc::clone(&engine));
        let local = group(&store);
        let journal = store.journal(local).expect("journal");
        append(&journal, 0..10, 1);
        wait(|done| journal.save_vote("vote".into(), done)).expect("voted");
        journal.purge_through(1, 2).expect("purged");
        over_memory(Arc::clone(&engine))
            .journal(local)
            .expect("sound before");
        damage(&engine, local.number());
        let error = over_memory(engine).journal(local).expect_err("damaged");
        assert_eq!(
            error.kind(),
            io::ErrorKind::InvalidData,
            "case {case}: {error}"
        );
        assert!(
            error.to_string().contains("group #1"),
            "case {case}: {error}"
        );
    }
}

#[test]
fn a_full_queue_makes_writers_wait_and_loses_nobody() {
    let disk = Arc::<FaultyDisk>::default();
    let store = over(&disk, Space::unlimited());
    let journal = store.journal(group(&store)).expect("journal");
    let answered = Arc::new(AtomicU64::new(0));
    let writes = 40_000;
    for _ in 0..writes {
        let answered = Arc::clone(&answered);
        let done = Box::new(move |result: io::Result<()>| {
            result.expect("synced");
            answered.fetch_add(1, Ordering::SeqCst);
        });
        journal.append(&[], done).expect("queued");
    }
    store.close();
    assert_eq!(answered.load(Ordering::SeqCst), writes);
}

#[test]
fn a_panicking_callback_harms_nobody_else() {
    let disk = Arc::<FaultyDisk>::default();
    let store = over(&disk, Space::unlimited());
    let journal = store.journal(group(&store)).expect("journal");
    journal
        .append(&[], Box::new(|_| panic!("a bug above")))
        .expect("queued");
    append(&journal, 0..1, 1);
}
