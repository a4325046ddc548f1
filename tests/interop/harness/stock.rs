//! A stock p2panda node in a process of its own, driven over a pipe.
//!
//! The programs and their language are those of `tests/interop/{0.6,0.7}`; `make interop` builds
//! them and says where they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use quorate::log_store::{Line, Topic};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::watch,
};

/// What one step with a stock node may take: its dials and retries count in seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Everything that a stock node has said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) id: Option<String>,
    pub(crate) addr: Option<String>,
    subscribed: BTreeSet<String>,
    /// Per topic, the operations that reached the application, and how many of them came twice.
    pub(crate) processed: BTreeMap<String, BTreeSet<String>>,
    pub(crate) processed_again: usize,
    /// Per topic, the texts that its application got, by operation.
    pub(crate) messages: BTreeMap<String, BTreeMap<String, String>>,
    /// Per topic, the operations it wrote itself, in their order.
    pub(crate) published: BTreeMap<String, Vec<String>>,
    publishes_done: usize,
    pub(crate) failed: Vec<String>,
    pub(crate) syncs_started: usize,
    /// Sessions that announced operations, in their order.
    pub(crate) chunks: Vec<Chunk>,
    /// Operations that came in each session, new or not.
    received: BTreeMap<String, u64>,
    pub(crate) ephemeral: Vec<(String, String)>,
    heights: Vec<Height>,
    heights_done: usize,
    pub(crate) errors: Vec<String>,
    ended: bool,
}

/// What one session announced.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) at: Instant,
    /// Who sent it.
    pub(crate) remote: String,
    pub(crate) operations: u64,
    /// When the first operation reached the application that came in by sync after this.
    pub(crate) first: Option<Instant>,
}

/// One log as the stock node's own store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Height {
    pub(crate) author: String,
    pub(crate) highest: u64,
    pub(crate) held: u64,
}

/// How a stock node is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) line: Line,
    pub(crate) db: PathBuf,
    pub(crate) key: [u8; 32],
    pub(crate) port: u16,
    /// `<id>@<address>` of peers it knows from its database.
    pub(crate) peers: Vec<String>,
    /// Whether it advertises itself on the local network, and looks for others there.
    pub(crate) mdns: bool,
}

pub(crate) struct Stock {
    child: Child,
    stdin: Option<ChildStdin>,
    seen: Arc<Mutex<Seen>>,
    news: watch::Receiver<u64>,
}

/// The variable of the environment that names the program for a line.
pub(crate) fn variable(line: Line) -> &'static str {
    match line {
        Line::V06 => "QUORATE_STOCK_06",
        _ => "QUORATE_STOCK_07",
    }
}

/// The program for a line, if the environment names one.
fn program(line: Line) -> PathBuf {
    let name = variable(line);
    let path = std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} does not name a stock node: run `make interop`"));
    path.into()
}

impl Stock {
    /// Starts it and waits until it listens.
    pub(crate) async fn start(options: &Options) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(options.db.with_extension("log"))
            .expect("a log file");
        let mut command = Command::new(program(options.line));
        command
            .arg("--key")
            .arg(hex(&options.key))
            .arg("--db")
            .arg(&options.db)
            .arg("--port")
            .arg(options.port.to_string());
        for peer in &options.peers {
            command.arg("--peer").arg(peer);
        }
        if options.mdns {
            command.arg("--mdns");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the stock node starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("it is piped");
        let seen = Arc::<Mutex<Seen>>::default();
        let (tell, news) = watch::channel(0);
        tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    seen.lock().expect("no panic").note(&line);
                    tell.send_modify(|it| *it += 1);
                }
                seen.lock().expect("no panic").ended = true;
                tell.send_modify(|it| *it += 1);
            }
        });
        let stock = Self {
            child,
            stdin,
            seen,
            news,
        };
        stock.when("it listens", |it| it.id.clone()).await;
        stock
    }

    /// Its name and address, as `--peer` takes them.
    pub(crate) fn address(&self) -> (String, std::net::SocketAddr) {
        let seen = self.seen();
        let id = seen.id.expect("it listens");
        let addr = seen.addr.expect("it listens");
        (id, addr.parse().expect("an address"))
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic").clone()
    }

    /// A part of what it has said.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Seen) -> R) -> R {
        look(&self.seen.lock().expect("no panic"))
    }

    pub(crate) async fn tell(&mut self, command: &str) {
        let stdin = self.stdin.as_mut().expect("it runs");
        let line = format!("{command}\n");
        stdin
            .write_all(line.as_bytes())
            .await
            .unwrap_or_else(|error| panic!("telling {command}: {error}"));
    }

    pub(crate) async fn subscribe(&mut self, topic: Topic) {
        self.tell(&format!("subscribe {topic}")).await;
        let topic = topic.to_string();
        self.when("it is subscribed", |it| {
            it.subscribed.contains(&topic).then_some(())
        })
        .await;
    }

    /// Has it write this many operations and waits until it has.
    pub(crate) async fn publish(&mut self, topic: Topic, count: usize, bytes: usize) {
        let published = |it: &Seen| {
            let ids = it.published.get(&topic.to_string());
            (it.publishes_done, ids.map_or(0, Vec::len))
        };
        let before = self.look(published);
        self.tell(&format!("publish {topic} {count} {bytes}")).await;
        let mut last = before;
        // As long as it goes on: on a busy disk a thousand take it minutes.
        while last.0 == before.0 {
            let more = |it: &Seen| Some(published(it)).filter(|it| *it != last);
            last = self.when("it publishes", more).await;
        }
    }

    /// What its own store holds of the topic.
    pub(crate) async fn heights(&mut self, topic: Topic) -> Vec<Height> {
        let before = {
            let mut seen = self.seen.lock().expect("no panic");
            seen.heights.clear();
            seen.heights_done
        };
        self.tell(&format!("heights {topic}")).await;
        self.when("it tells its heights", |it| {
            (it.heights_done > before).then(|| it.heights.clone())
        })
        .await
    }

    /// Asks for its heights until they are as wanted.
    pub(crate) async fn heights_when(
        &mut self,
        topic: Topic,
        what: &str,
        wanted: impl Fn(&[Height]) -> bool,
    ) -> Vec<Height> {
        let start = tokio::time::Instant::now();
        loop {
            let heights = self.heights(topic).await;
            if wanted(&heights) {
                return heights;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain: {what}; it has {heights:?}"
            );
            // Its store tells nobody when it changes.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until this many distinct operations of the topic reached the application. As long as
    /// some come, it waits.
    pub(crate) async fn processed(&self, topic: Topic, count: usize) -> BTreeSet<String> {
        let held = |it: &Seen| it.count(topic);
        let mut last = self.look(held);
        loop {
            if last >= count {
                return self.seen().processed[&topic.to_string()].clone();
            }
            let more = self.when_within(PATIENCE, |it| (held(it) > last).then(|| held(it)));
            match more.await {
                Some(now) => last = now,
                None => panic!(
                    "no operation came for {PATIENCE:?}: {last} of {count}; failed: {:?}",
                    self.seen().failed.first()
                ),
            }
        }
    }

    pub(crate) async fn when<T>(&self, what: &str, look: impl Fn(&Seen) -> Option<T>) -> T {
        match self.when_within(PATIENCE, look).await {
            Some(value) => value,
            None => {
                let mut seen = self.seen();
                seen.processed.clear();
                seen.published.clear();
                panic!("waited {PATIENCE:?} in vain: {what}; it said {seen:#?}")
            }
        }
    }

    async fn when_within<T>(
        &self,
        patience: Duration,
        look: impl Fn(&Seen) -> Option<T>,
    ) -> Option<T> {
        let mut news = self.news.clone();
        let looking = async {
            loop {
                news.borrow_and_update();
                {
                    let seen = self.seen.lock().expect("no panic");
                    if let Some(value) = look(&seen) {
                        return value;
                    }
                    assert!(!seen.ended, "the stock node has ended: {:?}", seen.errors);
                }
                if news.changed().await.is_err() {
                    panic!("the stock node has ended");
                }
            }
        };
        tokio::time::timeout(patience, looking).await.ok()
    }

    /// Ends it in order, so that its database is whole.
    pub(crate) async fn stop(mut self) {
        drop(self.stdin.take());
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it ends").expect("it is waited for");
    }

    /// Ends it at once.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("it is killed");
    }
}

