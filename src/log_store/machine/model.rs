//! The machine against a naive model: random appends, doubles, forks, gaps, prunes, topics of both
//! lines that open and close, restarts and restores.

use std::{collections::BTreeMap, sync::LazyLock};

use proptest::prelude::*;

use super::*;
use crate::log_store::{
    mint::Writer,
    operation::OperationId,
    reader::{self, Limits},
};

const AT: Position = Position {
    term: 1,
    index: 1,
    offset: 0,
};
const AUTHORS: u8 = 2;
const LENGTH: u32 = 8;
const LINES: [Line; 2] = [Line::V06, Line::V07];

/// Which operation of an author: its own chain's, or one beside it.
#[derive(Clone, Copy, Debug)]
struct Pick {
    author: u8,
    seq: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Chain,
    /// Another operation at that place, with the chain's backlink.
    Fork,
    /// Like it, with the prune flag.
    Flagged,
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize, Vec<Pick>),
    Prune(usize, u8, u32),
    Open(usize, bool),
    Associate(usize, u8, bool),
    Sweep,
    Reopen,
    Restore,
}

/// One log, kept whole.
#[derive(Clone, Default)]
struct Log {
    held: BTreeMap<u32, (Operation, u64)>,
    dissociated: bool,
    cut: bool,
}

#[derive(Default)]
struct Model {
    open: [bool; 2],
    next: [u64; 2],
    logs: BTreeMap<(usize, u8), Log>,
}

struct World {
    topics: [Topic; 2],
    chains: BTreeMap<(usize, u8), Vec<Operation>>,
    aside: BTreeMap<(usize, u8, u32, bool), Operation>,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let topics = ["cats", "dogs"].map(Topic::named);
        let (mut chains, mut aside) = (BTreeMap::new(), BTreeMap::new());
        for (at, topic) in topics.into_iter().enumerate() {
            for author in 0..AUTHORS {
                let mut writer = Writer::new(author, topic, LINES[at]);
                let chain = writer.many(LENGTH as usize);
                for seq in 0..LENGTH {
                    let backlink = (seq > 0).then(|| chain[seq as usize - 1].id());
                    for prune in [false, true] {
                        let operation = writer.aside(seq, backlink, prune);
                        aside.insert((at, author, seq, prune), operation);
                    }
                }
                chains.insert((at, author), chain);
            }
        }
        Self {
            topics,
            chains,
            aside,
        }
    }

    fn operation(&self, topic: usize, pick: Pick) -> &Operation {
        let Pick { author, seq, kind } = pick;
        match kind {
            Kind::Chain => &self.chains[&(topic, author)][seq as usize],
            kind => &self.aside[&(topic, author, seq, kind == Kind::Flagged)],
        }
    }

    fn author(&self, author: u8) -> Author {
        self.chains[&(0, author)][0].author()
    }
}

impl Model {
    fn append(&mut self, topic: usize, author: u8, it: &Operation) -> Result<Taken, ChainRefused> {
        let log = self.logs.entry((topic, author)).or_default();
        let last = log
            .held
            .last_key_value()
            .map(|(seq, (last, _))| (*seq, last.id()));
        let first = log.held.first_key_value().map(|(seq, _)| *seq);
        if let (Some(first), Some((last, _))) = (first, last)
            && it.seq() <= last
        {
            return match log.held.get(&it.seq()) {
                None => Err(ChainRefused::Pruned { first }),
                Some((held, number)) if held.id() == it.id() => Ok(Taken::Held(*number)),
                Some((held, _)) => Err(ChainRefused::Fork { held: held.id() }),
            };
        }
        if log.dissociated {
            return Err(ChainRefused::Dissociated);
        }
        let next = last.map_or(0, |(last, _)| last + 1);
        if it.prune() {
            log.held.clear();
            log.cut = false;
        } else if it.seq() != next {
            return Err(ChainRefused::Gap { next });
        } else if let Some((_, last)) = last
            && it.backlink() != Some(last)
        {
            return Err(ChainRefused::Backlink { last });
        }
        let number = self.next[topic];
        self.next[topic] += 1;
        log.held.insert(it.seq(), (it.clone(), number));
        Ok(Taken::Appended(number))
    }

    fn prune(&mut self, topic: usize, author: u8, below: u32) -> (u64, u64) {
        let Some(log) = self.logs.get_mut(&(topic, author)) else {
            return (0, 0);
        };
        let Some((last, _)) = log.held.last_key_value() else {
            return (0, 0);
        };
        let kept = log.held.split_off(&below.min(*last));
        let dropped = std::mem::replace(&mut log.held, kept);
        log.cut |= !dropped.is_empty();
        let bytes = dropped.values().map(|(it, _)| it.bytes()).sum();
        (dropped.len() as u64, bytes)
    }
}

