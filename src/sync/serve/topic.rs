//! One open topic: its overlay, and what is new in it.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    sync::{broadcast, mpsc},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    identity::PeerId,
    log_store::{Line, Operation, Topic},
    sync::{outsiders::TopicMode, wire::Neighbour},
};

/// Operations that a live session may be behind before it goes back to chunks.
const NEWS_MAX: usize = 256;
/// Invitations that wait for the overlay; further ones come again with the next discovery.
const INVITED_MAX: usize = 64;
/// After the overlay or the feed of a topic has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Something new in a topic.
#[derive(Clone, Debug)]
pub(super) struct News {
    pub(super) operation: Operation,
}

/// A running topic.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) line: Line,
    pub(super) over: CancellationToken,
    news: broadcast::Sender<News>,
    invited: mpsc::Sender<PeerId>,
}

impl Feed {
    /// What is new from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Has a peer whose address was learnt invited into the overlay.
    pub(super) fn invite(&self, peer: PeerId) {
        // A full queue means that many are invited already.
        let _ = self.invited.try_send(peer);
    }
}

/// Begins to serve a topic.
pub(super) fn open(shared: &Arc<Shared>, topic: Topic, line: Line) -> Feed {
    let (news, _) = broadcast::channel(NEWS_MAX);
    let (invited, invitations) = mpsc::channel(INVITED_MAX);
    let feed = Feed {
        line,
        over: shared.stop.child_token(),
        news,
        invited,
    };
    let over = feed.over.clone();
    let overlay = gossip(Arc::clone(shared), topic, invitations);
    shared
        .tasks
        .spawn(over.clone().run_until_cancelled_owned(overlay));
    let telling = tell(Arc::clone(shared), topic, feed.news.clone());
    shared.tasks.spawn(over.run_until_cancelled_owned(telling));
    feed
}

/// Meets whoever is a neighbour in the topic's overlay. Where peers only catch up it is left.
async fn gossip(shared: Arc<Shared>, topic: Topic, mut invitations: mpsc::Receiver<PeerId>) {
    let mut changes = shared.admissions.changes();
    loop {
        while shared.admissions.mode(topic) == TopicMode::CatchUp {
            if changes.changed().await.is_err() {
                return;
            }
        }
        let joined = shared.wire.join(*topic.derived().as_bytes()).await;
        let mut overlay = match joined {
            Ok(overlay) => overlay,
            Err(error) => {
                tracing::debug!(%topic, %error, "the overlay of a topic is not to be joined");
                sleep(PAUSE).await;
                continue;
            }
        };
        loop {
            tokio::select! {
                change = overlay.next() => match change {
                    Some(Neighbour::Up(peer)) => {
                        tracing::debug!(%topic, peer = %peer.short(), "a neighbour");
                        shared.keep(peer, topic);
                    }
                    // Its sessions are closed by its side; they are dialled again.
                    Some(Neighbour::Down(_)) => {}
                    // Nothing is said in this overlay; it is read so that nobody waits for us.
                    Some(Neighbour::Said(_)) => {}
                    None => break,
                },
                Some(peer) = invitations.recv() => {
                    if overlay.invite(&[peer]).await.is_err() {
                        break;
                    }
                }
                Ok(()) = changes.changed() => {
                    if shared.admissions.mode(topic) == TopicMode::CatchUp {
                        break;
                    }
                }
            }
        }
        drop(overlay);
        sleep(PAUSE).await;
    }
}

/// Tells live sessions what the group has committed.
async fn tell(shared: Arc<Shared>, topic: Topic, news: broadcast::Sender<News>) {
    loop {
        let logs = shared.logs.clone();
        let Ok(length) = logs.length(topic) else {
            sleep(PAUSE).await;
            continue;
        };
        let mut commits = pin!(logs.subscribe(topic, length));
        while let Some(Ok((_, operation))) = commits.next().await {
            // Nobody is live: then nobody misses it.
            let _ = news.send(News { operation });
        }
        sleep(PAUSE).await;
    }
}

/// What is new; none once some of it was missed. Nothing comes where there is no feed.
pub(super) async fn next(live: Option<&mut broadcast::Receiver<News>>) -> Option<News> {
    let Some(live) = live else {
        return std::future::pending().await;
    };
    live.recv().await.ok()
}
