//! Memory stays bounded beside members that are slow, hung, or receive a snapshot drop by drop.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    cluster::{Cluster, Turn},
    heavy, member,
};

const MIB: u64 = 1024;

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
    let settings = [(member::SNAPSHOT_AFTER, 8 * 1024 * 1024), (member::ENTRIES_KEPT, 256)];
    let mut cluster = Cluster::start(3, &Turn::Alone, &settings);
    let leader = cluster.leader();
    let hung = cluster.other_than(leader);
    let other = (0..3).find(|it| *it != leader && *it != hung).expect("three");
    // 4 MiB of state, overwritten again and again.
    cluster.process(other).ask("fill 256 1024 4096");
    let seats = [leader, other];
    let warm = watch(&mut cluster, &seats, Duration::from_secs(3));
    let before: u64 = cluster.process(other).ask("done").parse().expect("a number");
    cluster.process(hung).hang();
    let highest = watch(&mut cluster, &seats, time);
    cluster.process(hung).wake();
    let after: u64 = cluster.process(other).ask("unload").parse().expect("a number");
    let written = (after - before) * 4 / MIB;
    println!(
        "a follower hung for {time:?}: {} writes, {written} MiB; leader {} MiB before, {} MiB at \
         most; follower {} MiB before, {} MiB at most",
        after - before,
        warm[0] / MIB,
        highest[0] / MIB,
        warm[1] / MIB,
        highest[1] / MIB,
    );
    cluster.settle("a follower that hung under full load");
}

#[test]
fn memory_stays_bounded_while_a_follower_takes_a_snapshot_slowly() {
    let settings = [(member::SNAPSHOT_AFTER, 4 * 1024 * 1024), (member::ENTRIES_KEPT, 16)];
    let mut cluster = Cluster::start(3, &Turn::Alone, &settings);
    let leader = cluster.leader();
    let slow = cluster.other_than(leader);
    cluster.kill(slow);
    cluster.process(leader).ask("fill 64 2048 65536");
    while cluster.process(leader).ask("done").parse::<u64>().expect("a number") < 2_400 {
        thread::sleep(Duration::from_millis(50));
    }
    cluster.process(leader).ask("unload");
    let before = cluster.process(leader).resident_kib();
    println!("before: {} MiB", before / MIB);
    cluster.restart(slow);
    cluster.settle("a follower that took a snapshot slowly");
}
