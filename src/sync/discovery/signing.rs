//! Ed25519 as stock nodes use it: strict checks, over the bytes as they are.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// The public key of this secret.
pub(super) fn public(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

pub(super) fn sign(secret: &[u8; 32], bytes: &[u8]) -> [u8; 64] {
    SigningKey::from_bytes(secret).sign(bytes).to_bytes()
}

/// Whether the holder of the key signed these bytes. A key that is no point is nobody's.
pub(super) fn verify(public: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(public).is_ok_and(|key| {
        key.verify_strict(bytes, &Signature::from_bytes(signature))
            .is_ok()
    })
}
