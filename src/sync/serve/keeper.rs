//! Keeps a peer served in a topic: dials it, and dials it again for as long as it can be found.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};

use super::{Shared, backoff::Backoff, peers::Rank, session, shake};
use crate::{
    identity::PeerId,
    log_store::Topic,
    sync::{
        outsiders::TopicMode,
        protocol::{Fault, SyncError},
        session::Role,
        wire::Service,
    },
};

/// For a peer to answer.
const DIAL_MAX: Duration = Duration::from_secs(10);
/// Before the next chunk of a peer that was just looked at.
const BREATH: Duration = Duration::from_millis(5);
/// After a peer has ended a live session in good order: it may have left the overlay.
const AFTER_CLOSE: Duration = Duration::from_secs(1);
/// Peers that are dialled at the same time, apart from those below; the others wait.
const FIRST_MAX: usize = 48;
/// Of those that did not answer the last time: most of them are gone, and hold a place for long.
const AGAIN_MAX: usize = 16;
/// Of those that are asked in discovery: whom the program looks for, or the local network tells of.
const MEET_MAX: usize = 64;

/// Tries in a row after which another member may have better luck.
const RELEASE_AFTER: u32 = 4;

/// Room for dials: whoever may well be there never waits behind those who are gone.
pub(super) struct Dials {
    first: Semaphore,
    pub(super) again: Semaphore,
    pub(super) meet: Semaphore,
}

impl Default for Dials {
    fn default() -> Self {
        Self {
            first: Semaphore::new(FIRST_MAX),
            again: Semaphore::new(AGAIN_MAX),
            meet: Semaphore::new(MEET_MAX),
        }
    }
}

/// Dials until the topic is closed or the peer is gone for long. Then it is no longer looked for in
/// this topic, unless the program has asked for it, until it comes in, becomes a neighbour, is met
/// in discovery or is claimed anew; and once that is so in all of its topics it is forgotten.
pub(super) async fn keep(shared: Arc<Shared>, peer: PeerId, topic: Topic, moved: Arc<Notify>) {
    let over = shared.feed(topic).map(|it| it.over);
    let keeping = kept(&shared, peer, topic, &moved);
    let ended = match over {
        Some(over) => over.run_until_cancelled(keeping).await,
        None => None,
    };
    let version = shared.claims.version(peer);
    let ours = shared.peers.look(peer, topic, |it| {
        let ours = Arc::ptr_eq(&it.moved, &moved);
        if ours {
            it.kept = false;
            it.given_up = (ended == Some(true)).then_some(version);
        }
        ours
    });
    // The last of its topics may be one that was closed.
    if (ended.is_some() && ours == Some(true)) || shared.peers.is_given_up(peer) {
        shared.abandon(peer).await;
    }
}

