//! Messages that are signed and not kept: an overlay for each topic in which somebody here has
//! part, beside that of its sessions, under the topic's own name.
//!
//! Stock nodes are met there once discovery has told both that they have such messages in the
//! topic; the other members' doors are invited by us. A message reaches whoever is there at the
//! moment, and nothing is repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{interval, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Shared, Sync, discover};
use crate::{
    identity::{GroupId, PeerId},
    log_store::{Line, Topic},
    sync::{
        discovery::Ephemeral,
        outsiders::TopicMode,
        wire::{Membership, Neighbour},
    },
};

/// Messages that one listener may be behind; then the oldest are lost to it.
const HEARD_MAX: usize = 256;
/// Messages that wait to be sent; then who sends waits.
const SAID_MAX: usize = 64;
/// Invitations that wait; further ones come again with the next discovery.
const INVITED_MAX: usize = 64;
/// Between two invitations of doors that are no neighbours.
const MEET_PAUSE: Duration = Duration::from_secs(2);
/// After an overlay has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Peers that are asked at once whether they have such messages too.
const ASKED_MAX: usize = 64;

/// The topics of this door that have such messages.
#[derive(Default)]
pub(super) struct Channels {
    open: Mutex<BTreeMap<Topic, Weak<Channel>>>,
}

/// One topic's part in them. It is left when the last handle is dropped, or the topic closed.
pub(crate) struct Channel {
    line: Line,
    heard: broadcast::Sender<Ephemeral>,
    say: mpsc::Sender<Bytes>,
    invite: mpsc::Sender<PeerId>,
    neighbours: watch::Receiver<usize>,
    over: CancellationToken,
    _leave: DropGuard,
}

impl Channel {
    pub(crate) fn line(&self) -> Line {
        self.line
    }

    /// What comes from now on. Our own messages do not.
    pub(crate) fn hear(&self) -> broadcast::Receiver<Ephemeral> {
        self.heard.subscribe()
    }

    /// Hands a signed message to the overlay. False once that is left.
    pub(crate) async fn say(&self, message: Bytes) -> bool {
        tokio::select! {
            said = self.say.send(message) => said.is_ok(),
            () = self.over.cancelled() => false,
        }
    }

    /// How many neighbours there are at the moment.
    pub(crate) fn neighbours(&self) -> watch::Receiver<usize> {
        self.neighbours.clone()
    }

    /// Waits until it is left.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Channels {
    pub(super) fn has(&self, topic: Topic) -> bool {
        self.find(topic).is_some()
    }

    /// Has a peer invited that has such messages in the topic.
    pub(super) fn invite(&self, topic: Topic, peer: PeerId) {
        if let Some(channel) = self.find(topic) {
            // A full queue means that many are invited already.
            let _ = channel.invite.try_send(peer);
        }
    }

