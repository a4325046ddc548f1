//! The map beside that of the standard library, and its frozen format.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*};

use super::*;

/// The map of the standard library, told the same.
type Model = BTreeMap<Bytes, Bytes>;

fn model_apply(model: &mut Model, command: MapCommand) -> MapOutput {
    match command {
        MapCommand::Put { key, value } => MapOutput::Previous(model.insert(key, value)),
        MapCommand::Remove { key } => MapOutput::Previous(model.remove(&key)),
        MapCommand::CompareAndSet { key, expected, new } => {
            let current = model.get(&key).cloned();
            let swapped = current == expected;
            match &new {
                _ if !swapped => return MapOutput::Compared { swapped, current },
                Some(value) => model.insert(key, value.clone()),
                None => model.remove(&key),
            };
            MapOutput::Compared {
                swapped,
                current: new,
            }
        }
    }
}

fn model_range(model: &Model, from: &Bound<Bytes>, to: &Bound<Bytes>) -> Vec<(Bytes, Bytes)> {
    let bounds = (from.as_ref(), to.as_ref());
    let inside = model
        .iter()
        .filter(|(key, _)| RangeBounds::<Bytes>::contains(&bounds, *key));
    inside
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Few distinct keys, so that commands meet; of different lengths, so that prefixes do.
fn key() -> impl Strategy<Value = Bytes> {
    vec(
        prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(255)],
        0..5,
    )
    .prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    vec(0_u8..3, 0..2).prop_map(Bytes::from)
}

fn command() -> impl Strategy<Value = MapCommand> {
    prop_oneof![
        4 => (key(), value()).prop_map(|(key, value)| MapCommand::Put { key, value }),
        2 => key().prop_map(|key| MapCommand::Remove { key }),
        2 => (key(), option::of(value()), option::of(value()))
            .prop_map(|(key, expected, new)| MapCommand::CompareAndSet { key, expected, new }),
    ]
}

