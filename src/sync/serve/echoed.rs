//! Whose logs a peer is not to send for now: what it sent of them broke a rule, and it would send
//! the same in every session. It is told that we hold of them as much as it does.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    log_store::{Author, Heights, TOPIC_AUTHORS_MAX},
    sync::codec::{HAVE_AUTHORS_MAX, HAVE_LOGS_MAX},
};

/// Authors of one peer in one topic; beyond, the first ones are asked for again.
const ECHOED_MAX: usize = 256;
/// Logs of one peer in one topic that are remembered. A topic has one log an author, yet a peer may
/// name as many as it likes.
const LOGS_MAX: usize = 4 * ECHOED_MAX;
const _: () = assert!(
    LOGS_MAX as u64 <= HAVE_LOGS_MAX,
    "what is echoed of one author can be said in one Have"
);
const _: () = assert!(
    TOPIC_AUTHORS_MAX as u64 + ECHOED_MAX as u64 <= HAVE_AUTHORS_MAX,
    "what is held, and what is echoed besides, can be said in one Have"
);
/// How long: then it may send them again, for what was wrong may have been mended.
const ECHOED_FOR: Duration = Duration::from_mins(10);

#[derive(Debug, Default)]
pub(super) struct Echoed(BTreeMap<Author, Instant>);

impl Echoed {
    pub(super) fn add(&mut self, authors: impl IntoIterator<Item = Author>, now: Instant) {
        self.0
            .retain(|_, since| now.duration_since(*since) < ECHOED_FOR);
        for author in authors {
            if self.0.len() >= ECHOED_MAX
                && !self.0.contains_key(&author)
                && let Some(oldest) = self.0.iter().min_by_key(|it| it.1).map(|it| *it.0)
            {
                self.0.remove(&oldest);
            }
            self.0.insert(author, now);
        }
    }

    /// Those of now.
    pub(super) fn authors(&self, now: Instant) -> impl Iterator<Item = &Author> {
        let of_now = self.0.iter();
        of_now
            .filter(move |(_, since)| now.duration_since(**since) < ECHOED_FOR)
            .map(|it| it.0)
    }

    /// What is kept of a peer's `Have`: all of a short one, else only what is echoed to it, and of
    /// that no more than so many logs.
    pub(super) fn kept(&self, theirs: &Heights) -> Heights {
        let logs: usize = theirs.values().map(BTreeMap::len).sum();
        if logs.max(theirs.len()) <= ECHOED_MAX {
            return theirs.clone();
        }
        let mut room = LOGS_MAX;
        let mut kept = Heights::new();
        for author in self.0.keys() {
            let Some(theirs) = theirs.get(author) else {
                continue;
            };
            let first = theirs.iter().take(room);
            let logs: BTreeMap<_, _> = first.map(|(log, height)| (*log, *height)).collect();
            room -= logs.len();
            if !logs.is_empty() {
                kept.insert(*author, logs);
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_store::LogId;

    fn author(number: u16) -> Author {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        Author::from_bytes(bytes)
    }

    #[test]
    fn authors_are_echoed_for_a_while_and_never_too_many() {
        let mut echoed = Echoed::default();
        let start = Instant::now();
        echoed.add([author(0)], start);
        let soon = start + Duration::from_secs(1);
        echoed.add((1..=ECHOED_MAX as u16).map(author), soon);
        assert_eq!(echoed.authors(soon).count(), ECHOED_MAX);
        assert!(
            !echoed.authors(soon).any(|it| *it == author(0)),
            "the oldest"
        );
        echoed.add([author(1)], start + ECHOED_FOR);
        let later: Vec<_> = echoed.authors(soon + ECHOED_FOR).collect();
        assert_eq!(later, [&author(1)]);
    }

    #[test]
    fn a_long_have_is_not_kept() {
        let mut echoed = Echoed::default();
        echoed.add([author(7)], Instant::now());
        let log = LogId::from_bytes([1; 32]);
        let short: Heights = (0..9).map(|it| (author(it), [(log, 3)].into())).collect();
        assert_eq!(echoed.kept(&short), short);
        let long: Heights = (0..999).map(|it| (author(it), [(log, 3)].into())).collect();
        let kept: Vec<_> = echoed.kept(&long).into_keys().collect();
        assert_eq!(kept, [author(7)]);
    }

    #[test]
    fn a_have_of_many_logs_is_not_kept_either() {
        let mut echoed = Echoed::default();
        let logs: BTreeMap<_, _> = (0..65_536_u32)
            .map(|it| {
                let mut bytes = [0; 32];
                bytes[..4].copy_from_slice(&it.to_be_bytes());
                (LogId::from_bytes(bytes), 3)
            })
            .collect();
        let long: Heights = [(author(7), logs)].into();
        assert!(echoed.kept(&long).is_empty());
        echoed.add([author(7)], Instant::now());
        let kept = echoed.kept(&long);
        let logs: usize = kept.values().map(BTreeMap::len).sum();
        assert_eq!(logs, LOGS_MAX);
        let half = |number| (author(number), long[&author(7)].clone());
        echoed.add([author(8)], Instant::now());
        let kept = echoed.kept(&[half(7), half(8)].into());
        let logs: usize = kept.values().map(BTreeMap::len).sum();
        assert_eq!(logs, LOGS_MAX, "of all authors together");
    }
}
