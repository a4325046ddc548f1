//! As much CBOR as the 0.6 line and signed infos need: heads, items of a known length, no floats.
//!
//! [`Scan`] finds where one item ends while its bytes arrive, each byte looked at once. [`Reader`]
//! takes a whole item apart and is strict: shortest heads, definite lengths, nothing left over.

use bytes::{BufMut, BytesMut};

use super::WireFault;

/// How deep items may nest: messages nest five deep, and stock reads headers of up to 64.
const DEPTH_MAX: usize = 80;

/// How many bytes of an array of integers are handled at a time.
const OCTETS: usize = 256;

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const OTHER: u8 = 7;
const NULL: u8 = 0xf6;

/// Where one CBOR item ends, found as its bytes come in.
///
/// # Invariants
/// - `open` holds the items still to come of each array or map that was begun, outermost first,
///   and none of them is 0 between calls.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    open: Vec<u64>,
    /// Bytes left of a string.
    skip: u64,
    /// The head that is cut off: its first byte, the argument so far, bytes of it missing.
    head: Option<(u8, u64, u8)>,
}

impl Scan {
    /// How many of `bytes` belong to the item, and whether it ends with them. No string and no
    /// count may be above `limit`, so nothing has to be waited for in vain.
    pub(crate) fn advance(
        &mut self,
        bytes: &[u8],
        limit: usize,
    ) -> Result<(usize, bool), WireFault> {
        let mut at = 0;
        while at < bytes.len() {
            if self.skip == 0 && self.head.is_none() {
                at = self.pass_octets(bytes, at);
                if at == bytes.len() {
                    break;
                }
            }
            if self.skip > 0 {
                let part = (bytes.len() - at).min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                at += part;
                self.skip -= part as u64;
                if self.skip == 0 && self.ended() {
                    return Ok((at, true));
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            let complete = match self.head.take() {
                Some((first, argument, missing)) => {
                    let argument = argument << 8 | u64::from(byte);
                    if missing > 1 {
                        self.head = Some((first, argument, missing - 1));
                        continue;
                    }
                    self.head_read(first, argument, limit)?
                }
                None => {
                    let missing = match byte & 0x1f {
                        small @ 0..=23 => {
                            if self.head_read(byte, u64::from(small), limit)? {
                                return Ok((at, true));
                            }
                            continue;
                        }
                        24 => 1,
                        25 => 2,
                        26 => 4,
                        27 => 8,
                        _ => return Err(WireFault::Malformed("a CBOR item of no known length")),
                    };
                    self.head = Some((byte, 0, missing));
                    continue;
                }
            };
            if complete {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Passes over a run of bytes in an array of integers, all but the last item of it: most of
    /// what the 0.6 line sends. Gives the place behind the run.
    fn pass_octets(&mut self, bytes: &[u8], from: usize) -> usize {
        let Some(left) = self.open.last_mut() else {
            return from;
        };
        let (mut at, mut items) = (from, *left);
        while items > 1 {
            match bytes.get(at) {
                Some(0..=23) => at += 1,
                Some(24) if at + 1 < bytes.len() => at += 2,
                _ => break,
            }
            items -= 1;
        }
        *left = items;
        at
    }

    /// What follows a head that is complete; whether the outermost item ended with it.
    fn head_read(&mut self, first: u8, argument: u64, limit: usize) -> Result<bool, WireFault> {
        let major = first >> 5;
        let items = match major {
            UINT | NEGATIVE | OTHER => 0,
            BYTES | TEXT => {
                check_claim(argument, limit)?;
                self.skip = argument;
                if argument > 0 {
                    return Ok(false);
                }
                0
            }
            ARRAY => argument,
            MAP => argument.saturating_mul(2),
            _ => 1, // a tag, and what it is put on
        };
        if items == 0 {
            return Ok(self.ended());
        }
        check_claim(items, limit)?;
        if self.open.len() == DEPTH_MAX {
            return Err(WireFault::Malformed("CBOR nested too deeply"));
        }
        self.open.push(items);
        Ok(false)
    }

    /// An item ended; whether the outermost did.
    fn ended(&mut self) -> bool {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return false;
            }
            self.open.pop();
        }
        true
    }
}

/// A string or a list needs at least as many bytes as it claims to have.
fn check_claim(claimed: u64, limit: usize) -> Result<(), WireFault> {
    if claimed > limit as u64 {
        return Err(WireFault::TooLarge { claimed, limit });
    }
    Ok(())
}

/// Takes whole items apart, front to back.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How far it has read.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn uint(&mut self) -> Result<u64, WireFault> {
        self.expect(UINT, "no unsigned integer where one belongs")
    }

    /// An integer of at most 32 bits.
    pub(crate) fn uint32(&mut self) -> Result<u32, WireFault> {
        let value = self.uint()?;
        u32::try_from(value).map_err(|_| WireFault::IntegerTooLarge(value))
    }

    /// How many items the array has. None are read yet, so allocate nothing by it.
    pub(crate) fn array(&mut self) -> Result<u64, WireFault> {
        self.expect(ARRAY, "no array where one belongs")
    }

    /// An array of exactly this many items.
    pub(crate) fn array_of(&mut self, items: u64) -> Result<(), WireFault> {
        if self.array()? == items {
            Ok(())
        } else {
            Err(WireFault::Malformed("an array of another length"))
        }
    }

    /// How many pairs the map has. None are read yet, so allocate nothing by it.
    pub(crate) fn map(&mut self) -> Result<u64, WireFault> {
        self.expect(MAP, "no map where one belongs")
    }

    /// A map of exactly this many pairs.
    pub(crate) fn map_of(&mut self, pairs: u64) -> Result<(), WireFault> {
        if self.map()? == pairs {
            Ok(())
        } else {
            Err(WireFault::Malformed("a map of another length"))
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], WireFault> {
        let length = self.expect(BYTES, "no byte string where one belongs")?;
        self.take(length)
    }

    /// A byte string of exactly `N` bytes.
    pub(crate) fn bytes_of<const N: usize>(&mut self) -> Result<[u8; N], WireFault> {
        <[u8; N]>::try_from(self.bytes()?)
            .map_err(|_| WireFault::Malformed("a byte string of another length"))
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, WireFault> {
        let length = self.expect(TEXT, "no text where one belongs")?;
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| WireFault::Malformed("text that is not UTF-8"))
    }

    /// Exactly this text.
    pub(crate) fn key(&mut self, wanted: &'static str) -> Result<(), WireFault> {
        if self.text()? == wanted {
            Ok(())
        } else {
            Err(WireFault::Malformed(
                "another key than the one that belongs here",
            ))
        }
    }

    /// Whether a null is next; reads it if so.
    pub(crate) fn null(&mut self) -> bool {
        let found = self.bytes.get(self.at) == Some(&NULL);
        self.at += usize::from(found);
        found
    }

    /// An array of integers below 256, as bytes behind those in `into`.
    pub(crate) fn octets(&mut self, into: &mut BytesMut) -> Result<(), WireFault> {
        const WRONG: WireFault = WireFault::Malformed("no byte where one belongs");
        let count = self.array()?;
        let rest = &self.bytes[self.at..];
        if count > rest.len() as u64 {
            return Err(CUT_OFF);
        }
        into.reserve(count as usize); // at most what has arrived
        let (mut at, mut left) = (0, count as usize);
        let mut found = [0; OCTETS];
        while left > 0 {
            let part = left.min(OCTETS);
            for octet in &mut found[..part] {
                let first = *rest.get(at).ok_or(CUT_OFF)?;
                if first < 24 {
                    (*octet, at) = (first, at + 1);
                    continue;
                }
                let second = *rest.get(at + 1).ok_or(CUT_OFF)?;
                if first != 24 || second < 24 {
                    return Err(WRONG);
                }
                (*octet, at) = (second, at + 2);
            }
            into.put_slice(&found[..part]);
            left -= part;
        }
        self.at += at;
        Ok(())
    }

    /// An array of exactly `N` integers below 256.
    pub(crate) fn octets_of<const N: usize>(&mut self) -> Result<[u8; N], WireFault> {
        let mut found = BytesMut::new();
        self.octets(&mut found)?;
        <[u8; N]>::try_from(&found[..])
            .map_err(|_| WireFault::Malformed("another number of bytes than belongs here"))
    }

    /// The bytes of one item, whatever it is.
    pub(crate) fn item(&mut self) -> Result<&'a [u8], WireFault> {
        let rest = &self.bytes[self.at..];
        let (length, whole) = Scan::default().advance(rest, rest.len())?;
        if !whole {
            return Err(CUT_OFF);
        }
        self.at += length;
        Ok(&rest[..length])
    }

    /// Nothing is left.
    pub(crate) fn finish(&self) -> Result<(), WireFault> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(WireFault::Malformed("bytes behind the end of a message"))
        }
    }

    fn expect(&mut self, major: u8, otherwise: &'static str) -> Result<u64, WireFault> {
        let first = *self.bytes.get(self.at).ok_or(CUT_OFF)?;
        if first >> 5 != major {
            return Err(WireFault::Malformed(otherwise));
        }
        self.at += 1;
        let (width, shortest) = match first & 0x1f {
            small @ 0..=23 => return Ok(u64::from(small)),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            _ => return Err(WireFault::Malformed("a CBOR item of no known length")),
        };
        let argument = self.take(width)?;
        let value = argument
            .iter()
            .fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
        if value < shortest {
            return Err(WireFault::Malformed("a CBOR head longer than it need be"));
        }
        Ok(value)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], WireFault> {
        let rest = &self.bytes[self.at..];
        if length > rest.len() as u64 {
            return Err(CUT_OFF);
        }
        let length = length as usize;
        self.at += length;
        Ok(&rest[..length])
    }
}

