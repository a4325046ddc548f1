//! Headers of line 0.7: strict canonical CBOR, as p2panda-core 0.7.1 reads and writes it.
//!
//! The extensions are a list: version, variant, log id, timestamp, and then for the variant
//! 0 (basic) the prune flag, for 1 (causal) the list of previous operations. Whatever follows is
//! for later versions: passed over here as there, if it is canonical and within the limits.
//!
//! A standard node also passes over tags, here refused, before the header and its known fields.
//! Its store writes a header without the tags that are not in the extensions: the signature does
//! not fit any more, and the node cannot read its own log again.

use super::{
    cbor::{DEPTH_MAX, ITEM_LENGTH_MAX, Reader, Writer},
    header::{
        EXTENSIONS_VERSION, Header, check_end, check_extensions_version, decode_place, decode_start,
    },
    names::LogId,
    refused::{Field, Refused},
};

/// Version, author, signature, payload size, sequence and extensions.
const FIELDS: u64 = 6;
/// Version, variant, log id, timestamp, and prune flag or previous operations.
const EXTENSIONS: u64 = 5;
const BASIC: u64 = 0;
const CAUSAL: u64 = 1;

pub(super) fn decode(bytes: &[u8]) -> Result<Header, Refused> {
    let mut reader = Reader::new(bytes);
    let found = reader.list(Field::Header)?;
    let (author, payload_size, payload_hash) = decode_start(&mut reader)?;
    let (seq, backlink) = decode_place(&mut reader)?;
    let extensions = decode_extensions(&mut reader)?;
    let header = Header {
        author,
        payload_size,
        payload_hash,
        timestamp_micros: extensions.timestamp_micros,
        seq,
        backlink,
        log_id: extensions.log_id,
        prune: extensions.prune,
    };
    check_end(&reader, found, header.field_count(FIELDS))?;
    Ok(header)
}

struct Extensions {
    log_id: LogId,
    timestamp_micros: u64,
    prune: bool,
}

fn decode_extensions(reader: &mut Reader<'_>) -> Result<Extensions, Refused> {
    let count = bounded_list(reader, Field::Extensions)?;
    if count < EXTENSIONS {
        return Err(Refused::FieldInvalid {
            field: Field::Extensions,
        });
    }
    check_extensions_version(reader)?;
    let variant = reader.unsigned(Field::ExtensionsVariant)?;
    if !matches!(variant, BASIC | CAUSAL) {
        return Err(Refused::ExtensionsVariantUnknown { found: variant });
    }
    let log_id = LogId::from_bytes(reader.bytes(Field::LogId)?);
    let timestamp_micros = reader.unsigned(Field::Timestamp)?;
    let prune = if variant == BASIC {
        reader.bool(Field::PruneFlag)?
    } else {
        for _ in 0..bounded_list(reader, Field::Previous)? {
            let _: [u8; 32] = reader.bytes(Field::Previous)?;
        }
        false
    };
    for _ in EXTENSIONS..count {
        // Two levels are spent: the header and the extensions.
        reader.skip(DEPTH_MAX - 2)?;
    }
    Ok(Extensions {
        log_id,
        timestamp_micros,
        prune,
    })
}

fn bounded_list(reader: &mut Reader<'_>, field: Field) -> Result<u64, Refused> {
    let at = reader.place();
    match reader.list(field)? {
        length @ 0..=ITEM_LENGTH_MAX => Ok(length),
        length => Err(Refused::ItemTooLong { length, at }),
    }
}

/// Writes basic extensions; causal ones are only read.
pub(super) fn encode(header: &Header, signature: Option<&[u8; 64]>, writer: &mut Writer) {
    writer.list(header.field_count(FIELDS) - u64::from(signature.is_none()));
    header.encode_start(signature, writer);
    header.encode_place(writer);
    writer.list(EXTENSIONS);
    writer.unsigned(EXTENSIONS_VERSION);
    writer.unsigned(BASIC);
    writer.bytes(header.log_id.as_bytes());
    writer.unsigned(header.timestamp_micros);
    writer.bool(header.prune);
}
