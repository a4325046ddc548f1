//! The state of a machine that keeps it in the node's store, on its way there.
//!
//! What entries change gathers in the machine's table. Before anybody is told of them, one batch
//! is written with the changes, the position, the membership, and what the table of sessions is
//! rebuilt from: the answers of the entries, or now and then the whole table. So after a restart
//! nothing is applied again, and every retry still gets its first answer.
//!
//! # Why nothing is missing after a power cut
//!
//! These batches are not synced, and the journal is purged. The engine keeps a prefix of the
//! writes in the order they were made, and openraft purges only through an index that a snapshot
//! covers, once `build_snapshot` or `install_snapshot` has returned for it:
//! - A snapshot built here was captured behind the batch of its last entry ([`Stored::write`] runs
//!   first). So whatever cut keeps the purge keeps that batch, and the state is at or behind the
//!   purged index.
//! - One installed was synced and renamed before its content was restored, and the batch that
//!   switches to it comes before the purge. A cut in between leaves the former state and a current
//!   snapshot that is newer: openraft hands it to `install_snapshot` again before it reads a
//!   journal entry.
//! - The journal's entry is written before it is applied, so no state is ahead of its journal,
//!   but where a snapshot brought it there; openraft then purges the journal up to it.

use std::{collections::BTreeSet, io, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{
    LogId, SnapshotMeta, StoredMembership, codec, entry::SessionId, log_id, sessions::Sessions,
};
use crate::{
    error::Cause,
    identity::MemberId,
    machine::{Backing, Order, Pinned, Position, Reads, Table, Visit},
    storage::{self, GroupState, LocalGroup, Resumed, SessionsNote, StateMoment, Store},
};

/// Unwritten changes beyond this are written before the next entry, in bytes.
const UNWRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of answers written since the last checkpoint of the sessions at which the next one is
/// due, or as many as that checkpoint had: so a checkpoint costs no more than the answers did.
const CHECKPOINT_AFTER_BYTES: usize = 1024 * 1024;
/// And batches: each is read at the next start.
const CHECKPOINT_AFTER_BATCHES: usize = 4_096;

/// The state in the store, and what is not there yet.
pub(crate) struct Stored {
    state: GroupState,
    table: Table,
    resumed: Option<Resumed>,
    /// The answers of the entries behind the last write.
    answers: Vec<u8>,
    unsaved_bytes: usize,
    unsaved_batches: usize,
    checkpoint_bytes: usize,
}

/// What was applied before, as the store has it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) applied: Option<LogId>,
    pub(super) membership: StoredMembership,
    pub(super) removed: BTreeSet<MemberId>,
    pub(super) sessions: Sessions,
}

/// One entry of the answers. Its bytes are frozen, and so is the order of the variants.
#[derive(Debug, Serialize, Deserialize)]
enum Answered {
    Opened {
        index: u64,
    },
    Commands {
        at: Position,
        session: SessionId,
        first_seq: u64,
        lowest_unanswered: u64,
        count: u32,
        /// Of those that were applied, in order.
        outputs: Vec<Bytes>,
    },
}

impl Stored {
    /// Takes the group's state over. Blocks on the disk.
    ///
    /// # Errors
    /// `InvalidData` if what is needed at the start is damaged.
    pub(crate) fn open(store: &Store, local: LocalGroup) -> io::Result<Self> {
        let (state, resumed) = store.state(local)?;
        let table = Table::over(Arc::new(Backed(state.clone())));
        Ok(Self {
            state,
            table,
            resumed: Some(resumed),
            answers: Vec::new(),
            unsaved_bytes: 0,
            unsaved_batches: 0,
            checkpoint_bytes: 0,
        })
    }

    /// The machine's.
    pub(crate) fn table(&self) -> Table {
        self.table.clone()
    }

