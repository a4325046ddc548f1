//! Messages of an application: published into a topic, delivered in one order, acknowledged.
//!
//! A topic of the [log store](crate::log_store) is a stream of messages that all members and, where
//! a [door](crate::Node::serve_sync) is open, p2panda nodes write to. Each member has one author
//! key, made with it; what it publishes is an operation of that author, its body the message in
//! canonical CBOR. A p2panda node takes it for what one more node of its kind has published.
//!
//! ```
//! use quorate::{
//!     GroupKey, Node,
//!     log_store::{Line, LogStore, Topic},
//!     streams::{Acknowledge, StreamEvent, StreamFrom},
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let node = Node::in_memory().bind_loopback().open().await?;
//! let group = node.create(GroupKey::generate(), LogStore::new()).await?;
//! let chat = group.topic(Topic::named("chat"));
//! chat.open(Line::V07).await?;
//!
//! let publishing = chat.publish("hello").await?;
//! let id = publishing.id(); // at once
//! let published = publishing.await?; // a quorum has it on disk
//! assert_eq!((published.id, published.number), (id, 0));
//!
//! // At any member, now or after a restart: goes on behind what "reader" has acknowledged.
//! let from = StreamFrom::cursor("reader");
//! let mut messages = chat.subscribe::<String>(from, Acknowledge::Explicit).await?;
//! loop {
//!     if let StreamEvent::Message(received) = messages.next().await? {
//!         assert_eq!((received.message.as_str(), received.id()), ("hello", id));
//!         received.ack()?;
//!         break;
//!     }
//! }
//! messages.flush().await?; // the group knows that it is acknowledged
//! # node.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Publishing
//!
//! Messages of one member in one topic are committed in the order in which they were published,
//! and each at most once. [`TopicStream::publish`] signs and gives the operation's id at once; many
//! may be on their way. What follows one that is refused is signed anew, and has another id then:
//! [`Published`] says which. Nothing is shown to anybody before it is committed, so no id that
//! was given up is ever seen elsewhere.
//!
//! Without a quorum [`TopicStream::publish`] answers within
//! [`execute_timeout`](crate::config::Config::execute_timeout), with [`PublishError::NoQuorum`]
//! where it finds no place. A message that has one ends in the same way in that time, unless a
//! leader took it that then lost its quorum: whether that is committed is known once there is a
//! quorum again, and [`Publishing`] waits for that. None of them is committed after it was said not
//! to be.
//!
//! # Delivery
//!
//! Every subscription gets the messages of all authors in the order of their commits, the same at
//! every member, each at least once, but for those that were pruned before a subscriber got to
//! them. What was not acknowledged is delivered again to whoever
//! subscribes next through the same cursor: after a restart, or at another member.
//!
//! ```text
//! number   0   1   2   3   4   5   6
//! acked    x   x   .   x   x   .         cursor 2: a new holder begins there
//! ```
//!
//! A cursor is kept in the group by name. Its newest subscription is its holder; the one before
//! ends with [`AckError::TakenOver`]. Acknowledgements are written together, each
//! [`ACK_DELAY`] at most. [`TopicStream::cursors`] lists them, [`TopicStream::forget_cursor`]
//! removes one.
//!
//! A message that cannot be worked off at the moment is refused with [`Received::nack`]. It is
//! delivered again, after a pause that grows and a number of times that is set
//! ([`Redelivery`]); others are delivered meanwhile. Then [`StreamEvent::ProcessingFailed`] tells
//! of it, and only the consumer gives it up, by acknowledging it. Who must have all in order does
//! not ask for the next message before this one is worked off.
//!
//! # Events
//!
//! They are named as those of p2panda's streams. These differ:
//!
//! - `ProcessingFailed` is of the application's own processing. What fails p2panda's checks before
//!   it is not in the log store, and whoever hands it in is told.
//! - `AckFailed` is [`StreamEvent::AcksDelayed`] while it is tried on, and [`AckError`] once the
//!   cursor is lost.
//! - `ReplayStarted` and `ReplayEnded` come always. The end is that of what the group had
//!   committed, not of what this member held.
//! - `ReplayFailed` is [`StreamEvent::ReplayDelayed`] while it is tried on, and
//!   [`StreamError::Logs`] when the store cannot be read.
//! - For `ImportStarted` and `ImportEnded` [`TopicStream::import`] says what became of each.
//!
//! # What is not kept
//!
//! [`TopicStream::ephemeral`] sends messages that are signed, go to whoever is there, and are
//! forgotten. They travel between open doors and p2panda nodes, never through the group.
//!
//! # Limits
//!
//! [`PUBLISHES_MAX`] messages and [`PUBLISH_BYTES_MAX`] wait or are on their way, a member and
//! topic; then `publish` waits. [`UNACKNOWLEDGED_MAX`] are delivered behind one that is not
//! acknowledged, and a consumer's reason for a refusal is kept up to [`REASON_BYTES_MAX`]. Bodies
//! above 16 KiB are decoded on a thread for blocking work. A message has as many bytes as
//! [`command_bytes_max`](crate::config::Config::command_bytes_max) has room for, 2 MiB by default.

mod acks;
mod cursor;
mod ephemeral;
mod error;
mod event;
mod message;
mod replay;
mod subscription;
mod topic;
mod window;

pub use self::{
    cursor::{ACK_DELAY, CURSOR_NAME_BYTES_MAX, Cursor, CursorName},
    ephemeral::{EphemeralMessage, EphemeralPublishError, EphemeralStream},
    error::{AckError, StreamError, SubscribeError},
    event::{Received, Source, StreamEvent},
    message::DecodeError,
    subscription::{Acknowledge, StreamFrom, Subscription},
    topic::TopicStream,
    window::{REASON_BYTES_MAX, Redelivery, UNACKNOWLEDGED_MAX},
};
pub use crate::log_store::{PUBLISH_BYTES_MAX, PUBLISHES_MAX, PublishError, Published, Publishing};
