//! Which member serves a peer: claimed in the notes that the group shares, so that to the peer the
//! group is one, and taken over when that member is gone.
//!
//! A claim names the peer's addresses and topics too: whoever takes it over can dial the peer. It
//! is changed only from the state that was read, by a command of the group, so of two members that
//! claim at once one fails. Two may still serve a peer for a moment, when the bond between them is
//! broken and both reach the rest: then it is sent something twice, which it ignores.
//!
//! A claim holds for as long as its holder is bonded and heard, and its door is heard of, see
//! [`doors`](super::doors). A holder that is silent for a fifth of what ends a bond has lost it: a
//! peer that is served by nobody waits, and one that is served twice for a moment loses nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{Shared, peers::Rank};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Expected, Line, LogError, NoteError, NoteRefused, NoteVersion, Topic},
    sync::outsiders::CLAIMS as PREFIX,
};

/// Peers with a claim; those beyond are served without one.
const CLAIMS_MAX: usize = 4_096;
/// Topics named in a claim.
const TOPICS_MAX: usize = 256;
/// Tries from a fresher state, when others change the claim at the same time.
const TRIES: usize = 3;
/// Members that see a claim fall free take it at random within this time.
const JITTER: Duration = Duration::from_millis(150);
/// Between two looks at the claims; a lost bond is looked at once.
const PAUSE: Duration = Duration::from_millis(100);
/// The claims are looked through again after this time, though nothing has changed that is known
/// to matter: a task that keeps a peer served may have ended, or there is room for one more.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For the claims of a peer's other sessions, one after the other.
const CLAIM_MAX: Duration = Duration::from_secs(10);
/// For a quorum to agree to a claim.
const WRITE_MAX: Duration = Duration::from_secs(2);

/// What the group knows of a peer. Frozen format, in postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// The node that serves it; none when it fell free.
    server: Option<PeerId>,
    addr: PeerAddr,
    topics: Vec<(Topic, Line)>,
}

#[derive(Default)]
pub(super) struct Claims {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The last change of any note that was read.
    through: Option<NoteVersion>,
    claims: BTreeMap<PeerId, Held>,
    /// Whom nobody served when this member last looked.
    free: BTreeSet<PeerId>,
    looked: Option<Looked>,
}

/// A claim as it was read.
#[derive(Clone)]
struct Held {
    claim: Arc<Claim>,
    version: NoteVersion,
    /// Whether the table of peers has its addresses.
    learnt: bool,
}

/// What the claims were looked through for.
struct Looked {
    at: Instant,
    what: What,
}

#[derive(PartialEq, Eq)]
struct What {
    notes: Option<NoteVersion>,
    open: Vec<(Topic, Line)>,
    /// Members that serve somebody and cannot be reached.
    gone: BTreeSet<PeerId>,
}

/// A peer that is served, or was.
pub(super) struct Claimed {
    pub(super) peer: PeerId,
    pub(super) server: Option<PeerId>,
    pub(super) topics: Vec<(Topic, Line)>,
}

impl Claims {
    /// The node that serves a peer, as far as this member knows.
    pub(super) fn server(&self, peer: PeerId) -> Option<PeerId> {
        self.locked().claims.get(&peer)?.claim.server
    }

    /// Which change of a peer's claim this member knows.
    pub(super) fn version(&self, peer: PeerId) -> Option<NoteVersion> {
        Some(self.locked().claims.get(&peer)?.version)
    }

    /// Every peer with a claim, who serves it, and in which topics.
    pub(super) fn all(&self) -> Vec<Claimed> {
        let known = self.locked();
        let claimed = known.claims.iter().map(|(peer, held)| Claimed {
            peer: *peer,
            server: held.claim.server,
            topics: held.claim.topics.clone(),
        });
        claimed.collect()
    }

    /// Whether this member serves anybody, as far as this member knows.
    pub(super) fn serve(&self, member: PeerId) -> bool {
        let known = self.locked();
        let mut servers = known.claims.values().map(|it| it.claim.server);
        servers.any(|it| it == Some(member))
    }