    /// What was applied before; to be asked once.
    pub(super) fn found(&mut self) -> io::Result<Found> {
        let Some(resumed) = self.resumed.take() else {
            return Err(io::Error::other("what was stored is taken once"));
        };
        let mut found = Found::default();
        let Some(note) = resumed.note else {
            return Ok(found);
        };
        let note = Note::decode(note)?;
        found.applied = note.meta.last_log_id;
        found.membership = note.meta.last_membership;
        found.removed = note.removed;
        if let Some(checkpoint) = &resumed.checkpoint {
            self.checkpoint_bytes = checkpoint.len();
            found.sessions = Sessions::read(&mut &checkpoint[..])?;
        }
        for answers in &resumed.answers {
            self.unsaved_bytes += answers.len();
            self.unsaved_batches += 1;
            replay(&mut found.sessions, answers)?;
        }
        Ok(found)
    }

    /// Whether so much is unwritten that no further entry should be applied before it is.
    pub(super) fn is_full(&self) -> bool {
        self.table.unwritten_bytes() + self.answers.len() >= UNWRITTEN_BYTES_MAX
    }

    pub(super) fn opened(&mut self, index: u64) -> io::Result<()> {
        self.note(&Answered::Opened { index })
    }

    /// `outputs` are those of the commands that were applied, in order.
    pub(super) fn answered(
        &mut self,
        at: Position,
        (session, first_seq, lowest_unanswered): (SessionId, u64, u64),
        count: usize,
        outputs: Vec<Bytes>,
    ) -> io::Result<()> {
        self.note(&Answered::Commands {
            at,
            session,
            first_seq,
            lowest_unanswered,
            count: u32::try_from(count).map_err(io::Error::other)?,
            outputs,
        })
    }

    fn note(&mut self, answered: &Answered) -> io::Result<()> {
        let answers = std::mem::take(&mut self.answers);
        self.answers = postcard::to_extend(answered, answers).map_err(io::Error::other)?;
        Ok(())
    }

    /// Writes what was changed since the last write, as the state at `note`. Visible when this
    /// returns. If it fails nothing more may be applied.
    pub(super) fn write(&mut self, note: &Note, sessions: &Sessions) -> io::Result<()> {
        let changes = self.table.take_changes();
        let changes = changes.map_err(|cause| io::Error::other(cause.to_string()))?;
        let mut batch = self.state.batch(changes.bytes());
        for (from, to) in changes.ranges() {
            self.state.delete_range(&mut batch, from, to)?;
        }
        for (key, value) in changes.entries() {
            match value {
                Some(value) => self.state.put(&mut batch, key, value),
                None => self.state.delete(&mut batch, key),
            }
        }
        let answers = std::mem::take(&mut self.answers);
        let unsaved = self.unsaved_bytes + answers.len();
        let due = unsaved >= CHECKPOINT_AFTER_BYTES.max(self.checkpoint_bytes)
            || self.unsaved_batches >= CHECKPOINT_AFTER_BATCHES;
        if due || self.state.is_restoring() {
            let checkpoint = self.state.write_checkpoint(|out| sessions.write(out))?;
            self.checkpoint_bytes = checkpoint.bytes();
            (self.unsaved_bytes, self.unsaved_batches) = (0, 0);
            let checkpoint = SessionsNote::Checkpoint(checkpoint);
            return self.state.write(batch, checkpoint, note.encode());
        }
        let told = if answers.is_empty() {
            SessionsNote::Unchanged
        } else {
            self.unsaved_bytes = unsaved;
            self.unsaved_batches += 1;
            SessionsNote::Answers(answers)
        };
        self.state.write(batch, told, note.encode())
    }

    /// Whether the machine has restored its table, and no write has made that count yet.
    pub(super) fn is_restoring(&self) -> bool {
        self.state.is_restoring()
    }

    /// The first failure of the store that the machine met.
    pub(super) fn failed(&self) -> Option<Cause> {
        self.table.failed()
    }

    /// Forgets what was noted of entries: a restore replaces it.
    pub(super) fn forget_answers(&mut self) {
        self.answers.clear();
    }
}

