//! Exactly once: which commands of which session were applied, and what was answered.
//!
//! Every member keeps this table, changes it only while applying the journal, and so holds the
//! same one. A command comes again when its answer was lost; the table then gives the answer it
//! gave before instead of applying the command a second time.
//! (Ongaro, *Consensus: Bridging Theory and Practice*, section 6.3.)

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::SessionId;
use crate::machine::Position;

/// Sessions a group remembers; the one unused for longest goes first. Frozen: all members must
/// forget the same one at the same entry.
pub(crate) const SESSIONS_MAX: usize = 4_096;
/// How far a session's numbers may run ahead of its lowest unanswered one. Frozen likewise.
pub(crate) const WINDOW_MAX: u64 = 65_536;
/// Bytes of answers kept for one session; the oldest beyond that are forgotten, and a command
/// that asks for one again is told so. Frozen likewise.
pub(crate) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It was applied, here and now; this is the machine's encoded output.
    Output(Bytes),
    /// It was applied earlier, at this position, with this output.
    Again(Position, Bytes),
    /// Its session is unknown or expired, or it is outside the window. It was not applied now.
    Expired,
    /// It was applied earlier, but its answer is no longer kept.
    Forgotten,
    /// It does not decode as the machine's command. It was not applied.
    Undecodable,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// The journal index that used it last.
    used: u64,
    /// Nothing below this number is asked for again.
    lowest_unanswered: u64,
    /// Answers from `lowest_unanswered` up.
    answers: BTreeMap<u64, Kept>,
    /// Bytes held in `answers`.
    answer_bytes: usize,
}

/// Where a command was applied, and its output; `None` if that was forgotten for its size.
type Kept = (Position, Option<Bytes>);

/// The replicated table.
///
/// # Invariants
/// - `by_use` holds exactly one (used, id) for each session.
/// - At most [`SESSIONS_MAX`] sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Arc<Session>>,
    by_use: BTreeSet<(u64, SessionId)>,
}

impl Sessions {
    /// Opens a session named by the journal index of the entry that asks for it.
    pub(crate) fn open(&mut self, index: u64) {
        self.sessions.insert(
            index,
            Arc::new(Session {
                used: index,
                ..Session::default()
            }),
        );
        self.by_use.insert((index, index));
        while self.sessions.len() > SESSIONS_MAX {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.sessions.remove(&oldest);
        }
    }

    /// Applies the commands that were not applied before and answers all of them.
    ///
    /// `entry` is the position of the first command. `apply` gets a command's position and the
    /// command. It answers `None` if the command does not decode.
    pub(crate) fn apply(
        &mut self,
        entry: Position,
        (id, first_seq, lowest_unanswered): (SessionId, u64, u64),
        commands: &[Bytes],
        mut apply: impl FnMut(Position, &Bytes) -> Option<Bytes>,
    ) -> Vec<Answer> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return vec![Answer::Expired; commands.len()];
        };
        let session = Arc::make_mut(session);
        self.by_use.remove(&(session.used, id));
        session.used = entry.index;
        self.by_use.insert((entry.index, id));
        session.answered_below(lowest_unanswered);
        (first_seq..)
            .zip(0_u32..)
            .zip(commands)
            .map(|((seq, offset), command)| {
                if seq < session.lowest_unanswered {
                    return Answer::Forgotten;
                }
                if seq - session.lowest_unanswered >= WINDOW_MAX {
                    return Answer::Expired;
                }
                match session.answers.get(&seq) {
                    Some((at, Some(output))) => Answer::Again(*at, output.clone()),
                    Some((_, None)) => Answer::Forgotten,
                    None => {
                        let at = Position { offset, ..entry };
                        match apply(at, command) {
                            Some(output) => {
                                session.remember(seq, at, output.clone());
                                Answer::Output(output)
                            }
                            None => Answer::Undecodable,
                        }
                    }
                }
            })
            .collect()
    }

    pub(crate) fn write(&self, to: &mut dyn io::Write) -> io::Result<()> {
        write_value(to, &(self.sessions.len() as u64))?;
        for (id, session) in &self.sessions {
            let answers = session.answers.len() as u64;
            write_value(to, &(*id, session.used, session.lowest_unanswered, answers))?;
            for (seq, answer) in &session.answers {
                write_value(to, &(*seq, answer))?;
            }
        }
        Ok(())
    }

    pub(crate) fn read(from: &mut dyn io::Read) -> io::Result<Self> {
        let count: u64 = read_value(from)?;
        if count > SESSIONS_MAX as u64 {
            return Err(malformed("more sessions than there can be"));
        }
        let mut table = Self::default();
        for _ in 0..count {
            let (id, used, lowest_unanswered, answers): (u64, u64, u64, u64) = read_value(from)?;
            if answers > WINDOW_MAX {
                return Err(malformed("more answers than a session can hold"));
            }
            let mut session = Session {
                used,
                lowest_unanswered,
                ..Session::default()
            };
            for _ in 0..answers {
                let (seq, answer): (u64, Kept) = read_value(from)?;
                session.answer_bytes += answer.1.as_ref().map_or(0, Bytes::len);
                session.answers.insert(seq, answer);
            }
            table.by_use.insert((used, id));
            table.sessions.insert(id, Arc::new(session));
        }
        Ok(table)
    }
}

