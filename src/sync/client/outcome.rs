//! Why a member does not serve, and what became of a pushed operation, in the client's words.

use crate::log_store::{ChainRefused, LogRefused, Outcome, Refusal};

/// An enum whose variants have frozen numbers on the wire; a number that is not known is `Other`.
macro_rules! coded {
    ($name:ident { $($variant:ident = $code:literal),* $(,)? }) => {
        impl $name {
            /// Its number on the wire. Frozen.
            pub(crate) fn code(self) -> u8 {
                match self {
                    Self::Other => 0,
                    $(Self::$variant => $code,)*
                }
            }

            pub(crate) fn of_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }
    };
}

/// Why a member does not serve a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The topic is not open there, or not for this client: the two are not told apart.
    #[error("the topic is not served")]
    UnknownTopic,
    /// The topic is of the other line.
    #[error("the topic is of the other line")]
    OtherLine,
    /// The member reaches no quorum at the moment: ask another.
    #[error("the member reaches no quorum")]
    NoQuorum,
    /// Too many sessions at once.
    #[error("over quota")]
    OverQuota,
    /// What was sent is not what the protocol allows.
    #[error("the request breaks the protocol")]
    Malformed,
    /// Nothing came for too long.
    #[error("nothing was heard for too long")]
    Silent,
    /// The topic, or the request, has more logs than one session can speak of.
    #[error("too many logs for one session")]
    TooManyLogs,
    /// The member stops, or its disk fails: ask another.
    #[error("the member stops")]
    Stopping,
    /// The topic is for those who were let in. This client's wish is noted: it is served once a
    /// member approves it.
    #[error("access was asked for, and nobody has decided yet")]
    NotYet,
    /// A reason that this version does not know; the text says more.
    #[error("refused")]
    Other,
}

coded!(Denied {
    UnknownTopic = 1,
    OtherLine = 2,
    NoQuorum = 3,
    OverQuota = 4,
    Malformed = 5,
    Silent = 6,
    TooManyLogs = 7,
    Stopping = 8,
    NotYet = 9,
});

/// What became of one pushed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is in the group's store now, on a quorum.
    Appended {
        /// Its number in the topic's commit order.
        number: u64,
    },
    /// It was there already, on a quorum: pushed by another, or by this client, whose answer was
    /// lost with a member.
    Held {
        /// Its number in the topic's commit order.
        number: u64,
    },
    /// It was not taken, and the push has gone on with the next. [`PushRefused::rule`] says what to
    /// do: most rules mean that this operation will never be taken as it is, so let it go, and what
    /// its author signed on top of it.
    Refused(PushRefused),
}

/// Why a pushed operation was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PushRefused {
    /// The rule that it breaks.
    pub rule: PushRule,
    /// The member's words, with what to do about it.
    pub text: String,
}

/// The rule that a pushed operation breaks, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PushRule {
    /// A rule of its line: form, limits, signature, body. Never taken: the program that made it has
    /// a fault, or it was changed on its way.
    Invalid,
    /// Its log id is not the topic's. Push it into its own topic.
    OtherLog,
    /// The author's log was taken out of the topic. Taken again once a member puts it back.
    Dissociated,
    /// Operations before it are missing. Push those first, then this one again.
    Gap,
    /// It continues or replaces another operation than the log's own: its author has signed two for
    /// one place. Never taken: pull the log, and sign anew on its end.
    Fork,
    /// Its place is pruned. Never taken, and nobody lacks it.
    Pruned,
    /// The log has reached the last sequence number. Never taken: begin a log of another author.
    LogFull,
    /// The topic is not open. Taken once a member has opened it.
    Topic,
    /// It is larger than one command of the group may be. Taken once the group allows more; or sign
    /// it anew with a smaller body.
    TooLarge,
    /// The topic has as many authors as one may, and this one is none of them.
    TooManyAuthors,
    /// A rule that this version does not know; the text says more.
    Other,
}

coded!(PushRule {
    Invalid = 1,
    OtherLog = 2,
    Dissociated = 3,
    Gap = 4,
    Fork = 5,
    Pruned = 6,
    LogFull = 7,
    Topic = 8,
    TooLarge = 9,
    TooManyAuthors = 10,
});

impl From<Refusal> for PushRefused {
    fn from(refusal: Refusal) -> Self {
        let rule = match &refusal {
            Refusal::Invalid(_) | Refusal::Chain(ChainRefused::Malformed) => PushRule::Invalid,
            Refusal::Chain(ChainRefused::OtherLog) | Refusal::Topic(LogRefused::OtherLog) => {
                PushRule::OtherLog
            }
            Refusal::Chain(ChainRefused::Dissociated) => PushRule::Dissociated,
            Refusal::Chain(ChainRefused::Gap { .. }) => PushRule::Gap,
            Refusal::Chain(ChainRefused::Backlink { .. } | ChainRefused::Fork { .. }) => {
                PushRule::Fork
            }
            Refusal::Chain(ChainRefused::Pruned { .. }) => PushRule::Pruned,
            Refusal::Chain(ChainRefused::LogFull) => PushRule::LogFull,
            Refusal::Chain(ChainRefused::TooManyAuthors)
            | Refusal::Topic(LogRefused::TooManyAuthors) => PushRule::TooManyAuthors,
            Refusal::Topic(_) => PushRule::Topic,
            Refusal::TooLarge { .. } => PushRule::TooLarge,
        };
        Self {
            rule,
            text: refusal.to_string(),
        }
    }
}

impl From<Outcome> for PushOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Appended { number } => Self::Appended { number },
            Outcome::Held { number } => Self::Held { number },
            Outcome::Refused(refusal) => Self::Refused(refusal.into()),
        }
    }
}
