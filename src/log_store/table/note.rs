//! Where notes lie in the log store's table.

use std::io;

use bytes::{BufMut, Bytes};

use super::{Fields, VERSION, behind};
use crate::log_store::machine::NoteVersion;

const NOTE: u8 = 7;

/// What is known of all notes together.
pub(in crate::log_store) const STATS: [u8; 1] = [8];

pub(in crate::log_store) fn key(name: &[u8]) -> Vec<u8> {
    [&[NOTE], name].concat()
}

/// From the first to behind the last key of the notes whose names begin so.
pub(in crate::log_store) fn range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let from = key(prefix);
    let to = behind(&from);
    (from, to)
}

/// The name in a note's key.
pub(in crate::log_store) fn name(key: &[u8]) -> io::Result<Bytes> {
    let from = Fields::of_key(key, NOTE, "note")?;
    Ok(Bytes::copy_from_slice(from.rest))
}

pub(in crate::log_store) fn encode(version: NoteVersion, value: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_u64(version.index);
    out.put_u32(version.offset);
    out.put_slice(value);
    out
}

pub(in crate::log_store) fn decode(bytes: &[u8]) -> io::Result<(NoteVersion, Bytes)> {
    let mut from = Fields::of_record(bytes, "note")?;
    let version = version(&mut from)?;
    Ok((version, Bytes::copy_from_slice(from.rest)))
}

pub(in crate::log_store) fn encode_stats(count: u64, last: NoteVersion) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_u64(count);
    out.put_u64(last.index);
    out.put_u32(last.offset);
    out
}

/// How many notes there are, and the last change of any.
pub(in crate::log_store) fn decode_stats(bytes: &[u8]) -> io::Result<(u64, NoteVersion)> {
    let mut from = Fields::of_record(bytes, "notes")?;
    let count = from.u64()?;
    let last = version(&mut from)?;
    from.end()?;
    Ok((count, last))
}

fn version(from: &mut Fields<'_>) -> io::Result<NoteVersion> {
    Ok(NoteVersion {
        index: from.u64()?,
        offset: from.u32()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let version = NoteVersion {
            index: 0x0102,
            offset: 3,
        };
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let note = encode(version, b"hi");
        assert_eq!(hex(&note), "010000000000000102000000036869");
        assert_eq!(decode(&note).expect("it reads"), (version, "hi".into()));
        let stats = encode_stats(9, version);
        assert_eq!(hex(&stats), "010000000000000009000000000000010200000003");
        assert_eq!(decode_stats(&stats).expect("it reads"), (9, version));
        assert_eq!(hex(&key(b"peer/1")), "07706565722f31");
        assert_eq!(name(&key(b"peer/1")).expect("a name"), &b"peer/1"[..]);
        assert!(decode(&note[..5]).is_err());
    }
}
