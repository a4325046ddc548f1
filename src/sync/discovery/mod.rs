//! Which topics two peers have in common, without telling others, and where nodes are. No I/O.
//!
//! ```text
//!   Alice (opened the stream)                     Bob
//!     | -- salt A -------------------------------> |
//!     | <------- salt B, { hash(topic, 1) } ------ |   hash(topic, who) =
//!     | -- { hash(topic, 0) } -------------------> |     BLAKE3(topic ‖ salt A ‖ salt B ‖ who)
//!     | <------------------------------ nodes ---- |
//!     | -- nodes --------------------------------> |   Bob closes the connection
//! ```
//!
//! Both salts are random and used once, so a hash says nothing to whoever lacks the topic, and
//! nothing in another session; `who` keeps Bob from sending Alice's own hashes back to her. What
//! shows is how many topics a side has.

mod ephemeral;
#[cfg(test)]
mod fuzz;
mod info;
mod message;
mod signing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

pub(crate) use self::ephemeral::{EPHEMERAL_BYTES_MAX, Ephemeral, EphemeralError};
#[cfg(test)]
pub(crate) use self::info::InvalidInfo;
pub(crate) use self::info::{Address, Stamp, TransportInfo};
use self::message::{DiscoveryMessage, FRAME_MAX, Hashes, Nodes, Salt};
use super::{
    codec::{FrameFault, Frames},
    protocol::SyncError,
};
use crate::{
    identity::PeerId,
    log_store::{Line, Topic},
};

const ALICE: u8 = 0;
const BOB: u8 = 1;

/// What a side brings along.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// 32 random bytes, used once.
    pub(crate) salt: [u8; 32],
    /// For each topic that is synced the derived one; the topic itself only where it has an
    /// ephemeral stream.
    pub(crate) topics: BTreeSet<Topic>,
    /// Our own info always, else a stock node asks again at once, and others that were verified
    /// for this line. One that is invalid makes a stock node forget our topics.
    pub(crate) infos: BTreeMap<PeerId, TransportInfo>,
}

/// What a session found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The topics that both have.
    pub(crate) topics: BTreeSet<Topic>,
    /// Where nodes are, the remote among them. Not verified.
    pub(crate) infos: BTreeMap<PeerId, TransportInfo>,
    /// Infos that were left out, because they say more than is known here.
    pub(crate) unread: usize,
}

/// One side of a discovery session.
///
/// Give it what the stream brings, send what [`poll_transmit`](Self::poll_transmit) gives, until
/// it [`is_done`](Self::is_done) and gives nothing more. Then Bob closes the connection, and Alice
/// waits for that. An error ends it.
#[derive(Debug)]
pub(crate) struct Discovery {
    line: Line,
    local: Local,
    state: State,
    frames: Frames,
    output: BytesMut,
    found: Found,
}

/// Whom it is, and what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AliceBobsHashes,
    AliceNodes,
    BobSalt,
    BobHashes { theirs: Salt },
    BobNodes,
    Done,
}

impl Discovery {
    /// The side that opened the stream. Which line the other speaks must be known.
    pub(crate) fn alice(line: Line, local: Local) -> Self {
        let mut alice = Self::new(line, local, State::AliceBobsHashes);
        alice.send(&DiscoveryMessage::AliceSalt(alice.local.salt));
        alice
    }

    /// The side that the stream was opened to; its first byte
    /// [tells the line](super::codec::line_of_first_discovery_byte).
    pub(crate) fn bob(line: Line, local: Local) -> Self {
        Self::new(line, local, State::BobSalt)
    }

    fn new(line: Line, local: Local, state: State) -> Self {
        Self {
            line,
            local,
            state,
            frames: Frames::new(line, FRAME_MAX),
            output: BytesMut::new(),
            found: Found::default(),
        }
    }

    /// Bytes of the stream, as they came.
    ///
    /// # Errors
    /// The remote does not keep to the protocol.
    pub(crate) fn received(&mut self, bytes: Bytes) -> Result<(), DiscoveryError> {
        self.frames.push(bytes);
        while let Some(frame) = self.frames.next().map_err(FrameFault::from)? {
            self.message(DiscoveryMessage::decode(self.line, &frame)?)?;
        }
        if self.state == State::Done && self.frames.held() > 0 {
            return Err(DiscoveryError::OutOfOrder {
                got: "something behind the last message",
            });
        }
        Ok(())
    }

