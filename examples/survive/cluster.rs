//! The parent's side of the three processes: starting, telling, hearing, killing.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
};

/// What a member has answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It runs and has caught up; its name in the group.
    Ready(String),
    /// A ticket, as text.
    Ticket(String),
    /// As many voters as asked for are in the membership.
    Voters,
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
    /// The process is gone.
    Ended,
}

/// Three processes of this program, by number.
pub(crate) struct Cluster {
    root: PathBuf,
    members: Vec<Member>,
    answers: mpsc::Receiver<(usize, Answer)>,
    answering: mpsc::Sender<(usize, Answer)>,
}

struct Member {
    /// Ends with us: its standard input does, and it is killed when this is dropped.
    process: Child,
    input: BufWriter<ChildStdin>,
    name: String,
}

impl Cluster {
    /// Starts three processes that become one group of three voters.
    pub(crate) async fn start(root: &Path) -> anyhow::Result<Self> {
        let (answering, answers) = mpsc::channel(4_096);
        let mut cluster = Self {
            root: root.to_owned(),
            members: Vec::new(),
            answers,
            answering,
        };
        cluster.members.push(cluster.spawn(0, "found").await?);
        cluster.ready(0).await?;
        let ticket = cluster.ticket(0).await?;
        for number in 1..3 {
            let member = cluster.spawn(number, &format!("join {ticket}")).await?;
            cluster.members.push(member);
            cluster.ready(number).await?;
        }
        cluster.tell(0, "voters 3").await?;
        while !matches!(cluster.hear().await?, (_, Answer::Voters)) {}
        Ok(cluster)
    }

    /// Kills a process: nothing in it gets to tidy up.
    pub(crate) async fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        Ok(self.members[number].process.kill().await?)
    }

    /// Starts a killed process again, on what its disk holds.
    pub(crate) async fn restart(&mut self, number: usize, ticket: &str) -> anyhow::Result<()> {
        self.members[number] = self.spawn(number, &format!("join {ticket}")).await?;
        Ok(())
    }

    /// A ticket from this member.
    pub(crate) async fn ticket(&mut self, number: usize) -> anyhow::Result<String> {
        self.tell(number, "ticket").await?;
        match self.hear().await? {
            (_, Answer::Ticket(ticket)) => Ok(ticket),
            (number, other) => bail!("process {number} answered {other:?}, not with a ticket"),
        }
    }

    /// Waits until this member has caught up, and learns its name.
    async fn ready(&mut self, number: usize) -> anyhow::Result<()> {
        match self.hear().await? {
            (from, Answer::Ready(name)) if from == number => self.members[number].name = name,
            (from, other) => bail!("process {from} answered {other:?} before {number} was ready"),
        }
        Ok(())
    }

    /// Which process is the member of this name.
    pub(crate) fn number_of(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|it| it.name == name)
    }

    /// Tells a member to do something.
    pub(crate) async fn tell(&mut self, number: usize, order: &str) -> anyhow::Result<()> {
        self.put(number, &[order.as_bytes()]).await?;
        self.flush(number).await
    }

    /// Gives a member a line to replicate; [`Cluster::flush`] sends it.
    pub(crate) async fn put_line(
        &mut self,
        to: usize,
        line: usize,
        text: &[u8],
    ) -> anyhow::Result<()> {
        let head = format!("line {line} ");
        self.put(to, &[head.as_bytes(), text]).await
    }

    async fn put(&mut self, number: usize, parts: &[&[u8]]) -> anyhow::Result<()> {
        let input = &mut self.members[number].input;
        for part in parts {
            input.write_all(part).await?;
        }
        Ok(input.write_all(b"\n").await?)
    }

    /// Sends what was put.
    pub(crate) async fn flush(&mut self, number: usize) -> anyhow::Result<()> {
        Ok(self.members[number].input.flush().await?)
    }

    /// The next answer, and whose it is.
    pub(crate) async fn hear(&mut self) -> anyhow::Result<(usize, Answer)> {
        self.answers.recv().await.context("we hold a sender")
    }

    /// The next answer if one is there already.
    pub(crate) fn heard(&mut self) -> Option<(usize, Answer)> {
        self.answers.try_recv().ok()
    }

    /// Where a member is to write its state.
    pub(crate) fn dump_of(&self, number: usize) -> PathBuf {
        self.root.join(format!("state-{number}"))
    }

    /// Lets all processes end in order.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        for Member {
            mut process, input, ..
        } in self.members
        {
            drop(input);
            process.wait().await?;
        }
        Ok(())
    }

    async fn spawn(&self, number: usize, first: &str) -> anyhow::Result<Member> {
        let directory = self.root.join(format!("node-{number}"));
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--member")
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().context("it is piped")?;
        let mut input = BufWriter::new(process.stdin.take().context("it is piped")?);
        // By its standard input, not as an argument: a ticket is a secret.
        input.write_all(format!("{first}\n").as_bytes()).await?;
        input.flush().await?;
        tokio::spawn(listen(number, output, self.answering.clone()));
        let name = self
            .members
            .get(number)
            .map_or_else(String::new, |it| it.name.clone());
        Ok(Member {
            process,
            input,
            name,
        })
    }
}

async fn listen(number: usize, output: ChildStdout, answers: mpsc::Sender<(usize, Answer)>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match parse(&line) {
            Some(answer) => {
                let _ = answers.send((number, answer)).await;
            }
            None => eprintln!("process {number} says: {line}"),
        }
    }
    let _ = answers.send((number, Answer::Ended)).await;
}

fn parse(line: &str) -> Option<Answer> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some(match word {
        "ready" => Answer::Ready(rest.into()),
        "ticket" => Answer::Ticket(rest.into()),
        "voters" => Answer::Voters,
        "leader" => Answer::Leader((!rest.is_empty()).then(|| rest.into())),
        "done" => {
            let (line, term) = rest.split_once(' ')?;
            Answer::Done {
                line: line.parse().ok()?,
                term: term.parse().ok()?,
            }
        }
        "unknown" => Answer::Unknown,
        "failed" => Answer::Failed(rest.into()),
        "dumped" => Answer::Dumped,
        _ => return None,
    })
}
