//! The node's own secret: the seed of its endpoint's Ed25519 key, kept in the data directory.

#[cfg(any(test, feature = "rocksdb"))]
mod file;

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
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

    /// Another secret, for one purpose and one context: nobody learns this one from it, and the
    /// same is derived each time. HKDF-SHA-256 (RFC 5869).
    pub(crate) fn derive(&self, purpose: &str, context: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut derived = Zeroizing::new([0; 32]);
        let expanded = Hkdf::<Sha256>::new(None, &self.0[..])
            .expand_multi_info(&[purpose.as_bytes(), &[0], context], &mut derived[..]);
        // Fails only for outputs above 8,160 bytes.
        debug_assert!(expanded.is_ok());
        derived
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecret([redacted])")
    }
}
