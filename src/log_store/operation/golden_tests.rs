//! The golden bytes of the stock crates: `tests/golden`, where the format is described.

use super::*;

/// The items of one line: name and what follows ` = `.
pub(super) struct Golden(Vec<(String, String)>);

impl Golden {
    pub(super) fn of(line: Line) -> Self {
        let text = match line {
            Line::V06 => include_str!("../../../tests/golden/p2panda-0.6.1.txt"),
            Line::V07 => include_str!("../../../tests/golden/p2panda-0.7.1.txt"),
        };
        let items = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .map(|(name, item)| (name.to_owned(), item.to_owned()));
        Self(items.collect())
    }

    pub(super) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(it, _)| it == name);
        &found.unwrap_or_else(|| panic!("no golden {name}")).1
    }

    /// All items whose names begin so, up to the first space in each.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = Bytes> {
        let items = self.0.iter().filter(move |(it, _)| it.starts_with(name));
        let first = |text: &str| text.split(' ').next().map(str::to_owned);
        let hex = |digits: String| data_encoding::HEXLOWER.decode(digits.as_bytes()).ok();
        items.filter_map(move |(_, text)| first(text).and_then(hex).map(Bytes::from))
    }

    pub(super) fn bytes(&self, name: &str) -> Bytes {
        hex(self.text(name))
    }
}

pub(super) fn hex(digits: &str) -> Bytes {
    let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes());
    bytes.expect("it is hexadecimal").into()
}

const LINES: [Line; 2] = [Line::V06, Line::V07];

#[test]
fn names_are_those_of_stock() {
    for line in LINES {
        let golden = Golden::of(line);
        for (topic, log_id, derived) in [
            ("topic", "log_id", "gossip_topic"),
            ("other_topic", "other_log_id", "other_gossip_topic"),
        ] {
            let topic: Topic = golden.text(topic).parse().expect("it is a name");
            assert_eq!(topic.log_id().to_string(), golden.text(log_id));
            assert_eq!(topic.derived().to_string(), golden.text(derived));
        }
        for (seed, author) in [(1, "author"), (2, "other_author")] {
            let key = AuthorKey::from_bytes(&[seed; 32]);
            assert_eq!(key.author().to_string(), golden.text(author));
        }
    }
}

#[test]
fn every_header_of_stock_is_taken_and_written_alike() {
    for line in LINES {
        let golden = Golden::of(line);
        let mut checked = 0;
        for (id_of, id) in &golden.0 {
            let Some(name) = id_of.strip_suffix(".id") else {
                continue;
            };
            let bytes = golden.bytes(name);
            let it = Operation::decode(line, bytes.clone(), None).expect(name);
            assert_eq!(it.verify(), Ok(()), "{name}");
            assert_eq!(&it.id().to_string(), id, "{name}");
            let signed = header::signed(&bytes).expect("it was decoded");
            assert_eq!(signed, golden.bytes(&format!("{name}.signed")), "{name}");
            if !name.contains("causal") {
                let signature = header::signature(&bytes).expect("it was decoded");
                assert_eq!(it.says.encode(line, Some(&signature)), bytes, "{name}");
                assert_eq!(it.says.encode(line, None), signed, "{name}");
            }
            checked += 1;
        }
        assert!(checked >= 15, "{line}: {checked} headers");
    }
}

#[test]
fn headers_that_are_wrong_in_one_way_are_judged_as_stock_judges_them() {
    for line in LINES {
        let (mut taken, mut refused) = (0, 0);
        for (name, item) in &Golden::of(line).0 {
            let Some(name) = name.strip_prefix("malformed.") else {
                continue;
            };
            // `hex accept id equal`, `hex accept id differs hex`, `hex refuse ...`
            let words: Vec<_> = item.split(' ').collect();
            if words.len() < 3 {
                continue;
            }
            let ours = Operation::decode(line, hex(words[0]), None)
                .and_then(|it| it.verify().map(|()| it.id().to_string()));
            // Where nodes would give it another id than its bytes have, none may have it.
            let theirs = match words[1..] {
                ["accept", id, "equal"] => Some(id),
                _ => None,
            };
            match theirs {
                Some(_) if stricter(line, name).is_some() => {
                    assert_eq!(ours.err(), stricter(line, name), "{line} {name}");
                    refused += 1;
                }
                Some(id) => {
                    assert_eq!(ours.as_deref(), Ok(id), "{line} {name}");
                    taken += 1;
                }
                None => {
                    assert!(ours.is_err(), "{line} {name}: {ours:?}");
                    refused += 1;
                }
            }
        }
        assert!(taken >= 7 && refused >= 50, "{line}: {taken}, {refused}");
    }
}

/// What stock would take, equal bytes and all, and we do not.
fn stricter(line: Line, name: &str) -> Option<Refused> {
    Some(match (line, name) {
        // No member could serve such a body, and the sum of sizes that a stock node of 0.6 keeps
        // may overflow.
        (_, "size_u32_max") => Refused::PayloadTooLarge {
            bytes: u64::from(u32::MAX),
        },
        (Line::V06, "size_above_u32") => Refused::PayloadTooLarge { bytes: 1 << 32 },
        (Line::V06, "size_u64_max") => Refused::PayloadTooLarge { bytes: u64::MAX },
        // Both lines share one store, and 0.7 ends at 32 bits.
        (Line::V06, "seq_above_u32") => Refused::SequenceTooHigh { found: 1 << 32 },
        (Line::V06, "seq_above_i64") => Refused::SequenceTooHigh { found: 1 << 63 },
        (Line::V06, "seq_u64_max") => Refused::SequenceTooHigh { found: u64::MAX },
        // Stock reads the version and looks at it nowhere; nothing writes another than 1.
        (Line::V06, "extensions.version_0") => Refused::ExtensionsVersionUnknown { found: 0 },
        (Line::V06, "extensions.version_2") => Refused::ExtensionsVersionUnknown { found: 2 },
        _ => return None,
    })
}
