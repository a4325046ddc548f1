//! What a journal entry of commands holds, byte by byte. Frozen: it is on disk and on the wire.
//!
//! All numbers little-endian:
//!
//! ```text
//! open a session    version u8 = 1 | kind u8 = 0
//! commands          version u8 = 1 | kind u8 = 1 | session u64 | first_seq u64
//!                   | lowest_unanswered u64 | count u16 | count x ( length u32 | bytes )
//! ```
//!
//! A session is named by the journal index of the entry that opened it, so no name is ever used
//! twice and a late duplicate of anything cannot bring an expired session back.
//! (Ongaro, *Consensus: Bridging Theory and Practice*, section 6.3.)

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// How many commands one journal entry may hold.
pub(crate) const BATCH_COMMANDS_MAX: usize = 256;
/// Bytes of commands at which no further one is packed into the same entry.
pub(crate) const BATCH_BYTES_TARGET: usize = 512 * 1024;

const VERSION: u8 = 1;
const KIND_OPEN: u8 = 0;
const KIND_COMMANDS: u8 = 1;
const COMMANDS_HEADER: usize = 2 + 8 + 8 + 8 + 2;

/// A session's name: the journal index of the entry that opened it.
pub(crate) type SessionId = u64;

/// The content of one journal entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Opens a session named by this entry's index.
    Open,
    /// Applies the commands that the session has not applied yet.
    Commands {
        session: SessionId,
        /// The number of the first command in its session; the others follow by one.
        first_seq: u64,
        /// Answers to commands below this number have arrived and need not be kept.
        lowest_unanswered: u64,
        /// 1 to [`BATCH_COMMANDS_MAX`] encoded commands.
        commands: Vec<Bytes>,
    },
}

impl Batch {
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Open => Bytes::from_static(&[VERSION, KIND_OPEN]),
            Self::Commands {
                session,
                first_seq,
                lowest_unanswered,
                commands,
            } => {
                debug_assert!((1..=BATCH_COMMANDS_MAX).contains(&commands.len()));
                let bytes: usize = commands.iter().map(|it| 4 + it.len()).sum();
                let mut out = BytesMut::with_capacity(COMMANDS_HEADER + bytes);
                out.put_u8(VERSION);
                out.put_u8(KIND_COMMANDS);
                out.put_u64_le(*session);
                out.put_u64_le(*first_seq);
                out.put_u64_le(*lowest_unanswered);
                out.put_u16_le(u16::try_from(commands.len()).unwrap_or(u16::MAX));
                for command in commands {
                    out.put_u32_le(u32::try_from(command.len()).unwrap_or(u32::MAX));
                    out.put_slice(command);
                }
                out.freeze()
            }
        }
    }

    /// Reads an entry back; the commands share its memory.
    pub(crate) fn decode(bytes: &Bytes) -> io::Result<Self> {
        let mut rest = bytes.clone();
        if rest.len() < 2 {
            return Err(malformed("shorter than its header"));
        }
        let version = rest.get_u8();
        if version != VERSION {
            return Err(malformed("of a version this program does not know"));
        }
        match rest.get_u8() {
            KIND_OPEN if rest.is_empty() => Ok(Self::Open),
            KIND_OPEN => Err(malformed("followed by stray bytes")),
            KIND_COMMANDS => Self::decode_commands(rest),
            _ => Err(malformed("of a kind this program does not know")),
        }
    }

    fn decode_commands(mut rest: Bytes) -> io::Result<Self> {
        if rest.len() < COMMANDS_HEADER - 2 {
            return Err(malformed("shorter than its header"));
        }
        let session = rest.get_u64_le();
        let first_seq = rest.get_u64_le();
        let lowest_unanswered = rest.get_u64_le();
        let count = usize::from(rest.get_u16_le());
        if !(1..=BATCH_COMMANDS_MAX).contains(&count) {
            return Err(malformed("with a count of commands outside 1 to 256"));
        }
        if lowest_unanswered > first_seq || first_seq.checked_add(count as u64).is_none() {
            return Err(malformed("with impossible sequence numbers"));
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            if rest.len() < 4 {
                return Err(malformed("shorter than its count says"));
            }
            let length = rest.get_u32_le() as usize;
            if rest.len() < length {
                return Err(malformed("shorter than its lengths say"));
            }
            commands.push(rest.split_to(length));
        }
        if !rest.is_empty() {
            return Err(malformed("followed by stray bytes"));
        }
        Ok(Self::Commands {
            session,
            first_seq,
            lowest_unanswered,
            commands,
        })
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a journal entry of commands is {what}"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_frozen() {
        let batch = Batch::Commands {
            session: 7,
            first_seq: 300,
            lowest_unanswered: 299,
            commands: vec![Bytes::from_static(b"ab"), Bytes::new()],
        };
        let golden = "01010700000000000000\
                      2c01000000000000\
                      2b01000000000000\
                      0200\
                      020000006162\
                      00000000";
        assert_eq!(data_encoding::HEXLOWER.encode(&batch.encode()), golden);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&Batch::Open.encode()),
            "0100"
        );
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            session: u64,
            first_seq in 0..u64::MAX / 2,
            answered in 0_u64..1_000,
            commands in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..=256),
        ) {
            let batch = Batch::Commands {
                session,
                first_seq,
                lowest_unanswered: first_seq.saturating_sub(answered),
                commands: commands.into_iter().map(Bytes::from).collect(),
            };
            prop_assert_eq!(Batch::decode(&batch.encode()).expect("decodes"), batch);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = Batch::decode(&Bytes::from(bytes.clone())) {
                prop_assert_eq!(batch.encode(), Bytes::from(bytes));
            }
        }

        #[test]
        fn a_cut_entry_is_refused(cut in 0_usize..40) {
            let batch = Batch::Commands {
                session: 1, first_seq: 2, lowest_unanswered: 1,
                commands: vec![Bytes::from_static(b"0123456789")],
            };
            let whole = batch.encode();
            if cut < whole.len() {
                prop_assert!(Batch::decode(&whole.slice(..cut)).is_err());
            }
        }
    }
}
