//! What the nodes and the members hold in the end: counted in their stores, never taken on trust.

use std::{collections::BTreeSet, fmt, time::Duration};

use quorate::log_store::Line;

/// What became of one p2panda node and its topic.
pub(crate) struct Outcome {
    pub(crate) line: Line,
    /// Operations that there are in its topic, and how many of them its own store holds.
    pub(crate) operations: u64,
    pub(crate) held: u64,
    /// Whether its logs are as high as they should be, without a gap.
    pub(crate) complete: bool,
    /// From SIGKILL until another member had sent it the next chunk, and which one that was.
    pub(crate) next: Option<(Duration, char)>,
    /// Until it had taken in the first operation of that, behind what it had still to take in.
    pub(crate) taken_in: Option<Duration>,
    /// Operations that it was sent and had.
    pub(crate) resent: u64,
    /// What members hold: how many operations, how many ids, and the hash of the ids.
    pub(crate) members: Vec<(u64, u64, String)>,
    /// The hash of the ids that the node has seen.
    pub(crate) ids: String,
}

/// The figures of one run.
pub(crate) struct Verdict {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// Whether every member holds what the node holds, each operation once.
    fn is_equal(&self) -> bool {
        let wanted = (self.operations, self.operations, self.ids.clone());
        self.members.len() == 3 && self.members.iter().all(|it| *it == wanted)
    }

    fn is_good(&self) -> bool {
        let takeover = self.next.is_some() && self.taken_in.is_some();
        self.complete && self.held == self.operations && self.is_equal() && takeover
    }
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.outcomes.len() == 2 && self.outcomes.iter().all(Outcome::is_good)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&Outcome) -> u64| self.outcomes.iter().map(of).sum::<u64>();
        let mut row = |name: &str, value: &str, meaning: &str| {
            writeln!(f, "  {name:<14} {value:>10}   {meaning}")
        };
        row(
            "operations",
            &sum(|it| it.operations).to_string(),
            "in both topics, each held by a p2panda node and three members",
        )?;
        for outcome in &self.outcomes {
            let Outcome { line, next, .. } = outcome;
            let taken_in = outcome.taken_in.map_or("none".into(), seconds);
            let (took, by) = match next {
                Some((took, by)) => (seconds(*took), by.to_string()),
                None => ("none".into(), "nobody".into()),
            };
            let meaning = format!("from SIGKILL to the next chunk, by {by}; taken in: {taken_in}");
            row(&format!("takeover {line}"), &took, &meaning)?;
        }
        let lost = sum(|it| it.operations.saturating_sub(it.held));
        row("lost", &lost.to_string(), "missing at a p2panda node")?;
        let doubled = |it: &Outcome| it.members.iter().map(|it| it.0 - it.1).sum::<u64>();
        let doubled: u64 = self.outcomes.iter().map(doubled).sum();
        row("doubled", &doubled.to_string(), "twice in a member's store")?;
        let resent = sum(|it| it.resent).to_string();
        row("resent", &resent, "sent to a p2panda node that had them")?;
        let complete = match self.outcomes.iter().all(|it| it.complete) {
            true => "complete",
            false => "INCOMPLETE",
        };
        row(
            "heights",
            complete,
            "of every log, in the nodes' own stores",
        )?;
        let equal = match self.outcomes.iter().all(Outcome::is_equal) {
            true => "equal",
            false => "DIFFERENT",
        };
        row("ids", equal, "at nodes and members, each once")?;
        let took = format!("{:.1} s", self.elapsed.as_secs_f64());
        row(
            "time",
            &took,
            "from the first session to the last operation",
        )
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}

/// Whether a node's own store has these logs, whole: authors' heights and how many are held.
pub(crate) fn is_complete(logs: &[(u64, u64)], counts: &[u64]) -> bool {
    let held: BTreeSet<(u64, u64)> = logs.iter().copied().collect();
    let wanted = counts.iter().map(|count| (count - 1, *count));
    logs.len() == counts.len() && held == wanted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(change: impl FnOnce(&mut Outcome)) -> Verdict {
        let outcome = |line| Outcome {
            line,
            operations: 30,
            held: 30,
            complete: true,
            next: Some((Duration::from_millis(600), 'B')),
            taken_in: Some(Duration::from_secs(1)),
            resent: 5,
            members: vec![(30, 30, "ids".into()); 3],
            ids: "ids".into(),
        };
        let mut outcomes = vec![outcome(Line::V06), outcome(Line::V07)];
        change(&mut outcomes[1]);
        Verdict {
            outcomes,
            elapsed: Duration::from_secs(9),
        }
    }

    #[test]
    fn what_is_lost_doubled_cut_off_or_not_taken_over_is_found() {
        assert!(verdict(|_| {}).is_good());
        assert!(!verdict(|it| it.held = 29).is_good());
        assert!(!verdict(|it| it.complete = false).is_good());
        assert!(!verdict(|it| it.taken_in = None).is_good());
        assert!(!verdict(|it| it.next = None).is_good());
        assert!(!verdict(|it| it.members[2].0 = 31).is_good());
        assert!(!verdict(|it| it.members[0].2 = "others".into()).is_good());
        assert!(!verdict(|it| drop(it.members.pop())).is_good());
    }

    #[test]
    fn a_log_with_a_gap_is_not_complete() {
        assert!(is_complete(&[(9, 10), (2, 3)], &[10, 3]));
        assert!(!is_complete(&[(9, 9), (2, 3)], &[10, 3]));
        assert!(!is_complete(&[(9, 10)], &[10, 3]));
        assert!(!is_complete(&[(9, 10), (2, 3), (0, 1)], &[10, 3]));
    }
}
