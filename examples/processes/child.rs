//! One of the processes: a node on disk that does what its standard input says, and ends with it.
//! Answers go to standard output, a line each.

use std::path::{Path, PathBuf};

use anyhow::Context;
use quorate::{Group, GroupKey, GroupTicket, Node, StateMachine};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter, stdin, stdout},
    sync::mpsc,
};

/// The first argument of a child; the second is its directory.
pub(super) const MEMBER: &str = "--member";
/// Orders and answers that may wait. The parent has fewer lines under way than this.
const QUEUE: usize = 4_096;

/// Orders as they come, a line each.
pub(crate) type Orders = mpsc::Receiver<Vec<u8>>;
/// Where answers go, a line each.
pub(crate) type Answers = mpsc::Sender<String>;

/// The directory of this process, if it is a child. `RUST_LOG` shows what it says.
pub(crate) fn directory() -> anyhow::Result<Option<PathBuf>> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|it| it != MEMBER) {
        return Ok(None);
    }
    let directory = arguments.next().context("--member wants a directory")?;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let logs = tracing_subscriber::fmt().with_writer(std::io::stderr);
    logs.with_env_filter(filter.unwrap_or_else(|_| "off".into()))
        .init();
    Ok(Some(directory.into()))
}

/// Opens the node, founds or joins the group as the first order says, and lets `obey` do the rest.
/// Returns when standard input ends: the parent has, or wants this process to.
pub(crate) async fn serve<M, W>(
    directory: &Path,
    machine: M,
    obey: impl FnOnce(Node, Group<M>, Orders, Answers) -> W,
) -> anyhow::Result<()>
where
    M: StateMachine,
    W: Future<Output = anyhow::Result<()>>,
{
    let (order, mut orders) = mpsc::channel(QUEUE);
    let reading = tokio::spawn(read_orders(order));
    let node = Node::builder(directory).bind_loopback().open().await?;
    let work = async {
        let first = orders.recv().await.context("nothing was said")?;
        let group = match text(&first)?.split_once(' ') {
            Some(("join", ticket)) => {
                let ticket: GroupTicket = ticket.parse()?;
                node.join(&ticket, machine).await?
            }
            _ => node.create(GroupKey::generate(), machine).await?,
        };
        let (answers, answered) = mpsc::channel(QUEUE);
        let writing = tokio::spawn(write_answers(answered));
        group.ready().await?;
        answers.send(format!("ready {}", group.member())).await?;
        obey(node.clone(), group, orders, answers).await?;
        writing.await?
    };
    tokio::select! {
        done = work => done?,
        read = reading => read??,
    }
    node.shutdown().await;
    Ok(())
}

/// Carries out what every child is told; none if it is an order of its own kind.
pub(crate) async fn obey<M: StateMachine>(
    group: &Group<M>,
    order: &str,
) -> anyhow::Result<Option<String>> {
    match order.split_once(' ').unwrap_or((order, "")) {
        ("ticket", _) => Ok(Some(format!("ticket {}", *group.ticket().expose()))),
        ("voters", count) => {
            let count: usize = count.parse()?;
            group
                .watch_status()
                .wait_for(|it| it.voters() == count)
                .await;
            Ok(Some("voters".into()))
        }
        _ => Ok(None),
    }
}

pub(crate) fn text(said: &[u8]) -> anyhow::Result<&str> {
    Ok(std::str::from_utf8(said)?.trim_end())
}

async fn read_orders(orders: mpsc::Sender<Vec<u8>>) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(1 << 16, stdin());
    let mut said = Vec::new();
    while input.read_until(b'\n', &mut said).await? > 0 {
        orders.send(std::mem::take(&mut said)).await?;
    }
    Ok(())
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