    fn locked(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether another member serves this peer, and does so still.
    pub(super) fn is_served_elsewhere(&self, peer: PeerId) -> bool {
        let server = self.claims.server(peer);
        server.is_some_and(|it| it != self.here() && self.reaches(it))
    }

    /// Claims a peer that has asked for, or answered in, a topic, or finds that it is claimed here:
    /// from what the group knows, never from an old state. False if another member that can be
    /// reached serves it, or no quorum says so.
    pub(super) async fn claim(&self, peer: PeerId, topic: Topic, line: Line) -> bool {
        // Its sessions in other topics write the same note.
        let turn = timeout(CLAIM_MAX, self.peers.claiming(peer).lock_owned()).await;
        let Ok(_turn) = turn else {
            return false;
        };
        for _ in 0..TRIES {
            // A member that was down reads that it serves whom another one has taken over since.
            let confirmed = timeout(WRITE_MAX, self.logs.confirmed_now()).await;
            if !matches!(confirmed, Ok(Ok(()))) {
                return false;
            }
            let Ok(held) = self.read_claim(peer) else {
                return false;
            };
            let here = Some(self.here());
            let addr = self.peers.addr(peer);
            let former = held.as_ref().is_some_and(|it| it.0.server != here);
            let (mut claim, expected) = match held {
                None if self.claims.locked().claims.len() >= CLAIMS_MAX => return true,
                None => {
                    let claim = Claim {
                        server: here,
                        addr: addr.clone(),
                        topics: Vec::new(),
                    };
                    (claim, Expected::Absent)
                }
                Some((claim, version)) => {
                    let named = claim.topics.contains(&(topic, line)) && claim.addr == addr;
                    if claim.server == here && named {
                        return true;
                    }
                    let elsewhere = claim.server.filter(|it| Some(*it) != here);
                    if elsewhere.is_some_and(|it| self.reaches(it)) {
                        return false;
                    }
                    (claim, Expected::Changed(version))
                }
            };
            if !self.is_heard().await {
                return false;
            }
            claim.server = here;
            claim.addr.merge(&addr);
            self.learn(&claim.addr, Rank::Met);
            if claim.topics.len() >= TOPICS_MAX {
                // Those that were closed since; the state that a quorum has confirmed says which.
                let is_open = |(topic, line): &(Topic, Line)| {
                    self.feed(*topic).is_some_and(|it| it.line == *line)
                };
                claim.topics.retain(is_open);
            }
            if !claim.topics.contains(&(topic, line)) && claim.topics.len() < TOPICS_MAX {
                claim.topics.push((topic, line));
            }
            match self.write_claim(peer, Some(&claim), expected).await {
                Ok(()) => {
                    if former {
                        self.peers.taken_over(peer, topic, line);
                    }
                    return true;
                }
                Err(NoteError::Refused(NoteRefused::Changed { .. })) => {}
                // No room for notes: it is served all the same, by whoever it has come to.
                Err(NoteError::Refused(_)) => return true,
                Err(NoteError::Logs(_)) => return false,
            }
        }
        false
    }

    /// Gives a peer back that this member cannot reach in any topic, for another one to try.
    pub(super) async fn release(&self, peer: PeerId) {
        if self.peers.is_busy(peer) {
            return;
        }
        let Ok(Some((mut claim, version))) = self.read_claim(peer) else {
            return;
        };
        if claim.server == Some(self.here()) {
            claim.server = None;
            // If it fails, the others see that we are gone, or we try again.
            let expected = Expected::Changed(version);
            let _ = self.write_claim(peer, Some(&claim), expected).await;
        }
    }

    /// Forgets a peer that was not found for long, in any topic, unless another member serves it.
    pub(super) async fn abandon(&self, peer: PeerId) {
        if self.peers.is_busy(peer) || self.peers.is_looked_for(peer) {
            return;
        }
        let Ok(Some((claim, version))) = self.read_claim(peer) else {
            return;
        };
        let elsewhere = claim.server.filter(|it| *it != self.here());
        if !elsewhere.is_some_and(|it| self.reaches(it)) {
            let expected = Expected::Changed(version);
            if self.write_claim(peer, None, expected).await.is_ok() {
                self.claims.locked().claims.remove(&peer);
            }
        }
    }

    /// The name of this node among the members, which is not the door's.
    pub(super) fn here(&self) -> PeerId {
        self.logs.group().peer()
    }

    fn reaches(&self, member: PeerId) -> bool {
        let heard = || self.logs.group().hears(&member);
        member == self.here() || heard() && self.doors.is_open(member)
    }

    fn read_claim(&self, peer: PeerId) -> io::Result<Option<(Claim, NoteVersion)>> {
        let notes = self.logs.notes(&name(peer))?;
        let claim = notes.first().and_then(|note| {
            let claim = decode(&note.value)?;
            Some((claim, note.version))
        });
        let mut known = self.claims.locked();
        match claim.clone() {
            Some((claim, version)) => known.hold(peer, claim, version),
            None => drop(known.claims.remove(&peer)),
        }
        Ok(claim)
    }

    async fn write_claim(
        &self,
        peer: PeerId,
        claim: Option<&Claim>,
        expected: Expected,
    ) -> Result<(), NoteError> {
        // Plain values into memory cannot fail to encode.
        let value = claim.map(|it| postcard::to_stdvec(it).unwrap_or_default().into());
        let writing = self.logs.note(name(peer).into(), value, expected);
        let written = timeout(WRITE_MAX, writing).await;
        let written = written.unwrap_or(Err(NoteError::Logs(LogError::Unknown)))?;
        if let Some(claim) = claim {
            let mut known = self.claims.locked();
            known.hold(peer, claim.clone(), written);
            if let Some(held) = known.claims.get_mut(&peer) {
                // It has what this member knew.
                held.learnt = true;
            }
        }
        Ok(())
    }

    /// Reads what has changed, and takes over what fell free; where there is much to look through,
    /// not on an async thread.
    async fn follow_claims(self: &Arc<Self>) -> io::Result<()> {
        let what = self.what_matters()?;
        let same = |it: &Looked| it.what == what && it.at.elapsed() < LOOK_EVERY;
        if self.claims.locked().looked.as_ref().is_some_and(same) {
            return Ok(());
        }
        let shared = Arc::clone(self);
        let looking = tokio::task::spawn_blocking(move || shared.look_at_claims());
        looking.await.map_err(io::Error::other).flatten()
    }

    fn what_matters(&self) -> io::Result<What> {
        let notes = self.logs.notes_changed()?;
        let open = self.open_topics();
        let servers: BTreeSet<PeerId> = {
            let known = self.claims.locked();
            let servers = known.claims.values().filter_map(|it| it.claim.server);
            servers.collect()
        };
        let gone = servers.into_iter().filter(|it| !self.reaches(*it));
        let gone = gone.collect();
        Ok(What { notes, open, gone })
    }

    fn look_at_claims(self: &Arc<Self>) -> io::Result<()> {
        let changed = self.logs.notes_changed()?;
        if changed != self.claims.locked().through {
            self.look_at_doors()?;
            let notes = self.logs.notes(PREFIX)?;
            let mut known = self.claims.locked();
            let mut former = std::mem::take(&mut known.claims);
            for note in notes {
                let peer = note.name.get(PREFIX.len()..);
                let peer = peer.and_then(|it| Some(PeerId::from_bytes(it.try_into().ok()?)));
                let Some((peer, claim)) = peer.zip(decode(&note.value)) else {
                    continue;
                };
                match former.remove(&peer) {
                    Some(held) if held.version == note.version => {
                        known.claims.insert(peer, held);
                    }
                    _ => known.hold(peer, claim, note.version),
                }
            }
            known.through = changed;
        }
        let (at, what) = (Instant::now(), self.what_matters()?);
        let here = Some(self.here());
        let (mut free, mut ours) = (Vec::new(), Vec::new());
        let former = {
            let mut known = self.claims.locked();
            for (peer, held) in &known.claims {
                let server = held.claim.server;
                if server != here && server.is_some_and(|it| !what.gone.contains(&it)) {
                    continue;
                }
                let to = if server == here { &mut ours } else { &mut free };
                to.push((*peer, held.clone()));
            }
            known.looked = Some(Looked { at, what });
            let now = free.iter().map(|it| it.0).collect();
            std::mem::replace(&mut known.free, now)
        };
        for (peer, held) in ours.iter().chain(&free) {
            self.learn_claimed(*peer, held);
        }
        for (peer, held) in &ours {
            self.serve_claimed(*peer, held);
        }
        let all = ours.iter().chain(&free).map(|it| it.0);
        let gone = all.filter(|it| self.peers.is_given_up(*it) && !self.peers.is_looked_for(*it));
        let gone = gone.collect();
        for (peer, held) in free {
            let fell = !former.contains(&peer);
            if fell || !self.to_keep(peer, &held).is_empty() {
                self.take_over(peer, held, fell);
            }
        }
        self.abandon_all(gone);
        Ok(())
    }

    /// Looks for a peer that nobody serves; `fell` if somebody did until now.
    fn take_over(self: &Arc<Self>, peer: PeerId, held: Held, fell: bool) {
        // Dialled first: whoever the peer answers claims it, and one of several does.
        let shared = Arc::clone(self);
        self.run(async move {
            sleep(JITTER.mul_f64(rand::random_range(0.0..=1.0))).await;
            if shared.is_served_elsewhere(peer) {
                return;
            }
            shared.serve_claimed(peer, &held);
            // A task that dials it already, or will, looks again only after a while. Somebody has
            // reached it until now, unless it was given back.
            let reached = held.claim.server.is_some();
            for (topic, _) in held.claim.topics.iter().filter(|_| fell) {
                shared.peers.look(peer, *topic, |it| {
                    if reached {
                        it.tries = 0;
                    }
                    it.moved.notify_one();
                });
            }
        });
    }

    /// Forgets peers that were given up in all topics, where that was not done then.
    fn abandon_all(self: &Arc<Self>, gone: Vec<PeerId>) {
        if gone.is_empty() {
            return;
        }
        let shared = Arc::clone(self);
        self.run(async move {
            for peer in gone {
                shared.abandon(peer).await;
            }
        });
    }

    /// Once for each change, or what was learnt since would give way to it.
    fn learn_claimed(&self, peer: PeerId, held: &Held) {
        if held.learnt || !self.learn(&held.claim.addr, Rank::Met) {
            return;
        }
        let mut known = self.claims.locked();
        let now = known.claims.get_mut(&peer);
        if let Some(now) = now.filter(|it| it.version == held.version) {
            now.learnt = true;
        }
    }

    fn serve_claimed(self: &Arc<Self>, peer: PeerId, held: &Held) {
        for topic in self.to_keep(peer, held) {
            self.keep(peer, topic);
        }
    }

    /// The topics in which a peer is to be looked for, and is not: not those in which it did not
    /// answer for long, unless somebody has found it since.
    fn to_keep(&self, peer: PeerId, held: &Held) -> Vec<Topic> {
        let (claim, version) = (&held.claim, held.version);
        let is_over = |topic| {
            let over = self.peers.look(peer, topic, |it| {
                let same = |at: Option<NoteVersion>| at == Some(version) || claim.server.is_none();
                it.kept || it.given_up.is_some_and(same)
            });
            over.unwrap_or(false)
        };
        let is_open = |topic, line| self.feed(topic).is_some_and(|it| it.line == line);
        let topics = claim.topics.iter().filter(|(topic, line)| {
            let room = || self.kept.available_permits() > 0;
            !is_over(*topic) && is_open(*topic, *line) && self.may_keep(peer, *topic) && room()
        });
        topics.map(|it| it.0).collect()
    }
}

impl Known {
    /// Takes in a claim. Where it is another one than before, its addresses may be too.
    fn hold(&mut self, peer: PeerId, claim: Claim, version: NoteVersion) {
        let learnt = self.claims.get(&peer);
        let learnt = learnt.is_some_and(|it| it.version == version && it.learnt);
        let claim = Arc::new(claim);
        let held = Held {
            claim,
            version,
            learnt,
        };
        self.claims.insert(peer, held);
    }
}

/// Follows the claims and the bonds to those who hold them.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut committed = shared.logs.committed();
    let mut bonds = shared.logs.group().bonds();
    let mut heard = shared.logs.group().watch_peers();
    let mut serving = shared.serving.subscribe();
    loop {
        if !*serving.borrow_and_update() {
            if serving.wait_for(|it| *it).await.is_err() {
                return;
            }
            shared.doors.forgive();
        }
        if let Err(error) = shared.follow_claims().await {
            tracing::warn!(%error, "which member serves whom cannot be read");
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            _ = bonds.changed(), if !bonds.is_closed() => continue,
        }
        let doors = shared.doors.next_silence().map(|it| it + PAUSE);
        let unheard = shared.logs.group().next_unheard();
        let silent = doors.into_iter().chain(unheard).min();
        let silent = silent.unwrap_or(shared.patience.silence);
        tokio::select! {
            changed = committed.changed() => if changed.is_err() {
                return;
            },
            _ = bonds.changed() => {}
            changed = heard.changed() => if changed.is_err() {
                return;
            },
            () = sleep(silent) => {}
        }
    }
}

