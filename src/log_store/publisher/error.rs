//! What a publish could not do.

use crate::{
    group::{NotApplied, Stopped},
    log_store::error::{LogError, Refusal},
};

/// A message was not published, or it is not known.
///
/// After every error but [`PublishError::Unknown`] it was not and will not be: publishing it again
/// does not double it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message cannot be written as CBOR.
    #[error("the message cannot be encoded: {why}")]
    NotEncoded {
        /// In words.
        why: String,
    },
    /// The store does not take it, and says by which rule: mostly that the topic is not open, or
    /// that the message is too large.
    #[error(transparent)]
    Refused(Refusal),
    /// No quorum told anything for [`execute_timeout`](crate::config::Config::execute_timeout), or
    /// none could say where the author's log ends in
    /// [`query_timeout`](crate::config::Config::query_timeout).
    #[error("no quorum answered in time: check that a majority of the voters is up, then retry")]
    NoQuorum,
    /// Another writer with the same author key took the message's place 32 times.
    #[error("another program keeps writing this author's log: give each one a key of its own")]
    Contended,
    /// It could not be proposed; the text says why.
    #[error("the message cannot be taken: {why}")]
    NotTaken {
        /// In words.
        why: String,
    },
    /// This node's store cannot be read.
    #[error("the log store cannot be read on this node: {0}")]
    Storage(std::sync::Arc<std::io::Error>),
    /// The group does not run on this node any more.
    #[error(transparent)]
    Stopped(Stopped),
    /// The group stopped on this node while the message was on its way: it may be published. Its
    /// id tells, at any member.
    #[error("the group stopped while the message was on its way: look for its id")]
    Unknown,
}

impl From<LogError> for PublishError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Refused(refusal) => Self::Refused(refusal),
            LogError::NoQuorum => Self::NoQuorum,
            LogError::Unknown => Self::Unknown,
            LogError::Storage(error) => Self::Storage(error),
            LogError::Stopped(stopped) => Self::Stopped(stopped),
            LogError::NotTaken { why } => Self::NotTaken { why },
        }
    }
}

impl From<NotApplied> for PublishError {
    fn from(why: NotApplied) -> Self {
        match why {
            NotApplied::NoLeader => Self::NoQuorum,
            why => Self::NotTaken {
                why: why.to_string(),
            },
        }
    }
}
