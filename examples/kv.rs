//! A shell over the built-in map: run it in three terminals, and write and read in any of them.
//!
//! ```text
//! kv DIR            founds a group in DIR, or goes on with the one that is there
//! kv DIR TICKET     joins the group of the ticket, which `ticket` prints in the first terminal
//! ```
//!
//! DIR holds the node and its data; `DIR/group.key` or `DIR/group.ticket`, mode 0600, holds the
//! group's key, so that starting again needs no more than DIR. Commands may come from a pipe.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow, bail};
use quorate::{
    ExecuteError, Group, GroupKey, GroupTicket, Map, MapCommand, MapOutput, MapQuery, MemberId,
    Node, Status,
};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

const HELP: &str = "\
put KEY VALUE          sets KEY; the value may hold spaces
get KEY                what KEY holds, read so that no acknowledged write is missed
del KEY                removes KEY
cas KEY OLD NEW        sets KEY to NEW if it holds OLD; - is for: not there
range [FROM [TO]]      the entries from FROM up to before TO, 100 at most
status                 how the group is, as this member sees it
members                who is in it, in full
ticket                 what another node joins with; it holds the key: treat it as a password
transfer MEMBER        hands leadership to this member (its first digits are enough)
remove MEMBER          removes this member for good, dead or alive
leave                  leaves the group and deletes its data here
quit                   stops this node; `kv DIR` goes on with it";

const RANGE_MAX: usize = 100;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| "off".into());
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    logs.with_writer(io::stderr).init();
    match run().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How many commands failed.
async fn run() -> anyhow::Result<usize> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (directory, ticket) = match arguments.as_slice() {
        [directory] if !directory.starts_with('-') => (Path::new(directory), None),
        [directory, ticket] => (Path::new(directory), Some(ticket.parse::<GroupTicket>()?)),
        _ => {
            bail!("usage: kv DIR [TICKET]\n\n{HELP}");
        }
    };
    let node = Node::open(directory).await?;
    let result = match open_group(&node, directory, ticket).await {
        Ok(group) => {
            Shell {
                group,
                directory: directory.to_owned(),
            }
            .run()
            .await
        }
        Err(error) => Err(error),
    };
    node.shutdown().await;
    result
}

/// Founds, joins or resumes. What holds the key is on disk before the group is.
async fn open_group(
    node: &Node,
    directory: &Path,
    ticket: Option<GroupTicket>,
) -> anyhow::Result<Group<Map>> {
    let (key_file, ticket_file) = secret_files(directory);
    if let Some(ticket) = ticket {
        if key_file.exists() {
            bail!(
                "{} has founded a group: join from another directory",
                directory.display()
            );
        }
        keep_secret(&ticket_file, &ticket.expose())?;
        eprintln!("joining; the ticket is kept in {}", ticket_file.display());
        return Ok(node.join(&ticket, Map::new()).await?);
    }
    if ticket_file.exists() {
        let ticket: GroupTicket = fs::read_to_string(&ticket_file)?.parse()?;
        return Ok(node.join(&ticket, Map::new()).await?);
    }
    if !key_file.exists() {
        keep_secret(&key_file, &GroupKey::generate().expose())?;
        eprintln!(
            "founding a group; its key is kept in {}",
            key_file.display()
        );
    }
    let key: GroupKey = fs::read_to_string(&key_file)?.parse()?;
    Ok(node.create(key, Map::new()).await?)
}

fn secret_files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("group.key"), directory.join("group.ticket"))
}

/// Written aside and renamed, readable by nobody else.
fn keep_secret(file: &Path, text: &str) -> anyhow::Result<()> {
    let aside = file.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut opened = options
        .open(&aside)
        .with_context(|| aside.display().to_string())?;
    opened.write_all(text.as_bytes())?;
    opened.sync_all()?;
    Ok(fs::rename(aside, file)?)
}

struct Shell {
    group: Group<Map>,
    directory: PathBuf,
}

