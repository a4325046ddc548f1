//! Syncing with one peer once, on demand.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Shared, Sync, discover, keeper, peers::Rank, session::End};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Topic},
};

/// Before another look at a session that is under way already.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Before what was put off is asked for again.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);
/// A peer that takes and gives nothing for this long, and lacks something, is given up.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);
/// Sessions in a row that may fail.
const FAILED_MAX: u32 = 3;

/// What was exchanged with a peer in a topic: afterwards it has everything that the group held, and
/// the group everything of it that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Synced {
    /// The topic.
    pub topic: Topic,
    /// Operations sent to it.
    pub sent: u64,
    /// Operations that came from it.
    pub received: u64,
    /// Of those, the ones that were new, and are committed now.
    pub appended: u64,
    /// Of those, the ones that the group will not take.
    pub refused: u64,
}

/// Nothing was exchanged with a peer, or not everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncWithError {
    /// The door is closed, or reaches no quorum.
    #[error("this member serves nobody now: open its door, and see that it reaches a quorum")]
    NotServing,
    /// No open topic admits the peer.
    #[error("no open topic admits the peer: approve it, or list it")]
    NotAdmitted,
    /// It is there, and has none of the topics that admit it.
    #[error("the peer has none of the topics that admit it")]
    NothingInCommon,
    /// Another member serves it: ask there.
    #[error("another member, {server}, serves the peer: ask there")]
    Elsewhere {
        /// The node of that member.
        server: PeerId,
    },
    /// It could not be reached, or a session with it failed.
    #[error("the peer could not be synced with: {why}")]
    Failed {
        /// In words.
        why: String,
    },
}

impl Sync {
    /// Syncs with a peer now, in every open topic that admits it and that it has, and says what was
    /// exchanged. A live session with it is asked what is missing, and begun anew. Where the peer
    /// has begun that session itself, the last of what it sent may still be on its way to its
    /// commit.
    ///
    /// It ends by itself when the peer cannot be reached, or stands still for a minute. Dropping
    /// the future ends it at once; what was exchanged by then stays.
    ///
    /// ```
    /// use quorate::{PeerAddr, sync::{Sync, SyncWithError}};
    ///
    /// async fn sync_once(door: &Sync, app: PeerAddr) -> Result<(), SyncWithError> {
    ///     match door.sync_with(app.clone()).await {
    ///         Ok(topics) => for it in topics {
    ///             println!("{}: {} sent, {} new from it", it.topic, it.sent, it.appended);
    ///         },
    ///         Err(SyncWithError::Elsewhere { server }) => println!("{server} serves it"),
    ///         Err(error) => return Err(error),
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`SyncWithError`]. Some may have been exchanged.
    pub async fn sync_with(&self, addr: PeerAddr) -> Result<Vec<Synced>, SyncWithError> {
        let shared = self.shared();
        let stop = shared.stop.clone();
        let syncing = shared.sync_with(addr);
        let synced = stop.run_until_cancelled(syncing).await;
        synced.unwrap_or(Err(SyncWithError::NotServing))
    }
}

/// What was counted of a peer in a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    sent: u64,
    received: u64,
    appended: u64,
    refused: u64,
    put_off: u64,
    missing: Option<u64>,
    completed: u64,
}

