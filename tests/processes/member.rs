//! The child: one member of one group, driven by lines on stdin, telling on stdout.
//!
//! A line in: `<tag> <verb> <arguments>`; its answer: `<tag> <words>`. Besides, `up <member>
//! <peer>` once the group runs here, and from the clients of a load `acked <id> <term> <index>
//! <offset>`, or `open <id>` for an append whose fate this process does not know. A line that was
//! written outlives the process, so what a killed member acknowledged is known.

use std::{
    env, fmt, fs,
    io::{self, BufRead, Write},
    path::PathBuf,
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use quorate::{
    ExecuteError, Group, GroupKey, GroupTicket, Health, Node, NotApplied, PeerId, Position, Status,
    config::Config,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::ledger::{Change, Ledger};

pub(crate) const DIRECTORY: &str = "QUORATE_TEST_DIRECTORY";
pub(crate) const KEY: &str = "QUORATE_TEST_KEY";
pub(crate) const TICKET: &str = "QUORATE_TEST_TICKET";
pub(crate) const SNAPSHOT_AFTER: &str = "QUORATE_TEST_SNAPSHOT_AFTER";
pub(crate) const ENTRIES_KEPT: &str = "QUORATE_TEST_ENTRIES_KEPT";
pub(crate) const PATIENCE_MS: &str = "QUORATE_TEST_PATIENCE_MS";

/// What the environment tells a child to be.
pub(crate) struct Settings {
    directory: PathBuf,
    start: Start,
    config: Config,
}

enum Start {
    Create(GroupKey),
    Join(GroupTicket),
}

impl Settings {
    pub(crate) fn from_env() -> Option<Self> {
        let directory = PathBuf::from(env::var_os(DIRECTORY)?);
        let start = match env::var(TICKET) {
            Ok(ticket) => Start::Join(ticket.parse().expect("the ticket is one")),
            Err(_) => {
                let key = env::var(KEY).expect("a key or a ticket");
                Start::Create(key.parse().expect("the key is one"))
            }
        };
        let number = |name| {
            env::var(name)
                .ok()
                .map(|it| it.parse::<u64>().expect("a number"))
        };
        let mut config = Config::default();
        if let Some(bytes) = number(SNAPSHOT_AFTER) {
            config.snapshot_after_bytes = bytes;
        }
        if let Some(entries) = number(ENTRIES_KEPT) {
            config.journal_entries_kept = entries;
        }
        if let Some(patience) = number(PATIENCE_MS) {
            config.execute_timeout = Duration::from_millis(patience);
            config.query_timeout = Duration::from_millis(patience);
        }
        Some(Self {
            directory,
            start,
            config,
        })
    }
}

/// Runs the member until it is told to stop or its test is gone.
pub(crate) fn run(settings: Settings) {
    // The end of the thread that started us ends us, even while we are stopped.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let filter = env::var("RUST_LOG").unwrap_or_else(|_| "warn,openraft=error".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if let Err(error) = runtime.block_on(serve(settings)) {
        eprintln!("{error}");
        process::exit(3);
    }
    process::exit(0);
}

fn tell(line: impl fmt::Display) {
    // The test is gone if this fails; so are we soon.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

async fn serve(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
    // libtest has begun a line of its own.
    tell("");
    let node = Node::builder(&settings.directory)
        .bind_loopback()
        .config(settings.config)
        .open()
        .await?;
    let group = match settings.start {
        Start::Create(key) => node.create(key, Ledger::default()).await?,
        Start::Join(ticket) => node.join(&ticket, Ledger::default()).await?,
    };
    tell(format_args!("up {} {}", group.member(), group.peer()));
    let child = Arc::new(Child {
        node,
        group,
        load: Load::default(),
    });
    let mut lines = stdin_lines();
    while let Some(line) = lines.recv().await {
        let child = Arc::clone(&child);
        tokio::spawn(async move {
            let (tag, command) = line.split_once(' ').unwrap_or((&line, ""));
            let answer = child.answer(command).await;
            tell(format_args!("{tag} {answer}"));
            if command == "stop" {
                process::exit(0);
            }
        });
    }
    Ok(())
}

fn stdin_lines() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(64);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                break;
            }
        }
        // The test has closed our stdin: it is gone, or wants us gone.
        process::exit(0);
    });
    receive
}

