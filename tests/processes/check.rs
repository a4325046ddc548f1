//! Whether a state holds what was acknowledged: nothing lost, nothing twice, in one order.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use crate::{
    ledger::{Entry, Ledger},
    process::Told,
};

/// What a check that passed has seen.
pub(crate) struct Verdict {
    pub(crate) entries: usize,
    pub(crate) acked: usize,
    open: usize,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            entries,
            acked,
            open,
        } = self;
        write!(
            f,
            "{acked} acknowledged, 0 lost, 0 doubled, {open} open, {entries} in the one order"
        )
    }
}

/// Checks the state that all members have against what they acknowledged.
pub(crate) fn judge(state: &[u8], told: &Told) -> Verdict {
    let ledger = Ledger::read_from(&mut &state[..]).expect("a state");
    let mut places = HashMap::new();
    let mut doubled = Vec::new();
    let mut last = None;
    for Entry { id, at } in &ledger.entries {
        assert!(last < Some(*at), "{at:?} stands behind {last:?}");
        last = Some(*at);
        if places.insert(*id, *at).is_some() {
            doubled.push(format!("{id:x}"));
        }
    }
    assert!(doubled.is_empty(), "{} doubled: {doubled:?}", doubled.len());
    let lost: Vec<String> = told
        .acked
        .iter()
        .filter(|(id, at)| places.get(id) != Some(at))
        .map(|(id, at)| format!("{id:x} at {at:?}, found at {:?}", places.get(id)))
        .collect();
    assert!(lost.is_empty(), "{} lost or moved: {lost:?}", lost.len());
    // A client begins an append after the one before was answered.
    for ((one, before), (two, after)) in told.acked.iter().zip(told.acked.iter().skip(1)) {
        if one >> 32 == two >> 32 {
            assert!(
                before < after,
                "{one:x} at {before:?} stands behind {two:x} at {after:?}"
            );
        }
    }
    let open: HashSet<u64> = told
        .open
        .iter()
        .copied()
        .filter(|id| !told.acked.contains_key(id))
        .collect();
    Verdict {
        entries: ledger.entries.len(),
        acked: told.acked.len(),
        open: open.len(),
    }
}

/// Median, 99th percentile and the worst, in words.
pub(crate) fn figures(times: &mut [Duration]) -> (Duration, String) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let (p50, p99, max) = (at(50), at(99), at(100));
    let text = format!(
        "{} rounds, p50 {p50:.0?}, p99 {p99:.0?}, max {max:.0?}",
        times.len()
    );
    (p50, text)
}

#[test]
fn the_judge_sees_what_is_lost_doubled_and_out_of_order() {
    use quorate::Position;
    use std::panic::catch_unwind;

    let at = |index| Position {
        term: 1,
        index,
        offset: 0,
    };
    let state = |entries: &[(u64, u64)]| {
        let mut ledger = Ledger::default();
        for (id, index) in entries {
            let (id, at) = (*id, at(*index));
            ledger.entries.push_back(Entry { id, at });
        }
        let mut bytes = Vec::new();
        ledger.write_to(&mut bytes).expect("a vector takes it");
        bytes
    };
    let passes = |entries: &[(u64, u64)], acked: &[(u64, u64)]| {
        let (bytes, acked) = (state(entries), acked.to_vec());
        catch_unwind(move || {
            let mut told = Told::default();
            told.acked = acked
                .into_iter()
                .map(|(id, index)| (id, at(index)))
                .collect();
            judge(&bytes, &told);
        })
        .is_ok()
    };
    assert!(passes(&[(1, 1), (2, 2), (3, 3)], &[(1, 1), (3, 3)]));
    assert!(!passes(&[(1, 1)], &[(1, 1), (2, 2)]), "lost");
    assert!(!passes(&[(1, 1), (1, 2)], &[(1, 1)]), "doubled");
    assert!(!passes(&[(1, 2), (2, 1)], &[]), "positions that fall");
    assert!(
        !passes(&[(2, 1), (1, 2)], &[(2, 1), (1, 2)]),
        "a client's order"
    );
    assert!(
        !passes(&[(1, 2)], &[(1, 1)]),
        "acknowledged at another place"
    );
}
