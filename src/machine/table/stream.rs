//! A table as the bytes of a snapshot. Frozen; lengths are little-endian.
//!
//! ```text
//! version u8 = 1 | n x ( key length u32 | key | value length u32 | value ) | u32 = 0xffff_ffff
//! ```
//!
//! The keys ascend. The mark at the end tells a whole snapshot from one cut between two pairs.

use std::io::{self, BufReader, BufWriter, Read, Write};

use bytes::Bytes;

use super::{KEY_BYTES_MAX, Pinned, VALUE_BYTES_MAX};

const VERSION: u8 = 1;
const END_MARK: u32 = u32::MAX;
const BUFFER_BYTES: usize = 64 * 1024;
/// Pairs are handed on once they are so many bytes.
const PIECE_BYTES: usize = 1024 * 1024;

/// Takes the next pairs.
type Fill<'a> = &'a mut dyn FnMut(&[(Bytes, Bytes)]) -> io::Result<()>;

pub(super) fn write(pinned: Pinned, out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    out.write_all(&[VERSION])?;
    pinned(&mut |key, value| {
        write_bytes(&mut out, key)?;
        write_bytes(&mut out, value)
    })?;
    out.write_all(&END_MARK.to_le_bytes())?;
    out.flush()
}

/// Hands the pairs to `fill`, about a mebibyte at a time.
pub(super) fn read(from: &mut dyn Read, fill: Fill<'_>) -> io::Result<()> {
    let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
    let mut version = [0];
    from.read_exact(&mut version)?;
    if version != [VERSION] {
        return Err(malformed("is of a version that this program does not know"));
    }
    let mut piece = Vec::new();
    let mut bytes = 0;
    let mut last: Option<Bytes> = None;
    while let Some(length) = read_length(&mut from)? {
        let key = read_bytes(&mut from, length, KEY_BYTES_MAX)?;
        if last.is_some_and(|last| last >= key) {
            return Err(malformed("has keys out of order"));
        }
        last = Some(key.clone());
        let length = read_length(&mut from)?.ok_or_else(|| malformed("ends behind a key"))?;
        let value = read_bytes(&mut from, length, VALUE_BYTES_MAX)?;
        bytes += key.len() + value.len();
        piece.push((key, value));
        if bytes >= PIECE_BYTES {
            fill(&piece)?;
            piece.clear();
            bytes = 0;
        }
    }
    if !piece.is_empty() {
        fill(&piece)?;
    }
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(malformed("goes on behind its end")),
    }
}

fn write_bytes(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| io::Error::other("a value of 4 GiB and more cannot be written"))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(bytes)
}

/// None at the mark.
fn read_length(from: &mut dyn Read) -> io::Result<Option<usize>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    Ok((length != END_MARK).then_some(length as usize))
}

/// Memory grows with the bytes that are there, not with what a length claims.
fn read_bytes(from: &mut dyn Read, length: usize, max: usize) -> io::Result<Bytes> {
    if length > max {
        return Err(malformed("has a key or a value beyond its limit"));
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.into())
}

fn malformed(what: &str) -> io::Error {
    let text = format!("the snapshot of a table {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
