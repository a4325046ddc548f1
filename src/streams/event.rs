//! What a subscription tells.

use std::{fmt, sync::Arc};

use super::{acks::Acks, error::AckError, message::DecodeError};
use crate::{
    identity::PeerId,
    log_store::{Author, LogError, Operation, OperationId},
};

/// What happens in a topic, in its order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StreamEvent<M> {
    /// A message.
    Message(Received<M>),
    /// An operation whose body is no message of the type asked for. The subscription goes on;
    /// it counts as delivered, so acknowledge it to have it behind you.
    DecodeFailed {
        /// Which one.
        received: Received<()>,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// What follows was there before the subscription began.
    ReplayStarted {
        /// The first number that is looked for.
        from: u64,
        /// The first number behind the replay.
        until: u64,
    },
    /// All that was there has been delivered; what follows is new.
    ReplayEnded,
    /// As many messages as may be are delivered and wait behind one that is not acknowledged.
    /// Nothing more comes until it is.
    Unacknowledged {
        /// The number of the oldest.
        oldest: u64,
    },
    /// A session with an outsider begins, in this topic at this member's door. Each chunk that a
    /// p2panda node is sent is a session, and such nodes begin two at a time. Told in the order in
    /// which they begin and end, beside the messages, and left out where a slow consumer has missed
    /// some.
    SyncStarted {
        /// Who.
        peer: PeerId,
    },
    /// A session with an outsider has ended; what it brought is committed or refused.
    SyncEnded {
        /// Who.
        peer: PeerId,
        /// Operations it was sent.
        sent: u64,
        /// Operations it brought.
        received: u64,
        /// Of those, taken now; the others were held before, or refused.
        appended: u64,
        /// What went wrong, in words.
        error: Option<String>,
    },
    /// Acknowledgements cannot be written at the moment. They are tried on; until then a restart
    /// delivers their messages again.
    AcksDelayed {
        /// What stands in the way.
        error: LogError,
    },
}

/// Where an operation came from, as far as this member knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Published by this member.
    Own,
    /// Handed to this member by [`TopicStream::import`](super::TopicStream::import).
    Import,
    /// Pushed to this member by an outsider. It need not be the author.
    Sync(PeerId),
    /// Another member published or took it. Or this one took it before the subscription began:
    /// that is not remembered for long, and not over a restart.
    Elsewhere,
}

/// A message, and what carries it.
///
/// Acknowledge it once it is worked off. Clones acknowledge the same message.
#[derive(Clone)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Its number in the topic's commit order, the same at all members. Not all numbers carry
    /// messages.
    pub number: u64,
    /// The operation that carries it.
    pub operation: Operation,
    /// Where it came from.
    pub source: Source,
    pub(super) acks: Arc<Acks>,
}

impl<M> Received<M> {
    /// The id of the operation that carries it.
    #[must_use]
    pub fn id(&self) -> OperationId {
        self.operation.id()
    }

    /// Who signed it.
    #[must_use]
    pub fn author(&self) -> Author {
        self.operation.author()
    }

    /// Acknowledges the message: it is not delivered again through this cursor. Returns at once;
    /// the group knows within [`ACK_DELAY`](super::ACK_DELAY) and a commit, see
    /// [`Subscription::flush`](super::Subscription::flush). In any order, and more than once.
    ///
    /// # Errors
    /// [`AckError`] as soon as it is known here that the cursor is lost.
    pub fn ack(&self) -> Result<(), AckError> {
        self.acks.acknowledge(self.number)
    }

    pub(super) fn with<N>(&self, message: N) -> Received<N> {
        Received {
            message,
            number: self.number,
            operation: self.operation.clone(),
            source: self.source,
            acks: Arc::clone(&self.acks),
        }
    }
}

impl<M: fmt::Debug> fmt::Debug for Received<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("message", &self.message)
            .field("number", &self.number)
            .field("operation", &self.operation)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}
