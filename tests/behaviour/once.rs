//! Exactly once, whoever leads and however often that changes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use quorate::{ExecuteError, Group, Position, config::Config};
use tokio::task::JoinHandle;

use crate::{
    cluster::{Member, Place, group_at, group_of, settled, views, within},
    ledger::{Ledger, assert_equal, counted},
};

/// What became of one client's commands.
#[derive(Default)]
struct Told {
    /// With the position that `execute_at` gave, where it was that which answered.
    acknowledged: Vec<(String, Option<Position>)>,
    resolved: usize,
    repeated: usize,
}

/// Has one command applied, whatever it takes, without ever risking it twice.
async fn insist(group: &Group<Ledger>, command: &str, told: &mut Told) {
    let mut unknown = loop {
        match group.execute_at(command.to_owned()).await {
            Ok((at, _)) => {
                told.acknowledged.push((command.to_owned(), Some(at)));
                return;
            }
            Err(ExecuteError::NotApplied(_)) => told.repeated += 1,
            Err(ExecuteError::Unknown(unknown)) => break unknown,
            Err(error) => panic!("{command}: {error}"),
        }
    };
    loop {
        assert!(unknown.can_retry(), "{command}: the session is gone");
        match group.retry(unknown).await {
            Ok(_) => break,
            Err(ExecuteError::Unknown(again)) => unknown = again,
            Err(error) => panic!("{command}: {error}"),
        }
    }
    told.resolved += 1;
    told.acknowledged.push((command.to_owned(), None));
}

/// Clients that write through every member until they are told that it is enough.
fn clients(members: &[Member<Ledger>], done: &Arc<AtomicBool>) -> Vec<JoinHandle<Told>> {
    let client = |who: usize| {
        let (group, done) = (members[who % members.len()].group.clone(), Arc::clone(done));
        tokio::spawn(async move {
            let mut told = Told::default();
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                insist(&group, &format!("{who}/{n}"), &mut told).await;
                n += 1;
            }
            told
        })
    };
    (0..4 * members.len()).map(client).collect()
}

/// What the clients were told is what every member holds, once each, where they were told.
/// Gives how many of them had to be retried in their session.
async fn check(what: &str, members: &[Member<Ledger>], clients: Vec<JoinHandle<Told>>) -> usize {
    let mut all = Told::default();
    for told in within("the clients end", join_all(clients)).await {
        let told = told.expect("no panic");
        all.acknowledged.extend(told.acknowledged);
        all.resolved += told.resolved;
        all.repeated += told.repeated;
    }
    settled(members).await;
    let views = views(members).await;
    assert_equal(&views);
    let (count, resolved, repeated) = (all.acknowledged.len(), all.resolved, all.repeated);
    println!(
        "{what}: {count} commands, {resolved} resolved by retry, {repeated} not applied at first"
    );
    let counts = counted(&views[0]);
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(doubled.is_empty(), "not exactly once: {doubled:?}");
    assert_eq!(counts.len(), count, "applied and acknowledged differ");
    let places: BTreeMap<&str, Position> = views[0]
        .iter()
        .map(|(at, command)| (command.as_str(), *at))
        .collect();
    for (command, at) in &all.acknowledged {
        let applied = places.get(command.as_str());
        assert!(applied.is_some(), "{command} was acknowledged and is lost");
        assert!(
            at.is_none() || at.as_ref() == applied,
            "{command}: {at:?}, not {applied:?}"
        );
    }
    resolved
}

async fn break_the_bonds_of(member: &Member<Ledger>) {
    for (_, bond) in member.group.bonds().iter() {
        bond.close("a test breaks it");
    }
    tokio::time::sleep(Duration::from_millis(40)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_is_applied_once_while_the_leadership_goes_round() {
    let members = group_of::<Ledger>(3).await;
    let started = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let clients = clients(&members, &done);
    let (mut moved, mut refused) = (0, 0);
    while moved < 60 && started.elapsed() < Duration::from_secs(20) {
        let to = members[(moved + refused) % 3].id();
        let asked = &members[(moved + refused + 1) % 3].group;
        match within("a transfer", asked.transfer_leadership(to)).await {
            Ok(()) => moved += 1,
            Err(error) => {
                println!("a transfer: {error}");
                refused += 1;
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    let what = format!(
        "{moved} transfers, {refused} refused, in {:?}",
        started.elapsed()
    );
    check(&what, &members, clients).await;
    assert!(moved >= 10, "too few transfers to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_is_applied_once_and_stands_where_it_says_while_bonds_break() {
    let members = group_of::<Ledger>(3).await;
    let started = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let clients = clients(&members, &done);
    for round in 0..40 {
        break_the_bonds_of(&members[round % 3]).await;
    }
    done.store(true, Ordering::Relaxed);
    let what = format!("bonds broken 40 times in {:?}", started.elapsed());
    check(&what, &members, clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_is_resolved_by_a_retry_and_never_doubled() {
    // So short that an answer which is lost with its bond comes too late.
    let config = Config {
        execute_timeout: Duration::from_millis(10),
        ..Config::default()
    };
    let members = group_at::<Ledger>(vec![Place::MEMORY; 3], &config).await;
    let done = Arc::new(AtomicBool::new(false));
    let clients = clients(&members, &done);
    for round in 0..40 {
        break_the_bonds_of(&members[round % 3]).await;
    }
    done.store(true, Ordering::Relaxed);
    let what = "bonds broken 40 times, 10 ms of patience";
    let resolved = check(what, &members, clients).await;
    assert!(resolved > 0, "nothing was unknown: nothing is shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_applied_once_while_bonds_break() {
    let members = group_of::<Ledger>(3).await;
    let done = Arc::new(AtomicBool::new(false));
    let clients = members.iter().enumerate().map(|(who, member)| {
        let (group, done) = (member.group.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let enough = move |_: &u64| !done.load(Ordering::Relaxed);
            let commands = (0..100_000)
                .take_while(enough)
                .map(move |n| format!("{who}/{n}"));
            let mut results = Box::pin(group.execute_many(commands));
            let (mut acknowledged, mut unclear) = (0, Vec::new());
            while let Some(result) = results.next().await {
                match result {
                    Ok(_) => acknowledged += 1,
                    Err(ExecuteError::Unknown(unknown)) => unclear.push(unknown),
                    Err(error) => panic!("{error}"),
                }
            }
            let resolved = unclear.len();
            for unknown in unclear {
                group.retry(unknown).await.expect("resolved");
            }
            acknowledged + resolved
        })
    });
    let clients: Vec<_> = clients.collect();
    for round in 0..40 {
        break_the_bonds_of(&members[round % 3]).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut total = 0;
    for told in within("the clients end", join_all(clients)).await {
        total += told.expect("no panic");
    }
    println!("batches while bonds broke 40 times: {total} commands");
    let views = views(&members).await;
    assert_equal(&views);
    let counts = counted(&views[0]);
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(doubled.is_empty(), "not exactly once: {doubled:?}");
    assert_eq!(counts.len(), total);
}
