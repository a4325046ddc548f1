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
    /// The consumer refused a message with [`Received::nack`] as often as
    /// [`Redelivery::attempts_max`](super::Redelivery::attempts_max) says. It is not delivered
    /// again by this subscription, and not acknowledged: acknowledge it to give it up. Else it
    /// holds the cursor, and the next subscription that takes the cursor over gets it again.
    ProcessingFailed {
        /// Which one. Its bytes are the body of the operation.
        received: Received<()>,
        /// How often it was delivered.
        attempts: u32,
        /// The reason that was given last, cut to
        /// [`REASON_BYTES_MAX`](super::REASON_BYTES_MAX).
        why: String,
    },
    /// The first event of each subscription: what follows was committed before it began.
    ReplayStarted {
        /// The first number that is looked for.
        from: u64,
        /// The first number behind what this member holds now. Where it lags behind the group
        /// more is replayed; where `until` is `from`, perhaps nothing.
        until: u64,
    },
    /// Everything that was committed in the group when the subscription began has been delivered.
    /// Told once, also where that was nothing. What is new may come before it, never what is old
    /// behind it.
    ReplayEnded,
    /// It is not known at the moment what was committed when the subscription began, so
    /// [`StreamEvent::ReplayEnded`] has to wait: this member does not reach a quorum. It asks on.
    /// What it holds and what comes in is delivered meanwhile. Told once.
    ReplayDelayed {
        /// What stands in the way.
        error: LogError,
    },
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
/// Acknowledge it once it is worked off, or refuse it with [`Received::nack`]. Clones acknowledge
/// the same message.
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
    /// Which delivery by this subscription it is: 1, and one more after each refusal. A new
    /// subscription begins at 1 again.
    pub attempt: u32,
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

    /// Refuses the message: it could not be worked off, and is delivered again by this
    /// subscription after a pause, behind messages that came later. Returns at once.
    ///
    /// The pause grows with each refusal. After as many deliveries as
    /// [`Redelivery::attempts_max`](super::Redelivery::attempts_max) says,
    /// [`StreamEvent::ProcessingFailed`] comes instead. Until the message is acknowledged it holds
    /// the cursor, so it is not lost: a later subscription gets it again, and counts anew. One that
    /// is pruned meanwhile does not come again. With
    /// [`Acknowledge::Automatic`](super::Acknowledge::Automatic) a message that is refused before
    /// the next event is asked for is not acknowledged.
    ///
    /// Without effect after [`Received::ack`], and for any but the latest delivery.
    ///
    /// ```
    /// # use quorate::{GroupKey, Node, log_store::{Line, LogStore, Topic}};
    /// use std::time::Duration;
    ///
    /// use quorate::streams::{Acknowledge, Redelivery, StreamEvent, StreamFrom};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let group = node.create(GroupKey::generate(), LogStore::new()).await?;
    /// # let orders = group.topic(Topic::named("orders"));
    /// # orders.open(Line::V07).await?;
    /// orders.publish("a table").await?.await?;
    /// let from = StreamFrom::cursor("warehouse");
    /// let inbox = orders.subscribe::<String>(from, Acknowledge::Explicit).await?;
    /// let mut inbox = inbox.with_redelivery(Redelivery {
    ///     attempts_max: 3,
    ///     pause_min: Duration::from_millis(10),
    ///     ..Redelivery::default()
    /// });
    /// let mut tries = 0;
    /// loop {
    ///     match inbox.next().await? {
    ///         StreamEvent::Message(order) => {
    ///             tries = order.attempt;
    ///             order.nack("the database is not there")?;
    ///         }
    ///         StreamEvent::ProcessingFailed { received, attempts, why } => {
    ///             assert_eq!((tries, attempts), (3, 3));
    ///             eprintln!("order {} is left to a person: {why}", received.number);
    ///             received.ack()?;
    ///             break;
    ///         }
    ///         _ => {}
    ///     }
    /// }
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AckError`] as soon as it is known here that the cursor is lost.
    pub fn nack(&self, why: impl AsRef<str>) -> Result<(), AckError> {
        self.acks.refuse(self.number, self.attempt, why.as_ref())
    }

    pub(super) fn with<N>(&self, message: N) -> Received<N> {
        Received {
            message,
            number: self.number,
            operation: self.operation.clone(),
            source: self.source,
            attempt: self.attempt,
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
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