impl Session {
    fn answered_below(&mut self, lowest: u64) {
        if lowest <= self.lowest_unanswered {
            return;
        }
        self.lowest_unanswered = lowest;
        let kept = self.answers.split_off(&lowest);
        let dropped = std::mem::replace(&mut self.answers, kept);
        let outputs = dropped.values().filter_map(|(_, output)| output.as_ref());
        let bytes: usize = outputs.map(Bytes::len).sum();
        self.answer_bytes -= bytes;
    }

    fn remember(&mut self, seq: u64, at: Position, output: Bytes) {
        self.answer_bytes += output.len();
        self.answers.insert(seq, (at, Some(output)));
        if self.answer_bytes <= ANSWER_BYTES_MAX {
            return;
        }
        for (_, answer) in self.answers.values_mut() {
            if self.answer_bytes <= ANSWER_BYTES_MAX {
                break;
            }
            if let Some(bytes) = answer.take() {
                self.answer_bytes -= bytes.len();
            }
        }
    }
}

/// Writes one value behind its length, so that a reader knows how much to take.
pub(super) fn write_value<T: Serialize>(to: &mut dyn io::Write, value: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len())
        .map_err(|_| io::Error::other("a value of 4 GiB and more cannot be written"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&bytes)
}

/// Reads what [`write_value`] wrote; memory grows only with bytes that are really there.
pub(super) fn read_value<T: serde::de::DeserializeOwned>(from: &mut dyn io::Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u64::from(u32::from_le_bytes(length));
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match postcard::take_from_bytes(&bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(malformed("a value followed by stray bytes")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the stored state holds {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(count: usize) -> Vec<Bytes> {
        (0..count).map(|it| Bytes::from(it.to_string())).collect()
    }

    fn at(index: u64, offset: u32) -> Position {
        Position { term: 1, index, offset }
    }

    /// Applies; the output names the entry and the command.
    fn run(table: &mut Sessions, index: u64, head: (u64, u64, u64), count: usize) -> Vec<Answer> {
        let mut calls = 0;
        let answers = table.apply(at(index, 0), head, &commands(count), |_, it| {
            calls += 1;
            Some(Bytes::from(format!("{index}:{}", String::from_utf8_lossy(it))))
        });
        assert!(calls <= count);
        answers
    }

    /// What is answered to commands that come again.
    fn again(first: &[Answer], index: u64) -> Vec<Answer> {
        let again = |(offset, answer): (u32, &Answer)| match answer {
            Answer::Output(output) => Answer::Again(at(index, offset), output.clone()),
            other => other.clone(),
        };
        (0..).zip(first).map(again).collect()
    }

    #[test]
    fn a_command_that_comes_again_gets_its_first_answer() {
        let mut table = Sessions::default();
        table.open(5);
        let first = run(&mut table, 6, (5, 0, 0), 3);
        assert_eq!(run(&mut table, 9, (5, 0, 0), 3), again(&first, 6));
        assert_eq!(run(&mut table, 12, (5, 1, 0), 2), again(&first, 6)[1..]);
        assert_eq!(first[2], Answer::Output(Bytes::from_static(b"6:2")));
    }

    #[test]
    fn retries_may_arrive_in_any_order() {
        let mut table = Sessions::default();
        table.open(1);
        let later = run(&mut table, 2, (1, 10, 0), 1);
        let earlier = run(&mut table, 3, (1, 0, 0), 10);
        assert_eq!(run(&mut table, 4, (1, 10, 0), 1), again(&later, 2));
        assert_eq!(run(&mut table, 5, (1, 0, 0), 10), again(&earlier, 3));
    }

    #[test]
    fn an_answered_command_is_never_applied_again() {
        let mut table = Sessions::default();
        table.open(1);
        run(&mut table, 2, (1, 0, 0), 2);
        run(&mut table, 3, (1, 2, 2), 1);
        assert_eq!(run(&mut table, 4, (1, 0, 0), 2), vec![Answer::Forgotten; 2]);
    }

    #[test]
    fn an_unknown_session_applies_nothing() {
        let mut table = Sessions::default();
        let answers = table.apply(at(2, 0), (1, 0, 0), &commands(2), |_, _| panic!("applied"));
        assert_eq!(answers, vec![Answer::Expired; 2]);
    }

    #[test]
    fn the_session_unused_for_longest_expires() {
        let mut table = Sessions::default();
        for index in 1..=SESSIONS_MAX as u64 {
            table.open(index);
        }
        run(&mut table, 1_000_000, (1, 0, 0), 1);
        table.open(1_000_001);
        assert_eq!(run(&mut table, 1_000_002, (2, 0, 0), 1), vec![Answer::Expired]);
        assert!(matches!(run(&mut table, 1_000_003, (1, 0, 0), 1)[0], Answer::Output(_)));
        assert_eq!(table.sessions.len(), table.by_use.len());
    }

    #[test]
    fn a_number_beyond_the_window_is_not_applied() {
        let mut table = Sessions::default();
        table.open(1);
        assert_eq!(run(&mut table, 2, (1, WINDOW_MAX, 0), 1), vec![Answer::Expired]);
        assert!(matches!(run(&mut table, 3, (1, WINDOW_MAX - 1, 0), 1)[0], Answer::Output(_)));
    }

    #[test]
    fn answers_beyond_the_limit_are_forgotten_oldest_first_and_never_applied_again() {
        let mut table = Sessions::default();
        table.open(1);
        let large = Bytes::from(vec![0; ANSWER_BYTES_MAX / 2]);
        for seq in 0..3 {
            table.apply(at(2 + seq, 0), (1, seq, 0), &commands(1), |_, _| Some(large.clone()));
        }
        assert_eq!(run(&mut table, 9, (1, 0, 0), 1), vec![Answer::Forgotten]);
        assert_eq!(run(&mut table, 10, (1, 2, 0), 1), vec![Answer::Again(at(4, 0), large)]);
    }

    #[test]
    fn the_table_survives_a_snapshot() {
        let mut table = Sessions::default();
        table.open(1);
        table.open(2);
        run(&mut table, 3, (1, 0, 0), 5);
        run(&mut table, 4, (1, 5, 3), 1);
        let mut bytes = Vec::new();
        table.write(&mut bytes).expect("writes");
        let read = Sessions::read(&mut bytes.as_slice()).expect("reads");
        assert_eq!(read, table);
        for cut in 0..bytes.len() {
            assert!(Sessions::read(&mut &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
