//! Who of the peers that are no members may do what, as the group has decided it.
//!
//! ```text
//!  sync/topic/<topic>          who may read, who may push, how     Admission
//!  sync/known/<peer>           its name, where it is, how it went last              KnownPeer
//!  sync/asked/<topic><peer>    what a peer asked for, and whether it got it     Standing
//! ```
//!
//! These are notes of the group: the same at every member, on a quorum's disks before a change is
//! answered, changed only from what was read. Each door follows them (`serve/admission.rs`).

mod register;
mod rules;

use std::{fmt, time::SystemTime};

use bytes::Bytes;

pub(crate) use self::register::{CLAIMS, Entry, REGISTER_MAX, Went, entry_name, register_prefix};
use self::rules::{LISTED_MAX, rules_name};
pub(crate) use self::rules::{
    Noted, Standing, Verdict, asked_of, decode, decode_rules, encode, encode_rules, judge,
    rules_prefix, standing_name, standings_prefix, topic_of,
};
pub use self::{
    register::KnownPeer,
    rules::{Admission, Decision, Rights, TopicMode, Who},
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Expected, Line, LogError, Logs, NoteError, NoteRefused, Topic},
};

/// Decisions that the group remembers, of all topics together.
const STANDINGS_MAX: usize = 16_384;
/// Requests of one topic that wait for a decision.
pub(crate) const PENDING_MAX: usize = 256;
/// Requests of all topics that wait for a decision: half of the decisions that there is room for.
pub(crate) const PENDING_ALL_MAX: usize = STANDINGS_MAX / 2;
/// Tries from a fresher state, when others change the same note at the same time.
const TRIES: usize = 16;

/// What outsiders may do with a group's topics, on any member, whether it serves them or not.
///
/// A topic that was opened with [`Logs::open_topic`] is for members only. What is opened here is
/// served at the doors of all members ([`Node::serve_sync`](crate::Node::serve_sync)), to whom its
/// [`Admission`] says. Changes hold everywhere once they are committed: a door that reaches the
/// quorum ends sessions of peers that lost a right within a second, and one that does not reach it
/// serves nobody.
///
/// ```
/// use quorate::{
///     GroupKey, Node, PeerId,
///     log_store::{Line, LogStore, Topic},
///     sync::{Admission, Outsiders, Rights, Who},
/// };
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
/// let outsiders = Outsiders::of(&logs);
///
/// // Everybody reads; who wants to write asks.
/// let cats = Topic::named("cats");
/// let admission = Admission { push: Who::OnRequest, ..Admission::everyone() };
/// outsiders.open_topic(cats, Line::V07, admission).await?;
///
/// for request in outsiders.requests().await? {
///     println!("{} wants {:?} of {}", request.peer, request.wants, request.topic);
/// }
/// let friend = PeerId::from_bytes([1; 32]);
/// outsiders.approve(cats, friend, Rights::ALL).await?; // whether it has asked yet or not
/// outsiders.refuse(cats, friend).await?; // and no more, at any member
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Outsiders {
    logs: Logs,
}

/// What the group has noted of a peer in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The topic.
    pub topic: Topic,
    /// The peer, by the id of its endpoint.
    pub peer: PeerId,
    /// What it asked for; all there is, where it was decided before it asked.
    pub wants: Rights,
    /// What was decided.
    pub decision: Decision,
    /// Where it was when it asked.
    pub addr: PeerAddr,
    /// When it asked or, once that is decided, when it was decided, by the clock of the member that
    /// noted it.
    pub at: SystemTime,
}

/// What outsiders may do was not changed, or it is not known whether it was.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutsidersError {
    /// A list is too long.
    #[error("a list of {listed} peers: at most {LISTED_MAX} may be listed, let more in on request")]
    TooManyListed {
        /// How many peers it has.
        listed: usize,
    },
    /// The group remembers as many decisions as it may.
    #[error("{STANDINGS_MAX} decisions on peers are remembered, the most: take some back first")]
    TooManyDecisions,
    /// The group keeps as many notes as it may.
    #[error("the group keeps as many notes as it may: withdraw topics or forget peers first")]
    TooManyNotes,
    /// A name that no peer can have.
    #[error("a peer's name has 1 to 64 bytes and no control characters")]
    BadName,
    /// What is noted cannot be read: a later version of this crate has written it, maybe.
    #[error(
        "what is noted of this peer cannot be read here, a later version may have written it: \
         decide with that version, or reconsider or forget the peer first"
    )]
    Unreadable,
    /// Others have changed the same thing at the same time, again and again.
    #[error("others change the same thing at the same time: look at it, then decide again")]
    Contended,
    /// The group did not answer. It may have been changed: asking again is safe.
    #[error(transparent)]
    Logs(#[from] LogError),
}

