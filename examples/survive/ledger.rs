//! The state machine of `survive`: an append-only list of lines, in which a line that was applied
//! twice stands twice.

use std::io;

use bytes::Bytes;
use im::Vector;
use quorate::{Position, Snapshot, SnapshotReader, StateMachine};
use serde::{Deserialize, Serialize};

/// One line of the file, as it was replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Its place in the file, from 0.
    pub(crate) number: u64,
    /// What it says, without its end.
    pub(crate) text: Bytes,
}

/// All lines, in the order in which the group has applied them.
#[derive(Default)]
pub(crate) struct Ledger(Vector<Line>);

impl StateMachine for Ledger {
    const NAME: &'static str = "example.ledger";
    type Command = Line;
    type Output = u64; // how many lines there are now
    type Query = ();
    type Answer = Vector<Line>;
    type View = Vector<Line>;

    fn apply(&mut self, _at: Position, line: Line) -> u64 {
        self.0.push_back(line);
        self.0.len() as u64
    }

    fn view(&self) -> Vector<Line> {
        self.0.clone()
    }

    fn query(view: &Vector<Line>, (): ()) -> Vector<Line> {
        view.clone()
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.0.clone())
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.0 = from.value()?;
        Ok(())
    }
}

/// Writes a state as bytes; equal states give equal bytes.
pub(crate) fn write(lines: &Vector<Line>, to: &mut impl io::Write) -> io::Result<()> {
    for Line { number, text } in lines {
        to.write_all(&number.to_be_bytes())?;
        to.write_all(&(text.len() as u64).to_be_bytes())?;
        to.write_all(text)?;
    }
    to.flush()
}

/// Reads what [`write`] wrote; `None` when the bytes are not that.
pub(crate) fn read(mut from: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut lines = Vec::new();
    while !from.is_empty() {
        let (number, rest) = from.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
        let (text, rest) = rest.split_at_checked(length)?;
        lines.push((u64::from_be_bytes(*number), text));
        from = rest;
    }
    Some(lines)
}
