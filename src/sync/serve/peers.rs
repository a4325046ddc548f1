//! Who is served what: the table of peers and, for each, its topics, its pace and its place.

mod outcome;
mod places;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime},
};

use rand::seq::IteratorRandom;
use tokio::sync::Notify;

pub(super) use self::places::{Counted, Granted, Slot};
use super::{
    aside::Aside,
    echoed::Echoed,
    pacer::{ChunkBounds, Pacer, Seen, Turn},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Author, Heights, Line, LogId, NoteVersion, Topic},
    sync::session::{Budget, Plan, Range},
};

/// Peers that are remembered; for one more the least known of those that are idle is forgotten.
const PEERS_MAX: usize = 4_096;
/// Peers that are forgotten at once when there is no room for one more.
const FORGOTTEN_AT_ONCE: usize = 64;
/// How long a peer that was served well is remembered at least, whoever else comes.
const KNOWN_FOR: Duration = Duration::from_hours(1);
/// Topics of one peer.
const TOPICS_MAX: usize = 256;

/// When there is no room in the table for a peer that is served all the same.
const NO_ROOM: Duration = Duration::from_secs(5);

pub(super) struct Peers {
    table: Mutex<BTreeMap<PeerId, Peer>>,
    /// Names the places of sessions.
    slots: AtomicU64,
    /// Told whom the table has forgotten.
    forgotten: Box<dyn Fn(PeerId) + Send + Sync>,
    /// Something may have changed that a status tells.
    changed: Notify,
}

/// How well a peer is known: who is known least is forgotten first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Others have told of it.
    Hearsay,
    /// It has come in, or was found to have a topic that is served.
    Met,
    /// A session with it went well.
    Served,
    /// The program asked for it.
    Wanted,
}

struct Peer {
    addr: PeerAddr,
    /// What it came as; it rises by sessions that go well.
    came: Rank,
    /// When it was last heard of by itself, or asked for: not when it was dialled in vain.
    touched: Instant,
    /// One pipeline a node, whatever the topic; a node is of one line.
    paces: BTreeMap<Line, Pacer<Topic>>,
    topics: BTreeMap<Topic, Served>,
    sessions: usize,
    /// One claim at a time.
    claiming: Arc<tokio::sync::Mutex<()>>,
}

/// One peer in one topic.
#[derive(Default)]
pub(super) struct Served {
    /// The session that serves it now.
    taken: Option<u64>,
    /// Whether a task dials it.
    pub(super) kept: bool,
    /// How often in a row it was dialled and did not answer.
    pub(super) tries: u32,
    /// Whether it is no longer looked for, and which version its claim had then.
    pub(super) given_up: Option<Option<NoteVersion>>,
    /// Told when a session ends, or there is reason to dial at once.
    pub(super) moved: Arc<Notify>,
    /// The last `Have`.
    pub(super) theirs: Heights,
    /// What the last chunk had.
    chunk: Vec<Range>,
    /// Operations of the next chunks that another member may have sent just before it was lost.
    unsure: u64,
    behind: Option<Author>,
    /// How often it was found to have everything, each time in a session of its own.
    pub(super) completed: u64,
    /// Logs that the peer is not to send: named to it as high as it holds them.
    echoed: Echoed,
    /// Logs that the peer does not take.
    aside: Aside,
    pub(super) told: Told,
}

/// What the status says of a peer in a topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) line: Option<Line>,
    pub(super) live: bool,
    pub(super) sessions: u64,
    pub(super) sent: u64,
    pub(super) resent: u64,
    pub(super) received: u64,
    pub(super) appended: u64,
    pub(super) refused: u64,
    pub(super) put_off: u64,
    pub(super) missing: Option<u64>,
    pub(super) set_aside: u64,
    pub(super) last_success: Option<SystemTime>,
    pub(super) last_error: Option<String>,
}

/// What a session is to do for a peer.
#[derive(Debug)]
pub(super) enum Job {
    /// It has everything.
    Live,
    /// This chunk, which has something.
    Send(Plan, Granted),
    /// Nothing; look again then.
    Look(Duration),
}

impl Peers {
    /// An empty table. `forgotten` is told whom it forgets, and must not look into the table.
    pub(super) fn new(forgotten: impl Fn(PeerId) + Send + Sync + 'static) -> Self {
        Self {
            table: Mutex::default(),
            slots: AtomicU64::new(0),
            forgotten: Box::new(forgotten),
            changed: Notify::new(),
        }
    }

