//! A member that publishes is killed in the middle, again and again.
//!
//! Two members live in the test, the third is a process of its own: it publishes as fast as it may
//! without waiting for commits, and tells each that it learns of. A line that was written outlives
//! the process. After each SIGKILL it is started again with the same directory and goes on with the
//! same log, of which nobody else knows how far it had got.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use quorate::{
    Group, GroupKey, GroupTicket, MemberId, Node,
    log_store::{Author, Line, LogStore, Operation, Topic},
    streams::{Acknowledge, Published, StreamEvent, StreamFrom},
};
use tokio::task::JoinSet;

use crate::{cluster::Turn, heavy, process::PATIENCE};

const DIRECTORY: &str = "QUORATE_PUBLISH_DIRECTORY";
const TICKET: &str = "QUORATE_PUBLISH_TICKET";
const RUN: &str = "QUORATE_PUBLISH_RUN";

fn topic() -> Topic {
    Topic::named("killed")
}

/// What the child runs; without its environment it is a test that holds nothing up.
#[test]
fn publisher_process() {
    let (Ok(directory), Ok(ticket), Ok(run)) =
        (env::var(DIRECTORY), env::var(TICKET), env::var(RUN))
    else {
        return;
    };
    // The end of the thread that started us ends us.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(publish(&directory, &ticket, &run));
}

fn tell(line: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Publishes until stdin is closed, and then ends in order.
async fn publish(directory: &str, ticket: &str, run: &str) {
    // libtest has begun a line of its own.
    tell("");
    let node = Node::builder(directory).bind_loopback().open().await;
    let node = node.expect("the node opens");
    let ticket: GroupTicket = ticket.parse().expect("a ticket");
    let group = node.join(&ticket, LogStore::new()).await.expect("joined");
    let stream = group.topic(topic());
    tell(format_args!("up {} {}", group.member(), stream.author()));
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(end);
    });
    let mut under_way = JoinSet::new();
    for n in 0.. {
        if ended.try_recv() != Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            break;
        }
        let text = format!("{run}/{n}");
        match stream.publish(&text).await {
            Ok(publishing) => {
                under_way.spawn(async move {
                    match publishing.await {
                        Ok(Published { id, number }) => {
                            tell(format_args!("published {text} {id} {number}"));
                        }
                        Err(error) => tell(format_args!("refused {text} {error}")),
                    }
                });
            }
            Err(error) => tell(format_args!("refused {text} {error}")),
        }
        while under_way.try_join_next().is_some() {}
    }
    under_way.join_all().await;
    node.shutdown().await;
    tell("ended");
}

/// What one process has told.
#[derive(Default)]
struct Told {
    up: Option<(MemberId, Author)>,
    published: HashMap<String, (String, u64)>,
    refused: Vec<String>,
    ended: bool,
}

struct Publisher {
    child: Child,
    told: Arc<(Mutex<Told>, Condvar)>,
    ear: Option<thread::JoinHandle<()>>,
}

impl Publisher {
    fn start(directory: &Path, ticket: &GroupTicket, run: usize) -> Self {
        let mut child = Command::new(env::current_exe().expect("this is it"))
            .args(["publish::publisher_process", "--exact", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(TICKET, ticket.expose().as_str())
            .env(RUN, run.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = child.stdout.take().expect("it is piped");
        let told = Arc::<(Mutex<Told>, Condvar)>::default();
        let telling = Arc::clone(&told);
        let ear = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                telling.0.lock().expect("no panic").hear(&line);
                telling.1.notify_all();
            }
        });
        let ear = Some(ear);
        Self { child, told, ear }
    }

    /// Waits until something is told.
    fn when<T>(&self, what: &str, look: impl Fn(&Told) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut told = self.told.0.lock().expect("no panic");
        loop {
            if let Some(found) = look(&told) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain: {what}");
            told = self.told.1.wait_timeout(told, left).expect("no panic").0;
        }
    }

    /// Waits for the end of what it says.
    fn heard_out(mut self) -> Told {
        self.child.wait().expect("it is ours");
        let ear = self.ear.take().expect("it listens");
        ear.join().expect("no panic");
        std::mem::take(&mut *self.told.0.lock().expect("no panic"))
    }

    /// SIGKILL; what it told before.
    fn kill(mut self) -> Told {
        self.child.kill().expect("it is ours");
        self.heard_out()
    }

