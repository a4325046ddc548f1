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
/// Bytes of answers kept for all sessions; beyond that the session unused for longest goes. Frozen
/// likewise.
pub(crate) const ANSWER_BYTES_TOTAL_MAX: usize = 256 * 1024 * 1024;
/// What a kept answer weighs besides its bytes.
const ANSWER_OVERHEAD: usize = 64;

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It was applied now, once; this is the machine's encoded output.
    Output(Bytes),
    /// It was applied by an earlier entry, there; this is what the machine answered then.
    Earlier(Position, Bytes),
    /// Its session is unknown or expired, or it is outside the window. It was not applied now.
    Expired,
    /// It was applied, but its answer is no longer kept, or too large to be sent.
    Lost,
}

/// An answer that may be asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    at: Position,
    /// None once it was forgotten for its size.
    output: Option<Bytes>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// The journal index that used it last.
    used: u64,
    /// Nothing below this number is asked for again.
    lowest_unanswered: u64,
    /// Answers from `lowest_unanswered` up.
    answers: BTreeMap<u64, Kept>,
    /// What `answers` weigh.
    answer_bytes: usize,
}

/// The replicated table.
///
/// # Invariants
/// - `by_use` holds exactly one (used, id) for each session.
/// - `bytes` is the sum of all sessions' `answer_bytes`.
/// - At most [`SESSIONS_MAX`] sessions and, beyond the one in use, [`ANSWER_BYTES_TOTAL_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Arc<Session>>,
    by_use: BTreeSet<(u64, SessionId)>,
    bytes: usize,
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
        self.expire();
    }

    /// Drops the sessions unused for longest until the table is within its limits.
    fn expire(&mut self) {
        let over = |it: &Self| {
            it.sessions.len() > SESSIONS_MAX
                || (it.bytes > ANSWER_BYTES_TOTAL_MAX && it.sessions.len() > 1)
        };
        while over(self) {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            if let Some(session) = self.sessions.remove(&oldest) {
                self.bytes -= session.answer_bytes;
            }
        }
    }

    /// Applies the commands that were not applied before and answers all of them.
    ///
    /// `apply` gets the position of the command and the command.
    ///
    /// # Errors
    /// The first of `apply`; the table is then of no more use, like the machine.
    pub(crate) fn apply<E>(
        &mut self,
        at: Position,
        (id, first_seq, lowest_unanswered): (SessionId, u64, u64),
        commands: &[Bytes],
        mut apply: impl FnMut(Position, &Bytes) -> Result<Bytes, E>,
    ) -> Result<Vec<Answer>, E> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Ok(vec![Answer::Expired; commands.len()]);
        };
        let index = at.index;
        let session = Arc::make_mut(session);
        let before = session.answer_bytes;
        self.by_use.remove(&(session.used, id));
        session.used = index;
        self.by_use.insert((index, id));
        session.answered_below(lowest_unanswered);
        let answers = (first_seq..)
            .zip(0_u32..)
            .zip(commands)
            .map(|((seq, offset), command)| {
                if seq < session.lowest_unanswered {
                    return Ok(Answer::Lost);
                }
                if seq - session.lowest_unanswered >= WINDOW_MAX {
                    return Ok(Answer::Expired);
                }
                Ok(match session.answers.get(&seq) {
                    Some(Kept { at, output }) => match output {
                        Some(output) => Answer::Earlier(*at, output.clone()),
                        None => Answer::Lost,
                    },
                    None => {
                        let at = Position { offset, ..at };
                        let output = apply(at, command)?;
                        session.remember(seq, at, output.clone());
                        Answer::Output(output)
                    }
                })
            })
            .collect::<Result<Vec<_>, E>>()?;
        self.bytes = self.bytes - before + session.answer_bytes;
        self.expire();
        Ok(answers)
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
                let (seq, kept): (u64, Kept) = read_value(from)?;
                session.answer_bytes += kept.weight();
                session.answers.insert(seq, kept);
            }
            table.bytes += session.answer_bytes;
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
        let bytes: usize = dropped.values().map(Kept::weight).sum();
        self.answer_bytes -= bytes;
    }

    fn remember(&mut self, seq: u64, at: Position, output: Bytes) {
        let kept = Kept {
            at,
            output: Some(output),
        };
        self.answer_bytes += kept.weight();
        self.answers.insert(seq, kept);
        for kept in self.answers.values_mut() {
            if self.answer_bytes <= ANSWER_BYTES_MAX {
                break;
            }
            if let Some(bytes) = kept.output.take() {
                self.answer_bytes -= bytes.len();
            }
        }
    }
}

