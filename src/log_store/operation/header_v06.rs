//! Headers of line 0.6: the bytes that p2panda-core 0.6.1 writes with `ciborium`.
//!
//! The extensions are a map in the order of the fields of a struct, which is not the order of
//! canonical CBOR: `prune_flag` (only if true), `log_id`, `version`. A standard node reads other
//! forms too, but writes this one before it hashes and checks the signature, so another form has
//! another id there, and no valid signature.
//!
//! A standard node also takes sequences and payload sizes up to 64 bits and any version of the
//! extensions. Here the sequence ends where it does on line 0.7, the payload where a member could
//! not serve it, and the version is the only one that anything writes.

use super::{
    cbor::{Reader, Writer},
    header::{
        EXTENSIONS_VERSION, Header, check_end, check_extensions_version, decode_place, decode_start,
    },
    names::LogId,
    refused::{Field, Refused},
};

/// Version, author, signature, payload size, timestamp, sequence and extensions.
const FIELDS: u64 = 7;
const PRUNE_FLAG: &str = "prune_flag";
const LOG_ID: &str = "log_id";
const VERSION: &str = "version";

pub(super) fn decode(bytes: &[u8]) -> Result<Header, Refused> {
    let mut reader = Reader::new(bytes);
    let found = reader.list(Field::Header)?;
    let (author, payload_size, payload_hash) = decode_start(&mut reader)?;
    let timestamp_micros = reader.unsigned(Field::Timestamp)?;
    let (seq, backlink) = decode_place(&mut reader)?;
    let (log_id, prune) = decode_extensions(&mut reader)?;
    let header = Header {
        author,
        payload_size,
        payload_hash,
        timestamp_micros,
        seq,
        backlink,
        log_id,
        prune,
    };
    check_end(&reader, found, header.field_count(FIELDS))?;
    Ok(header)
}

fn decode_extensions(reader: &mut Reader<'_>) -> Result<(LogId, bool), Refused> {
    let prune = match reader.map(Field::Extensions)? {
        2 => false,
        3 => {
            expect_key(reader, PRUNE_FLAG)?;
            // Not set is said by leaving it out.
            match reader.bool(Field::PruneFlag)? {
                true => true,
                false => {
                    return Err(Refused::FieldInvalid {
                        field: Field::PruneFlag,
                    });
                }
            }
        }
        _ => {
            return Err(Refused::FieldInvalid {
                field: Field::Extensions,
            });
        }
    };
    expect_key(reader, LOG_ID)?;
    let log_id = LogId::from_bytes(reader.bytes(Field::LogId)?);
    expect_key(reader, VERSION)?;
    check_extensions_version(reader)?;
    Ok((log_id, prune))
}

fn expect_key(reader: &mut Reader<'_>, key: &str) -> Result<(), Refused> {
    match reader.text(Field::Extensions)? == key.as_bytes() {
        true => Ok(()),
        false => Err(Refused::FieldInvalid {
            field: Field::Extensions,
        }),
    }
}

pub(super) fn encode(header: &Header, signature: Option<&[u8; 64]>, writer: &mut Writer) {
    writer.list(header.field_count(FIELDS) - u64::from(signature.is_none()));
    header.encode_start(signature, writer);
    writer.unsigned(header.timestamp_micros);
    header.encode_place(writer);
    writer.map(2 + u64::from(header.prune));
    if header.prune {
        writer.text(PRUNE_FLAG);
        writer.bool(true);
    }
    writer.text(LOG_ID);
    writer.bytes(header.log_id.as_bytes());
    writer.text(VERSION);
    writer.unsigned(EXTENSIONS_VERSION);
}