    /// Has it end in order.
    fn end(mut self) -> Told {
        drop(self.child.stdin.take());
        self.when("its end", |it| it.ended.then_some(()));
        self.heard_out()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Told {
    fn hear(&mut self, line: &str) {
        // Each line is one write, smaller than a pipe's buffer: a kill does not cut it.
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["up", member, author] => {
                let member = member.parse().expect("a member");
                self.up = Some((member, author.parse().expect("an author")));
            }
            ["published", text, id, number] => {
                let number = number.parse().expect("a number");
                let before = self.published.insert(text.into(), (id.into(), number));
                assert_eq!(before, None, "{text} told twice");
            }
            ["refused", text, ..] => self.refused.push(text.into()),
            ["ended"] => self.ended = true,
            // libtest's.
            _ => {}
        }
    }
}

/// Makes the publishing member lead, so that the kill takes the leader too.
async fn make_leader(group: &Group<LogStore>, member: MemberId) {
    let deadline = Instant::now() + PATIENCE;
    while group.status().leader != Some(member) {
        assert!(Instant::now() < deadline, "it does not lead");
        if group.transfer_leadership(member).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[test]
fn a_publisher_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let _turn = Turn::Shared.take();
    let kills = if heavy() { 40 } else { 6 };
    let root = tempfile::tempdir().expect("there is room");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (nodes, groups) = runtime.block_on(async {
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let node = Node::in_memory().bind_loopback().open().await;
            nodes.push(node.expect("the node opens"));
        }
        let founded = nodes[0].create(GroupKey::generate(), LogStore::new()).await;
        let founded = founded.expect("founded");
        let joined = nodes[1].join(&founded.ticket(), LogStore::new()).await;
        let opened = founded.logs().open_topic(topic(), Line::V07).await;
        opened.expect("opened");
        (nodes, [founded, joined.expect("joined")])
    });
    let ticket = groups[0].ticket();
    let mut told: Vec<Told> = Vec::new();
    for run in 0..=kills {
        let publisher = Publisher::start(&root.path().join("node"), &ticket, run);
        let (member, _) = publisher.when("it is up", |it| it.up);
        if run % 2 == 1 {
            runtime.block_on(make_leader(&groups[0], member));
        }
        publisher.when("some commits", |it| {
            (it.published.len() >= 200).then_some(())
        });
        if run == kills {
            told.push(publisher.end());
            break;
        }
        thread::sleep(Duration::from_millis(rand::random_range(0..200)));
        told.push(publisher.kill());
    }
    runtime.block_on(async {
        for group in &groups {
            check(group, &told).await;
        }
        for node in nodes {
            node.shutdown().await;
        }
    });
}

/// Everything in the topic, in the order of the commits.
async fn all(group: &Group<LogStore>) -> Vec<(u64, String, Author, String)> {
    let stream = group.topic(topic());
    let subscribed = stream.subscribe::<String>(StreamFrom::Start, Acknowledge::Automatic);
    let mut inbox = subscribed.await.expect("it runs");
    let mut all = Vec::new();
    loop {
        match inbox.next().await.expect("it goes on") {
            StreamEvent::Message(it) => {
                all.push((it.number, it.id().to_string(), it.author(), it.message));
            }
            StreamEvent::ReplayEnded => return all,
            StreamEvent::ReplayStarted { .. } => {}
            event => panic!("{event:?}"),
        }
    }
}

async fn check(group: &Group<LogStore>, told: &[Told]) {
    let (member, author) = told[0].up.expect("it was up");
    assert!(told.iter().all(|it| it.up == Some((member, author))));
    // One log, without a gap or a fork.
    let read = group.logs().read(author, topic().log_id(), ..);
    let log: Vec<Operation> = read.try_collect().await.expect("a quorum");
    for (nth, operation) in log.iter().enumerate() {
        assert_eq!(operation.seq() as usize, nth);
        let before = nth.checked_sub(1).map(|it| log[it].id());
        assert_eq!(operation.backlink(), before);
    }
    let all = all(group).await;
    assert_eq!(all.len(), log.len());
    let mut places = BTreeMap::new();
    // On a busy machine a quorum may be slow; what was said not to be there is not there.
    let refused = told
        .iter()
        .flat_map(|it| it.refused.iter().map(String::as_str));
    let refused: BTreeSet<&str> = refused.collect();
    // In the order in which they were published: run by run, without one left out.
    let (mut run, mut next) = (0, 0);
    for ((number, id, by, text), operation) in all.iter().zip(&log) {
        assert_eq!((*by, id), (author, &operation.id().to_string()));
        let before = places.insert(text.as_str(), (id.as_str(), *number));
        assert_eq!(before, None, "{text} is there twice");
        let (of, n) = text.split_once('/').expect("run and number");
        let (of, n): (usize, usize) = (of.parse().expect("a run"), n.parse().expect("a number"));
        if of != run {
            assert!(of > run, "{text} comes too late");
            (run, next) = (of, 0);
        }
        while refused.contains(format!("{run}/{next}").as_str()) {
            next += 1;
        }
        assert_eq!(n, next, "{text} is out of order, or was refused");
        next += 1;
    }
    let mut acknowledged = BTreeSet::new();
    for told in told {
        for (text, (id, number)) in &told.published {
            let wanted = Some(&(id.as_str(), *number));
            assert_eq!(places.get(text.as_str()), wanted, "{text} was told");
            acknowledged.insert(text.as_str());
        }
    }
    let last = told.last().expect("it ended in order");
    let of_last = format!("{}/", told.len() - 1);
    let open = places.keys().filter(|it| !acknowledged.contains(**it));
    let (of_last, open): (Vec<&str>, Vec<&str>) = open.partition(|it| it.starts_with(&of_last));
    assert!(
        last.ended && of_last.is_empty(),
        "it ended before it was told"
    );
    println!(
        "{} kills: {} acknowledged, 0 lost, 0 doubled, 0 forks; {} more are there of which a \
         killed process was not told",
        told.len() - 1,
        acknowledged.len(),
        open.len()
    );
}