fn pick() -> impl Strategy<Value = Pick> {
    let kind = prop_oneof![
        8 => Just(Kind::Chain),
        1 => Just(Kind::Fork),
        1 => Just(Kind::Flagged),
    ];
    (0..AUTHORS, 0..LENGTH, kind).prop_map(|(author, seq, kind)| Pick { author, seq, kind })
}

/// Mostly runs of one chain, since single picks seldom follow.
fn picks() -> impl Strategy<Value = Vec<Pick>> {
    let run = (0..AUTHORS, 0..LENGTH, 0..LENGTH).prop_map(|(author, from, to)| {
        let kind = Kind::Chain;
        (from..=to)
            .map(|seq| Pick { author, seq, kind })
            .collect::<Vec<_>>()
    });
    let from_start = (0..AUTHORS, 0..LENGTH).prop_map(|(author, to)| {
        let kind = Kind::Chain;
        (0..=to)
            .map(|seq| Pick { author, seq, kind })
            .collect::<Vec<_>>()
    });
    prop_oneof![
        run,
        from_start,
        prop::collection::vec(pick(), 1..4),
        prop::collection::vec(pick(), 4..12),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..2_usize, picks()).prop_map(|(topic, picks)| Step::Append(topic, picks)),
        2 => (0..2_usize, 0..AUTHORS, 0..LENGTH + 2)
            .prop_map(|(topic, author, below)| Step::Prune(topic, author, below)),
        1 => (0..2_usize, prop::bool::weighted(0.8))
            .prop_map(|(topic, open)| Step::Open(topic, open)),
        1 => (0..2_usize, 0..AUTHORS, prop::bool::weighted(0.7))
            .prop_map(|(topic, author, on)| Step::Associate(topic, author, on)),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
        1 => Just(Step::Restore),
    ]
}

fn run(world: &World, model: &mut Model, store: &mut LogStore, step: Step) {
    match step {
        Step::Append(at, picks) => append(world, model, store, at, &picks),
        Step::Prune(at, author, below) => {
            let (operations, bytes) = model.prune(at, author, below);
            let (author, log) = (world.author(author), world.topics[at].log_id());
            let output = store.apply(AT, LogCommand::Prune { author, log, below });
            let left = false;
            let wanted = LogOutput::Pruned {
                operations,
                bytes,
                left,
            };
            assert_eq!(output, wanted);
        }
        Step::Open(at, open) => {
            let (topic, line) = (world.topics[at], LINES[at]);
            let command = if open {
                LogCommand::OpenTopic { topic, line }
            } else {
                LogCommand::CloseTopic { topic }
            };
            assert_eq!(store.apply(AT, command), LogOutput::Done);
            model.open[at] = open;
        }
        Step::Associate(at, author, on) => {
            let log = model.logs.entry((at, author)).or_default();
            log.dissociated = !on;
            let (topic, author) = (world.topics[at], world.author(author));
            let command = if on {
                let log = topic.log_id();
                LogCommand::Associate { topic, author, log }
            } else {
                LogCommand::Dissociate { topic, author }
            };
            assert_eq!(store.apply(AT, command), LogOutput::Done);
        }
        Step::Sweep => {
            store.apply(AT, LogCommand::Sweep);
        }
        Step::Reopen => {
            let table = store.table.clone();
            *store = LogStore::new();
            store.open(table);
        }
        Step::Restore => {
            let mut bytes = Vec::new();
            store.snapshot().write_to(&mut bytes).expect("memory");
            *store = LogStore::new();
            let restored = store.restore(SnapshotReader::new(&mut &bytes[..]));
            restored.expect("a snapshot");
        }
    }
}

fn append(world: &World, model: &mut Model, store: &mut LogStore, at: usize, picks: &[Pick]) {
    let taken = picks.iter().map(|pick| world.operation(at, *pick));
    let operations = taken
        .map(|it| RawOperation {
            header: it.header().clone(),
            body: it.body().cloned(),
        })
        .collect();
    let topic = world.topics[at];
    let output = store.apply(AT, LogCommand::Append { topic, operations });
    if !model.open[at] {
        assert_eq!(output, LogOutput::Refused(LogRefused::NotOpen));
        return;
    }
    let mut runs = Runs::default();
    for pick in picks.iter().copied() {
        match model.append(at, pick.author, world.operation(at, pick)) {
            Ok(taken) => runs.push(taken),
            Err(refused) => runs.0.push(OutcomeRun::Refused(refused)),
        }
    }
    assert_eq!(output, LogOutput::Appended(runs.0));
}

