//! What a group's state survives: damage, closing while it is read, power cuts, the older format.

use std::ops::ControlFlow;

use super::{
    fault_tests::{FaultyDisk, over, over_memory},
    space::Space,
    tests::group,
    *,
};

/// Sets `count` to a number, and notes the number.
fn write(state: &GroupState, number: u32) {
    let mut batch = state.batch(0);
    let bytes = number.to_be_bytes();
    state.put(&mut batch, b"count", &bytes);
    let sessions = SessionsNote::Answers(bytes.to_vec());
    state
        .write(batch, sessions, Bytes::copy_from_slice(&bytes))
        .expect("written");
}

fn counted(state: &GroupState) -> io::Result<Option<Bytes>> {
    let mut count = None;
    state.at_one_moment(&mut |moment| count = Some(moment.get(b"count")))?;
    count.expect("it was called")
}

#[test]
fn damage_is_an_error_that_names_the_group_and_never_data() {
    type Damage = fn(&Memory, u64);
    let read: [Damage; 1] =
        [
            |engine, group| {
                engine.flip_bit(Family::State, &keys::state_key(group, 1, b"count"), 40)
            },
        ];
    let opened: [Damage; 3] = [
        |engine, group| engine.flip_bit(Family::Meta, &keys::meta(group, Tag::State), 3),
        |engine, group| engine.flip_bit(Family::State, &keys::answers(group, 1), 3),
        |engine, group| engine.flip_bit(Family::State, &keys::checkpoint(group, 1, 1), 3),
    ];
    let damages = read.iter().map(|it| (it, false));
    for (damage, at_open) in damages.chain(opened.iter().map(|it| (it, true))) {
        let engine = Arc::new(Memory::default());
        let store = over_memory(Arc::clone(&engine));
        let local = group(&store);
        let (state, _) = store.state(local).expect("state");
        let checkpoint = state.write_checkpoint(|out| out.write_all(&vec![7; 600_000]));
        let sessions = SessionsNote::Checkpoint(checkpoint.expect("written"));
        state
            .write(state.batch(0), sessions, Bytes::new())
            .expect("written");
        write(&state, 7);
        damage(&engine, local.number());
        let mut errors = Vec::new();
        if at_open {
            errors.extend(
                over_memory(Arc::clone(&engine))
                    .state(local)
                    .map(drop)
                    .err(),
            );
        } else {
            errors.extend(state.get(b"count").err());
            errors.extend(counted(&state).err());
            let order = Order::Ascending;
            let visit: engine::Visit<'_> = &mut |_, _| ControlFlow::Continue(());
            errors.extend(state.scan(b"a", b"z", order, visit).err());
            let pinned = state.pin().expect("pinned");
            errors.extend(pinned.visit(&mut |_, _| Ok(())).err());
        }
        assert_eq!(errors.len(), if at_open { 1 } else { 4 }, "{errors:?}");
        for error in errors {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(error.to_string().contains("group #1"), "{error}");
        }
    }
}

#[test]
fn a_power_cut_leaves_the_state_as_it_was_after_some_write() {
    let disk = Arc::<FaultyDisk>::default();
    let store = over(&disk, Space::unlimited());
    let local = group(&store);
    let (state, _) = store.state(local).expect("state");
    for number in 1..=20 {
        write(&state, number);
        if number == 5 {
            store.flusher().sync().expect("synced");
        }
    }
    for kept in 0..=15 {
        let left = over_memory(disk.cut(kept));
        let (state, resumed) = left.state(local).expect("sound");
        let numbers = 1..=5 + u32::try_from(kept).expect("few");
        let answers: Vec<Bytes> = numbers
            .map(|it| Bytes::copy_from_slice(&it.to_be_bytes()))
            .collect();
        assert_eq!(resumed.note.as_ref(), answers.last());
        assert_eq!(state.get(b"count").expect("sound"), resumed.note);
        assert_eq!(resumed.answers, answers);
    }
}

#[cfg(feature = "rocksdb")]
mod on_disk {
    use std::{fs, path::Path, thread};

    use super::*;
    use crate::storage::{
        rocks::Rocks,
        tests::{append, open, records},
    };

    fn stored(dir: &Path) -> (Store, LocalGroup, GroupState) {
        let store = open(dir);
        let local = group(&store);
        let (state, _) = store.state(local).expect("state");
        write(&state, 7);
        (store, local, state)
    }

    #[test]
    fn a_database_of_format_1_gets_the_family_and_keeps_everything() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("FORMAT"), "quorate store format 1\n").expect("written");
        let former = [Family::Journal, Family::Meta];
        let rocks = Rocks::open_families(&dir.path().join("db"), &former).expect("opens");
        let engine: Arc<dyn Engine> = Arc::new(rocks);
        let flusher = Flusher::start(Arc::clone(&engine), Space::unlimited(), Arc::default());
        let flusher = Arc::new(flusher.expect("a thread"));
        let store = Store::over(
            engine,
            flusher,
            Arc::<MemoryShelf>::default(),
            Arc::default(),
        );
        let local = group(&store);
        append(&store.journal(local).expect("journal"), 0..10, 1);
        store.close();

        let store = open(dir.path());
        let journal = store.journal(local).expect("journal");
        assert_eq!(
            journal.read(0..10, 10_000).expect("read"),
            records(0..10, 1)
        );
        let (state, resumed) = store.state(local).expect("state");
        assert!(resumed.note.is_none());
        write(&state, 7);
        store.close();
        let format = fs::read_to_string(dir.path().join("FORMAT")).expect("read");
        assert_eq!(format, "quorate store format 2\n");
        let (state, _) = open(dir.path()).state(local).expect("state");
        drop(state);
    }

    #[test]
    fn a_read_inside_a_read_does_not_wait_for_who_closes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, local, _) = stored(dir.path());
        let engine = Arc::clone(&store.inner.engine);
        let key = keys::state_key(local.number(), 1, b"count");
        let mut closing = None;
        engine
            .at_one_moment(&mut |moment| {
                let store = store.clone();
                closing = Some(thread::spawn(move || store.close()));
                // Until it has begun to close: then a new read is refused, at once.
                while engine.value(Family::State, &key).is_ok() {
                    thread::yield_now();
                }
                let kept = moment.value(Family::State, &key).expect("it is kept");
                assert!(kept.is_some());
            })
            .expect("open");
        closing.expect("begun").join().expect("no panic");
        let (state, _) = open(dir.path()).state(local).expect("state");
        drop(state);
    }

    #[test]
    fn a_pinned_state_ends_with_the_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, local, state) = stored(dir.path());
        drop(state.pin().expect("pinned"));
        let pinned = state.pin().expect("pinned");
        write(&state, 8);
        let waits = state.pin().expect("pinned");
        let mut seen = Vec::new();
        pinned
            .visit(&mut |key, value| {
                seen.push((key.to_vec(), value.to_vec()));
                Ok(())
            })
            .expect("sound");
        assert_eq!(seen, [(b"count".to_vec(), vec![0, 0, 0, 7])]);
        store.close();
        let again = open(dir.path());
        waits
            .visit(&mut |_, _| Ok(()))
            .expect_err("the store is closed");
        again.state(local).expect("state");
    }
}
