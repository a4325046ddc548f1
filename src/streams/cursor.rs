//! Cursors: how far a consumer has got, by name, the same at all members.
//!
//! A cursor is a note of the group's. Whoever subscribes with its name takes it over and is its
//! holder, and only the holder moves it: each change is made from the version that was seen last.
//!
//! ```text
//! name    "stream/cursor/" ‖ topic (32) ‖ 'n' ‖ name, or 'm' ‖ author (32)
//! value   version 1 ‖ cursor (8) ‖ holder (16) ‖ member (16)
//! ```

use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::error::{AckError, SubscribeError};
use crate::{
    identity::MemberId,
    log_store::{
        Author, Expected, LogError, Logs, Note, NoteError, NoteRefused, NoteVersion, Topic,
    },
};

/// The longest name of a cursor, in bytes.
pub const CURSOR_NAME_BYTES_MAX: usize = 200;
/// Acknowledgements that come within this time are written together; so long, and what the commit
/// takes, an acknowledgement may be unknown to the group.
pub const ACK_DELAY: Duration = Duration::from_millis(100);

const PREFIX: &[u8] = b"stream/cursor/";
const VERSION: u8 = 1;
/// How often taking a cursor over is tried while others do the same.
const CLAIMS_MAX: usize = 16;
/// Between two tries when no quorum answers.
const PAUSE: Duration = Duration::from_millis(200);

/// Which cursor of a topic.
///
/// ```
/// use quorate::streams::CursorName;
///
/// assert_eq!(CursorName::from("reader"), CursorName::Named("reader".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CursorName {
    /// The one of this name, of [`StreamFrom::Cursor`](super::StreamFrom::Cursor). 1 to
    /// [`CURSOR_NAME_BYTES_MAX`] bytes.
    Named(String),
    /// The one that a member's author has without naming it, of
    /// [`StreamFrom::Frontier`](super::StreamFrom::Frontier).
    Frontier(Author),
}

impl From<&str> for CursorName {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

impl From<String> for CursorName {
    fn from(name: String) -> Self {
        Self::Named(name)
    }
}

impl From<Author> for CursorName {
    fn from(author: Author) -> Self {
        Self::Frontier(author)
    }
}

/// A cursor as the group keeps it; see [`TopicStream::cursors`](super::TopicStream::cursors).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cursor {
    /// Which one.
    pub name: CursorName,
    /// Every number below it is acknowledged: where the next subscription begins.
    pub next: u64,
    /// The member at which it was held last. It may be gone.
    pub member: MemberId,
}

impl CursorName {
    /// # Errors
    /// The name is empty or too long.
    fn note(&self, topic: Topic) -> Result<Bytes, SubscribeError> {
        let mut name = prefix(topic);
        match self {
            Self::Named(text) if (1..=CURSOR_NAME_BYTES_MAX).contains(&text.len()) => {
                name.put_u8(b'n');
                name.put_slice(text.as_bytes());
            }
            Self::Named(_) => return Err(SubscribeError::CursorName),
            Self::Frontier(author) => {
                name.put_u8(b'm');
                name.put_slice(author.as_bytes());
            }
        }
        Ok(name.into())
    }

    /// What stands behind the prefix; none for what a newer program named.
    fn of_note(rest: &[u8]) -> Option<Self> {
        let (kind, rest) = rest.split_first()?;
        match kind {
            b'n' => Some(Self::Named(std::str::from_utf8(rest).ok()?.into())),
            b'm' => Some(Self::Frontier(Author::from_bytes(rest.try_into().ok()?))),
            _ => None,
        }
    }
}

/// What the names of a topic's cursors begin with.
fn prefix(topic: Topic) -> Vec<u8> {
    [PREFIX, topic.as_bytes()].concat()
}

/// A topic's cursors, with everything that was acknowledged before. Those that a newer program
/// wrote are left out.
pub(super) async fn list(logs: &Logs, topic: Topic) -> Result<Vec<Cursor>, LogError> {
    let prefix = prefix(topic);
    let notes = logs.notes_confirmed(prefix.clone().into()).await?;
    let cursors = notes.iter().filter_map(|note| {
        let name = CursorName::of_note(note.name.strip_prefix(&prefix[..])?)?;
        let record = Record::decode(&note.value)?;
        Some(Cursor {
            name,
            next: record.cursor,
            member: record.member,
        })
    });
    Ok(cursors.collect())
}

/// What the note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    cursor: u64,
    /// A random number a subscription.
    holder: u128,
    member: MemberId,
}

