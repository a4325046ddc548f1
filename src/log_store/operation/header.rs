//! What the headers of both lines say, and the part that they write alike.
//!
//! ```text
//! 0.6  [version, author, signature, size, hash?, time, sequence, backlink?, {extensions}]
//! 0.7  [version, author, signature, size, hash?,       sequence, backlink?, [extensions]]
//! ```
//!
//! The hash is there exactly where the size is not 0, the backlink exactly where the sequence is
//! not 0. Up to the signature all is of fixed length, so the signed bytes, the list without the
//! signature, are cut out of the header instead of being encoded again.

use std::ops::Range;

use super::{
    cbor::{Kind, Reader, Writer},
    header_v06, header_v07,
    names::{Author, Line, LogId, OperationId},
    refused::{Field, Refused},
};

/// Where the signature with its head lies, in headers of both lines: after the head of the list,
/// the version, and the author with two bytes of head.
const SIGNATURE_ITEM: Range<usize> = 1 + 1 + 34..1 + 1 + 34 + 66;
const SIGNATURE: Range<usize> = SIGNATURE_ITEM.start + 2..SIGNATURE_ITEM.end;

/// The only operation version.
const VERSION: u64 = 1;
/// The only version of the extensions, in both lines.
pub(super) const EXTENSIONS_VERSION: u64 = 1;

/// What a header says, apart from its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) author: Author,
    pub(super) payload_size: u64,
    pub(super) payload_hash: Option<[u8; 32]>,
    pub(super) timestamp_micros: u64,
    pub(super) seq: u32,
    pub(super) backlink: Option<OperationId>,
    pub(super) log_id: LogId,
    pub(super) prune: bool,
}

impl Header {
    /// Reads the one canonical form.
    pub(super) fn decode(line: Line, bytes: &[u8]) -> Result<Self, Refused> {
        match line {
            Line::V06 => header_v06::decode(bytes),
            Line::V07 => header_v07::decode(bytes),
        }
    }

    /// With a signature the header, without it what is signed.
    pub(super) fn encode(&self, line: Line, signature: Option<&[u8; 64]>) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(ENCODED_BYTES));
        match line {
            Line::V06 => header_v06::encode(self, signature, &mut writer),
            Line::V07 => header_v07::encode(self, signature, &mut writer),
        }
        writer.0
    }

    /// How many fields the header has with a signature, where its line always has `fixed`.
    pub(super) fn field_count(&self, fixed: u64) -> u64 {
        fixed + u64::from(self.payload_hash.is_some()) + u64::from(self.backlink.is_some())
    }

    /// The fields up to the payload's, which both lines write alike.
    pub(super) fn encode_start(&self, signature: Option<&[u8; 64]>, writer: &mut Writer) {
        writer.unsigned(VERSION);
        writer.bytes(self.author.as_bytes());
        if let Some(signature) = signature {
            writer.bytes(signature);
        }
        writer.unsigned(self.payload_size);
        if let Some(hash) = &self.payload_hash {
            writer.bytes(hash);
        }
    }

    /// Sequence and backlink, which both lines write alike.
    pub(super) fn encode_place(&self, writer: &mut Writer) {
        writer.unsigned(u64::from(self.seq));
        if let Some(backlink) = &self.backlink {
            writer.bytes(backlink.as_bytes());
        }
    }
}

/// Headers without previous operations or unknown extensions fit.
const ENCODED_BYTES: usize = 272;

/// The signature of a header that was decoded.
pub(super) fn signature(header: &[u8]) -> Option<[u8; 64]> {
    header.get(SIGNATURE)?.try_into().ok()
}

/// What was signed, of a header that was decoded: the list without the signature.
pub(super) fn signed(header: &[u8]) -> Option<Vec<u8>> {
    let mut signed = Vec::with_capacity(header.len() - SIGNATURE_ITEM.len());
    signed.push(header.first()? - 1); // one field fewer; there are at most nine
    signed.extend_from_slice(header.get(1..SIGNATURE_ITEM.start)?);
    signed.extend_from_slice(header.get(SIGNATURE_ITEM.end..)?);
    Some(signed)
}

/// What [`Header::encode_start`] writes: author, payload size and payload hash.
pub(super) fn decode_start(
    reader: &mut Reader<'_>,
) -> Result<(Author, u64, Option<[u8; 32]>), Refused> {
    let version = reader.unsigned(Field::Version)?;
    if version != VERSION {
        return Err(Refused::VersionUnknown { found: version });
    }
    let author = Author::from_bytes(reader.bytes(Field::Author)?);
    let _: [u8; 64] = reader.bytes(Field::Signature)?;
    let size = reader.unsigned(Field::PayloadSize)?;
    let hash = match (size, reader.peek()) {
        (0, Some(Kind::Bytes)) => return Err(Refused::PayloadSizeMissing),
        (0, _) => None,
        (_, Some(Kind::Bytes) | None) => Some(reader.bytes(Field::PayloadHash)?),
        _ => return Err(Refused::PayloadHashMissing),
    };
    if size > super::BODY_BYTES_MAX {
        return Err(Refused::PayloadTooLarge { bytes: size });
    }
    Ok((author, size, hash))
}

/// What [`Header::encode_place`] writes: sequence and backlink.
pub(super) fn decode_place(reader: &mut Reader<'_>) -> Result<(u32, Option<OperationId>), Refused> {
    let found = reader.unsigned(Field::Sequence)?;
    let seq = u32::try_from(found).map_err(|_| Refused::SequenceTooHigh { found })?;
    let backlink = match (seq, reader.peek()) {
        (0, Some(Kind::Bytes)) => return Err(Refused::BacklinkUnexpected),
        (0, _) => None,
        (_, Some(Kind::Bytes) | None) => {
            Some(OperationId::from_bytes(reader.bytes(Field::Backlink)?))
        }
        _ => return Err(Refused::BacklinkMissing),
    };
    Ok((seq, backlink))
}

pub(super) fn check_extensions_version(reader: &mut Reader<'_>) -> Result<(), Refused> {
    match reader.unsigned(Field::ExtensionsVersion)? {
        EXTENSIONS_VERSION => Ok(()),
        found => Err(Refused::ExtensionsVersionUnknown { found }),
    }
}

/// The last check of a header: nothing is missing, nothing follows.
pub(super) fn check_end(reader: &Reader<'_>, found: u64, wanted: u64) -> Result<(), Refused> {
    if found != wanted {
        return Err(Refused::FieldCount { found, wanted });
    }
    reader.end()
}
