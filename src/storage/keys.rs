//! The layout: which key holds what, byte by byte. Frozen: the families journal and meta with
//! format 1, the family state and its meta record with format 2, which added them.
//!
//! All numbers are big-endian, so keys sort as numbers do.
//!
//! | family  | key                              | body of the value                             |
//! |---------|----------------------------------|-----------------------------------------------|
//! | journal | `group u64` `index u64`          | `term u64` `bytes u64` `kind u8` payload      |
//! | meta    | `group u64` `'g'`                | [`StoredGroup`] in postcard                   |
//! | meta    | `group u64` `'v'`                | the vote, opaque                              |
//! | meta    | `group u64` `'c'`                | the committed position, opaque; a hint        |
//! | meta    | `group u64` `'p'`                | purged: `term u64` `index u64` `bytes u64`    |
//! | meta    | `group u64` `'r'`                | the roster, opaque; a hint                    |
//! | meta    | `group u64` `'s'`                | `generation u32` `checkpoint u64`, opaque     |
//! | meta    | `group u64` `'d'`                | the settings of the door, opaque; a hint      |
//! | meta    | `group u64` `'x'`                | empty: the group is being removed             |
//! | meta    | `0 u64` `'l'`                    | `u64`: the local number of the next new group |
//! | meta    | `0 u64` `'n'`                    | the node's record, opaque                     |
//! | meta    | `0 u64` `'i'` `GroupId 32 bytes` | `u64`: the group's local number               |
//! | state   | `group u64` `generation u32` key | the value under a key of the machine's table  |
//! | state   | `group u64` `0 u32` `'a'` `u64`  | answers since the checkpoint, opaque          |
//! | state   | `group u64` `0 u32` `'c'` `checkpoint u64` `chunk u32` | of the sessions, opaque |
//!
//! A machine's state counts as the record under `'s'` says, and changes in one batch with it: the
//! generation that is the table (from 1), the checkpoint of the sessions (from 1; 0: none) and,
//! opaque, the position applied. What is of another generation or checkpoint is left over.
//!
//! `bytes` counts the record bodies of the journal from its beginning, this one included, so the
//! size of any stretch is one subtraction.
//!
//! Every value is sealed: a CRC-32 over key and body stands before the body, so a flipped bit, or
//! a value under another's key, is an error and never data.
//!
//! ```text
//!  journal key                        journal value
//!  0               8              16  0      4            12           20   21
//!  +---------------+--------------+   +------+------------+------------+----+---------+
//!  | group         | index        |   | CRC  | term       | bytes      |kind| payload |
//!  +---------------+--------------+   +------+------------+------------+----+---------+
//! ```

use serde::{Deserialize, Serialize};

use crate::identity::{Genesis, GroupId};

/// The format that this code writes; anything newer is refused at open.
///
/// The family state made it 2: RocksDB does not open a database without naming each of its
/// families, so a program of format 1 must be told before it tries. All of format 1 reads as it is.
#[cfg(feature = "rocksdb")]
pub(super) const FORMAT: u32 = 2;
/// The oldest format that this code reads.
#[cfg(feature = "rocksdb")]
pub(super) const FORMAT_OLDEST: u32 = 1;

/// Stands where a group's number would: what belongs to the node. Groups count from 1.
pub(super) const NODE: u64 = 0;

const CRC_BYTES: usize = 4;
/// term, bytes, kind.
const RECORD_HEAD_BYTES: usize = 8 + 8 + 1;
/// What a journal record takes besides its payload: key, seal and head.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 16 + CRC_BYTES + RECORD_HEAD_BYTES;

/// The last byte of a group's (or the node's) meta key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    Group = b'g',
    Vote = b'v',
    Committed = b'c',
    Purged = b'p',
    Roster = b'r',
    State = b's',
    Door = b'd',
    Removing = b'x',
    NextLocal = b'l',
    NodeRecord = b'n',
    GroupOfId = b'i',
}

/// What is stored of a group under `'g'`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredGroup {
    pub(super) id: [u8; 32],
    pub(super) name: String,
    pub(super) founder: bool,
    pub(super) member: [u8; 16],
    pub(super) genesis: Option<Genesis>,
}

