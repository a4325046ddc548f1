//! The log store's machine: which operations are taken, and what is written for them.

mod authors;
mod command;
#[cfg(test)]
mod model;
mod notes;

use std::{collections::BTreeMap, convert::Infallible, io, ops::ControlFlow, sync::Arc};

pub use self::authors::TOPIC_AUTHORS_MAX;
use self::authors::authors;
pub use self::command::{APPEND_OPERATIONS_MAX, LogCommand, LogOutput, OutcomeRun, RawOperation};
use self::command::{Runs, Taken};
pub use self::notes::{
    Expected, NOTE_NAME_BYTES_MAX, NOTE_VALUE_BYTES_MAX, NOTES_MAX, NoteRefused, NoteVersion,
};
use super::{
    error::{ChainRefused, LogRefused},
    hearsay::Hearsay,
    ingest::InFlight,
    operation::{self, Author, Line, LogId, Operation, Topic},
    publisher::Publishers,
    table::{self, Head, Held, OperationRecord, Place, TopicRecord},
};
use crate::machine::{
    InvalidCommand, Order, Position, Snapshot, SnapshotReader, StateMachine, Table, TableView,
};

/// Pruned operations that one command removes from the table, besides what it is for; an append
/// removes twice what it brings if that is more, so that sweeping keeps up. Frozen likewise.
const SWEEP_OPERATIONS: usize = 512;

/// Append-only logs of p2panda operations, kept in the node's store.
///
/// Found or join a group with it and use it through [`Logs`](super::Logs), which
/// [`Group::logs`](crate::Group::logs) gives. Every member checks the signature of each operation
/// before it takes it, from whomever it comes ([`StateMachine::validate`]), and when it is applied:
///
/// - its header and body are what a stock node of the topic's line decodes ([`Operation::decode`]);
/// - the topic is open and of the operation's line, and the log id is the topic's;
/// - it follows the last of its log: the next sequence number, and the backlink names the last. An
///   operation with the prune flag may leave a gap; what is below it is then gone;
/// - its author is one of the topic's, or there are fewer than [`TOPIC_AUTHORS_MAX`] of them;
/// - an operation that is held already changes nothing; another one in its place is a fork, and
///   refused.
///
/// Nothing of it grows in memory with the logs. Pruned operations are gone at once, and their
/// bytes are freed by the commands that follow, some hundred operations each.
///
/// ```
/// use quorate::{
///     Position, StateMachine,
///     log_store::{Line, LogCommand, LogOutput, LogStore, Topic},
/// };
///
/// let mut store = LogStore::new();
/// let at = Position { term: 1, index: 1, offset: 0 };
/// let topic = Topic::named("cats");
/// let opened = store.apply(at, LogCommand::OpenTopic { topic, line: Line::V07 });
/// assert_eq!(opened, LogOutput::Done);
/// ```
#[derive(Default)]
pub struct LogStore {
    table: Table,
    in_flight: Arc<InFlight>,
    publishers: Arc<Publishers>,
    hearsay: Arc<Hearsay>,
    /// False if nothing waits to be swept; what it says follows from the table.
    sweeping: Sweeping,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sweeping {
    /// As after a start: the table must be looked at.
    #[default]
    Unknown,
    Something,
    Nothing,
}

/// What readers have of a [`LogStore`]. Read it through [`Logs`](super::Logs).
#[derive(Clone, Debug)]
pub struct LogView {
    pub(super) table: TableView,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) publishers: Arc<Publishers>,
    pub(super) hearsay: Arc<Hearsay>,
}

