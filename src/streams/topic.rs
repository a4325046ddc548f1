//! One topic as an application uses it.

use std::fmt;

use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use super::{
    cursor::{self, Cursor, CursorName},
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
    /// the first time for the end of the author's log, which takes a quorum: for
    /// [`execute_timeout`](crate::config::Config::execute_timeout), and longer only while messages
    /// published before are committed. Dropping the [`Publishing`] does not call the message back.
    ///
    /// ```
    /// # use quorate::{GroupKey, Node, log_store::{Line, LogStore, Topic}};
    /// use quorate::streams::PublishError;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let group = node.create(GroupKey::generate(), LogStore::new()).await?;
    /// # let chat = group.topic(Topic::named("chat"));
    /// # chat.open(Line::V07).await?;
    /// let mut under_way = Vec::new();
    /// for text in ["one", "two", "three"] {
    ///     under_way.push((text, chat.publish(text).await?)); // the next one waits for no commit
    /// }
    /// for (text, publishing) in under_way {
    ///     match publishing.await {
    ///         Ok(published) => println!("{text} is number {}", published.number),
    ///         // It was not committed and will not be: publish it again.
    ///         Err(PublishError::NoQuorum) => println!("{text} found no quorum"),
    ///         Err(error) => return Err(error.into()),
    ///     }
    /// }
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
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

    /// All cursors of the topic, of names and of members, with everything that was acknowledged
    /// before this was called. Those that a newer version of this crate wrote are left out.
    ///
    /// # Errors
    /// [`LogError::NoQuorum`] when none confirms it in
    /// [`query_timeout`](crate::config::Config::query_timeout); else as of [`LogError`].
    pub async fn cursors(&self) -> Result<Vec<Cursor>, LogError> {
        cursor::list(&self.logs, self.topic).await
    }

    /// Removes a cursor, so that it begins at the start again. Who holds it ends with
    /// [`AckError::Forgotten`](super::AckError::Forgotten). Nothing happens where there is none.
    ///
    /// A group keeps at most [`NOTES_MAX`](crate::log_store::NOTES_MAX) cursors and other notes.
    /// Nothing removes a cursor by itself: not the end of its consumer, and not that of its member,
    /// whose [`StreamFrom::Frontier`] nobody else goes on with.
    ///
    /// ```
    /// # use quorate::{GroupKey, Node, log_store::{Line, LogStore, Topic}};
    /// use quorate::streams::{Acknowledge, CursorName, StreamFrom};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let group = node.create(GroupKey::generate(), LogStore::new()).await?;
    /// # let chat = group.topic(Topic::named("chat"));
    /// # chat.open(Line::V07).await?;
    /// chat.subscribe::<String>(StreamFrom::Frontier, Acknowledge::Automatic).await?;
    /// chat.subscribe::<String>(StreamFrom::cursor("reader"), Acknowledge::Automatic).await?;
    ///
    /// // What members have left behind that are gone.
    /// let members = group.status().members;
    /// for cursor in chat.cursors().await? {
    ///     let gone = !members.iter().any(|it| it.member == cursor.member);
    ///     if let (true, CursorName::Frontier(_)) = (gone, &cursor.name) {
    ///         chat.forget_cursor(cursor.name).await?;
    ///     }
    /// }
    /// chat.forget_cursor("reader").await?;
    /// assert_eq!(chat.cursors().await?.len(), 1); // this member is there
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn forget_cursor(&self, name: impl Into<CursorName>) -> Result<(), SubscribeError> {
        cursor::forget(&self.logs, self.topic, &name.into()).await
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
