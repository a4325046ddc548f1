//! Append-only logs of signed operations: their bytes, their checks, their store.
//!
//! [`LogStore`] is the machine that a group keeps equal on all members; [`Logs`] is the handle
//! through which one member appends and reads. A *topic* belongs to one [`Line`] of the protocol
//! and holds one log an author, whose id is [`Topic::log_id`].

mod error;
mod hearsay;
mod ingest;
mod machine;
#[cfg(test)]
pub(crate) mod mint;
mod operation;
mod publisher;
mod reader;
mod subscribe;
mod table;

use std::{fmt, io, ops::RangeBounds, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::broadcast;

pub(crate) use self::{
    error::NoteError,
    hearsay::{Origin, SessionEnd, SessionNews},
    publisher::Publisher,
    reader::{Note, Stored},
    subscribe::{Commits, Committed, Quorate},
};
pub use self::{
    error::{ChainRefused, LogError, LogRefused, Outcome, Refusal},
    machine::{
        APPEND_OPERATIONS_MAX, Expected, LogCommand, LogOutput, LogStore, LogView,
        NOTE_NAME_BYTES_MAX, NOTE_VALUE_BYTES_MAX, NOTES_MAX, NoteRefused, NoteVersion, OutcomeRun,
        RawOperation, TOPIC_AUTHORS_MAX,
    },
    operation::{
        Author, AuthorKey, BODY_BYTES_MAX, Draft, Field, HEADER_BYTES_MAX, Line, LogId, Operation,
        OperationId, ParseLineError, ParseNameError, Refused, Topic, verify_all,
    },
    publisher::{PUBLISH_BYTES_MAX, PUBLISHES_MAX, PublishError, Published, Publishing},
    reader::Heights,
};
use self::{hearsay::Hearsay, ingest::InFlight, publisher::Publishers, reader::Limits};
use crate::{
    group::{ExecuteError, Group},
    machine::{Moment, TableView},
};

impl Group<LogStore> {
    /// The logs of this group, as this member appends to them and reads them.
    #[must_use]
    pub fn logs(&self) -> Logs {
        Logs::new(self.clone())
    }
}

/// Appends to a group's logs and reads them, on one member.
///
/// Clones are cheap; all handles on one group of one node share what is under way.
///
/// ```
/// use futures_util::{StreamExt, TryStreamExt};
/// use quorate::{
///     GroupKey, Node,
///     log_store::{AuthorKey, Draft, Line, LogStore, Operation, Topic},
/// };
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
///
/// let topic = Topic::named("cats");
/// logs.open_topic(topic, Line::V07).await?;
///
/// // An author's first two operations.
/// let (key, log) = (AuthorKey::generate(), topic.log_id());
/// let draft = Draft::first(Line::V07, log, 1_700_000_000_000_000, Some("meow".into()));
/// let first = Operation::sign(draft, &key)?;
/// let draft = Draft::after(&first, 1_700_000_000_000_001, Some("purr".into()));
/// let second = Operation::sign(draft, &key)?;
/// let appended = logs.append(topic, first.clone()).await?;
/// assert_eq!((appended.number, appended.held_before), (0, false));
/// assert!(logs.append(topic, first).await?.held_before); // nothing is appended twice
/// logs.append(topic, second).await?;
///
/// let heights = logs.heights(topic).await?;
/// assert_eq!(heights[&key.author()][&log], 1);
/// let log: Vec<Operation> = logs.read(key.author(), log, ..).try_collect().await?;
/// assert_eq!(log.len(), 2);
///
/// // The topic's operations of all authors in the order of their commits, and then live.
/// let mut commits = std::pin::pin!(logs.subscribe(topic, 0));
/// let (number, operation) = commits.next().await.expect("it goes on")?;
/// assert_eq!((number, operation.body().map(|it| &it[..])), (0, Some(&b"meow"[..])));
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Logs {
    group: Group<LogStore>,
    in_flight: Arc<InFlight>,
    publishers: Arc<Publishers>,
    hearsay: Arc<Hearsay>,
}

/// An operation is in the store, on a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its number in the topic's commit order.
    pub number: u64,
    /// Whether it was there before.
    pub held_before: bool,
}

/// What a prune has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Operations dropped.
    pub operations: u64,
    /// Their bytes, of headers and bodies.
    pub bytes: u64,
}

