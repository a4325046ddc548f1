//! The machine behind a wall of bytes: above this floor nothing is generic over it but the typed
//! handle that its user holds.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Position, Snapshot, SnapshotReader, StateMachine, Table,
    validate::{ValidateCommand, validator},
};

/// A machine that takes and gives bytes.
///
/// One thread owns it. A panic of the user's code passes through every method: the caller catches
/// it, stops the group and calls none of them again.
pub(crate) trait Machine: Send {
    /// Decodes and applies a command; the output is encoded.
    ///
    /// Panics when the machine does, and when its output cannot be encoded: like a panic in
    /// `apply`, that is equal at every member.
    fn apply(&mut self, at: Position, command: &[u8]) -> Result<Bytes, Undecodable>;
    /// Shows readers the state as of `applied`: after each batch, after a restore, and at the
    /// start.
    fn publish(&mut self, applied: Position);
    /// The whole state as of now, to be written elsewhere.
    fn snapshot(&self) -> Snapshot;
    /// Replaces the state; the caller publishes it. After an error the state is of no use.
    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()>;
    /// The machine's name, which is part of the group's id.
    fn name(&self) -> &'static str;
    /// Whether bytes are a command of this machine: asked, on any thread, before they are proposed.
    fn check(&self) -> CheckCommand;
    /// What asks the machine whether a command may be taken; none if all may.
    fn validate(&self) -> Option<ValidateCommand>;
}

/// Whether bytes are a command of some machine.
pub(crate) type CheckCommand = fn(&[u8]) -> Result<(), Undecodable>;

/// A user's machine as a [`Machine`].
pub(crate) struct Host<M: StateMachine> {
    machine: M,
    views: Views<M>,
}

impl<M: StateMachine> Host<M> {
    /// Takes the machine in, and gives it its table if it keeps its state in one; its views start
    /// at the position before the first.
    pub(crate) fn new(mut machine: M, table: Option<Table>) -> (Self, Views<M>) {
        if let Some(table) = table {
            machine.open(table);
        }
        let published = Published {
            applied: Position::default(),
            view: machine.view(),
        };
        let views = Views {
            published: Arc::new(ArcSwap::from_pointee(published)),
        };
        (
            Self {
                machine,
                views: views.clone(),
            },
            views,
        )
    }
}

impl<M: StateMachine> Machine for Host<M> {
    fn apply(&mut self, at: Position, command: &[u8]) -> Result<Bytes, Undecodable> {
        let output = self.machine.apply(at, decode(command)?);
        match encode(&output) {
            Ok(bytes) => Ok(bytes),
            Err(error) => panic!("an output of {} {error}", M::NAME),
        }
    }

    fn publish(&mut self, applied: Position) {
        let published = Published {
            applied,
            view: self.machine.view(),
        };
        self.views.published.store(Arc::new(published));
    }

    fn snapshot(&self) -> Snapshot {
        self.machine.snapshot()
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.machine.restore(from)
    }

    fn name(&self) -> &'static str {
        M::NAME
    }

    fn check(&self) -> CheckCommand {
        |command| {
            // Before anything is journalled, of bytes that may come from another version: its panic
            // must not be ours.
            catch_unwind(AssertUnwindSafe(|| decode::<M::Command>(command).map(drop)))
                .unwrap_or(Err(Undecodable::Panicked))
        }
    }

    fn validate(&self) -> Option<ValidateCommand> {
        validator::<M>()
    }
}

/// Where readers find the latest view. A handle; clones see the same.
pub(crate) struct Views<M: StateMachine> {
    // Two readers on two cores, 5,000 publishes/s: 3.0 million reads/s, a publish within 14 us. A
    // `RwLock` gave 1.9 million, and held a publish, so the writer, up for 5 ms whenever a reader
    // was preempted inside.
    published: Arc<ArcSwap<Published<M::View>>>,
}

/// A view and its position are one allocation, so no reader can pair the one with another's.
struct Published<V> {
    applied: Position,
    view: V,
}

impl<M: StateMachine> Views<M> {
    /// The latest view, with the position of the last command in it.
    pub(crate) fn latest(&self) -> (Position, M::View) {
        let published = self.published.load();
        (published.applied, published.view.clone())
    }

    /// How far the latest view goes.
    pub(crate) fn applied(&self) -> Position {
        self.published.load().applied
    }

    /// Answers from the latest view, on the caller's thread and without cloning the view.
    pub(crate) fn query(&self, query: M::Query) -> (Position, M::Answer) {
        let published = self.published.load();
        (published.applied, M::query(&published.view, query))
    }
}

impl<M: StateMachine> Clone for Views<M> {
    fn clone(&self) -> Self {
        Self {
            published: Arc::clone(&self.published),
        }
    }
}

impl<M: StateMachine> fmt::Debug for Views<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views")
            .field("machine", &M::NAME)
            .finish_non_exhaustive()
    }
}

/// Commands and outputs as they are in the journal, in frames and in the table of sessions:
/// postcard, and nothing after it.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Unencodable> {
    postcard::to_stdvec(value)
        .map(Bytes::from)
        .map_err(Unencodable)
}

