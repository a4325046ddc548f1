//! One child as its test sees it: asked in lines, killed, stopped and continued by handle.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use quorate::Position;
use rustix::process::{Pid, Signal, kill_process};

use crate::member;

/// How long an answer may take on a busy machine; a longer wait is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// What all processes of a group were seen to acknowledge.
#[derive(Default)]
pub(crate) struct History {
    told: Mutex<Told>,
    news: Condvar,
}

#[derive(Default)]
pub(crate) struct Told {
    /// Each append that was acknowledged, and where.
    pub(crate) acked: BTreeMap<u64, Position>,
    /// Appends whose process does not know what became of them.
    pub(crate) open: Vec<u64>,
    /// When an append was last acknowledged, and the longest time between two.
    last: Option<Instant>,
    longest_gap: Duration,
}

impl History {
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().expect("no panic"))
    }

    pub(crate) fn count(&self) -> usize {
        self.read(|it| it.acked.len())
    }

    /// Waits for this many further acknowledgements.
    pub(crate) fn wait_for_more(&self, more: usize) {
        let told = self.told.lock().expect("no panic");
        let wanted = told.acked.len() + more;
        let few = |it: &mut Told| it.acked.len() < wanted;
        let (told, wait) = self
            .news
            .wait_timeout_while(told, PATIENCE, few)
            .expect("no panic");
        let count = told.acked.len();
        assert!(
            !wait.timed_out(),
            "{count} appends acknowledged in time, wanted {wanted}"
        );
    }

    /// The longest time without an acknowledgement since the last call.
    pub(crate) fn take_longest_gap(&self) -> Duration {
        let mut told = self.told.lock().expect("no panic");
        told.last = None;
        std::mem::take(&mut told.longest_gap)
    }

    fn note(&self, line: &str) {
        let mut told = self.told.lock().expect("no panic");
        let mut words = line.split_whitespace();
        let verb = words.next();
        let mut number = || {
            words
                .next()
                .and_then(|it| it.parse::<u64>().ok())
                .expect("a number")
        };
        let id = number();
        if verb == Some("open") {
            told.open.push(id);
            return;
        }
        let (term, index) = (number(), number());
        let offset = u32::try_from(number()).expect("an offset");
        let at = Position {
            term,
            index,
            offset,
        };
        let before = told.acked.insert(id, at);
        assert!(
            before.is_none_or(|it| it == at),
            "{id:x} acknowledged at two places"
        );
        let now = Instant::now();
        if let Some(last) = told.last.replace(now) {
            told.longest_gap = told.longest_gap.max(now - last);
        }
        self.news.notify_all();
    }
}

/// What a child has said.
#[derive(Default)]
struct Said {
    up: Option<(String, String)>,
    watching: bool,
    answers: HashMap<u64, String>,
    ended: bool,
}

#[derive(Default)]
struct Ear {
    said: Mutex<Said>,
    news: Condvar,
}

pub(crate) struct Process {
    pub(crate) started: Instant,
    child: Child,
    stdin: Option<ChildStdin>,
    ear: Arc<Ear>,
    next_tag: u64,
    log: PathBuf,
    history: Arc<History>,
}

/// An answer that is awaited.
pub(crate) struct Asked(u64);