impl Logs {
    /// The logs of a group on this member.
    #[must_use]
    pub fn new(group: Group<LogStore>) -> Self {
        let view = group.view().1;
        Self {
            group,
            in_flight: view.in_flight,
            publishers: view.publishers,
            hearsay: view.hearsay,
        }
    }

    /// The group that keeps them.
    #[must_use]
    pub fn group(&self) -> &Group<LogStore> {
        &self.group
    }

    /// Opens a topic on all members, or again after it was closed. Returns once this member knows.
    ///
    /// It is then open to the members. Peers that are no members are served only what was opened
    /// to them, with [`Outsiders::open_topic`](crate::sync::Outsiders::open_topic).
    ///
    /// # Errors
    /// [`LogRefused::OtherLine`] within [`LogError::Refused`] if it holds operations of the other
    /// line; else as of [`LogError`].
    pub async fn open_topic(&self, topic: Topic, line: Line) -> Result<(), LogError> {
        self.change(LogCommand::OpenTopic { topic, line }).await
    }

    /// Takes no more operations for a topic, on any member; what it holds can still be read.
    ///
    /// # Errors
    /// [`LogRefused::NotOpen`] within [`LogError::Refused`] if it was never opened; else as of
    /// [`LogError`].
    pub async fn close_topic(&self, topic: Topic) -> Result<(), LogError> {
        self.change(LogCommand::CloseTopic { topic }).await
    }

    /// Counts an author's log to the topic again after [`Logs::dissociate`]. An author's first
    /// operation does so by itself.
    ///
    /// # Errors
    /// [`LogRefused::OtherLog`] within [`LogError::Refused`] for any log but [`Topic::log_id`], for
    /// stock nodes see no other; [`LogRefused::TooManyAuthors`] where the topic has
    /// [`TOPIC_AUTHORS_MAX`] others; else as of [`LogError`].
    pub async fn associate(
        &self,
        topic: Topic,
        author: Author,
        log: LogId,
    ) -> Result<(), LogError> {
        self.change(LogCommand::Associate { topic, author, log })
            .await
    }

    /// Takes an author's log out of the topic: its height is not named any more, and its new
    /// operations are refused. What it holds can still be read. It makes room for another author,
    /// where the topic has [`TOPIC_AUTHORS_MAX`].
    ///
    /// # Errors
    /// As of [`LogError`].
    pub async fn dissociate(&self, topic: Topic, author: Author) -> Result<(), LogError> {
        self.change(LogCommand::Dissociate { topic, author }).await
    }

    /// Appends one operation, checked here and then on every member. When this returns, a quorum
    /// has it on disk. An operation that is held already is found so without a proposal.
    ///
    /// # Errors
    /// [`LogError::Refused`] says by which rule it was refused. After any other error it may have
    /// been appended: asking again is safe.
    pub async fn append(&self, topic: Topic, operation: Operation) -> Result<Appended, LogError> {
        let mut outcomes = std::pin::pin!(self.append_many(topic, [operation]));
        match outcomes.next().await.unwrap_or(Err(LogError::Unknown))? {
            Outcome::Appended { number } => Ok(Appended {
                number,
                held_before: false,
            }),
            Outcome::Held { number } => Ok(Appended {
                number,
                held_before: true,
            }),
            Outcome::Refused(refusal) => Err(LogError::Refused(refusal)),
        }
    }

    /// Appends many operations of a topic and gives what became of each, in the order given. Keeps
    /// the pipeline full: signatures are checked on all cores while what was checked before is on
    /// its way.
    ///
    /// Among up to 1,024 consecutive operations, an author's may come out of order and more than
    /// once. They are pulled from the iterator as room permits, from the first poll on; dropping
    /// the stream stops that, and leaves what was pulled to its fate.
    ///
    /// # Errors
    /// An item is an error only where it is not known what became of the operation, or nothing can
    /// be appended at the moment: asking again is safe. A refusal is an [`Outcome`].
    pub fn append_many<I>(
        &self,
        topic: Topic,
        operations: I,
    ) -> impl Stream<Item = Result<Outcome, LogError>> + Send + 'static
    where
        I: IntoIterator<Item = Operation>,
        I::IntoIter: Send + 'static,
    {
        ingest::append(self.clone(), topic, operations.into_iter())
    }

