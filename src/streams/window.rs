//! What was delivered and what of it is acknowledged: pure bookkeeping.

use std::collections::BTreeMap;

/// Messages that may be delivered from the first one on that is not acknowledged. So many at most
/// are delivered again after a restart although they were acknowledged.
pub const UNACKNOWLEDGED_MAX: usize = 1_024;

/// # Invariants
/// - Every number below the cursor is acknowledged, or carries no message.
/// - `delivered` holds what was delivered from the cursor on; its first is not acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    delivered: BTreeMap<u64, bool>,
    next: u64,
}

impl Window {
    pub(super) fn new(from: u64) -> Self {
        Self {
            delivered: BTreeMap::new(),
            next: from,
        }
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

    /// A number, higher than those before, is delivered.
    pub(super) fn deliver(&mut self, number: u64) {
        self.delivered.insert(number, false);
        self.next = number + 1;
    }

    /// The next number, where those before that were not delivered carry no message.
    pub(super) fn pass_to(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// It may come again, and out of order.
    pub(super) fn acknowledge(&mut self, number: u64) {
        if let Some(acknowledged) = self.delivered.get_mut(&number) {
            *acknowledged = true;
        }
        while let Some(first) = self.delivered.first_entry()
            && *first.get()
        {
            first.remove();
        }
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
