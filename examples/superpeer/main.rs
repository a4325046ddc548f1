//! A group as one always-on peer: `make demo-sync`.
//!
//! Three processes, one group, serve two unmodified p2panda nodes, one of each line. Both nodes
//! know one member only. While they catch up that one gets SIGKILL; another member dials them and
//! goes on; the dead one comes back and catches up itself. In the end the nodes' own stores and
//! those of all members are compared; the exit code is 0 only if nothing is missing anywhere.
//!
//! `cargo run --example superpeer -- [OPERATIONS]`, with the p2panda nodes that `make stock` builds
//! named by `QUORATE_STOCK_06` and `QUORATE_STOCK_07`.

mod member;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/interop/harness/mint.rs"]
mod mint;
mod picture;
#[expect(dead_code, reason = "shared with `survive`, which uses all of it")]
#[path = "../processes/mod.rs"]
mod processes;
mod run;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/interop/harness/stock.rs"]
mod stock;
mod verdict;

use std::process::ExitCode;

use anyhow::ensure;
use processes::{Said, child};
use quorate::log_store::Line;
use run::Run;

type Cluster = processes::Cluster<Told>;

/// A topic and a p2panda node of each.
const LINES: [Line; 2] = [Line::V06, Line::V07];
/// Operations of the log that a topic begins with, unless told otherwise.
const OPERATIONS: u64 = 3_000;

/// What a member says beside what all say.
#[derive(Debug)]
enum Told {
    /// It serves p2panda nodes: where they find it, and its name as a node.
    Serves {
        address: String,
        node: String,
    },
    /// An order is carried out.
    Done,
    Role(String),
    /// How many operations of an author it holds in a topic.
    Log {
        line: Line,
        author: String,
        held: u64,
    },
    Peer(PeerTold),
    /// What it holds of a topic: how many operations, how many ids, and the hash of the ids.
    Ids {
        line: Line,
        held: (u64, u64, String),
    },
}

/// What a member's status says of a p2panda node.
#[derive(Debug)]
struct PeerTold {
    id: String,
    /// The name of the node that serves it.
    server: String,
    chunk: u64,
    /// How many operations this member has sent it.
    sent: u64,
}

impl Said for Told {
    fn parse(word: &str, rest: &str) -> Option<Self> {
        let mut words = rest.split(' ');
        let mut next = || words.next();
        Some(match word {
            "serves" => Self::Serves {
                address: next()?.into(),
                node: next()?.into(),
            },
            "done" => Self::Done,
            "role" => Self::Role(next()?.into()),
            "log" => Self::Log {
                line: next()?.parse().ok()?,
                author: next()?.into(),
                held: next()?.parse().ok()?,
            },
            "peer" => Self::Peer(PeerTold {
                id: next()?.into(),
                server: next()?.into(),
                chunk: next()?.parse().ok()?,
                sent: next()?.parse().ok()?,
            }),
            "ids" => Self::Ids {
                line: next()?.parse().ok()?,
                held: (next()?.parse().ok()?, next()?.parse().ok()?, next()?.into()),
            },
            _ => return None,
        })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    if let Some(directory) = child::directory()? {
        member::serve(&directory).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let operations = std::env::args().nth(1);
    let operations = operations.map_or(Ok(OPERATIONS), |it| it.parse())?;
    ensure!(operations >= 2_000, "fewer than 2,000 are through at once");
    for line in LINES {
        let name = stock::variable(line);
        let named = std::env::var_os(name).is_some();
        ensure!(named, "{name} does not name a p2panda node: make demo-sync");
    }
    let root = tempfile::Builder::new()
        .prefix("quorate-superpeer-")
        .tempdir()?;
    let mut cluster = Cluster::start(root.path()).await?;
    let mut run = Run::start(&mut cluster, root.path(), operations).await?;
    run.until_all_have_all(&mut cluster).await?;
    let verdict = run.end(&mut cluster).await?;
    cluster.stop().await?;
    print!("{verdict}");
    Ok(match verdict.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
