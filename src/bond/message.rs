//! What two members say on a bond's control stream once both have proven the key.
//!
//! postcard, one message a frame. The order of the variants and of the fields is format: new ones
//! go to the end, and the golden bytes in the tests hold it.
//!
//! ```text
//! varint variant ‖ fields      integers of 16 bits and more are varints (LEB128), u8 one byte,
//!                              byte arrays bare, strings and sequences after their length,
//!                              Option as 0 or 1 ‖ value
//! ```
//!
//! **Limits**, checked before anything is handed on: [`MESSAGE_BYTES_MAX`] a message,
//! [`PEERS_MAX`] peers in an introduction, [`PeerAddr::ADDRS_MAX`] addresses and
//! [`PeerAddr::RELAY_BYTES_MAX`] of relay URL a peer, [`NAME_BYTES_MAX`] a machine's name. There
//! are no maps, no elements without bytes, and no trailing bytes, so what a message makes us
//! allocate is a small multiple of its length.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::identity::{BootId, Genesis, MemberId, PeerAddr};

/// The longest message, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The most other peers that an introduction names.
pub(crate) const PEERS_MAX: usize = 64;
/// The longest reason of a close, in bytes.
pub(crate) const CLOSE_BYTES_MAX: usize = 256;
/// The longest name of a machine, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 256;

// An introduction at every limit fits, so encoding fails for nobody who keeps the limits.
const _: () = {
    let addr = 32 + 2 + 20 * PeerAddr::ADDRS_MAX + 3 + PeerAddr::RELAY_BYTES_MAX;
    assert!(128 + NAME_BYTES_MAX + (1 + PEERS_MAX) * addr <= MESSAGE_BYTES_MAX);
};

/// One message of the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The first from each side: who we are in the group.
    Introduce(Introduce),
    /// The lower peer id's last word: both have accepted each other, the bond exists.
    Accept,
    /// The peer's introduction is not accepted, with the reason; the last message.
    Refuse(Refusal),
    /// Answer with `Pong` after a round trip through the Raft core.
    Ping {
        /// Counts up from 1 on this bond.
        seq: u64,
    },
    /// Answers the ping of this number.
    Pong {
        /// The ping's.
        seq: u64,
    },
    /// The sender can now be reached here; replaces what was known of it.
    PeerEntryUpdate(PeerAddr),
    /// The sender has bonded with this peer; who has no bond with it should dial.
    BondFormed(PeerAddr),
    /// The sender is about to stop; do not wait for its silence. Said back by whoever hears it.
    Departure,
    /// The higher peer id accepts the lower's introduction and leaves the decision to it.
    Agree {
        /// The link it holds with the lower one and trusts, this or another: what the connection
        /// exports under the link's label.
        link: Option<[u8; 16]>,
        /// The bond it holds in this group with the lower one.
        bond: Option<[u8; 16]>,
    },
    /// The lower peer id: there is a bond or a link already that both sides hold, or will in a
    /// moment; the last message.
    Redundant {
        /// Whether this whole link is one too many; otherwise only this stream is.
        link: bool,
    },
    /// The bond is over, for a reason that people can read; the last message.
    Close {
        /// At most [`CLOSE_BYTES_MAX`] bytes.
        reason: String,
    },
}

/// A node's introduction to a peer that has proven the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Introduce {
    /// Who the sender is in the group.
    pub(crate) member: Introduction,
    /// This start of the sender's process.
    pub(crate) boot: BootId,
    /// Where the sender can be reached.
    pub(crate) addr: PeerAddr,
    /// Others of the group that the sender knows, with or without a bond.
    pub(crate) peers: Vec<PeerAddr>,
}

/// Who a node is in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// The founding that its journal stems from; none before it has joined.
    pub(crate) genesis: Option<Genesis>,
    /// Its name in this group.
    pub(crate) member: MemberId,
    /// The version of what its commands, snapshots and Raft messages look like.
    pub(crate) format: u32,
    /// The name of its state machine.
    pub(crate) machine: String,
}

/// Why a peer that holds the key is not bonded with. Both sides show it to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// Neither side's group is founded yet.
    #[error("the group is not founded there yet; try again")]
    NotFounded,
    /// Two groups were founded with one key.
    #[error(
        "another group was founded with the same key: remove the data of one of the two, then \
         join the other"
    )]
    OtherGenesis,
    /// The group has removed this member for good.
    #[error("this member was removed from the group: leave it here too, then join as a new member")]
    RemovedMember,
    /// Two processes run with one member's data.
    #[error("another running node has the same member id: its data directory was copied")]
    ClonedMember,
    /// The formats differ: the older side must be updated.
    #[error("the peer's format is {theirs}, and {ours} the newest known here: update the older")]
    Newer {
        /// The refusing side's.
        ours: u32,
        /// The refused side's.
        theirs: u32,
    },
    /// The group is stopped on the refusing node.
    #[error("the group is stopped on that node")]
    Stopped,
}

impl Message {
    /// The frame to send. Encode once for any number of bonds: clones share the bytes.
    ///
    /// # Errors
    /// When the message is beyond a limit: the sender's fault, nothing is sent.
    pub(crate) fn encode(&self) -> Result<Bytes, MessageError> {
        if !self.is_within_limits() {
            return Err(MessageError::Limit);
        }
        let bytes = postcard::to_stdvec(self).map_err(|_| MessageError::Malformed)?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::Oversized);
        }
        Ok(bytes.into())
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// When it is not exactly one message within the limits: the peer's fault, end the bond.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, MessageError> {
        if frame.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::Oversized);
        }
        let (message, trailing) =
            postcard::take_from_bytes::<Self>(frame).map_err(|_| MessageError::Malformed)?;
        if !trailing.is_empty() {
            return Err(MessageError::Malformed);
        }
        if message.is_within_limits() {
            Ok(message)
        } else {
            Err(MessageError::Limit)
        }
    }

    fn is_within_limits(&self) -> bool {
        match self {
            Self::Introduce(Introduce {
                member,
                boot: _,
                addr,
                peers,
            }) => {
                member.machine.len() <= NAME_BYTES_MAX
                    && addr.is_within_limits()
                    && peers.len() <= PEERS_MAX
                    && peers.iter().all(PeerAddr::is_within_limits)
            }
            Self::PeerEntryUpdate(addr) | Self::BondFormed(addr) => addr.is_within_limits(),
            Self::Close { reason } => reason.len() <= CLOSE_BYTES_MAX,
            Self::Accept
            | Self::Agree { .. }
            | Self::Redundant { .. }
            | Self::Refuse(_)
            | Self::Ping { .. }
            | Self::Pong { .. }
            | Self::Departure => true,
        }
    }
}

/// The frame is no message of the control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// It does not decode, or bytes follow.
    #[error("a frame on the control stream is no message")]
    Malformed,
    /// It is longer than [`MESSAGE_BYTES_MAX`].
    #[error("a message on the control stream is longer than {MESSAGE_BYTES_MAX} bytes")]
    Oversized,
    /// It holds more peers, addresses or text than allowed.
    #[error("a message on the control stream holds more than is allowed")]
    Limit,
}
