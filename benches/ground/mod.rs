//! What every bench stands on: three nodes on loopback, rounds, medians, one table at the end.

#![allow(dead_code, reason = "each bench uses a part of this")]

use std::time::{Duration, Instant};

use quorate::{Group, GroupKey, Map, Node, StateMachine};

/// Rounds of each measurement; the table shows their median.
pub(crate) const ROUNDS: usize = 5;

/// Three voters in this process.
pub(crate) struct Ground<M: StateMachine = Map> {
    pub(crate) nodes: Vec<Node>,
    pub(crate) groups: Vec<Group<M>>,
    dirs: Vec<tempfile::TempDir>,
}

impl Ground {
    /// Three voters that keep a map.
    pub(crate) async fn open(durable: bool) -> anyhow::Result<Self> {
        Self::keeping(durable, Map::new).await
    }
}

impl<M: StateMachine> Ground<M> {
    /// Three voters; on RocksDB in temporary directories, or in memory.
    pub(crate) async fn keeping(durable: bool, machine: fn() -> M) -> anyhow::Result<Self> {
        let mut ground = Self {
            nodes: Vec::new(),
            groups: Vec::new(),
            dirs: Vec::new(),
        };
        for _ in 0..3 {
            let builder = if durable {
                let dir = tempfile::tempdir()?;
                let builder = Node::builder(dir.path());
                ground.dirs.push(dir);
                builder
            } else {
                Node::in_memory()
            };
            let node = builder.bind_loopback().open().await?;
            let group = match ground.groups.first() {
                None => node.create(GroupKey::generate(), machine()).await?,
                Some(first) => node.join(&first.ticket(), machine()).await?,
            };
            ground.nodes.push(node);
            ground.groups.push(group);
        }
        let voters = |it: &quorate::Status| it.members.iter().filter(|it| it.voter).count();
        for group in &ground.groups {
            group
                .watch_status()
                .wait_for(|it| voters(it) == 3 && it.leader.is_some())
                .await;
            group.ready().await?;
        }
        Ok(ground)
    }

    pub(crate) fn leader(&self) -> &Group<M> {
        let leads = |it: &&Group<M>| it.status().leader == Some(it.member());
        self.groups.iter().find(leads).unwrap_or(&self.groups[0])
    }

    pub(crate) fn follower(&self) -> &Group<M> {
        let follows = |it: &&Group<M>| it.status().leader != Some(it.member());
        self.groups.iter().find(follows).unwrap_or(&self.groups[1])
    }

    /// Syncs of all three nodes together.
    pub(crate) fn syncs(&self) -> u64 {
        self.nodes.iter().map(|it| it.metrics().syncs).sum()
    }

    pub(crate) async fn close(self) {
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

/// One round's figures.
#[derive(Clone, Copy)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Runs `outstanding` loops of one operation for a second and collects every latency.
pub(crate) async fn round<F, Fut>(outstanding: usize, operation: F) -> anyhow::Result<Round>
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<usize>> + Send,
{
    let start = Instant::now();
    let end = start + Duration::from_secs(1);
    let loops: Vec<_> = (0..outstanding)
        .map(|number| {
            let operation = operation.clone();
            tokio::spawn(async move {
                let (mut latencies, mut count) = (Vec::new(), 0);
                while Instant::now() < end {
                    let before = Instant::now();
                    count += operation(number).await?;
                    latencies.push(before.elapsed());
                }
                anyhow::Ok((latencies, count))
            })
        })
        .collect();
    let (mut latencies, mut count) = (Vec::new(), 0);
    for one in loops {
        let (some, done) = one.await??;
        latencies.extend(some);
        count += done;
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok(Round {
        per_second: count as f64 / seconds,
        p50: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
    })
}

/// The round with the median rate.
pub(crate) fn median(mut rounds: Vec<Round>) -> Round {
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    rounds[rounds.len() / 2]
}

/// A table that is printed at the end, as Markdown.
#[derive(Default)]
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(ToString::to_string).collect()])
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        eprintln!("{}", cells.join("  "));
        self.0.push(cells.to_vec());
    }

    pub(crate) fn print(&self) {
        let columns = self.0.first().map_or(0, Vec::len);
        let wide = |column: usize| self.0.iter().map(|it| it[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|it| wide(it).unwrap_or(0)).collect();
        for (number, row) in self.0.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, &wide)| format!("{cell:<wide$}"))
                .collect();
            println!("| {} |", cells.join(" | "));
            if number == 0 {
                let rule: Vec<String> = widths.iter().map(|&it| "-".repeat(it)).collect();
                println!("| {} |", rule.join(" | "));
            }
        }
    }
}

pub(crate) fn rate(per_second: f64) -> String {
    let whole = per_second.round() as u64;
    let mut text = whole.to_string();
    let mut at = text.len();
    while at > 3 {
        at -= 3;
        text.insert(at, ',');
    }
    text
}

pub(crate) fn millis(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}