impl LogStore {
    /// An empty store, as at the founding.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn open_topic(&self, topic: Topic, line: Line) -> LogOutput {
        let record = match self.topic(topic) {
            Some(record) if record.line != line && record.next > 0 => {
                let refused = LogRefused::OtherLine { line: record.line };
                return LogOutput::Refused(refused);
            }
            Some(record) => TopicRecord {
                line,
                open: true,
                ..record
            },
            None => TopicRecord {
                line,
                open: true,
                next: 0,
            },
        };
        self.put_topic(topic, &record);
        LogOutput::Done
    }

    fn close_topic(&self, topic: Topic) -> LogOutput {
        let Some(record) = self.topic(topic) else {
            return LogOutput::Refused(LogRefused::NotOpen);
        };
        let closed = TopicRecord {
            open: false,
            ..record
        };
        self.put_topic(topic, &closed);
        LogOutput::Done
    }

    fn associate(&self, topic: Topic, author: Author, log: LogId, associated: bool) -> LogOutput {
        let Some(record) = self.topic(topic) else {
            return LogOutput::Refused(LogRefused::NotOpen);
        };
        if log != topic.log_id() {
            return LogOutput::Refused(LogRefused::OtherLog);
        }
        let mut head = self.head(log, author);
        let head = head.get_or_insert_with(|| Head::new(record.line));
        let counted = authors::counts(head);
        head.associated = associated;
        let counts = authors::counts(head);
        if counted != counts {
            let authors = self.authors(topic);
            if counts && authors >= TOPIC_AUTHORS_MAX {
                return LogOutput::Refused(LogRefused::TooManyAuthors);
            }
            self.put_authors(topic, authors + u32::from(counts) - u32::from(counted));
        }
        self.put_head(log, author, head);
        LogOutput::Done
    }

    fn append(&mut self, topic: Topic, operations: Vec<RawOperation>) -> LogOutput {
        if operations.len() > APPEND_OPERATIONS_MAX {
            return LogOutput::Refused(LogRefused::TooMany);
        }
        let Some(mut record) = self.topic(topic).filter(|it| it.open) else {
            return LogOutput::Refused(LogRefused::NotOpen);
        };
        let mut appending = Appending {
            table: &self.table,
            log: topic.log_id(),
            line: record.line,
            next: record.next,
            heads: BTreeMap::new(),
            authors: None,
            pruned: false,
        };
        let mut runs = Runs::default();
        let room = SWEEP_OPERATIONS.max(2 * operations.len());
        for operation in operations {
            match appending.take(operation) {
                Ok(taken) => runs.push(taken),
                Err(refused) => runs.0.push(OutcomeRun::Refused(refused)),
            }
        }
        let pruned = appending.pruned;
        if let Some(authors) = appending.authors {
            // Also where all were refused: what was counted once is not counted again.
            self.put_authors(topic, authors);
        }
        if appending.next != record.next {
            record.next = appending.next;
            for (author, (head, changed)) in &appending.heads {
                if let (Some(head), true) = (head, changed) {
                    self.put_head(appending.log, *author, head);
                }
            }
            self.put_topic(topic, &record);
        }
        if pruned {
            self.sweeping = Sweeping::Something;
        }
        self.sweep(room);
        LogOutput::Appended(runs.0)
    }

    fn prune(&mut self, author: Author, log: LogId, below: u32) -> LogOutput {
        let nothing = LogOutput::Pruned {
            operations: 0,
            bytes: 0,
            left: false,
        };
        let Some(head) = self.head(log, author) else {
            return nothing;
        };
        let Some(held) = head.held else {
            return nothing;
        };
        let first = below.min(held.last);
        if first <= held.first {
            return nothing;
        }
        let Some(before) = self.front(log, author, first - 1) else {
            return nothing;
        };
        let pruned = Held {
            first,
            begins: false,
            bytes_before: before.bytes_through,
            ..held
        };
        let head = Head {
            held: Some(pruned),
            ..head
        };
        self.put_head(log, author, &head);
        mark_for_sweep(&self.table, log, author, held.first);
        self.sweeping = Sweeping::Something;
        LogOutput::Pruned {
            operations: u64::from(first - held.first),
            bytes: before.bytes_through - held.bytes_before,
            left: self.sweep(SWEEP_OPERATIONS),
        }
    }

    /// Removes at most `room` of what was pruned; whether there is more.
    fn sweep(&mut self, mut room: usize) -> bool {
        if self.sweeping == Sweeping::Nothing {
            return false;
        }
        while let Some((log, author, from)) = self.next_sweep() {
            if room == 0 {
                self.sweeping = Sweeping::Something;
                return true;
            }
            let first = self.head(log, author).and_then(|it| it.held);
            let first = first.map_or(0, |it| it.first);
            let done = self.sweep_log(log, author, from..first, room);
            room -= done.len();
            match done.last() {
                Some(last) if room == 0 && last + 1 < first => {
                    let value = table::encode_sweep(last + 1);
                    self.table.put(&table::sweep_key(log, author), value);
                }
                _ => self.table.delete(&table::sweep_key(log, author)),
            }
        }
        self.sweeping = Sweeping::Nothing;
        false
    }

    /// Removes at most `room` operations of a range; which ones.
    fn sweep_log(
        &self,
        log: LogId,
        author: Author,
        range: std::ops::Range<u32>,
        room: usize,
    ) -> Vec<u32> {
        let mut found = Vec::new();
        if range.is_empty() {
            return found;
        }
        let (from, to) = table::operations(log, author, range.start, range.end - 1);
        self.table
            .scan(&from, &to, Order::Ascending, &mut |key, value| {
                let place = readable(table::decode_operation_key(key));
                let front = readable(OperationRecord::decode_front(value));
                self.table.delete(key);
                self.table.delete(&table::place_key(front.id));
                self.table.delete(&table::order_key(log, front.number));
                found.push(place.seq);
                if found.len() < room {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
        found
    }

    fn next_sweep(&self) -> Option<(LogId, Author, u32)> {
        let (from, to) = table::sweeps();
        let mut next = None;
        self.table
            .scan(&from, &to, Order::Ascending, &mut |key, value| {
                let (log, author) = readable(table::decode_sweep_key(key));
                next = Some((log, author, readable(table::decode_sweep(value))));
                ControlFlow::Break(())
            });
        next
    }

    fn topic(&self, topic: Topic) -> Option<TopicRecord> {
        let value = self.table.get(&table::topic_key(topic))?;
        Some(readable(TopicRecord::decode(&value)))
    }

    fn put_topic(&self, topic: Topic, record: &TopicRecord) {
        self.table.put(&table::topic_key(topic), record.encode());
    }

    fn head(&self, log: LogId, author: Author) -> Option<Head> {
        head(&self.table, log, author)
    }

    fn put_head(&self, log: LogId, author: Author, head: &Head) {
        self.table.put(&table::head_key(log, author), head.encode());
    }

    fn front(&self, log: LogId, author: Author, seq: u32) -> Option<table::Front> {
        front(&self.table, log, author, seq)
    }
}

impl StateMachine for LogStore {
    const NAME: &'static str = "quorate.logs";
    const STORED: bool = true;
    const VALIDATES: bool = true;
    /// A handful of signatures.
    const VALIDATES_INLINE_BELOW: usize = 1_024;
    type Command = LogCommand;
    type Output = LogOutput;
    /// There is none: [`Logs`](super::Logs) reads.
    type Query = Infallible;
    type Answer = Infallible;
    type View = LogView;

    fn open(&mut self, table: Table) {
        self.table = table;
        self.sweeping = Sweeping::Unknown;
    }

    /// Each operation's signature. Form and place are looked at where it is appended.
    fn validate(command: &LogCommand) -> Result<(), InvalidCommand> {
        match command {
            LogCommand::Append { operations, .. } => signed(operations),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, at: Position, command: LogCommand) -> LogOutput {
        match command {
            LogCommand::OpenTopic { topic, line } => self.open_topic(topic, line),
            LogCommand::CloseTopic { topic } => self.close_topic(topic),
            LogCommand::Append { topic, operations } => self.append(topic, operations),
            LogCommand::Associate { topic, author, log } => {
                self.associate(topic, author, log, true)
            }
            LogCommand::Dissociate { topic, author } => {
                self.associate(topic, author, topic.log_id(), false)
            }
            LogCommand::Prune { author, log, below } => self.prune(author, log, below),
            LogCommand::Sweep => LogOutput::Swept {
                left: self.sweep(SWEEP_OPERATIONS),
            },
            LogCommand::Note {
                name,
                value,
                expected,
            } => self.note(at, &name, value.as_ref(), expected),
        }
    }

    fn view(&self) -> LogView {
        LogView {
            table: self.table.view(),
            in_flight: Arc::clone(&self.in_flight),
            publishers: Arc::clone(&self.publishers),
            hearsay: Arc::clone(&self.hearsay),
        }
    }

    fn query(_: &LogView, query: Infallible) -> Infallible {
        query
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of_table(&self.table)
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.sweeping = Sweeping::Unknown;
        self.table.restore(from)
    }
}

impl std::fmt::Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").finish_non_exhaustive()
    }
}

/// Whether operations are signed by their authors, as far as they can be read: which line the topic
/// is of, the table says, and what is of neither is refused where it is appended.
fn signed(operations: &[RawOperation]) -> Result<(), InvalidCommand> {
    let read = |it: &RawOperation| {
        let decode = |line| Operation::decode(line, it.header.clone(), it.body.clone());
        decode(Line::V07).or_else(|_| decode(Line::V06)).ok()
    };
    let operations: Vec<Operation> = operations.iter().filter_map(read).collect();
    let invalid = operation::verify_all(&operations)
        .into_iter()
        .find_map(Result::err);
    invalid.map_or(Ok(()), |why| {
        Err(InvalidCommand::new(format!("a forged operation: {why}")))
    })
}

/// One append under way.
struct Appending<'a> {
    table: &'a Table,
    log: LogId,
    line: Line,
    /// The number of the next operation that is taken.
    next: u64,
    /// The heads met, and whether they changed. At most one an operation.
    heads: BTreeMap<Author, (Option<Head>, bool)>,
    /// How many authors the topic has, once that matters.
    authors: Option<u32>,
    /// Whether there is something new to be swept.
    pruned: bool,
}