/// Applies stored answers to the table that they belong to.
fn replay(sessions: &mut Sessions, mut answers: &[u8]) -> io::Result<()> {
    while !answers.is_empty() {
        let (answered, rest) =
            postcard::take_from_bytes::<Answered>(answers).map_err(|_| malformed("answer"))?;
        answers = rest;
        match answered {
            Answered::Opened { index } => sessions.open(index),
            Answered::Commands {
                at,
                session,
                first_seq,
                lowest_unanswered,
                count,
                outputs,
            } => {
                let commands = vec![Bytes::new(); count as usize];
                let mut outputs = outputs.into_iter();
                let head = (session, first_seq, lowest_unanswered);
                sessions.apply(at, head, &commands, |_, _| {
                    outputs.next().ok_or_else(|| malformed("answer"))
                })?;
                if outputs.next().is_some() {
                    return Err(malformed("answer"));
                }
            }
        }
    }
    Ok(())
}

/// What a batch says of the position it brings the state to.
///
/// ```text
/// version u8 = 1 | term u64 | index u64 | removed u32 | removed x 16 bytes | the snapshot meta
/// ```
///
/// Numbers are big-endian. The position stands first, for the readers; the meta has it again.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) meta: SnapshotMeta,
    pub(super) removed: BTreeSet<MemberId>,
}

const NOTE_VERSION: u8 = 1;

impl Note {
    fn encode(&self) -> Bytes {
        let meta = codec::encode_snapshot_meta(&self.meta);
        let mut out = BytesMut::with_capacity(21 + 16 * self.removed.len() + meta.len());
        let applied = self.meta.last_log_id.unwrap_or_else(|| log_id(0, 0));
        out.put_u8(NOTE_VERSION);
        out.put_u64(applied.leader_id.term);
        out.put_u64(applied.index);
        out.put_u32(u32::try_from(self.removed.len()).unwrap_or(u32::MAX));
        for member in &self.removed {
            out.put_slice(&member.to_bytes());
        }
        out.put_slice(&meta);
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> io::Result<Self> {
        if bytes.len() < 21 || bytes.get_u8() != NOTE_VERSION {
            return Err(malformed("position"));
        }
        bytes.advance(16);
        let count = bytes.get_u32() as usize;
        let mut removed = BTreeSet::new();
        for _ in 0..count {
            let member = bytes.split_at_checked(16).map(|(it, _)| it.try_into());
            let Some(Ok(member)) = member else {
                return Err(malformed("position"));
            };
            removed.insert(MemberId::from_bytes(member));
            bytes.advance(16);
        }
        let meta = codec::decode_snapshot_meta(bytes)?;
        Ok(Self { meta, removed })
    }

    /// The position alone, of a note that may be damaged.
    fn position(bytes: &[u8]) -> Option<Position> {
        let (term, rest) = bytes.get(1..)?.split_first_chunk::<8>()?;
        let (index, _) = rest.split_first_chunk::<8>()?;
        Some(Position {
            term: u64::from_be_bytes(*term),
            index: u64::from_be_bytes(*index),
            offset: u32::MAX,
        })
    }
}

/// The store's side of a machine's table.
struct Backed(GroupState);

impl Backing for Backed {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.0.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()> {
        self.0.scan(from, to, stored_order(order), visit)
    }

    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        self.0.at_one_moment(&mut |moment| read(moment))
    }

    fn pin(&self) -> io::Result<Pinned> {
        let pinned = self.0.pin()?;
        Ok(Box::new(move |visit| pinned.visit(visit)))
    }

    fn start_over(&self) -> io::Result<()> {
        self.0.start_over()
    }

    fn fill(&self, pairs: &[(Bytes, Bytes)]) -> io::Result<()> {
        self.0.fill(pairs)
    }
}

impl Reads for StateMoment<'_> {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        StateMoment::get(self, key)
    }

    fn scan(&self, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> io::Result<()> {
        StateMoment::scan(self, from, to, stored_order(order), visit)
    }

    fn applied(&self) -> Position {
        let note = self.note();
        note.and_then(|it| Note::position(it)).unwrap_or_default()
    }
}

fn stored_order(order: Order) -> storage::Order {
    match order {
        Order::Ascending => storage::Order::Ascending,
        Order::Descending => storage::Order::Descending,
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the stored state holds a malformed {what}"),
    )
}
