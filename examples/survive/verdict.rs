//! What became of the lines: counted from the states, never taken on trust.

use std::{fmt, time::Duration};

use crate::ledger;

/// The figures of one run.
pub(crate) struct Verdict {
    lines: usize,
    elapsed: Duration,
    failover: Option<Duration>,
    unknown: usize,
    /// Lines that were acknowledged and are missing from some state, or changed in it.
    lost: usize,
    /// Lines that stand in some state more than once.
    doubled: usize,
    /// Entries of states that are no line of the file.
    foreign: usize,
    equal: bool,
    state_bytes: usize,
}

impl Verdict {
    /// Compares every state with the file, all of whose lines were acknowledged, and with the
    /// other states.
    pub(crate) fn of(
        lines: &[&[u8]],
        states: &[Vec<u8>],
        elapsed: Duration,
        failover: Option<Duration>,
        unknown: usize,
    ) -> Self {
        let (mut lost, mut doubled) = (vec![false; lines.len()], vec![false; lines.len()]);
        let mut foreign = 0;
        for state in states {
            let mut seen = vec![0_u32; lines.len()];
            for (number, text) in ledger::read(state).unwrap_or_default() {
                match usize::try_from(number) {
                    Ok(number) if lines.get(number) == Some(&text) => seen[number] += 1,
                    _ => foreign += 1,
                }
            }
            for (number, count) in seen.into_iter().enumerate() {
                lost[number] |= count == 0;
                doubled[number] |= count > 1;
            }
        }
        let count = |of: &[bool]| of.iter().filter(|it| **it).count();
        Self {
            lines: lines.len(),
            elapsed,
            failover,
            unknown,
            lost: count(&lost),
            doubled: count(&doubled),
            foreign,
            equal: states.windows(2).all(|pair| pair[0] == pair[1]),
            state_bytes: states.first().map_or(0, Vec::len),
        }
    }

    /// Whether every line is at every member exactly once, and all states are equal.
    pub(crate) fn is_good(&self) -> bool {
        self.lost + self.doubled + self.foreign == 0 && self.equal && self.failover.is_some()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = self.lines as f64 / self.elapsed.as_secs_f64();
        let failover = match self.failover {
            Some(took) => format!("{:.3} s", took.as_secs_f64()),
            None => "none".into(),
        };
        let states = if self.equal { "equal" } else { "DIFFERENT" };
        let rows: [(&str, String, &str); 7] = [
            (
                "lines",
                self.lines.to_string(),
                "acknowledged, all of the file",
            ),
            ("lines/s", format!("{speed:.0}"), "the failover included"),
            (
                "failover",
                failover,
                "from SIGKILL to the first line of a new leader",
            ),
            (
                "lost",
                self.lost.to_string(),
                "missing or changed at some member",
            ),
            (
                "doubled",
                self.doubled.to_string(),
                "more than once at some member",
            ),
            (
                "unknown",
                self.unknown.to_string(),
                "answers unknown, retried in their session",
            ),
            ("states", states.into(), "byte by byte, of three members"),
        ];
        writeln!(f)?;
        for (name, value, meaning) in rows {
            writeln!(f, "  {name:<10} {value:>12}   {meaning}")?;
        }
        if self.foreign > 0 {
            writeln!(
                f,
                "  {:<10} {:>12}   no line of the file",
                "foreign", self.foreign
            )?;
        }
        writeln!(f, "\n  each state has {} bytes", self.state_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{self, Line};

    fn state(of: &[(u64, &'static str)]) -> Vec<u8> {
        let lines = of.iter().map(|(number, text)| Line {
            number: *number,
            text: bytes::Bytes::from_static(text.as_bytes()),
        });
        let mut bytes = Vec::new();
        ledger::write(&lines.collect(), &mut bytes).expect("a vector takes everything");
        bytes
    }

    fn verdict(states: [&[(u64, &'static str)]; 2]) -> Verdict {
        let took = Duration::from_secs(1);
        Verdict::of(&[b"one", b"two"], &states.map(state), took, Some(took), 0)
    }

    #[test]
    fn a_lost_a_doubled_and_a_changed_line_are_found() {
        let whole: &[_] = &[(0, "one"), (1, "two")];
        assert!(verdict([whole, whole]).is_good());
        let swapped = verdict([whole, &[(1, "two"), (0, "one")]]);
        assert!(!swapped.equal && swapped.lost == 0 && !swapped.is_good());
        let lost = verdict([whole, &[(0, "one")]]);
        assert!(lost.lost == 1 && !lost.is_good());
        let doubled = verdict([&[(0, "one"), (1, "two"), (1, "two")], whole]);
        assert!(doubled.doubled == 1 && !doubled.is_good());
        let changed = verdict([whole, &[(0, "one"), (1, "three")]]);
        assert!(changed.lost == 1 && changed.foreign == 1 && !changed.is_good());
    }
}