const CUT_OFF: WireFault = WireFault::Malformed("a message that ends too early");

/// Writes items as stock writes them: shortest heads, definite lengths.
pub(crate) trait Write {
    fn head(&mut self, major: u8, argument: u64);

    fn uint(&mut self, value: u64) {
        self.head(UINT, value);
    }

    fn array(&mut self, items: usize) {
        self.head(ARRAY, items as u64);
    }

    fn map(&mut self, pairs: usize) {
        self.head(MAP, pairs as u64);
    }

    fn bytes(&mut self, bytes: &[u8]);

    fn text(&mut self, text: &str);

    fn null(&mut self);

    /// An array of integers, one for each byte.
    fn octets(&mut self, bytes: &[u8]);
}

impl Write for BytesMut {
    fn head(&mut self, major: u8, argument: u64) {
        let major = major << 5;
        match argument {
            0..=23 => self.put_u8(major | argument as u8),
            24..=0xff => self.put_slice(&[major | 24, argument as u8]),
            0x100..=0xffff => {
                self.put_u8(major | 25);
                self.put_u16(argument as u16);
            }
            0x1_0000..=0xffff_ffff => {
                self.put_u8(major | 26);
                self.put_u32(argument as u32);
            }
            _ => {
                self.put_u8(major | 27);
                self.put_u64(argument);
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.put_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.put_slice(text.as_bytes());
    }

    fn null(&mut self) {
        self.put_u8(NULL);
    }

    fn octets(&mut self, bytes: &[u8]) {
        self.array(bytes.len());
        self.reserve(bytes.len() * 2);
        let mut found = [0; 2 * OCTETS];
        for part in bytes.chunks(OCTETS) {
            let mut at = 0;
            for byte in part {
                found[at] = 24; // written over by what is below it
                at += usize::from(*byte >= 24);
                found[at] = *byte;
                at += 1;
            }
            self.put_slice(&found[..at]);
        }
    }
}
