//! Who is served: what the group has decided about outsiders, as this door follows it, and the
//! sessions that end when it changes.
//!
//! What is known here is read from the group's notes after each commit that changed one. A session
//! is judged by it when it begins, once more when what was acknowledged before is applied, and with
//! each change: it ends where its rights, or the topic's mode, are others.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    asking::{Asking, Oldest, Room, Waiting},
    peers::Rank,
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Expected, Heights, Line, Note, NoteVersion, Topic},
    sync::{
        client::{Access, Denied},
        outsiders::{self, Admission, Decision, Noted, Rights, Standing, TopicMode, Verdict},
    },
};

/// Between two looks at what was decided; a session that lost a right ends that much later.
const PAUSE: Duration = Duration::from_millis(20);
/// For a quorum to note a request.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// Members that see a peer let in dial it at random within this time.
const JITTER: Duration = Duration::from_millis(150);

#[derive(Default)]
pub(super) struct Admissions {
    known: Mutex<Known>,
    /// Counts the changes.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    /// The last change of any note that was read; none before the first look.
    through: Option<Option<NoteVersion>>,
    rules: BTreeMap<Topic, Noted<Admission>>,
    standings: BTreeMap<(Topic, PeerId), (Noted<Standing>, NoteVersion)>,
    waiting: Waiting,
    running: BTreeMap<u64, Run>,
    next: u64,
    asking: Asking,
}

/// A session under way.
struct Run {
    peer: PeerId,
    topic: Topic,
    rights: Rights,
    mode: TopicMode,
    over: CancellationToken,
}

/// A session's place among those that are watched; given back when dropped.
pub(super) struct Admitted {
    pub(super) rights: Rights,
    pub(super) mode: TopicMode,
    /// Cancelled when the peer's rights or the topic's mode are others than these.
    pub(super) over: CancellationToken,
    number: u64,
    admissions: Arc<Admissions>,
}

impl Admissions {
    /// What a peer may do in a topic, as far as this member knows.
    pub(super) fn verdict(&self, peer: PeerId, topic: Topic) -> Verdict {
        self.locked().verdict(peer, topic)
    }

    /// How a topic is served, as far as this member knows.
    pub(super) fn mode(&self, topic: Topic) -> TopicMode {
        self.locked().mode(topic)
    }

    /// Judges a session that begins, and watches it. None if the peer has no right in the topic.
    /// `over` ends it.
    pub(super) fn admit(
        self: &Arc<Self>,
        peer: PeerId,
        topic: Topic,
        over: CancellationToken,
    ) -> Option<Admitted> {
        let mut known = self.locked();
        let rights = known.verdict(peer, topic).rights;
        if !rights.any() {
            return None;
        }
        let mode = known.mode(topic);
        let number = known.next;
        known.next += 1;
        let run = Run {
            peer,
            topic,
            rights,
            mode,
            over: over.clone(),
        };
        known.running.insert(number, run);
        Some(Admitted {
            rights,
            mode,
            over,
            number,
            admissions: Arc::clone(self),
        })
    }

    /// Ends the sessions with a peer in a topic that run here.
    pub(super) fn end(&self, peer: PeerId, topic: Topic) {
        for run in self.locked().running.values() {
            if (run.peer, run.topic) == (peer, topic) {
                run.over.cancel();
            }
        }
    }

