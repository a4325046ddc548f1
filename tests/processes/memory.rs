//! Memory stays bounded beside members that are slow, hung, or receive a snapshot drop by drop.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cluster::{Cluster, Turn},
    heavy, member,
    process::PATIENCE,
};

/// `/proc` counts in KiB.
const MIB: u64 = 1024;

/// A node at full load may hold: 48 MiB of RocksDB's write buffers and 8 MiB of its caches, 32 MiB
/// of commands that wait, 10 MiB of send window to each of two peers, two states of 4 MiB with
/// their snapshots, and the program. Measured: 140 MiB.
const BOUND: u64 = 256 * MIB;
/// Beyond what it holds when warm: write buffers that were not full yet, and one send window.
const GROWTH: u64 = 64 * MIB;
/// What must be written meanwhile: twice the growth, so that it shows if somebody keeps it.
const ENOUGH: u64 = 2 * GROWTH;
/// Of each write of the full load.
const WRITE_KIB: u64 = 4;

/// The state of the snapshot test: 2,048 slots of 64 KiB.
const STATE_BYTES: u64 = 2_048 * 65_536;

/// What sending a snapshot may cost, well below the snapshot: the credits allow 1 MiB on the way,
/// the rest is what the journal's buffers and the allocator do meanwhile.
const SNAPSHOT_GROWTH: u64 = 64 * MIB;

/// Samples the resident memory of these members until the time is up; the highest of each.
fn watch(cluster: &mut Cluster, seats: &[usize], time: Duration) -> Vec<u64> {
    let mut highest = vec![0; seats.len()];
    let until = Instant::now() + time;
    while Instant::now() < until {
        for (highest, seat) in highest.iter_mut().zip(seats) {
            *highest = cluster.process(*seat).resident_kib().max(*highest);
        }
        thread::sleep(Duration::from_millis(50));
    }
    highest
}

#[test]
fn memory_stays_bounded_while_a_follower_hangs_under_full_write_load() {
    let time = Duration::from_secs(if heavy() { 60 } else { 15 });
    let settings = [
        (member::SNAPSHOT_AFTER, 8 * 1024 * 1024),
        (member::ENTRIES_KEPT, 256),
    ];
    let mut cluster = Cluster::start(3, &Turn::Alone, &settings);
    let leader = cluster.leader();
    let hung = cluster.other_than(leader);
    let other = (0..3)
        .find(|it| *it != leader && *it != hung)
        .expect("three");
    // 4 MiB of state, overwritten again and again.
    cluster.process(other).ask("fill 256 1024 4096");
    let seats = [leader, other];
    let warm = watch(&mut cluster, &seats, Duration::from_secs(3));
    let before = done(&mut cluster, other);
    let hung_at = Instant::now();
    cluster.process(hung).hang();
    let mut highest = watch(&mut cluster, &seats, time);
    // On a slow machine as well, more than a queue without a limit could hide.
    while (done(&mut cluster, other) - before) * WRITE_KIB < ENOUGH {
        assert!(
            hung_at.elapsed() < time + PATIENCE,
            "too little was written to tell"
        );
        higher(
            &mut highest,
            watch(&mut cluster, &seats, Duration::from_secs(1)),
        );
    }
    let time = hung_at.elapsed();
    let after = done(&mut cluster, other);
    cluster.process(hung).wake();
    // It is behind by more than the journal kept, so a snapshot goes out under full load, too.
    higher(
        &mut highest,
        watch(&mut cluster, &seats, Duration::from_secs(2)),
    );
    cluster.process(other).ask("unload");
    let written = (after - before) * WRITE_KIB / MIB;
    println!(
        "a follower hung for {time:.0?}: {} writes, {written} MiB; leader {} MiB before, {} MiB at \
         most; follower {} MiB before, {} MiB at most",
        after - before,
        warm[0] / MIB,
        highest[0] / MIB,
        warm[1] / MIB,
        highest[1] / MIB,
    );
    cluster.settle("a follower that hung under full load");
    for (warm, highest) in warm.iter().zip(&highest) {
        assert!(*highest <= BOUND, "{} MiB", highest / MIB);
        assert!(
            *highest <= warm + GROWTH,
            "{} MiB, then {} MiB",
            warm / MIB,
            highest / MIB
        );
    }
}

