//! What one node's disk path costs: a group of one voter, so that each write is one append, one
//! sync and one apply, beside a bare append and fdatasync of the same bytes.

mod ground;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use ground::{ROUNDS, Table, median, millis, rate, round};
use quorate::{GroupKey, Map, MapCommand, Node};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "what",
        "outstanding",
        "writes/s",
        "p50",
        "p99",
        "writes/sync",
    ]);
    let (per_second, p50, p99) = tokio::task::spawn_blocking(bare_file).await??;
    table.row(&[
        "file: append 200 B, fdatasync".into(),
        "1".into(),
        rate(per_second),
        millis(p50),
        millis(p99),
        "1.0".into(),
    ]);
    for (name, durable) in [("one voter, RocksDB", true), ("one voter, memory", false)] {
        let dir = tempfile::tempdir()?;
        let builder = if durable {
            Node::builder(dir.path())
        } else {
            Node::in_memory()
        };
        let node = builder.bind_loopback().open().await?;
        let group = node.create(GroupKey::generate(), Map::new()).await?;
        for outstanding in [1, 64, 256] {
            let mut rounds = Vec::new();
            let before = node.metrics();
            let mut written = 0.0;
            for _ in 0..=ROUNDS {
                let group = group.clone();
                let write = move |number: usize| {
                    let group = group.clone();
                    async move {
                        let key = (number as u64).to_be_bytes();
                        group.execute(MapCommand::put(key, vec![7; 128])).await?;
                        Ok(1)
                    }
                };
                let done = round(outstanding, write).await?;
                written += done.per_second;
                rounds.push(done);
            }
            let syncs = (node.metrics().syncs - before.syncs).max(1);
            let done = median(rounds.split_off(1));
            table.row(&[
                name.into(),
                outstanding.to_string(),
                rate(done.per_second),
                millis(done.p50),
                millis(done.p99),
                if durable {
                    format!("{:.1}", written / syncs as f64)
                } else {
                    "-".into()
                },
            ]);
        }
        node.shutdown().await;
    }
    table.print();
    Ok(())
}

fn bare_file() -> anyhow::Result<(f64, Duration, Duration)> {
    let mut file = tempfile::tempfile()?;
    let mut latencies = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let before = Instant::now();
        file.write_all(&[7; 200])?;
        file.sync_data()?;
        latencies.push(before.elapsed());
    }
    let per_second = latencies.len() as f64 / start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: usize| latencies[latencies.len() * part / 100];
    Ok((per_second, at(50), at(99)))
}
