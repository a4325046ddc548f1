//! The replicated state of one group on this node, and openraft's hand on it.
//!
//! The state is more than the user's machine: the session table and the members that were
//! removed are replicated with it, change only while the journal is applied, and travel in the
//! same snapshot.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot},
};
use tokio::sync::{Mutex, watch};

use super::{
    Entry, LogId, Reply, SnapshotMeta, StoredMembership, Types, codec,
    entry::{Batch, SessionId},
    sessions::{Answer, Sessions, read_value, write_value},
    stored::{Found, Note, Stored},
};
use crate::{
    error::Cause,
    identity::MemberId,
    machine::{Machine, Position, SnapshotReader, Undecodable},
    metrics::Counters,
    storage::{Snapshots, StagedSnapshot, StoredSnapshot, Turn},
};

/// Entries applied before their view is published and their answers are sent.
const PUBLISH_EVERY: usize = 1_024;
/// The version of the state's snapshot format.
const SNAPSHOT_VERSION: u32 = 1;

/// The replicated state.
pub(super) struct State {
    machine: Box<dyn Machine>,
    /// Where the machine keeps its state, if not in memory.
    stored: Option<Stored>,
    /// Entries were applied behind the last write to `stored`.
    unwritten: bool,
    sessions: Sessions,
    removed: BTreeSet<MemberId>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Set by a panic in the machine, or a failure of its store; nothing is applied after it.
    broken: Option<Cause>,
}

/// What the state is worth to others, told after each step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Applied {
    pub(super) log_id: Option<LogId>,
    pub(super) membership: StoredMembership,
    pub(super) removed: Arc<BTreeSet<MemberId>>,
}

/// A cheap handle on the state. It outlives any one Raft instance, so an instance can be put away
/// and another one started on the same state.
#[derive(Clone)]
pub(crate) struct StateHandle {
    state: Arc<Mutex<State>>,
    applied: Arc<watch::Sender<Applied>>,
    snapshots: Snapshots,
    counters: Arc<Counters>,
    broken: Arc<watch::Sender<Option<Cause>>>,
}

/// A snapshot's file: received and not yet installed, or the current one.
pub(crate) enum SnapshotFile {
    Staged(StagedSnapshot),
    Stored(StoredSnapshot),
}

impl StateHandle {
    /// A machine in the store goes on where it was, and shows so at once.
    pub(super) fn new(
        machine: Box<dyn Machine>,
        mut stored: Option<Stored>,
        snapshots: Snapshots,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let found = stored.as_mut().map(Stored::found).transpose()?;
        let Found {
            applied,
            membership,
            removed,
            sessions,
        } = found.unwrap_or_default();
        let mut state = State {
            machine,
            stored,
            unwritten: false,
            sessions,
            removed,
            applied,
            membership,
            broken: None,
        };
        if state.stored.is_some() {
            state.broken = state.show().err();
        }
        Ok(Self {
            applied: Arc::new(watch::Sender::new(state.told())),
            broken: Arc::new(watch::Sender::new(state.broken.clone())),
            state: Arc::new(Mutex::new(state)),
            snapshots,
            counters,
        })
    }

    /// The table of sessions as it is.
    #[cfg(test)]
    pub(super) async fn sessions(&self) -> Sessions {
        self.state.lock().await.sessions.clone()
    }

    /// What has been applied, watchable.
    pub(super) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// The panic that stopped the machine, if one did.
    pub(super) fn broken(&self) -> watch::Receiver<Option<Cause>> {
        self.broken.subscribe()
    }

    pub(super) fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Writes what is to be in the store, publishes the view and tells what is applied, then
    /// answers: whoever has an answer sees its effect in the next local query.
    fn publish(
        &self,
        state: &mut State,
        answers: &mut Vec<(ApplyResponder<Types>, Reply)>,
    ) -> io::Result<()> {
        if let Err(cause) = state.write().and_then(|()| state.show()) {
            return Err(self.stop(state, cause));
        }
        self.applied.send_if_modified(|told| {
            let news = told.log_id != state.applied;
            told.log_id = state.applied;
            if told.membership != state.membership {
                told.membership = state.membership.clone();
            }
            if told.removed.len() != state.removed.len() {
                told.removed = Arc::new(state.removed.clone());
            }
            news
        });
        for (responder, reply) in answers.drain(..) {
            responder.send(reply);
        }
        Ok(())
    }

