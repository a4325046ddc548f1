//! How long peers and members are waited for.

use std::time::Duration;

/// Deadlines of a door. Tests have less time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a stranger to say what it wants.
    pub(super) knock: Duration,
    /// For the topic handshake, and between two pieces of what a peer says that it holds.
    pub(super) handshake: Duration,
    /// For a peer to say what it holds, however it trickles.
    pub(super) haves: Duration,
    /// An exchange in which nothing moves for this long has failed.
    pub(super) standstill: Duration,
    /// For the other side to finish after `Close`.
    pub(super) closing: Duration,
    /// Between two words of a door that serves somebody.
    pub(super) beat: Duration,
    /// A door that was silent for this long serves nobody: three beats.
    pub(super) silence: Duration,
    /// Tries in a row without an answer, an hour's, after which a peer is no longer looked for.
    pub(super) tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            knock: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            haves: Duration::from_secs(60),
            standstill: Duration::from_secs(30),
            closing: Duration::from_secs(10),
            beat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            tries: 64,
        }
    }
}