    /// Tells when something was decided.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes in what is noted now. Gives whom it lets in that was not let in before.
    fn took(&self, through: Option<NoteVersion>, rules: Vec<Note>, asked: Vec<Note>) -> LetIn {
        let mut known = self.locked();
        let first = known.through.is_none();
        if known.through.is_some_and(|it| it > through) {
            // Somebody else has looked since, and saw more.
            return LetIn::default();
        }
        known.through = Some(through);
        let rules = rules.into_iter().filter_map(|note| {
            let topic = outsiders::topic_of(&note.name)?;
            Some((topic, outsiders::decode_rules(&note.value)))
        });
        known.rules = rules.collect();
        let asked = asked.into_iter().filter_map(|note| {
            let of = outsiders::asked_of(&note.name)?;
            Some((of, (outsiders::decode(&note.value), note.version)))
        });
        let before = std::mem::replace(&mut known.standings, asked.collect());
        let mut waiting = Waiting::default();
        let mut let_in = Vec::new();
        for ((topic, peer), (standing, version)) in &known.standings {
            let Noted::Known(standing) = standing else {
                continue;
            };
            match standing.decision {
                Decision::Pending => waiting.count(*topic, *peer, standing, *version),
                Decision::Approved(_) if !first => {
                    let former = before.get(&(*topic, *peer));
                    if former.is_none_or(|(_, former)| former != version) {
                        let_in.push((*topic, standing.addr.clone()));
                    }
                }
                _ => {}
            }
        }
        known.waiting = waiting;
        for run in known.running.values() {
            let rights = known.verdict(run.peer, run.topic).rights;
            if rights != run.rights || known.mode(run.topic) != run.mode {
                run.over.cancel();
            }
        }
        drop(known);
        self.changed.send_modify(|it| *it += 1);
        let_in
    }

    /// Whether a request is to be noted now, and from which state.
    fn begins_to_ask(
        &self,
        (peer, topic): (PeerId, Topic),
        wants: Rights,
        (now, now_ms): (Instant, u64),
    ) -> Option<Ask> {
        let mut known = self.locked();
        let wants = known.verdict(peer, topic).may_ask.and(wants);
        let (expected, before) = match known.standings.get(&(topic, peer)) {
            None => (Expected::Absent, Rights::NONE),
            Some((Noted::Known(held), version)) => (Expected::Changed(*version), held.wants),
            Some((Noted::Unreadable, _)) => return None,
        };
        let is_new = before == Rights::NONE;
        if before.or(wants) == before {
            return None;
        }
        let in_place_of = match known.waiting.room(topic, now_ms) {
            Room::InPlaceOf(oldest) if is_new => Some(oldest),
            Room::None if is_new => return None,
            _ => None,
        };
        let begins = known.asking.begins(topic, peer, now);
        begins.then(|| Ask {
            expected,
            wants: before.or(wants),
            in_place_of,
        })
    }