    async fn restore(&self, stored: &StoredSnapshot) -> io::Result<()> {
        let meta = codec::decode_snapshot_meta(stored.meta().clone())?;
        let stored = stored.clone();
        let mut state = Arc::clone(&self.state).lock_owned().await;
        let restored = tokio::task::spawn_blocking(move || {
            let mut reader = stored.reader();
            let result = guarded(|| {
                state.read(meta, &mut reader)?;
                state
                    .write()
                    .map_err(|cause| io::Error::other(cause.to_string()))
            });
            Ok::<_, io::Error>((state, result))
        });
        let (mut state, result) = restored.await.map_err(io::Error::other)??;
        match result {
            Ok(Ok(())) => {}
            // What is left of the state is of no use, so it must not be written any more.
            Ok(Err(error)) => return Err(self.stop(&mut state, Cause::new(error))),
            Err(panic) => {
                let cause = panicked(state.machine.name(), "being restored", &panic);
                return Err(self.stop(&mut state, cause));
            }
        }
        self.publish(&mut state, &mut Vec::new())
    }

    fn is_current(&self, stored: &StoredSnapshot) -> bool {
        let current = self.snapshots.current();
        current.is_some_and(|it| it.meta() == stored.meta() && it.len() == stored.len())
    }

    fn stop(&self, state: &mut State, cause: Cause) -> io::Error {
        tracing::error!(%cause, "the group stops on this node");
        state.broken = Some(cause.clone());
        self.broken.send_replace(Some(cause.clone()));
        io::Error::other(cause.to_string())
    }
}

impl RaftStateMachine<Types> for StateHandle {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state.lock().await;
        match &state.broken {
            Some(cause) => Err(io::Error::other(cause.to_string())),
            None => Ok((state.applied, state.membership.clone())),
        }
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut state = self.state.lock().await;
        let mut answers = Vec::new();
        let mut unpublished = 0;
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            if let Some(cause) = &state.broken {
                return Err(io::Error::other(cause.to_string()));
            }
            let reply = match guarded(|| state.apply(entry, &self.counters)) {
                Ok(Ok(reply)) => reply,
                Ok(Err(Halt::Entry(error))) => return Err(error),
                Ok(Err(Halt::Machine(why))) => return Err(self.stop(&mut state, Cause::new(why))),
                Err(panic) => {
                    let doing = format!("applying the entry after {}", state.position().index);
                    let cause = panicked(state.machine.name(), &doing, &panic);
                    return Err(self.stop(&mut state, cause));
                }
            };
            answers.extend(responder.map(|it| (it, reply)));
            unpublished += 1;
            if unpublished == PUBLISH_EVERY || state.stored.as_ref().is_some_and(Stored::is_full) {
                self.publish(&mut state, &mut answers)?;
                unpublished = 0;
            }
        }
        self.publish(&mut state, &mut answers)
    }

    /// Below the reserve of disk space nothing is written that can wait.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let builder = self.get_snapshot_builder().await;
        (force || builder.turn.is_ok()).then_some(builder)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let mut state = self.state.lock().await;
        let captured = state.write().and_then(|()| {
            guarded(|| state.capture())
                .map_err(|panic| panicked(state.machine.name(), "capturing a snapshot", &panic))
        });
        let content = captured.unwrap_or_else(|cause| {
            let error = self.stop(&mut state, cause);
            Box::new(move |_| Err(error))
        });
        Builder {
            meta: SnapshotMeta {
                last_log_id: state.applied,
                last_membership: state.membership.clone(),
            },
            content: std::sync::Mutex::new(Some(content)),
            turn: self.snapshots.turn(),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> io::Result<()> {
        let stored = match file {
            // At a restart openraft hands back what is stored here already.
            SnapshotFile::Stored(stored) if self.is_current(&stored) => stored,
            SnapshotFile::Stored(stored) => {
                let snapshots = self.snapshots.clone();
                let copying = tokio::task::spawn_blocking(move || copy(&stored, &snapshots));
                copying.await.map_err(io::Error::other)??
            }
            SnapshotFile::Staged(staged) => {
                let snapshots = self.snapshots.clone();
                let installing = tokio::task::spawn_blocking(move || snapshots.install(staged));
                installing.await.map_err(io::Error::other)??
            }
        };
        if codec::decode_snapshot_meta(stored.meta().clone())? != *meta {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a snapshot's file does not hold what was announced",
            ));
        }
        self.restore(&stored).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot3>> {
        let Some(stored) = self.snapshots.current() else {
            return Ok(None);
        };
        Ok(Some(Snapshot {
            meta: codec::decode_snapshot_meta(stored.meta().clone())?,
            snapshot: SnapshotFile::Stored(stored),
        }))
    }
}

