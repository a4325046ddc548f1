//! A session with a peer that has everything: it hears what is new, as it is committed.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{lately::Judged, peers::Peers, topic::News},
    Agreed, Running, Step,
};
use crate::{identity::PeerId, log_store::Topic, sync::protocol::SyncError};

/// Live operations that a peer is sent before it is asked what it holds: a stock node that is told
/// too much at once loses some and, on line 0.6, takes nothing any more.
const LIVE_MAX: u32 = 32;

impl Running<'_> {
    /// Whether the peer is to hear what is new.
    pub(super) fn listens(&self) -> bool {
        let live = self.step == Step::Live && self.lives < LIVE_MAX;
        live && self.agreed.admitted.rights.read && self.session.wants_live()
    }

    pub(super) fn went_well(&mut self, note: fn(&Peers, PeerId, Topic) -> bool) {
        let Agreed { peer, topic, .. } = self.agreed;
        if note(&self.shared.peers, peer, topic) {
            self.shared.registers(peer, None);
        }
    }

    /// Sends what is new, unless the peer has it.
    pub(super) fn tell(&mut self, news: &News) -> Result<(), SyncError> {
        let operation = &news.operation;
        let ours = self.ours.get(&operation.author());
        let known = ours.and_then(|it| it.get(&operation.log_id()));
        if known.is_some_and(|it| *it >= operation.seq()) {
            return Ok(());
        }
        let peer = self.agreed.peer;
        if self.shared.is_served_elsewhere(peer) {
            // Taken over while this member was not heard: two that serve a peer confuse it.
            self.ask_within(Duration::ZERO);
            self.lives = LIVE_MAX;
            return Ok(());
        }
        match self.passed_on.judge(peer, operation, &self.came_from) {
            Judged::Send => {}
            Judged::Skip { asks } => {
                self.ask_within(asks.unwrap_or(self.shared.ask_again()));
                return Ok(());
            }
        }
        self.sent += 1;
        self.lives += 1;
        // It may lose what comes too fast, and says so only when it is asked.
        let pause = match self.lives {
            LIVE_MAX => Duration::ZERO,
            _ => self.shared.ask_again(),
        };
        self.ask_within(pause);
        let body = operation.body().cloned();
        Ok(self.session.live(operation.header().clone(), body)?)
    }

    fn ask_within(&mut self, pause: Duration) {
        let then = Instant::now() + pause;
        self.ask_at = Some(self.ask_at.map_or(then, |it| it.min(then)));
    }
}
