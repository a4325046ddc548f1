//! Pulling a topic over loopback QUIC from one member on RocksDB, with bodies of 100 bytes: by the
//! default checks, and with every signature checked.
//!
//! `OPERATIONS` says how many (20,000; the goal is 1,000,000 at 100,000/s), `ROUNDS` how often (3).

use std::{env, sync::Arc, time::Instant};

use futures_util::StreamExt;
use quorate::{
    GroupKey, Node,
    log_store::{AuthorKey, Draft, Line, LogStore, Logs, Operation, Topic},
    sync::{Have, LogServer, LogServerOptions, LogTicket, Pull, Quic, QuicDial, Transports},
};

const BODY: usize = 100;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let number = |name: &str, default: usize| {
        let value = env::var(name).ok();
        value.and_then(|it| it.parse().ok()).unwrap_or(default)
    };
    let (count, rounds) = (number("OPERATIONS", 20_000), number("ROUNDS", 3));
    let dir = tempfile::tempdir()?;
    let node = Node::builder(dir.path()).bind_loopback().open().await?;
    let group = node.create(GroupKey::generate(), LogStore::new()).await?;
    let (logs, topic) = (group.logs(), Topic::named("bench"));
    logs.open_topic(topic, Line::V07).await?;

    let start = Instant::now();
    fill(&logs, topic, count).await?;
    let appended = count as f64 / start.elapsed().as_secs_f64();
    eprintln!(
        "{count} operations signed and appended, {appended:.0}/s; load {}",
        load()
    );

    let quic = Quic::new().bind(([127, 0, 0, 1], 0).into());
    let options = LogServerOptions {
        transports: Transports::none().with("quic", quic),
        ..LogServerOptions::default()
    };
    let served = logs.clone();
    let admit = Arc::new(move |_, _, _| Ok(served.clone()));
    let server = LogServer::open(options, admit).await?;
    let ticket = server.ticket([(topic, Line::V07)], []);
    println!("| checks | operations/s, median of {rounds} | signatures | load |");
    println!("|---|---|---|---|");
    for (name, all) in [("newest of each run", false), ("every signature", true)] {
        let mut rates = Vec::new();
        let mut signatures = 0;
        for _ in 0..rounds.max(1) {
            let (rate, checked) = round(&ticket, topic, count, all).await?;
            eprintln!("{name}: {rate:.0}/s");
            rates.push(rate);
            signatures = checked;
        }
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        println!("| {name} | {median:.0} | {signatures} | {} |", load());
    }
    server.close().await;
    node.shutdown().await;
    Ok(())
}

/// One author's log, minted as it is appended.
async fn fill(logs: &Logs, topic: Topic, count: usize) -> anyhow::Result<()> {
    let key = AuthorKey::generate();
    let mut last: Option<Operation> = None;
    let minted = (0..count).map_while(move |_| {
        let body = Some(vec![7; BODY].into());
        let draft = match &last {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(Line::V07, topic.log_id(), 7, body),
        };
        last = Operation::sign(draft, &key).ok();
        last.clone()
    });
    let mut outcomes = std::pin::pin!(logs.append_many(topic, minted));
    let mut appended = 0;
    while let Some(outcome) = outcomes.next().await {
        anyhow::ensure!(outcome?.number() == Some(appended), "not appended in order");
        appended += 1;
    }
    anyhow::ensure!(appended == count as u64, "not all were appended");
    Ok(())
}

/// Operations a second, and how many signatures were checked for them.
async fn round(
    ticket: &LogTicket,
    topic: Topic,
    count: usize,
    all: bool,
) -> anyhow::Result<(f64, u64)> {
    let dial = QuicDial::bound_to(ticket.network(), ([127, 0, 0, 1], 0).into());
    let mut pull = Pull::new(ticket, topic, Have::new())
        .over(Arc::new(dial))
        .once();
    if all {
        pull = pull.verify_all();
    }
    let start = Instant::now();
    let puller = pull.start();
    let handle = puller.handle();
    let taken = puller.fold(0, |taken, _| async move { taken + 1 }).await;
    let elapsed = start.elapsed().as_secs_f64();
    anyhow::ensure!(taken == count, "{taken} of {count} came");
    Ok((count as f64 / elapsed, handle.status().signatures))
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("unknown").to_owned()
}