impl Record {
    fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        out.put_u64(self.cursor);
        out.put_u128(self.holder);
        out.put_slice(&self.member.to_bytes());
        out.into()
    }

    /// None for what a newer program wrote.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (cursor, rest) = rest.split_first_chunk()?;
        let (holder, rest) = rest.split_first_chunk()?;
        let member = <[u8; 16]>::try_from(rest).ok()?;
        (*version == VERSION).then(|| Self {
            cursor: u64::from_be_bytes(*cursor),
            holder: u128::from_be_bytes(*holder),
            member: MemberId::from_bytes(member),
        })
    }
}

/// A cursor that this subscription holds, as far as it knows.
#[derive(Debug)]
pub(super) struct Held {
    logs: Logs,
    note: Bytes,
    record: Record,
    version: NoteVersion,
    /// The last change of any note that was looked at.
    seen: NoteVersion,
}

/// How far the group knows, and what stands in the way.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) committed: u64,
    /// No quorum at the moment; it is tried on.
    pub(super) delayed: Option<LogError>,
    /// The end: nothing is acknowledged any more.
    pub(super) lost: Option<AckError>,
}

impl Held {
    /// Takes the cursor over from whoever held it, or makes it at 0.
    pub(super) async fn claim(
        logs: Logs,
        topic: Topic,
        name: &CursorName,
    ) -> Result<Self, SubscribeError> {
        let note = name.note(topic)?;
        let holder = rand::random();
        let member = logs.group().member();
        for _ in 0..CLAIMS_MAX {
            let found = look(&logs, &note).await?;
            let (cursor, expected) = match &found {
                None => (0, Expected::Absent),
                Some(note) => {
                    let record = Record::decode(&note.value);
                    let record = record.ok_or(SubscribeError::NewerCursor)?;
                    (record.cursor, Expected::Changed(note.version))
                }
            };
            let record = Record {
                cursor,
                holder,
                member,
            };
            match logs
                .note(note.clone(), Some(record.encode()), expected)
                .await
            {
                Ok(version) => {
                    return Ok(Self {
                        logs,
                        note,
                        record,
                        version,
                        seen: version,
                    });
                }
                // The next look tells whether this one was it.
                Err(NoteError::Refused(NoteRefused::Changed { .. }))
                | Err(NoteError::Logs(LogError::Unknown)) => {}
                Err(NoteError::Refused(refused)) => {
                    return Err(SubscribeError::NotKept {
                        why: refused.to_string(),
                    });
                }
                Err(NoteError::Logs(error)) => return Err(error.into()),
            }
        }
        Err(SubscribeError::Contended)
    }

    /// All below it is acknowledged.
    pub(super) fn cursor(&self) -> u64 {
        self.record.cursor
    }

    /// Writes what is acknowledged, as it becomes known, until nobody acknowledges any more and all
    /// is written, or the cursor is lost.
    pub(super) async fn keep(
        mut self,
        mut wanted: watch::Receiver<u64>,
        progress: watch::Sender<Progress>,
    ) {
        let mut committed = self.logs.committed();
        let lost = loop {
            let cursor = *wanted.borrow_and_update();
            if cursor > self.record.cursor {
                let due = Instant::now() + ACK_DELAY;
                match self.write(cursor).await {
                    Ok(()) => {
                        progress.send_modify(|it| {
                            it.committed = cursor;
                            it.delayed = None;
                        });
                        sleep_until(due).await;
                    }
                    Err(NotWritten::Lost(why)) => break why,
                    Err(NotWritten::Later(error)) => {
                        progress.send_if_modified(|it| it.delayed.replace(error).is_none());
                        sleep(PAUSE).await;
                    }
                }
                continue;
            }
            tokio::select! {
                more = wanted.changed() => {
                    if more.is_err() {
                        return;
                    }
                }
                more = committed.changed() => {
                    if let Err(stopped) = more {
                        break AckError::Stopped(stopped);
                    }
                    if let Some(lost) = self.seen_lost() {
                        break lost;
                    }
                }
            }
        };
        progress.send_modify(|it| it.lost = Some(lost));
    }

    /// Whether this member has learnt that the cursor is another's.
    fn seen_lost(&mut self) -> Option<AckError> {
        let changed = self.logs.notes_changed().ok()?;
        if changed.is_none_or(|it| it <= self.seen) {
            return None;
        }
        let note = self.logs.note_local(&self.note).ok()?;
        self.seen = changed?;
        self.is_ours(note).err()
    }

