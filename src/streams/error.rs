//! What a subscription could not do.

use super::cursor::CURSOR_NAME_BYTES_MAX;
use crate::{group::Stopped, identity::MemberId, log_store::LogError};

/// A subscription did not begin. Nothing is changed by it but, where it says so, the holder of
/// the cursor.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The name of the cursor is empty or too long.
    #[error("a cursor's name has 1 to {CURSOR_NAME_BYTES_MAX} bytes")]
    CursorName,
    /// A newer version of this crate wrote the cursor.
    #[error("the cursor was written by a newer version: run that one")]
    NewerCursor,
    /// The cursor cannot be kept; the text says why.
    #[error("the cursor cannot be kept: {why}")]
    NotKept {
        /// In words.
        why: String,
    },
    /// Others keep taking the same cursor.
    #[error("others keep taking the cursor over: use one name a consumer")]
    Contended,
    /// The log store did not answer. The cursor may be held by this subscription now; asking
    /// again is safe.
    #[error(transparent)]
    Logs(#[from] LogError),
}

/// A subscription ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Nothing that it delivers can be acknowledged any more.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// What was to be delivered, or delivered again, cannot be read; or the group stopped on this
    /// node. Subscribing again goes on where acknowledgement ended.
    #[error(transparent)]
    Logs(#[from] LogError),
}

/// An acknowledgement is without effect, and all later ones of the subscription too: what was not
/// acknowledged before is delivered again to whoever holds the cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// A newer subscription holds the cursor.
    #[error("a newer subscription holds the cursor, at member {by}: stop, or subscribe again")]
    TakenOver {
        /// The member that it is at.
        by: MemberId,
    },
    /// The cursor was removed.
    #[error("the cursor was removed: subscribe again to begin anew")]
    Forgotten,
    /// The cursor cannot be kept; the text says why.
    #[error("the cursor cannot be kept: {why}")]
    NotKept {
        /// In words.
        why: String,
    },
    /// The group does not run on this node any more.
    #[error(transparent)]
    Stopped(Stopped),
}
