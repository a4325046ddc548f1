//! Messages that are signed and not kept, one a gossip message.
//!
//! ```text
//!   CBOR  [1, key, signature, µs, lamport, body]      the same in both lines
//!   signed  [1, key, µs, lamport, body]
//! ```
//!
//! `body` is one CBOR item, as the application's type encodes. In 0.7 it must be the canonical
//! encoding, since a stock node encodes it again to check the signature.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Stamp, signing};
use crate::{
    log_store::Author,
    sync::codec::{CborReader, CborWrite, WireFault},
};

/// The longest message, in bytes: what gossip carries.
pub(crate) const EPHEMERAL_BYTES_MAX: usize = 4096;

const VERSION: u64 = 1;

/// A message whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ephemeral {
    /// Who signed it.
    pub(crate) author: Author,
    /// When, as the author says. Makes each message another one.
    pub(crate) stamp: Stamp,
    /// One CBOR item.
    pub(crate) body: Bytes,
}

impl Ephemeral {
    /// Signs one CBOR item and gives the message to send.
    ///
    /// # Errors
    /// The body is not one item, or too long.
    pub(crate) fn sign(
        body: &[u8],
        stamp: Stamp,
        secret: &[u8; 32],
    ) -> Result<Bytes, EphemeralError> {
        let mut reader = CborReader::new(body);
        reader.item()?;
        reader.finish()?;
        let author = signing::public(secret);
        let signature = signing::sign(secret, &message(&author, None, stamp, body));
        let bytes = message(&author, Some(&signature), stamp, body);
        if bytes.len() > EPHEMERAL_BYTES_MAX {
            return Err(EphemeralError::TooLong(bytes.len()));
        }
        Ok(bytes.freeze())
    }

    /// Checks a message that was received.
    ///
    /// # Errors
    /// It is none, or its author did not sign it.
    pub(crate) fn open(bytes: &Bytes) -> Result<Self, EphemeralError> {
        if bytes.len() > EPHEMERAL_BYTES_MAX {
            return Err(EphemeralError::TooLong(bytes.len()));
        }
        let mut reader = CborReader::new(bytes);
        reader.array_of(6)?;
        let version = reader.uint()?;
        if version != VERSION {
            return Err(EphemeralError::Version(version));
        }
        let author = reader.bytes_of()?;
        let signature = reader.bytes_of()?;
        let stamp = Stamp {
            micros: reader.uint()?,
            lamport: reader.uint()?,
        };
        let start = reader.position();
        let body = reader.item()?;
        reader.finish()?;
        if !signing::verify(&author, &message(&author, None, stamp, body), &signature) {
            return Err(EphemeralError::Signature);
        }
        Ok(Self {
            author: Author::from_bytes(author),
            stamp,
            body: bytes.slice(start..),
        })
    }
}

fn message(author: &[u8; 32], signature: Option<&[u8; 64]>, stamp: Stamp, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(body.len() + 160);
    bytes.array(if signature.is_some() { 6 } else { 5 });
    bytes.uint(VERSION);
    CborWrite::bytes(&mut bytes, author);
    if let Some(signature) = signature {
        CborWrite::bytes(&mut bytes, signature);
    }
    bytes.uint(stamp.micros);
    bytes.uint(stamp.lamport);
    bytes.put_slice(body);
    bytes
}

/// Why a message is not sent, or not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum EphemeralError {
    /// Longer than gossip carries.
    #[error("a message of {0} bytes, and at most {EPHEMERAL_BYTES_MAX} are carried")]
    TooLong(usize),
    /// Of a version that is not known here.
    #[error("a message of version {0}, and only {VERSION} is known")]
    Version(u64),
    /// Its author did not sign it.
    #[error("the message is not signed by its author")]
    Signature,
    /// No message at all.
    #[error(transparent)]
    Encoding(#[from] WireFault),
}
