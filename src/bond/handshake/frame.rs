//! The handshake's frames as bytes: fixed offsets, drawn in the module above.

use std::ops::RangeInclusive;

use super::{Channel, Credentials, FRAME_MAX, HandshakeError, REFUSAL};

pub(super) const KIND_REFUSAL: u8 = 0;
pub(super) const KIND_INITIATOR_HELLO: u8 = 1;
pub(super) const KIND_ACCEPTOR_HELLO: u8 = 2;
pub(super) const KIND_ACCEPTOR_PROOF: u8 = 3;
pub(super) const KIND_INITIATOR_PROOF: u8 = 4;

pub(super) const HELLO_BYTES: usize = 1 + 2 + 2 + 4 + 32 + 16;
pub(super) const PROOF_BYTES: usize = 1 + 32;
const _: () = assert!(HELLO_BYTES <= FRAME_MAX && PROOF_BYTES <= FRAME_MAX);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub(super) min: u16,
    pub(super) max: u16,
    pub(super) epoch: u32,
    pub(super) nonce: [u8; 32],
    pub(super) hint: [u8; 16],
}

impl Hello {
    pub(super) fn new(
        versions: RangeInclusive<u16>,
        channel: &Channel,
        credentials: &Credentials,
        nonce: [u8; 32],
    ) -> Self {
        let (min, max) = versions.into_inner();
        let hint = credentials.hint(&channel.ekm, &channel.local);
        Self {
            min,
            max,
            epoch: credentials.0.epoch,
            nonce,
            hint,
        }
    }

    pub(super) fn encode(&self, kind: u8) -> [u8; HELLO_BYTES] {
        let mut frame = [0; HELLO_BYTES];
        frame[0] = kind;
        frame[1..3].copy_from_slice(&self.min.to_be_bytes());
        frame[3..5].copy_from_slice(&self.max.to_be_bytes());
        frame[5..9].copy_from_slice(&self.epoch.to_be_bytes());
        frame[9..41].copy_from_slice(&self.nonce);
        frame[41..57].copy_from_slice(&self.hint);
        frame
    }

    /// Every byte of the frame ends up in a field, so encoding again gives the same bytes.
    pub(super) fn decode(kind: u8, frame: &[u8]) -> Result<Self, HandshakeError> {
        let fields = frame_of(kind, HELLO_BYTES, frame)?;
        let hello = Self {
            min: u16::from_be_bytes(part(fields, 0)),
            max: u16::from_be_bytes(part(fields, 2)),
            epoch: u32::from_be_bytes(part(fields, 4)),
            nonce: part(fields, 8),
            hint: part(fields, 40),
        };
        if hello.min > hello.max {
            return Err(HandshakeError::Malformed);
        }
        Ok(hello)
    }
}

/// The frame's bytes after its kind, if it has this kind and length.
pub(super) fn frame_of(kind: u8, length: usize, frame: &[u8]) -> Result<&[u8], HandshakeError> {
    match frame.split_first() {
        _ if frame == REFUSAL => Err(HandshakeError::Refused),
        _ if frame.len() > FRAME_MAX => Err(HandshakeError::Oversized),
        Some((found, fields)) if *found == kind && frame.len() == length => Ok(fields),
        _ => Err(HandshakeError::Malformed),
    }
}

fn part<const N: usize>(fields: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&fields[at..at + N]);
    part
}
