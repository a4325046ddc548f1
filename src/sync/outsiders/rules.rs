//! Who may read a topic and who may push into it, and what was decided about one peer: how that is
//! judged, and how it stands in the notes of the group. No I/O, no clock.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Topic},
};

/// Peers on one list. Both lists of a topic fit into one note.
pub(super) const LISTED_MAX: usize = 1_000;
/// The format of the notes. Another one is read as "nobody".
const VERSION: u8 = 1;
/// The format of rules that say how a topic is served.
const VERSION_MODE: u8 = 2;
const RULES: &[u8] = b"sync/topic/";
const STANDINGS: &[u8] = b"sync/asked/";

/// Who of the peers that are no members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// Whoever knows the topic.
    Everyone,
    /// These peers and no others, at most 1,000. None at all is a list too.
    ///
    /// A peer is named by the id of its endpoint, which for a p2panda node is also the key it signs
    /// with. It may pass on what others wrote: a list says whose connections are taken, not whose
    /// operations.
    Peers(BTreeSet<PeerId>),
    /// Whoever has asked and was let in, by [`Outsiders::approve`](super::Outsiders::approve).
    OnRequest,
}

impl Who {
    /// Nobody but the members.
    #[must_use]
    pub const fn nobody() -> Self {
        Self::Peers(BTreeSet::new())
    }

    /// These peers.
    #[must_use]
    pub fn peers(peers: impl IntoIterator<Item = PeerId>) -> Self {
        Self::Peers(peers.into_iter().collect())
    }

    fn lets_in(&self, peer: PeerId, approved: bool) -> bool {
        match self {
            Self::Everyone => true,
            Self::Peers(listed) => listed.contains(&peer),
            Self::OnRequest => approved,
        }
    }
}

/// How peers that are no members are served in a topic.
///
/// A session of p2panda's protocol goes on after the exchange of what both lack, for what is new,
/// and stock nodes always wish that: the protocol has no word by which they would say so, or ask
/// for less. What a member can do is to end the session in good order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TopicMode {
    /// Who has everything stays, and is told what is new as it comes. Members take part in the
    /// topic's gossip, by which p2panda nodes find whom to begin sessions with.
    #[default]
    Live,
    /// Sessions end when both sides have what they lacked. Members stay out of the topic's gossip,
    /// so they begin the sessions: with every peer that they can dial, once they have met it, and
    /// again every [`SyncOptions::ask_again`](crate::sync::SyncOptions::ask_again). What is new at
    /// either side takes as long. A p2panda node sees sessions that go well and are closed; what it
    /// publishes between two of them it sends in the next. One that no member can dial is not
    /// served, for it begins no session by itself; nor are there messages that are not kept.
    ///
    /// Our own client goes on to follow such a topic, if it wants to.
    CatchUp,
}

/// What a topic admits of peers that are no members: who may read it, and who may push into it.
///
/// ```
/// use quorate::sync::{Admission, Who};
///
/// // Everybody who knows the topic reads it, and nobody but the members writes.
/// let admission = Admission { push: Who::nobody(), ..Admission::everyone() };
/// assert_eq!(admission.read, Who::Everyone);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Who may read it.
    pub read: Who,
    /// Who may push into it. A peer that may push and not read is told nothing of what the group
    /// holds but how much it holds of what the peer itself names.
    pub push: Who,
    /// How they are served. [`TopicMode::Live`] where nothing is said. Members of a release that
    /// does not know another mode serve a topic that has one to nobody.
    pub mode: TopicMode,
}

impl Admission {
    /// Whoever knows the topic reads it and pushes into it.
    #[must_use]
    pub const fn everyone() -> Self {
        Self {
            read: Who::Everyone,
            push: Who::Everyone,
            mode: TopicMode::Live,
        }
    }

    /// Whoever was let in reads it and pushes into it.
    #[must_use]
    pub const fn on_request() -> Self {
        Self {
            read: Who::OnRequest,
            push: Who::OnRequest,
            mode: TopicMode::Live,
        }
    }

    /// These peers read it and push into it, at most 1,000.
    #[must_use]
    pub fn peers(peers: impl IntoIterator<Item = PeerId>) -> Self {
        let who = Who::peers(peers);
        Self {
            read: who.clone(),
            push: who,
            mode: TopicMode::Live,
        }
    }

