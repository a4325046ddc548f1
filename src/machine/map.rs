//! The built-in machine: an ordered map of bytes, kept in a persistent tree, so that views and
//! snapshots are clones that cost nothing.

use std::{
    fmt, io,
    ops::{Bound, RangeBounds},
};

use bytes::Bytes;
use im::OrdMap;
use serde::{Deserialize, Serialize};

use super::{Position, Snapshot, SnapshotReader, StateMachine};

/// An ordered map from byte strings to byte strings.
///
/// Keys are ordered byte by byte. A command is limited by
/// [`Config::command_bytes_max`](crate::config::Config::command_bytes_max), the map by memory. The
/// view is a clone of the map, in constant time.
///
/// ```
/// use quorate::{Map, MapAnswer, MapCommand, MapOutput, MapQuery, Position, StateMachine};
///
/// let mut map = Map::new();
/// let at = Position { term: 1, index: 1, offset: 0 };
/// map.apply(at, MapCommand::put("fruit/apple", "red"));
/// map.apply(at, MapCommand::put("fruit/pear", "green"));
///
/// let outcome = map.apply(at, MapCommand::put_if("fruit/apple", "red", "golden"));
/// assert_eq!(outcome, MapOutput::Compared { swapped: true, current: Some("golden".into()) });
///
/// let view = map.view();
/// map.apply(at, MapCommand::remove("fruit/apple"));
/// assert_eq!(view.get("fruit/apple").map(|it| &it[..]), Some(&b"golden"[..])); // as it was
///
/// let fruit = Map::query(&map.view(), MapQuery::prefix("fruit/", 100));
/// assert_eq!(fruit, MapAnswer::Entries(vec![("fruit/pear".into(), "green".into())]));
/// ```
#[derive(Clone, Default)]
pub struct Map {
    // `Bytes` rather than `Vec<u8>`: after a view was taken, a write copies the tree's nodes on its
    // path, some hundred entries, and each must be a reference counted up, not bytes copied.
    entries: OrdMap<Bytes, Bytes>,
}

impl Map {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value under `key`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&Bytes> {
        self.entries.get(key.as_ref())
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.entries.iter()
    }

    /// The entries between two keys, in their order; none when the bounds are the wrong way round.
    fn range(
        &self,
        from: Bound<Bytes>,
        to: Bound<Bytes>,
    ) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        let bounds = (from, to);
        let empty = match (bounds.start_bound(), bounds.end_bound()) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (
                Bound::Included(from) | Bound::Excluded(from),
                Bound::Included(to) | Bound::Excluded(to),
            ) => from >= to,
        };
        (!empty)
            .then(|| self.entries.range::<_, Bytes>(bounds))
            .into_iter()
            .flatten()
    }

    fn replace(&mut self, key: Bytes, new: Option<Bytes>) -> Option<Bytes> {
        match new {
            Some(value) => self.entries.insert(key, value),
            None => self.entries.remove(&key),
        }
    }
}

impl StateMachine for Map {
    const NAME: &'static str = "quorate.map";
    type Command = MapCommand;
    type Output = MapOutput;
    type Query = MapQuery;
    type Answer = MapAnswer;
    type View = Self;

    fn apply(&mut self, _at: Position, command: MapCommand) -> MapOutput {
        match command {
            MapCommand::Put { key, value } => MapOutput::Previous(self.replace(key, Some(value))),
            MapCommand::Remove { key } => MapOutput::Previous(self.replace(key, None)),
            MapCommand::CompareAndSet { key, expected, new } => {
                let current = self.entries.get(&key).cloned();
                if current == expected {
                    self.replace(key, new.clone());
                    MapOutput::Compared {
                        swapped: true,
                        current: new,
                    }
                } else {
                    MapOutput::Compared {
                        swapped: false,
                        current,
                    }
                }
            }
        }
    }

    fn view(&self) -> Self {
        self.clone()
    }

