//! One consumer of a topic: its messages in order, and what it has acknowledged.

use std::{fmt, marker::PhantomData, sync::Arc};

use futures_util::{Stream, future::BoxFuture, stream};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    time::{Instant, sleep_until},
};

use super::{
    acks::Acks,
    cursor::{CursorName, Held, Progress},
    error::{AckError, StreamError, SubscribeError},
    event::{Received, Source, StreamEvent},
    message::{self, DecodeError},
    replay::Replay,
    window::{Again, Redelivery},
};
use crate::log_store::{
    Author, Commits, LogError, Logs, Operation, Origin, SessionEnd, SessionNews, Topic,
};

/// Bytes of a body that is decoded where the next event is awaited; a larger one would hold up the
/// other tasks of that thread.
const DECODED_HERE_MAX: usize = 16 * 1024;

/// Where a subscription begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamFrom {
    /// At the first message that the topic holds. Nothing is remembered: the next subscription
    /// from here begins there again.
    Start,
    /// Behind what this member has acknowledged in this way before; at the start, the first time.
    #[default]
    Frontier,
    /// Behind what was acknowledged under this name, at whichever member; at the start, the first
    /// time. The subscription holds the name from then on, and who held it before can acknowledge
    /// nothing any more. 1 to [`CURSOR_NAME_BYTES_MAX`](super::CURSOR_NAME_BYTES_MAX) bytes.
    Cursor(String),
    /// At a number of the topic's commit order, for who keeps count: the one behind
    /// [`Received::number`] of the last message worked off. Nothing is remembered.
    Number(u64),
}

impl StreamFrom {
    /// Behind what was acknowledged under this name.
    #[must_use]
    pub fn cursor(name: impl Into<String>) -> Self {
        Self::Cursor(name.into())
    }
}

/// When a message counts as worked off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acknowledge {
    /// When the next event is asked for, unless it was refused with [`Received::nack`] before.
    #[default]
    Automatic,
    /// When [`Received::ack`] says so.
    Explicit,
}

/// The messages of a topic, as one consumer gets them.
///
/// It holds a page of at most 256 operations or 1 MiB, whatever the consumer does meanwhile.
/// Dropping it ends it; acknowledgements that are under way are still written.
pub struct Subscription<M> {
    topic: Topic,
    own: Author,
    logs: Logs,
    commits: Commits,
    sessions: broadcast::Receiver<SessionNews>,
    acknowledge: Acknowledge,
    acks: Arc<Acks>,
    progress: watch::Receiver<Progress>,
    moves: watch::Receiver<u64>,
    replay: Replay,
    /// Goes on where a call was dropped.
    work: Option<Work<M>>,
    /// Delivered last, and to be acknowledged when the next is asked for.
    last: Option<u64>,
    /// Read, and without room in the window.
    spare: Option<(u64, Operation)>,
    told_full: bool,
    ended: Option<StreamError>,
    _message: PhantomData<fn() -> M>,
}