impl Shared {
    async fn sync_with(self: &Arc<Self>, addr: PeerAddr) -> Result<Vec<Synced>, SyncWithError> {
        if self.stop.is_cancelled() || !*self.serving.borrow() {
            return Err(SyncWithError::NotServing);
        }
        // What was opened and decided before this was called counts.
        if !self.confirm_admissions().await {
            return Err(SyncWithError::NotServing);
        }
        self.follow_topics().await;
        let peer = addr.peer;
        self.learn(&addr, Rank::Met);
        let mut topics = self.topics_told(peer);
        topics.retain(|(topic, _)| self.admissions.verdict(peer, *topic).rights.any());
        if topics.is_empty() {
            return Err(SyncWithError::NotAdmitted);
        }
        let addr = self.peers.addr(peer);
        // A p2panda node answers in its own line only.
        let (mut common, mut unmet) = (None, None);
        for line in Line::ALL {
            if topics.iter().any(|it| it.1 == line) {
                match discover::common(self, &addr, line).await {
                    Ok(found) => common.get_or_insert_with(Vec::new).extend(found),
                    Err(error) => unmet = Some(error),
                }
            }
        }
        let common = match (common, unmet) {
            (None, Some(error)) => return Err(failed(error)),
            (common, _) => common.unwrap_or_default(),
        };
        topics.retain(|(topic, _)| common.contains(topic));
        if topics.is_empty() {
            return Err(SyncWithError::NothingInCommon);
        }
        let mut synced = Vec::new();
        for (topic, _) in topics {
            synced.push(self.sync_topic_with(peer, topic).await?);
        }
        Ok(synced)
    }

    async fn sync_topic_with(
        self: &Arc<Self>,
        peer: PeerId,
        topic: Topic,
    ) -> Result<Synced, SyncWithError> {
        let before = self.counts(peer, topic);
        let (mut seen, mut moved) = (before, Instant::now());
        let (mut failures, mut asked) = (0, before.put_off);
        // A session that is under way may have asked what is missing before this was asked for.
        let under_way = self.peers.is_taken(peer, topic) && !self.peers.is_live(peer, topic);
        let mut wanted = before.completed + 1 + u64::from(under_way);
        loop {
            let elsewhere = self.claims.server(peer);
            if let Some(server) = elsewhere.filter(|_| self.is_served_elsewhere(peer)) {
                return Err(SyncWithError::Elsewhere { server });
            }
            let now = self.counts(peer, topic);
            if now != seen {
                (seen, moved) = (now, Instant::now());
            } else if moved.elapsed() > STANDSTILL_MAX {
                return Err(failed("it takes nothing, and lacks something"));
            }
            if now.completed >= wanted {
                if now.put_off == asked {
                    return Ok(now.since(before, topic));
                }
                // What came beyond a quota is asked for again.
                (wanted, asked) = (now.completed + 1, now.put_off);
                sleep(AGAIN_PAUSE).await;
            }
            if self.peers.is_taken(peer, topic) {
                if self.peers.is_live(peer, topic) {
                    self.admissions.end(peer, topic);
                }
                sleep(BUSY_PAUSE).await;
                continue;
            }
            match keeper::serve_once(self, peer, topic, true).await {
                Ok(End::Sent(pause) | End::Look(pause)) => sleep(pause.max(BUSY_PAUSE)).await,
                Ok(End::Complete | End::Surplus | End::Ask | End::Closed) => {
                    sleep(BUSY_PAUSE).await
                }
                Ok(End::Stopped) => return Err(failed("the session was stopped here")),
                Err(error) => {
                    failures += 1;
                    if failures == FAILED_MAX {
                        return Err(failed(error));
                    }
                    sleep(AGAIN_PAUSE).await;
                }
            }
        }
    }

    fn counts(&self, peer: PeerId, topic: Topic) -> Counts {
        let counts = self.peers.look(peer, topic, |it| Counts {
            sent: it.told.sent,
            received: it.told.received,
            appended: it.told.appended,
            refused: it.told.refused,
            put_off: it.told.put_off,
            missing: it.told.missing,
            completed: it.completed,
        });
        counts.unwrap_or_default()
    }
}

impl Counts {
    fn since(self, before: Self, topic: Topic) -> Synced {
        Synced {
            topic,
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
            appended: self.appended.saturating_sub(before.appended),
            refused: self.refused.saturating_sub(before.refused),
        }
    }
}

fn failed(why: impl std::fmt::Display) -> SyncWithError {
    let why = why.to_string();
    SyncWithError::Failed { why }
}
