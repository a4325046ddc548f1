//! The checks of what a member sends: each run by itself, and as it continues what the client has.
//!
//! An operation's id is the hash of its header, and its header names the id of the one before. So
//! the signature of a run's newest operation vouches for all below it, and each run begins where
//! the client's own newest operation ends, or with the flag that says that all before is gone.

use super::frames::Run;
use crate::log_store::{Author, Line, LogId, Operation, OperationId, Refused, Topic, verify_all};

/// What a run is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) topic: Topic,
    pub(crate) line: Line,
    /// The newest operation of the run's log that the client has.
    pub(crate) newest: Option<(u32, OperationId)>,
    /// Whether every signature is checked, not only the newest.
    pub(crate) verify_all: bool,
}

/// All operations of a run, if every rule holds. Blocking: hashes every byte.
///
/// # Errors
/// The first rule that is broken. Nothing of the run is to be used then.
pub(crate) fn check(run: Run, expected: &Expected) -> Result<Vec<Operation>, RunFault> {
    if run.log != expected.topic.log_id() {
        return Err(RunFault::OtherTopic);
    }
    let mut operations: Vec<Operation> = Vec::with_capacity(run.operations.len());
    for (raw, seq) in run.operations.into_iter().zip(u64::from(run.first)..) {
        let operation = Operation::decode(expected.line, raw.header, raw.body)
            .map_err(|why| RunFault::Invalid { seq, why })?;
        if operation.author() != run.author {
            return Err(RunFault::OtherAuthor { seq });
        }
        if operation.log_id() != run.log {
            return Err(RunFault::OtherLog { seq });
        }
        if u64::from(operation.seq()) != seq {
            return Err(RunFault::Gap {
                wanted: seq,
                found: operation.seq(),
            });
        }
        match operations.last() {
            None => check_first(&operation, expected.newest)?,
            Some(before) if operation.backlink() == Some(before.id()) => {}
            Some(_) => return Err(RunFault::Unlinked { seq }),
        }
        operations.push(operation);
    }
    let signed = match (operations.last(), expected.verify_all) {
        (None, _) => return Err(RunFault::Empty),
        (Some(newest), false) => vec![newest.verify()],
        (Some(_), true) => verify_all(&operations),
    };
    let checked = operations.iter().rev().zip(signed.into_iter().rev());
    for (operation, signed) in checked {
        let seq = u64::from(operation.seq());
        signed.map_err(|why| RunFault::Invalid { seq, why })?;
    }
    Ok(operations)
}

/// A run's first operation continues what the client has, or starts afresh.
fn check_first(first: &Operation, newest: Option<(u32, OperationId)>) -> Result<(), RunFault> {
    let (seq, wanted) = (
        first.seq(),
        newest.map_or(0, |(newest, _)| u64::from(newest) + 1),
    );
    if u64::from(seq) < wanted {
        return Err(RunFault::Again { seq });
    }
    if first.prune() {
        return Ok(());
    }
    if u64::from(seq) > wanted {
        return Err(RunFault::Gap { wanted, found: seq });
    }
    match newest {
        Some((_, held)) if first.backlink() != Some(held) => Err(RunFault::Fork { seq, held }),
        _ => Ok(()),
    }
}

/// The rule that a member broke with what it sent of a log. Nothing of that run was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunFault {
    /// A run without operations.
    #[error("a run has no operations")]
    Empty,
    /// An operation breaks a rule of its line, or its signature does not verify.
    #[error("operation {seq}: {why}")]
    Invalid {
        /// The sequence number at its place.
        seq: u64,
        /// The rule.
        why: Refused,
    },
    /// A run of a log that the topic does not have.
    #[error("a run is of another topic's log")]
    OtherTopic,
    /// An operation is by another author than its run.
    #[error("operation {seq} is by another author than its run")]
    OtherAuthor {
        /// The sequence number at its place.
        seq: u64,
    },
    /// An operation is of another log than its run.
    #[error("operation {seq} is of another log than its run")]
    OtherLog {
        /// The sequence number at its place.
        seq: u64,
    },
    /// Operations are missing, and no prune flag says that they are gone.
    #[error("operation {found} came where {wanted} was due, and no prune flag allows it")]
    Gap {
        /// The sequence number that was due.
        wanted: u64,
        /// The one that came.
        found: u32,
    },
    /// An operation came that the client has already, or another one in its place.
    #[error("operation {seq} came again")]
    Again {
        /// Its sequence number.
        seq: u32,
    },
    /// An operation continues another one than the newest that the client has: the author has
    /// forked the log, or the client's copy is of another group.
    #[error("operation {seq} does not continue {held}, the newest here: the log has forked")]
    Fork {
        /// Its sequence number.
        seq: u32,
        /// What the client has below it.
        held: OperationId,
    },
    /// The run is of one log more than a pull remembers, 65,536.
    #[error("the topic has more logs than a pull remembers")]
    TooManyLogs,
    /// An operation is not the one that the next names: it was changed or swapped.
    #[error("operation {seq} does not name the one sent before it: one of them was swapped")]
    Unlinked {
        /// The sequence number of the later one.
        seq: u64,
    },
}

/// Where a [`RunFault`] was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log {} of {}: {rule}", log.short(), author.short())]
pub struct BadRun {
    /// Whose log.
    pub author: Author,
    /// Which log.
    pub log: LogId,
    /// What is wrong.
    #[source]
    pub rule: RunFault,
}