impl Appending<'_> {
    fn take(&mut self, raw: RawOperation) -> Result<Taken, ChainRefused> {
        // Checked before it was proposed, where the rule is named; an honest proposer never gets
        // here with one that fails.
        let operation = Operation::decode(self.line, raw.header, raw.body)
            .map_err(|_| ChainRefused::Malformed)?;
        if operation.log_id() != self.log {
            return Err(ChainRefused::OtherLog);
        }
        let (author, seq) = (operation.author(), operation.seq());
        let (table, log) = (self.table, self.log);
        let entry = self.heads.entry(author);
        let (head, changed) = entry.or_insert_with(|| (head(table, log, author), false));
        let held = head.and_then(|it| it.held);
        if let Some(held) = held
            && seq <= held.last
        {
            return already(table, log, &operation, &held).map(Taken::Held);
        }
        if head.is_some_and(|it| !it.associated) {
            return Err(ChainRefused::Dissociated);
        }
        if held.is_none() {
            let count = self.authors.get_or_insert_with(|| authors(table, log));
            if *count >= TOPIC_AUTHORS_MAX {
                return Err(ChainRefused::TooManyAuthors);
            }
        }
        if !operation.prune() {
            follows(&operation, held.as_ref())?;
        }
        if held.is_none() {
            self.authors = self.authors.map(|it| it + 1);
        }
        let bytes_before = held.map_or(0, |it| it.bytes_through);
        let goes_on = held.filter(|_| !operation.prune());
        let bytes_through = bytes_before.saturating_add(operation.bytes());
        let record = head.get_or_insert_with(|| Head::new(self.line));
        record.held = Some(Held {
            first: goes_on.map_or(seq, |it| it.first),
            last: seq,
            last_id: operation.id(),
            begins: goes_on.is_none_or(|it| it.begins),
            bytes_before: goes_on.map_or(bytes_before, |it| it.bytes_before),
            bytes_through,
        });
        *changed = true;
        if let Some(held) = held.filter(|_| operation.prune()) {
            mark_for_sweep(table, log, author, held.first);
            self.pruned = true;
        }
        let number = self.next;
        self.next += 1;
        self.write(&operation, number, bytes_through);
        Ok(Taken::Appended(number))
    }

    fn write(&self, operation: &Operation, number: u64, bytes_through: u64) {
        let (author, seq) = (operation.author(), operation.seq());
        let record = OperationRecord {
            number,
            bytes_through,
            id: operation.id(),
            header: operation.header().clone(),
            body: operation.body().cloned(),
        };
        let place = Place {
            log: self.log,
            author,
            seq,
        };
        let key = table::operation_key(self.log, author, seq);
        self.table.put(&key, record.encode());
        let key = table::place_key(operation.id());
        self.table.put(&key, place.encode());
        let key = table::order_key(self.log, number);
        self.table.put(&key, table::encode_order(author, seq));
    }
}