pub(super) fn journal(group: u64, index: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// What stands before all keys of one generation of a group's state.
pub(super) fn state(group: u64, generation: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key[8..].copy_from_slice(&generation.to_be_bytes());
    key
}

/// All of a group's state: from the first (included) to the second (excluded).
pub(super) fn state_range(group: u64) -> ([u8; 8], [u8; 8]) {
    (group.to_be_bytes(), (group + 1).to_be_bytes())
}

/// A key of a machine's table.
pub(super) fn state_key(group: u64, generation: u32, key: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(12 + key.len());
    whole.extend_from_slice(&state(group, generation));
    whole.extend_from_slice(key);
    whole
}

/// The machine's key in a key of the family state; nothing if it is none.
pub(super) fn state_user_key(key: &[u8]) -> Option<&[u8]> {
    key.get(12..)
}

/// Generation 0 is no table: it holds what the sessions are rebuilt from.
pub(super) const SESSIONS: u32 = 0;

pub(super) fn answers(group: u64, number: u64) -> [u8; 21] {
    let mut key = [0; 21];
    key[..12].copy_from_slice(&state(group, SESSIONS));
    key[12] = b'a';
    key[13..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn answers_number(key: &[u8]) -> Option<u64> {
    let number: [u8; 8] = key.get(13..)?.try_into().ok()?;
    Some(u64::from_be_bytes(number))
}

pub(super) fn checkpoint(group: u64, checkpoint: u64, chunk: u32) -> [u8; 25] {
    let mut key = [0; 25];
    key[..12].copy_from_slice(&state(group, SESSIONS));
    key[12] = b'c';
    key[13..21].copy_from_slice(&checkpoint.to_be_bytes());
    key[21..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// The first key after all of a group's journal.
pub(super) fn journal_end(group: u64) -> [u8; 16] {
    journal(group + 1, 0)
}

/// The index in a journal key; nothing if it is none.
pub(super) fn journal_index(key: &[u8]) -> Option<u64> {
    let index: [u8; 8] = key.get(8..16)?.try_into().ok()?;
    (key.len() == 16).then_some(u64::from_be_bytes(index))
}

pub(super) fn meta(group: u64, tag: Tag) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key[8] = tag as u8;
    key
}

/// All meta keys of one group: from the first (included) to the second (excluded).
pub(super) fn meta_range(group: u64) -> ([u8; 8], [u8; 8]) {
    (group.to_be_bytes(), (group + 1).to_be_bytes())
}

pub(super) fn group_of_id(id: &GroupId) -> [u8; 41] {
    let mut key = [0; 41];
    key[..9].copy_from_slice(&meta(NODE, Tag::GroupOfId));
    key[9..].copy_from_slice(id.as_bytes());
    key
}

/// The keys of all groups' ids: from the first (included) to the second (excluded).
#[cfg(any(test, feature = "rocksdb"))]
pub(super) fn group_of_id_range() -> ([u8; 9], [u8; 9]) {
    let from = meta(NODE, Tag::GroupOfId);
    let mut to = from;
    to[8] += 1;
    (from, to)
}

/// Appends the sealed value: CRC, then the concatenated parts.
pub(super) fn seal(key: &[u8], parts: &[&[u8]], out: &mut Vec<u8>) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    for part in parts {
        crc.update(part);
    }
    out.extend_from_slice(&crc.finalize().to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The body of a sealed value; nothing if it is damaged or belongs to another key.
pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (seal, body) = value.split_first_chunk::<CRC_BYTES>()?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(body);
    (crc.finalize().to_be_bytes() == *seal).then_some(body)
}

/// The fixed part of a journal record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub(super) term: u64,
    /// Record bytes of the journal up to and including this record.
    pub(super) bytes: u64,
    pub(super) kind: u8,
}

impl RecordHead {
    pub(super) fn encode(self) -> [u8; RECORD_HEAD_BYTES] {
        let mut out = [0; RECORD_HEAD_BYTES];
        out[..8].copy_from_slice(&self.term.to_be_bytes());
        out[8..16].copy_from_slice(&self.bytes.to_be_bytes());
        out[16] = self.kind;
        out
    }

    /// The head and the payload after it.
    pub(super) fn decode(body: &[u8]) -> Option<(Self, &[u8])> {
        let (term, rest) = body.split_first_chunk::<8>()?;
        let (bytes, rest) = rest.split_first_chunk::<8>()?;
        let (&kind, payload) = rest.split_first()?;
        let head = Self {
            term: u64::from_be_bytes(*term),
            bytes: u64::from_be_bytes(*bytes),
            kind,
        };
        Some((head, payload))
    }
}

/// A place in the journal, with the record bytes up to and including it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) bytes: u64,
}

impl Point {
    pub(super) fn encode(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.term.to_be_bytes());
        out[8..16].copy_from_slice(&self.index.to_be_bytes());
        out[16..].copy_from_slice(&self.bytes.to_be_bytes());
        out
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let (term, rest) = body.split_first_chunk::<8>()?;
        let (index, rest) = rest.split_first_chunk::<8>()?;
        let bytes: [u8; 8] = rest.try_into().ok()?;
        Some(Self {
            term: u64::from_be_bytes(*term),
            index: u64::from_be_bytes(*index),
            bytes: u64::from_be_bytes(bytes),
        })
    }
}

/// What stands under `'s'`: which state of a group counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StateHead {
    /// The generation that is the machine's table.
    pub(super) generation: u32,
    /// The checkpoint of the sessions; 0: none.
    pub(super) checkpoint: u64,
    /// What the writer says of the position it is as of.
    pub(super) note: bytes::Bytes,
}

