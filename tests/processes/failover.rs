//! The leader dies, everybody dies: what was acknowledged stays, and the next write comes soon.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    check::figures,
    cluster::{Cluster, ELECTION_TIMEOUT, Turn},
    heavy, member,
};

/// Failover is promised within this many election timeouts.
const PROMISED: u32 = 3;

#[test]
fn a_killed_leader_is_followed_by_the_next_write_within_three_election_timeouts() {
    let rounds = if heavy() { 100 } else { 12 };
    let mut cluster = Cluster::start(3, &Turn::Alone, &[]);
    let mut times = Vec::new();
    let mut gaps = Vec::new();
    for _ in 0..rounds {
        let leader = cluster.leader();
        let follower = cluster.other_than(leader);
        cluster.load(follower, 16, 1_000);
        cluster.history.wait_for_more(200);
        cluster.history.take_longest_gap();
        let id = cluster.fresh_id();
        let killed = Instant::now();
        cluster.process(leader).begin_kill();
        cluster.process(follower).put(id);
        times.push(killed.elapsed());
        cluster.kill(leader);
        // The load goes on as well: what was under way is answered, too.
        cluster.history.wait_for_more(200);
        gaps.push(cluster.history.take_longest_gap());
        cluster.restart(leader);
        cluster.process(leader).ask("ready");
        cluster.unload(&[follower]);
        for seat in 0..3 {
            cluster.process(seat).ask("await reached 3");
        }
    }
    let (p50, text) = figures(&mut times);
    println!("failover, from SIGKILL to the next write's answer: {text}");
    println!("longest silence in the load: {}", figures(&mut gaps).1);
    let verdict = cluster.settle("leaders killed under load");
    assert!(verdict.acked >= rounds * 400);
    let worst = *times.last().expect("sorted");
    assert!(worst <= ELECTION_TIMEOUT * PROMISED, "{worst:?}");
    // The target is 0.4 s, and 0.2 s is usual. Raft's own clock would take 0.9 s: this is what the
    // early election is for.
    assert!(p50 <= ELECTION_TIMEOUT, "the median is {p50:?}");
}

#[test]
fn all_killed_at_once_come_back_with_every_acknowledged_write_in_one_order() {
    let rounds = if heavy() { 30 } else { 5 };
    let mut cluster = Cluster::start(3, &Turn::Shared, &[]);
    for round in 0..rounds {
        for seat in 0..3 {
            cluster.load(seat, 8, 500);
        }
        // Not in the same place of the work each time.
        cluster.history.wait_for_more(300 + 97 * round);
        cluster.kill_at_once(&[0, 1, 2]);
        for seat in 0..3 {
            cluster.begin_restart(seat);
        }
        for seat in 0..3 {
            cluster.wait_up(seat);
        }
        let id = cluster.fresh_id();
        cluster.process(round % 3).put(id);
        cluster.settle("all killed at once");
    }
}

#[test]
fn all_killed_at_once_come_back_from_snapshots_too() {
    let settings = [
        (member::SNAPSHOT_AFTER, 16 * 1024),
        (member::ENTRIES_KEPT, 16),
    ];
    let rounds = if heavy() { 20 } else { 3 };
    let mut cluster = Cluster::start(3, &Turn::Shared, &settings);
    for round in 0..rounds {
        for seat in 0..3 {
            cluster.load(seat, 8, 500);
        }
        cluster.history.wait_for_more(2_000 + 311 * round);
        for seat in 0..3 {
            while cluster.process(seat).ask("metrics").starts_with("0 ") {
                cluster.history.wait_for_more(100);
            }
        }
        cluster.kill_at_once(&[0, 1, 2]);
        for seat in 0..3 {
            cluster.begin_restart(seat);
        }
        for seat in 0..3 {
            cluster.wait_up(seat);
        }
        cluster.settle("all killed at once, with snapshots");
    }
}

#[test]
fn a_minority_refuses_until_it_is_a_majority_again() {
    let mut cluster = Cluster::start(3, &Turn::Shared, &[(member::PATIENCE_MS, 1_500)]);
    let before = cluster.fresh_id();
    let leader = cluster.leader();
    cluster.process(leader).put(before);
    let others: Vec<usize> = (0..3).filter(|it| *it != leader).collect();
    cluster.kill_at_once(&others);

    let during = cluster.fresh_id();
    let answers =
        ["read", "put"].map(|it| cluster.process(leader).begin(&format!("{it} {during}")));
    let local = cluster.process(leader).ask(&format!("local {before}"));
    assert_eq!(local, "read 1 true", "a local read waits for nobody");
    let [read, put] = answers.map(|it| cluster.process(leader).answer("a refusal", &it));
    assert!(
        read.starts_with("refused "),
        "a linearizable read of one of three: {read}"
    );
    assert!(!put.starts_with("acked "), "a write of one of three: {put}");
    println!("alone: read: {read}; put: {put}");

    // It goes down with its entry; the others go on without it.
    cluster.kill(leader);
    for seat in &others {
        cluster.restart(*seat);
    }
    let after = cluster.fresh_id();
    cluster.process(others[0]).put(after);
    cluster.restart(leader);
    let verdict = cluster.settle("a minority that healed");
    assert_eq!(verdict.entries, 2, "the unacknowledged entry is gone");
}

#[test]
fn a_lonely_follower_answers_local_queries_and_follows_again() {
    let mut cluster = Cluster::start(3, &Turn::Shared, &[(member::PATIENCE_MS, 1_500)]);
    let leader = cluster.leader();
    let lonely = cluster.other_than(leader);
    let before = cluster.fresh_id();
    cluster.process(lonely).put(before);
    let others: Vec<usize> = (0..3).filter(|it| *it != lonely).collect();
    for seat in &others {
        cluster.process(*seat).hang();
    }
    let during = cluster.fresh_id();
    let answers =
        ["read", "put"].map(|it| cluster.process(lonely).begin(&format!("{it} {during}")));
    let local = cluster.process(lonely).ask(&format!("local {before}"));
    assert_eq!(local, "read 1 true");
    let [read, put] = answers.map(|it| cluster.process(lonely).answer("a refusal", &it));
    assert!(read.starts_with("refused "), "{read}");
    assert!(!put.starts_with("acked "), "{put}");
    for seat in &others {
        cluster.process(*seat).wake();
    }
    let after = cluster.fresh_id();
    retried_put(&mut cluster, lonely, after);
    cluster.settle("a lonely follower");
}

/// Right after a heal the first tries may still find no leader in their short time.
fn retried_put(cluster: &mut Cluster, seat: usize, id: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = cluster.process(seat).ask(&format!("put {id}"));
        if answer.starts_with("acked ") {
            return;
        }
        assert!(
            answer.starts_with("refused "),
            "only a refusal may be tried anew: {answer}"
        );
        assert!(Instant::now() < deadline, "{answer}");
        thread::sleep(Duration::from_millis(20));
    }
}
