//! Keeps a file-backed copy of a topic: `cargo run --example mirror -- <folder> <topic> <ticket>`.
//!
//! Without arguments it shows itself: three members in this process, a log, and one member that is
//! stopped in the middle.

mod copy;

use std::{path::Path, sync::Arc};

use anyhow::Context;
use copy::Copy;
use indicatif::{ProgressBar, ProgressStyle};
use quorate::{
    Group, GroupKey, Node,
    log_store::{AuthorKey, Draft, Line, LogStore, Logs, Operation, Topic},
    sync::{self, LogServer, LogServerOptions, LogTicket, Pull, Puller, Quic, Transports},
};

const MINTED: u64 = 20_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => demo().await,
        [folder, topic, ticket] => {
            let topic = topic.parse().unwrap_or_else(|_| Topic::named(topic));
            let (mut copy, mut puller) = open(Path::new(folder), &ticket.parse()?, topic)?;
            follow(&mut copy, &mut puller, u64::MAX).await
        }
        _ => anyhow::bail!("usage: mirror [<folder> <topic> <ticket>]"),
    }
}

/// The copy as it is, and a pull of what it lacks.
fn open(folder: &Path, ticket: &LogTicket, topic: Topic) -> anyhow::Result<(Copy, Puller)> {
    let line = ticket
        .topics()
        .get(&topic)
        .context("the ticket does not name this topic")?;
    let copy = Copy::open(folder, topic, *line)?;
    println!("the copy has {} operations", copy.operations());
    let mut pull = Pull::new(ticket, topic, copy.have().clone());
    if let Some(earlier) = copy.members()? {
        pull = pull.remembering(&earlier);
    }
    Ok((copy, pull.start()))
}

/// Keeps what comes, until the copy has so many operations.
async fn follow(copy: &mut Copy, puller: &mut Puller, until: u64) -> anyhow::Result<()> {
    let style = "{wide_bar} {pos}/{len}  {per_sec}  {msg}";
    let bar = ProgressBar::new(copy.operations()).with_style(ProgressStyle::with_template(style)?);
    let mut learned = 0;
    while copy.operations() < until {
        let run = puller.next_run().await.context("the pull has ended")?;
        // On disk when this returns: only then it counts. Others run on meanwhile.
        tokio::task::block_in_place(|| copy.append(&run))?;
        let status = puller.status();
        if status.learned != learned {
            // The members of the ticket may be gone one day.
            copy.keep_members(&puller.ticket())?;
            learned = status.learned;
        }
        bar.set_length(copy.operations() + status.behind.unwrap_or(0));
        bar.set_position(copy.operations());
        bar.set_message(match (status.member, status.last_error) {
            (Some(member), _) => format!("from {}", member.short()),
            (None, Some(error)) => error.to_string(),
            (None, None) => "asking".to_owned(),
        });
    }
    bar.finish();
    Ok(())
}

async fn demo() -> anyhow::Result<()> {
    let topic = Topic::named("example.mirror");
    let (mut nodes, mut groups, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let node = Node::in_memory().bind_loopback().open().await?;
        let group = match groups.first() {
            None => node.create(GroupKey::generate(), LogStore::new()).await?,
            Some(first) => node.join(&Group::ticket(first), LogStore::new()).await?,
        };
        let logs = group.logs();
        let options = LogServerOptions {
            transports: transports(),
            ..LogServerOptions::default()
        };
        let admit = Arc::new(move |_, _, _| Ok(logs.clone()));
        servers.push(LogServer::open(options, admit).await?);
        nodes.push(node);
        groups.push(group);
    }
    groups[0]
        .watch_status()
        .wait_for(|it| it.voters() == 3)
        .await;
    let logs = groups[0].logs();
    logs.open_topic(topic, Line::V07).await?;
    println!("three members; an author writes {MINTED} operations ...");
    mint(&logs, topic).await?;

    let others: Vec<_> = servers[1..].iter().map(LogServer::addr).collect();
    let ticket = servers[0].ticket([(topic, Line::V07)], others);
    let folder = tempfile::tempdir()?;
    let (mut copy, mut puller) = open(folder.path(), &ticket, topic)?;
    follow(&mut copy, &mut puller, MINTED / 4).await?;
    let serving = puller.status().member.context("somebody serves")?;
    let at = servers.iter().position(|it| it.addr().peer() == serving);
    let at = at.context("it is one of ours")?;
    println!("member {} is stopped", serving.short());
    servers.remove(at).close().await;
    nodes.remove(at).shutdown().await;
    follow(&mut copy, &mut puller, MINTED / 2).await?;

    println!("the mirror is stopped, and started again");
    drop((copy, puller));
    let (mut copy, mut puller) = open(folder.path(), &ticket, topic)?;
    follow(&mut copy, &mut puller, MINTED).await?;
    drop((copy, puller));
    let copy = Copy::open(folder.path(), topic, Line::V07)?;
    println!(
        "verified on disk: {} of {MINTED} operations",
        copy.operations()
    );
    for server in servers {
        server.close().await;
    }
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}

/// QUIC; and HTTP, with the feature `http`: the ticket names both.
fn transports() -> Transports {
    let anywhere = ([127, 0, 0, 1], 0).into();
    let transports = Transports::none().with("quic", Quic::new().bind(anywhere));
    #[cfg(feature = "http")]
    let transports = transports.with("http", sync::Http::new().bind(anywhere));
    transports
}

async fn mint(logs: &Logs, topic: Topic) -> anyhow::Result<()> {
    use futures_util::StreamExt;
    let key = AuthorKey::generate();
    let mut last: Option<Operation> = None;
    let minted = (0..MINTED).map_while(move |number| {
        let body = Some(format!("entry {number}").into());
        let draft = match &last {
            Some(last) => Draft::after(last, number, body),
            None => Draft::first(Line::V07, topic.log_id(), number, body),
        };
        last = Operation::sign(draft, &key).ok();
        last.clone()
    });
    let mut outcomes = std::pin::pin!(logs.append_many(topic, minted));
    while let Some(outcome) = outcomes.next().await {
        anyhow::ensure!(outcome?.number().is_some(), "an operation was refused");
    }
    Ok(())
}