impl Kept {
    fn weight(&self) -> usize {
        ANSWER_OVERHEAD + self.output.as_ref().map_or(0, Bytes::len)
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

    fn at(index: u64) -> Position {
        Position {
            term: 1,
            index,
            offset: 0,
        }
    }

    /// Applies; the output names the entry that applied it. Answers are shown as (entry, output).
    fn run(table: &mut Sessions, index: u64, head: (u64, u64, u64), count: usize) -> Vec<Answer> {
        let echo = |_: Position, it: &Bytes| {
            Ok::<_, ()>(Bytes::from(format!(
                "{index}:{}",
                String::from_utf8_lossy(it)
            )))
        };
        table
            .apply(at(index), head, &commands(count), echo)
            .expect("applies")
    }

    fn earlier(index: u64, answers: Vec<Answer>) -> Vec<Answer> {
        let again = |(offset, answer)| match answer {
            Answer::Output(output) => Answer::Earlier(
                Position {
                    offset,
                    ..at(index)
                },
                output,
            ),
            other => other,
        };
        (0..).zip(answers).map(again).collect()
    }

    #[test]
    fn a_command_that_comes_again_gets_its_first_answer_and_place() {
        let mut table = Sessions::default();
        table.open(5);
        let first = run(&mut table, 6, (5, 0, 0), 3);
        assert_eq!(first[2], Answer::Output(Bytes::from_static(b"6:2")));
        assert_eq!(run(&mut table, 9, (5, 0, 0), 3), earlier(6, first));
    }

    #[test]
    fn retries_may_arrive_in_any_order() {
        let mut table = Sessions::default();
        table.open(1);
        let later = run(&mut table, 2, (1, 10, 0), 1);
        let sooner = run(&mut table, 3, (1, 0, 0), 10);
        assert_eq!(run(&mut table, 4, (1, 10, 0), 1), earlier(2, later));
        assert_eq!(run(&mut table, 5, (1, 0, 0), 10), earlier(3, sooner));
    }

    #[test]
    fn an_answered_command_is_never_applied_again() {
        let mut table = Sessions::default();
        table.open(1);
        run(&mut table, 2, (1, 0, 0), 2);
        run(&mut table, 3, (1, 2, 2), 1);
        assert_eq!(run(&mut table, 4, (1, 0, 0), 2), vec![Answer::Lost; 2]);
    }

    #[test]
    fn an_unknown_session_applies_nothing() {
        let mut table = Sessions::default();
        let answers = table.apply(at(2), (1, 0, 0), &commands(2), |_, _| Err("applied"));
        assert_eq!(answers, Ok(vec![Answer::Expired; 2]));
    }

    #[test]
    fn the_session_unused_for_longest_expires() {
        let mut table = Sessions::default();
        for index in 1..=SESSIONS_MAX as u64 {
            table.open(index);
        }
        run(&mut table, 1_000_000, (1, 0, 0), 1);
        table.open(1_000_001);
        assert_eq!(
            run(&mut table, 1_000_002, (2, 0, 0), 1),
            vec![Answer::Expired]
        );
        let kept = run(&mut table, 1_000_003, (1, 0, 0), 1);
        assert!(matches!(kept[0], Answer::Earlier(..)), "{kept:?}");
        assert_eq!(table.sessions.len(), table.by_use.len());
    }

    #[test]
    fn a_number_beyond_the_window_is_not_applied() {
        let mut table = Sessions::default();
        table.open(1);
        assert_eq!(
            run(&mut table, 2, (1, WINDOW_MAX, 0), 1),
            vec![Answer::Expired]
        );
        let inside = run(&mut table, 3, (1, WINDOW_MAX - 1, 0), 1);
        assert!(matches!(inside[0], Answer::Output(_)), "{inside:?}");
    }

    fn fill(table: &mut Sessions, index: u64, head: (u64, u64, u64), bytes: usize) {
        let large = |_: Position, _: &Bytes| Ok::<_, ()>(Bytes::from(vec![0; bytes]));
        table
            .apply(at(index), head, &commands(1), large)
            .expect("applies");
    }

    #[test]
    fn answers_beyond_the_limit_are_forgotten_oldest_first_and_never_applied_again() {
        let mut table = Sessions::default();
        table.open(1);
        for seq in 0..3 {
            fill(
                &mut table,
                2 + seq,
                (1, seq, 0),
                ANSWER_BYTES_MAX / 2 - 1_000,
            );
        }
        assert_eq!(run(&mut table, 9, (1, 0, 0), 1), vec![Answer::Lost]);
        let newest = run(&mut table, 10, (1, 2, 0), 1);
        assert!(matches!(&newest[0], Answer::Earlier(at, _) if at.index == 4));
    }

    #[test]
    fn large_answers_of_many_sessions_expire_the_oldest_session() {
        let mut table = Sessions::default();
        let each = ANSWER_BYTES_MAX - 1_000;
        let many = (ANSWER_BYTES_TOTAL_MAX / each) as u64 + 2;
        for session in 1..=many {
            table.open(session * 2);
            fill(&mut table, session * 2 + 1, (session * 2, 0, 0), each);
        }
        assert!(table.bytes <= ANSWER_BYTES_TOTAL_MAX);
        assert_eq!(run(&mut table, 9_999, (2, 0, 0), 1), vec![Answer::Expired]);
        let sum: usize = table.sessions.values().map(|it| it.answer_bytes).sum();
        assert_eq!(sum, table.bytes);
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