struct Child {
    node: Node,
    group: Group<Ledger>,
    load: Load,
}

/// The clients that run in this process.
#[derive(Default)]
struct Load {
    off: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Mutex<JoinSet<()>>,
}

impl Child {
    async fn answer(&self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        let number = |nth: usize| -> u64 {
            let word = words.get(nth).expect("a further argument");
            word.parse().expect("a number")
        };
        match words.first().copied().unwrap_or_default() {
            "status" => line_of(&self.group.status()),
            "await" => {
                self.wanted(words[1], words.get(2).copied().unwrap_or_default())
                    .await
            }
            "ready" => match self.group.ready().await {
                Ok(()) => "ready".into(),
                Err(stopped) => format!("refused {stopped}"),
            },
            "ticket" => self.group.ticket().expose().to_string(),
            "put" => put(&self.group, number(1)).await,
            "load" => self.start_load(number(1), number(2), number(3)),
            "fill" => self.start_fill(number(1), number(2), number(3)),
            "unload" => self.unload().await,
            "done" => self.load.done.load(Ordering::Relaxed).to_string(),
            "read" => match self.group.query(number(1)).await {
                Ok((count, found)) => format!("read {count} {found}"),
                Err(error) => format!("refused {error}"),
            },
            "local" => {
                let (count, found) = self.group.query_local(number(1));
                format!("read {count} {found}")
            }
            "dump" => self.dump(words[1]),
            "metrics" => {
                let it = self.node.metrics();
                format!("{} {}", it.snapshots_built, it.snapshots_installed)
            }
            "purged" => {
                let wanted: u64 = words[1].parse().expect("an index");
                let mut watch = self.group.watch_status();
                let status = watch.wait_for(|it| it.purged_index >= wanted).await;
                format!("purged {}", status.purged_index)
            }
            "rebond" => self.rebond(words[1].parse().expect("a peer")).await,
            "lead" => self.lead().await,
            "stop" => {
                self.node.shutdown().await;
                "stopped".into()
            }
            other => format!("refused: no such verb: {other}"),
        }
    }

    /// Waits until the status is as wanted.
    async fn wanted(&self, what: &str, argument: &str) -> String {
        let holds = |it: &Status| match what {
            "leader" => it.leader.is_some(),
            "leader-not" => it.leader.is_some_and(|it| it.to_string() != argument),
            "voters" => voters(it).to_string() == argument,
            "reached" => reached(it).to_string() == argument,
            other => panic!("no such condition: {other}"),
        };
        let status = self.group.watch_status().wait_for(holds).await;
        line_of(&status)
    }

    /// Waits until this bond has ended and another to the same peer has formed.
    async fn rebond(&self, peer: PeerId) -> String {
        let mut bonds = self.group.bonds();
        let Some(old) = bonds.get(&peer) else {
            return "refused no bond".into();
        };
        tell(format_args!("watching {peer}"));
        loop {
            let now = bonds.changed().await;
            if now.get(&peer).is_some_and(|it| it.id() != old.id()) {
                return format!("rebonded {}", old.terminated().await);
            }
        }
    }

    /// Takes leadership over.
    async fn lead(&self) -> String {
        match self.group.transfer_leadership(self.group.member()).await {
            Ok(()) => "leads".into(),
            Err(error) => format!("refused {error}"),
        }
    }

    fn dump(&self, path: &str) -> String {
        let write = || -> io::Result<()> {
            let mut out = io::BufWriter::new(fs::File::create(path)?);
            self.group.view().1.write_to(&mut out)?;
            out.flush()
        };
        match write() {
            Ok(()) => "dumped".into(),
            Err(error) => format!("refused {error}"),
        }
    }

