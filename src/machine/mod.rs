//! The user's state machine: the trait, where a command stands, and how state is carried whole.

mod host;
mod map;
mod snapshot;
mod table;
mod validate;

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use self::host::{CheckCommand, Host, Machine, Undecodable, Views, decode, encode};
pub use self::{
    map::{Map, MapAnswer, MapCommand, MapOutput, MapQuery},
    snapshot::{Snapshot, SnapshotReader},
    table::{Moment, Order, Table, TableView, Visit},
    validate::InvalidCommand,
};
pub(crate) use self::{
    table::{Backing, Pinned, Reads},
    validate::ValidateCommand,
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
/// Every member holds one and applies the same commands in the same order, so all hold the same
/// state.
///
/// # What a member keeps of it on disk
///
/// The journal, always. Of the state there are two kinds of machine:
///
/// - **In memory**, the rule: the state is the machine's own fields, and now and then a snapshot of
///   it is written. When a node starts, the machine that it is given, which must be as at the
///   founding, is restored from the latest snapshot and applies the commands behind it again.
/// - **In the store**, for a state larger than memory or slow to rebuild: with
///   [`STORED`](Self::STORED) the machine is given a [`Table`] and keeps its state there. What the
///   commands change and the position of the last one are written as one, before anybody is told
///   of them. When a node starts, the table is as it was left and nothing is applied again; only
///   after a power cut, or when a snapshot is newer, does it catch up.
///
/// A machine does not change its kind under one [`NAME`](Self::NAME).
///
/// # Who calls, in what order
///
/// One thread at a time owns the machine. A stored one is first given its table with
/// [`open`](Self::open). Then, if there is a snapshot of more than the state has, it calls
/// [`restore`](Self::restore), then [`apply`](Self::apply) for each committed command in the order
/// of their positions, with no gap and none twice. After each batch of commands it takes a
/// [`view`](Self::view) and shows it to the readers; a [`snapshot`](Self::snapshot) is asked for
/// between two commands. A member that lags far behind is given another's snapshot:
/// [`restore`](Self::restore) then replaces a state that has applied commands already.
/// [`query`](Self::query) runs elsewhere, on the tasks of those who ask, many at a time; it has
/// only a view and so waits for nobody.
///
/// # What it must hold
///
/// - **Deterministic.** The state and the output after `apply` follow from the state before, the
///   position and the command, from nothing else: no clock, no random numbers, no order of a
///   `HashMap`, no file, no environment. What is needed of those, the proposer puts into the
///   command. A member that breaks this differs from the others, and nothing repairs it.
/// - **Infallible.** What fails in the domain (not enough money, no such key) is an `Output`. A
///   command is checked to decode before it is proposed, so `apply` never meets one that does not.
/// - **Prompt.** While `apply`, `view` or `snapshot` runs, the group's commands wait on this
///   member. No waiting for the network or the disk in them, but for reads of the own table.
/// - **Stable.** Commands and outputs are kept in the journal as [postcard] writes them, snapshots
///   as the machine does: a later version of the machine must read what an earlier one wrote, and
///   do the same with it. Add variants at the end of an enum; the order of variants and fields is
///   format. postcard needs types that do not ask what comes next (no `#[serde(untagged)]`,
///   `flatten` or `skip_serializing_if`).
///
/// # When it panics
///
/// A panic in `apply`, `view`, `snapshot` or `restore` stops the group on this node, with an error
/// that says so, and no other group. A panic in `apply` follows from the command and the state, as
/// everything does: every member meets it at the same position and stops, and after a restart they
/// meet it again. The way out is a version of the machine that does not panic there, brought to all
/// members. A panic in `query` reaches only the one who asked.
///
/// # Example
///
/// A counter. For a small machine the view is the state itself.
///
/// ```
/// use std::io;
///
/// use quorate::{Position, Snapshot, SnapshotReader, StateMachine};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Default)]
/// struct Counter {
///     total: i64,
/// }
///
/// #[derive(Serialize, Deserialize)]
/// enum Change {
///     Add(i64),
///     Reset,
/// }
///
/// impl StateMachine for Counter {
///     const NAME: &'static str = "example.counter";
///     type Command = Change;
///     type Output = i64;
///     type Query = ();
///     type Answer = i64;
///     type View = i64;
///
///     fn apply(&mut self, _at: Position, command: Change) -> i64 {
///         self.total = match command {
///             Change::Add(by) => self.total.saturating_add(by), // `+` could panic, everywhere
///             Change::Reset => 0,
///         };
///         self.total
///     }
///
///     fn view(&self) -> i64 {
///         self.total
///     }
///
///     fn query(view: &i64, (): ()) -> i64 {
///         *view
///     }
///
///     fn snapshot(&self) -> Snapshot {
///         Snapshot::of(self.total)
///     }
///
///     fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
///         self.total = from.value()?;
///         Ok(())
///     }
/// }
///
/// // No group is needed to test a machine.
/// let mut counter = Counter::default();
/// let at = Position { term: 1, index: 1, offset: 0 };
/// assert_eq!(counter.apply(at, Change::Add(3)), 3);
///
/// let mut bytes = Vec::new();
/// counter.snapshot().write_to(&mut bytes)?;
/// let mut other = Counter::default();
/// other.restore(SnapshotReader::new(&mut &bytes[..]))?;
/// assert_eq!(Counter::query(&other.view(), ()), 3);
/// # io::Result::Ok(())
/// ```
///
/// The same in the store, for more counters than fit memory. `apply` sees its own writes, readers
/// see them once they are written.
///
/// ```
/// use std::io;
///
/// use quorate::{
///     GroupKey, Node, Position, Snapshot, SnapshotReader, StateMachine, Table, TableView,
/// };
///
/// #[derive(Default)]
/// struct Counters {
///     table: Table,
/// }
///
/// fn number(bytes: Option<impl AsRef<[u8]>>) -> u64 {
///     let bytes = bytes.and_then(|it| it.as_ref().try_into().ok());
///     bytes.map_or(0, u64::from_be_bytes)
/// }
///
/// impl StateMachine for Counters {
///     const NAME: &'static str = "example.counters";
///     const STORED: bool = true;
///     type Command = String;
///     type Output = u64;
///     type Query = String;
///     type Answer = io::Result<u64>;
///     type View = TableView;
///
///     fn open(&mut self, table: Table) {
///         self.table = table;
///     }
///
///     fn apply(&mut self, _at: Position, name: String) -> u64 {
///         let count = number(self.table.get(name.as_bytes())).saturating_add(1);
///         self.table.put(name.as_bytes(), count.to_be_bytes().to_vec());
///         count
///     }
///
///     fn view(&self) -> TableView {
///         self.table.view()
///     }
///
///     fn query(view: &TableView, name: String) -> io::Result<u64> {
///         view.read(|moment| moment.get(name.as_bytes()).map(number))?
///     }
///
///     fn snapshot(&self) -> Snapshot {
///         Snapshot::of_table(&self.table)
///     }
///
///     fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
///         self.table.restore(from)
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Alone, on a table in memory, ...
/// let mut counters = Counters::default();
/// counters.apply(Position::default(), "visits".into());
/// assert_eq!(Counters::query(&counters.view(), "visits".into())?, 1);
///
/// // ... and in a group, on the node's store.
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let group = node.create(GroupKey::generate(), Counters::default()).await?;
/// assert_eq!(group.execute("visits".into()).await?, 1);
/// assert_eq!(group.query("visits".into()).await??, 1);
/// node.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// A check that is too slow for `apply`, of a signature say, is made beforehand, on every member;
/// see [`validate`](Self::validate).
///
/// ```
/// use std::io;
///
/// use quorate::{
///     ExecuteError, GroupKey, InvalidCommand, Node, Position, Snapshot, SnapshotReader,
///     StateMachine,
/// };
/// use serde::{Deserialize, Serialize};
///
/// /// Words with their hash, which takes long to compute where words are long.
/// #[derive(Serialize, Deserialize)]
/// struct Said {
///     words: String,
///     hash: [u8; 32],
/// }
///
/// #[derive(Default)]
/// struct Sayings(u64);
///
/// impl StateMachine for Sayings {
///     const NAME: &'static str = "example.sayings";
///     const VALIDATES: bool = true;
///     type Command = Said;
///     type Output = u64;
///     type Query = ();
///     type Answer = u64;
///     type View = u64;
///
///     fn validate(said: &Said) -> Result<(), InvalidCommand> {
///         if *blake3::hash(said.words.as_bytes()).as_bytes() == said.hash {
///             return Ok(());
///         }
///         Err(InvalidCommand::new("the hash is of other words"))
///     }
///
///     fn apply(&mut self, _at: Position, _said: Said) -> u64 {
///         self.0 += 1;
///         self.0
///     }
/// #   fn view(&self) -> u64 { self.0 }
/// #   fn query(view: &u64, (): ()) -> u64 { *view }
/// #   fn snapshot(&self) -> Snapshot { Snapshot::of(self.0) }
/// #   fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
/// #       self.0 = from.value()?;
/// #       Ok(())
/// #   }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let group = node.create(GroupKey::generate(), Sayings::default()).await?;
/// let (words, hash) = (String::from("meow"), [0; 32]);
/// let refused = group.execute(Said { words: words.clone(), hash }).await;
/// assert!(matches!(refused, Err(ExecuteError::NotApplied(_))));
/// let hash = *blake3::hash(words.as_bytes()).as_bytes();
/// assert_eq!(group.execute(Said { words, hash }).await?, 1);
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// [postcard]: https://docs.rs/postcard
pub trait StateMachine: Send + 'static {
    /// Names the machine, not its version: `"example.counter"`. Part of the group's id, so a group
    /// founded with one machine is not joined with another.
    const NAME: &'static str;
    /// Whether the machine keeps its state in the [`Table`] given to [`open`](Self::open), and
    /// nowhere else but for what it can rebuild from that.
    const STORED: bool = false;
    /// Whether [`validate`](Self::validate) is to be asked. Without it commands are not even
    /// decoded for that.
    const VALIDATES: bool = false;
    /// Below how many bytes, together, commands are checked where they arrive: on the runtime's own
    /// threads, which do nothing else meanwhile. The default, 0, has all of them checked on other
    /// threads, which costs some ten microseconds for those that travel together. Say more only if
    /// checking so many bytes takes no longer than that or a few times as long: where the runtime
    /// is held up, so are all groups of the node, and their heartbeats.
    const VALIDATES_INLINE_BELOW: usize = 0;
    /// What changes the state. Its encoded size is limited by
    /// [`Config::command_bytes_max`](crate::config::Config::command_bytes_max).
    type Command: Serialize + DeserializeOwned + Send + 'static;
    /// What applying a command answers. Kept on every member until its caller has it, so keep it
    /// small.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What is asked of a view. It stays on the node that asks.
    type Query: Send + 'static;
    /// What a query answers.
    type Answer: Send + 'static;
    /// A picture of the state that readers keep while the state goes on.
    type View: Clone + Send + Sync + 'static;

    /// Takes the table that a [`STORED`](Self::STORED) machine keeps its state in; only such a
    /// machine is given one. Called once, before everything else. What the table then holds is the
    /// state as it was left, and after a power cut one of a moment before; a member that joins gets
    /// an empty one. A panic in it reaches whoever opens the group.
    fn open(&mut self, table: Table) {
        drop(table);
    }

    /// Whether a command may be taken, as far as the command alone tells. Asked only if
    /// [`VALIDATES`](Self::VALIDATES).
    ///
    /// It is for checks that cost too much for [`apply`](Self::apply), which all commands wait
    /// for: it runs beside that, for the commands of several callers at once, and may take all
    /// cores for a while. Commands that travel together are asked about one after the other. It is
    /// called on a thread of its own kind, where it may block, but for what is shorter than
    /// [`VALIDATES_INLINE_BELOW`](Self::VALIDATES_INLINE_BELOW).
    ///
    /// Each member asks once for each command: whoever calls [`Group::execute`] before the command
    /// is proposed, a leader before it proposes what another member forwards, a follower before it
    /// journals, and so acknowledges, what its leader sends. What lies in the own journal, and a
    /// snapshot, is not asked about again.
    ///
    /// An honest member never sends what this refuses, so a refusal names a member that is broken
    /// or in foreign hands. Nothing of it is applied, here or later: a leader answers the sender; a
    /// follower takes nothing more from that leader in its term, and has another one elected if a
    /// majority of the voters has met the same. Both say so in
    /// [`Status::invalid_commands`](crate::Status::invalid_commands). If a majority has taken the
    /// command, because it runs another program, this member falls behind for good rather than
    /// differ from it.
    ///
    /// So a check may become milder in a later version of the machine, never stricter: a member
    /// that lags is sent the commands of long ago. What `apply` can refuse with an
    /// [`Output`](Self::Output) is better left to it. A panic counts as a refusal.
    ///
    /// It is asked about what decodes. A command that does not may be one of a later version of the
    /// machine, so a leader is not replaced for it: a follower journals it, and a member that
    /// cannot read it when it is committed stops, and says that it is to be updated. Update all
    /// members before the first command that is new is executed. What this also means: a member in
    /// foreign hands that leads can stop the group with a command that is none.
    ///
    /// # Errors
    /// Why it is refused.
    ///
    /// [`Group::execute`]: crate::Group::execute
    fn validate(command: &Self::Command) -> Result<(), InvalidCommand> {
        let _ = command;
        Ok(())
    }

    /// Applies one committed command and answers it. Deterministic, infallible, prompt.
    fn apply(&mut self, at: Position, command: Self::Command) -> Self::Output;

    /// The state as readers are to see it.
    ///
    /// Taken after each batch of commands, under load some thousand times a second, so it must be
    /// cheap whatever the size of the state: a number, an `Arc`, a clone of an [`im`] collection.
    /// It must not change afterwards: no `Arc<Mutex<_>>` into the live state, or readers would see
    /// half of what commands do. The view of a stored machine is its [`Table::view`], whose every
    /// read is of one moment.
    fn view(&self) -> Self::View;

    /// Answers from a view, on the task of whoever asks.
    fn query(view: &Self::View, query: Self::Query) -> Self::Answer;

    /// The whole state as it is now.
    ///
    /// Captured at once and written later, on another thread, while commands are applied again:
    /// keep what it captures as cheap as a view. Whatever answers depend on must be in it, for a
    /// member restored from it must go on exactly as one that applied every command. A stored
    /// machine returns [`Snapshot::of_table`].
    fn snapshot(&self) -> Snapshot;

    /// Replaces the state by a snapshot's, whatever the state was. A stored machine calls
    /// [`Table::restore`].
    ///
    /// # Errors
    /// When the bytes are not a snapshot of this machine, and whatever `from` fails with. The group
    /// then stops on this node; the state may be left as it happens to be, since nobody asks for it
    /// any more.
    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()>;
}
