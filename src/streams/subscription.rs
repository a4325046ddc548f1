//! One consumer of a topic: its messages in order, and what it has acknowledged.

use std::{fmt, marker::PhantomData, sync::Arc};

use futures_util::{Stream, stream};
use serde::de::DeserializeOwned;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use super::{
    acks::Acks,
    cursor::{CursorName, Held, Progress},
    error::{AckError, StreamError, SubscribeError},
    event::{Received, Source, StreamEvent},
    message,
};
use crate::log_store::{
    Author, Commits, LogError, Logs, Operation, Origin, SessionEnd, SessionNews, Topic,
};

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
    /// When the next event is asked for.
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
    /// Delivered last, and to be acknowledged when the next is asked for.
    last: Option<u64>,
    /// Read, and without room in the window.
    spare: Option<(u64, Operation)>,
    told_full: bool,
    ended: Option<StreamError>,
    _message: PhantomData<fn() -> M>,
}

/// How far the delivery of what was there before has got.
enum Replay {
    Before { from: u64, until: u64 },
    During { until: u64 },
    Over,
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
            StreamFrom::Frontier => Ok(CursorName::Own(own)),
            StreamFrom::Cursor(name) => Ok(CursorName::Named(name)),
        };
        let (from, acks) = match name {
            Ok(name) => {
                let held = Held::claim(logs.clone(), topic, &name).await?;
                (held.cursor(), Acks::kept(held))
            }
            Err(number) => (number, Acks::uncounted(number)),
        };
        let until = logs.length(topic).map_err(LogError::from)?;
        Ok(Self {
            topic,
            own,
            commits: logs.commits(topic, from),
            sessions,
            logs,
            acknowledge,
            progress: acks.progress(),
            moves: acks.moves(),
            acks,
            replay: match from < until {
                true => Replay::Before { from, until },
                false => Replay::Over,
            },
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
            let _ = self.acks.acknowledge(last);
        }
    }
}

impl<M: DeserializeOwned> Subscription<M> {
    /// The next event. Waits for it; can be dropped while it waits without losing one.
    ///
    /// # Errors
    /// [`StreamError`]: the subscription has ended, and says the same from then on.
    pub async fn next(&mut self) -> Result<StreamEvent<M>, StreamError> {
        self.acknowledge_last();
        loop {
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            if let Some(event) = self.replay_event() {
                return Ok(event);
            }
            let full = self.acks.full();
            if let Some(oldest) = full.filter(|_| !self.told_full) {
                self.told_full = true;
                return Ok(StreamEvent::Unacknowledged { oldest });
            }
            if full.is_none() {
                self.told_full = false;
                if let Some((number, operation)) = self.spare.take()
                    && let Some(event) = self.deliver(number, operation)
                {
                    return Ok(event);
                }
            }
            if let Some(event) = self.step(full.is_some()).await {
                return Ok(event);
            }
        }
    }

    /// The events as a stream, which ends with its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<StreamEvent<M>, StreamError>> + Send
    where
        M: Send + 'static,
    {
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
        tokio::select! {
            biased;
            // Without a cursor nobody tells, for ever.
            Ok(()) = self.progress.changed() => return self.look_at_progress(),
            news = heard(&mut self.sessions) => {
                return news.and_then(|it| self.session_event(it));
            }
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

    fn replay_event(&mut self) -> Option<StreamEvent<M>> {
        match self.replay {
            Replay::Before { from, until } => {
                self.replay = Replay::During { until };
                Some(StreamEvent::ReplayStarted { from, until })
            }
            Replay::During { until }
                if self
                    .spare
                    .as_ref()
                    .is_none_or(|(number, _)| *number >= until)
                    && self.commits.position() >= until =>
            {
                self.replay = Replay::Over;
                Some(StreamEvent::ReplayEnded)
            }
            _ => None,
        }
    }

    /// Nothing where there is no message, which is so with operations that only prune.
    fn deliver(&mut self, number: u64, operation: Operation) -> Option<StreamEvent<M>> {
        let Some(body) = operation.body().cloned() else {
            self.acks.pass_to(number + 1);
            return None;
        };
        self.acks.deliver(number);
        if self.acknowledge == Acknowledge::Automatic {
            self.last = Some(number);
        }
        let decoded = message::decode(operation.line(), &body);
        let source = match self.logs.origin(operation.id()) {
            _ if operation.author() == self.own => Source::Own,
            Some(Origin::Import) => Source::Import,
            Some(Origin::Sync(peer)) => Source::Sync(peer),
            None => Source::Elsewhere,
        };
        let received = Received {
            message: (),
            number,
            operation,
            source,
            acks: Arc::clone(&self.acks),
        };
        Some(match decoded {
            Ok(message) => StreamEvent::Message(received.with(message)),
            Err(error) => StreamEvent::DecodeFailed { received, error },
        })
    }
}

impl<M> fmt::Debug for Subscription<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
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
