//! One topic as an application uses it.

use std::fmt;

use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use super::{
    cursor::{self, CursorName},
    error::SubscribeError,
    message,
    subscription::{Acknowledge, StreamFrom, Subscription},
};
use crate::{
    group::Group,
    log_store::{
        Author, AuthorKey, Line, LogError, LogStore, Logs, Operation, Origin, Outcome,
        PublishError, Publisher, Publishing, Topic,
    },
};

/// What a member's author key is derived for. Frozen: the author's name follows from it.
const AUTHOR_KEY: &str = "quorate/author/1";

impl Group<LogStore> {
    /// A topic of this group, to publish messages into and to subscribe to, as this member's
    /// author.
    ///
    /// A topic is [`Topic::from_bytes`] or [`Topic::named`].
    #[must_use]
    pub fn topic(&self, topic: Topic) -> TopicStream {
        TopicStream::new(self.logs(), &self.author_key(), topic)
    }

    /// The key with which this member signs what it publishes: made with the member, the same
    /// after each restart, and of no other member, in this group or another.
    ///
    /// It is derived from the node's secret key and the member's id, and lies nowhere else. A
    /// member that leaves and joins again is another author.
    #[must_use]
    pub fn author_key(&self) -> AuthorKey {
        AuthorKey::from_bytes(&self.member_secret(AUTHOR_KEY))
    }
}

/// One topic: messages in, messages out. Cheap to clone; all handles of one author and topic on
/// one member publish in one order.
#[derive(Clone)]
pub struct TopicStream {
    logs: Logs,
    key: AuthorKey,
    topic: Topic,
    publisher: Publisher,
}

impl TopicStream {
    /// The topic as a given author's. Two processes must not use one key: each would keep signing
    /// anew what the other's commit has displaced.
    #[must_use]
    pub fn new(logs: Logs, key: &AuthorKey, topic: Topic) -> Self {
        let publisher = logs.publisher(key, topic);
        Self {
            logs,
            key: key.clone(),
            topic,
            publisher,
        }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> Topic {
        self.topic
    }

    /// Who signs what is published here.
    #[must_use]
    pub fn author(&self) -> Author {
        self.publisher.author()
    }

    pub(super) fn logs(&self) -> &Logs {
        &self.logs
    }

    pub(super) fn key(&self) -> &AuthorKey {
        &self.key
    }

    /// Opens the topic on all members; nothing changes if it is open. Publishing needs it.
    /// Outsiders are admitted by [`Outsiders::open_topic`](crate::sync::Outsiders::open_topic).
    ///
    /// # Errors
    /// As [`Logs::open_topic`].
    pub async fn open(&self, line: Line) -> Result<(), LogError> {
        self.logs.open_topic(self.topic, line).await
    }

    /// Publishes a message: its operation's id at once, then, awaited, its commit.
    ///
    /// Waits for room where [`PUBLISHES_MAX`](super::PUBLISHES_MAX) messages are on their way, and
    /// the first time for the end of the author's log, which takes a quorum. Dropping the
    /// [`Publishing`] does not call the message back.
    ///
    /// # Errors
    /// [`PublishError`]; the message is not published then. [`Publishing`] gives the same errors
    /// later.
    pub async fn publish<M: Serialize + ?Sized>(
        &self,
        message: &M,
    ) -> Result<Publishing, PublishError> {
        let body = encode(message)?;
        self.publisher.publish(Some(body), false).await
    }
}

fn encode<M: Serialize + ?Sized>(message: &M) -> Result<Bytes, PublishError> {
    message::encode(message).map_err(|why| PublishError::NotEncoded { why })
}

impl TopicStream {
    /// Subscribes to the messages of all authors, of this type.
    ///
    /// With a cursor this takes it over from whoever holds it, which takes a quorum. The topic need
    /// not be there yet.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn subscribe<M>(
        &self,
        from: StreamFrom,
        acknowledge: Acknowledge,
    ) -> Result<Subscription<M>, SubscribeError> {
        let (logs, own) = (self.logs.clone(), self.author());
        Subscription::begin(logs, self.topic, own, from, acknowledge).await
    }

    /// Removes a named cursor, so that its name begins at the start again. Who holds it ends with
    /// [`AckError::Forgotten`](super::AckError::Forgotten). A group keeps at most
    /// [`NOTES_MAX`](crate::log_store::NOTES_MAX) cursors and other notes.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn forget_cursor(&self, name: impl Into<String>) -> Result<(), SubscribeError> {
        cursor::forget(&self.logs, self.topic, &CursorName::Named(name.into())).await
    }

    /// Lets go of everything that this author has published here before, at all members and at
    /// p2panda nodes, with an operation that may carry a message: the state as it is now, say.
    ///
    /// It goes when all that was published before is committed, and what is published after it
    /// waits for it.
    ///
    /// # Errors
    /// As [`TopicStream::publish`].
    pub async fn prune<M: Serialize + ?Sized>(
        &self,
        message: Option<&M>,
    ) -> Result<Publishing, PublishError> {
        let body = message.map(encode).transpose()?;
        self.publisher.publish(body, true).await
    }

    /// Takes operations that others have signed: from a file, another store, another transport.
    /// What became of each comes in the order given; see [`Logs::append_many`].
    ///
    /// # Errors
    /// As there: an item is an error only where it is not known what became of the operation.
    pub fn import<I>(
        &self,
        operations: I,
    ) -> impl Stream<Item = Result<Outcome, LogError>> + Send + 'static
    where
        I: IntoIterator<Item = Operation>,
        I::IntoIter: Send + 'static,
    {
        let logs = self.logs.clone();
        let operations = operations.into_iter().inspect(move |it| {
            logs.came_in(it.id(), Origin::Import);
        });
        self.logs.append_many(self.topic, operations)
    }
}

impl fmt::Debug for TopicStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicStream")
            .field("topic", &self.topic)
            .field("author", &self.author())
            .finish_non_exhaustive()
    }
}
