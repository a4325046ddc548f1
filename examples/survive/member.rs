//! One of the three processes: a node on disk that does what its standard input says, and ends
//! with it. Answers go to standard output, a line each.

use std::{fs::File, io, path::Path};

use anyhow::{Context, anyhow, bail};
use futures_util::FutureExt;
use quorate::{ExecuteError, Group, GroupKey, GroupTicket, Node};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter, stdin, stdout},
    sync::mpsc,
    task::JoinSet,
};

use crate::ledger::{self, Ledger, Line};

/// Orders and answers that may wait. The parent has fewer lines under way than this.
const QUEUE: usize = 4_096;

/// Serves until standard input ends.
pub(crate) async fn serve(directory: &Path) -> anyhow::Result<()> {
    let (orders, mut ordered) = mpsc::channel(QUEUE);
    let reading = tokio::spawn(read_orders(orders));
    let node = Node::builder(directory).bind_loopback().open().await?;
    let work = obey_all(&node, &mut ordered);
    tokio::select! {
        done = work => done?,
        read = reading => read??,
    }
    node.shutdown().await;
    Ok(())
}

/// Does what it is told until nothing more comes.
async fn obey_all(node: &Node, orders: &mut mpsc::Receiver<Vec<u8>>) -> anyhow::Result<()> {
    let first = orders.recv().await.context("nothing was said")?;
    let group = match text(&first)?.split_once(' ') {
        Some(("join", ticket)) => {
            let ticket: GroupTicket = ticket.parse()?;
            node.join(&ticket, Ledger::default()).await?
        }
        _ => node.create(GroupKey::generate(), Ledger::default()).await?,
    };
    let (answers, answered) = mpsc::channel(QUEUE);
    let writing = tokio::spawn(write_answers(answered));
    group.ready().await?;
    answers.send(format!("ready {}", group.member())).await?;

    let mut executing = JoinSet::new();
    while let Some(said) = orders.recv().await {
        while executing.try_join_next().is_some() {}
        if let Some(line) = said.strip_prefix(b"line ") {
            let line = parse_line(line).ok_or_else(|| anyhow!("a line without a number"))?;
            executing.spawn(replicate(group.clone(), line, answers.clone()));
        } else {
            let answer = obey(&group, text(&said)?).await?;
            answers.send(answer).await?;
        }
    }
    drop((executing, answers));
    writing.await?
}

/// Returns when standard input ends: the parent has, or wants this process to.
async fn read_orders(orders: mpsc::Sender<Vec<u8>>) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(1 << 16, stdin());
    let mut said = Vec::new();
    while input.read_until(b'\n', &mut said).await? > 0 {
        orders.send(std::mem::take(&mut said)).await?;
    }
    Ok(())
}

/// Replicates one line, whatever happens to the leader meanwhile.
async fn replicate(group: Group<Ledger>, line: Line, answers: mpsc::Sender<String>) {
    let number = line.number;
    let execute = |line| group.execute_at(line).map(|it| it.map(|(at, _)| at.term));
    let mut result = execute(line.clone()).await;
    let answer = loop {
        result = match result {
            Ok(term) => break format!("done {number} {term}"),
            // Its fate is unknown: asked again in its session, where it is applied at most once.
            Err(ExecuteError::Unknown(unresolved)) if unresolved.can_retry() => {
                let _ = answers.send(format!("unknown {number}")).await;
                group.retry(unresolved).await.map(|_| 0)
            }
            // Certainly not applied: a fresh try is safe.
            Err(ExecuteError::NotApplied(_)) => execute(line.clone()).await,
            Err(error) => break format!("failed {number} {error}"),
        };
    };
    let _ = answers.send(answer).await;
}

async fn obey(group: &Group<Ledger>, order: &str) -> anyhow::Result<String> {
    match order.split_once(' ').unwrap_or((order, "")) {
        ("ticket", _) => Ok(format!("ticket {}", *group.ticket().expose())),
        ("voters", count) => {
            let count: usize = count.parse()?;
            group
                .watch_status()
                .wait_for(|it| it.voters() == count)
                .await;
            Ok("voters".into())
        }
        ("leader", _) => {
            let status = group
                .watch_status()
                .wait_for(|it| it.leader.is_some())
                .await;
            let leader = status.leader.context("there is one")?;
            if leader != status.member {
                return Ok(format!("leader {leader}"));
            }
            // Lines go through a follower: somebody else is to lead.
            let other = status
                .members
                .iter()
                .find(|it| it.voter && it.member != leader);
            let other = other.context("a group of one")?.member;
            let _ = group.transfer_leadership(other).await;
            Ok("leader".into())
        }
        ("dump", path) => {
            group.ready().await?;
            let (_, lines) = group.view();
            ledger::write(&lines, &mut io::BufWriter::new(File::create(path)?))?;
            Ok("dumped".into())
        }
        (other, _) => bail!("not an order: {other}"),
    }
}

async fn write_answers(mut answers: mpsc::Receiver<String>) -> anyhow::Result<()> {
    let mut output = BufWriter::new(stdout());
    while let Some(mut answer) = answers.recv().await {
        answer.push('\n');
        output.write_all(answer.as_bytes()).await?;
        if answers.is_empty() {
            output.flush().await?;
        }
    }
    output.flush().await?;
    Ok(())
}

/// `NUMBER TEXT`: the text is any bytes without a line end.
fn parse_line(said: &[u8]) -> Option<Line> {
    let space = said.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&said[..space]).ok()?.parse().ok()?;
    let text = said[space + 1..].strip_suffix(b"\n")?;
    let text = bytes::Bytes::copy_from_slice(text);
    Some(Line { number, text })
}

fn text(said: &[u8]) -> anyhow::Result<&str> {
    Ok(std::str::from_utf8(said)?.trim_end())
}
