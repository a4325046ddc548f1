//! The bytes of a snapshot: a header, checksummed chunks, a trailer. The same on disk and on the
//! wire, so a member sends its file as it is. Frozen as version 1.
//!
//! All numbers are big-endian; every CRC is CRC-32 (IEEE).
//!
//! ```text
//!  header   | "quorsnap"  8 | version u32 | CRC of these 12 bytes u32 |
//!  chunk    | length u32, 1 to 65,536 | CRC of number u64 and bytes | bytes |  any number
//!  trailer  | 0 u32 | meta | content length u64 | CRC of the content u32 | meta length u32 |
//!           | CRC of the trailer up to here u32 | "quorsend"  8 |
//! ```
//!
//! A chunk's number, counted from 0, is under its checksum, so chunks cannot change places. The
//! trailer is found from the end; without it a file is not a snapshot.

use std::io::{self, Read, Write};

use bytes::Bytes;
use crc32fast::Hasher;

use super::shelf::Body;

pub(super) const VERSION: u32 = 1;
/// Content bytes of a chunk: what is lost to a reader's buffer, and what one checksum guards.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// It is read into memory before it is checked.
const META_BYTES_MAX: usize = 1024 * 1024;

const MAGIC: &[u8; 8] = b"quorsnap";
const END: &[u8; 8] = b"quorsend";
const HEADER_BYTES: u64 = 16;
const CHUNK_HEAD_BYTES: usize = 8;
/// The trailer without its leading zero and its meta.
const TAIL_BYTES: u64 = 8 + 4 + 4 + 4 + 8;

/// Writes content into chunks.
pub(super) struct ChunkWriter<W> {
    out: W,
    /// Room for a chunk's head, then its bytes, so a chunk is one write.
    chunk: Vec<u8>,
    number: u64,
    content: u64,
    crc: Hasher,
}

impl<W: Write> ChunkWriter<W> {
    pub(super) fn start(mut out: W) -> io::Result<Self> {
        let mut header = Vec::with_capacity(16);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_be_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_be_bytes());
        out.write_all(&header)?;
        let mut chunk = Vec::with_capacity(CHUNK_HEAD_BYTES + CHUNK_BYTES);
        chunk.resize(CHUNK_HEAD_BYTES, 0);
        Ok(Self {
            out,
            chunk,
            number: 0,
            content: 0,
            crc: Hasher::new(),
        })
    }

    pub(super) fn finish(mut self, meta: &[u8]) -> io::Result<W> {
        if meta.len() > META_BYTES_MAX {
            let text = format!("a snapshot's meta is at most {META_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.end_chunk()?;
        let mut trailer = vec![0; 4];
        trailer.extend_from_slice(meta);
        trailer.extend_from_slice(&self.content.to_be_bytes());
        trailer.extend_from_slice(&self.crc.finalize().to_be_bytes());
        // Checked against the limit above.
        trailer.extend_from_slice(&(meta.len() as u32).to_be_bytes());
        trailer.extend_from_slice(&crc32fast::hash(&trailer).to_be_bytes());
        trailer.extend_from_slice(END);
        self.out.write_all(&trailer)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let (head, bytes) = self.chunk.split_at_mut(CHUNK_HEAD_BYTES);
        if bytes.is_empty() {
            return Ok(());
        }
        // At most CHUNK_BYTES.
        head[..4].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
        head[4..].copy_from_slice(&chunk_crc(self.number, bytes).to_be_bytes());
        self.crc.update(bytes);
        self.content += bytes.len() as u64;
        self.number += 1;
        self.out.write_all(&self.chunk)?;
        self.chunk.truncate(CHUNK_HEAD_BYTES);
        fail::fail_point!("snapshot::chunk_written");
        Ok(())
    }
}

impl<W: Write> Write for ChunkWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_HEAD_BYTES + CHUNK_BYTES - self.chunk.len();
        let count = bytes.len().min(room);
        self.chunk.extend_from_slice(&bytes[..count]);
        if count == room {
            self.end_chunk()?;
        }
        Ok(count)
    }

    /// Chunks are written when they are full: flushing must not make small ones.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What header and trailer say of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    pub(super) meta: Bytes,
    content: u64,
    crc: u32,
    chunks_end: u64,
}

