//! Messages that are signed and not kept: who is typing, where a cursor stands, who is there.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{broadcast, watch};

use super::{
    message::{self, DecodeError},
    topic::TopicStream,
};
use crate::{
    log_store::{Author, AuthorKey, Topic},
    sync::{Channel, EPHEMERAL_BYTES_MAX, Ephemeral, EphemeralError, Stamp, Sync},
};

impl TopicStream {
    /// Takes part in the topic's messages that are signed and not kept, by this member's door:
    /// other members that do the same hear them, and p2panda nodes with an `ephemeral_stream` of
    /// the topic, as far as they are met there at the moment. Messages may be lost, may come in any
    /// order, and nobody can tell who has heard one.
    ///
    /// On line 0.6 a p2panda node checks the signature over the message in the order in which its
    /// own type has its fields, and messages here are in the canonical order. So there only
    /// messages reach it that have no named fields, or have them in that order: shorter names
    /// first, equally long ones by the alphabet.
    ///
    /// What is said reaches everybody who knows the topic and is let into the overlay by any of its
    /// participants: [`Admission`](crate::sync::Admission) keeps strangers from the members' doors,
    /// not from the p2panda nodes behind them.
    ///
    /// ```
    /// use quorate::{
    ///     GroupKey, Node,
    ///     log_store::{Line, LogStore, Topic},
    ///     sync::SyncOptions,
    /// };
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let group = node.create(GroupKey::generate(), LogStore::new()).await?;
    /// let chat = group.topic(Topic::named("chat"));
    /// chat.open(Line::V07).await?;
    /// let options = SyncOptions { bind: vec!["127.0.0.1:0".parse()?], ..SyncOptions::default() };
    /// let door = node.serve_sync(&group.logs(), options).await?;
    ///
    /// let presence = chat.ephemeral::<String>(&door)?;
    /// presence.publish(&"ada is typing".to_owned()).await?;
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`EphemeralPublishError::NotOpen`]: the topic is not open, or not known to the door yet,
    /// which takes a moment; or it is open for catching up only
    /// ([`TopicMode`](crate::sync::TopicMode)); or the door is another group's.
    pub fn ephemeral<M>(&self, door: &Sync) -> Result<EphemeralStream<M>, EphemeralPublishError> {
        let own = self.logs().group().id() == door.group();
        let channel = own.then(|| door.channel(self.topic())).flatten();
        let channel = channel.ok_or(EphemeralPublishError::NotOpen)?;
        Ok(EphemeralStream {
            topic: self.topic(),
            key: self.key().clone(),
            heard: channel.hear(),
            neighbours: channel.neighbours(),
            channel,
            last: Mutex::default(),
            _message: PhantomData,
        })
    }
}

/// A topic's messages that are not kept. Dropping the last one of a topic leaves them.
pub struct EphemeralStream<M> {
    topic: Topic,
    key: AuthorKey,
    channel: Arc<Channel>,
    heard: broadcast::Receiver<Ephemeral>,
    neighbours: watch::Receiver<usize>,
    /// Each message has another stamp, or it would count as heard before.
    last: Mutex<Option<Stamp>>,
    _message: PhantomData<fn(M) -> M>,
}

/// A message that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EphemeralMessage<M> {
    /// The message.
    pub message: M,
    /// Who signed it.
    pub author: Author,
    /// When, as the author says, in microseconds since 1970.
    pub timestamp_micros: u64,
}

impl<M> EphemeralStream<M> {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> Topic {
        self.topic
    }

    /// With how many others messages are exchanged directly at the moment; with none, nobody hears.
    #[must_use]
    pub fn neighbours(&self) -> usize {
        *self.neighbours.borrow()
    }

    /// Waits until somebody is there.
    ///
    /// # Errors
    /// [`EphemeralPublishError::Closed`].
    pub async fn met(&self) -> Result<(), EphemeralPublishError> {
        let mut neighbours = self.neighbours.clone();
        tokio::select! {
            met = neighbours.wait_for(|it| *it > 0) => {
                met.map(drop).map_err(|_| EphemeralPublishError::Closed)
            }
            () = self.channel.over() => Err(EphemeralPublishError::Closed),
        }
    }
}

impl<M: Serialize> EphemeralStream<M> {
    /// Signs a message and hands it to whoever is there. Waits while many are on their way.
    ///
    /// # Errors
    /// [`EphemeralPublishError`]; it is not sent then.
    pub async fn publish(&self, message: &M) -> Result<(), EphemeralPublishError> {
        let body = message::encode(message);
        let body = body.map_err(|why| EphemeralPublishError::NotEncoded { why })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |it| u64::try_from(it.as_micros()).unwrap_or(u64::MAX));
        let stamp = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let stamp = Stamp::after(*last, now);
            *last = Some(stamp);
            stamp
        };
        let signed = Ephemeral::sign(&body, stamp, &self.key.expose());
        let signed = signed.map_err(|error| match error {
            EphemeralError::TooLong(bytes) => EphemeralPublishError::TooLong { bytes },
            error => EphemeralPublishError::NotEncoded {
                why: error.to_string(),
            },
        })?;
        match self.channel.say(signed).await {
            true => Ok(()),
            false => Err(EphemeralPublishError::Closed),
        }
    }
}

impl<M: DeserializeOwned> EphemeralStream<M> {
    /// The next message of somebody else; its signature is checked. None once the topic or the door
    /// is closed. Whoever is more than 256 behind loses the oldest. Cancel-safe.
    ///
    /// # Errors
    /// [`DecodeError`] for a message that is none of this type; others follow.
    pub async fn next(&mut self) -> Option<Result<EphemeralMessage<M>, DecodeError>> {
        let heard = loop {
            tokio::select! {
                biased;
                heard = self.heard.recv() => match heard {
                    Ok(heard) => break heard,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = self.channel.over() => return None,
            }
        };
        let decoded = message::decode(self.channel.line(), &heard.body);
        Some(decoded.map(|message| EphemeralMessage {
            message,
            author: heard.author,
            timestamp_micros: heard.stamp.micros,
        }))
    }
}

impl<M> fmt::Debug for EphemeralStream<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EphemeralStream")
            .field("topic", &self.topic)
            .field("neighbours", &self.neighbours())
            .finish_non_exhaustive()
    }
}

/// A message that is not kept was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EphemeralPublishError {
    /// The topic is not open at this door.
    #[error("the topic is not open at this door: open it, and give the group's own door")]
    NotOpen,
    /// The topic or the door was closed.
    #[error("the topic or the door was closed: take part again once both are open")]
    Closed,
    /// The message cannot be written as CBOR.
    #[error("the message cannot be encoded: {why}")]
    NotEncoded {
        /// In words.
        why: String,
    },
    /// The message is too long.
    #[error("a signed message of {bytes} bytes, and at most {EPHEMERAL_BYTES_MAX} are carried")]
    TooLong {
        /// Its bytes, with what the signature takes: some 120.
        bytes: usize,
    },
}
