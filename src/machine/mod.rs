//! The user's state machine: the trait, where a command stands, and how state is carried whole.

mod host;
mod map;
mod snapshot;

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use self::host::{Host, Machine, Views};
pub use self::{
    map::{Map, MapAnswer, MapCommand, MapOutput, MapQuery},
    snapshot::{Snapshot, SnapshotReader},
};

/// Where a command stands in the one order of its group.
///
/// Ordered as the commands are applied. Equal at every member.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The Raft term in which the journal entry was proposed.
    pub term: u64,
    /// The index of the journal entry.
    pub index: u64,
    /// Which of the entry's packed commands.
    pub offset: u32,
}

/// A deterministic machine that the group keeps equal on all its members.
///
/// (contract text: to be written in machine/mod.rs by its owner)
pub trait StateMachine: Send + 'static {
    /// Names the machine, not its version; part of the group id. For example `"example.map"`.
    const NAME: &'static str;
    /// What changes the state.
    type Command: Serialize + DeserializeOwned + Send + 'static;
    /// What applying a command answers.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What is asked of a view.
    type Query: Send + 'static;
    /// What a query answers.
    type Answer: Send + 'static;
    /// A cheap picture of the state.
    type View: Clone + Send + Sync + 'static;

    /// Applies one committed command.
    fn apply(&mut self, at: Position, command: Self::Command) -> Self::Output;
    /// The state as readers see it.
    fn view(&self) -> Self::View;
    /// Answers from a view.
    fn query(view: &Self::View, query: Self::Query) -> Self::Answer;
    /// The whole state, captured at once and written elsewhere.
    fn snapshot(&self) -> Snapshot;
    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// When the bytes are not a snapshot of this machine; the group then stops on this node.
    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()>;
}
