//! Writes of 128 bytes: 1, 64 and 256 outstanding, leader and follower, packed, durable or not.

mod ground;

use std::sync::Arc;

use futures_util::StreamExt;
use ground::{Ground, ROUNDS, Table, median, millis, rate, round};
use quorate::{Group, Map, MapCommand};

const VALUE: usize = 128;
const PACK: usize = 256;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "store",
        "through",
        "outstanding",
        "writes/s",
        "p50",
        "p99",
        "syncs/write",
    ]);
    for (store, durable) in [("RocksDB", true), ("memory", false)] {
        let ground = Ground::open(durable).await?;
        for (through, group) in [("leader", ground.leader()), ("follower", ground.follower())] {
            for outstanding in [1, 64, 256] {
                single(&mut table, &ground, [store, through], group, outstanding).await?;
            }
        }
        many(&mut table, &ground, store).await?;
        ground.close().await;
    }
    table.print();
    Ok(())
}

async fn single(
    table: &mut Table,
    ground: &Ground,
    [store, through]: [&str; 2],
    group: &Group<Map>,
    outstanding: usize,
) -> anyhow::Result<()> {
    let (mut rounds, mut syncs) = (Vec::new(), Vec::new());
    let value: Arc<[u8]> = vec![7; VALUE].into();
    for _ in 0..=ROUNDS {
        let (group, value) = (group.clone(), Arc::clone(&value));
        let before = (ground.syncs(), ground.leader().status().committed_index);
        let done = round(outstanding, move |number| {
            let (group, value) = (group.clone(), Arc::clone(&value));
            async move {
                let key = (number as u64).to_be_bytes();
                group.execute(MapCommand::put(key, value.to_vec())).await?;
                Ok(1)
            }
        })
        .await?;
        syncs.push((ground.syncs() - before.0) as f64 / done.per_second);
        rounds.push(done);
    }
    // The first round warms up.
    let done = median(rounds.split_off(1));
    syncs.sort_by(f64::total_cmp);
    table.row(&[
        store.into(),
        through.into(),
        outstanding.to_string(),
        rate(done.per_second),
        millis(done.p50),
        millis(done.p99),
        format!("{:.2}", syncs[syncs.len() / 2]),
    ]);
    Ok(())
}

/// `execute_many`: four streams of packs of 256.
async fn many(table: &mut Table, ground: &Ground, store: &str) -> anyhow::Result<()> {
    for (through, group) in [("leader", ground.leader()), ("follower", ground.follower())] {
        let mut rounds = Vec::new();
        for _ in 0..=ROUNDS {
            let group = group.clone();
            let done = round(4, move |number| {
                let group = group.clone();
                async move {
                    let key = move |it: usize| ((number * PACK + it) as u64).to_be_bytes();
                    let put = move |it| MapCommand::put(key(it), vec![7; VALUE]);
                    let mut results = Box::pin(group.execute_many((0..PACK * 16).map(put)));
                    let mut count = 0;
                    while let Some(result) = results.next().await {
                        result?;
                        count += 1;
                    }
                    Ok(count)
                }
            })
            .await?;
            rounds.push(done);
        }
        let done = median(rounds.split_off(1));
        table.row(&[
            store.into(),
            format!("{through}, execute_many"),
            "4 x 4,096".into(),
            rate(done.per_second),
            millis(done.p50),
            millis(done.p99),
            "-".into(),
        ]);
    }
    Ok(())
}