/// An operation at a place that its log has passed: held, pruned or a fork.
fn already(
    table: &Table,
    log: LogId,
    operation: &Operation,
    held: &Held,
) -> Result<u64, ChainRefused> {
    let seq = operation.seq();
    if seq < held.first {
        return Err(ChainRefused::Pruned { first: held.first });
    }
    match front(table, log, operation.author(), seq) {
        Some(front) if front.id == operation.id() => Ok(front.number),
        Some(front) => Err(ChainRefused::Fork { held: front.id }),
        // Only where the disk has failed: nothing of this command will be written.
        None => Err(ChainRefused::Malformed),
    }
}

/// Whether an operation without the prune flag is the next of its log.
fn follows(operation: &Operation, held: Option<&Held>) -> Result<(), ChainRefused> {
    let next = match held {
        Some(held) => held.last.checked_add(1).ok_or(ChainRefused::LogFull)?,
        None => 0,
    };
    if operation.seq() != next {
        return Err(ChainRefused::Gap { next });
    }
    match held {
        Some(held) if operation.backlink() != Some(held.last_id) => {
            Err(ChainRefused::Backlink { last: held.last_id })
        }
        _ => Ok(()),
    }
}

/// Notes that a log has something to be swept from `from` on, unless it is noted already.
fn mark_for_sweep(table: &Table, log: LogId, author: Author, from: u32) {
    let key = table::sweep_key(log, author);
    if table.get(&key).is_none() {
        table.put(&key, table::encode_sweep(from));
    }
}

fn head(table: &Table, log: LogId, author: Author) -> Option<Head> {
    let value = table.get(&table::head_key(log, author))?;
    Some(readable(Head::decode(&value)))
}

fn front(table: &Table, log: LogId, author: Author, seq: u32) -> Option<table::Front> {
    let value = table.get(&table::operation_key(log, author, seq))?;
    Some(readable(OperationRecord::decode_front(&value)))
}

/// What the machine itself wrote. Damage is found by the store's checksums, so what does not decode
/// was written by another program: to go on would be another state than the others'.
fn readable<T>(decoded: io::Result<T>) -> T {
    match decoded {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
#[path = "machine/tests.rs"]
mod tests;