impl Seen {
    /// How many distinct operations of the topic reached the application.
    pub(crate) fn count(&self, topic: Topic) -> usize {
        let processed = self.processed.get(&topic.to_string());
        processed.map_or(0, BTreeSet::len)
    }

    /// The first chunk that another one announced than the peer at this address.
    pub(crate) fn chunk_after(&self, at: Instant, not: &str) -> Option<&Chunk> {
        let mut chunks = self.chunks.iter();
        chunks.find(|it| it.at > at && !not.starts_with(&it.remote))
    }

    /// Operations that came in all sessions together, those that it had already among them.
    pub(crate) fn received(&self) -> u64 {
        self.received.values().sum()
    }

    fn note(&mut self, line: &str) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        let mut word = || words.next().unwrap_or_default().to_owned();
        match verb {
            "ready" => (self.id, self.addr) = (Some(word()), Some(word())),
            "subscribed" => drop(self.subscribed.insert(word())),
            "published" => {
                let topic = word();
                self.published.entry(topic).or_default().push(word());
            }
            "publish-done" => self.publishes_done += 1,
            "processed" => {
                let (topic, _author, id) = (word(), word(), word());
                let fresh = self.processed.entry(topic).or_default().insert(id);
                self.processed_again += usize::from(!fresh);
                if line.ends_with(" sync") {
                    // Another may have been announced before the first of the last one is there.
                    let announced = self.chunks.iter_mut().rev();
                    for chunk in announced.take_while(|it| it.first.is_none()) {
                        chunk.first = Some(Instant::now());
                    }
                }
            }
            "message" => {
                let (topic, id) = (word(), word());
                let text = line.splitn(4, ' ').nth(3).unwrap_or_default();
                let of_topic = self.messages.entry(topic).or_default();
                of_topic.insert(id, text.to_owned());
            }
            "failed" => self.failed.push(line.to_owned()),
            "sync-started" => {
                self.syncs_started += 1;
                let (_topic, _session, remote) = (word(), word(), word());
                let operations = word().parse().expect("a number");
                if operations > 0 {
                    self.chunks.push(Chunk {
                        at: Instant::now(),
                        remote,
                        operations,
                        first: None,
                    });
                }
            }
            "sync-ended" => {
                let (_topic, session, _remote) = (word(), word(), word());
                let received: u64 = word().parse().expect("a number");
                let most = self.received.entry(session).or_default();
                *most = received.max(*most);
            }
            "ephemeral" => {
                let (_topic, author) = (word(), word());
                self.ephemeral.push((author, word()));
            }
            "height" => {
                let (_topic, author, _log) = (word(), word(), word());
                let mut number = || word().parse().expect("a number");
                self.heights.push(Height {
                    author,
                    highest: number(),
                    held: number(),
                });
            }
            "heights-end" => self.heights_done += 1,
            "error" => self.errors.push(line.to_owned()),
            _ => {}
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}
