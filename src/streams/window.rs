//! What was delivered, and what of it is acknowledged or refused: pure bookkeeping.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Messages that may be delivered from the first one on that is not acknowledged. So many at most
/// are delivered again after a restart although they were acknowledged.
pub const UNACKNOWLEDGED_MAX: usize = 1_024;
/// Bytes that are kept of the reason that a consumer gives for a refusal; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 1_024;

/// The longest pause before a message is delivered again, whatever is asked for.
const PAUSE_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How often, and how soon, a message comes again that its consumer refuses with
/// [`Received::nack`](super::Received::nack).
///
/// ```
/// use std::time::Duration;
///
/// use quorate::streams::Redelivery;
///
/// // Three times in all: at once, after 1 s, and 2 s after the second refusal.
/// let patient = Redelivery {
///     attempts_max: 3,
///     pause_min: Duration::from_secs(1),
///     ..Redelivery::default()
/// };
/// assert_eq!(patient.pause_max, Duration::from_secs(10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redelivery {
    /// Deliveries of one message by one subscription, the first one counted. Default 5. Zero
    /// counts as one.
    pub attempts_max: u32,
    /// From the first refusal to the second delivery; doubles with each further one. Default
    /// 200 ms.
    pub pause_min: Duration,
    /// The longest pause. Default 10 s, at most a day.
    pub pause_max: Duration,
}

impl Default for Redelivery {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            pause_min: Duration::from_millis(200),
            pause_max: Duration::from_secs(10),
        }
    }
}

impl Redelivery {
    fn pause(&self, attempt: u32) -> Duration {
        if attempt >= self.attempts_max {
            return Duration::ZERO; // the end is told at once
        }
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let pause = self.pause_min.saturating_mul(doubled);
        pause.min(self.pause_max).min(PAUSE_LIMIT)
    }
}

/// # Invariants
/// - Every number below the cursor is acknowledged, or carries no message.
/// - `delivered` holds what was delivered from the cursor on; its first is not acknowledged.
/// - `refused` holds those that are [`State::Refused`], and no others.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    delivered: BTreeMap<u64, State>,
    /// By the time at which each comes again: the attempt that was refused, and why.
    refused: BTreeMap<(Instant, u64), (u32, String)>,
    next: u64,
    redelivery: Redelivery,
}

/// What has become of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its consumer has it; the first time is attempt 1.
    Open {
        attempt: u32,
    },
    /// It comes again.
    Refused {
        due: Instant,
    },
    /// It was refused as often as may be, and waits for its acknowledgement.
    Failed,
    Acknowledged,
}

/// What follows a refusal when its time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It is delivered; the first time was attempt 1.
    Deliver { attempt: u32 },
    /// It was delivered so often, and is given up.
    Failed { attempts: u32, why: String },
}

impl Window {
    pub(super) fn new(from: u64) -> Self {
        Self {
            next: from,
            ..Self::default()
        }
    }

    pub(super) fn set_redelivery(&mut self, redelivery: Redelivery) {
        self.redelivery = redelivery;
    }

    /// All below it is acknowledged.
    pub(super) fn cursor(&self) -> u64 {
        self.oldest().unwrap_or(self.next)
    }

