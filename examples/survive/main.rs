//! Three processes, one leader killed, nothing lost: `cargo run --example survive -- [FILE]`.
//!
//! Replicates every line of a file through a follower of three processes on loopback, each with
//! its own RocksDB in a temporary directory. At a third of the lines the leader gets SIGKILL, at
//! two thirds it is started again. In the end all three states are compared with the file and with
//! each other; the exit code is 1 if an acknowledged line is missing, doubled or changed.

mod ledger;
mod member;
#[path = "../processes/mod.rs"]
mod processes;
mod verdict;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use processes::{Answer, Said, child};
use verdict::Verdict;

type Cluster = processes::Cluster<Told>;

/// Lines under way at once.
const WINDOW: usize = 1_024;
/// The process that every line goes through.
const FOLLOWER: usize = 1;

/// What a member says beside what all say.
#[derive(Debug)]
enum Told {
    /// Who leads; `None` when that was the member asked, which is handing over.
    Leader(Option<String>),
    /// A line is acknowledged, in this term; 0 when that is not known.
    Done { line: usize, term: u64 },
    /// What became of a line was unknown; it is asked for again.
    Unknown,
    /// A line will not be replicated; why.
    Failed(String),
    /// Its state is written.
    Dumped,
}

impl Said for Told {
    fn parse(word: &str, rest: &str) -> Option<Self> {
        Some(match word {
            "leader" => Self::Leader((!rest.is_empty()).then(|| rest.into())),
            "done" => {
                let (line, term) = rest.split_once(' ')?;
                Self::Done {
                    line: line.parse().ok()?,
                    term: term.parse().ok()?,
                }
            }
            "unknown" => Self::Unknown,
            "failed" => Self::Failed(rest.into()),
            "dumped" => Self::Dumped,
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
    let first = std::env::args_os().nth(1);
    let own = || {
        let clone = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
        Path::new(&clone).join("Cargo.lock")
    };
    let file = first.map_or_else(own, PathBuf::from);
    let verdict = survive(&file).await?;
    print!("{verdict}");
    Ok(if verdict.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn survive(file: &Path) -> anyhow::Result<Verdict> {
    let text = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let lines = lines.strip_suffix(&[&b""[..]]).unwrap_or(&lines);
    if lines.len() < 3 {
        bail!("{} has fewer than three lines", file.display());
    }
    let root = tempfile::Builder::new()
        .prefix("quorate-survive-")
        .tempdir()?;
    let mut cluster = Cluster::start(root.path()).await?;
    let ticket = cluster.ticket(FOLLOWER).await?;
    let mut run = Run::new(lines.len());
    run.say(format!(
        "three voters; {} goes in through a follower",
        file.display()
    ));
    while run.done < lines.len() {
        run.put(&mut cluster, lines).await?;
        run.take(&mut cluster).await?;
        run.strike(&mut cluster, &ticket).await?;
    }
    let elapsed = run.started.elapsed();
    run.wait_for_return(&mut cluster).await?;
    run.bar.finish_and_clear();

    println!("comparing the states of all three");
    let mut states = Vec::new();
    for number in 0..3 {
        let path = root.path().join(format!("state-{number}"));
        cluster
            .tell(number, &format!("dump {}", path.display()))
            .await?;
        loop {
            match cluster.hear().await? {
                (from, Answer::Said(Told::Dumped)) if from == number => break,
                (from, Answer::Ended) => bail!("process {from} ended before it had written"),
                _ => {}
            }
        }
        states.push(std::fs::read(&path)?);
    }
    cluster.stop().await?;
    Ok(Verdict::of(
        lines,
        &states,
        elapsed,
        run.failover,
        run.unknown,
    ))
}

/// Where the run is.
struct Run {
    started: Instant,
    total: usize,
    put: usize,
    acknowledged: Vec<bool>,
    done: usize,
    unknown: usize,
    /// The highest term in which a line was acknowledged.
    term: u64,
    leader: Leader,
    killed: Option<Instant>,
    failover: Option<Duration>,
    bar: ProgressBar,
    plain: bool,
}

/// What has been done to the leader.
enum Leader {
    Untouched,
    Sought,
    Killed(usize),
    Restarted,
    Returned,
}

impl Run {
    fn new(total: usize) -> Self {
        let style = "{bar:32} {human_pos} of {human_len} lines, {per_sec}  {wide_msg}";
        let style = ProgressStyle::with_template(style);
        let bar = ProgressBar::new(total as u64);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            started: Instant::now(),
            total,
            put: 0,
            acknowledged: vec![false; total],
            done: 0,
            unknown: 0,
            term: 0,
            leader: Leader::Untouched,
            killed: None,
            failover: None,
            plain: !std::io::stderr().is_terminal(),
            bar,
        }
    }

    /// Says what has happened: above the bar, or as a line where there is no terminal.
    fn say(&self, what: String) {
        let at = self.started.elapsed().as_secs_f64();
        if self.plain {
            println!("{at:6.2} s  {:>9} lines  {what}", self.done);
        } else {
            self.bar
                .println(format!("{at:6.2} s  {:>9} lines  {what}", self.done));
        }
    }

    /// Fills the window. The last third waits for the death of the leader.
    async fn put(&mut self, cluster: &mut Cluster, lines: &[&[u8]]) -> anyhow::Result<()> {
        let end = match self.leader {
            Leader::Untouched | Leader::Sought => self.total * 2 / 3,
            _ => self.total,
        };
        while self.put < end && self.put - self.done < WINDOW {
            let head = format!("line {} ", self.put);
            cluster
                .put(FOLLOWER, &[head.as_bytes(), lines[self.put]])
                .await?;
            self.put += 1;
        }
        cluster.flush(FOLLOWER).await
    }

    /// Takes in the answers that are there, at least one.
    async fn take(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let mut next = Some(cluster.hear().await?);
        while let Some((number, answer)) = next {
            self.note(cluster, number, answer).await?;
            next = cluster.heard();
        }
        self.bar.set_position(self.done as u64);
        Ok(())
    }

    async fn note(
        &mut self,
        cluster: &mut Cluster,
        number: usize,
        answer: Answer<Told>,
    ) -> anyhow::Result<()> {
        match answer {
            Answer::Said(Told::Done { line, term }) => {
                self.done += usize::from(!std::mem::replace(&mut self.acknowledged[line], true));
                let new = term > self.term;
                self.term = self.term.max(term);
                if let (true, None, Some(killed)) = (new, self.failover, self.killed) {
                    self.failover = Some(killed.elapsed());
                    self.say(format!("a new leader acknowledges, in term {term}"));
                }
            }
            Answer::Said(Told::Unknown) => self.unknown += 1,
            Answer::Said(Told::Leader(Some(name))) => {
                let leader = cluster
                    .number_of(&name)
                    .context("the leader is one of ours")?;
                self.killed = Some(Instant::now());
                cluster.kill(leader).await?;
                self.leader = Leader::Killed(leader);
                self.say(format!("SIGKILL for the leader, process {leader}"));
            }
            // It was the one that we write through, and it has handed over.
            Answer::Said(Told::Leader(None)) => cluster.tell(FOLLOWER, "leader").await?,
            Answer::Ready(_) => {
                self.leader = Leader::Returned;
                self.say(format!("process {number} is back and has caught up"));
            }
            Answer::Said(Told::Failed(why)) => {
                bail!("process {number} could not replicate line {why}")
            }
            Answer::Ended if matches!(self.leader, Leader::Killed(it) if it == number) => {}
            Answer::Ended => bail!("process {number} ended by itself"),
            other => bail!("process {number} answered {other:?}, unasked"),
        }
        Ok(())
    }

    /// Kills the leader at a third, starts it again at two thirds.
    async fn strike(&mut self, cluster: &mut Cluster, ticket: &str) -> anyhow::Result<()> {
        match self.leader {
            Leader::Untouched if self.done * 3 >= self.total => {
                self.leader = Leader::Sought;
                cluster.tell(FOLLOWER, "leader").await?;
            }
            Leader::Killed(number) if self.done * 3 >= self.total * 2 => {
                cluster.restart(number, ticket).await?;
                self.leader = Leader::Restarted;
                self.say(format!("process {number} is started again"));
            }
            _ => {}
        }
        Ok(())
    }

    async fn wait_for_return(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        self.say("every line is acknowledged".into());
        while let Leader::Restarted = self.leader {
            let (number, answer) = cluster.hear().await?;
            self.note(cluster, number, answer).await?;
        }
        Ok(())
    }
}
