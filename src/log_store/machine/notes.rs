//! Notes: small values by name that the members share, changed only from what was seen.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{LogStore, readable};
use crate::{
    log_store::{LogOutput, table::note},
    machine::Position,
};

/// Bytes of a note's name. Frozen: members must agree on what they refuse.
pub const NOTE_NAME_BYTES_MAX: usize = 256;
/// Bytes of a note's value. Frozen likewise.
pub const NOTE_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Notes of a store. Frozen likewise.
pub const NOTES_MAX: u64 = 65_536;

/// Which state of a note a change is made from. The order of the variants is format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Whatever there is.
    Any,
    /// There is none.
    Absent,
    /// It was last changed there.
    Changed(NoteVersion),
}

/// The command that changed a note last: never the same for two changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NoteVersion {
    /// The command's journal index.
    pub index: u64,
    /// Its offset in the entry.
    pub offset: u32,
}

/// Why a note was not changed. The order of the variants is format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum NoteRefused {
    /// Somebody else has changed it since it was read.
    #[error("the note is another one by now: read it again and decide anew")]
    Changed {
        /// Its version now; none if it is gone.
        now: Option<NoteVersion>,
    },
    /// The name is empty or longer than [`NOTE_NAME_BYTES_MAX`], or the value longer than
    /// [`NOTE_VALUE_BYTES_MAX`].
    #[error("a note's name has 1 to {NOTE_NAME_BYTES_MAX} bytes, its value at most 64 KiB")]
    Size,
    /// There are [`NOTES_MAX`] already.
    #[error("the store holds {NOTES_MAX} notes, as many as it may: remove some first")]
    TooMany,
}

impl LogStore {
    pub(super) fn note(
        &self,
        at: Position,
        name: &[u8],
        value: Option<&Bytes>,
        expected: Expected,
    ) -> LogOutput {
        match self.change_note(at, name, value, expected) {
            Ok(version) => LogOutput::Noted(version),
            Err(refused) => LogOutput::NotNoted(refused),
        }
    }

    fn change_note(
        &self,
        at: Position,
        name: &[u8],
        value: Option<&Bytes>,
        expected: Expected,
    ) -> Result<NoteVersion, NoteRefused> {
        let named = (1..=NOTE_NAME_BYTES_MAX).contains(&name.len());
        if !named || value.is_some_and(|it| it.len() > NOTE_VALUE_BYTES_MAX) {
            return Err(NoteRefused::Size);
        }
        let key = note::key(name);
        let held = self.table.get(&key);
        let now = held.map(|it| readable(note::decode(&it)).0);
        let fits = match expected {
            Expected::Any => true,
            Expected::Absent => now.is_none(),
            Expected::Changed(version) => now == Some(version),
        };
        if !fits {
            return Err(NoteRefused::Changed { now });
        }
        let stats = self.table.get(&note::STATS);
        let (mut count, _) = stats.map_or((0, None), |it| {
            let (count, last) = readable(note::decode_stats(&it));
            (count, Some(last))
        });
        match (now, value) {
            (None, Some(_)) if count >= NOTES_MAX => return Err(NoteRefused::TooMany),
            (None, Some(_)) => count += 1,
            (Some(_), None) => count -= 1,
            _ => {}
        }
        let version = NoteVersion {
            index: at.index,
            offset: at.offset,
        };
        match value {
            Some(value) => self.table.put(&key, note::encode(version, value)),
            None => self.table.delete(&key),
        }
        self.table
            .put(&note::STATS, note::encode_stats(count, version));
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log_store::{LogCommand, reader},
        machine::StateMachine,
    };

    fn at(index: u64) -> Position {
        Position {
            term: 1,
            index,
            offset: 0,
        }
    }

    fn version(index: u64) -> NoteVersion {
        NoteVersion { index, offset: 0 }
    }

    fn set(
        store: &mut LogStore,
        index: u64,
        name: &str,
        value: Option<&str>,
        expected: Expected,
    ) -> LogOutput {
        let (name, value) = (
            Bytes::copy_from_slice(name.as_bytes()),
            value.map(|it| Bytes::copy_from_slice(it.as_bytes())),
        );
        let command = LogCommand::Note {
            name,
            value,
            expected,
        };
        store.apply(at(index), command)
    }

    #[test]
    fn a_note_is_changed_only_from_what_was_seen() {
        let mut store = LogStore::new();
        let noted = |index| LogOutput::Noted(version(index));
        let changed = |now| LogOutput::NotNoted(NoteRefused::Changed { now });
        let absent = Expected::Absent;
        assert_eq!(set(&mut store, 1, "a/x", Some("1"), absent), noted(1));
        assert_eq!(
            set(&mut store, 2, "a/x", Some("2"), absent),
            changed(Some(version(1)))
        );
        let from_first = Expected::Changed(version(1));
        assert_eq!(set(&mut store, 3, "a/x", Some("3"), from_first), noted(3));
        assert_eq!(
            set(&mut store, 4, "a/x", Some("4"), from_first),
            changed(Some(version(3)))
        );
        assert_eq!(
            set(&mut store, 5, "a/y", Some("5"), Expected::Any),
            noted(5)
        );
        assert_eq!(set(&mut store, 6, "b", Some("6"), Expected::Any), noted(6));
        let notes = store.view().table.read(|it| reader::notes(it, b"a/"));
        let notes = notes.expect("memory is there").expect("readable");
        let found: Vec<_> = notes
            .iter()
            .map(|it| (&it.name[..], &it.value[..], it.version.index))
            .collect();
        assert_eq!(
            found,
            [(&b"a/x"[..], &b"3"[..], 3), (&b"a/y"[..], &b"5"[..], 5)]
        );
        let from_third = Expected::Changed(version(3));
        assert_eq!(set(&mut store, 7, "a/x", None, from_third), noted(7));
        assert_eq!(set(&mut store, 8, "a/x", None, from_third), changed(None));
    }

    #[test]
    fn notes_have_limits() {
        let mut store = LogStore::new();
        let refused = LogOutput::NotNoted(NoteRefused::Size);
        let long = "n".repeat(NOTE_NAME_BYTES_MAX + 1);
        assert_eq!(set(&mut store, 1, "", Some(""), Expected::Any), refused);
        assert_eq!(set(&mut store, 1, &long, Some(""), Expected::Any), refused);
        let large = "v".repeat(NOTE_VALUE_BYTES_MAX + 1);
        assert_eq!(
            set(&mut store, 1, "n", Some(&large), Expected::Any),
            refused
        );
        for index in 0..NOTES_MAX {
            let name = index.to_string();
            set(&mut store, index, &name, Some(""), Expected::Absent);
        }
        let full = LogOutput::NotNoted(NoteRefused::TooMany);
        assert_eq!(set(&mut store, 70_000, "x", Some(""), Expected::Any), full);
        let removed = set(&mut store, 70_001, "7", None, Expected::Any);
        assert_eq!(removed, LogOutput::Noted(version(70_001)));
        let taken = set(&mut store, 70_002, "x", Some(""), Expected::Any);
        assert_eq!(taken, LogOutput::Noted(version(70_002)));
    }
}