fn compare(world: &World, model: &Model, store: &LogStore) {
    let view = store.view();
    let seen = view.table.read(|moment| {
        let mut ids: Vec<(OperationId, Option<u64>)> = Vec::new();
        for (at, topic) in world.topics.into_iter().enumerate() {
            let (mut heights, mut order) = (reader::Heights::new(), BTreeMap::new());
            for author in 0..AUTHORS {
                let name = world.author(author);
                let log = model.logs.get(&(at, author)).cloned().unwrap_or_default();
                if let (false, Some((last, _))) = (log.dissociated, log.held.last_key_value()) {
                    let heights = heights.entry(name).or_default();
                    heights.insert(topic.log_id(), *last);
                }
                for (operation, number) in log.held.values() {
                    order.insert(*number, operation.id());
                }
                compare_ranges(moment, name, topic.log_id(), &log);
                let all = (0..LENGTH).flat_map(|seq| {
                    [Kind::Chain, Kind::Fork, Kind::Flagged].map(|kind| Pick { author, seq, kind })
                });
                ids.extend(all.map(|pick| {
                    let operation = world.operation(at, pick);
                    let held = log.held.get(&pick.seq);
                    let held = held.filter(|(it, _)| it.id() == operation.id());
                    (operation.id(), held.map(|(_, number)| *number))
                }));
            }
            let authors = reader::authors(moment, topic)?.unwrap_or(0);
            assert_eq!(authors as usize, heights.len());
            assert_eq!(reader::heights(moment, topic)?, heights);
            let page = reader::commits(moment, topic, 0, Limits::PAGE)?;
            let commits = page
                .operations
                .iter()
                .map(|(number, it)| (*number, it.id()));
            assert!(commits.eq(order), "another commit order");
        }
        let numbers = reader::numbers(moment, ids.iter().map(|(id, _)| *id))?;
        let wanted: Vec<_> = ids.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, wanted);
        io::Result::Ok(())
    });
    seen.expect("memory").expect("readable");
}

fn compare_ranges(moment: &crate::machine::Moment<'_>, author: Author, id: LogId, log: &Log) {
    for after in std::iter::once(None).chain((0..LENGTH).map(Some)) {
        for until in 0..LENGTH {
            let wanted = after.map_or(0, |after| after + 1);
            let hole = log.cut && log.held.keys().next().is_some_and(|first| wanted < *first);
            let wanted = log
                .held
                .range(wanted..)
                .filter(|(seq, _)| **seq <= until && !hole);
            let wanted: Vec<&Operation> = wanted.map(|(_, (it, _))| it).collect();
            let bytes = wanted.iter().map(|it| it.bytes()).sum();
            let size = reader::size(moment, author, id, after, until).expect("readable");
            assert_eq!(size, (wanted.len() as u64, bytes), "{after:?} to {until}");
            let page = reader::page(moment, author, id, after, until, Limits::PAGE);
            let page = page.expect("readable");
            assert!(
                page.iter()
                    .map(|it| &it.header)
                    .eq(wanted.iter().map(|it| it.header()))
            );
        }
    }
}

/// What is in the table but topics, heads, counts of authors, and three keys for each operation
/// held.
fn leftovers(model: &Model, store: &LogStore) -> i64 {
    let mut found = BTreeMap::<u8, i64>::new();
    store.table.scan(&[], &[], Order::Ascending, &mut |key, _| {
        *found.entry(key[0]).or_default() += 1;
        ControlFlow::Continue(())
    });
    let held: usize = model.logs.values().map(|it| it.held.len()).sum();
    found
        .iter()
        .filter(|(tag, _)| !matches!(**tag, 0..=2 | 9))
        .map(|(_, count)| count)
        .sum::<i64>()
        - 3 * i64::try_from(held).expect("small")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_model_does(steps in prop::collection::vec(step(), 1..30)) {
        let world = &*WORLD;
        let (mut model, mut store) = (Model::default(), LogStore::new());
        for at in 0..2 {
            run(world, &mut model, &mut store, Step::Open(at, true));
        }
        for step in steps {
            run(world, &mut model, &mut store, step);
            compare(world, &model, &store);
        }
        run(world, &mut model, &mut store, Step::Sweep);
        prop_assert_eq!(leftovers(&model, &store), 0);
    }
}
