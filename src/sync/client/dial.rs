//! The way to a member: one byte stream, whatever carries it.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{chain::BadRun, outcome::Denied, stream::StreamFault};
use crate::{identity::PeerId, log_store::Line, sync::MemberAddr};

/// What reaches members: QUIC by default, or whatever a program brings.
///
/// # Contract
/// - The stream goes to the member that was named, and to its server of this protocol.
/// - It is reliable and in order, and what is written waits while the other end does not read.
/// - Dropping both halves gives everything of it back.
pub trait Dial: Send + Sync + fmt::Debug + 'static {
    /// Opens a stream to a member, trying all of its addresses. Needs no deadline of its own.
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a>;
}

/// What [`Dial::dial`] runs as.
pub type DialFuture<'a> = Pin<Box<dyn Future<Output = Result<Dialled, DialError>> + Send + 'a>>;

/// A stream to one member.
pub struct Dialled {
    /// What the member sends.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What is sent to the member.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialled").finish_non_exhaustive()
    }
}

/// A member cannot be reached, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DialError(String);

impl DialError {
    /// For this reason.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// What went wrong with which member. Others are asked, and it again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("member {}: {fault}", member.short())]
pub struct MemberError {
    /// The member, by the name of its sync endpoint.
    pub member: PeerId,
    /// What went wrong.
    #[source]
    pub fault: MemberFault,
}

/// What went wrong with a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberFault {
    /// It was not reached.
    #[error("not reached: {0}")]
    Unreachable(DialError),
    /// The stream broke or ended.
    #[error("lost: {why}")]
    Lost {
        /// In words.
        why: String,
    },
    /// Nothing was heard of it, or less than 8 KiB a second.
    #[error("silent for {}s", after.as_secs_f32())]
    Silent {
        /// For how long.
        after: Duration,
    },
    /// It does not serve us.
    #[error("{why}: {text}")]
    Denied {
        /// Why.
        why: Denied,
        /// Its own words.
        text: String,
    },
    /// It sent bytes that are no message, or a message that has no place there.
    #[error("broke the protocol: {what}")]
    Protocol {
        /// In words.
        what: String,
    },
    /// Its topic is of another line than the ticket says.
    #[error("serves the topic on line {found}, the ticket says {wanted}")]
    OtherLine {
        /// What the ticket says.
        wanted: Line,
        /// What it says.
        found: Line,
    },
    /// It sent operations that break a rule. Nothing of them was delivered.
    #[error(transparent)]
    BadRun(BadRun),
}

impl MemberFault {
    pub(crate) fn protocol(what: impl fmt::Display) -> Self {
        Self::Protocol {
            what: what.to_string(),
        }
    }

    pub(crate) fn too_often() -> Self {
        Self::protocol("says too often that there is no news")
    }

    pub(crate) fn lost(why: impl fmt::Display) -> Self {
        Self::Lost {
            why: why.to_string(),
        }
    }
}

impl From<StreamFault> for MemberFault {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Broken(_) | StreamFault::CutOff => Self::lost(fault),
            StreamFault::Still { after } => Self::Silent { after },
            StreamFault::Wire(_) => Self::protocol(fault),
        }
    }
}
