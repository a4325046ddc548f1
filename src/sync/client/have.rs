//! How far a client's copy of a topic has come.

use std::collections::BTreeMap;

use super::frames::Known;
use crate::log_store::{Author, LogId, Operation, OperationId};

/// How far a copy of a topic has come: of each author's log the newest operation.
///
/// Who keeps a copy keeps this with it, and gives it to the next [`pull`](super::pull()): what it
/// names is not sent again, and what is sent continues it.
///
/// ```
/// use quorate::{log_store::{AuthorKey, Draft, Line, Operation, Topic}, sync::Have};
///
/// let log = Topic::named("cats").log_id();
/// let first = Operation::sign(Draft::first(Line::V07, log, 0, None), &AuthorKey::generate())?;
/// let mut have = Have::new();
/// have.advance(&first);
/// assert_eq!(have.newest(first.author(), log), Some((0, first.id())));
/// # Ok::<(), quorate::log_store::Refused>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have(BTreeMap<(Author, LogId), (u32, OperationId)>);

impl Have {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The copy holds its log up to this operation now.
    pub fn advance(&mut self, operation: &Operation) {
        let key = (operation.author(), operation.log_id());
        self.0.insert(key, (operation.seq(), operation.id()));
    }

    /// The copy holds a log up to this sequence number, where the operation has this id.
    pub fn insert(&mut self, author: Author, log: LogId, seq: u32, id: OperationId) {
        self.0.insert((author, log), (seq, id));
    }

    /// The newest operation of a log: its sequence number and id.
    #[must_use]
    pub fn newest(&self, author: Author, log: LogId) -> Option<(u32, OperationId)> {
        self.0.get(&(author, log)).copied()
    }

    /// All logs: author, log, newest sequence number, its id.
    pub fn iter(&self) -> impl Iterator<Item = (Author, LogId, u32, OperationId)> + '_ {
        let logs = self.0.iter();
        logs.map(|((author, log), (seq, id))| (*author, *log, *seq, *id))
    }

    /// How many logs it names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it names none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn known(&self) -> Vec<Known> {
        let known = |(author, log, seq, id)| Known {
            author,
            log,
            seq,
            id,
        };
        self.iter().map(known).collect()
    }
}
