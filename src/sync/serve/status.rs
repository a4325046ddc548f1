//! What a member can say about the peers that it serves.

use std::{collections::BTreeMap, time::SystemTime};

use super::{Shared, claims::Claimed};
use crate::{
    identity::PeerId,
    log_store::{Line, Topic},
    sync::outsiders::Rights,
};

/// How a member serves outsiders, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncStatus {
    /// Whether the door is open. If not, nothing listens.
    pub open: bool,
    /// Whether it serves: only while it is open, and reaches a quorum.
    pub serving: bool,
    /// Sessions under way, with all peers together.
    pub sessions: usize,
    /// By which transports it is reached, and the addresses of each.
    pub transports: BTreeMap<String, Vec<String>>,
    /// Every peer that was met, here or at another member, in each topic.
    pub peers: Vec<PeerStatus>,
}

/// One peer in one topic. What is counted is what this member did since it began to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer.
    pub peer: PeerId,
    /// The topic.
    pub topic: Topic,
    /// What it may do there. One that may not push is told that its own logs are held as far as it
    /// has them itself, or it would send them for ever.
    pub rights: Rights,
    /// The line in which it speaks; none before its first session.
    pub line: Option<Line>,
    /// The node that serves it, which may be another member's; none while nobody does.
    pub server: Option<PeerId>,
    /// What goes on between it and us.
    pub state: PeerState,
    /// Operations that it lacked when it last said what it holds; none before it did.
    pub missing: Option<u64>,
    /// Logs that it does not take, and is not sent for some minutes: most likely it holds another
    /// branch of them, for their author has forked them. What it lacks of them is not in `missing`.
    pub set_aside: u64,
    /// How many operations it is sent at once while it catches up; none before its first session.
    pub chunk: Option<u64>,
    /// Sessions that have ended.
    pub sessions: u64,
    /// Operations sent to it.
    pub sent: u64,
    /// Of those, the ones that it had been sent before. Where it was taken over, what the former
    /// member may have sent last is among them, a chunk at the most: so many, or fewer.
    pub resent: u64,
    /// Operations that came from it.
    pub received: u64,
    /// Of those, the ones that were new, and are committed now.
    pub appended: u64,
    /// Of those, the ones that the group will not take.
    pub refused: u64,
    /// Of those, the ones that were not taken for now, beyond a quota or after a gap: it is asked
    /// for them again.
    pub put_off: u64,
    /// When a session with it last went well.
    pub last_success: Option<SystemTime>,
    /// What went wrong last since then, in words.
    pub last_error: Option<String>,
}

/// What goes on between a peer and us in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// No session is under way.
    Waiting,
    /// Another member serves it.
    Elsewhere,
    /// A session brings it what it lacks.
    CatchingUp,
    /// It has everything, and is told what is new.
    Live,
}

impl PeerStatus {
    /// Whether it had everything that the group held when it last said what it holds.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == Some(0)
    }
}

impl Shared {
    /// Adds what the group knows of peers that other members serve.
    fn served_elsewhere(&self, peers: &mut Vec<PeerStatus>) {
        let told = peers.iter().enumerate();
        let mut told: BTreeMap<_, _> = told.map(|(at, it)| ((it.peer, it.topic), at)).collect();
        for claimed in self.claims.all() {
            let Claimed { peer, server, .. } = claimed;
            let elsewhere = self.is_served_elsewhere(peer);
            for (topic, line) in claimed.topics {
                let known = told.get(&(peer, topic));
                if let Some(known) = known.and_then(|at| peers.get_mut(*at)) {
                    if known.state == PeerState::Waiting && elsewhere {
                        known.state = PeerState::Elsewhere;
                    }
                    continue;
                }
                told.insert((peer, topic), peers.len());
                peers.push(PeerStatus {
                    peer,
                    topic,
                    rights: self.admissions.verdict(peer, topic).rights,
                    line: Some(line),
                    server,
                    state: match elsewhere {
                        true => PeerState::Elsewhere,
                        false => PeerState::Waiting,
                    },
                    missing: None,
                    set_aside: 0,
                    chunk: None,
                    sessions: 0,
                    sent: 0,
                    resent: 0,
                    received: 0,
                    appended: 0,
                    refused: 0,
                    put_off: 0,
                    last_success: None,
                    last_error: None,
                });
            }
        }
    }

    pub(super) fn status(&self) -> SyncStatus {
        let mut peers = Vec::new();
        self.peers.each(|peer, topic, served| {
            let told = &served.told;
            peers.push(PeerStatus {
                peer,
                topic,
                rights: self.admissions.verdict(peer, topic).rights,
                line: told.line,
                server: self.claims.server(peer),
                state: match (served.is_taken(), told.live) {
                    (true, true) => PeerState::Live,
                    (true, false) => PeerState::CatchingUp,
                    (false, _) => PeerState::Waiting,
                },
                missing: told.missing,
                set_aside: told.set_aside,
                chunk: None,
                sessions: told.sessions,
                sent: told.sent,
                resent: told.resent,
                received: told.received,
                appended: told.appended,
                refused: told.refused,
                put_off: told.put_off,
                last_success: told.last_success,
                last_error: told.last_error.clone(),
            });
        });
        self.served_elsewhere(&mut peers);
        for peer in &mut peers {
            peer.chunk = peer.line.and_then(|line| self.peers.chunk(peer.peer, line));
        }
        SyncStatus {
            open: !self.stop.is_cancelled(),
            serving: !self.stop.is_cancelled() && *self.serving.borrow(),
            sessions: self.seats.count(),
            transports: self.transports(),
            peers,
        }
    }
}
