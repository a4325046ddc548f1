//! The node's own secret: the seed of its endpoint's Ed25519 key, kept in the data directory.

#[cfg(any(test, feature = "rocksdb"))]
mod file;

use std::fmt;

use zeroize::Zeroizing;

/// The 32 bytes that make a node the peer it is.
///
/// # Invariants
/// - Wiped when dropped, never shown.
/// - On the disk it is readable by its owner alone from its first byte on, and whole or absent:
///   a crash leaves no half-written secret under its name.
#[derive(Clone)]
pub(crate) struct NodeSecret(Box<Zeroizing<[u8; 32]>>);

impl NodeSecret {
    /// A new one from the operating system's random numbers.
    pub(crate) fn generate() -> Self {
        let mut secret = Self(Box::new(Zeroizing::new([0; 32])));
        rand::fill(&mut secret.0[..]);
        secret
    }

    /// The secret itself.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecret([redacted])")
    }
}