fn name(peer: PeerId) -> Vec<u8> {
    [PREFIX, peer.as_bytes()].concat()
}

fn decode(value: &Bytes) -> Option<Claim> {
    match postcard::take_from_bytes::<Claim>(value) {
        Ok((claim, [])) if claim.topics.len() <= TOPICS_MAX => Some(claim),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let peer = PeerId::from_bytes([1; 32]);
        let claim = Claim {
            server: Some(PeerId::from_bytes([2; 32])),
            addr: PeerAddr::new(peer, [([127, 0, 0, 1], 4000).into()]),
            topics: vec![(Topic::named("cats"), Line::V07)],
        };
        let bytes = Bytes::from(postcard::to_stdvec(&claim).expect("it is encodable"));
        assert_eq!(decode(&bytes), Some(claim));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes.slice(..cut)), None);
        }
    }

    #[test]
    fn fuzzed_claims() {
        use crate::fuzz::{Fuzz, Shape, bounded_by_serde};
        let claim = Claim {
            server: None,
            addr: PeerAddr::new(PeerId::from_bytes([1; 32]), [([127, 0, 0, 1], 4000).into()]),
            topics: vec![
                (Topic::named("cats"), Line::V07),
                (Topic::named("dogs"), Line::V06),
            ],
        };
        let bytes = postcard::to_stdvec(&claim).expect("it is encodable");
        Fuzz::new("claims", Shape::Postcard, [bytes]).run(|bytes| {
            let value = Bytes::copy_from_slice(bytes);
            if let Some(it) = bounded_by_serde(bytes, || decode(&value)) {
                let again = postcard::to_stdvec(&it).expect("it is encodable");
                assert_eq!(decode(&again.into()), Some(it));
            }
        });
    }
}
