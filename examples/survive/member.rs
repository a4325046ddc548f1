//! What a member does beside what every child does: replicates lines, hands over, dumps its state.

use std::{fs::File, io, path::Path};

use anyhow::{Context, anyhow, bail};
use futures_util::FutureExt;
use quorate::{ExecuteError, Group, Node};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    ledger::{self, Ledger, Line},
    processes::child::{self, Answers, Orders, text},
};

/// Serves until standard input ends.
pub(crate) async fn serve(directory: &Path) -> anyhow::Result<()> {
    child::serve(directory, Ledger::default(), obey_all).await
}

/// Does what it is told until nothing more comes.
async fn obey_all(
    _node: Node,
    group: Group<Ledger>,
    mut orders: Orders,
    answers: Answers,
) -> anyhow::Result<()> {
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
    if let Some(answer) = child::obey(group, order).await? {
        return Ok(answer);
    }
    match order.split_once(' ').unwrap_or((order, "")) {
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

/// `NUMBER TEXT`: the text is any bytes without a line end.
fn parse_line(said: &[u8]) -> Option<Line> {
    let space = said.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&said[..space]).ok()?.parse().ok()?;
    let text = said[space + 1..].strip_suffix(b"\n")?;
    let text = bytes::Bytes::copy_from_slice(text);
    Some(Line { number, text })
}
