//! What to send a peer in one session: a fair share of what it lacks, within a budget.
//!
//! A stock node can not take a long log at once, so a member sends it chunks. A chunk is taken
//! from all logs that the peer lacks something of: short backlogs are sent whole, long ones share
//! what is left, and who comes first moves on from chunk to chunk.

use std::ops::ControlFlow;

use crate::{
    log_store::{Author, LogId},
    sync::codec::Heights,
};

/// How much may be sent in one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Operations.
    pub(crate) operations: u32,
    /// Headers and bodies. One operation is always allowed, or a large one would never be sent.
    pub(crate) bytes: u64,
}

impl Budget {
    /// For peers that have back-pressure.
    pub(crate) const UNLIMITED: Self = Self {
        operations: u32::MAX,
        bytes: u64::MAX,
    };
}

/// Consecutive operations of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Whose log.
    pub(crate) author: Author,
    /// Which log.
    pub(crate) log: LogId,
    /// The last one not to be sent; `None` for the log from its beginning.
    pub(crate) after: Option<u32>,
    /// The last one to be sent.
    pub(crate) until: u32,
    /// How many operations that is.
    pub(crate) operations: u64,
    /// Their headers and bodies.
    pub(crate) bytes: u64,
}

/// What one session sends, log by log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In the order to send them.
    pub(crate) ranges: Vec<Range>,
    /// Of all ranges: what `PreSync` says.
    pub(crate) operations: u32,
    /// Of all ranges.
    pub(crate) bytes: u64,
    /// With this chunk the peer has everything that we hold.
    pub(crate) complete: bool,
}

/// What the peer lacks of one log, and how much of it is taken.
struct Lack {
    range: Range,
    /// Up to where it could go.
    ours: u32,
    /// Everything of it is taken, be it nothing because it was pruned.
    whole: bool,
}

impl Plan {
    /// Plans what to send a peer that holds `theirs`, of what is held here.
    ///
    /// The authors behind `behind` come first: give the last author of the chunk before, so that
    /// with more authors than operations in the budget all get their turn.
    ///
    /// `size` gives the operations and bytes of a log above a sequence number and up to another;
    /// it is called a few times for each log that the peer lacks something of.
    ///
    /// # Errors
    /// What `size` failed with.
    pub(crate) fn compute<E>(
        ours: &Heights,
        theirs: &Heights,
        budget: Budget,
        behind: Option<&Author>,
        mut size: impl FnMut(Author, LogId, Option<u32>, u32) -> Result<(u64, u64), E>,
    ) -> Result<Self, E> {
        let mut lacks = lacks(ours, theirs, behind);
        let mut operations = u64::from(budget.operations);
        let mut bytes = budget.bytes;
        // What the first pass leaves over, since some logs are short, the second hands out.
        for _ in 0..2 {
            let mut waiting: Vec<_> = lacks.iter_mut().filter(|it| !it.whole).collect();
            // Short backlogs first, so that their rest of the share goes to the long ones; equal
            // ones stay in turn.
            waiting.sort_by_key(|it| it.ours - it.range.after.unwrap_or(0));
            let mut left = waiting.len() as u64;
            for lack in waiting {
                if operations == 0 || bytes == 0 {
                    break;
                }
                let had = (lack.range.operations, lack.range.bytes);
                let share = (
                    had.0 + (operations / left).max(1),
                    had.1.saturating_add((bytes / left).max(1)),
                );
                extend(lack, share, &mut size)?;
                operations -= lack.range.operations - had.0;
                bytes -= lack.range.bytes - had.1;
                left -= 1;
            }
        }
        if budget.operations > 0 {
            take_one_at_least(&mut lacks, &mut size)?;
        }
        let complete = lacks.iter().all(|it| it.whole);
        let ranges: Vec<_> = lacks
            .into_iter()
            .map(|it| it.range)
            .filter(|range| range.operations > 0)
            .collect();
        Ok(Self {
            operations: ranges
                .iter()
                .map(|it| it.operations)
                .sum::<u64>()
                .try_into()
                .unwrap_or(u32::MAX), // never more than the budget, which is 32 bits
            bytes: ranges.iter().map(|it| it.bytes).sum(),
            ranges,
            complete,
        })
    }

    /// Whom the next plan should begin behind.
    pub(crate) fn last_author(&self) -> Option<&Author> {
        self.ranges.last().map(|it| &it.author)
    }
}

/// What the peer lacks, in turn.
fn lacks(ours: &Heights, theirs: &Heights, behind: Option<&Author>) -> Vec<Lack> {
    let (before, after): (Vec<_>, Vec<_>) = ours
        .iter()
        .partition(|(author, _)| behind.is_some_and(|it| *author <= it));
    let mut found = Vec::new();
    for (author, logs) in after.into_iter().chain(before) {
        let known = theirs.get(author);
        for (log, ours) in logs {
            let after = known.and_then(|logs| logs.get(log)).copied();
            if after.is_none_or(|height| height < *ours) {
                found.push(Lack {
                    range: Range {
                        author: *author,
                        log: *log,
                        after,
                        until: after.unwrap_or(0),
                        operations: 0,
                        bytes: 0,
                    },
                    ours: *ours,
                    whole: false,
                });
            }
        }
    }
    found
}

/// Takes as much of the log as fits into the share, which counts from the front of the range.
fn extend<E>(
    lack: &mut Lack,
    share: (u64, u64),
    size: &mut impl FnMut(Author, LogId, Option<u32>, u32) -> Result<(u64, u64), E>,
) -> Result<(), E> {
    let range = &mut lack.range;
    let (author, log, after) = (range.author, range.log, range.after);
    let mut try_until = |until: u32| {
        let (operations, bytes) = size(author, log, after, until)?;
        if operations > share.0 || bytes > share.1 {
            return Ok(ControlFlow::Break(()));
        }
        if operations > 0 {
            (range.until, range.operations, range.bytes) = (until, operations, bytes);
        }
        Ok(ControlFlow::Continue(()))
    };
    if try_until(lack.ours)?.is_continue() {
        lack.whole = true;
        return Ok(());
    }
    // Below `low` it fits, at `high` it does not. Sizes only grow with `until`.
    let mut low = after.map_or(0, |it| u64::from(it) + 1);
    let mut high = u64::from(lack.ours);
    while low < high {
        let middle = low + (high - low) / 2;
        match try_until(middle as u32)? {
            ControlFlow::Continue(()) => low = middle + 1,
            ControlFlow::Break(()) => high = middle,
        }
    }
    Ok(())
}

/// The first operation of the first log, if everything is larger than its share.
fn take_one_at_least<E>(
    lacks: &mut [Lack],
    size: &mut impl FnMut(Author, LogId, Option<u32>, u32) -> Result<(u64, u64), E>,
) -> Result<(), E> {
    if lacks.iter().any(|it| it.range.operations > 0) {
        return Ok(());
    }
    for lack in lacks {
        extend(lack, (1, u64::MAX), size)?;
        if lack.range.operations > 0 {
            break;
        }
    }
    Ok(())
}