    async fn write(&mut self, cursor: u64) -> Result<(), NotWritten> {
        // The second time from what a former write left whose fate was unknown.
        for _ in 0..2 {
            let record = Record {
                cursor,
                ..self.record
            };
            let (name, expected) = (self.note.clone(), Expected::Changed(self.version));
            match self.logs.note(name, Some(record.encode()), expected).await {
                Ok(version) => {
                    (self.record, self.version) = (record, version);
                    return Ok(());
                }
                Err(NoteError::Refused(NoteRefused::Changed { .. })) => self.find().await?,
                Err(NoteError::Refused(refused)) => {
                    let why = refused.to_string();
                    return Err(NotWritten::Lost(AckError::NotKept { why }));
                }
                Err(NoteError::Logs(error)) => return Err(error.into()),
            }
        }
        Err(NotWritten::Later(LogError::Unknown))
    }

    /// Looks who holds the cursor. Where it is still this one, the next write goes from there.
    async fn find(&mut self) -> Result<(), NotWritten> {
        let found = look(&self.logs, &self.note).await?;
        let (record, version) = self.is_ours(found).map_err(NotWritten::Lost)?;
        (self.record, self.version) = (record, version);
        Ok(())
    }

    fn is_ours(&self, found: Option<Note>) -> Result<(Record, NoteVersion), AckError> {
        let found = found.ok_or(AckError::Forgotten)?;
        match Record::decode(&found.value) {
            Some(record) if record.holder == self.record.holder => Ok((record, found.version)),
            Some(record) => Err(AckError::TakenOver { by: record.member }),
            None => Err(AckError::NotKept {
                why: "a newer program has taken the cursor over".into(),
            }),
        }
    }
}

enum NotWritten {
    Later(LogError),
    Lost(AckError),
}

impl From<LogError> for NotWritten {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Stopped(stopped) => Self::Lost(AckError::Stopped(stopped)),
            error => Self::Later(error),
        }
    }
}

/// The note, with everything that was acknowledged before.
async fn look(logs: &Logs, name: &Bytes) -> Result<Option<Note>, LogError> {
    logs.note_confirmed(name.clone()).await
}

/// Removes a cursor. Whoever holds it learns so at the next acknowledgement.
pub(super) async fn forget(
    logs: &Logs,
    topic: Topic,
    name: &CursorName,
) -> Result<(), SubscribeError> {
    match logs.note(name.note(topic)?, None, Expected::Any).await {
        Ok(_) => Ok(()),
        Err(NoteError::Refused(refused)) => Err(SubscribeError::NotKept {
            why: refused.to_string(),
        }),
        Err(NoteError::Logs(error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let record = Record {
            cursor: 0x0102,
            holder: 3,
            member: MemberId::from_bytes([4; 16]),
        };
        let bytes = record.encode();
        let wanted = format!("01{:016x}{:032x}{}", 0x0102, 3, "04".repeat(16));
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), wanted);
        assert_eq!(Record::decode(&bytes), Some(record));
        assert_eq!(Record::decode(&bytes[..40]), None);
        assert_eq!(Record::decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Record::decode(&[&[2], &bytes[1..]].concat()), None);
    }

    #[test]
    fn no_two_cursors_share_a_note() {
        let topic = Topic::named("t");
        let note = |name: CursorName| name.note(topic);
        let named = |text: &str| note(CursorName::Named(text.into()));
        let own = note(CursorName::Frontier(Author::from_bytes([7; 32]))).expect("a name");
        assert_eq!(&own[..46], &[PREFIX, topic.as_bytes()].concat());
        assert_ne!(own, named(&"\u{7}".repeat(32)).expect("a name"));
        let of_note = |note: &[u8]| CursorName::of_note(note.strip_prefix(&prefix(topic)[..])?);
        let frontier = CursorName::Frontier(Author::from_bytes([7; 32]));
        assert_eq!(of_note(&own), Some(frontier));
        assert_eq!(of_note(&named("x").expect("a name")), Some("x".into()));
        for newer in [&b"m\x07"[..], b"n\xff", b"z", b""] {
            assert_eq!(CursorName::of_note(newer), None);
        }
        assert!(named("").is_err());
        let longest = "x".repeat(CURSOR_NAME_BYTES_MAX);
        let longest = named(&longest).expect("a name");
        assert!(longest.len() <= crate::log_store::NOTE_NAME_BYTES_MAX);
        assert!(named(&"x".repeat(CURSOR_NAME_BYTES_MAX + 1)).is_err());
    }
}