fn bound() -> impl Strategy<Value = Bound<Bytes>> {
    prop_oneof![
        2 => key().prop_map(Bound::Included),
        2 => key().prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

fn snapshot_of(map: &Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    map.snapshot()
        .write_to(&mut bytes)
        .expect("memory takes it");
    bytes
}

fn holds(map: &Map, model: &Model) -> bool {
    map.len() == model.len() && map.iter().eq(model)
}

proptest! {
    #[test]
    fn behaves_as_the_standard_map(
        commands in vec(command(), 0..300),
        ranges in vec((bound(), bound(), 0_usize..20), 8),
    ) {
        let (mut map, mut model) = (Map::new(), Model::new());
        for command in commands {
            let output = map.apply(Position::default(), command.clone());
            prop_assert_eq!(output, model_apply(&mut model, command));
        }
        prop_assert!(holds(&map, &model));
        for (from, to, limit) in ranges {
            let mut expected = model_range(&model, &from, &to);
            expected.truncate(limit);
            let found = Map::query(&map, MapQuery::Range { from, to, limit });
            prop_assert_eq!(found, MapAnswer::Entries(expected));
        }
    }

    #[test]
    fn prefix_finds_what_begins_with_it(keys in vec(key(), 0..60), prefix in key()) {
        let map = Map { entries: keys.into_iter().map(|key| (key, Bytes::new())).collect() };
        let found = Map::query(&map, MapQuery::prefix(prefix.clone(), usize::MAX)).into_entries();
        let expected = map.iter().filter(|(key, _)| key.starts_with(&prefix));
        prop_assert!(found.iter().map(|(key, value)| (key, value)).eq(expected));
    }

    #[test]
    fn a_view_never_changes(before in vec(command(), 0..200), after in vec(command(), 1..200)) {
        let (mut map, mut model) = (Map::new(), Model::new());
        for command in before {
            map.apply(Position::default(), command.clone());
            model_apply(&mut model, command);
        }
        let (view, captured) = (map.view(), map.snapshot());
        for command in after {
            map.apply(Position::default(), command);
        }
        prop_assert!(holds(&view, &model));
        let mut bytes = Vec::new();
        captured.write_to(&mut bytes).expect("memory takes it");
        prop_assert_eq!(bytes, snapshot_of(&view));
    }

    #[test]
    fn a_snapshot_restores_the_map(commands in vec(command(), 0..300), old in command()) {
        let mut map = Map::new();
        for command in commands {
            map.apply(Position::default(), command);
        }
        let bytes = snapshot_of(&map);
        let mut other = Map::new();
        other.apply(Position::default(), old);
        other.restore(SnapshotReader::new(&mut &bytes[..])).expect("a snapshot");
        prop_assert!(other.iter().eq(map.iter()));
        prop_assert_eq!(snapshot_of(&other), bytes);
    }
}

/// A tree several levels deep, walked over by inserts and removes, with a view kept of every
/// thousandth state.
#[test]
fn a_large_map_stays_right() {
    let (mut map, mut model) = (Map::new(), Model::new());
    let mut views = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for step in 0..60_000_u64 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let key = (random % 30_000).to_be_bytes().to_vec();
        // Grows to 20,000 keys and more, then shrinks to a few.
        let shrinks = step >= 40_000 || random >> 60 == 0;
        let command = if shrinks {
            MapCommand::remove(if step % 2 == 0 {
                key
            } else {
                model.keys().next().cloned().unwrap_or_default().to_vec()
            })
        } else {
            MapCommand::put(key, step.to_be_bytes())
        };
        let output = map.apply(Position::default(), command.clone());
        assert_eq!(output, model_apply(&mut model, command), "step {step}");
        if step % 1_000 == 0 {
            assert!(holds(&map, &model), "step {step}");
            views.push((map.view(), model.clone()));
        }
    }
    assert!(views.iter().any(|(view, _)| view.len() > 15_000) && map.len() < 10_000);
    for (view, model) in &views {
        assert!(holds(view, model));
        let from = Bound::Excluded(Bytes::from(9_000_u64.to_be_bytes().to_vec()));
        let to = Bound::Included(Bytes::from(9_900_u64.to_be_bytes().to_vec()));
        let expected = model_range(model, &from, &to);
        let found = Map::query(
            view,
            MapQuery::Range {
                from,
                to,
                limit: usize::MAX,
            },
        );
        assert_eq!(found, MapAnswer::Entries(expected));
    }
}

#[test]
fn a_snapshot_with_keys_out_of_order_is_refused() {
    let pair = |key: &'static str| (Bytes::from(key), Bytes::new());
    for keys in [["b", "a"], ["a", "a"]] {
        let mut bytes = Vec::new();
        Snapshot::of(keys.map(pair).to_vec())
            .write_to(&mut bytes)
            .expect("memory takes it");
        let mut map = Map::new();
        map.restore(SnapshotReader::new(&mut &bytes[..]))
            .expect_err("no map writes that");
    }
}

/// Frozen: these bytes are in journals and snapshots.
#[test]
fn the_format_stays() {
    let encoded = |command| postcard::to_stdvec(&command).expect("a command is encodable");
    assert_eq!(encoded(MapCommand::put("k", "vw")), b"\x00\x01k\x02vw");
    assert_eq!(encoded(MapCommand::remove("k")), b"\x01\x01k");
    assert_eq!(
        encoded(MapCommand::put_if_absent("k", "v")),
        b"\x02\x01k\x00\x01\x01v"
    );
    assert_eq!(
        encoded(MapCommand::put_if("k", "v", "w")),
        b"\x02\x01k\x01\x01v\x01\x01w"
    );
    assert_eq!(
        encoded(MapCommand::remove_if("k", "v")),
        b"\x02\x01k\x01\x01v\x00"
    );
    let mut map = Map::new();
    map.apply(Position::default(), MapCommand::put("k", "v"));
    map.apply(Position::default(), MapCommand::put("a", ""));
    assert_eq!(snapshot_of(&map), b"\x02\x01a\x00\x01k\x01v");
}
