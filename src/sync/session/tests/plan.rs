//! Plans: within the budget, in order, fair, and never nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    log_store::{Author, LogId},
    sync::{
        codec::Heights,
        session::{Budget, Plan, Range},
    },
};

const LOG: LogId = LogId::from_bytes([1; 32]);

fn author(number: u8) -> Author {
    Author::from_bytes([number; 32])
}

/// One log an author, with this height.
fn heights(of: &[(u8, u32)]) -> Heights {
    let of = of.iter();
    of.map(|(name, height)| (author(*name), BTreeMap::from([(LOG, *height)])))
        .collect()
}

/// Operations of 100 bytes each, none below `pruned`.
fn plan(ours: &Heights, theirs: &Heights, budget: Budget, behind: Option<u8>, pruned: u32) -> Plan {
    let behind = behind.map(author);
    let size = |_: Author, _: LogId, after: Option<u32>, until: u32| {
        let from = after.map_or(0, |it| it + 1).max(pruned);
        let operations = u64::from((until + 1).saturating_sub(from));
        Ok::<_, ()>((operations, operations * 100))
    };
    Plan::compute(ours, theirs, budget, behind.as_ref(), size).unwrap()
}

fn operations(operations: u32) -> Budget {
    Budget {
        operations,
        bytes: u64::MAX,
    }
}

/// Author, last one not sent, last one sent.
fn ranges(plan: &Plan) -> Vec<(u8, Option<u32>, u32)> {
    let range = |it: &Range| (it.author.as_bytes()[0], it.after, it.until);
    plan.ranges.iter().map(range).collect()
}

#[test]
fn what_they_lack_is_above_their_height_or_the_whole_log() {
    let ours = heights(&[(1, 9), (2, 9), (3, 9), (4, 9)]);
    let theirs = heights(&[(1, 4), (2, 9), (3, 12)]);
    let plan = plan(&ours, &theirs, Budget::UNLIMITED, None, 0);
    assert_eq!(ranges(&plan), [(1, Some(4), 9), (4, None, 9)]);
    assert_eq!(
        (plan.operations, plan.bytes, plan.complete),
        (15, 1_500, true)
    );
}

#[test]
fn short_backlogs_go_whole_and_long_ones_share_the_rest() {
    let ours = heights(&[(1, 9_999), (2, 4), (3, 9_999)]);
    let plan = plan(&ours, &Heights::new(), operations(205), None, 0);
    assert_eq!(ranges(&plan), [(1, None, 99), (2, None, 4), (3, None, 99)]);
    assert_eq!((plan.operations, plan.complete), (205, false));
}

#[test]
fn with_more_authors_than_budget_all_get_their_turn() {
    let ours = heights(&[(1, 9), (2, 9), (3, 9), (4, 9), (5, 9)]);
    let mut served = Vec::new();
    let mut behind = None;
    for _ in 0..3 {
        let plan = plan(&ours, &Heights::new(), operations(2), behind, 0);
        served.extend(ranges(&plan).into_iter().map(|it| it.0));
        behind = plan.last_author().map(|it| it.as_bytes()[0]);
    }
    assert_eq!(served, [1, 2, 3, 4, 5, 1]);
}

#[test]
fn one_operation_goes_even_if_it_is_larger_than_the_budget() {
    let ours = heights(&[(1, 9), (2, 9)]);
    let budget = Budget {
        operations: 10,
        bytes: 5,
    };
    let plan = plan(&ours, &Heights::new(), budget, None, 0);
    assert_eq!(ranges(&plan), [(1, None, 0)]);
}

#[test]
fn what_was_pruned_is_neither_announced_nor_missed() {
    let ours = heights(&[(1, 9)]);
    let whole = plan(&ours, &Heights::new(), Budget::UNLIMITED, None, 7);
    assert_eq!((ranges(&whole), whole.operations), (vec![(1, None, 9)], 3));
    let part = plan(&ours, &Heights::new(), operations(2), None, 7);
    assert_eq!((ranges(&part), part.operations), (vec![(1, None, 8)], 2));
    let nothing = plan(&ours, &Heights::new(), operations(2), None, 10);
    assert_eq!((nothing.operations, nothing.complete), (0, true));
}

proptest! {
    #[test]
    fn plans_keep_the_budget_and_come_to_an_end(
        ours in proptest::collection::btree_map(0..20_u8, 0..500_u32, 0..12),
        theirs in proptest::collection::btree_map(0..20_u8, 0..500_u32, 0..12),
        budget in (1..300_u32, 1..30_000_u64),
        pruned in 0..50_u32,
    ) {
        let of = |it: BTreeMap<u8, u32>| heights(&it.into_iter().collect::<Vec<_>>());
        let (ours, mut theirs) = (of(ours), of(theirs));
        let budget = Budget { operations: budget.0, bytes: budget.1 };
        let mut behind = None;
        for _ in 0..20_000 {
            let plan = plan(&ours, &theirs, budget, behind, pruned);
            prop_assert!(plan.operations <= budget.operations);
            prop_assert!(plan.bytes <= budget.bytes || plan.operations == 1);
            for range in &plan.ranges {
                let logs = theirs.entry(range.author).or_default();
                prop_assert_eq!(logs.get(&range.log).copied(), range.after);
                prop_assert!(range.until <= ours[&range.author][&range.log]);
                logs.insert(range.log, range.until);
            }
            behind = plan.last_author().map(|it| it.as_bytes()[0]);
            if plan.complete {
                let rest = self::plan(&ours, &theirs, budget, None, pruned);
                prop_assert_eq!(rest.operations, 0);
                return Ok(());
            }
            prop_assert!(plan.operations > 0, "a chunk brings something");
        }
        prop_assert!(false, "no end");
    }
}