impl Outsiders {
    /// Of the group that keeps these logs.
    #[must_use]
    pub fn of(logs: &Logs) -> Self {
        Self { logs: logs.clone() }
    }

    /// Opens a topic on all members, as [`Logs::open_topic`], and admits outsiders to it. If it is
    /// open already, what it admits is changed.
    ///
    /// # Errors
    /// [`OutsidersError`]. If the opening itself is refused nobody is served, but what the topic
    /// admits once it is opened may be changed.
    pub async fn open_topic(
        &self,
        topic: Topic,
        line: Line,
        admission: Admission,
    ) -> Result<(), OutsidersError> {
        // First: it is never open to those that an earlier opening admitted.
        self.admit(topic, admission).await?;
        Ok(self.logs.open_topic(topic, line).await?)
    }

    /// Changes what a topic admits. Sessions of peers whose rights are others end, and all of them
    /// where the [mode](TopicMode) is another. A topic that is not
    /// open admits nobody until it is.
    ///
    /// # Errors
    /// [`OutsidersError`].
    pub async fn admit(&self, topic: Topic, admission: Admission) -> Result<(), OutsidersError> {
        let listed = admission.listed();
        if listed > LISTED_MAX {
            return Err(OutsidersError::TooManyListed { listed });
        }
        let value = encode_rules(&admission);
        self.change(rules_name(topic), |_| Ok(Some(value.clone())))
            .await
    }

    /// Serves a topic to members only, from now on. It stays open to them. What was decided about
    /// peers stays too, for when it is opened again.
    ///
    /// # Errors
    /// [`OutsidersError`].
    pub async fn withdraw(&self, topic: Topic) -> Result<(), OutsidersError> {
        self.change(rules_name(topic), |_| Ok(None)).await
    }

    /// What a topic admits, as far as this member knows: none where it is for members only, or
    /// where what is noted cannot be read, which comes to the same.
    ///
    /// # Errors
    /// [`LogError`] when this member's store cannot be read.
    pub async fn admission(&self, topic: Topic) -> Result<Option<Admission>, LogError> {
        let notes = self.notes(rules_name(topic)).await?;
        let note = notes.into_iter().next();
        Ok(note.and_then(|(_, value)| match decode_rules(&value) {
            Noted::Known(admission) => Some(admission),
            Noted::Unreadable => None,
        }))
    }

    /// The requests that nobody has decided on, as far as this member knows. At most 256 of a topic
    /// wait, and 8,192 of all; peers that ask beyond that are noted when there is room. Where there
    /// is none, one that has waited for a day gives way to a new one.
    ///
    /// # Errors
    /// [`LogError`] when this member's store cannot be read.
    pub async fn requests(&self) -> Result<Vec<Request>, LogError> {
        let mut all = self.decisions().await?;
        all.retain(|it| it.decision == Decision::Pending);
        Ok(all)
    }

    /// All requests and what was decided on them, as far as this member knows.
    ///
    /// # Errors
    /// [`LogError`] when this member's store cannot be read.
    pub async fn decisions(&self) -> Result<Vec<Request>, LogError> {
        let notes = self.notes(standings_prefix().into()).await?;
        let requests = notes.into_iter().filter_map(|(name, value)| {
            let (topic, peer) = asked_of(&name)?;
            let Noted::Known(standing) = decode::<Standing>(&value) else {
                return None;
            };
            Some(Request {
                topic,
                peer,
                wants: standing.wants,
                decision: standing.decision,
                addr: standing.addr,
                at: SystemTime::UNIX_EPOCH
                    .checked_add(std::time::Duration::from_millis(standing.at_ms))
                    .unwrap_or(SystemTime::UNIX_EPOCH),
            })
        });
        Ok(requests.collect())
    }