    /// The heights of a topic's logs, with everything that was acknowledged anywhere in the group
    /// before this was called. Empty for a topic that is not there.
    ///
    /// # Errors
    /// [`LogError::NoQuorum`] when no quorum confirms a leader in
    /// [`query_timeout`](crate::config::Config::query_timeout); else as of [`LogError`].
    pub async fn heights(&self, topic: Topic) -> Result<Heights, LogError> {
        self.heights_confirmed(topic, self.group.query_timeout())
            .await
    }

    /// The heights of what this member has applied, which may be behind the group. Blocking, for as
    /// long as the disk takes to read a record an author.
    ///
    /// # Errors
    /// [`LogError::Storage`].
    pub fn heights_local(&self, topic: Topic) -> Result<Heights, LogError> {
        let heights = self.moment(|it| reader::heights(it, topic));
        heights.map_err(|error| self.unreadable(error.into()))
    }

    /// The operations of a log with sequence numbers in the range, in order, as far as they are
    /// held: what was acknowledged before the first poll is among them. Ends at the log's height at
    /// that moment. What is pruned is left out; each operation says its own sequence number.
    ///
    /// Read as it is polled, in pages of at most 256 operations or 1 MiB.
    ///
    /// # Errors
    /// As [`Logs::heights`]. The stream ends with the first error.
    pub fn read(
        &self,
        author: Author,
        log: LogId,
        range: impl RangeBounds<u32>,
    ) -> impl Stream<Item = Result<Operation, LogError>> + Send + 'static {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        subscribe::read(self.clone(), author, log, range)
    }

    /// The operations of a topic in the order of their commits, with their numbers, which is the
    /// same at every member: those held from number `from` on, then each new one once this member
    /// has applied it. Numbers of pruned operations are left out.
    ///
    /// It does not end by itself. It reads a page at a time as it is polled, at most 256 operations
    /// or 1 MiB, so a slow reader costs no memory; what is pruned before it gets there it does not
    /// see. A topic that is not there yet, or is not as long yet, is waited for.
    ///
    /// # Errors
    /// [`LogError::Stopped`] when the group stops on this node, [`LogError::Storage`]. The stream
    /// ends with the first error.
    pub fn subscribe(
        &self,
        topic: Topic,
        from: u64,
    ) -> impl Stream<Item = Result<(u64, Operation), LogError>> + Send + 'static {
        subscribe::subscribe(self.clone(), topic, from)
    }

    /// Drops the operations of a log below a sequence number, on all members; the newest one always
    /// stays. They are gone at once. Returns when their bytes are freed; if it is dropped before,
    /// later appends free them.
    ///
    /// Unlike an operation with the prune flag this leaves a log that a stock node which lacks what
    /// was dropped cannot begin with, so such a node is not sent it any more.
    ///
    /// # Errors
    /// As of [`LogError`]; asking again is safe.
    pub async fn prune(&self, author: Author, log: LogId, below: u32) -> Result<Pruned, LogError> {
        let pruned = LogCommand::Prune { author, log, below };
        let (dropped, mut left) = match self.execute(pruned).await? {
            LogOutput::Pruned {
                operations,
                bytes,
                left,
            } => (Pruned { operations, bytes }, left),
            LogOutput::Refused(refused) => return Err(refused.into()),
            _ => (Pruned::default(), false),
        };
        while left {
            left = self.execute(LogCommand::Sweep).await? == LogOutput::Swept { left: true };
        }
        Ok(dropped)
    }

    /// A change of the topics: it is known here when this returns.
    async fn change(&self, command: LogCommand) -> Result<(), LogError> {
        if let LogOutput::Refused(refused) = self.execute(command).await? {
            return Err(refused.into());
        }
        self.confirmed(self.group.query_timeout()).await
    }

    async fn execute(&self, command: LogCommand) -> Result<LogOutput, LogError> {
        match self.group.execute(command).await {
            Err(ExecuteError::Unknown(unresolved)) if unresolved.can_retry() => {
                Ok(self.group.retry(unresolved).await?)
            }
            done => Ok(done?),
        }
    }

    async fn confirmed(&self, within: Duration) -> Result<(), LogError> {
        Ok(self.group.confirmed_through(within).await?)
    }

    fn table(&self) -> TableView {
        self.group.view().1.table
    }

    /// Reads on this thread: for a few records.
    fn moment<R>(&self, read: impl FnOnce(&Moment<'_>) -> io::Result<R>) -> io::Result<R> {
        self.table().read(read)?
    }

    /// Reads on a blocking thread.
    async fn elsewhere<R: Send + 'static>(
        &self,
        read: impl FnOnce(&Moment<'_>) -> io::Result<R> + Send + 'static,
    ) -> Result<R, LogError> {
        let table = self.table();
        let reading = tokio::task::spawn_blocking(move || table.read(read)?);
        let read = reading.await.map_err(io::Error::other)?;
        read.map_err(|error| self.unreadable(error.into()))
    }

    /// A store that is closed is one of a group that has stopped here.
    fn unreadable(&self, error: LogError) -> LogError {
        match (error, self.group.status().stopped) {
            (LogError::Storage(_), Some(stopped)) => LogError::Stopped(stopped),
            (error, _) => error,
        }
    }
}

