//! As much postcard as the 0.7 line needs: varints and strings with their length before them.
//!
//! Strict: a varint of more bytes than it needs is refused, and so are bytes left over.

use bytes::{BufMut, BytesMut};

use super::WireFault;

/// Takes a frame's body apart, front to back.
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

    pub(crate) fn byte(&mut self) -> Result<u8, WireFault> {
        let byte = *self.bytes.get(self.at).ok_or(CUT_OFF)?;
        self.at += 1;
        Ok(byte)
    }

    /// A varint of at most 64 bits.
    pub(crate) fn uint(&mut self) -> Result<u64, WireFault> {
        let mut value = 0;
        for place in 0..10 {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if place == 9 && part > 1 {
                return Err(WireFault::IntegerTooLarge(u64::MAX));
            }
            value |= part << (7 * place);
            if byte & 0x80 == 0 {
                if byte == 0 && place > 0 {
                    return Err(WireFault::Malformed("a varint longer than it need be"));
                }
                return Ok(value);
            }
        }
        Err(WireFault::IntegerTooLarge(u64::MAX))
    }

    /// A varint of at most 32 bits.
    pub(crate) fn uint32(&mut self) -> Result<u32, WireFault> {
        let value = self.uint()?;
        u32::try_from(value).map_err(|_| WireFault::IntegerTooLarge(value))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], WireFault> {
        let length = self.uint()?;
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(CUT_OFF);
        }
        self.take(length as usize)
    }

    /// A byte string of exactly `N` bytes, its length before it.
    pub(crate) fn bytes_of<const N: usize>(&mut self) -> Result<[u8; N], WireFault> {
        <[u8; N]>::try_from(self.bytes()?)
            .map_err(|_| WireFault::Malformed("a byte string of another length"))
    }

    /// Exactly `N` bytes, with no length before them.
    pub(crate) fn raw<const N: usize>(&mut self) -> Result<[u8; N], WireFault> {
        Ok(<[u8; N]>::try_from(self.take(N)?).expect("as many as were asked for"))
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, WireFault> {
        std::str::from_utf8(self.bytes()?)
            .map_err(|_| WireFault::Malformed("text that is not UTF-8"))
    }

    /// Nothing is left.
    pub(crate) fn finish(&self) -> Result<(), WireFault> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(WireFault::Malformed("bytes behind the end of a message"))
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireFault> {
        let found = self.bytes[self.at..].get(..length).ok_or(CUT_OFF)?;
        self.at += length;
        Ok(found)
    }
}

const CUT_OFF: WireFault = WireFault::Malformed("a message that ends too early");

pub(crate) trait Write {
    fn uint(&mut self, value: u64);

    /// A byte string, its length before it.
    fn bytes(&mut self, bytes: &[u8]);
}

impl Write for BytesMut {
    fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8(value as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        Write::uint(self, bytes.len() as u64);
        self.put_slice(bytes);
    }
}