/// True if the peer did not answer for long.
async fn kept(shared: &Arc<Shared>, peer: PeerId, topic: Topic, moved: &Arc<Notify>) -> bool {
    // Whether the table knows of this task still: it forgets peers, and closed topics.
    let is_known = || {
        let known = shared
            .peers
            .look(peer, topic, |it| Arc::ptr_eq(&it.moved, moved));
        known == Some(true)
    };
    let mut serving = shared.serving.subscribe();
    let (mut backoff, mut failures) = (Backoff::default(), 0_u32);
    let tries = || shared.peers.look(peer, topic, |it| it.tries).unwrap_or(0);
    let is_wanted = || shared.peers.is_wanted(peer);
    while (tries() < shared.patience.tries || is_wanted()) && is_known() {
        if serving.wait_for(|it| *it).await.is_err() {
            return false;
        }
        if !shared.admissions.verdict(peer, topic).rights.any() {
            // It is kept again once it is let in.
            return false;
        }
        {
            // Gone before it is dialled: what is told then is for the pause that follows.
            let mut freed = pin!(moved.notified());
            freed.as_mut().enable();
            if shared.peers.is_taken(peer, topic) || shared.is_served_elsewhere(peer) {
                // It came in by itself; its session's end is told.
                let _ = timeout(shared.ask_again(), freed).await;
                continue;
            }
        }
        let before = shared.peers.exchanged(peer, topic);
        let sessions = || shared.peers.look(peer, topic, |it| it.told.sessions);
        let former = sessions();
        let served = serve_once(shared, peer, topic, false).await;
        if sessions() > former && !matches!(served, Ok(session::End::Surplus)) {
            // It was met: that was what there was reason for.
            pin!(moved.notified()).enable();
        }
        let pause = match served {
            Ok(end) => {
                failures = 0;
                shared.peers.look(peer, topic, |it| it.tries = 0);
                if shared.peers.exchanged(peer, topic) > before {
                    // There was something, and there may be more: what was put off, or is new.
                    backoff.reset();
                }
                match end {
                    session::End::Sent(pause) | session::End::Look(pause) => {
                        backoff.reset();
                        pause.max(BREATH)
                    }
                    session::End::Ask | session::End::Stopped | session::End::Surplus => {
                        backoff.pause()
                    }
                    session::End::Complete => shared.ask_again(),
                    session::End::Closed => AFTER_CLOSE.max(backoff.pause()),
                }
            }
            Err(error) => {
                failed(shared, peer, topic, &error);
                failures = failures.saturating_add(1);
                if failures.is_multiple_of(RELEASE_AFTER) {
                    shared.release(peer).await;
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = moved.notified() => {}
        }
    }
    is_known()
}

/// Notes that a peer was not served.
fn failed(shared: &Shared, peer: PeerId, topic: Topic, error: &SyncError) {
    tracing::debug!(peer = %peer.short(), %topic, %error, "not served");
    let (text, theirs) = (error.to_string(), error.fault() == Fault::Remote);
    if theirs {
        shared.registers(peer, Some(text.clone()));
    }
    shared.peers.look(peer, topic, |it| {
        it.told.last_error = Some(text);
        // What fails on this side says nothing of the peer.
        it.tries = it.tries.saturating_add(u32::from(theirs));
    });
}

/// Dials a peer and runs one session; `once` ends it when the peer has everything.
pub(super) async fn serve_once(
    shared: &Arc<Shared>,
    peer: PeerId,
    topic: Topic,
    once: bool,
) -> Result<session::End, SyncError> {
    let feed = shared
        .feed(topic)
        .ok_or_else(|| SyncError::critical("the topic is closed"))?;
    let line = feed.line;
    let over = feed.over.child_token();
    let admitted = shared.admissions.admit(peer, topic, over);
    let admitted = admitted.ok_or_else(|| SyncError::critical("it is not let in any more"))?;
    let (slot, connection) = {
        // It may take a while, in which the peer may come in itself.
        let tries = shared.peers.look(peer, topic, |it| it.tries);
        let dials = match tries {
            Some(1..) if !once => &shared.dials.again,
            _ => &shared.dials.first,
        };
        let _dialling = dials.acquire().await;
        // Taken first: of two sessions that begin at once one serves, and that is settled here.
        let Some(slot) = shared.peers.take(peer, topic) else {
            return Ok(session::End::Surplus);
        };
        let addr = shared.peers.addr(peer);
        let dialled = timeout(DIAL_MAX, shared.wire.dial(&addr, Service::Sync)).await;
        let connection = dialled
            .map_err(|_| SyncError::unexpected("it does not answer"))?
            .map_err(SyncError::unexpected)?;
        (slot, connection)
    };
    // Only now: many that do not answer take nothing from those that do.
    let (_seat, _counted) = shared
        .room(peer, &admitted.over)
        .ok_or_else(|| SyncError::critical(super::FULL))?;
    shake::ask(&connection, line, topic, shared.patience.handshake).await?;
    shared.learn(&connection.remote_addr(), Rank::Met);
    // Only now: a claim is for who has answered.
    let claimed = match once {
        // For one time nobody is to go on with it.
        true => !shared.is_served_elsewhere(peer),
        false => shared.claim(peer, topic, line).await,
    };
    let agreed = session::Agreed {
        peer,
        topic,
        line,
        role: Role::Initiator,
        slot: claimed.then_some(slot),
        feed,
        once: once || admitted.mode == TopicMode::CatchUp,
        admitted,
    };
    session::run(shared, &connection, agreed).await
}
