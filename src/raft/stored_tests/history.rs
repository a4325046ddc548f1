//! Random histories, restarted at every point: equal to one that never restarts.

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;

/// What somebody did, before it is placed in the journal.
#[derive(Clone, Debug)]
enum Act {
    Open,
    Blank,
    /// Through the nth session opened (or one that never was), a new command or one again.
    Commands {
        session: usize,
        again: u64,
        answered: bool,
        keys: Vec<u8>,
        bytes: u32,
    },
    Restart,
    Snapshot,
}

fn act() -> impl Strategy<Value = Act> {
    let keys = prop::collection::vec(0_u8..7, 1..6);
    let bytes = prop_oneof![9 => Just(3_u32), 1 => Just(400_000_u32)];
    prop_oneof![
        1 => Just(Act::Open),
        1 => Just(Act::Blank),
        6 => (0_usize..4, 0_u64..4, any::<bool>(), keys, bytes).prop_map(
            |(session, again, answered, keys, bytes)| Act::Commands {
                session, again, answered, keys, bytes,
            }
        ),
        3 => Just(Act::Restart),
        1 => Just(Act::Snapshot),
    ]
}

/// Places acts in the journal. Numbers may repeat, run on and be answered, as retries make them.
#[derive(Default)]
struct Author {
    index: u64,
    opened: Vec<u64>,
    next_seq: BTreeMap<u64, u64>,
}

impl Author {
    fn entry(&mut self, act: &Act) -> Option<Entry> {
        self.index += 1;
        let index = self.index;
        Some(match act {
            Act::Open => {
                self.opened.push(index);
                normal(index, &Batch::Open)
            }
            Act::Blank => Entry {
                log_id: log_id(1, index),
                payload: EntryPayload::Blank,
            },
            Act::Commands {
                session,
                again,
                answered,
                keys,
                bytes,
            } => {
                let session = self.opened.get(*session).copied().unwrap_or(1_000_000);
                let next = self.next_seq.entry(session).or_default();
                let first = next.saturating_sub(*again);
                let lowest = if *answered {
                    first
                } else {
                    first.saturating_sub(5)
                };
                *next = (*next).max(first + keys.len() as u64);
                let key = |it: &u8| match it {
                    6 => "clear 3".to_owned(),
                    key => key.to_string(),
                };
                let changes: Vec<Change> = keys
                    .iter()
                    .map(|it| (key(it), i64::from(*it) + 1, *bytes))
                    .collect();
                normal(index, &commands(session, first, lowest, &changes))
            }
            Act::Restart | Act::Snapshot => {
                self.index -= 1;
                return None;
            }
        })
    }
}

/// One never restarts and keeps its state in memory, the other is in the store and starts anew at
/// each `Restart`: they must be equal all along.
async fn equal_all_along(acts: Vec<Act>, disks: [&Disk; 2]) {
    let (host, steady_views) = Host::new(Sums::default(), None);
    let local = group(&disks[0].store).local;
    let snapshots = disks[0].store.snapshots(local).expect("snapshots");
    let steady = StateHandle::new(Box::new(host), None, snapshots, Arc::default());
    let mut steady = steady.expect("opens");
    let (mut restarted, mut views) = start(&disks[1].store);
    let mut author = Author::default();
    let mut waiting = Vec::new();
    for act in acts.iter().chain([&Act::Restart]) {
        waiting.extend(author.entry(act));
        if matches!(act, Act::Restart | Act::Snapshot) {
            let entries = std::mem::take(&mut waiting);
            apply(&mut steady, entries.clone()).await.expect("applies");
            apply(&mut restarted, entries).await.expect("applies");
            if matches!(act, Act::Snapshot) {
                let mut builder = restarted.get_snapshot_builder().await;
                builder.build_snapshot().await.expect("builds");
            }
            drop(restarted);
            (restarted, views) = start(&disks[1].store);
        }
        let expected = steady.applied_state().await.expect("sound");
        assert_eq!(restarted.applied_state().await.expect("sound"), expected);
        let (table, again) = (steady.sessions().await, restarted.sessions().await);
        assert!(table == again, "the sessions differ");
        assert_eq!(bytes_of(&table), bytes_of(&again));
        let held = content(&views.latest().1).expect("reads");
        let (_, modelled) = content(&steady_views.latest().1).expect("reads");
        assert_eq!(held.1, modelled);
        assert_eq!(views.applied(), steady_views.applied());
        let index = expected.0.map_or(0, |it| it.index);
        assert_eq!(held.0.index, index);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_restart_at_any_point_changes_nothing(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(equal_all_along(acts, [&in_memory(), &in_memory()]));
    }
}
