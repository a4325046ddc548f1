//! Three processes of one program that become one group: starting, telling, hearing, killing.
//!
//! The parent writes orders to a child's standard input and reads answers from its standard output,
//! a line each. What both programs that do so have in common is here; what they say besides is
//! theirs, a type that implements [`Said`].

pub(crate) mod child;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
};

/// How long nothing may happen before this gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the children of one program say besides what all say.
pub(crate) trait Said: Sized + Send + 'static {
    /// Reads a line of theirs.
    fn parse(word: &str, rest: &str) -> Option<Self>;
}

/// What a member has answered.
#[derive(Debug)]
pub(crate) enum Answer<S> {
    /// It runs and has caught up; its name in the group.
    Ready(String),
    /// A ticket, as text.
    Ticket(String),
    /// As many voters as asked for are in the membership.
    Voters,
    /// What only this program's members say.
    Said(S),
    /// The process is gone.
    Ended,
}

/// Three processes of this program, by number.
pub(crate) struct Cluster<S> {
    root: PathBuf,
    members: Vec<Member>,
    answers: mpsc::Receiver<(usize, Answer<S>)>,
    answering: mpsc::Sender<(usize, Answer<S>)>,
}

struct Member {
    /// Ends with us: its standard input does, and it is killed when this is dropped.
    process: Child,
    input: BufWriter<ChildStdin>,
    name: String,
}

impl<S: Said> Cluster<S> {
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
            (number, _) => bail!("process {number} did not answer with a ticket"),
        }
    }

    /// Waits until this member has caught up, and learns its name.
    async fn ready(&mut self, number: usize) -> anyhow::Result<()> {
        match self.hear().await? {
            (from, Answer::Ready(name)) if from == number => self.members[number].name = name,
            (from, _) => bail!("process {from} answered before {number} was ready"),
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

    /// Writes an order, given in parts; [`Cluster::flush`] sends it.
    pub(crate) async fn put(&mut self, number: usize, parts: &[&[u8]]) -> anyhow::Result<()> {
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
    pub(crate) async fn hear(&mut self) -> anyhow::Result<(usize, Answer<S>)> {
        let heard = tokio::time::timeout(PATIENCE, self.answers.recv()).await;
        let heard = heard.with_context(|| format!("no answer from any process in {PATIENCE:?}"))?;
        heard.context("we hold a sender")
    }

    /// The next answer if one is there already.
    pub(crate) fn heard(&mut self) -> Option<(usize, Answer<S>)> {
        self.answers.try_recv().ok()
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
            .arg(child::MEMBER)
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

async fn listen<S: Said>(
    number: usize,
    output: ChildStdout,
    answers: mpsc::Sender<(usize, Answer<S>)>,
) {
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

fn parse<S: Said>(line: &str) -> Option<Answer<S>> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some(match word {
        "ready" => Answer::Ready(rest.into()),
        "ticket" => Answer::Ticket(rest.into()),
        "voters" => Answer::Voters,
        _ => Answer::Said(S::parse(word, rest)?),
    })
}