/// The inverse of [`encode`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Undecodable::GoesOn(rest.len())),
        Err(error) => Err(Undecodable::NotSuchAValue(error)),
    }
}

/// The value cannot be encoded: its type does not work with postcard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be encoded: {0}")]
pub(crate) struct Unencodable(postcard::Error);

/// The bytes are not a value of the type asked for: made by another machine, or by another version
/// of this one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Undecodable {
    #[error("does not decode: {0}")]
    NotSuchAValue(postcard::Error),
    #[error("goes on for {0} bytes after its end")]
    GoesOn(usize),
    #[error("the machine panicked over it")]
    Panicked,
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
    };

    use super::*;
    use crate::machine::{Map, MapAnswer, MapCommand, MapOutput, MapQuery};

    fn at(index: u64) -> Position {
        Position {
            term: 1,
            index,
            offset: 0,
        }
    }

    fn put(key: &str, value: &str) -> Bytes {
        encode(&MapCommand::put(key, value)).expect("a command is encodable")
    }

    #[test]
    fn commands_go_in_and_outputs_come_out_as_bytes() {
        let (mut host, _) = Host::new(Map::new(), None);
        let first = host.apply(at(1), &put("k", "one")).expect("it decodes");
        assert_eq!(decode(&first), Ok(MapOutput::Previous(None)));
        let second = host.apply(at(2), &put("k", "two")).expect("it decodes");
        assert_eq!(decode(&second), Ok(MapOutput::Previous(Some("one".into()))));
        assert_eq!(host.name(), "quorate.map");
    }

    #[test]
    fn what_does_not_decode_changes_nothing_and_is_found_beforehand() {
        let (mut host, views) = Host::new(Map::new(), None);
        let check = host.check();
        let whole = put("key", "value");
        let mut longer = whole.to_vec();
        longer.push(0);
        check(&whole).expect("a whole command");
        for bad in [&whole[..whole.len() - 1], &longer, b"\xff\xff", b""] {
            assert_eq!(host.apply(at(1), bad).expect_err("not a command"), {
                check(bad).expect_err("nor before it is proposed")
            });
        }
        assert_eq!(check(&longer), Err(Undecodable::GoesOn(1)));
        host.publish(at(1));
        assert!(views.latest().1.is_empty());
    }

    #[test]
    fn readers_see_what_was_published_and_nothing_later() {
        let (mut host, views) = Host::new(Map::new(), None);
        assert_eq!(views.applied(), Position::default());
        host.apply(at(7), &put("k", "v")).expect("it decodes");
        assert_eq!(
            views.query(MapQuery::Len),
            (Position::default(), MapAnswer::Len(0))
        );
        host.publish(at(7));
        let answer = views.clone().query(MapQuery::get("k"));
        assert_eq!(answer, (at(7), MapAnswer::Value(Some("v".into()))));
    }

    #[test]
    fn a_restored_host_holds_the_state_of_the_other() {
        let (mut host, _) = Host::new(Map::new(), None);
        host.apply(at(1), &put("k", "v")).expect("it decodes");
        let mut bytes = Vec::new();
        host.snapshot()
            .write_to(&mut bytes)
            .expect("memory takes it");
        let (mut other, views) = Host::new(Map::new(), None);
        other.apply(at(1), &put("gone", "v")).expect("it decodes");
        other
            .restore(SnapshotReader::new(&mut &bytes[..]))
            .expect("a snapshot");
        other.publish(at(1));
        let (applied, view) = views.latest();
        assert_eq!(
            (applied, view.get("k"), view.len()),
            (at(1), Some(&"v".into()), 1)
        );
    }

    /// Its state and its view are one number, the index last applied.
    struct Index(u64);

    impl StateMachine for Index {
        const NAME: &'static str = "test.index";
        type Command = ();
        type Output = u64;
        type Query = ();
        type Answer = u64;
        type View = u64;

        fn apply(&mut self, at: Position, (): ()) -> u64 {
            self.0 = at.index;
            self.0
        }
        fn view(&self) -> u64 {
            self.0
        }
        fn query(view: &u64, (): ()) -> u64 {
            *view
        }
        fn snapshot(&self) -> Snapshot {
            Snapshot::of(self.0)
        }
        fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
            self.0 = from.value()?;
            Ok(())
        }
    }

    #[test]
    fn no_view_is_torn_or_goes_back_while_a_writer_publishes() {
        let (mut host, views) = Host::new(Index(0), None);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut seen = 0;
                    while !done.load(Relaxed) {
                        let (applied, view) = views.latest();
                        assert_eq!(applied.index, view);
                        let (applied, answer) = views.query(());
                        assert_eq!(applied.index, answer);
                        assert!(view >= seen && answer >= view);
                        seen = answer;
                    }
                });
            }
            for index in 1..=20_000 {
                host.apply(at(index), b"")
                    .expect("nothing decodes as nothing");
                host.publish(at(index));
            }
            done.store(true, Relaxed);
        });
        assert_eq!(views.latest(), (at(20_000), 20_000));
    }
}