    /// The same peers, who catch up and are not told what is new as it comes.
    ///
    /// ```
    /// use quorate::sync::{Admission, TopicMode};
    ///
    /// let archive = Admission::everyone().catch_up_only();
    /// assert_eq!(archive.mode, TopicMode::CatchUp);
    /// ```
    #[must_use]
    pub fn catch_up_only(self) -> Self {
        Self {
            mode: TopicMode::CatchUp,
            ..self
        }
    }

    /// The longest list in it.
    pub(super) fn listed(&self) -> usize {
        let length = |who: &Who| match who {
            Who::Peers(listed) => listed.len(),
            Who::Everyone | Who::OnRequest => 0,
        };
        length(&self.read).max(length(&self.push))
    }
}

/// What a peer may do in a topic, or asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rights {
    /// Read it.
    pub read: bool,
    /// Push into it.
    pub push: bool,
}

impl Rights {
    /// To read only.
    pub const READ: Self = Self {
        read: true,
        push: false,
    };
    /// To push only.
    pub const PUSH: Self = Self {
        read: false,
        push: true,
    };
    /// To read and to push.
    pub const ALL: Self = Self {
        read: true,
        push: true,
    };
    /// Neither.
    pub const NONE: Self = Self {
        read: false,
        push: false,
    };

    /// Whether there is any.
    #[must_use]
    pub const fn any(self) -> bool {
        self.read || self.push
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            push: self.push && other.push,
        }
    }

    pub(crate) const fn or(self, other: Self) -> Self {
        Self {
            read: self.read || other.read,
            push: self.push || other.push,
        }
    }
}

/// What became of a peer's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Nobody has decided yet.
    Pending,
    /// It has these rights wherever they are given on request.
    Approved(Rights),
    /// It has no rights in the topic, whoever else has. It stays so until that is changed.
    Refused,
}

/// What the group knows of one peer's wish for one topic. Frozen format, in postcard behind
/// [`VERSION`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) decision: Decision,
    /// What it has asked for.
    pub(crate) wants: Rights,
    /// The line in which it asked.
    pub(crate) line: Line,
    /// Where it was when it asked.
    pub(crate) addr: PeerAddr,
    /// When it asked, or was decided about, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// What is to be done with a peer in a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) rights: Rights,
    /// What it has not, and may ask for.
    pub(crate) may_ask: Rights,
}

impl Verdict {
    /// Whether the peer may know that the topic is there.
    pub(crate) fn is_told(self) -> bool {
        self.rights.any() || self.may_ask.any()
    }
}

/// What a note says, or that it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Noted<T> {
    Known(T),
    /// Of another version, or damaged: read as what gives the fewest rights.
    Unreadable,
}

/// Judges a peer in a topic with these rules. A topic without rules is for members only.
pub(crate) fn judge(
    rules: Option<&Noted<Admission>>,
    standing: Option<&Noted<Standing>>,
    peer: PeerId,
) -> Verdict {
    let (Some(Noted::Known(rules)), None | Some(Noted::Known(_))) = (rules, standing) else {
        return Verdict::default();
    };
    let decision = match standing {
        Some(Noted::Known(standing)) => Some(standing.decision),
        _ => None,
    };
    let approved = match decision {
        Some(Decision::Refused) => return Verdict::default(),
        Some(Decision::Approved(rights)) => rights,
        Some(Decision::Pending) | None => Rights::NONE,
    };
    let open = !matches!(decision, Some(Decision::Approved(_)));
    Verdict {
        rights: Rights {
            read: rules.read.lets_in(peer, approved.read),
            push: rules.push.lets_in(peer, approved.push),
        },
        may_ask: Rights {
            read: open && rules.read == Who::OnRequest,
            push: open && rules.push == Who::OnRequest,
        },
    }
}

pub(super) fn rules_name(topic: Topic) -> Bytes {
    [RULES, topic.as_bytes()].concat().into()
}

pub(crate) fn standing_name(topic: Topic, peer: PeerId) -> Bytes {
    [STANDINGS, topic.as_bytes(), peer.as_bytes()]
        .concat()
        .into()
}

/// What all names of rules begin with.
pub(crate) const fn rules_prefix() -> &'static [u8] {
    RULES
}

/// What all names of standings begin with.
pub(crate) const fn standings_prefix() -> &'static [u8] {
    STANDINGS
}

/// The topic in a name of rules.
pub(crate) fn topic_of(name: &[u8]) -> Option<Topic> {
    let topic = name.strip_prefix(RULES)?;
    Some(Topic::from_bytes(topic.try_into().ok()?))
}

