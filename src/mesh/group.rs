//! The mesh of one group: its bonds, its roster, and what becomes of a peer that has proven its
//! key.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use im::OrdMap;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Bonds, MeshSpec,
    admission::{Candidate, Redundant, Standing},
    dialer,
    link::{Link, Seat, code},
    links::{Links, SETTLED},
    roster::{News, Roster, Word},
};
use crate::{
    bond::{
        Bond, Credentials, Home, Introduce, MeshEvent, Message, PEERS_MAX, Refusal, Service,
        TerminationReason, Worker,
    },
    identity::{GroupId, PeerAddr, PeerId},
    metrics::Counters,
};

/// How long a departure may take to be heard.
const DEPARTURE_WAIT: Duration = Duration::from_millis(200);

/// How long the tasks of a closed mesh may take to end.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The mesh of one group.
///
/// # Invariants
/// - At most one live bond a peer is in `bonds`; it is seated on the link that it runs over.
/// - Bonds come into being only under `forming`, and only while `stop` is not set.
pub(super) struct Group {
    me: Weak<Self>,
    links: Links,
    credentials: Credentials,
    service: Arc<dyn Service>,
    bonds: watch::Sender<OrdMap<PeerId, Bond>>,
    roster: Mutex<Roster>,
    refusals: watch::Sender<Option<(PeerId, Refusal)>>,
    forming: Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Group {
    pub(super) fn new(links: Links, spec: MeshSpec) -> Arc<Self> {
        let MeshSpec {
            key,
            group,
            service,
            known: _,
        } = spec;
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            credentials: Credentials::new(&key, group),
            service,
            bonds: watch::Sender::default(),
            roster: Mutex::new(Roster::new(links.peer_id())),
            refusals: watch::Sender::new(None),
            forming: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            links,
        })
    }

    pub(super) fn id(&self) -> GroupId {
        self.credentials.group()
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    pub(super) fn counters(&self) -> &Counters {
        self.links.counters()
    }

    pub(super) fn bonds(&self) -> Bonds {
        Bonds::new(self.bonds.subscribe())
    }

    pub(super) fn bond(&self, wanted: impl Fn(&Bond) -> bool) -> Option<Bond> {
        let bonds = self.bonds.borrow();
        bonds
            .values()
            .find(|bond| !bond.is_terminated() && wanted(bond))
            .cloned()
    }

    pub(super) fn bond_with(&self, peer: PeerId) -> Option<Bond> {
        self.bonds
            .borrow()
            .get(&peer)
            .filter(|bond| !bond.is_terminated())
            .cloned()
    }

    pub(super) fn refusals(&self) -> watch::Receiver<Option<(PeerId, Refusal)>> {
        self.refusals.subscribe()
    }

    pub(super) fn note_refusal(&self, peer: PeerId, refusal: Refusal) {
        self.refusals.send_replace(Some((peer, refusal)));
    }

    // Who is known.

    pub(super) fn learn(&self, addr: PeerAddr) {
        self.hear(addr, Word::Wanted);
    }

    pub(super) fn forget(&self, peer: PeerId) {
        if self.known().forget(peer) {
            self.service.roster_changed(self.roster());
        }
    }

    pub(super) fn roster(&self) -> Vec<PeerAddr> {
        let mut roster = vec![self.links.addr()];
        roster.extend(self.known().peers().cloned());
        roster
    }

    pub(super) fn addr_of(&self, peer: PeerId) -> Option<PeerAddr> {
        self.known().addr(peer)
    }

    pub(super) fn dial_errors(&self) -> Vec<(PeerAddr, String)> {
        let bonds = self.bonds.borrow().clone();
        let unbonded = |peer: &PeerId| bonds.get(peer).is_none_or(Bond::is_terminated);
        let known = self.known();
        let errors = known.errors().filter(|(addr, _)| unbonded(&addr.peer));
        errors
            .map(|(addr, error)| (addr.clone(), error.clone()))
            .collect()
    }

    pub(super) fn note_error(&self, peer: PeerId, error: Option<String>) {
        self.known().note_error(peer, error);
    }

    fn hear(&self, addr: PeerAddr, word: Word) {
        if self.stop.is_cancelled() {
            return;
        }
        let peer = addr.peer;
        let news = self.known().hear(addr, word);
        match news {
            News::Stale => return,
            News::Moved => {}
            News::New(wanted) => {
                let Some(me) = self.me.upgrade() else { return };
                let (over, stop) = (wanted.over.clone(), self.stop.clone());
                self.tasks.spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = over.cancelled() => {}
                        () = dialer::stay_bonded(&me, peer, &wanted) => {}
                    }
                });
            }
        }
        self.service.roster_changed(self.roster());
    }

    // From the proof to the bond.

    pub(super) fn introduce(&self) -> Introduce {
        Introduce {
            member: self.service.introduction(),
            boot: self.links.boot(),
            addr: self.links.addr(),
            peers: self.known().peers().take(PEERS_MAX).cloned().collect(),
        }
    }

    pub(super) fn standing(&self, peer: PeerId) -> Standing {
        Standing {
            link: self.links.kept(peer),
            bond: self.bond_with(peer).map(|bond| *bond.id().as_bytes()),
        }
    }

    /// Forms the bond or finds it redundant, as the lower peer id; the peer is told by the bond's
    /// first message.
    pub(super) fn decide(
        &self,
        link: &Arc<Link>,
        standing: Standing,
        candidate: Candidate,
    ) -> Result<Bond, (Redundant, crate::net::BondStream)> {
        let forming = self.forming();
        let Candidate { proven, theirs, .. } = &candidate;
        if self.stop.is_cancelled() {
            return Err((Redundant::Bond, candidate.stream));
        }
        if let Err(redundant) = self.links.claim(link, theirs.boot, standing.link) {
            return Err((redundant, candidate.stream));
        }
        if let Some(old) = self.bond_with(proven.peer)
            && old.member() == proven.member
            && old.boot() == theirs.boot
            && Arc::ptr_eq(old.link(), &link.connection)
            && (standing.bond == Some(*old.id().as_bytes()) || old.age() < SETTLED)
        {
            return Err((Redundant::Bond, candidate.stream));
        }
        Ok(self.form(forming, link, candidate, Some(Message::Accept)))
    }

    /// Forms the bond, as the higher peer id, since the lower one has decided so.
    pub(super) fn follow(&self, link: &Arc<Link>, candidate: Candidate) -> Option<Bond> {
        let forming = self.forming();
        if self.stop.is_cancelled() {
            return None;
        }
        self.links.keep(link);
        Some(self.form(forming, link, candidate, None))
    }

    fn form(
        &self,
        forming: MutexGuard<'_, ()>,
        link: &Arc<Link>,
        candidate: Candidate,
        first: Option<Message>,
    ) -> Bond {
        let Candidate {
            proven,
            theirs,
            stream,
        } = candidate;
        let mut worker = Worker::new(
            proven,
            theirs.boot,
            Arc::clone(&link.connection),
            stream,
            Arc::clone(&self.service),
            self.links.timing(),
            self.tasks.clone(),
        );
        if let Some(first) = first.and_then(|first| first.encode().ok()) {
            worker.first(first);
        }
        let bond = worker.bond().clone();
        link.seat(Seat {
            bond: bond.clone(),
            service: Arc::clone(&self.service),
        });
        let mut old = None;
        self.bonds
            .send_modify(|bonds| old = bonds.insert(proven.peer, bond.clone()));
        self.counters().bonds_formed.add(1);
        self.service.event(MeshEvent::Formed(bond.clone()));
        if let Some(home) = self.me.upgrade() {
            worker.start(home);
        }
        drop(forming);
        if let Some(old) = old {
            old.end(TerminationReason::Replaced);
        }
        tracing::debug!(peer = %proven.peer.short(), bond = ?bond.id(), "bonded");
        self.tell_others(proven.peer, &Message::BondFormed(theirs.addr.clone()));
        self.hear(theirs.addr, Word::Own);
        for addr in theirs.peers {
            self.hear(addr, Word::Rumor);
        }
        bond
    }

    // What all bonds are told.

    /// Our addresses have changed.
    pub(super) fn announce(&self) {
        self.tell_others(
            self.links.peer_id(),
            &Message::PeerEntryUpdate(self.links.addr()),
        );
        self.service.roster_changed(self.roster());
    }

    fn tell_others(&self, except: PeerId, message: &Message) {
        let Some(frame) = encoded(message) else {
            return;
        };
        let bonds = self.bonds.borrow().clone();
        for (_, bond) in bonds.iter().filter(|(peer, _)| **peer != except) {
            bond.tell(frame.clone());
        }
    }

    pub(super) async fn depart(&self) {
        let Some(frame) = encoded(&Message::Departure) else {
            return;
        };
        let bonds = self.bonds.borrow().clone();
        let heard = bonds.values().map(|bond| bond.depart(frame.clone()));
        let _ = tokio::time::timeout(DEPARTURE_WAIT, futures_util::future::join_all(heard)).await;
    }

    pub(super) async fn close(&self, reason: &str) {
        {
            let _forming = self.forming();
            self.stop.cancel();
        }
        self.links.close_group(self);
        let bonds = self.bonds.borrow().clone();
        for bond in bonds.values() {
            bond.close(reason);
        }
        self.tasks.close();
        if tokio::time::timeout(CLOSE_WAIT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tasks.len(), group = ?self.id(), "tasks do not end");
        }
    }

    /// The group's tasks that are alive, those of its bonds among them.
    #[cfg(test)]
    pub(super) fn tasks(&self) -> usize {
        self.tasks.len()
    }

    fn known(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forming(&self) -> MutexGuard<'_, ()> {
        self.forming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home for Group {
    fn moved(&self, _: &Bond, addr: PeerAddr) {
        self.hear(addr, Word::Own);
    }

    fn rumor(&self, addr: PeerAddr) {
        self.hear(addr, Word::Rumor);
    }

    fn ended(&self, bond: &Bond, reason: &TerminationReason) {
        let peer = bond.peer();
        for link in self.links.all() {
            if !Arc::ptr_eq(&link.connection, bond.link()) {
                continue;
            }
            link.unseat(bond.id());
            // Nobody else hears the peer on this connection either: a new one is better.
            if *reason == TerminationReason::Silence && link.bonds() == 0 {
                link.connection
                    .close(code::IDLE, "no heartbeat was answered");
            }
        }
        {
            let _forming = self.forming();
            self.bonds.send_if_modified(|bonds| {
                let ours = bonds.get(&peer).is_some_and(|held| held.id() == bond.id());
                if ours {
                    bonds.remove(&peer);
                }
                ours
            });
        }
        self.counters().bonds_ended.add(1);
        tracing::debug!(peer = %peer.short(), group = ?self.id(), %reason, "a bond is over");
        self.service
            .event(MeshEvent::Ended(bond.clone(), reason.clone()));
    }
}

fn encoded(message: &Message) -> Option<Bytes> {
    message
        .encode()
        .inspect_err(|error| tracing::error!(%error, "a message of our own is beyond its limits"))
        .ok()
}