    /// Lets a peer in, with these rights and no others, wherever the topic gives them on request;
    /// whether it has asked already or not. Members dial it where it was when it asked.
    ///
    /// # Errors
    /// [`OutsidersError`].
    pub async fn approve(
        &self,
        topic: Topic,
        peer: PeerId,
        rights: Rights,
    ) -> Result<(), OutsidersError> {
        self.decide(topic, peer, Decision::Approved(rights)).await
    }

    /// Refuses a peer in a topic, or takes back what it had: its sessions end at every member, and
    /// it has no right in the topic, whatever the topic admits of others, until that is changed by
    /// [`Outsiders::approve`] or [`Outsiders::reconsider`].
    ///
    /// # Errors
    /// [`OutsidersError`].
    pub async fn refuse(&self, topic: Topic, peer: PeerId) -> Result<(), OutsidersError> {
        self.decide(topic, peer, Decision::Refused).await
    }

    /// Takes back what was decided about a peer in a topic: it is as any other, and may ask.
    ///
    /// # Errors
    /// [`OutsidersError`].
    pub async fn reconsider(&self, topic: Topic, peer: PeerId) -> Result<(), OutsidersError> {
        self.change(standing_name(topic, peer), |_| Ok(None)).await
    }

    async fn decide(
        &self,
        topic: Topic,
        peer: PeerId,
        decision: Decision,
    ) -> Result<(), OutsidersError> {
        let known = self.notes(standings_prefix().into()).await?.len();
        let name = standing_name(topic, peer);
        let held = self.notes(name.clone()).await?;
        if held.is_empty() && known >= STANDINGS_MAX {
            return Err(OutsidersError::TooManyDecisions);
        }
        let logs = self.logs.clone();
        let line = tokio::task::spawn_blocking(move || logs.topic(topic)).await;
        let line = line.ok().and_then(Result::ok).flatten();
        self.change(name, |held| {
            let held = held.map(|it| decode::<Standing>(it));
            let standing = match held {
                Some(Noted::Known(standing)) => Standing {
                    decision,
                    at_ms: now_ms(),
                    ..standing
                },
                Some(Noted::Unreadable) => return Err(OutsidersError::Unreadable),
                None => Standing {
                    decision,
                    wants: Rights::ALL,
                    line: line.unwrap_or(Line::V07),
                    addr: PeerAddr::new(peer, []),
                    at_ms: now_ms(),
                },
            };
            Ok(Some(encode(&standing)))
        })
        .await
    }

    /// Changes a note from what it is now; known here when this returns.
    async fn change(
        &self,
        name: Bytes,
        mut to: impl FnMut(Option<&Bytes>) -> Result<Option<Bytes>, OutsidersError>,
    ) -> Result<(), OutsidersError> {
        for _ in 0..TRIES {
            self.logs.confirmed_now().await?;
            let (logs, prefix) = (self.logs.clone(), name.clone());
            let reading = tokio::task::spawn_blocking(move || logs.notes(&prefix));
            let notes = reading.await.map_err(std::io::Error::other);
            let notes = notes.flatten().map_err(LogError::from)?;
            let held = notes.into_iter().find(|it| it.name == name);
            let value = to(held.as_ref().map(|it| &it.value))?;
            let expected = match (&held, &value) {
                (Some(held), value) if Some(&held.value) == value.as_ref() => return Ok(()),
                (None, None) => return Ok(()),
                (Some(held), _) => Expected::Changed(held.version),
                (None, Some(_)) => Expected::Absent,
            };
            match self.logs.note(name.clone(), value, expected).await {
                Ok(_) => return Ok(self.logs.confirmed_now().await?),
                Err(NoteError::Refused(NoteRefused::Changed { .. })) => {}
                Err(NoteError::Refused(_)) => return Err(OutsidersError::TooManyNotes),
                Err(NoteError::Logs(error)) => return Err(error.into()),
            }
        }
        Err(OutsidersError::Contended)
    }

    async fn notes(&self, prefix: Bytes) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let logs = self.logs.clone();
        let reading = tokio::task::spawn_blocking(move || logs.notes(&prefix));
        let notes = reading.await.map_err(std::io::Error::other).flatten()?;
        Ok(notes.into_iter().map(|it| (it.name, it.value)).collect())
    }
}

impl fmt::Debug for Outsiders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outsiders").finish_non_exhaustive()
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}