/// The topic and the peer in a name of a standing.
pub(crate) fn asked_of(name: &[u8]) -> Option<(Topic, PeerId)> {
    let (topic, peer) = name.strip_prefix(STANDINGS)?.split_at_checked(32)?;
    let topic = Topic::from_bytes(topic.try_into().ok()?);
    Some((topic, PeerId::from_bytes(peer.try_into().ok()?)))
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut out = vec![VERSION];
    // Plain values into memory cannot fail to encode.
    out.extend(postcard::to_stdvec(value).unwrap_or_default());
    out.into()
}

pub(crate) fn decode<T: for<'a> Deserialize<'a>>(value: &[u8]) -> Noted<T> {
    decode_as(VERSION, value)
}

fn decode_as<T: for<'a> Deserialize<'a>>(version: u8, value: &[u8]) -> Noted<T> {
    match value.split_first() {
        Some((first, inside)) if *first == version => match postcard::take_from_bytes(inside) {
            Ok((it, [])) => Noted::Known(it),
            _ => Noted::Unreadable,
        },
        _ => Noted::Unreadable,
    }
}

/// Rules in the oldest format that says all of them, so that members of an older release read what
/// they can follow, and serve nobody where they cannot.
pub(crate) fn encode_rules(rules: &Admission) -> Bytes {
    let Admission { read, push, mode } = rules;
    match mode {
        TopicMode::Live => encode(&(read, push)),
        TopicMode::CatchUp => {
            let mut out = vec![VERSION_MODE];
            out.extend(postcard::to_stdvec(&(read, push, mode)).unwrap_or_default());
            out.into()
        }
    }
}

