//! One member goes and comes back: by journal, by snapshot, in its turn; and only one at a time.

use std::time::Duration;

use crate::{
    cluster::{Cluster, ELECTION_TIMEOUT, Turn},
    member,
};

use quorate::config::Timing;

#[test]
fn a_killed_follower_catches_up_by_the_journal() {
    let mut cluster = Cluster::start(3, &Turn::Shared, &[]);
    let leader = cluster.leader();
    let follower = cluster.other_than(leader);
    cluster.kill(follower);
    cluster.load(leader, 8, 200);
    cluster.history.wait_for_more(2_000);
    cluster.restart(follower);
    cluster.process(follower).ask("ready");
    cluster.unload(&[leader]);
    let verdict = cluster.settle("caught up by the journal");
    assert!(verdict.acked >= 2_000);
    assert_eq!(
        cluster.process(follower).ask("metrics"),
        "0 0",
        "snapshots built and installed"
    );
}

#[test]
fn a_killed_follower_catches_up_by_a_snapshot_when_the_journal_is_purged() {
    let settings = [
        (member::SNAPSHOT_AFTER, 32 * 1024),
        (member::ENTRIES_KEPT, 16),
    ];
    let mut cluster = Cluster::start(3, &Turn::Shared, &settings);
    let leader = cluster.leader();
    let follower = cluster.other_than(leader);
    cluster.kill(follower);
    cluster.load(leader, 8, 200);
    cluster.history.wait_for_more(4_000);
    // Purging waits while appends are under way to the bond that is not known to be dead yet.
    cluster.process(leader).ask("purged 1000");
    cluster.restart(follower);
    cluster.process(follower).ask("ready");
    cluster.unload(&[leader]);
    cluster.settle("caught up by a snapshot");
    let metrics = cluster.process(follower).ask("metrics");
    let installed = metrics.rsplit(' ').next().expect("two numbers");
    assert_ne!(installed, "0", "it was to need a snapshot");
    println!("caught up by a snapshot: {installed} installed");
    // And it resumes from what it installed.
    cluster.kill(follower);
    cluster.restart(follower);
    cluster.settle("restarted behind an installed snapshot");
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_and_hardly_pauses() {
    let mut cluster = Cluster::start(3, &Turn::Alone, &[]);
    let mut gaps = Vec::new();
    for seat in 0..3 {
        let stays = cluster.other_than(seat);
        cluster.load(stays, 16, 1_000);
        cluster.history.wait_for_more(300);
        cluster.history.take_longest_gap();
        cluster.stop(seat);
        cluster.history.wait_for_more(300);
        cluster.restart(seat);
        cluster.process(seat).ask("ready");
        cluster.history.wait_for_more(300);
        gaps.push(cluster.history.take_longest_gap());
        cluster.unload(&[stays]);
    }
    let gap = gaps.iter().max().copied().unwrap_or_default();
    println!("rolling restart: the longest pauses between acknowledgements were {gaps:.0?}");
    let verdict = cluster.settle("rolling restart");
    assert!(verdict.acked >= 2_700);
    assert!(gap <= ELECTION_TIMEOUT * 3, "{gap:?}");
}

#[test]
fn a_restarted_peer_replaces_its_old_link_at_once() {
    let mut cluster = Cluster::start(3, &Turn::Alone, &[]);
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..6 {
        let seat = round % 3;
        let peer = cluster.peer(seat).to_owned();
        let watchers: Vec<usize> = (0..3).filter(|it| *it != seat).collect();
        let watched: Vec<_> = watchers
            .iter()
            .map(|it| cluster.process(*it).watch_bond(&peer))
            .collect();
        cluster.kill(seat);
        cluster.begin_restart(seat);
        for (watcher, asked) in watchers.iter().zip(&watched) {
            let answer = cluster.process(*watcher).answer("another bond", asked);
            let time = cluster.process(seat).started.elapsed();
            println!("member {seat} is bonded with {watcher} again after {time:.0?}: {answer}");
            times.push(time);
        }
        cluster.wait_up(seat);
        for it in 0..3 {
            cluster.process(it).ask("await reached 3");
        }
    }
    let worst = times.iter().max().copied().unwrap_or_default();
    // Were the old link waited for, it would take this timeout at least.
    let silence = Timing::LAN.bond_timeout;
    assert!(worst < silence * 2 / 3, "{worst:?} of {silence:?}");
}

#[test]
fn a_second_process_on_a_directory_is_refused_in_words() {
    let mut cluster = Cluster::start(1, &Turn::Shared, &[]);
    let (status, said) = cluster.second_process(0).end();
    assert!(!status.success(), "{status}");
    let directory = cluster.directory(0).display().to_string();
    assert!(
        said.contains(&directory),
        "it does not name the directory: {said}"
    );
    assert!(
        said.contains("in use by another"),
        "it does not say why: {said}"
    );
    println!(
        "a second process: {}",
        said.lines().last().unwrap_or_default()
    );
    // The first one is as it was.
    let id = cluster.fresh_id();
    cluster.process(0).put(id);
    cluster.settle("a directory with two claimants");
}