/// What the sync protocol stands on.
impl Logs {
    /// The heights with everything that was acknowledged before this was called, or an error within
    /// that time: never those of an old state.
    pub(crate) async fn heights_confirmed(
        &self,
        topic: Topic,
        within: Duration,
    ) -> Result<Heights, LogError> {
        self.confirmed(within).await?;
        self.elsewhere(move |it| reader::heights(it, topic)).await
    }

    /// Returns once everything that was acknowledged before this was called is applied here.
    ///
    /// # Errors
    /// [`LogError::NoQuorum`] when none confirms it in time; else as of [`LogError`].
    pub(crate) async fn confirmed_now(&self) -> Result<(), LogError> {
        self.confirmed(self.group.query_timeout()).await
    }

    /// How many operations, and bytes of headers and bodies, a peer lacks that holds the log
    /// through `after`, up to `until`. A few records are read. Zero where what it lacks is pruned
    /// without the flag that would let it go on.
    pub(crate) fn size(
        &self,
        author: Author,
        log: LogId,
        after: Option<u32>,
        until: u32,
    ) -> io::Result<(u64, u64)> {
        self.moment(|it| reader::size(it, author, log, after, until))
    }

    /// The first of those operations: at most so many, and so many bytes, but one if there is one.
    /// Blocking.
    pub(crate) fn page(
        &self,
        author: Author,
        log: LogId,
        after: Option<u32>,
        until: u32,
        operations_max: usize,
        bytes_max: usize,
    ) -> io::Result<Vec<Stored>> {
        let limits = Limits {
            operations: operations_max,
            bytes: bytes_max,
        };
        self.moment(|it| reader::page(it, author, log, after, until, limits))
    }

    /// Appends what a peer pushed: what became of each, in the order given, once all of it is
    /// committed or refused. What is held or under way already costs no proposal.
    ///
    /// # Errors
    /// The first: what it was about may have been appended, and asking again is safe.
    pub(crate) async fn ingest(
        &self,
        topic: Topic,
        operations: Vec<Operation>,
    ) -> Result<Vec<Outcome>, LogError> {
        let count = operations.len();
        let mut appending = std::pin::pin!(self.append_many(topic, operations));
        let mut outcomes = Vec::with_capacity(count);
        while let Some(outcome) = appending.next().await {
            outcomes.push(outcome?);
        }
        if outcomes.len() < count {
            return Err(LogError::Unknown);
        }
        Ok(outcomes)
    }

    /// The line of a topic that is open, as far as this member knows.
    pub(crate) fn topic(&self, topic: Topic) -> io::Result<Option<Line>> {
        let record = self.moment(|it| reader::topic(it, topic))?;
        Ok(record.filter(|it| it.open).map(|it| it.line))
    }

    /// The number that the next operation in a topic's commit order gets, as far as this member
    /// knows.
    pub(crate) fn length(&self, topic: Topic) -> io::Result<u64> {
        let record = self.moment(|it| reader::topic(it, topic))?;
        Ok(record.map_or(0, |it| it.next))
    }