impl Process {
    pub(crate) fn start(
        directory: &Path,
        environment: &[(&'static str, String)],
        history: &Arc<History>,
    ) -> Self {
        let log = directory.with_extension("log");
        let appending = File::options().create(true).append(true).open(&log);
        let exe = std::env::current_exe().expect("a test is a program");
        let mut child = Command::new(exe)
            .args([
                "member_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(member::DIRECTORY, directory)
            .envs(
                environment
                    .iter()
                    .map(|(name, value)| (*name, value.as_str())),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(appending.expect("a log file"))
            .spawn()
            .expect("a child process");
        let started = Instant::now();
        let stdout = child.stdout.take().expect("it is piped");
        let stdin = child.stdin.take();
        let ear = Arc::<Ear>::default();
        let (listening, noting) = (Arc::clone(&ear), Arc::clone(history));
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                listening.hear(&line, &noting);
            }
            listening.said.lock().expect("no panic").ended = true;
            listening.news.notify_all();
        });
        Self {
            started,
            child,
            stdin,
            ear,
            next_tag: 0,
            log,
            history: Arc::clone(history),
        }
    }

    /// Waits until the group runs there; its names as member and as peer.
    pub(crate) fn up(&self) -> (String, String) {
        self.wait("to be up", PATIENCE, |it| it.up.clone())
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        let asked = self.begin(command);
        self.answer(command, &asked)
    }

    /// Asks and does not wait.
    pub(crate) fn begin(&mut self, command: &str) -> Asked {
        self.next_tag += 1;
        let stdin = self.stdin.as_mut().expect("it runs");
        let sent = writeln!(stdin, "{} {command}", self.next_tag).and_then(|()| stdin.flush());
        sent.unwrap_or_else(|error| panic!("asking {command}: {error}\n{}", self.log_tail()));
        Asked(self.next_tag)
    }

    pub(crate) fn answer(&self, what: &str, asked: &Asked) -> String {
        let answer = self.wait(what, PATIENCE, |it| it.answers.remove(&asked.0));
        if answer.starts_with("acked ") || answer.starts_with("open ") {
            self.history.note(&answer);
        }
        answer
    }

    /// Appends once and wants it acknowledged.
    pub(crate) fn put(&mut self, id: u64) {
        let answer = self.ask(&format!("put {id}"));
        assert!(answer.starts_with("acked "), "put {id:x}: {answer}");
    }

    /// Begins to watch for another bond to this peer.
    pub(crate) fn watch_bond(&mut self, peer: &str) -> Asked {
        let asked = self.begin(&format!("rebond {peer}"));
        self.wait("a bond to watch", PATIENCE, |it| {
            std::mem::take(&mut it.watching).then_some(())
        });
        asked
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
        self.heard_out();
    }

    /// SIGKILL without waiting, to kill several at once.
    pub(crate) fn begin_kill(&mut self) {
        self.child.kill().expect("it is ours");
    }

    /// An orderly shutdown.
    pub(crate) fn stop(mut self) {
        assert_eq!(self.ask("stop"), "stopped");
        let status = self.child.wait().expect("it is ours");
        assert!(status.success(), "{status}\n{}", self.log_tail());
        self.heard_out();
    }

    /// Waits until it has ended by itself; its status and what it wrote to stderr.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return (status, self.log_tail());
            }
            assert!(
                Instant::now() < deadline,
                "it runs on:\n{}",
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGSTOP: hung, with its sockets open.
    pub(crate) fn hang(&self) {
        self.signal(Signal::STOP);
        // It has stopped once the kernel says so.
        let deadline = Instant::now() + PATIENCE;
        while !self.proc_status("State:").starts_with('T') {
            assert!(Instant::now() < deadline, "it does not stop");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub(crate) fn wake(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        // A child that was not waited for keeps its number, so this meets no other process.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let line = self.proc_status("VmRSS:");
        let number = line
            .split_whitespace()
            .next()
            .and_then(|it| it.parse().ok());
        number.unwrap_or_else(|| panic!("VmRSS is {line}"))
    }

    fn proc_status(&self, field: &str) -> String {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it lives");
        let line = status.lines().find_map(|it| it.strip_prefix(field));
        line.expect("the field is there").trim().to_owned()
    }

    fn heard_out(&self) {
        self.wait("the end of its output", PATIENCE, |it| {
            it.ended.then_some(())
        });
    }

    fn wait<T>(&self, what: &str, limit: Duration, take: impl Fn(&mut Said) -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        let mut said = self.ear.said.lock().expect("no panic");
        loop {
            if let Some(taken) = take(&mut said) {
                return taken;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = said.ended;
            if ended || left.is_zero() {
                drop(said);
                let why = if ended { "it ended" } else { "time is up" };
                panic!("waiting for {what}: {why}\n{}", self.log_tail());
            }
            said = self.ear.news.wait_timeout(said, left).expect("no panic").0;
        }
    }

    /// Its status if it still answers, and the end of its log: for a test that fails.
    pub(crate) fn picture(&mut self) -> String {
        self.wake();
        self.next_tag += 1;
        let stdin = self.stdin.as_mut().expect("it runs");
        let _ = writeln!(stdin, "{} status", self.next_tag).and_then(|()| stdin.flush());
        let deadline = Instant::now() + Duration::from_secs(2);
        let answer = loop {
            let answer = self
                .ear
                .said
                .lock()
                .expect("no panic")
                .answers
                .remove(&self.next_tag);
            if answer.is_some() || Instant::now() > deadline {
                break answer.unwrap_or_else(|| "no answer".into());
            }
            thread::sleep(Duration::from_millis(5));
        };
        format!("{answer}\n{}", self.log_tail())
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        format!("{}:\n{}", self.log.display(), lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ear {
    fn hear(&self, line: &str, history: &History) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "acked" || word == "open" {
            return history.note(line);
        }
        let mut said = self.said.lock().expect("no panic");
        if word == "up" {
            let names = rest.split_once(' ').expect("two names");
            said.up = Some((names.0.to_owned(), names.1.to_owned()));
        } else if word == "watching" {
            said.watching = true;
        } else if let Ok(tag) = word.parse() {
            // Whatever else is there is libtest's.
            said.answers.insert(tag, rest.to_owned());
        }
        self.news.notify_all();
    }
}