fn higher(highest: &mut [u64], now: Vec<u64>) {
    for (highest, now) in highest.iter_mut().zip(now) {
        *highest = now.max(*highest);
    }
}

#[test]
fn memory_stays_bounded_while_a_follower_takes_a_snapshot_slowly() {
    let settings = [
        (member::SNAPSHOT_AFTER, 4 * 1024 * 1024),
        (member::ENTRIES_KEPT, 16),
    ];
    let mut cluster = Cluster::start(3, &Turn::Alone, &settings);
    let leader = cluster.leader();
    let slow = cluster.other_than(leader);
    let other = (0..3)
        .find(|it| *it != leader && *it != slow)
        .expect("three");
    cluster.kill(slow);
    // 128 MiB of state.
    cluster.process(leader).ask("fill 32 2048 65536");
    let deadline = Instant::now() + PATIENCE;
    while done(&mut cluster, leader) < 2_100 || snapshot_bytes(&cluster, leader) < STATE_BYTES {
        assert!(
            Instant::now() < deadline,
            "no snapshot of the whole state was written"
        );
        thread::sleep(Duration::from_millis(50));
    }
    cluster.process(leader).ask("unload");
    cluster.process(leader).ask("fill 1 2048 1024");
    let seats = [leader, other];
    let before = watch(&mut cluster, &seats, Duration::from_secs(1));
    cluster.restart(slow);
    let started = Instant::now();
    let mut highest = vec![0; 2];
    // Awake for 10 ms in each 70 ms, for some seconds; then it may end in peace.
    let time = Duration::from_secs(if heavy() { 40 } else { 8 });
    while started.elapsed() < time {
        cluster.process(slow).hang();
        higher(
            &mut highest,
            watch(&mut cluster, &seats, Duration::from_millis(60)),
        );
        cluster.process(slow).wake();
        thread::sleep(Duration::from_millis(10));
    }
    higher(
        &mut highest,
        watch(&mut cluster, &seats, Duration::from_secs(2)),
    );
    cluster.process(slow).ask("ready");
    cluster.process(leader).ask("unload");
    let installed = cluster.process(slow).ask("metrics");
    println!(
        "a snapshot of {} MiB taken slowly: leader {} MiB before, {} MiB at most; follower {} MiB \
         before, {} MiB at most; built and installed there: {installed}",
        snapshot_bytes(&cluster, leader) / 1024 / 1024,
        before[0] / MIB,
        highest[0] / MIB,
        before[1] / MIB,
        highest[1] / MIB,
    );
    cluster.settle("a follower that took a snapshot slowly");
    assert!(
        !installed.ends_with(" 0"),
        "it was to need a snapshot: {installed}"
    );
    for (before, highest) in before.iter().zip(&highest) {
        assert!(
            *highest <= before + SNAPSHOT_GROWTH,
            "{before} KiB, then {highest} KiB"
        );
    }
}

fn done(cluster: &mut Cluster, seat: usize) -> u64 {
    cluster.process(seat).ask("done").parse().expect("a number")
}

/// The largest file among the member's snapshots.
fn snapshot_bytes(cluster: &Cluster, seat: usize) -> u64 {
    largest(&cluster.directory(seat).join("snapshots"))
}

fn largest(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |it: fs::DirEntry| match it.file_type() {
        Ok(kind) if kind.is_dir() => largest(&it.path()),
        _ => it.metadata().map_or(0, |it| it.len()),
    };
    entries.map(size).max().unwrap_or_default()
}