    /// The line of a topic that is open here, and how many operations it has ever had. It reads one
    /// record, as [`Commits::next`] does before it waits: cheap enough for each entry applied.
    pub(crate) fn glance(&self, topic: Topic) -> io::Result<Option<(Line, u64)>> {
        let record = self.moment(|it| reader::topic(it, topic))?;
        let open = record.filter(|it| it.open);
        Ok(open.map(|it| (it.line, it.next)))
    }

    /// The open topics and their lines, as far as this member knows. Blocking.
    pub(crate) fn topics(&self) -> io::Result<Vec<(Topic, Line)>> {
        self.moment(reader::topics)
    }

    /// The notes whose names begin so, as far as this member knows. Blocking.
    pub(crate) fn notes(&self, prefix: &[u8]) -> io::Result<Vec<Note>> {
        self.moment(|it| reader::notes(it, prefix))
    }

    /// The last change of any note that this member knows: cheap, to see whether to look.
    pub(crate) fn notes_changed(&self) -> io::Result<Option<NoteVersion>> {
        self.moment(reader::notes_changed)
    }

    /// Sets or removes a note on all members, if it still is as expected.
    ///
    /// # Errors
    /// [`NoteError::Refused`]: it was not changed. Else it may have been.
    pub(crate) async fn note(
        &self,
        name: Bytes,
        value: Option<Bytes>,
        expected: Expected,
    ) -> Result<NoteVersion, NoteError> {
        let command = LogCommand::Note {
            name,
            value,
            expected,
        };
        match self.execute(command).await? {
            LogOutput::Noted(version) => Ok(version),
            LogOutput::NotNoted(refused) => Err(NoteError::Refused(refused)),
            _ => Err(NoteError::Logs(LogError::Unknown)),
        }
    }

    /// One note, with everything that was acknowledged before this was called.
    pub(crate) async fn note_confirmed(&self, name: Bytes) -> Result<Option<Note>, LogError> {
        self.confirmed(self.group.query_timeout()).await?;
        self.elsewhere(move |it| reader::note(it, &name)).await
    }

    /// The notes whose names begin so, with everything that was acknowledged before this was
    /// called.
    pub(crate) async fn notes_confirmed(&self, prefix: Bytes) -> Result<Vec<Note>, LogError> {
        self.confirmed(self.group.query_timeout()).await?;
        self.elsewhere(move |it| reader::notes(it, &prefix)).await
    }

    /// One note, as far as this member knows.
    pub(crate) fn note_local(&self, name: &[u8]) -> io::Result<Option<Note>> {
        self.moment(|it| reader::note(it, name))
    }

    /// As [`Logs::subscribe`], for who wants to know how far it has looked.
    pub(crate) fn commits(&self, topic: Topic, from: u64) -> Commits {
        Commits::new(self.clone(), topic, from)
    }

    /// The operation with this number in the topic's commit order, unless it is pruned.
    pub(crate) fn committed_at(
        &self,
        topic: Topic,
        number: u64,
    ) -> impl Future<Output = Result<Option<Operation>, LogError>> + Send + 'static {
        let logs = self.clone();
        async move {
            let read = logs.elsewhere(move |it| reader::commit(it, topic, number));
            read.await
        }
    }

    /// Notes where an operation came in at this member, before it is proposed.
    pub(crate) fn came_in(&self, id: OperationId, origin: Origin) {
        self.hearsay.came_in(id, origin);
    }

    /// Where an operation came in, if that is remembered.
    pub(crate) fn origin(&self, id: OperationId) -> Option<Origin> {
        self.hearsay.origin(id)
    }

    /// Tells those that hear at this member of a session with an outsider.
    pub(crate) fn tell_session(&self, news: SessionNews) {
        self.hearsay.tell(news);
    }

    /// What is told of sessions from now on.
    pub(crate) fn hear_sessions(&self) -> broadcast::Receiver<SessionNews> {
        self.hearsay.hear()
    }

    /// Writes one author's log of a topic: the same one for all who ask on this member.
    pub(crate) fn publisher(&self, key: &AuthorKey, topic: Topic) -> Publisher {
        Publisher::of(self, key, topic)
    }

    /// Tells when this member has applied more.
    pub(crate) fn committed(&self) -> Committed {
        Committed::new(self.group.clone())
    }

    /// Tells whether this member reaches a quorum.
    pub(crate) fn quorate(&self) -> Quorate {
        Quorate::new(&self.group)
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
