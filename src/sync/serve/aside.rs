//! Whose logs a peer is not sent for now: it does not take them, chunk after chunk, as where it
//! holds another branch of a log that its author has forked. The other logs go on meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    log_store::{Author, Heights},
    sync::session::Range,
};

/// Settled chunks in a row that had something of a log and did not move it.
const STRIKES: u8 = 2;
/// How long a log is set aside: then it is tried again, for the peer may have been mended.
const ASIDE_FOR: Duration = Duration::from_mins(5);
/// Logs of one peer in one topic; beyond, the one that was set aside first is tried again.
const ASIDE_MAX: usize = 256;

/// # Invariants
/// - A log of which the peer has taken anything since is not set aside.
/// - Never more logs than [`ASIDE_MAX`] are set aside, nor than a chunk has are suspected.
#[derive(Debug, Default)]
pub(super) struct Aside {
    suspects: BTreeMap<Author, u8>,
    set: BTreeMap<Author, Since>,
}

#[derive(Debug)]
struct Since {
    at: Instant,
    /// How far the peer had it.
    height: Option<u32>,
}

impl Aside {
    /// What has become of a chunk is known, and this is what the peer holds. Where it took nothing
    /// of it at all, that counts only if the chunk was one of the smallest.
    pub(super) fn settled(
        &mut self,
        chunk: &[Range],
        theirs: &Heights,
        smallest: bool,
        now: Instant,
    ) {
        let moved = |it: &&Range| height(theirs, it) > it.after;
        let any = chunk.iter().any(|it| moved(&it));
        let mut suspects = BTreeMap::new();
        for range in chunk.iter().filter(|it| !moved(it)) {
            let strikes = self.suspects.get(&range.author).copied().unwrap_or(0);
            // Where all is lost it was rather too much for the peer.
            let strikes = strikes + u8::from(any || smallest);
            if strikes < STRIKES {
                suspects.insert(range.author, strikes);
            } else {
                self.add(range.author, height(theirs, range), now);
            }
        }
        self.suspects = suspects;
    }

    fn add(&mut self, author: Author, height: Option<u32>, now: Instant) {
        if self.set.len() >= ASIDE_MAX
            && let Some(oldest) = self.set.iter().min_by_key(|it| it.1.at).map(|it| *it.0)
        {
            self.set.remove(&oldest);
        }
        self.set.insert(author, Since { at: now, height });
    }

    /// Whose logs it is not sent now, given what it holds.
    pub(super) fn authors(&mut self, theirs: &Heights, now: Instant) -> Vec<Author> {
        self.set.retain(|author, since| {
            let height = theirs.get(author).and_then(|logs| logs.values().next());
            now.duration_since(since.at) < ASIDE_FOR && height.copied() == since.height
        });
        self.set.keys().copied().collect()
    }

    /// Whose log is set aside if the next chunk does not move it either.
    pub(super) fn suspect(&self) -> Option<Author> {
        self.suspects.keys().next().copied()
    }

    /// How many logs are set aside.
    pub(super) fn len(&self) -> usize {
        self.set.len()
    }
}

fn height(theirs: &Heights, range: &Range) -> Option<u32> {
    let logs = theirs.get(&range.author)?;
    logs.get(&range.log).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_store::LogId;

    const LOG: LogId = LogId::from_bytes([9; 32]);

    fn author(number: u8) -> Author {
        Author::from_bytes([number; 32])
    }

    fn range(number: u8, after: Option<u32>, until: u32) -> Range {
        Range {
            author: author(number),
            log: LOG,
            after,
            until,
            operations: 1,
            bytes: 1,
        }
    }

    fn heights(of: &[(u8, u32)]) -> Heights {
        let heights = of.iter();
        heights
            .map(|(number, seq)| (author(*number), [(LOG, *seq)].into()))
            .collect()
    }

    #[test]
    fn a_log_that_stands_still_while_others_move_is_set_aside_for_a_while() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let chunk = [range(1, Some(3), 9), range(2, None, 5)];
        let theirs = heights(&[(1, 3), (2, 5)]);
        aside.settled(&chunk, &theirs, false, now);
        assert_eq!(aside.authors(&theirs, now), [], "once may be chance");
        let chunk = [range(1, Some(3), 9), range(2, Some(5), 8)];
        let theirs = heights(&[(1, 3), (2, 8)]);
        aside.settled(&chunk, &theirs, false, now);
        assert_eq!(aside.authors(&theirs, now), [author(1)]);
        let later = now + ASIDE_FOR;
        assert_eq!(aside.authors(&theirs, later), [], "it is tried again");
        assert_eq!(aside.len(), 0);
    }

    #[test]
    fn a_log_that_moves_is_tried_again_at_once() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let theirs = heights(&[(2, 9)]);
        for _ in 0..2 {
            let chunk = [range(1, None, 9), range(2, Some(3), 9)];
            aside.settled(&chunk, &theirs, false, now);
        }
        assert_eq!(aside.authors(&theirs, now), [author(1)]);
        let theirs = heights(&[(1, 0), (2, 9)]);
        assert_eq!(aside.authors(&theirs, now), []);
    }

    #[test]
    fn a_peer_that_loses_all_of_a_chunk_is_sent_less_and_nothing_is_set_aside() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let chunk = [range(1, None, 9), range(2, None, 9)];
        let nothing = Heights::new();
        for _ in 0..9 {
            aside.settled(&chunk, &nothing, false, now);
            assert_eq!(aside.authors(&nothing, now), []);
        }
        // Of the smallest chunk it would have taken something.
        for _ in 0..2 {
            aside.settled(&chunk, &nothing, true, now);
        }
        assert_eq!(aside.authors(&nothing, now), [author(1), author(2)]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let nothing = Heights::new();
        for number in 0..=u8::MAX {
            for log in 0..2 {
                let mut bytes = [number; 32];
                bytes[0] = log;
                let lost = Range {
                    author: Author::from_bytes(bytes),
                    ..range(0, None, 1)
                };
                let at = now + Duration::from_millis(u64::from(number));
                aside.settled(&[lost], &nothing, true, at);
                aside.settled(&[lost], &nothing, true, at);
            }
        }
        assert_eq!(aside.len(), ASIDE_MAX);
        assert!(aside.suspects.is_empty());
    }
}