pub(crate) fn decode_rules(value: &[u8]) -> Noted<Admission> {
    let noted = match value.first() {
        Some(&VERSION_MODE) => decode_as(VERSION_MODE, value),
        _ => match decode(value) {
            Noted::Known((read, push)) => Noted::Known((read, push, TopicMode::Live)),
            Noted::Unreadable => Noted::Unreadable,
        },
    };
    match noted {
        Noted::Known((read, push, mode)) => Noted::Known(Admission { read, push, mode }),
        Noted::Unreadable => Noted::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzzed_notes_of_admission() {
        use crate::fuzz::{Fuzz, Shape, bounded_by_serde};
        let asked = Standing {
            decision: Decision::Approved(Rights::PUSH),
            wants: Rights::ALL,
            line: Line::V06,
            addr: PeerAddr::new(peer(1), [([127, 0, 0, 1], 4000).into()]),
            at_ms: 300,
        };
        let rules = Admission::peers([peer(1), peer(2)]);
        let corpus = [
            encode_rules(&Admission::everyone()),
            encode_rules(&rules),
            encode_rules(&rules.clone().catch_up_only()),
            encode(&asked),
        ];
        Fuzz::new("notes of admission", Shape::Postcard, corpus).run(|bytes| {
            if let Noted::Known(it) = bounded_by_serde(bytes, || decode_rules(bytes)) {
                assert_eq!(decode_rules(&encode_rules(&it)), Noted::Known(it));
            }
            if let Noted::Known(it) = bounded_by_serde(bytes, || decode::<Standing>(bytes)) {
                assert_eq!(decode(&encode(&it)), Noted::Known(it));
            }
        });
    }

    fn peer(at: u8) -> PeerId {
        PeerId::from_bytes([at; 32])
    }

    fn standing(decision: Decision) -> Noted<Standing> {
        Noted::Known(Standing {
            decision,
            wants: Rights::ALL,
            line: Line::V07,
            addr: PeerAddr::new(peer(1), [([127, 0, 0, 1], 4000).into()]),
            at_ms: 7,
        })
    }

    fn verdict(rights: Rights, may_ask: Rights) -> Verdict {
        Verdict { rights, may_ask }
    }

    #[test]
    fn a_peer_is_judged_by_the_rules_and_by_what_was_decided() {
        let listed = Admission {
            read: Who::peers([peer(1)]),
            push: Who::nobody(),
            mode: TopicMode::Live,
        };
        let read_all = Admission {
            push: Who::OnRequest,
            ..Admission::everyone()
        };
        let (on_request, everyone) = (Admission::on_request(), Admission::everyone());
        let none = verdict(Rights::NONE, Rights::NONE);
        let cases = [
            (&everyone, None, verdict(Rights::ALL, Rights::NONE)),
            (&everyone, Some(Decision::Refused), none),
            (&listed, None, verdict(Rights::READ, Rights::NONE)),
            (&listed, Some(Decision::Refused), none),
            (&on_request, None, verdict(Rights::NONE, Rights::ALL)),
            (
                &on_request,
                Some(Decision::Pending),
                verdict(Rights::NONE, Rights::ALL),
            ),
            (
                &on_request,
                Some(Decision::Approved(Rights::READ)),
                verdict(Rights::READ, Rights::NONE),
            ),
            (&on_request, Some(Decision::Refused), none),
            (&read_all, None, verdict(Rights::READ, Rights::PUSH)),
            (
                &read_all,
                Some(Decision::Approved(Rights::PUSH)),
                verdict(Rights::ALL, Rights::NONE),
            ),
        ];
        for (rules, decision, wanted) in cases {
            let held = decision.map(standing);
            let judged = judge(Some(&Noted::Known(rules.clone())), held.as_ref(), peer(1));
            assert_eq!(judged, wanted, "{rules:?} {decision:?}");
        }
        let other = judge(Some(&Noted::Known(listed)), None, peer(2));
        assert_eq!(other, none);
    }

    #[test]
    fn what_cannot_be_read_gives_no_rights() {
        let everyone = Noted::Known(Admission::everyone());
        let none = Verdict::default();
        assert_eq!(judge(None, None, peer(1)), none);
        assert_eq!(judge(Some(&Noted::Unreadable), None, peer(1)), none);
        let damaged = Some(&Noted::Unreadable);
        assert_eq!(judge(Some(&everyone), damaged, peer(1)), none);
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let rules = Admission {
            read: Who::peers([peer(1)]),
            push: Who::OnRequest,
            mode: TopicMode::Live,
        };
        let bytes = encode_rules(&rules);
        assert_eq!(hex(&bytes), format!("010101{}02", "01".repeat(32)));
        assert_eq!(decode_rules(&bytes), Noted::Known(rules));
        assert_eq!(hex(&encode_rules(&Admission::everyone())), "010000");
        let Noted::Known(asked) = standing(Decision::Approved(Rights::PUSH)) else {
            panic!("it is known");
        };
        let bytes = encode(&asked);
        let addr = format!("{}01007f000001a01f00", "01".repeat(32));
        assert_eq!(hex(&bytes), format!("01010001010101{addr}07"));
        assert_eq!(decode(&bytes), Noted::Known(asked));
        for cut in 0..bytes.len() {
            assert_eq!(decode::<Standing>(&bytes[..cut]), Noted::Unreadable);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode::<Standing>(&longer), Noted::Unreadable);
        let newer = [&[2], &bytes[1..]].concat();
        assert_eq!(decode::<Standing>(&newer), Noted::Unreadable);
    }

    #[test]
    fn rules_with_a_mode_have_version_2_and_older_members_serve_nobody_by_them() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let rules = Admission::everyone().catch_up_only();
        let bytes = encode_rules(&rules);
        assert_eq!(hex(&bytes), "02000001");
        assert_eq!(decode_rules(&bytes), Noted::Known(rules));
        // As a member of an older release reads it.
        assert_eq!(decode::<(Who, Who)>(&bytes), Noted::Unreadable);
        for cut in 0..bytes.len() {
            assert_eq!(decode_rules(&bytes[..cut]), Noted::Unreadable);
        }
        for wrong in [&[2, 0, 0][..], &[2, 0, 0, 2], &[2, 0, 0, 1, 0], &[3, 0, 0]] {
            assert_eq!(decode_rules(wrong), Noted::Unreadable);
        }
        let live = Noted::Known(Admission::everyone());
        assert_eq!(decode_rules(&[2, 0, 0, 0]), live);
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let topic = Topic::named("cats");
        assert_eq!(topic_of(&rules_name(topic)), Some(topic));
        let name = standing_name(topic, peer(1));
        assert_eq!(asked_of(&name), Some((topic, peer(1))));
        assert_eq!(asked_of(&name[..name.len() - 1]), None);
        assert_eq!(asked_of(b"sync/asked/x"), None);
    }

    #[test]
    fn the_longest_lists_fit_into_a_note() {
        let peer = |at: usize| {
            let mut id = [7; 32];
            id[..8].copy_from_slice(&at.to_be_bytes());
            PeerId::from_bytes(id)
        };
        let rules = Admission::peers((0..LISTED_MAX).map(peer));
        assert_eq!(rules.listed(), LISTED_MAX);
        let longest = encode_rules(&rules.catch_up_only());
        assert!(longest.len() <= crate::log_store::NOTE_VALUE_BYTES_MAX);
    }
}