    /// Clients that append one after the other, `pause_us` apart; `first` numbers them.
    fn start_load(&self, first: u64, clients: u64, pause_us: u64) -> String {
        let mut running = self.load.clients.lock().expect("no panic");
        self.load.off.store(false, Ordering::Relaxed);
        for client in first..first + clients {
            let (group, off) = (self.group.clone(), Arc::clone(&self.load.off));
            let done = Arc::clone(&self.load.done);
            running.spawn(async move {
                for nth in 0.. {
                    let id = (client << 32) | nth;
                    if off.load(Ordering::Relaxed) || !append(&group, id).await {
                        return;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_micros(pause_us)).await;
                }
            });
        }
        "loaded".into()
    }

    /// Clients that overwrite `slots` slots with `bytes` bytes each as fast as they are answered.
    fn start_fill(&self, clients: u64, slots: u64, bytes: u64) -> String {
        let mut running = self.load.clients.lock().expect("no panic");
        self.load.off.store(false, Ordering::Relaxed);
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..clients {
            let (group, off) = (self.group.clone(), Arc::clone(&self.load.off));
            let (done, next) = (Arc::clone(&self.load.done), Arc::clone(&next));
            running.spawn(async move {
                while !off.load(Ordering::Relaxed) {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let slot = u32::try_from(nth % slots).expect("fewer slots");
                    let bytes = noise(nth, bytes);
                    if group.execute(Change::Fill { slot, bytes }).await.is_ok() {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        "loaded".into()
    }

    /// Lets every client end its append, and says how many were done since the start.
    async fn unload(&self) -> String {
        self.load.off.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut *self.load.clients.lock().expect("no panic"));
        clients.join_all().await;
        self.load.done.load(Ordering::Relaxed).to_string()
    }
}

fn voters(status: &Status) -> usize {
    status.members.iter().filter(|it| it.voter).count()
}

fn reached(status: &Status) -> usize {
    let here = |it: &Health| matches!(it, Health::Here | Health::Good);
    status.members.iter().filter(|it| here(&it.health)).count()
}

fn line_of(status: &Status) -> String {
    let leader = status
        .leader
        .map_or_else(|| "-".into(), |it| it.to_string());
    format!(
        "{} {leader} {} {} {} {}",
        status.role,
        status.term,
        voters(status),
        reached(status),
        status.applied.index,
    )
}

/// Bytes that do not compress.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(usize::try_from(len + 8).expect("fits"));
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).expect("fits"));
    bytes
}

fn acked(id: u64, at: Position) -> String {
    format!("acked {id} {} {} {}", at.term, at.index, at.offset)
}

/// One append, once: what `execute` says of it.
async fn put(group: &Group<Ledger>, id: u64) -> String {
    match group.execute(Change::Append { id }).await {
        Ok(at) => acked(id, at),
        Err(ExecuteError::Unknown(_)) => format!("open {id}"),
        Err(error) => format!("refused {error}"),
    }
}

/// One append until its fate is known: unknown is asked again in its session, not applied is tried
/// anew, under the same id, which would show if it had been applied after all.
async fn append(group: &Group<Ledger>, id: u64) -> bool {
    let mut result = group.execute(Change::Append { id }).await;
    loop {
        result = match result {
            Ok(at) => {
                tell(acked(id, at));
                return true;
            }
            Err(ExecuteError::Unknown(unresolved)) if unresolved.can_retry() => {
                group.retry(unresolved).await
            }
            Err(ExecuteError::NotApplied(NotApplied::NoLeader)) => {
                group.execute(Change::Append { id }).await
            }
            Err(error) => {
                tell(format_args!("open {id} {error}"));
                return !matches!(error, ExecuteError::Stopped(_));
            }
        };
    }
}