impl StateHead {
    pub(super) fn put(&self, group: u64, batch: &mut super::engine::Batch) {
        let numbers = (self.generation.to_be_bytes(), self.checkpoint.to_be_bytes());
        let parts: [&[u8]; 3] = [&numbers.0, &numbers.1, &self.note];
        batch.put(
            super::engine::Family::Meta,
            &meta(group, Tag::State),
            &parts,
        );
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let (generation, rest) = body.split_first_chunk::<4>()?;
        let (checkpoint, note) = rest.split_first_chunk::<8>()?;
        Some(Self {
            generation: u32::from_be_bytes(*generation),
            checkpoint: u64::from_be_bytes(*checkpoint),
            note: bytes::Bytes::copy_from_slice(note),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_groups_and_indexes_do() {
        assert!(journal(1, u64::MAX) < journal(2, 0));
        assert!(journal(1, 255) < journal(1, 256));
        assert!(journal(7, u64::MAX) < journal_end(7));
        assert_eq!(journal_index(&journal(3, 9)), Some(9));
        let (from, to) = group_of_id_range();
        let key = group_of_id(&GroupId::from_bytes([0xff; 32]));
        assert!(from.as_slice() <= key.as_slice() && key.as_slice() < to.as_slice());
    }

    #[test]
    fn a_seal_holds_for_its_key_and_bytes_only() {
        let mut value = Vec::new();
        seal(b"key", &[b"one", b"two"], &mut value);
        assert_eq!(unseal(b"key", &value), Some(b"onetwo".as_slice()));
        assert_eq!(unseal(b"kez", &value), None);
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(b"key", &flipped), None, "bit {bit}");
        }
        assert_eq!(unseal(b"key", b"abc"), None);
    }

    #[test]
    fn the_bytes_of_format_1_stay_as_they_are() {
        let head = RecordHead {
            term: 2,
            bytes: 3,
            kind: 4,
        };
        let mut value = Vec::new();
        seal(&journal(1, 5), &[&head.encode(), b"hi"], &mut value);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&value),
            "430adbcb00000000000000020000000000000003046869"
        );
        let point = Point {
            term: 1,
            index: 2,
            bytes: 3,
        };
        assert_eq!(Point::decode(&point.encode()), Some(point));
        assert_eq!(
            RecordHead::decode(&value[4..]),
            Some((head, b"hi".as_slice()))
        );
    }
}
