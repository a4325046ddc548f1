//! Reads: linearizable on the leader, on a follower and over all three; local.

mod ground;

use std::sync::Arc;

use ground::{Ground, ROUNDS, Table, median, millis, rate, round};
use quorate::{MapCommand, MapQuery};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let ground = Ground::open(true).await?;
    for key in 0..1_000_u64 {
        let key = key.to_be_bytes();
        ground
            .leader()
            .execute(MapCommand::put(key, vec![7; 128]))
            .await?;
    }
    let mut table = Table::new(&["read", "where", "outstanding", "reads/s", "p50", "p99"]);
    let (leader, follower) = (ground.leader().clone(), ground.follower().clone());
    let all: Arc<[_]> = ground.groups.clone().into();
    let places: [(&str, Arc<[_]>); 3] = [
        ("leader", [leader].into()),
        ("follower", [follower].into()),
        ("all three", all),
    ];
    for (place, groups) in places {
        for outstanding in [1, 64, 256] {
            let mut rounds = Vec::new();
            for _ in 0..=ROUNDS {
                let groups = Arc::clone(&groups);
                let read = move |number: usize| {
                    let group = groups[number % groups.len()].clone();
                    async move {
                        group.query(MapQuery::get(7_u64.to_be_bytes())).await?;
                        Ok(1)
                    }
                };
                rounds.push(round(outstanding, read).await?);
            }
            let done = median(rounds.split_off(1));
            table.row(&[
                "linearizable".into(),
                place.into(),
                outstanding.to_string(),
                rate(done.per_second),
                millis(done.p50),
                millis(done.p99),
            ]);
        }
    }
    local(&mut table, &ground).await?;
    table.print();
    ground.close().await;
    Ok(())
}

/// Local reads never wait; a loop counts a thousand as one step so that the clock is not measured.
async fn local(table: &mut Table, ground: &Ground) -> anyhow::Result<()> {
    for readers in [1, 2] {
        let mut rounds = Vec::new();
        for _ in 0..=ROUNDS {
            let group = ground.follower().clone();
            let read = move |_| {
                let group = group.clone();
                async move {
                    for key in 0..1_000_u64 {
                        let answer = group.query_local(MapQuery::get(key.to_be_bytes()));
                        std::hint::black_box(answer);
                    }
                    tokio::task::yield_now().await;
                    Ok(1_000)
                }
            };
            rounds.push(round(readers, read).await?);
        }
        let done = median(rounds.split_off(1));
        table.row(&[
            "local".into(),
            "follower".into(),
            readers.to_string(),
            rate(done.per_second),
            millis(done.p50 / 1_000),
            millis(done.p99 / 1_000),
        ]);
    }
    Ok(())
}
