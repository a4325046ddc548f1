//! Why an operation is not taken: one variant a rule.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    BODY_BYTES_MAX, HEADER_BYTES_MAX,
    names::{Line, OperationId},
};

/// The rule that an operation breaks. Always the fault of whoever made or changed its bytes;
/// trying again with the same bytes never helps.
///
/// A standard node ends a session over one header that it cannot read, and asks for it again, so
/// one such operation would block its topic for all of them: nothing is taken here that they
/// refuse.
///
/// Its serialized form is frozen: new variants and fields go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The header is longer than [`HEADER_BYTES_MAX`].
    #[error(
        "its header of {bytes} bytes is over the limit of {HEADER_BYTES_MAX}: shorten what \
         its extensions carry"
    )]
    HeaderTooLong {
        /// How long it is.
        bytes: u64,
    },
    /// The header is one of the other line.
    #[error("it is of line {found}: a topic takes operations of its own line only")]
    OtherLine {
        /// The line that it is of.
        found: Line,
    },
    /// The header ends early, or is no CBOR.
    #[error(
        "its header cannot be read from byte {at} on: send the bytes as the author signed them"
    )]
    Malformed {
        /// Where reading stopped.
        at: u32,
    },
    /// The header is CBOR, but not in the one form that its line writes.
    #[error(
        "its header is not in canonical form at byte {at}: encode integers and lengths in \
         the fewest bytes, in definite lengths, map keys in order"
    )]
    NotCanonical {
        /// Where it differs.
        at: u32,
    },
    /// Something follows the header.
    #[error("{bytes} bytes follow its header: send the header alone")]
    TrailingBytes {
        /// How many.
        bytes: u64,
    },
    /// A string, list or map is longer than a standard node reads.
    #[error(
        "its header has an item of length {length} at byte {at}, over the limit of 512: split it"
    )]
    ItemTooLong {
        /// The length that it names.
        length: u64,
        /// Where it starts.
        at: u32,
    },
    /// Lists, maps and tags are nested deeper than a standard node reads.
    #[error("its header is nested deeper than 64 at byte {at}: make its extensions flatter")]
    NestedTooDeep {
        /// Where the 65th level starts.
        at: u32,
    },
    /// A field is of another type or size than its place asks for, or is missing.
    #[error(
        "its header has no valid {field} in its place: check the order of the fields and their \
         types"
    )]
    FieldInvalid {
        /// Which one.
        field: Field,
    },
    /// The number of fields does not fit what they say.
    #[error(
        "its header has {found} fields, not {wanted}: leave out payload hash and backlink \
         exactly where payload size and sequence are 0"
    )]
    FieldCount {
        /// How many there are.
        found: u64,
        /// How many there would have to be.
        wanted: u64,
    },
    /// The operation is of another version than 1.
    #[error("its operation version {found} is unknown: only 1 is")]
    VersionUnknown {
        /// What the header says.
        found: u64,
    },
    /// The extensions are of another version than 1.
    #[error("its extensions version {found} is unknown: only 1 is")]
    ExtensionsVersionUnknown {
        /// What the header says.
        found: u64,
    },
    /// The extensions are of another kind than 0 (basic) or 1 (causal). Line 0.7 only.
    #[error("its extensions variant {found} is unknown: only 0 (basic) and 1 (causal) are")]
    ExtensionsVariantUnknown {
        /// What the header says.
        found: u64,
    },
    /// The payload size is over 0 and no payload hash follows.
    #[error("it names a payload size but no payload hash: they go together")]
    PayloadHashMissing,
    /// The payload size is 0 and a payload hash follows.
    #[error("it names a payload hash but no payload size: they go together")]
    PayloadSizeMissing,
    /// The payload is larger than [`BODY_BYTES_MAX`], whether it came along or not.
    #[error("its payload of {bytes} bytes is over the limit of {BODY_BYTES_MAX}: split it")]
    PayloadTooLarge {
        /// The payload size that the header names.
        bytes: u64,
    },
    /// The sequence is over 0 and no backlink follows.
    #[error("its sequence is over 0 but it has no backlink: name the operation before it")]
    BacklinkMissing,
    /// The sequence is 0 and a backlink follows.
    #[error("its sequence is 0 but it has a backlink: the first operation of a log has none")]
    BacklinkUnexpected,
    /// The sequence is over `u32::MAX`, the last that both lines can say.
    #[error("its sequence {found} is over {}: start another log", u32::MAX)]
    SequenceTooHigh {
        /// What the header says.
        found: u64,
    },
    /// A body came along, empty or not, and the header names none.
    #[error("it came with a body but its header names none: send it without")]
    BodyUnexpected,
    /// The body is not as long as the header says.
    #[error("its body has {found} bytes, its header says {wanted}: send the body that was signed")]
    BodySize {
        /// How long the body is.
        found: u64,
        /// What the header says.
        wanted: u64,
    },
    /// The body is not the one that the header names.
    #[error("its body does not hash to what its header says: send the body that was signed")]
    BodyHash,
    /// The author is 32 bytes, but no Ed25519 public key.
    #[error("its author is no Ed25519 public key")]
    AuthorInvalid,
    /// The signature is not the author's over this header.
    #[error("its signature does not verify: {id} was changed or is not by its author")]
    SignatureInvalid {
        /// The operation.
        id: OperationId,
    },
    /// The header speaks of a body that did not come with it. Whoever passes such an operation on
    /// could otherwise have it appended without its body, before its author has it appended whole.
    #[error("its body of {size} bytes is missing: append the operation with it")]
    BodyMissing {
        /// How many bytes the header says.
        size: u64,
    },
}

/// A field of an operation's header, as [`Refused`] names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Field {
    /// The header itself: a list.
    Header,
    /// The operation version.
    Version,
    /// The author's public key.
    Author,
    /// The signature.
    Signature,
    /// How many bytes the body has.
    PayloadSize,
    /// The BLAKE3 hash of the body.
    PayloadHash,
    /// The author's time, in microseconds since 1970.
    Timestamp,
    /// The place in the log.
    Sequence,
    /// The id of the operation before.
    Backlink,
    /// The extensions: a map on line 0.6, a list on line 0.7.
    Extensions,
    /// The version of the extensions.
    ExtensionsVersion,
    /// The kind of the extensions, line 0.7 only.
    ExtensionsVariant,
    /// The log id.
    LogId,
    /// Whether everything below may go.
    PruneFlag,
    /// The operations that a causal one comes after, line 0.7 only.
    Previous,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "list of fields",
            Self::Version => "version",
            Self::Author => "author",
            Self::Signature => "signature",
            Self::PayloadSize => "payload size",
            Self::PayloadHash => "payload hash",
            Self::Timestamp => "timestamp",
            Self::Sequence => "sequence",
            Self::Backlink => "backlink",
            Self::Extensions => "extensions",
            Self::ExtensionsVersion => "extensions version",
            Self::ExtensionsVariant => "extensions variant",
            Self::LogId => "log id",
            Self::PruneFlag => "prune flag",
            Self::Previous => "list of previous operations",
        })
    }
}
