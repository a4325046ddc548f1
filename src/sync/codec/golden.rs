//! The bytes that unmodified nodes send, as `tests/golden` keeps them.

use std::collections::BTreeMap;

use crate::log_store::Line;

pub(crate) const LINES: [Line; 2] = [Line::V06, Line::V07];

/// The items of one line by name.
pub(crate) struct Golden(BTreeMap<&'static str, Vec<u8>>);

impl Golden {
    pub(crate) fn of(line: Line) -> Self {
        let text = match line {
            Line::V06 => include_str!("../../../tests/golden/p2panda-0.6.1.txt"),
            Line::V07 => include_str!("../../../tests/golden/p2panda-0.7.1.txt"),
        };
        let items = text.lines().filter(|it| !it.starts_with('#'));
        let items = items.filter_map(|it| it.split_once(" = "));
        Self(
            items
                .filter_map(|(name, hex)| {
                    let bytes = data_encoding::HEXLOWER.decode(hex.trim().as_bytes()).ok()?;
                    Some((name, bytes))
                })
                .collect(),
        )
    }

    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        let found = self.0.get(name);
        found.unwrap_or_else(|| panic!("no golden item is called {name}"))
    }

    /// The items whose names begin with one of these.
    pub(crate) fn all(&self, names: &[&str]) -> impl Iterator<Item = &[u8]> {
        let items = self.0.iter();
        let named = |name: &str| names.iter().any(|it| name.starts_with(it));
        items.filter_map(move |(name, bytes)| named(name).then_some(&bytes[..]))
    }

    pub(crate) fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().expect("of this length")
    }
}