type Snapshot3 = openraft::alias::SnapshotOf<Types, SnapshotFile>;

impl State {
    /// Where the last applied entry stands; its last command, if it held several.
    fn position(&self) -> Position {
        self.applied.map_or_else(Position::default, |it| Position {
            term: it.leader_id.term,
            index: it.index,
            offset: u32::MAX,
        })
    }

    fn apply(&mut self, entry: Entry, counters: &Counters) -> Result<Reply, Halt> {
        let id = entry.log_id();
        if Some(id) <= self.applied {
            // A Raft instance that was put away may still hand over what a new one has read from
            // the journal already.
            return Ok(Reply::default());
        }
        let at = Position {
            term: id.leader_id.term,
            index: id.index,
            offset: 0,
        };
        let answers = match entry.payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Membership(membership) => {
                self.remember_removed(&membership);
                self.membership = StoredMembership::new(Some(id), membership);
                Vec::new()
            }
            EntryPayload::Normal(command) => {
                match Batch::decode(&command.0).map_err(Halt::Entry)? {
                    Batch::Open => {
                        self.sessions.open(id.index);
                        if let Some(stored) = &mut self.stored {
                            stored.opened(id.index).map_err(Halt::Entry)?;
                        }
                        Vec::new()
                    }
                    Batch::Commands {
                        session,
                        first_seq,
                        lowest_unanswered,
                        commands,
                    } => {
                        let head = (session, first_seq, lowest_unanswered);
                        self.apply_commands(at, head, &commands, counters)?
                    }
                }
            }
        };
        self.applied = Some(id);
        self.unwritten = true;
        Ok(Reply { at, answers })
    }

    fn apply_commands(
        &mut self,
        at: Position,
        head: (SessionId, u64, u64),
        commands: &[Bytes],
        counters: &Counters,
    ) -> Result<Vec<Answer>, Halt> {
        let machine = &mut self.machine;
        let keep = self.stored.is_some();
        let mut applied = 0;
        let mut outputs = Vec::new();
        let answers = self.sessions.apply(at, head, commands, |at, it| {
            applied += 1;
            let output = machine.apply(at, it)?;
            if keep {
                outputs.push(output.clone());
            }
            Ok(output)
        });
        counters.commands_applied.add(applied);
        // Whoever proposed it could read every command. To go on here without one would be another
        // state than the others'.
        let answers = answers.map_err(|error: Undecodable| unreadable(machine.name(), &error))?;
        if let Some(stored) = &mut self.stored {
            if let Some(cause) = stored.failed() {
                return Err(Halt::Machine(cause.to_string()));
            }
            let noted = stored.answered(at, head, commands.len(), outputs);
            noted.map_err(Halt::Entry)?;
        }
        Ok(answers)
    }

    /// Brings the state that is in the store up to the last entry applied.
    fn write(&mut self) -> Result<(), Cause> {
        let Some(stored) = self.stored.as_mut().filter(|_| self.unwritten) else {
            return Ok(());
        };
        let note = Note {
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            removed: self.removed.clone(),
        };
        stored
            .write(&note, &self.sessions)
            .map_err(|error| Cause::new(format_args!("the state cannot be written: {error}")))?;
        self.unwritten = false;
        Ok(())
    }

    /// Shows readers the state.
    fn show(&mut self) -> Result<(), Cause> {
        if let Some(cause) = self.stored.as_ref().and_then(Stored::failed) {
            return Err(cause);
        }
        let at = self.position();
        guarded(|| self.machine.publish(at))
            .map_err(|panic| panicked(self.machine.name(), "taking a view", &panic))
    }

    fn told(&self) -> Applied {
        Applied {
            log_id: self.applied,
            membership: self.membership.clone(),
            removed: Arc::new(self.removed.clone()),
        }
    }

    /// Whoever was in the old membership and is not in the new one may never come back under the
    /// same id: its journal may lack what it once acknowledged.
    fn remember_removed(&mut self, new: &super::Membership) {
        let gone: Vec<MemberId> = self
            .membership
            .nodes()
            .map(|(member, _)| *member)
            .filter(|member| new.get_node(member).is_none())
            .collect();
        self.removed.extend(gone);
    }

    /// The whole state at this moment, to be written by another thread.
    fn capture(&self) -> Content {
        let machine = self.machine.snapshot();
        let sessions = self.sessions.clone();
        let removed = self.removed.clone();
        Box::new(move |to| {
            write_value(to, &SNAPSHOT_VERSION)?;
            let removed: Vec<MemberId> = removed.into_iter().collect();
            write_value(to, &removed)?;
            sessions.write(to)?;
            machine.write_to(to)
        })
    }

    fn read(&mut self, meta: SnapshotMeta, from: &mut dyn Read) -> io::Result<()> {
        let version: u32 = read_value(from)?;
        if version != SNAPSHOT_VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a snapshot has format {version}; this program knows {SNAPSHOT_VERSION}"),
            ));
        }
        let removed: Vec<MemberId> = read_value(from)?;
        let sessions = Sessions::read(from)?;
        self.machine.restore(SnapshotReader::new(from))?;
        if let Some(stored) = &mut self.stored {
            if !stored.is_restoring() {
                return Err(io::Error::other(format!(
                    "the machine {} keeps its state in a table and did not restore that: its \
                     `restore` must call `Table::restore`",
                    self.machine.name()
                )));
            }
            // The batch that switches to what was restored takes them from the sessions as read.
            stored.forget_answers();
            self.unwritten = true;
        }
        self.removed = removed.into_iter().collect();
        self.sessions = sessions;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership;
        Ok(())
    }
}