    fn find(&self, topic: Topic) -> Option<Arc<Channel>> {
        let found = self.locked().get(&topic).and_then(Weak::upgrade);
        found.filter(|it| !it.over.is_cancelled())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Topic, Weak<Channel>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sync {
    /// The group whose door it is.
    pub(crate) fn group(&self) -> GroupId {
        self.shared().logs.group().id()
    }

    /// Takes part in a topic's messages that are not kept; none if the topic is not open here, or
    /// peers only catch up in it.
    pub(crate) fn channel(&self, topic: Topic) -> Option<Arc<Channel>> {
        let shared = self.shared();
        let feed = shared.feed(topic)?;
        if shared.admissions.mode(topic) == TopicMode::CatchUp {
            return None;
        }
        let mut open = shared.channels.locked();
        let former = open.get(&topic).and_then(Weak::upgrade);
        if let Some(channel) = former.filter(|it| !it.over.is_cancelled()) {
            return Some(channel);
        }
        open.retain(|_, it| it.strong_count() > 0);
        let over = feed.over.child_token();
        let (say, said) = mpsc::channel(SAID_MAX);
        let (invite, invited) = mpsc::channel(INVITED_MAX);
        let (near, neighbours) = watch::channel(0);
        let channel = Arc::new(Channel {
            line: feed.line,
            heard: broadcast::channel(HEARD_MAX).0,
            say,
            invite,
            neighbours,
            over: over.clone(),
            _leave: over.clone().drop_guard(),
        });
        open.insert(topic, Arc::downgrade(&channel));
        drop(open);
        let overlay = Overlay {
            shared: Arc::clone(&shared),
            topic,
            heard: channel.heard.clone(),
            said,
            invited,
            near,
            over: over.clone(),
        };
        let running = over.clone().run_until_cancelled_owned(overlay.run());
        shared.tasks.spawn(running);
        let asking = ask(Arc::clone(&shared), feed.line);
        shared.tasks.spawn(over.run_until_cancelled_owned(asking));
        Some(channel)
    }
}

/// Tells known peers of the line at once, which else hear of it at the next interval.
async fn ask(shared: Arc<Shared>, line: Line) {
    for addr in shared.peers.some(ASKED_MAX) {
        if shared.peers.line(addr.peer).is_none_or(|it| it == line) {
            // Who is not there is asked again in time.
            let _ = discover::ask(&shared, &addr, line).await;
        }
    }
}

struct Overlay {
    shared: Arc<Shared>,
    topic: Topic,
    heard: broadcast::Sender<Ephemeral>,
    said: mpsc::Receiver<Bytes>,
    invited: mpsc::Receiver<PeerId>,
    near: watch::Sender<usize>,
    over: CancellationToken,
}

impl Overlay {
    async fn run(mut self) {
        loop {
            match self.shared.wire.join(*self.topic.as_bytes()).await {
                Ok(overlay) => self.take_part(overlay).await,
                Err(error) => {
                    let topic = self.topic;
                    tracing::debug!(%topic, %error, "an overlay is not to be joined");
                }
            }
            self.near.send_replace(0);
            sleep(PAUSE).await;
        }
    }

    /// Until the overlay fails.
    async fn take_part(&mut self, mut overlay: Membership) {
        let mut near = BTreeSet::new();
        let mut meet = interval(MEET_PAUSE);
        let mut changes = self.shared.admissions.changes();
        changes.mark_changed();
        loop {
            let done = tokio::select! {
                change = overlay.next() => match change {
                    Some(Neighbour::Said(message)) => {
                        self.hear(&message);
                        continue;
                    }
                    Some(Neighbour::Up(peer)) => {
                        near.insert(peer);
                        self.near.send_replace(near.len());
                        continue;
                    }
                    Some(Neighbour::Down(peer)) => {
                        near.remove(&peer);
                        self.near.send_replace(near.len());
                        continue;
                    }
                    None => return,
                },
                Ok(()) = changes.changed() => {
                    if self.shared.admissions.mode(self.topic) == TopicMode::CatchUp {
                        self.over.cancel();
                    }
                    continue;
                }
                Some(peer) = self.invited.recv() => overlay.invite(&[peer]).await,
                Some(message) = self.said.recv() => overlay.say(message).await,
                _ = meet.tick() => overlay.invite(&self.doors_but(&near)).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// The doors of the other members, but for neighbours.
    fn doors_but(&self, near: &BTreeSet<PeerId>) -> Vec<PeerId> {
        let mut doors = self.shared.other_doors();
        doors.retain(|it| !near.contains(&it.quic().peer));
        for door in &doors {
            self.shared.wire.learn(door.quic());
        }
        doors.into_iter().map(|it| it.quic().peer).collect()
    }

    fn hear(&self, message: &Bytes) {
        match Ephemeral::open(message) {
            // Nobody listens: then nobody misses it.
            Ok(message) => drop(self.heard.send(message)),
            Err(error) => {
                let topic = self.topic;
                tracing::debug!(%topic, %error, "a message that nobody signed is dropped");
            }
        }
    }
}
