//! What changes the log store, and what that answers. Frozen format: the bytes are in the journal.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::notes::{Expected, NoteRefused, NoteVersion};
use crate::log_store::{
    error::{ChainRefused, LogRefused},
    operation::{Author, Line, LogId, Topic},
};

/// Operations in one [`LogCommand::Append`]. Frozen: members must agree on what they refuse.
pub const APPEND_OPERATIONS_MAX: usize = 1_024;
/// What changes a [`LogStore`](super::LogStore). The order of the variants and fields is format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LogCommand {
    /// Opens a topic, which is of one line for good once it holds an operation.
    OpenTopic {
        /// The topic.
        topic: Topic,
        /// Which generation of the protocol its operations are of.
        line: Line,
    },
    /// Takes no more operations for a topic; what it holds stays.
    CloseTopic {
        /// The topic.
        topic: Topic,
    },
    /// Appends operations to the topic's logs; the output is [`LogOutput::Appended`].
    Append {
        /// The topic.
        topic: Topic,
        /// At most [`APPEND_OPERATIONS_MAX`], each log's in their order.
        operations: Vec<RawOperation>,
    },
    /// Counts an author's log to the topic, as its first operation does by itself; only needed
    /// after [`LogCommand::Dissociate`].
    Associate {
        /// The topic.
        topic: Topic,
        /// Whose log.
        author: Author,
        /// Must be [`Topic::log_id`] of the topic.
        log: LogId,
    },
    /// Takes an author's log out of the topic: its height is not named any more, and nothing is
    /// appended to it. What it holds stays.
    Dissociate {
        /// The topic.
        topic: Topic,
        /// Whose log.
        author: Author,
    },
    /// Drops the operations of a log below a sequence number; the newest always stays. The output
    /// is [`LogOutput::Pruned`].
    Prune {
        /// Whose log.
        author: Author,
        /// Which log.
        log: LogId,
        /// The first sequence number that stays.
        below: u32,
    },
    /// Frees bytes of pruned operations; the output is [`LogOutput::Swept`].
    Sweep,
    /// Sets or removes a note, if it still is as expected; the output is [`LogOutput::Noted`] or
    /// [`LogOutput::NotNoted`].
    Note {
        /// Which one.
        name: Bytes,
        /// What it says from now on; none removes it.
        value: Option<Bytes>,
        /// What it must be as.
        expected: Expected,
    },
}

/// An operation's bytes as they came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawOperation {
    /// The header.
    pub header: Bytes,
    /// The body, if it has one and came with it.
    pub body: Option<Bytes>,
}

/// What a [`LogCommand`] did. The order of the variants and fields is format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LogOutput {
    /// As asked, or it was so before.
    Done,
    /// What became of each operation of an append, in their order, as runs of the like.
    Appended(Vec<OutcomeRun>),
    /// A prune: what it dropped, and whether bytes are left to be freed.
    Pruned {
        /// Operations dropped.
        operations: u64,
        /// Their bytes, of headers and bodies.
        bytes: u64,
        /// Whether a [`LogCommand::Sweep`] would free more.
        left: bool,
    },
    /// A sweep: whether another one would free more.
    Swept {
        /// Whether it would.
        left: bool,
    },
    /// Nothing was changed.
    Refused(LogRefused),
    /// A note was changed; its version from now on.
    Noted(NoteVersion),
    /// A note was not changed.
    NotNoted(NoteRefused),
}

/// What became of consecutive operations of an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutcomeRun {
    /// Appended under consecutive numbers of the topic's commit order.
    Appended {
        /// The first one's.
        number: u64,
        /// How many.
        count: u32,
    },
    /// Held already, under consecutive numbers.
    Held {
        /// The first one's.
        number: u64,
        /// How many.
        count: u32,
    },
    /// One that was refused.
    Refused(ChainRefused),
}

/// What became of an operation that is in the store.
pub(super) enum Taken {
    Appended(u64),
    Held(u64),
}

/// Outcomes packed.
#[derive(Default)]
pub(super) struct Runs(pub(super) Vec<OutcomeRun>);

impl Runs {
    pub(super) fn push(&mut self, taken: Taken) {
        let run = match (self.0.last_mut(), &taken) {
            (Some(OutcomeRun::Appended { number, count }), Taken::Appended(new))
            | (Some(OutcomeRun::Held { number, count }), Taken::Held(new))
                if *number + u64::from(*count) == *new =>
            {
                *count += 1;
                return;
            }
            (_, Taken::Appended(number)) => OutcomeRun::Appended {
                number: *number,
                count: 1,
            },
            (_, Taken::Held(number)) => OutcomeRun::Held {
                number: *number,
                count: 1,
            },
        };
        self.0.push(run);
    }
}

impl OutcomeRun {
    /// How many operations it speaks of.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::Appended { count, .. } | Self::Held { count, .. } => *count,
            Self::Refused(_) => 1,
        }
    }
}
