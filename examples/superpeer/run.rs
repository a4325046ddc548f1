//! One run: who has what, and what is done to the members meanwhile.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use indicatif::HumanCount;
use quorate::log_store::Line;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    Cluster, LINES, PeerTold, Told,
    member::{hash, topic},
    picture::{Screen, row},
    processes::Answer,
    stock::{Height, Options, Stock},
    verdict::{Outcome, Verdict, is_complete},
};

/// The member that both p2panda nodes know, and the one through which the logs are written.
const KNOWN: usize = 0;
const WRITER: usize = 1;
/// Operations that each p2panda node writes itself, before it meets anybody.
const OWN: u64 = 300;
const BODY_BYTES: usize = 100;
/// How long no operation may come before this gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const DRAW_PAUSE: Duration = Duration::from_millis(100);
/// Over which a speed is taken.
const SPEED_OVER: Duration = Duration::from_secs(3);

pub(crate) struct Run {
    screen: Screen,
    operations: u64,
    ticket: String,
    members: [Member; 3],
    readers: Vec<Reader>,
    done: usize,
    victim: Victim,
    killed: Option<Instant>,
    met: Instant,
    progress: Instant,
}

#[derive(Default)]
struct Member {
    down: bool,
    /// Where p2panda nodes find it; none while it serves nobody.
    address: Option<String>,
    node: String,
    role: String,
    /// Operations held, by line and author.
    logs: BTreeMap<(Line, String), u64>,
    ids: BTreeMap<Line, (u64, u64, String)>,
}

/// A p2panda node.
struct Reader {
    line: Line,
    stock: Stock,
    id: String,
    /// How much of the long log it has, now and lately.
    has: u64,
    lately: VecDeque<(Instant, u64)>,
    server: Option<usize>,
    /// Operations that it is sent at once.
    chunk: u64,
    /// What each member has sent it since that was started.
    sent: [u64; 3],
    /// From SIGKILL to the end of the next chunk, and by which member it was sent.
    next: Option<(Duration, char)>,
    /// From SIGKILL until it has taken in the first operation that another member sent.
    taken_in: Option<Duration>,
}

/// What has been done to a member.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    None,
    Killed(usize),
    Restarted(usize),
    Back,
}

impl Run {
    /// Has the topics opened and filled, and the p2panda nodes meet the member that they know.
    pub(crate) async fn start(
        cluster: &mut Cluster,
        root: &Path,
        operations: u64,
    ) -> anyhow::Result<Self> {
        let mut run = Self {
            screen: Screen::new(),
            operations,
            ticket: cluster.ticket(KNOWN).await?,
            members: Default::default(),
            readers: Vec::new(),
            done: 0,
            victim: Victim::None,
            killed: None,
            met: Instant::now(),
            progress: Instant::now(),
        };
        run.screen
            .say("three processes are one group of three voters");
        for line in LINES {
            cluster.tell(WRITER, &format!("open {line}")).await?;
            let mint = format!("mint {line} {operations}");
            cluster.tell(WRITER, &mint).await?;
        }
        run.when(cluster, |it| it.done == 2 * LINES.len()).await?;
        let each = HumanCount(operations);
        run.screen
            .say(&format!("two topics, each with a log of {each} operations"));
        for number in 0..3 {
            cluster.tell(number, "serve").await?;
        }
        let serve = |it: &Self| it.members.iter().all(|it| it.address.is_some());
        run.when(cluster, serve).await?;
        for line in LINES {
            let options = Options {
                line,
                db: root.join(format!("{line}.sqlite")),
                key: rand::random(),
                port: 0,
                peers: Vec::new(),
                mdns: false,
            };
            run.readers.push(Reader::start(&options).await?);
        }
        let wrote = format!("two p2panda nodes, alone, have written {OWN} operations each");
        run.screen.say(&wrote);
        let known = run.members[KNOWN].address.clone().unwrap_or_default();
        for reader in &mut run.readers {
            reader.stock.tell(&format!("peer {known}")).await;
        }
        run.screen
            .say("both are told of member A, and of nobody else");
        run.met = Instant::now();
        Ok(run)
    }

