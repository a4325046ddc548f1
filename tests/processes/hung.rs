//! Members that hang: SIGSTOP leaves their sockets open and their clocks behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use quorate::config::Timing;

use crate::{
    cluster::{Cluster, ELECTION_TIMEOUT, Turn},
    heavy,
    process::{Asked, PATIENCE},
};

#[test]
fn a_hung_leader_is_replaced_and_never_reads_stale_when_it_wakes() {
    let rounds = if heavy() { 50 } else { 5 };
    let mut cluster = Cluster::start(3, &Turn::Alone, &[]);
    let mut times = Vec::new();
    for round in 0..rounds {
        let hung = cluster.leader();
        let others: Vec<usize> = (0..3).filter(|it| *it != hung).collect();
        let own = cluster.fresh_id();
        let early = hang_with_answers_on_the_way(&mut cluster, hung, &others, own);
        let started = Instant::now();
        let id = cluster.fresh_id();
        cluster.process(others[0]).put(id);
        times.push(started.elapsed());
        cluster.leader_among(&others);
        if round % 2 == 0 {
            // Until the others have given its connections up, so that news of its successor comes
            // only once it has dialled them again.
            thread::sleep(Timing::LAN.bond_timeout + Duration::from_millis(200));
        }
        wake_and_read(&mut cluster, hung, &others);
        let answer = cluster.process(hung).answer("the write of before", &early);
        assert!(answer.starts_with("acked "), "{answer}");
    }
    println!("a hung leader: from SIGSTOP to the next write's answer: {times:.0?}");
    cluster.settle("hung leaders");
    let worst = times.iter().max().copied().unwrap_or_default();
    assert!(worst <= ELECTION_TIMEOUT * 3, "{worst:?}");
}

#[test]
fn a_hung_follower_counts_as_silent_and_never_reads_stale_when_it_wakes() {
    let rounds = if heavy() { 50 } else { 4 };
    let mut cluster = Cluster::start(3, &Turn::Shared, &[]);
    for _ in 0..rounds {
        let leader = cluster.leader();
        let hung = cluster.other_than(leader);
        let others: Vec<usize> = (0..3).filter(|it| *it != hung).collect();
        let started = Instant::now();
        cluster.process(hung).hang();
        for seat in &others {
            cluster.process(*seat).ask("await reached 2");
        }
        let noticed = started.elapsed();
        println!("a hung follower counts as silent after {noticed:.0?}");
        assert!(noticed < PATIENCE / 8, "{noticed:?}");
        wake_and_read(&mut cluster, hung, &others);
    }
    cluster.settle("hung followers");
}

/// Stops the leader after it has sent an append and before it can read any answer. The answers lie
/// in its socket when it wakes: of a time before its successor, they must not vouch for it.
fn hang_with_answers_on_the_way(
    cluster: &mut Cluster,
    leader: usize,
    others: &[usize],
    id: u64,
) -> Asked {
    for seat in others {
        cluster.process(*seat).hang();
    }
    let asked = cluster.process(leader).begin(&format!("put {id}"));
    // Long enough to be sent; were it not, the round would only ask for less.
    thread::sleep(Duration::from_millis(25));
    cluster.process(leader).hang();
    for seat in others {
        cluster.process(*seat).wake();
    }
    asked
}

/// Writes while one hangs; then that one wakes with reads and a write before it, and every read
/// must hold everything that was acknowledged before it was asked.
fn wake_and_read(cluster: &mut Cluster, hung: usize, others: &[usize]) {
    let mut last = 0;
    for nth in 0..40 {
        last = cluster.fresh_id();
        cluster.process(others[nth % others.len()]).put(last);
    }
    let own = cluster.fresh_id();
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let count = cluster.history.count();
            (
                count,
                last,
                cluster.process(hung).begin(&format!("read {last}")),
            )
        })
        .collect();
    let write = cluster.process(hung).begin(&format!("put {own}"));
    cluster.process(hung).wake();
    // And go on while it finds out.
    let mut reads = waiting;
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        let id = cluster.fresh_id();
        cluster.process(others[0]).put(id);
        let count = cluster.history.count();
        reads.push((
            count,
            id,
            cluster.process(hung).begin(&format!("read {id}")),
        ));
    }
    for (count, id, asked) in reads {
        let answer = cluster.process(hung).answer("a read", &asked);
        let words: Vec<&str> = answer.split(' ').collect();
        let ["read", seen, found] = words[..] else {
            panic!("a woken member with a quorum must answer: {answer}");
        };
        let seen: usize = seen.parse().expect("a count");
        assert!(
            found == "true" && seen >= count,
            "stale: {answer}, wanted {count} and {id:x}"
        );
    }
    let answer = cluster
        .process(hung)
        .answer("the woken member's write", &write);
    assert!(answer.starts_with("acked "), "{answer}");
    for seat in 0..3 {
        cluster.process(seat).ask("await reached 3");
    }
}
