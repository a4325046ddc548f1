//! Many groups on three nodes of one process, over one connection a pair of nodes:
//! `cargo run --release --example many_groups -- [GROUPS]` (100 unless said).
//!
//! Prints connections, memory and processor time, in all and per group. The state is in memory; the
//! three nodes share the process, so its memory is what three machines would hold together.

use std::time::{Duration, Instant};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{join_all, try_join_all},
    stream,
};
use quorate::{
    Group, GroupKey, Map, MapCommand, Node, Status,
    config::{Config, Timing},
};

/// Groups that are founded at once.
const AT_ONCE: usize = 8;
/// How long the idle groups are watched.
const IDLE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let wanted: usize = match std::env::args().nth(1) {
        Some(count) => count.parse()?,
        None => 100,
    };
    // A group's heartbeats are its own, so many groups want the calmer timing.
    let config = Config {
        timing: Timing::INTERNET,
        ..Config::default()
    };
    let node = || Node::in_memory().bind_loopback().config(config.clone());
    let open = || node().open();
    let nodes = [open().await?, open().await?, open().await?];
    let before = resident_kib();

    let started = Instant::now();
    let founding = stream::iter(0..wanted).map(|_| found(&nodes));
    let groups: Vec<_> = founding.buffered(AT_ONCE).try_collect().await?;
    join_all(groups.iter().flatten().map(full)).await;
    let per_group = started.elapsed() / u32::try_from(wanted.max(1))?;
    println!("{wanted} groups of three voters, founded in {per_group:?} each");
    for (number, node) in nodes.iter().enumerate() {
        let bonds: usize = groups.iter().map(|group| group[number].bonds().len()).sum();
        println!(
            "node {number}: {} connections carry {bonds} bonds",
            node.connections()
        );
    }

    let started = Instant::now();
    let writes = groups
        .iter()
        .flatten()
        .map(|it| it.execute(MapCommand::put("colour", "green")));
    let written = try_join_all(writes).await?.len();
    println!(
        "{written} writes, one from each member of each group: {:?}",
        started.elapsed()
    );

    let (processor, started) = (processor_time(), Instant::now());
    tokio::time::sleep(IDLE).await;
    let idle = (processor_time() - processor).as_secs_f64() / started.elapsed().as_secs_f64();
    let memory = resident_kib().saturating_sub(before);
    let members = 3 * wanted.max(1);
    println!(
        "idle:   {:.1} % of a core for all three nodes",
        idle * 100.0
    );
    println!("memory: {} MiB more than without groups", memory / 1024);
    println!(
        "        {} KiB for one group on one node",
        memory / members as u64
    );

    join_all(nodes.iter().map(Node::shutdown)).await;
    Ok(())
}

/// One group with a member on each node.
async fn found(nodes: &[Node; 3]) -> anyhow::Result<Vec<Group<Map>>> {
    let first = nodes[0].create(GroupKey::generate(), Map::new()).await?;
    let ticket = first.ticket();
    let second = nodes[1].join(&ticket, Map::new()).await?;
    let third = nodes[2].join(&ticket, Map::new()).await?;
    Ok(vec![first, second, third])
}

/// Waits until this member knows of three voters.
async fn full(group: &Group<Map>) -> Status {
    group.watch_status().wait_for(|it| it.voters() == 3).await
}

/// Memory of this process that is in use, as Linux tells it; 0 elsewhere.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|it| it.split_whitespace().next());
    number.and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// Processor time of this process, as Linux tells it in hundredths of a second; 0 elsewhere.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold spaces, the 12th and 13th field: user and system time.
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|it| it.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
