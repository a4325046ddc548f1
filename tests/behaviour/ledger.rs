//! A machine that keeps every command with its position, in the order of their application.

use std::{collections::BTreeMap, io};

use quorate::{Position, Snapshot, SnapshotReader, StateMachine};

pub(crate) type Entries = im::Vector<(Position, String)>;

/// Appends; nothing is lost, doubled or reordered in it without showing.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: Entries,
}

impl StateMachine for Ledger {
    const NAME: &'static str = "test.ledger";
    type Command = String;
    /// How many entries were there before.
    type Output = u64;
    type Query = ();
    type Answer = Entries;
    type View = Entries;

    fn apply(&mut self, at: Position, command: String) -> u64 {
        self.entries.push_back((at, command));
        self.entries.len() as u64 - 1
    }

    fn view(&self) -> Entries {
        self.entries.clone()
    }

    fn query(view: &Entries, (): ()) -> Entries {
        view.clone()
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.entries.clone())
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        let entries: Vec<(Position, String)> = from.value()?;
        self.entries = entries.into_iter().collect();
        Ok(())
    }
}

/// How often each command is there.
pub(crate) fn counted(entries: &Entries) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, command) in entries {
        *counts.entry(command.clone()).or_default() += 1;
    }
    counts
}

/// Positions grow, and the commands of one journal entry are numbered from 0 without a gap.
pub(crate) fn assert_one_order(entries: &Entries) {
    let mut before: Option<Position> = None;
    for (at, command) in entries {
        let starts = at.offset == 0;
        let follows = before.is_some_and(|it| {
            it.term == at.term && it.index == at.index && it.offset + 1 == at.offset
        });
        assert!(starts || follows, "{command} stands at {at:?} behind {before:?}");
        assert!(before.is_none_or(|it| it < *at), "{command} stands at {at:?} behind {before:?}");
        before = Some(*at);
    }
}

/// All members hold the same, and it is one order.
pub(crate) fn assert_equal(views: &[Entries]) {
    for view in views {
        assert_one_order(view);
        assert_eq!(view.len(), views[0].len(), "the members hold different numbers of entries");
        let differs = view.iter().zip(&views[0]).find(|(one, other)| one != other);
        assert_eq!(differs, None, "the members differ");
    }
}