    /// Goes on until every p2panda node and every member has everything.
    pub(crate) async fn until_all_have_all(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let mut ticks = interval(DRAW_PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.progress = Instant::now();
        while !self.is_over() {
            tokio::select! {
                heard = cluster.hear() => self.note(heard?)?,
                _ = ticks.tick() => {
                    self.look();
                    self.strike(cluster).await?;
                    let picture = self.picture();
                    self.screen.draw(&picture);
                    let silent = self.progress.elapsed();
                    ensure!(silent < PATIENCE, "nothing has come for {PATIENCE:?}");
                }
            }
        }
        let picture = self.picture();
        self.screen.finish(&picture);
        Ok(())
    }

    /// Asks everybody what is in their stores.
    pub(crate) async fn end(mut self, cluster: &mut Cluster) -> anyhow::Result<Verdict> {
        let elapsed = self.met.elapsed();
        for (number, line) in (0..3).flat_map(|it| LINES.map(|line| (it, line))) {
            cluster.tell(number, &format!("ids {line}")).await?;
        }
        let told = |it: &Self| it.members.iter().all(|it| it.ids.len() == LINES.len());
        self.when(cluster, told).await?;
        let mut outcomes = Vec::new();
        for mut reader in self.readers {
            let heights = reader.stock.heights(topic(reader.line)).await;
            let ids = |it: &Member| it.ids.get(&reader.line).cloned();
            let members = self.members.iter().filter_map(ids).collect();
            outcomes.push(reader.outcome(&heights, members, self.operations));
            reader.stock.stop().await;
        }
        Ok(Verdict { outcomes, elapsed })
    }

    async fn when(
        &mut self,
        cluster: &mut Cluster,
        wanted: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        while !wanted(self) {
            let heard = cluster.hear().await?;
            self.note(heard)?;
        }
        Ok(())
    }

    fn note(&mut self, (number, answer): (usize, Answer<Told>)) -> anyhow::Result<()> {
        let member = &mut self.members[number];
        match answer {
            Answer::Ready(_) => member.down = false,
            Answer::Ended if member.down => {}
            Answer::Ended => bail!("process {} ended by itself", letter(number)),
            Answer::Ticket(_) | Answer::Voters => {}
            // Said before it died.
            Answer::Said(_) if member.down => {}
            Answer::Said(Told::Serves { address, node }) => {
                (member.address, member.node) = (Some(address), node);
            }
            Answer::Said(Told::Done) => self.done += 1,
            Answer::Said(Told::Role(role)) => member.role = role,
            Answer::Said(Told::Log { line, author, held }) => {
                let before = member.logs.insert((line, author), held);
                if before != Some(held) {
                    self.progress = Instant::now();
                }
            }
            Answer::Said(Told::Ids { line, held }) => drop(member.ids.insert(line, held)),
            Answer::Said(Told::Peer(told)) => self.note_peer(number, &told),
        }
        Ok(())
    }

    fn note_peer(&mut self, from: usize, told: &PeerTold) {
        let (killed, victim) = (self.killed, self.victim.member());
        let serves = |it: &Member| !it.down && it.node == told.server;
        let server = self.members.iter().position(serves);
        let Some(reader) = self.readers.iter_mut().find(|it| it.id == told.id) else {
            return;
        };
        if let (Some(now), true) = (server, server != reader.server) {
            let said = format!("{} serves the {} node", letter(now), reader.line);
            self.screen.say(&said);
            reader.server = server;
        }
        if server == Some(from) {
            reader.chunk = told.chunk;
        }
        let before = std::mem::replace(&mut reader.sent[from], told.sent);
        if let Some(killed) = killed
            && victim != Some(from)
            && told.sent > before
            && reader.next.is_none()
        {
            let (took, from, line) = (killed.elapsed(), letter(from), reader.line);
            reader.next = Some((took, from));
            let took = took.as_secs_f64();
            let said = format!("{took:.2} s after the kill {from} has sent the {line} node more");
            self.screen.say(&said);
        }
    }

    /// What has come to the p2panda nodes.
    fn look(&mut self) {
        for reader in &mut self.readers {
            let count = reader.stock.look(|it| it.count(topic(reader.line)));
            let has = (count as u64).saturating_sub(OWN);
            if has == reader.has {
                continue;
            }
            (reader.has, self.progress) = (has, Instant::now());
            if has == self.operations {
                let said = format!("the {} node has everything", reader.line);
                self.screen.say(&said);
            }
        }
        let Some((killed, victim)) = self.killed.zip(self.victim.member()) else {
            return;
        };
        for reader in self.readers.iter_mut().filter(|it| it.taken_in.is_none()) {
            let Some(at) = reader.taken_in_after(killed, &self.members[victim]) else {
                continue;
            };
            reader.taken_in = Some(at);
            let (line, took) = (reader.line, at.as_secs_f64());
            let said =
                format!("{took:.2} s after the kill the {line} node takes in the first of it");
            self.screen.say(&said);
        }
    }

    /// Kills the serving member early on; starts it again later.
    async fn strike(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let third = |it: &Reader| it.has * 3 >= self.operations;
        match self.victim {
            Victim::None if self.readers.iter().any(third) => {
                let Some(victim) = self.readers[0].server.or(self.readers[1].server) else {
                    return Ok(());
                };
                cluster.kill(victim).await?;
                self.killed = Some(Instant::now());
                self.victim = Victim::Killed(victim);
                let member = &mut self.members[victim];
                (member.down, member.role) = (true, "killed".into());
                let served = self.readers.iter().filter(|it| it.server == Some(victim));
                let served: Vec<String> = served.map(|it| it.line.to_string()).collect();
                let (name, served) = (letter(victim), served.join(" and "));
                self.screen
                    .say(&format!("SIGKILL for {name}, which serves {served}"));
            }
            Victim::Killed(victim) if self.readers.iter().all(|it| it.taken_in.is_some()) => {
                let has: u64 = self.readers.iter().map(|it| it.has).sum();
                if has * 3 >= self.operations * 4 {
                    cluster.restart(victim, &self.ticket).await?;
                    self.victim = Victim::Restarted(victim);
                    self.members[victim].role = "starting".into();
                    self.screen
                        .say(&format!("{} is started again on its disk", letter(victim)));
                }
            }
            Victim::Restarted(victim) if !self.members[victim].down => {
                cluster.tell(victim, "serve").await?;
                self.victim = Victim::Back;
                self.screen
                    .say(&format!("{} is back, and has caught up", letter(victim)));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let all = LINES.len() as u64 * (self.operations + OWN);
        self.victim == Victim::Back
            && self.readers.iter().all(|it| it.has == self.operations)
            && self.members.iter().all(|it| it.held() == all)
    }

    fn picture(&mut self) -> Vec<String> {
        let mut lines = vec!["three members, one group".to_owned()];
        let all = LINES.len() as u64 * (self.operations + OWN);
        for (number, member) in self.members.iter().enumerate() {
            let served = self.readers.iter().filter(|it| it.server == Some(number));
            let served: Vec<String> = served.map(|it| it.line.to_string()).collect();
            let says = match (member.down, served.is_empty()) {
                (true, _) | (_, true) => String::new(),
                (_, false) => format!("serves {}", served.join(" and ")),
            };
            let name = format!("{} {}", letter(number), member.role);
            lines.push(row(&name, member.held(), all, &says));
        }
        lines.push("two p2panda nodes, unmodified".to_owned());
        for reader in &mut self.readers {
            let line = reader.line;
            let says = reader.says(self.operations);
            lines.push(row(
                &format!("{line} archive"),
                reader.has,
                self.operations,
                &says,
            ));
            let author = (line, reader.id.clone());
            let held = self.members.iter().filter_map(|it| it.logs.get(&author));
            let held = held.copied().max().unwrap_or(0);
            let says = match held {
                OWN => "the group has them",
                _ => "on their way to the group",
            };
            lines.push(row(&format!("{line} its own"), held, OWN, says));
        }
        lines
    }
}

impl Member {
    fn held(&self) -> u64 {
        self.logs.values().sum()
    }
}

impl Reader {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let mut stock = Stock::start(options).await;
        stock.subscribe(topic(options.line)).await;
        stock
            .publish(topic(options.line), OWN as usize, BODY_BYTES)
            .await;
        Ok(Self {
            line: options.line,
            id: stock.address().0,
            stock,
            has: 0,
            lately: VecDeque::new(),
            server: None,
            chunk: 0,
            sent: [0; 3],
            next: None,
            taken_in: None,
        })
    }

    /// The first operation that came in a session with another member than the killed one.
    fn taken_in_after(&self, killed: Instant, victim: &Member) -> Option<Duration> {
        let dead = victim.address.clone().unwrap_or_default();
        self.stock.look(|it| {
            let next = it.chunk_after(killed, &dead)?;
            Some(next.first?.duration_since(killed))
        })
    }

    fn says(&mut self, operations: u64) -> String {
        if self.has == operations {
            return "it has everything".into();
        }
        let now = Instant::now();
        self.lately.push_back((now, self.has));
        while self
            .lately
            .front()
            .is_some_and(|it| now - it.0 > SPEED_OVER)
        {
            self.lately.pop_front();
        }
        let (Some(server), Some(first)) = (self.server, self.lately.front()) else {
            return "served by nobody yet".into();
        };
        let speed = (self.has - first.1) as f64 / (now - first.0).as_secs_f64().max(1.0);
        let (server, chunk) = (letter(server), self.chunk);
        format!("from {server}, {speed:.0}/s, {chunk} at once")
    }

    fn outcome(
        &self,
        heights: &[Height],
        members: Vec<(u64, u64, String)>,
        operations: u64,
    ) -> Outcome {
        let logs: Vec<(u64, u64)> = heights.iter().map(|it| (it.highest, it.held)).collect();
        let seen = self.stock.seen();
        let ids = seen.processed.get(&topic(self.line).to_string());
        Outcome {
            line: self.line,
            operations: operations + OWN,
            held: logs.iter().map(|it| it.1).sum(),
            complete: is_complete(&logs, &[operations, OWN]),
            next: self.next,
            taken_in: self.taken_in,
            resent: seen.received().saturating_sub(operations),
            members,
            ids: ids.map(hash).unwrap_or_default(),
        }
    }
}

impl Victim {
    fn member(self) -> Option<usize> {
        match self {
            Self::Killed(it) | Self::Restarted(it) => Some(it),
            Self::None | Self::Back => None,
        }
    }
}

fn letter(number: usize) -> char {
    char::from(b'A' + number as u8)
}
