//! The first frame of a stream on a bonded link: what the stream is for, and of which bond.
//!
//! ```text
//!   kind   bond id        0x10 vote lane   0x11 forward lane   0x12 append   0x13 snapshot
//!   1      16             a handshake opens with its own hello frame, 0x01
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::{BondId, Lane, StreamKind};

/// The control stream goes before everything else.
pub(super) const PRIORITY_CONTROL: i32 = 4;

/// What a stream of a bond is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Lane(Lane),
    Stream(StreamKind),
}

impl Opening {
    const ALL: [Self; 4] = [
        Self::Lane(Lane::Vote),
        Self::Lane(Lane::Forward),
        Self::Stream(StreamKind::Append),
        Self::Stream(StreamKind::Snapshot),
    ];

    pub(super) const fn of(kind: StreamKind) -> Self {
        Self::Stream(kind)
    }

    const fn code(self) -> u8 {
        match self {
            Self::Lane(Lane::Vote) => 0x10,
            Self::Lane(Lane::Forward) => 0x11,
            Self::Stream(StreamKind::Append) => 0x12,
            Self::Stream(StreamKind::Snapshot) => 0x13,
        }
    }

    /// Heartbeats and votes before appends before forwarded commands before snapshots. Both ends
    /// of a stream set it for what they send.
    pub(crate) const fn priority(self) -> i32 {
        match self {
            Self::Lane(Lane::Vote) => 3,
            Self::Stream(StreamKind::Append) => 2,
            Self::Lane(Lane::Forward) => 1,
            Self::Stream(StreamKind::Snapshot) => 0,
        }
    }

    pub(super) fn encode(self, bond: BondId) -> Bytes {
        let mut frame = BytesMut::with_capacity(17);
        frame.put_u8(self.code());
        frame.put_slice(bond.as_bytes());
        frame.freeze()
    }

    pub(crate) fn decode(frame: &[u8]) -> Option<(Self, BondId)> {
        let (code, bond) = frame.split_first()?;
        let opening = Self::ALL
            .into_iter()
            .find(|opening| opening.code() == *code)?;
        Some((opening, BondId::from_bytes(bond.try_into().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_decode_as_they_were_encoded() {
        let bond = BondId::from_bytes([7; 16]);
        for opening in Opening::ALL {
            assert_eq!(
                Opening::decode(&opening.encode(bond)),
                Some((opening, bond))
            );
        }
        assert_eq!(Opening::decode(&[0x10; 18]), None);
        assert_eq!(Opening::decode(&[0x10; 16]), None);
        assert_eq!(Opening::decode(&[0x01; 17]), None);
        assert_eq!(Opening::decode(&[]), None);
    }
}
