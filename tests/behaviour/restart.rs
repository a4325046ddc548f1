//! Nodes that stop in order and come back, one or all, at rest and under load.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use quorate::{ExecuteError, Group, config::Config};

use crate::{
    cluster::{Member, Place, below, group_at, group_of, settled, temporary, views, within},
    ledger::{Ledger, assert_equal, counted},
};

async fn restart_one_then_all(places: Vec<Place>) {
    let mut members = group_at::<Ledger>(places, &Config::default()).await;
    for n in 0..30 {
        let group = &members[n % 3].group;
        within("a write", group.execute(format!("{n}"))).await.expect("written");
    }
    for round in 0..3 {
        let addr = members[0].node.addr();
        let back: Member<Ledger> = members.remove(0).rest().await.start().await;
        assert_eq!(back.node.addr(), addr, "the same port");
        members.push(back);
        let write = members[2].group.execute(format!("after restart {round}"));
        within("a write through who came back", write).await.expect("written");
    }
    let before = views(&members).await;
    assert_equal(&before);
    assert_eq!(before[0].len(), 33);

    let mut resting = Vec::new();
    for member in members {
        resting.push(member.rest().await);
    }
    let starting = resting.into_iter().map(crate::cluster::Resting::start);
    let members: Vec<Member<Ledger>> = join_all(starting).await;
    settled(&members).await;
    let after = views(&members).await;
    assert_equal(&after);
    assert_eq!(after[0], before[0], "something was lost");
    within("a write", members[1].group.execute("on".into())).await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_on_disk_are_restarted_one_by_one_and_all_at_once() {
    let root = temporary();
    restart_one_then_all(["a", "b", "c"].map(|it| below(&root, it)).to_vec()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_in_memory_are_restarted_one_by_one_and_all_at_once() {
    restart_one_then_all(vec![Place::MEMORY; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_comes_back_with_everything() {
    let root = temporary();
    let mut member = Member::<Ledger>::found(below(&root, "a"), &Config::default()).await;
    for round in 0..5 {
        within("a write", member.group.execute(format!("{round}"))).await.expect("written");
        member = member.rest().await.start().await;
        within("ready", member.group.ready()).await.expect("it runs");
        assert_eq!(member.group.view().1.len(), round + 1);
    }
}

/// The handles of the members that are up.
type Handles = Arc<Mutex<Vec<Option<Group<Ledger>>>>>;

#[derive(Default)]
struct Told {
    acknowledged: BTreeSet<String>,
    unknown: BTreeSet<String>,
    refused: BTreeSet<String>,
    stopped: usize,
    not_applied: usize,
}

async fn client(who: usize, handles: Handles, done: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut n = 0;
    while !done.load(Ordering::Relaxed) {
        let command = format!("{who}/{n}");
        n += 1;
        let group = {
            let handles = handles.lock().unwrap_or_else(PoisonError::into_inner);
            let count = handles.len();
            (0..count).find_map(|it| handles[(who + n + it) % count].clone())
        };
        let group = group.expect("one is up at any time");
        match group.execute(command.clone()).await {
            Ok(_) => {
                told.acknowledged.insert(command);
            }
            Err(ExecuteError::Unknown(unknown)) => match group.retry(unknown).await {
                Ok(_) => {
                    told.acknowledged.insert(command);
                }
                // The member that had the session is gone: nobody can tell.
                Err(_) => {
                    told.unknown.insert(command);
                }
            },
            Err(error) => {
                match error {
                    ExecuteError::Stopped(_) => told.stopped += 1,
                    ExecuteError::NotApplied(_) => told.not_applied += 1,
                    other => panic!("{other}"),
                }
                told.refused.insert(command);
            }
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_nothing_acknowledged() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Ledger>(places, &Config::default()).await;
    let groups = members.iter().map(|it| Some(it.group.clone())).collect();
    let handles: Handles = Arc::new(Mutex::new(groups));
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|who| tokio::spawn(client(who, Arc::clone(&handles), Arc::clone(&done))))
        .collect();
    let set = |at: usize, group: Option<Group<Ledger>>| {
        handles.lock().unwrap_or_else(PoisonError::into_inner)[at] = group;
    };
    let started = Instant::now();
    for round in 0..6 {
        let at = round % 3;
        tokio::time::sleep(Duration::from_millis(200)).await;
        set(at, None);
        let down = members.remove(at).rest().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let back: Member<Ledger> = down.start().await;
        within("it has caught up", back.group.ready()).await.expect("it runs");
        set(at, Some(back.group.clone()));
        members.insert(at, back);
    }
    done.store(true, Ordering::Relaxed);
    let told = within("the clients end", join_all(clients)).await;
    let views = views(&members).await;
    assert_equal(&views);
    let counts = counted(&views[0]);
    let (mut acknowledged, mut unknown, mut stopped, mut not_applied) = (0, 0, 0, 0);
    for told in told {
        let told = told.expect("no panic");
        for command in &told.acknowledged {
            assert_eq!(counts.get(command), Some(&1), "{command} was acknowledged");
        }
        for command in &told.unknown {
            assert!(counts.get(command).is_none_or(|it| *it == 1), "{command} is doubled");
        }
        for command in &told.refused {
            assert_eq!(counts.get(command), None, "{command} was said not to be applied");
        }
        acknowledged += told.acknowledged.len();
        unknown += told.unknown.len();
        stopped += told.stopped;
        not_applied += told.not_applied;
    }
    println!(
        "6 restarts under load in {:?}: {acknowledged} acknowledged, none lost; {unknown} \
         unknown, {stopped} stopped, {not_applied} not applied",
        started.elapsed()
    );
    assert!(acknowledged > 100, "too little load to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_leader_stops_in_order_the_next_write_takes_less_than_50_ms() {
    let mut members = group_of::<Ledger>(3).await;
    let mut gaps = Vec::new();
    for round in 0..9 {
        let leader = settled(&members).await;
        let survivor = members[(leader + 1) % 3].group.clone();
        within("a write", survivor.execute("warm".into())).await.expect("written");
        let leaving = members.remove(leader);
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let writing = tokio::spawn(async move {
            let (mut longest, mut after) = (Duration::ZERO, 0);
            while after < 20 {
                let asked = Instant::now();
                survivor.execute(format!("{round}")).await.expect("written");
                longest = longest.max(asked.elapsed());
                after += usize::from(ended.load(Ordering::Relaxed));
            }
            longest
        });
        let stopping = Instant::now();
        let down = leaving.rest().await;
        let took = stopping.elapsed();
        done.store(true, Ordering::Relaxed);
        let gap = within("the writes", writing).await.expect("no panic");
        println!("round {round}: longest write {gap:?}, the shutdown took {took:?}");
        gaps.push(gap);
        members.push(down.start().await);
    }
    gaps.sort();
    let median = gaps[gaps.len() / 2];
    println!("the longest write around a graceful stop of the leader: median {median:?}");
    assert!(median < Duration::from_millis(50), "{gaps:?}");
    assert_equal(&views(&members).await);
}