impl Shell {
    /// Does what standard input says; answers how many commands failed where nobody is watching.
    async fn run(&self) -> anyhow::Result<usize> {
        let watched = io::stdin().is_terminal();
        if watched {
            println!(
                "member {}; `help` lists the commands",
                self.group.member().short()
            );
        }
        let mut lines = BufReader::new(stdin()).lines();
        let mut failed = 0;
        loop {
            if watched {
                print!("> ");
                io::stdout().flush()?;
            }
            let line = tokio::select! {
                line = lines.next_line() => line?,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else { break };
            match self.obey(line.trim()).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    failed += usize::from(!watched);
                }
            }
        }
        Ok(failed)
    }

    /// Whether to go on.
    async fn obey(&self, line: &str) -> anyhow::Result<bool> {
        let (word, rest) = split(line);
        match word {
            "" => {}
            "put" => self.put(rest).await?,
            "get" => {
                let answer = self
                    .group
                    .query(MapQuery::get(one(rest, "get KEY")?))
                    .await?;
                say(answer.into_value().as_deref());
            }
            "del" => {
                let key = one(rest, "del KEY")?;
                self.execute(MapCommand::remove(key)).await?;
            }
            "cas" => self.compare_and_set(rest).await?,
            "range" => self.range(rest).await?,
            "status" => print_status(&self.group.status()),
            "members" => print_members(&self.group.status()),
            "ticket" => println!("{}", *self.group.ticket().expose()),
            "transfer" => {
                let to = self.member(one(rest, "transfer MEMBER")?)?;
                self.group.transfer_leadership(to).await?;
                println!("ok: {} leads", to.short());
            }
            "remove" => {
                let member = self.member(one(rest, "remove MEMBER")?)?;
                self.group.remove(member).await?;
                println!("ok: {} is removed", member.short());
            }
            "leave" => return self.leave().await,
            "quit" | "exit" => return Ok(false),
            "help" => println!("{HELP}"),
            other => bail!("`{other}` is no command; `help` lists them"),
        }
        Ok(true)
    }

    async fn put(&self, rest: &str) -> anyhow::Result<()> {
        let (key, value) = split(rest);
        if key.is_empty() || value.is_empty() {
            bail!("usage: put KEY VALUE");
        }
        self.execute(MapCommand::put(key, value)).await
    }

    async fn compare_and_set(&self, rest: &str) -> anyhow::Result<()> {
        let (key, rest) = split(rest);
        let (old, new) = split(rest);
        if new.is_empty() {
            bail!("usage: cas KEY OLD NEW, with - for: not there");
        }
        let held = |text: &str| (text != "-").then(|| text.to_owned().into());
        let (expected, new) = (held(old), held(new));
        let key = key.to_owned().into();
        self.execute(MapCommand::CompareAndSet { key, expected, new })
            .await
    }

    /// Has the command applied and says what it did.
    async fn execute(&self, command: MapCommand) -> anyhow::Result<()> {
        let mut result = self.group.execute(command).await;
        if let Err(ExecuteError::Unknown(unresolved)) = result {
            eprintln!("no answer yet; asking what became of it");
            result = self.group.retry(unresolved).await;
        }
        match result? {
            MapOutput::Previous(None) => println!("ok"),
            MapOutput::Previous(Some(before)) => println!("ok, it held {}", text(&before)),
            MapOutput::Compared { swapped: true, .. } => println!("ok"),
            MapOutput::Compared {
                current: Some(it), ..
            } => println!("no: it holds {}", text(&it)),
            MapOutput::Compared { .. } => println!("no: it is not there"),
        }
        Ok(())
    }

    async fn range(&self, rest: &str) -> anyhow::Result<()> {
        let query = match split(rest) {
            ("", _) => MapQuery::all(RANGE_MAX),
            (from, "") => MapQuery::range(from.., RANGE_MAX),
            (from, to) => MapQuery::range(from..to, RANGE_MAX),
        };
        let entries = self.group.query(query).await?.into_entries();
        let width = entries
            .iter()
            .map(|(key, _)| text(key).chars().count())
            .max()
            .unwrap_or(0);
        for (key, value) in &entries {
            println!("{:<width$}  {}", text(key), text(value));
        }
        let more = if entries.len() == RANGE_MAX {
            ", there may be more"
        } else {
            ""
        };
        println!("({} entries{more})", entries.len());
        Ok(())
    }

    async fn leave(&self) -> anyhow::Result<bool> {
        self.group.leave().await?;
        let (key_file, ticket_file) = secret_files(&self.directory);
        for file in [key_file, ticket_file] {
            if file.exists() {
                fs::remove_file(file)?;
            }
        }
        println!("ok: left, and the group's data is deleted here");
        Ok(false)
    }

    /// The member whose id begins so.
    fn member(&self, digits: &str) -> anyhow::Result<MemberId> {
        let status = self.group.status();
        let all = status.members.iter().map(|it| it.member);
        let matching: Vec<_> = all
            .filter(|it| it.to_string().starts_with(digits))
            .collect();
        match matching.as_slice() {
            [member] => Ok(*member),
            [] => Err(anyhow!(
                "no member's id begins with {digits}; `members` lists them"
            )),
            _ => Err(anyhow!(
                "several members' ids begin with {digits}: give more digits"
            )),
        }
    }
}

fn print_status(status: &Status) {
    let leader = status
        .leader
        .map_or_else(|| "nobody".into(), |it| it.short());
    println!(
        "group {}  this member {} ({})  leader {leader}  term {}",
        status.group.short(),
        status.member.short(),
        status.role,
        status.term,
    );
    println!(
        "applied {}  committed {}  snapshot {}  quorum {}\n",
        status.applied.index,
        status.committed_index,
        status.snapshot_index,
        if status.quorum { "yes" } else { "NO" },
    );
    println!(
        "{:<10}{:<10}{:<8}{:<13}{:>8}{:>11}",
        "member", "role", "voter", "health", "lag", "rtt"
    );
    for it in &status.members {
        let role = match () {
            () if status.leader == Some(it.member) => "leader",
            () if it.voter => "follower",
            () => "learner",
        };
        let lag = it.lag.map_or_else(|| "-".into(), |it| it.to_string());
        let rtt = it.rtt.map_or_else(
            || "-".into(),
            |it| format!("{:.2} ms", it.as_secs_f64() * 1e3),
        );
        let voter = if it.voter { "yes" } else { "no" };
        println!(
            "{:<10}{role:<10}{voter:<8}{:<13}{lag:>8}{rtt:>11}",
            it.member.short(),
            it.health
        );
    }
    for warning in &status.warnings {
        println!("warning: {warning}");
    }
    if let Some(stopped) = &status.stopped {
        println!("{stopped}");
    }
}

fn print_members(status: &Status) {
    for it in &status.members {
        let voter = if it.voter { "voter" } else { "learner" };
        println!("member {}  {voter:<7}  peer {}", it.member, it.peer);
    }
}

/// The first word, and what follows it.
fn split(line: &str) -> (&str, &str) {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (word, rest.trim_start())
}

fn one<'a>(rest: &'a str, usage: &str) -> anyhow::Result<&'a str> {
    match split(rest) {
        (word, "") if !word.is_empty() => Ok(word),
        _ => bail!("usage: {usage}"),
    }
}

fn say(value: Option<&[u8]>) {
    match value {
        Some(value) => println!("{}", text(value)),
        None => println!("(not there)"),
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