    fn query(view: &Self, query: MapQuery) -> MapAnswer {
        match query {
            MapQuery::Get { key } => MapAnswer::Value(view.get(key).cloned()),
            MapQuery::Range { from, to, limit } => {
                let entries = view.range(from, to).take(limit);
                MapAnswer::Entries(
                    entries
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect(),
                )
            }
            MapQuery::Len => MapAnswer::Len(view.len()),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.entries.clone())
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        // Written as a map, read as pairs: see `SnapshotReader::value`.
        let entries: Vec<(Bytes, Bytes)> = from.value()?;
        if !entries.is_sorted_by(|(earlier, _), (later, _)| earlier < later) {
            let error = "the snapshot is not of this machine: its keys are out of order";
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        self.entries = entries.into_iter().collect();
        Ok(())
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// What changes a [`Map`]. The order of the variants is format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MapCommand {
    /// Sets `key` to `value`, whatever was there; the output is [`MapOutput::Previous`].
    Put {
        /// The key to set.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes `key` if it is there; the output is [`MapOutput::Previous`].
    Remove {
        /// The key to remove.
        key: Bytes,
    },
    /// Changes `key` only if it holds what is expected; the output is [`MapOutput::Compared`].
    CompareAndSet {
        /// The key to compare and change.
        key: Bytes,
        /// What the key must hold; `None`: it must not be there.
        expected: Option<Bytes>,
        /// What the key then holds; `None`: it is removed.
        new: Option<Bytes>,
    },
}

impl MapCommand {
    /// Sets `key` to `value`, whatever was there.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put {
            key: bytes(key),
            value: bytes(value),
        }
    }

    /// Removes `key` if it is there.
    pub fn remove(key: impl Into<Vec<u8>>) -> Self {
        Self::Remove { key: bytes(key) }
    }

    /// Sets `key` to `value` only if it is not there yet.
    pub fn put_if_absent(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::CompareAndSet {
            key: bytes(key),
            expected: None,
            new: Some(bytes(value)),
        }
    }

    /// Sets `key` to `value` only if it holds `expected`.
    pub fn put_if(
        key: impl Into<Vec<u8>>,
        expected: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        let (expected, new) = (Some(bytes(expected)), Some(bytes(value)));
        Self::CompareAndSet {
            key: bytes(key),
            expected,
            new,
        }
    }

    /// Removes `key` only if it holds `expected`.
    pub fn remove_if(key: impl Into<Vec<u8>>, expected: impl Into<Vec<u8>>) -> Self {
        Self::CompareAndSet {
            key: bytes(key),
            expected: Some(bytes(expected)),
            new: None,
        }
    }
}

/// What a [`MapCommand`] did. The order of the variants is format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapOutput {
    /// The value before a put or a remove; `None` when the key was not there.
    Previous(Option<Bytes>),
    /// The outcome of a compare-and-set.
    Compared {
        /// Whether the key held what was expected, and so was changed.
        swapped: bool,
        /// What the key holds now, changed or not.
        current: Option<Bytes>,
    },
}

/// What is asked of a [`Map`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapQuery {
    /// The value under a key; answered by [`MapAnswer::Value`].
    Get {
        /// The key to look up.
        key: Bytes,
    },
    /// The first entries between two keys, in their order; answered by [`MapAnswer::Entries`].
    ///
    /// To go on after a full answer, ask again from [`Bound::Excluded`] of its last key.
    Range {
        /// Where to begin.
        from: Bound<Bytes>,
        /// Where to end; before `from`, and nothing is found.
        to: Bound<Bytes>,
        /// The most entries to answer.
        limit: usize,
    },
    /// How many keys there are; answered by [`MapAnswer::Len`].
    Len,
}

impl MapQuery {
    /// The value under `key`.
    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::Get { key: bytes(key) }
    }

    /// The first `limit` entries whose keys are in `range`: `MapQuery::range("a".."c", 100)`.
    pub fn range<K: Clone + Into<Vec<u8>>>(range: impl RangeBounds<K>, limit: usize) -> Self {
        let from = range.start_bound().map(|it| bytes(it.clone()));
        let to = range.end_bound().map(|it| bytes(it.clone()));
        Self::Range { from, to, limit }
    }

    /// The first `limit` entries whose keys begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>, limit: usize) -> Self {
        let from: Vec<u8> = prefix.into();
        // The first key behind all of them: the prefix with its last byte that can grow grown.
        let to = match from.iter().rposition(|byte| *byte < u8::MAX) {
            Some(last) => {
                let mut to = from[..=last].to_vec();
                to[last] += 1;
                Bound::Excluded(bytes(to))
            }
            None => Bound::Unbounded,
        };
        Self::Range {
            from: Bound::Included(bytes(from)),
            to,
            limit,
        }
    }

    /// The first `limit` entries of the whole map.
    #[must_use]
    pub fn all(limit: usize) -> Self {
        Self::Range {
            from: Bound::Unbounded,
            to: Bound::Unbounded,
            limit,
        }
    }
}

/// What a [`MapQuery`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapAnswer {
    /// The value, or `None` when the key is not there.
    Value(Option<Bytes>),
    /// Keys and values, in the order of the keys.
    Entries(Vec<(Bytes, Bytes)>),
    /// A count of keys.
    Len(usize),
}

impl MapAnswer {
    /// The value that a [`MapQuery::get`] found; `None` also for any other answer.
    #[must_use]
    pub fn into_value(self) -> Option<Bytes> {
        match self {
            Self::Value(value) => value,
            Self::Entries(_) | Self::Len(_) => None,
        }
    }

    /// The entries that a [`MapQuery::range`] found; none for any other answer.
    #[must_use]
    pub fn into_entries(self) -> Vec<(Bytes, Bytes)> {
        match self {
            Self::Entries(entries) => entries,
            Self::Value(_) | Self::Len(_) => Vec::new(),
        }
    }
}

fn bytes(from: impl Into<Vec<u8>>) -> Bytes {
    Bytes::from(from.into())
}

#[cfg(test)]
mod tests;