impl Outline {
    /// Reads both ends of a file: whether it is whole, not whether each chunk is sound.
    pub(super) fn read(body: &Body) -> io::Result<Self> {
        let short = HEADER_BYTES + 4 + TAIL_BYTES;
        if body.len() < short {
            return Err(damaged("it is too short"));
        }
        let mut header = [0; HEADER_BYTES as usize];
        body.read_exact_at(0, &mut header)?;
        if &header[..8] != MAGIC || crc32fast::hash(&header[..12]) != u32_at(&header, 12) {
            return Err(damaged("its header is not a snapshot's"));
        }
        let version = u32_at(&header, 8);
        if version != VERSION {
            let text = format!("the snapshot has version {version}, known is {VERSION}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let mut tail = [0; TAIL_BYTES as usize];
        body.read_exact_at(body.len() - TAIL_BYTES, &mut tail)?;
        let meta_len = u32_at(&tail, 12);
        let trailer_len = TAIL_BYTES + 4 + u64::from(meta_len);
        if &tail[20..] != END
            || meta_len as usize > META_BYTES_MAX
            || body.len() < HEADER_BYTES + trailer_len
        {
            return Err(damaged("its end is missing"));
        }
        let chunks_end = body.len() - trailer_len;
        let mut trailer = vec![0; trailer_len as usize - 12];
        body.read_exact_at(chunks_end, &mut trailer)?;
        if crc32fast::hash(&trailer) != u32_at(&tail, 16) || u32_at(&trailer, 0) != 0 {
            return Err(damaged("its end fails its checksum"));
        }
        let meta = Bytes::from(trailer).slice(4..4 + meta_len as usize);
        let content = u64::from(u32_at(&tail, 0)) << 32 | u64::from(u32_at(&tail, 4));
        Ok(Self {
            meta,
            content,
            crc: u32_at(&tail, 8),
            chunks_end,
        })
    }
}

/// Reads the content and checks every chunk before it gives any of it away.
pub(super) struct ContentReader {
    body: Body,
    outline: Outline,
    offset: u64,
    number: u64,
    content: u64,
    crc: Hasher,
    chunk: Vec<u8>,
    position: usize,
    ended: bool,
}

impl ContentReader {
    pub(super) fn new(body: Body, outline: Outline) -> Self {
        Self {
            body,
            outline,
            offset: HEADER_BYTES,
            number: 0,
            content: 0,
            crc: Hasher::new(),
            chunk: Vec::new(),
            position: 0,
            ended: false,
        }
    }

    /// Reads on to the end, for the checks alone.
    pub(super) fn verify(mut self) -> io::Result<()> {
        while !self.ended {
            self.next_chunk()?;
        }
        Ok(())
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        self.chunk.clear();
        self.position = 0;
        if self.offset == self.outline.chunks_end {
            self.ended = true;
            let crc = std::mem::take(&mut self.crc).finalize();
            if self.content != self.outline.content || crc != self.outline.crc {
                return Err(damaged("its content is not what its end says"));
            }
            return Ok(());
        }
        let number = self.number;
        let mut head = [0; CHUNK_HEAD_BYTES];
        let left = self.outline.chunks_end - self.offset;
        if left < CHUNK_HEAD_BYTES as u64 {
            return Err(damaged(&format!("chunk {number} is cut")));
        }
        self.body.read_exact_at(self.offset, &mut head)?;
        let len = u32_at(&head, 0);
        if !(1..=CHUNK_BYTES as u64).contains(&u64::from(len))
            || u64::from(len) > left - CHUNK_HEAD_BYTES as u64
        {
            return Err(damaged(&format!("chunk {number} has an impossible length")));
        }
        self.chunk.resize(len as usize, 0);
        self.body
            .read_exact_at(self.offset + CHUNK_HEAD_BYTES as u64, &mut self.chunk)?;
        if chunk_crc(number, &self.chunk) != u32_at(&head, 4) {
            self.chunk.clear();
            return Err(damaged(&format!("chunk {number} fails its checksum")));
        }
        self.crc.update(&self.chunk);
        self.content += u64::from(len);
        self.offset += CHUNK_HEAD_BYTES as u64 + u64::from(len);
        self.number += 1;
        Ok(())
    }
}

impl Read for ContentReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() {
            if self.ended || out.is_empty() {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let count = out.len().min(self.chunk.len() - self.position);
        out[..count].copy_from_slice(&self.chunk[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

fn chunk_crc(number: u64, bytes: &[u8]) -> u32 {
    let mut crc = Hasher::new();
    crc.update(&number.to_be_bytes());
    crc.update(bytes);
    crc.finalize()
}

/// Callers pass buffers of fixed size and offsets within.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_be_bytes(number)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the snapshot is damaged: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::shelf::memory_body, *};

    fn written(content: &[u8], meta: &[u8]) -> Vec<u8> {
        let mut writer = ChunkWriter::start(Vec::new()).expect("memory");
        writer.write_all(content).expect("memory");
        writer.finish(meta).expect("memory")
    }

    fn read_back(bytes: Vec<u8>) -> io::Result<(Vec<u8>, Bytes)> {
        let body = memory_body(bytes.into());
        let outline = Outline::read(&body)?;
        let meta = outline.meta.clone();
        let mut content = Vec::new();
        ContentReader::new(body, outline).read_to_end(&mut content)?;
        Ok((content, meta))
    }

    #[test]
    fn content_and_meta_come_back() {
        for len in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
        ] {
            let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let (read, meta) = read_back(written(&content, b"meta")).expect("whole");
            assert!(read == content, "{len} bytes");
            assert_eq!(meta, b"meta".as_slice());
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_an_error() {
        let bytes = written(b"some content", b"m");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read_back(flipped).is_err(), "bit {bit} of byte {}", bit / 8);
        }
        for len in 0..bytes.len() {
            assert!(read_back(bytes[..len].to_vec()).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn chunks_cannot_change_places() {
        let mut bytes = written(&[7; 2 * CHUNK_BYTES], b"");
        let size = CHUNK_HEAD_BYTES + CHUNK_BYTES;
        let (first, second) = bytes[16..16 + 2 * size].split_at_mut(size);
        first.swap_with_slice(second);
        let error = read_back(bytes).expect_err("the numbers are under the checksums");
        assert!(error.to_string().contains("chunk 0"), "{error}");
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = written(b"x", b"");
        bytes[8..12].copy_from_slice(&9_u32.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_be_bytes());
        let error = read_back(bytes).expect_err("version 9 is unknown");
        assert!(error.to_string().contains("version 9"), "{error}");
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        assert_eq!(
            data_encoding::HEXLOWER.encode(&written(b"hi", b"m")),
            "71756f72736e61700000000101ddec86\
             000000027ac050256869\
             000000006d0000000000000002d8932aac0000000161967c4871756f7273656e64"
        );
    }
}
