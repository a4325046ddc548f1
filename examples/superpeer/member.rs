//! What a member does beside what every child does: serves p2panda nodes, and says what it holds.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use quorate::{
    Group, Node, Role,
    log_store::{Line, LogStore, Logs, Operation, Topic},
    sync::{Admission, Outsiders, Sync, SyncOptions},
};

use crate::{
    mint::Mint,
    processes::child::{self, Answers, Orders, text},
};

/// Between two reports.
const REPORT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a minted operation's body.
const BODY_BYTES: usize = 100;

/// The topic of a line: a topic belongs to one.
pub(crate) fn topic(line: Line) -> Topic {
    Topic::named(&format!("example.superpeer.{line}"))
}

/// Serves until standard input ends.
pub(crate) async fn serve(directory: &Path) -> anyhow::Result<()> {
    child::serve(directory, LogStore::new(), obey_all).await
}

/// Does what it is told until nothing more comes.
async fn obey_all(
    node: Node,
    group: Group<LogStore>,
    mut orders: Orders,
    answers: Answers,
) -> anyhow::Result<()> {
    let logs = group.logs();
    while let Some(said) = orders.recv().await {
        let order = text(&said)?;
        let answer = match child::obey(&group, order).await? {
            Some(answer) => answer,
            None if order == "serve" => {
                let bind = vec!["127.0.0.1:0".parse()?];
                let options = SyncOptions {
                    bind,
                    ..SyncOptions::default()
                };
                let sync = node.serve_sync(&logs, options).await?;
                let socket = sync.addr().addrs.first().copied();
                let socket = socket.context("it listens")?;
                let serves = format!("serves {}@{socket} {}", sync.id(), node.peer_id());
                tokio::spawn(report_all(logs.clone(), sync, answers.clone()));
                serves
            }
            None => obey(&logs, order).await?,
        };
        answers.send(answer).await?;
    }
    Ok(())
}

async fn obey(logs: &Logs, order: &str) -> anyhow::Result<String> {
    let mut words = order.split(' ');
    let verb = words.next().unwrap_or_default();
    let line: Line = words.next().context("an order names a line")?.parse()?;
    match verb {
        "open" => {
            let everyone = Admission::everyone();
            let outsiders = Outsiders::of(logs);
            outsiders.open_topic(topic(line), line, everyone).await?;
        }
        "mint" => {
            let count: u32 = words.next().context("how many?")?.parse()?;
            let mut log = Mint::new(line, topic(line), 1);
            let minted: Vec<Operation> = (0..count).map(|_| log.next(BODY_BYTES)).collect();
            let outcomes = logs.append_many(topic(line), minted);
            let outcomes: Vec<_> = outcomes.try_collect().await?;
            let taken = outcomes.iter().filter(|it| it.number().is_some()).count();
            ensure!(taken == count as usize, "an operation was refused");
        }
        "ids" => return ids(logs, line).await,
        _ => bail!("not an order: {order}"),
    }
    Ok(format!("done {order}"))
}

/// Every operation of the topic, read from this member's store: how many, how many ids, and a hash
/// of the ids in their order.
async fn ids(logs: &Logs, line: Line) -> anyhow::Result<String> {
    let (mut ids, mut count) = (BTreeSet::new(), 0);
    for (author, of_author) in logs.heights(topic(line)).await? {
        for log in of_author.into_keys() {
            let mut operations = std::pin::pin!(logs.read(author, log, ..));
            while let Some(operation) = operations.next().await {
                ids.insert(operation?.id().to_string());
                count += 1;
            }
        }
    }
    let hash = hash(&ids);
    Ok(format!("ids {line} {count} {} {hash}", ids.len()))
}

/// One word for a set of ids.
pub(crate) fn hash(ids: &BTreeSet<String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for id in ids {
        hasher.update(id.as_bytes());
    }
    hasher.finalize().to_string()
}

async fn report_all(logs: Logs, sync: Sync, answers: Answers) -> anyhow::Result<()> {
    loop {
        for line in report(&logs, &sync)? {
            answers.send(line).await?;
        }
        tokio::time::sleep(REPORT_PAUSE).await;
    }
}

/// What this member holds on its own disk, and whom it serves.
fn report(logs: &Logs, sync: &Sync) -> anyhow::Result<Vec<String>> {
    let role = match logs.group().status().role {
        Role::Leader => "leader",
        _ => "follower",
    };
    let mut lines = vec![format!("role {role}")];
    for line in [Line::V06, Line::V07] {
        for (author, of_author) in logs.heights_local(topic(line))? {
            let held = of_author.values().map(|it| u64::from(*it) + 1).sum::<u64>();
            lines.push(format!("log {line} {author} {held}"));
        }
    }
    for peer in sync.status().peers {
        let server = peer.server.map_or("-".into(), |it| it.to_string());
        let chunk = peer.chunk.unwrap_or_default();
        let sent = peer.sent;
        lines.push(format!("peer {} {server} {chunk} {sent}", peer.peer));
    }
    Ok(lines)
}