/// Why an entry cannot be applied; nothing is applied after it.
enum Halt {
    /// The journal holds what this program cannot read.
    Entry(io::Error),
    /// The machine cannot go on; in words.
    Machine(String),
}

fn unreadable(name: &str, error: &impl std::fmt::Display) -> Halt {
    Halt::Machine(format!(
        "the machine {name} cannot read a committed command: {error}. This node runs an older \
         version of it than another member: update it"
    ))
}

type Content = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// Writes one captured state to its file.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    /// In a lock only because openraft wants the builder to be `Sync`.
    content: std::sync::Mutex<Option<Content>>,
    /// Taken with the state, so that what is installed meanwhile counts as newer.
    turn: io::Result<Turn>,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot3> {
        let content = self
            .content
            .get_mut()
            .ok()
            .and_then(Option::take)
            .ok_or_else(|| io::Error::other("a snapshot is built once from one captured state"))?;
        let meta: Bytes = codec::encode_snapshot_meta(&self.meta);
        let spent = || Err(io::Error::other("a captured state is written once"));
        let turn = std::mem::replace(&mut self.turn, spent())?;
        let snapshots = self.snapshots.clone();
        let building = tokio::task::spawn_blocking(move || snapshots.build(turn, meta, content));
        let stored = building.await.map_err(io::Error::other)??;
        Ok(Snapshot {
            meta: codec::decode_snapshot_meta(stored.meta().clone())?,
            snapshot: SnapshotFile::Stored(stored),
        })
    }
}

/// Takes another store's snapshot in, the way one is received.
fn copy(from: &StoredSnapshot, to: &Snapshots) -> io::Result<StoredSnapshot> {
    const CHUNK: usize = 256 * 1024;
    let mut receiver = to.receive()?;
    let mut offset = 0;
    while offset < from.len() {
        let chunk = from.read_at(offset, CHUNK)?;
        receiver.write_chunk(offset, &chunk)?;
        offset += chunk.len() as u64;
    }
    to.install(receiver.finish()?)
}

fn panicked(name: &str, doing: &str, panic: &str) -> Cause {
    Cause::new(format!(
        "the machine {name} panicked while {doing}: {panic}. A machine is deterministic, so every \
         member stops here and again at each restart: fix the machine, then restart all members"
    ))
}

/// Runs the user's code; a panic comes back as its message. The state it may have left half
/// changed is never used again.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a message".into())
    })
}
