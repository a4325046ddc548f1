//! What the log store takes, what it refuses and why, and what can go wrong on the way.

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    machine::{NoteRefused, TOPIC_AUTHORS_MAX},
    operation::{Line, OperationId, Refused},
};
use crate::group::{ExecuteError, NotApplied, QueryError, Stopped};

/// What became of one operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is in the store now, on a quorum.
    Appended {
        /// Its number in the topic's commit order.
        number: u64,
    },
    /// It was in the store already, on a quorum; nothing was changed.
    Held {
        /// Its number in the topic's commit order.
        number: u64,
    },
    /// It was not taken, and never will be as it is.
    Refused(Refusal),
}

impl Outcome {
    /// The operation's number in the topic's commit order, if the store holds it.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Appended { number } | Self::Held { number } => Some(*number),
            Self::Refused(_) => None,
        }
    }
}

/// Why an operation was not taken. Nothing of the store was changed by it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// By itself: no store takes it.
    #[error(transparent)]
    Invalid(Refused),
    /// By what the topic and its log hold.
    #[error(transparent)]
    Chain(ChainRefused),
    /// By the topic: nothing is appended to it.
    #[error(transparent)]
    Topic(LogRefused),
    /// It does not fit into one command.
    #[error(
        "an operation of {bytes} bytes exceeds what one command may carry, {max}: make the body \
         smaller, or raise command_bytes_max on all members"
    )]
    TooLarge {
        /// Its bytes, of header and body.
        bytes: u64,
        /// What fits.
        max: u64,
    },
}

/// Why an operation does not go with what its log holds. The order of the variants is format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ChainRefused {
    /// It breaks a rule of its line; its proposer failed to check it.
    #[error("the operation is not one that a node of the topic's line decodes: check it first")]
    Malformed,
    /// Its log id is not the topic's: stock nodes take only that one.
    #[error("the operation's log id is not BLAKE3(topic), the only log that a topic has")]
    OtherLog,
    /// The author's log was taken out of the topic.
    #[error("the author's log was taken out of the topic: associate it first")]
    Dissociated,
    /// Operations before it are missing.
    #[error("operations are missing before it: the log goes on at sequence number {next}")]
    Gap {
        /// The sequence number that the log waits for.
        next: u32,
    },
    /// It follows another operation than the log's last: the author's log has forked.
    #[error("its backlink does not name the log's last operation, {last}: the log has forked")]
    Backlink {
        /// The last operation that is held.
        last: OperationId,
    },
    /// Another operation is held in its place: the author's log has forked.
    #[error("another operation, {held}, is held at its sequence number: the log has forked")]
    Fork {
        /// The operation that is held.
        held: OperationId,
    },
    /// Its place is below what was pruned. Harmless: whether it was there is not known any more.
    #[error("its place is pruned: the log begins at sequence number {first}")]
    Pruned {
        /// The first sequence number that is held.
        first: u32,
    },
    /// The last sequence number is taken.
    #[error("the log has reached the last sequence number: its author must begin another one")]
    LogFull,
    /// The topic has as many authors as one may, and its author is none of them.
    #[error(
        "the topic has {TOPIC_AUTHORS_MAX} authors, as many as one may, and its author is none of \
         them: take authors out of it that are not wanted, or write to another topic"
    )]
    TooManyAuthors,
}

/// Why a command on a topic changed nothing. The order of the variants is format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum LogRefused {
    /// The topic was not opened, or is closed.
    #[error("the topic is not open: open it with its line first")]
    NotOpen,
    /// The topic holds operations of the other line; the two are mutually unreadable.
    #[error("the topic is of line {line} for good, since it holds operations of it")]
    OtherLine {
        /// The topic's line.
        line: Line,
    },
    /// A topic has only the log that is named after it.
    #[error("only the log BLAKE3(topic) can be associated with a topic: stock nodes see no other")]
    OtherLog,
    /// An append carries more operations than members agree to take in one.
    #[error("an append carries more operations than one may: split it")]
    TooMany,
    /// The author's log would be one more than a topic may have.
    #[error(
        "the topic has {TOPIC_AUTHORS_MAX} authors, as many as one may: take others out of it first"
    )]
    TooManyAuthors,
}

/// What the log store could not do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The operation was not taken; see there why. Asking again as it is does not help.
    #[error(transparent)]
    Refused(Refusal),
    /// No quorum answered in time. What was to be appended was not, or not all of it; asking again
    /// is safe.
    #[error("no quorum answered in time: check that a majority of the voters is up, then retry")]
    NoQuorum,
    /// What was to be changed may have been, or may yet be. Asking again is safe.
    #[error("what became of it is unknown: ask again, for nothing is appended twice")]
    Unknown,
    /// This node's store cannot be read.
    #[error("the log store cannot be read on this node: {0}")]
    Storage(Arc<io::Error>),
    /// The group does not run on this node any more.
    #[error(transparent)]
    Stopped(Stopped),
    /// The command could not be proposed as it is; the text says why.
    #[error("the command cannot be taken: {why}")]
    NotTaken {
        /// In words.
        why: String,
    },
}

impl From<LogRefused> for LogError {
    fn from(refused: LogRefused) -> Self {
        Self::Refused(Refusal::Topic(refused))
    }
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}

impl From<QueryError> for LogError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NoLeader => Self::NoQuorum,
            QueryError::Stopped(stopped) => Self::Stopped(stopped),
        }
    }
}

impl From<ExecuteError> for LogError {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::NotApplied(NotApplied::NoLeader) => Self::NoQuorum,
            ExecuteError::NotApplied(why) => Self::NotTaken {
                why: why.to_string(),
            },
            // Whether it was applied is known, its outcome is not: asking again tells.
            ExecuteError::Unknown(_) | ExecuteError::AnswerLost { .. } => Self::Unknown,
            ExecuteError::Stopped(stopped) => Self::Stopped(stopped),
        }
    }
}

/// A note was not changed, or it is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoteError {
    /// It was not.
    #[error(transparent)]
    Refused(NoteRefused),
    /// It may have been.
    #[error(transparent)]
    Logs(#[from] LogError),
}