    /// The oldest that is delivered and not acknowledged.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.delivered.first_key_value().map(|(number, _)| *number)
    }

    pub(super) fn is_full(&self) -> bool {
        self.delivered.len() >= UNACKNOWLEDGED_MAX
    }

    /// A number, higher than those before, is delivered for the first time.
    pub(super) fn deliver(&mut self, number: u64) {
        self.delivered.insert(number, State::Open { attempt: 1 });
        self.next = number + 1;
    }

    /// The next number, where those before that were not delivered carry no message.
    pub(super) fn pass_to(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// It may come again, out of order, and after a refusal, which it ends.
    pub(super) fn acknowledge(&mut self, number: u64) {
        if let Some(state) = self.delivered.get_mut(&number) {
            if let State::Refused { due } = *state {
                self.refused.remove(&(due, number));
            }
            *state = State::Acknowledged;
        }
        while let Some(first) = self.delivered.first_entry()
            && *first.get() == State::Acknowledged
        {
            first.remove();
        }
    }

    /// The same, unless its consumer has refused it.
    pub(super) fn acknowledge_unrefused(&mut self, number: u64) {
        if let Some(State::Open { .. }) = self.delivered.get(&number) {
            self.acknowledge(number);
        }
    }

    /// The consumer refuses what it was given. Without effect for any but the latest delivery, and
    /// after an acknowledgement.
    pub(super) fn refuse(&mut self, number: u64, attempt: u32, now: Instant, why: &str) {
        let Some(state) = self.delivered.get_mut(&number) else {
            return;
        };
        if *state != (State::Open { attempt }) {
            return;
        }
        let due = now + self.redelivery.pause(attempt);
        *state = State::Refused { due };
        let why = why[..why.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
        self.refused.insert((due, number), (attempt, why));
    }

    /// What was refused and is to come again next, and when.
    pub(super) fn due(&self) -> Option<(Instant, u64)> {
        self.refused.first_key_value().map(|(first, _)| *first)
    }

    /// What was refused comes again. Nothing if it was acknowledged meanwhile.
    pub(super) fn again(&mut self, number: u64) -> Option<Again> {
        let state = self.delivered.get_mut(&number)?;
        let State::Refused { due } = *state else {
            return None;
        };
        let (attempt, why) = self.refused.remove(&(due, number))?;
        if attempt >= self.redelivery.attempts_max {
            *state = State::Failed;
            let attempts = attempt;
            return Some(Again::Failed { attempts, why });
        }
        let attempt = attempt + 1;
        *state = State::Open { attempt };
        Some(Again::Deliver { attempt })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cursor_stays_at_the_first_that_is_not_acknowledged() {
        let mut window = Window::new(10);
        assert_eq!(window.cursor(), 10);
        window.deliver(10);
        window.pass_to(12);
        window.deliver(12);
        window.deliver(15);
        assert_eq!((window.cursor(), window.oldest()), (10, Some(10)));
        window.acknowledge(12);
        assert_eq!(window.cursor(), 10);
        window.acknowledge(10);
        window.acknowledge(10);
        assert_eq!(window.cursor(), 15);
        window.acknowledge(15);
        assert_eq!((window.cursor(), window.oldest()), (16, None));
        window.pass_to(17);
        assert_eq!(window.cursor(), 17);
        window.acknowledge(99);
        assert_eq!(window.cursor(), 17);
    }

    #[test]
    fn what_is_refused_comes_again_later_each_time_and_not_for_ever() {
        let mut window = Window::new(0);
        window.set_redelivery(Redelivery {
            attempts_max: 4,
            pause_min: Duration::from_secs(3),
            pause_max: Duration::from_secs(10),
        });
        window.deliver(0);
        window.deliver(1);
        window.acknowledge(1);
        let mut now = Instant::now();
        for (attempt, pause) in [(1, 3), (2, 6), (3, 10), (4, 0)] {
            window.refuse(0, attempt, now, &format!("no {attempt}"));
            // A second time, and of a delivery before.
            window.refuse(0, attempt, now, "twice");
            window.refuse(0, attempt - 1, now, "late");
            let due = now + Duration::from_secs(pause);
            assert_eq!(window.due(), Some((due, 0)));
            now = due;
            let wanted = match attempt {
                4 => Again::Failed {
                    attempts: 4,
                    why: "no 4".into(),
                },
                _ => Again::Deliver {
                    attempt: attempt + 1,
                },
            };
            assert_eq!(window.again(0), Some(wanted));
            assert_eq!(window.due(), None);
            assert_eq!(window.cursor(), 0, "it is not acknowledged");
        }
        // By nobody but the consumer.
        window.acknowledge_unrefused(0);
        window.refuse(0, 4, now, "late");
        assert_eq!((window.cursor(), window.due()), (0, None));
        window.acknowledge(0);
        assert_eq!(window.cursor(), 2);
    }

    #[test]
    fn an_acknowledgement_ends_a_refusal_and_is_not_undone_by_one() {
        let mut window = Window::new(0);
        let now = Instant::now();
        (0..3).for_each(|it| window.deliver(it));
        window.refuse(0, 1, now, "no");
        window.acknowledge_unrefused(0);
        assert_eq!(window.cursor(), 0, "the consumer has refused it");
        window.acknowledge(0);
        assert_eq!((window.cursor(), window.due()), (1, None));
        assert_eq!(window.again(0), None);
        window.acknowledge(2);
        window.refuse(2, 1, now, "no");
        assert_eq!((window.cursor(), window.due()), (1, None));
        window.acknowledge_unrefused(1);
        assert_eq!(window.cursor(), 3);
    }

    #[test]
    fn a_reason_is_cut_where_a_letter_ends() {
        let mut window = Window::new(0);
        window.set_redelivery(Redelivery {
            attempts_max: 0,
            ..Redelivery::default()
        });
        window.deliver(0);
        let long = format!("x{}", "ü".repeat(REASON_BYTES_MAX));
        window.refuse(0, 1, Instant::now(), &long);
        match window.again(0) {
            Some(Again::Failed { attempts: 1, why }) => {
                assert_eq!(why.len(), REASON_BYTES_MAX - 1);
                assert!(long.starts_with(&why));
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn nothing_below_the_cursor_is_unacknowledged(
            acknowledged in prop::collection::vec(0_u64..64, 0..128)
        ) {
            let mut window = Window::new(0);
            let mut open: std::collections::BTreeSet<u64> = (0..64).collect();
            (0..64).for_each(|it| window.deliver(it));
            for number in acknowledged {
                window.acknowledge(number);
                open.remove(&number);
                prop_assert_eq!(window.cursor(), open.first().copied().unwrap_or(64));
            }
        }
    }
}