    fn locked(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is to be noted.
#[derive(Debug, PartialEq, Eq)]
struct Ask {
    expected: Expected,
    wants: Rights,
    /// A request that is forgotten for it.
    in_place_of: Option<Oldest>,
}

/// Topics, and where the peers are that are let in there.
type LetIn = Vec<(Topic, PeerAddr)>;

impl Known {
    fn verdict(&self, peer: PeerId, topic: Topic) -> Verdict {
        let standing = self.standings.get(&(topic, peer)).map(|(it, _)| it);
        outsiders::judge(self.rules.get(&topic), standing, peer)
    }

    fn mode(&self, topic: Topic) -> TopicMode {
        match self.rules.get(&topic) {
            Some(Noted::Known(rules)) => rules.mode,
            // Nobody is served, so there is nobody to meet.
            Some(Noted::Unreadable) => TopicMode::CatchUp,
            None => TopicMode::default(),
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admissions.locked().running.remove(&self.number);
    }
}

/// What a peer with these rights is told that we hold, where `held` is what we would tell anybody.
///
/// A peer that may not push hears of its own logs what it has itself, or it would send the rest for
/// ever. One that may not read hears of what it has itself how much of it we hold: enough to send
/// what we lack, and nothing beyond.
pub(super) fn shown(rights: Rights, held: Heights, theirs: &Heights) -> Heights {
    let mut shown = Heights::new();
    if rights.read {
        shown = held;
        if !rights.push {
            for (author, logs) in theirs {
                let of_author = shown.entry(*author).or_default();
                of_author.extend(logs.iter().map(|(log, height)| (*log, *height)));
            }
        }
        return shown;
    }
    for (author, logs) in theirs {
        for (log, height) in logs {
            if let Some(held) = held.get(author).and_then(|it| it.get(log)) {
                let both = (*held).min(*height);
                shown.entry(*author).or_default().insert(*log, both);
            }
        }
    }
    shown
}

impl Shared {
    /// Whether a peer may know of any topic that is open.
    pub(super) fn is_welcome(&self, peer: PeerId) -> bool {
        if self.doors.is_door(peer) {
            return true;
        }
        let topics = self.open_topics();
        let known = self.admissions.locked();
        let mut told = topics.iter();
        told.any(|(topic, _)| known.verdict(peer, *topic).is_told())
    }

    /// The open topics that a peer may know of.
    pub(super) fn topics_told(&self, peer: PeerId) -> Vec<(Topic, Line)> {
        let mut topics = self.open_topics();
        let known = self.admissions.locked();
        topics.retain(|(topic, _)| known.verdict(peer, *topic).is_told());
        topics
    }

    /// Takes in what the group has decided since; cheap if that is nothing.
    pub(super) fn look_at_admissions(self: &Arc<Self>) -> io::Result<()> {
        let through = self.logs.notes_changed()?;
        if self.admissions.locked().through == Some(through) {
            return Ok(());
        }
        let rules = self.logs.notes(outsiders::rules_prefix())?;
        let asked = self.logs.notes(outsiders::standings_prefix())?;
        for (topic, addr) in self.admissions.took(through, rules, asked) {
            let shared = Arc::clone(self);
            self.run(async move {
                sleep(JITTER.mul_f64(rand::random_range(0.0..=1.0))).await;
                shared.serve_let_in(topic, &addr);
            });
        }
        Ok(())
    }

    /// The same where async code runs: a group may keep many notes, and one that is changed has all
    /// of them read.
    pub(super) async fn follow_admissions(self: &Arc<Self>) -> io::Result<()> {
        let through = self.logs.notes_changed()?;
        if self.admissions.locked().through == Some(through) {
            return Ok(());
        }
        let shared = Arc::clone(self);
        let looking = tokio::task::spawn_blocking(move || shared.look_at_admissions());
        looking.await.map_err(io::Error::other).flatten()
    }

    /// Takes in everything that was decided before this was called, if a quorum answers in time.
    /// False if none did.
    pub(super) async fn confirm_admissions(self: &Arc<Self>) -> bool {
        let confirmed = timeout(WRITE_MAX, self.logs.confirmed_now()).await;
        if !matches!(confirmed, Ok(Ok(()))) {
            return false;
        }
        let looked = self.follow_admissions().await;
        if let Err(error) = &looked {
            tracing::warn!(%error, "who may be served cannot be read");
        }
        looked.is_ok()
    }

    fn serve_let_in(self: &Arc<Self>, topic: Topic, addr: &PeerAddr) {
        if self.feed(topic).is_none() || self.is_served_elsewhere(addr.peer) {
            return;
        }
        if self.learn(addr, Rank::Met) {
            self.keep(addr.peer, topic);
        }
    }

    /// Notes that a peer wants what it has not, unless that is noted, or too much is at the moment.
    pub(super) fn ask_for(self: &Arc<Self>, addr: PeerAddr, at: (Topic, Line), wants: Rights) {
        let (topic, line) = at;
        let (peer, now_ms) = (addr.peer, outsiders::now_ms());
        let begins = self
            .admissions
            .begins_to_ask((peer, topic), wants, (Instant::now(), now_ms));
        let Some(ask) = begins else {
            return;
        };
        let standing = Standing {
            decision: Decision::Pending,
            wants: ask.wants,
            line,
            addr,
            at_ms: now_ms,
        };
        let shared = Arc::clone(self);
        self.run(async move {
            if let Some(oldest) = ask.in_place_of {
                let name = outsiders::standing_name(topic, oldest.peer);
                let expected = Expected::Changed(oldest.version);
                // Where it was decided on meanwhile it stays, and there is one more for once.
                let forgetting = shared.logs.note(name, None, expected);
                let _ = timeout(WRITE_MAX, forgetting).await;
            }
            let name = outsiders::standing_name(topic, peer);
            let value = outsiders::encode(&standing);
            let noting = shared.logs.note(name, Some(value), ask.expected);
            let noted = timeout(WRITE_MAX, noting).await;
            if !matches!(noted, Ok(Ok(_))) {
                // It asks again by itself.
                tracing::debug!(peer = %peer.short(), %topic, "a request was not noted");
            }
            // What was noted is known before the next knock is judged.
            shared.confirm_admissions().await;
            shared.admissions.locked().asking.ended(topic, peer);
        });
    }

    /// Judges what our own client wants. None ends it at once, without a request being noted.
    pub(super) fn admit_client(
        self: &Arc<Self>,
        addr: &PeerAddr,
        topic: Topic,
        access: Access,
        over: &CancellationToken,
    ) -> Result<Admitted, Denied> {
        let Some(line) = self.feed(topic).map(|it| it.line) else {
            return Err(Denied::UnknownTopic);
        };
        let wants = match access {
            Access::Pull => Rights::READ,
            Access::Push => Rights::PUSH,
        };
        let admitted = self.admissions.admit(addr.peer, topic, over.clone());
        if let Some(admitted) = admitted
            && admitted.rights.and(wants).any()
        {
            return Ok(admitted);
        }
        let may_ask = self.admissions.verdict(addr.peer, topic).may_ask;
        if !may_ask.and(wants).any() {
            return Err(Denied::UnknownTopic);
        }
        self.ask_for(addr.clone(), (topic, line), wants);
        Err(Denied::NotYet)
    }
}

/// Follows what the group decides about outsiders.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut committed = shared.logs.committed();
    loop {
        if let Err(error) = shared.follow_admissions().await {
            tracing::warn!(%error, "who may be served cannot be read");
        }
        sleep(PAUSE).await;
        if committed.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log_store::AuthorKey, sync::outsiders::PENDING_MAX};

    fn peer(at: u8) -> PeerId {
        PeerId::from_bytes([at; 32])
    }

    fn version(index: u64) -> NoteVersion {
        NoteVersion { index, offset: 0 }
    }

    fn rules(topic: Topic, admission: &Admission) -> Vec<Note> {
        vec![Note {
            name: [outsiders::rules_prefix(), topic.as_bytes()]
                .concat()
                .into(),
            value: outsiders::encode_rules(admission),
            version: version(1),
        }]
    }

    fn asked(topic: Topic, peer: PeerId, decision: Decision, at: u64) -> Note {
        let standing = Standing {
            decision,
            wants: Rights::ALL,
            line: Line::V07,
            addr: PeerAddr::new(peer, []),
            at_ms: 7,
        };
        Note {
            name: outsiders::standing_name(topic, peer),
            value: outsiders::encode(&standing),
            version: version(at),
        }
    }

    #[test]
    fn a_session_ends_when_its_rights_are_others() {
        let topic = Topic::named("cats");
        let admissions = Arc::<Admissions>::default();
        let over = CancellationToken::new();
        let nobody = admissions.admit(peer(1), topic, over.clone());
        assert!(nobody.is_none(), "before the first look nobody is let in");
        let on_request = || rules(topic, &Admission::on_request());
        let approved = |rights| vec![asked(topic, peer(1), Decision::Approved(rights), 2)];
        admissions.took(None, on_request(), approved(Rights::ALL));
        let admitted = admissions.admit(peer(1), topic, over.clone());
        assert_eq!(admitted.as_ref().map(|it| it.rights), Some(Rights::ALL));
        assert!(admissions.admit(peer(2), topic, over.clone()).is_none());
        admissions.took(None, on_request(), approved(Rights::ALL));
        assert!(!over.is_cancelled(), "nothing has changed for it");
        admissions.took(None, on_request(), approved(Rights::READ));
        assert!(over.is_cancelled());
        drop(admitted);
        assert!(admissions.locked().running.is_empty());
    }

    #[test]
    fn who_is_let_in_later_is_told_once() {
        let topic = Topic::named("cats");
        let admissions = Admissions::default();
        let on_request = || rules(topic, &Admission::on_request());
        let one = || asked(topic, peer(1), Decision::Approved(Rights::ALL), 2);
        let two = || asked(topic, peer(2), Decision::Approved(Rights::ALL), 3);
        let first = admissions.took(None, on_request(), vec![one()]);
        assert_eq!(first, [], "the claims know of those");
        let later = admissions.took(None, on_request(), vec![one(), two()]);
        assert_eq!(later, [(topic, PeerAddr::new(peer(2), []))]);
        let again = admissions.took(None, on_request(), vec![one(), two()]);
        assert_eq!(again, []);
    }

    #[test]
    fn requests_are_noted_once_while_there_is_room() {
        const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
        let topic = Topic::named("cats");
        let admissions = Admissions::default();
        let now = Instant::now();
        let ask_at =
            |it, now_ms| admissions.begins_to_ask((peer(it), topic), Rights::ALL, (now, now_ms));
        let ask = |it| ask_at(it, 7);
        assert_eq!(ask(1), None, "the topic is not for outsiders");
        let on_request = || rules(topic, &Admission::on_request());
        admissions.took(None, on_request(), Vec::new());
        let first = Ask {
            expected: Expected::Absent,
            wants: Rights::ALL,
            in_place_of: None,
        };
        assert_eq!(ask(1), Some(first));
        assert_eq!(ask(1), None, "it is being noted");
        admissions.locked().asking = Asking::default();
        let pending = asked(topic, peer(1), Decision::Pending, 2);
        let refused = asked(topic, peer(2), Decision::Refused, 3);
        admissions.took(None, on_request(), vec![pending, refused]);
        assert_eq!((ask(1), ask(2)), (None, None));
        let many = (0..PENDING_MAX).map(|at| {
            let mut id = [9; 32];
            id[..8].copy_from_slice(&at.to_be_bytes());
            asked(topic, PeerId::from_bytes(id), Decision::Pending, 4)
        });
        admissions.took(None, on_request(), many.collect());
        assert_eq!(ask(203), None, "as many wait as may");
        let later = ask_at(203, 7 + DAY_MS).expect("there is room again");
        let oldest = later.in_place_of.map(|it| it.version);
        assert_eq!(oldest, Some(version(4)));
    }

    #[test]
    fn what_is_shown_depends_on_the_rights() {
        let topic = Topic::named("cats");
        let author = |at: u8| AuthorKey::from_bytes(&[at; 32]).author();
        let heights = |of: &[(u8, u32)]| -> Heights {
            let logs = |height| BTreeMap::from([(topic.log_id(), height)]);
            of.iter().map(|(it, at)| (author(*it), logs(*at))).collect()
        };
        let ours = heights(&[(1, 10), (2, 10), (3, 10)]);
        let theirs = heights(&[(2, 5), (3, 20), (4, 7)]);
        let to = |rights| shown(rights, ours.clone(), &theirs);
        assert_eq!(to(Rights::ALL), ours);
        let read = heights(&[(1, 10), (2, 5), (3, 20), (4, 7)]);
        assert_eq!(to(Rights::READ), read, "it has nothing to send");
        let push = heights(&[(2, 5), (3, 10)]);
        assert_eq!(to(Rights::PUSH), push, "it learns nothing of the first");
    }
}