    /// Waits until something may have changed that a status tells. One waits at a time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Remembers where a peer is. False if there is no room for another peer.
    pub(super) fn learn(&self, addr: &PeerAddr, rank: Rank) -> bool {
        let mut table = self.locked();
        let Some(peer) = self.entry(&mut table, addr.peer, rank) else {
            return false;
        };
        peer.addr.merge(addr);
        if rank > Rank::Hearsay {
            peer.touched = Instant::now();
        }
        true
    }

    /// A peer's entry, which is made if there is room, or if somebody less known can be forgotten.
    fn entry<'a>(
        &self,
        table: &'a mut BTreeMap<PeerId, Peer>,
        id: PeerId,
        rank: Rank,
    ) -> Option<&'a mut Peer> {
        if !table.contains_key(&id) && table.len() >= PEERS_MAX {
            let forgettable = table.iter().filter(|(_, it)| it.is_forgettable(rank));
            let mut least: Vec<_> = forgettable
                .map(|(peer, it)| (it.rank(), it.touched, *peer))
                .collect();
            // Some at a time: to look through the whole table for each newcomer costs too much.
            least.sort_unstable();
            // Whoever was served well lately goes for one that is wanted, and nobody with it.
            let lately =
                |it: &(Rank, Instant, PeerId)| it.0 == Rank::Served && it.1.elapsed() <= KNOWN_FOR;
            let spared = least.iter().position(lately).unwrap_or(least.len());
            least.truncate(FORGOTTEN_AT_ONCE.min(spared.max(1)));
            if least.is_empty() {
                return None;
            }
            for (_, _, peer) in least {
                table.remove(&peer);
                (self.forgotten)(peer);
            }
        }
        let peer = table.entry(id).or_insert_with(|| Peer::new(id, rank));
        peer.came = peer.came.max(rank);
        Some(peer)
    }

    /// Where a peer is, as far as known: its id alone may do, since iroh knows who came in.
    pub(super) fn addr(&self, peer: PeerId) -> PeerAddr {
        let table = self.locked();
        let known = table.get(&peer).map(|it| it.addr.clone());
        known.unwrap_or_else(|| PeerAddr::new(peer, []))
    }

    /// Some of the peers, at random.
    pub(super) fn some(&self, count: usize) -> Vec<PeerAddr> {
        let table = self.locked();
        let chosen = table.values().sample(&mut rand::rng(), count);
        chosen.into_iter().map(|it| it.addr.clone()).collect()
    }

    /// The line that a peer has spoken.
    pub(super) fn line(&self, peer: PeerId) -> Option<Line> {
        let table = self.locked();
        let mut topics = table.get(&peer)?.topics.values();
        topics.find_map(|it| it.told.line)
    }

    /// Looks at, or changes, a peer's part in a topic, if there is one.
    pub(super) fn look<R>(
        &self,
        peer: PeerId,
        topic: Topic,
        look: impl FnOnce(&mut Served) -> R,
    ) -> Option<R> {
        let mut table = self.locked();
        self.changed.notify_one();
        Some(look(table.get_mut(&peer)?.topics.get_mut(&topic)?))
    }

    /// Looks at, or changes, a peer's part in a topic. None if there is no room for it.
    pub(super) fn with<R>(
        &self,
        peer: PeerId,
        topic: Topic,
        look: impl FnOnce(&mut Served) -> R,
    ) -> Option<R> {
        let mut table = self.locked();
        self.changed.notify_one();
        let peer = self.entry(&mut table, peer, Rank::Met)?;
        if !peer.topics.contains_key(&topic) && peer.topics.len() >= TOPICS_MAX {
            return None;
        }
        Some(look(peer.topics.entry(topic).or_default()))
    }

    /// What a peer said last that it holds.
    pub(super) fn theirs(&self, peer: PeerId, topic: Topic) -> Heights {
        let theirs = self.with(peer, topic, |it| it.theirs.clone());
        theirs.unwrap_or_default()
    }

    /// Notes a `Have` of a peer that is sent nothing.
    pub(super) fn heard(&self, peer: PeerId, topic: Topic, line: Line, theirs: &Heights) {
        self.with(peer, topic, |it| {
            it.keep(theirs);
            it.told.line = Some(line);
        });
    }

    /// What we say that we hold: the group's heights, but for logs that this peer would otherwise
    /// send for ever, those that it has itself.
    pub(super) fn have(&self, peer: PeerId, topic: Topic, ours: &Heights) -> Heights {
        let mut have = ours.clone();
        self.with(peer, topic, |served| {
            for author in served.echoed.authors(Instant::now()) {
                if let Some(theirs) = served.theirs.get(author) {
                    have.insert(*author, theirs.clone());
                }
            }
        });
        have
    }

    /// Notes a `Have`, and decides what to do for the peer. `size` gives the operations and bytes
    /// of a log above a sequence number and up to another.
    pub(super) fn job(
        self: &Arc<Self>,
        peer: PeerId,
        topic: Topic,
        line: Line,
        (ours, theirs): (&Heights, &Heights),
        size: impl Fn(Author, LogId, Option<u32>, u32) -> io::Result<(u64, u64)>,
    ) -> io::Result<Job> {
        let now = Instant::now();
        self.job_at(now, (peer, topic, line), (ours, theirs), size)
    }

    fn job_at(
        self: &Arc<Self>,
        now: Instant,
        (peer, topic, line): (PeerId, Topic, Line),
        (held, theirs): (&Heights, &Heights),
        size: impl Fn(Author, LogId, Option<u32>, u32) -> io::Result<(u64, u64)>,
    ) -> io::Result<Job> {
        // A branch that the peer has otherwise is not for it: it would refuse it for ever.
        let (ours, _) = self.for_it((peer, topic), (held, theirs), now);
        let all = Plan::compute(&ours, theirs, Budget::UNLIMITED, None, &size)?;
        let missing = u64::from(all.operations);
        let Some((turn, behind)) = self.turn((peer, topic, line), theirs, missing, now) else {
            return Ok(Job::Look(NO_ROOM));
        };
        let (grant, operations, bytes) = match turn {
            Turn::Complete => return Ok(Job::Live),
            Turn::Wait(pause) => return Ok(Job::Look(pause)),
            Turn::Send {
                grant,
                operations,
                bytes,
            } => (grant, operations, bytes),
        };
        let granted = Granted::new(self, (peer, line), grant);
        let budget = Budget {
            operations: u32::try_from(operations).unwrap_or(u32::MAX),
            bytes,
        };
        // What has become of the last chunk may have set a log aside.
        let (ours, suspect) = self.for_it((peer, topic), (held, theirs), now);
        // What may be the next comes first, so that nothing but itself can be the reason.
        let before = |it| ours.range(..it).next_back().map(|it| *it.0);
        let behind = suspect.map_or(behind, before);
        let plan = Plan::compute(&ours, theirs, budget, behind.as_ref(), &size)?;
        if plan.operations == 0 {
            // All that it lacks is set aside.
            self.look(peer, topic, |it| it.told.missing = Some(0));
            return Ok(Job::Live);
        }
        self.with(peer, topic, |served| {
            let again = plan.ranges.iter().map(|it| served.sent_before(it));
            let again = again.sum::<u64>();
            let unsure = u64::from(plan.operations).saturating_sub(again);
            let unsure = unsure.min(served.unsure);
            served.unsure -= unsure;
            served.told.resent += again + unsure;
            served.chunk.clone_from(&plan.ranges);
            served.behind = plan.last_author().copied();
        });
        Ok(Job::Send(plan, granted))
    }

    /// Another member served it, and may have sent as much as a chunk has at the most.
    pub(super) fn taken_over(&self, peer: PeerId, topic: Topic, line: Line) {
        self.with(peer, topic, |it| it.unsure = ChunkBounds::of(line).max);
    }

    /// What may be done for a peer now, and behind which author the last chunk ended.
    fn turn(
        &self,
        (peer, topic, line): (PeerId, Topic, Line),
        theirs: &Heights,
        missing: u64,
        now: Instant,
    ) -> Option<(Turn, Option<Author>)> {
        let mut table = self.locked();
        let entry = table.get_mut(&peer)?;
        let served = entry.topics.entry(topic).or_default();
        let reached = served.chunk.iter().all(|range| {
            let log = theirs.get(&range.author).and_then(|it| it.get(&range.log));
            log.is_some_and(|it| *it >= range.until)
        });
        let held = theirs.values().flat_map(BTreeMap::values);
        let seen = Seen {
            held: held.map(|it| u64::from(*it) + 1).sum(),
            missing,
            reached,
        };
        served.keep(theirs);
        served.told.line = Some(line);
        served.told.missing = Some(missing);
        let pace = entry.paces.entry(line);
        let pace = pace.or_insert_with(|| Pacer::new(ChunkBounds::of(line)));
        let (settled, smallest) = (pace.settled(), pace.is_smallest());
        let turn = pace.turn(topic, seen, now);
        if pace.settled() > settled {
            served.aside.settled(&served.chunk, theirs, smallest, now);
        }
        served.told.set_aside = served.aside.len() as u64;
        Some((turn, served.behind))
    }

    /// Operations of the next chunk.
    pub(super) fn chunk(&self, peer: PeerId, line: Line) -> Option<u64> {
        self.pace(peer, line, |it| it.chunk())
    }

    /// The peer is not to send these logs any more.
    pub(super) fn echo(&self, peer: PeerId, topic: Topic, authors: BTreeSet<Author>) {
        self.look(peer, topic, |it| it.echoed.add(authors, Instant::now()));
    }

    /// What we hold, without what the peer does not take: logs that are echoed to it, and those
    /// that are set aside. And whose log may be the next of them.
    fn for_it(
        &self,
        (peer, topic): (PeerId, Topic),
        (ours, theirs): (&Heights, &Heights),
        now: Instant,
    ) -> (Heights, Option<Author>) {
        let mut ours = ours.clone();
        let suspect = self.look(peer, topic, |served| {
            for author in served.echoed.authors(now) {
                ours.remove(author);
            }
            for author in served.aside.authors(theirs, now) {
                ours.remove(&author);
            }
            served.aside.suspect()
        });
        (ours, suspect.flatten())
    }

    /// Forgets what was about a topic.
    pub(super) fn close_topic(&self, topic: Topic) {
        for peer in self.locked().values_mut() {
            if let Some(served) = peer.topics.remove(&topic) {
                served.moved.notify_waiters();
            }
            for pace in peer.paces.values_mut() {
                pace.closed(topic);
            }
        }
    }

    /// Something has changed for all: whoever waits looks again.
    pub(super) fn wake_all(&self) {
        for peer in self.locked().values() {
            for served in peer.topics.values() {
                served.moved.notify_one();
            }
        }
    }

    /// Calls `each` for every peer and topic.
    pub(super) fn each(&self, mut each: impl FnMut(PeerId, Topic, &Served)) {
        for (peer, entry) in &*self.locked() {
            for (topic, served) in &entry.topics {
                each(*peer, *topic, served);
            }
        }
    }

    fn pace<R>(
        &self,
        peer: PeerId,
        line: Line,
        look: impl FnOnce(&mut Pacer<Topic>) -> R,
    ) -> Option<R> {
        let mut table = self.locked();
        table.get_mut(&peer)?.paces.get_mut(&line).map(look)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<PeerId, Peer>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn new(id: PeerId, rank: Rank) -> Self {
        Self {
            addr: PeerAddr::new(id, []),
            came: rank,
            touched: Instant::now(),
            paces: BTreeMap::new(),
            topics: BTreeMap::new(),
            sessions: 0,
            claiming: Arc::default(),
        }
    }

    fn rank(&self) -> Rank {
        let served = |it: &Served| it.told.last_success.is_some();
        match self.topics.values().any(served) {
            true => self.came.max(Rank::Served),
            false => self.came,
        }
    }

    fn is_busy(&self) -> bool {
        self.sessions > 0 || self.topics.values().any(|it| it.taken.is_some())
    }

    /// Whether it may be forgotten for one that comes with this rank.
    fn is_forgettable(&self, newcomer: Rank) -> bool {
        let ranks = match self.rank() {
            Rank::Wanted => false,
            Rank::Served => {
                let long_ago = self.touched.elapsed() > KNOWN_FOR;
                newcomer == Rank::Wanted || (newcomer > Rank::Hearsay && long_ago)
            }
            rank => rank <= newcomer,
        };
        ranks && !self.is_busy()
    }
}

impl Served {
    /// Remembers a `Have`, as far as that is of use and bounded.
    pub(super) fn keep(&mut self, theirs: &Heights) {
        self.theirs = self.echoed.kept(theirs);
    }

    /// How many operations of a range the last chunk had too.
    fn sent_before(&self, range: &Range) -> u64 {
        let same = |it: &&Range| {
            (it.author, it.log) == (range.author, range.log) && range.after < Some(it.until)
        };
        let sent = self.chunk.iter().find(same);
        sent.map_or(0, |it| {
            let from = range.after.map_or(0, |after| u64::from(after) + 1);
            let both = (u64::from(it.until) + 1).saturating_sub(from);
            both.min(range.operations)
        })
    }

    pub(super) fn is_taken(&self) -> bool {
        self.taken.is_some()
    }
}

#[cfg(test)]
mod tests;
