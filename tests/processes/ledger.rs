//! The machine under test: a list that keeps every append and its place, and slots to overwrite.
//!
//! It does not look for doubles: an append applied twice stands there twice.

use std::io::{self, Read, Write};

use quorate::{Position, Snapshot, SnapshotReader, StateMachine};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Kept for ever.
    Append { id: u64 },
    /// Replaces what the slot held, so the state stays as large as its slots.
    Fill { slot: u32, bytes: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) at: Position,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) entries: im::Vector<Entry>,
    slots: im::OrdMap<u32, bytes::Bytes>,
}

impl Ledger {
    /// The whole state in its one form; equal states give equal bytes.
    pub(crate) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.entries.len() as u64).to_le_bytes())?;
        for Entry { id, at } in &self.entries {
            for number in [*id, at.term, at.index, u64::from(at.offset)] {
                out.write_all(&number.to_le_bytes())?;
            }
        }
        out.write_all(&(self.slots.len() as u64).to_le_bytes())?;
        for (slot, bytes) in &self.slots {
            out.write_all(&u64::from(*slot).to_le_bytes())?;
            out.write_all(&(bytes.len() as u64).to_le_bytes())?;
            out.write_all(bytes)?;
        }
        Ok(())
    }

    pub(crate) fn read_from(from: &mut dyn Read) -> io::Result<Self> {
        let mut ledger = Self::default();
        for _ in 0..number(from)? {
            let id = number(from)?;
            let (term, index, offset) = (number(from)?, number(from)?, number(from)?);
            let offset = u32::try_from(offset).map_err(io::Error::other)?;
            let at = Position {
                term,
                index,
                offset,
            };
            ledger.entries.push_back(Entry { id, at });
        }
        for _ in 0..number(from)? {
            let slot = u32::try_from(number(from)?).map_err(io::Error::other)?;
            let mut bytes = vec![0; usize::try_from(number(from)?).map_err(io::Error::other)?];
            from.read_exact(&mut bytes)?;
            ledger.slots.insert(slot, bytes.into());
        }
        Ok(ledger)
    }

    /// How many appends there are, and whether this one is among them.
    pub(crate) fn look(&self, id: u64) -> (usize, bool) {
        let found = self.entries.iter().rev().any(|it| it.id == id);
        (self.entries.len(), found)
    }
}

fn number(from: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl StateMachine for Ledger {
    const NAME: &'static str = "test.ledger";
    type Command = Change;
    type Output = Position;
    type Query = u64;
    type Answer = (usize, bool);
    type View = Self;

    fn apply(&mut self, at: Position, command: Change) -> Position {
        match command {
            Change::Append { id } => self.entries.push_back(Entry { id, at }),
            Change::Fill { slot, bytes } => {
                self.slots.insert(slot, bytes.into());
            }
        }
        at
    }

    fn view(&self) -> Self {
        self.clone()
    }

    fn query(view: &Self, id: u64) -> (usize, bool) {
        view.look(id)
    }

    fn snapshot(&self) -> Snapshot {
        let state = self.clone();
        Snapshot::new(move |out| state.write_to(&mut io::BufWriter::new(out)))
    }

    fn restore(&mut self, mut from: SnapshotReader<'_>) -> io::Result<()> {
        *self = Self::read_from(&mut from)?;
        Ok(())
    }
}