/// What a delivery waits for.
enum Work<M> {
    /// The operation with this number, which was refused, is read again.
    Reading(u64, BoxFuture<'static, Result<Option<Operation>, LogError>>),
    /// A large body is decoded elsewhere.
    Decoding(BoxFuture<'static, (Received<()>, Result<M, DecodeError>)>),
}

impl<M> Subscription<M> {
    pub(super) async fn begin(
        logs: Logs,
        topic: Topic,
        own: Author,
        from: StreamFrom,
        acknowledge: Acknowledge,
    ) -> Result<Self, SubscribeError> {
        // From before the look at what is there: what comes in from then on is told where from.
        let sessions = logs.hear_sessions();
        let name = match from {
            StreamFrom::Start => Err(0),
            StreamFrom::Number(number) => Err(number),
            StreamFrom::Frontier => Ok(CursorName::Frontier(own)),
            StreamFrom::Cursor(name) => Ok(CursorName::Named(name)),
        };
        // Taking a cursor over begins with a read of all that was committed before.
        let claimed = name.is_ok();
        let (from, acks) = match name {
            Ok(name) => {
                let held = Held::claim(logs.clone(), topic, &name).await?;
                (held.cursor(), Acks::kept(held))
            }
            Err(number) => (number, Acks::uncounted(number)),
        };
        Ok(Self {
            topic,
            own,
            replay: Replay::begin(&logs, topic, from, claimed)?,
            work: None,
            commits: logs.commits(topic, from),
            sessions,
            logs,
            acknowledge,
            progress: acks.progress(),
            moves: acks.moves(),
            acks,
            last: None,
            spare: None,
            told_full: false,
            ended: None,
            _message: PhantomData,
        })
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> Topic {
        self.topic
    }

    /// Sets how often and how soon a message comes again that is refused with [`Received::nack`];
    /// see there for an example.
    #[must_use]
    pub fn with_redelivery(self, redelivery: Redelivery) -> Self {
        self.acks.set_redelivery(redelivery);
        self
    }

    /// Waits until the group knows all that is acknowledged by now. Where
    /// [`Acknowledge::Automatic`] is set the message delivered last is not, until the next is asked
    /// for or [`Received::ack`] is called. Without a cursor this returns at once.
    ///
    /// # Errors
    /// [`AckError`]: the cursor is lost. Without a quorum this waits for one.
    pub async fn flush(&self) -> Result<(), AckError> {
        self.acks.flush().await
    }

    fn acknowledge_last(&mut self) {
        if let Some(last) = self.last.take() {
            // What is lost is told by the next event.
            self.acks.acknowledge_unrefused(last);
        }
    }
}

impl<M: DeserializeOwned + Send + 'static> Subscription<M> {
    /// The next event. Waits for it; can be dropped while it waits without losing one. Large
    /// bodies, above 16 KiB, are decoded on a thread for blocking work.
    ///
    /// # Errors
    /// [`StreamError`]: the subscription has ended, and says the same from then on.
    pub async fn next(&mut self) -> Result<StreamEvent<M>, StreamError> {
        self.acknowledge_last();
        loop {
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            if self.work.is_some() {
                match self.work_on().await {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            let spare = self.spare.as_ref().map(|(number, _)| *number);
            let position = spare.unwrap_or_else(|| self.commits.position());
            if let Some(event) = self.replay.event(position) {
                return Ok(event);
            }
            if let Some((due, number)) = self.acks.due()
                && due <= Instant::now()
            {
                let read = self.logs.committed_at(self.topic, number);
                self.work = Some(Work::Reading(number, Box::pin(read)));
                continue;
            }
            let full = self.acks.full();
            if let Some(oldest) = full.filter(|_| !self.told_full) {
                self.told_full = true;
                return Ok(StreamEvent::Unacknowledged { oldest });
            }
            if full.is_none() {
                self.told_full = false;
                if let Some((number, operation)) = self.spare.take() {
                    match self.deliver(number, operation) {
                        Some(event) => return Ok(event),
                        None => continue,
                    }
                }
            }
            if let Some(event) = self.step(full.is_some()).await {
                return Ok(event);
            }
        }
    }

    /// The events as a stream, which ends with its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<StreamEvent<M>, StreamError>> + Send {
        stream::unfold(Some(self), |subscription| async move {
            let mut subscription = subscription?;
            Some(match subscription.next().await {
                Ok(event) => (Ok(event), Some(subscription)),
                Err(error) => (Err(error), None),
            })
        })
    }

    /// Waits until something has changed: there is more, there is room, the cursor's task tells.
    async fn step(&mut self, full: bool) -> Option<StreamEvent<M>> {
        let wait_for_room = full || self.spare.is_some();
        let due = self.acks.due().map(|(due, _)| due);
        tokio::select! {
            biased;
            // Without a cursor nobody tells, for ever.
            Ok(()) = self.progress.changed() => return self.look_at_progress(),
            news = heard(&mut self.sessions) => {
                return news.and_then(|it| self.session_event(it));
            }
            known = self.replay.learn() => match known {
                Ok(delayed) => return delayed.map(|error| StreamEvent::ReplayDelayed { error }),
                Err(error) => self.ended = Some(error.into()),
            },
            () = self.acks.refused() => {}
            () = at(due) => {}
            Ok(()) = self.moves.changed(), if wait_for_room => {}
            commit = self.commits.next(), if !wait_for_room => match commit {
                Ok(Some(commit)) => self.spare = Some(commit),
                Ok(None) => self.acks.pass_to(self.commits.position()),
                Err(error) => self.ended = Some(error.into()),
            },
        }
        None
    }

    fn session_event(&self, news: SessionNews) -> Option<StreamEvent<M>> {
        let SessionNews { topic, peer, ended } = news;
        if topic != self.topic {
            return None;
        }
        Some(match ended {
            None => StreamEvent::SyncStarted { peer },
            Some(SessionEnd {
                sent,
                received,
                appended,
                error,
            }) => StreamEvent::SyncEnded {
                peer,
                sent,
                received,
                appended,
                error,
            },
        })
    }

    fn look_at_progress(&mut self) -> Option<StreamEvent<M>> {
        let progress = self.progress.borrow_and_update();
        if let Some(lost) = &progress.lost {
            self.ended = Some(lost.clone().into());
        }
        let error = progress.delayed.clone()?;
        Some(StreamEvent::AcksDelayed { error })
    }

    /// Goes on with what a delivery waits for. Nothing where there is nothing to be told.
    async fn work_on(&mut self) -> Option<StreamEvent<M>> {
        match self.work.as_mut()? {
            Work::Reading(number, reading) => {
                let (number, read) = (*number, reading.await);
                self.work = None;
                match read {
                    Ok(operation) => self.deliver_again(number, operation),
                    Err(error) => {
                        self.ended = Some(error.into());
                        None
                    }
                }
            }
            Work::Decoding(decoding) => {
                let (received, decoded) = decoding.await;
                self.work = None;
                Some(self.tell(received, decoded))
            }
        }
    }

    /// Nothing where there is no message, which is so with operations that only prune.
    fn deliver(&mut self, number: u64, operation: Operation) -> Option<StreamEvent<M>> {
        if operation.body().is_none() {
            self.acks.pass_to(number + 1);
            return None;
        }
        self.acks.deliver(number);
        let received = self.received(number, 1, operation);
        self.decode(received)
    }

    /// What was refused, and read again. What is pruned by now counts as acknowledged.
    fn deliver_again(
        &mut self,
        number: u64,
        operation: Option<Operation>,
    ) -> Option<StreamEvent<M>> {
        let Some(operation) = operation else {
            // What is lost is told by the next event.
            let _ = self.acks.acknowledge(number);
            return None;
        };
        match self.acks.again(number)? {
            Again::Deliver { attempt } => {
                let received = self.received(number, attempt, operation);
                self.decode(received)
            }
            Again::Failed { attempts, why } => Some(StreamEvent::ProcessingFailed {
                received: self.received(number, attempts, operation),
                attempts,
                why,
            }),
        }
    }

    fn received(&self, number: u64, attempt: u32, operation: Operation) -> Received<()> {
        let source = match self.logs.origin(operation.id()) {
            _ if operation.author() == self.own => Source::Own,
            Some(Origin::Import) => Source::Import,
            Some(Origin::Sync(peer)) => Source::Sync(peer),
            None => Source::Elsewhere,
        };
        Received {
            message: (),
            number,
            operation,
            source,
            attempt,
            acks: Arc::clone(&self.acks),
        }
    }

    /// Here and now where that is quick.
    fn decode(&mut self, received: Received<()>) -> Option<StreamEvent<M>> {
        let line = received.operation.line();
        let body = received.operation.body().cloned().unwrap_or_default();
        if body.len() > DECODED_HERE_MAX {
            self.work = Some(Work::Decoding(Box::pin(async move {
                let decoded = message::decode_elsewhere(line, body).await;
                (received, decoded)
            })));
            return None;
        }
        let decoded = message::decode(line, &body);
        Some(self.tell(received, decoded))
    }

    fn tell(&mut self, received: Received<()>, decoded: Result<M, DecodeError>) -> StreamEvent<M> {
        if self.acknowledge == Acknowledge::Automatic {
            self.last = Some(received.number);
        }
        match decoded {
            Ok(message) => StreamEvent::Message(received.with(message)),
            Err(error) => StreamEvent::DecodeFailed { received, error },
        }
    }
}

impl<M> fmt::Debug for Subscription<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// For ever without a time.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What a door tells next; none where some of it was missed. It closes with the group, which others
/// tell.
async fn heard(sessions: &mut broadcast::Receiver<SessionNews>) -> Option<SessionNews> {
    match sessions.recv().await {
        Ok(news) => Some(news),
        Err(RecvError::Lagged(_)) => None,
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