    /// The remote ended the stream.
    ///
    /// # Errors
    /// It was not done.
    pub(crate) fn received_end(&self) -> Result<(), DiscoveryError> {
        if self.state == State::Done {
            Ok(())
        } else {
            Err(DiscoveryError::EndedEarly)
        }
    }

    /// What to send, or `None` for now.
    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.output.is_empty()).then(|| self.output.split().freeze())
    }

    /// All was said, once everything of [`poll_transmit`](Self::poll_transmit) is sent.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What was found so far: all of it when it [`is_done`](Self::is_done).
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    fn message(&mut self, message: DiscoveryMessage) -> Result<(), DiscoveryError> {
        match (self.state, message) {
            (State::BobSalt, DiscoveryMessage::AliceSalt(theirs)) => {
                let hashes = self.hashes(&theirs, &self.local.salt, BOB);
                self.send(&DiscoveryMessage::BobSaltAndHashes(self.local.salt, hashes));
                self.state = State::BobHashes { theirs };
            }
            (State::AliceBobsHashes, DiscoveryMessage::BobSaltAndHashes(theirs, hashes)) => {
                self.found.topics = self.common(&hashes, &self.local.salt, &theirs, BOB);
                let ours = self.hashes(&self.local.salt, &theirs, ALICE);
                self.send(&DiscoveryMessage::AliceHashes(ours));
                self.state = State::AliceNodes;
            }
            (State::BobHashes { theirs }, DiscoveryMessage::AliceHashes(hashes)) => {
                self.found.topics = self.common(&hashes, &theirs, &self.local.salt, ALICE);
                self.send_nodes();
                self.state = State::BobNodes;
            }
            (State::AliceNodes, DiscoveryMessage::Nodes(nodes)) => {
                self.take(nodes);
                self.send_nodes();
                self.state = State::Done;
            }
            (State::BobNodes, DiscoveryMessage::Nodes(nodes)) => {
                self.take(nodes);
                self.state = State::Done;
            }
            (_, message) => {
                return Err(DiscoveryError::OutOfOrder {
                    got: message.name(),
                });
            }
        }
        Ok(())
    }

    fn hashes(&self, alice: &Salt, bob: &Salt, who: u8) -> Hashes {
        let topics = self.local.topics.iter();
        topics.map(|topic| hash(topic, alice, bob, who)).collect()
    }

    /// Which of our topics are among the remote's hashes.
    fn common(&self, hashes: &Hashes, alice: &Salt, bob: &Salt, who: u8) -> BTreeSet<Topic> {
        let topics = self.local.topics.iter().copied();
        topics
            .filter(|topic| hashes.contains(&hash(topic, alice, bob, who)))
            .collect()
    }

    fn take(&mut self, nodes: Nodes) {
        self.found.infos = nodes.infos;
        self.found.unread = nodes.unread;
    }

    fn send_nodes(&mut self) {
        let infos = std::mem::take(&mut self.local.infos);
        self.send(&DiscoveryMessage::Nodes(Nodes { infos, unread: 0 }));
    }

    fn send(&mut self, message: &DiscoveryMessage) {
        message.encode(self.line, &mut self.output);
    }
}

fn hash(topic: &Topic, alice: &Salt, bob: &Salt, who: u8) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(topic.as_bytes());
    hasher.update(alice).update(bob).update(&[who]);
    *hasher.finalize().as_bytes()
}

/// Why a discovery session failed. Always the remote's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DiscoveryError {
    /// A message that is not its turn.
    #[error("{got} out of order")]
    OutOfOrder {
        /// What came.
        got: &'static str,
    },
    /// The stream ended in the middle.
    #[error("the stream ended before discovery was done")]
    EndedEarly,
    /// No message at all.
    #[error(transparent)]
    Encoding(#[from] FrameFault),
}

#[cfg(test)]
impl DiscoveryError {
    /// Whose fault it is.
    pub(crate) fn fault(&self) -> super::protocol::Fault {
        super::protocol::Fault::Remote
    }
}

impl From<DiscoveryError> for SyncError {
    fn from(error: DiscoveryError) -> Self {
        match error {
            DiscoveryError::Encoding(it) => Self::encoding(it),
            it => Self::unexpected(it),
        }
    }
}
