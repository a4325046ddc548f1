//! The part of CBOR that headers are made of, read strictly: each value has one form.
//!
//! ```text
//! item = head ‖ content     head = kind (3 bits) ‖ info (5 bits) ‖ argument (0 to 8 bytes)
//! ```
//!
//! Canonical means: arguments in the fewest bytes, no indefinite lengths, map keys in the order of
//! their bytes and once, floats and big integers in the shortest form that keeps the value. This
//! is what p2panda 0.7.1 asks for in all of a header, and what p2panda 0.6.1 writes in the items
//! that its headers have.

use super::refused::{Field, Refused};

/// How deep lists, maps and tags may be nested, the header itself included.
pub(super) const DEPTH_MAX: u32 = 64;
/// The longest string, list or map.
pub(super) const ITEM_LENGTH_MAX: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unsigned,
    Negative,
    Bytes,
    Text,
    List,
    Map,
    Tag,
    Simple,
}

struct Head {
    kind: Kind,
    info: u8,
    argument: u64,
}

/// Reads items one after the other. Every error names the byte at which the item started.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn unsigned(&mut self, field: Field) -> Result<u64, Refused> {
        self.item(Kind::Unsigned, field)
    }

    pub(super) fn list(&mut self, field: Field) -> Result<u64, Refused> {
        self.item(Kind::List, field)
    }

    pub(super) fn map(&mut self, field: Field) -> Result<u64, Refused> {
        self.item(Kind::Map, field)
    }

    pub(super) fn bytes<const N: usize>(&mut self, field: Field) -> Result<[u8; N], Refused> {
        let length = self.item(Kind::Bytes, field)?;
        if length != N as u64 {
            return Err(Refused::FieldInvalid { field });
        }
        let taken = self.take(length)?;
        taken
            .try_into()
            .map_err(|_| Refused::FieldInvalid { field })
    }

    pub(super) fn text(&mut self, field: Field) -> Result<&'a [u8], Refused> {
        let length = self.item(Kind::Text, field)?;
        self.take(length)
    }

    pub(super) fn bool(&mut self, field: Field) -> Result<bool, Refused> {
        match self.item(Kind::Simple, field)? {
            20 => Ok(false),
            21 => Ok(true),
            _ => Err(Refused::FieldInvalid { field }),
        }
    }

    /// The kind of the next item; none at the end.
    pub(super) fn peek(&self) -> Option<Kind> {
        self.bytes.get(self.at).map(|first| kind(*first))
    }

    /// Where the next item starts.
    pub(super) fn place(&self) -> u32 {
        place(self.at)
    }

    /// Whether all was read.
    pub(super) fn end(&self) -> Result<(), Refused> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(Refused::TrailingBytes { bytes: left as u64 }),
        }
    }

    /// Passes over one item of any kind, which may nest `depth` more levels.
    pub(super) fn skip(&mut self, depth: u32) -> Result<(), Refused> {
        let start = self.at;
        let head = self.head()?;
        let inner = match head.kind {
            Kind::List | Kind::Map | Kind::Tag => depth
                .checked_sub(1)
                .ok_or(Refused::NestedTooDeep { at: place(start) })?,
            _ => 0,
        };
        match head.kind {
            Kind::Bytes | Kind::Text | Kind::List | Kind::Map
                if head.argument > ITEM_LENGTH_MAX =>
            {
                Err(Refused::ItemTooLong {
                    length: head.argument,
                    at: place(start),
                })
            }
            Kind::Unsigned | Kind::Negative => Ok(()),
            Kind::Bytes => self.take(head.argument).map(drop),
            Kind::Text => match std::str::from_utf8(self.take(head.argument)?) {
                Ok(_) => Ok(()),
                Err(_) => Err(Refused::Malformed { at: place(start) }),
            },
            Kind::List => (0..head.argument).try_for_each(|_| self.skip(inner)),
            Kind::Map => self.skip_map(head.argument, inner),
            Kind::Tag => self.skip_tagged(head.argument, inner),
            Kind::Simple if is_shortest(&head) => Ok(()),
            Kind::Simple => Err(Refused::NotCanonical { at: place(start) }),
        }
    }

    fn skip_map(&mut self, pairs: u64, depth: u32) -> Result<(), Refused> {
        let mut last: Option<&[u8]> = None;
        for _ in 0..pairs {
            let start = self.at;
            self.skip(depth)?;
            let key = &self.bytes[start..self.at];
            if last.is_some_and(|last| last >= key) {
                return Err(Refused::NotCanonical { at: place(start) });
            }
            last = Some(key);
            self.skip(depth)?;
        }
        Ok(())
    }

    /// Tags 2 and 3 over a string are big integers: longer than 8 bytes, without leading zeros.
    fn skip_tagged(&mut self, tag: u64, depth: u32) -> Result<(), Refused> {
        let start = self.at;
        let big = matches!(tag, 2 | 3) && self.peek() == Some(Kind::Bytes);
        self.skip(depth)?;
        if big {
            let mut content = Self {
                bytes: &self.bytes[..self.at],
                at: start,
            };
            let length = content.head()?.argument;
            if length <= 8 || content.take(length)?[0] == 0 {
                return Err(Refused::NotCanonical { at: place(start) });
            }
        }
        Ok(())
    }

    /// The argument of the next item, which is of this kind and no float.
    fn item(&mut self, kind: Kind, field: Field) -> Result<u64, Refused> {
        let head = self.head()?;
        if head.kind != kind || (kind == Kind::Simple && head.info > 24) {
            return Err(Refused::FieldInvalid { field });
        }
        Ok(head.argument)
    }

    fn head(&mut self) -> Result<Head, Refused> {
        let at = place(self.at);
        let first = self.take(1)?[0];
        let (kind, info) = (kind(first), first & 31);
        let (argument, least) = match info {
            0..=23 => (u64::from(info), 0),
            24 => (self.big_endian(1)?, 24),
            25 => (self.big_endian(2)?, 1 << 8),
            26 => (self.big_endian(4)?, 1 << 16),
            27 => (self.big_endian(8)?, 1 << 32),
            31 if matches!(kind, Kind::Bytes | Kind::Text | Kind::List | Kind::Map) => {
                return Err(Refused::NotCanonical { at });
            }
            _ => return Err(Refused::Malformed { at }),
        };
        let float = kind == Kind::Simple && info > 24;
        if argument < least && !float {
            return Err(Refused::NotCanonical { at });
        }
        if kind == Kind::Simple && info == 24 && argument < 32 {
            return Err(Refused::Malformed { at });
        }
        Ok(Head {
            kind,
            info,
            argument,
        })
    }

    fn big_endian(&mut self, length: u64) -> Result<u64, Refused> {
        let bytes = self.take(length)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Refused> {
        let rest = &self.bytes[self.at..];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let taken = rest.get(..length).ok_or(Refused::Malformed {
            at: place(self.bytes.len()),
        })?;
        self.at += length;
        Ok(taken)
    }
}

/// Appends items in canonical form.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn unsigned(&mut self, number: u64) {
        self.head(0, number);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.head(2, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.head(3, text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(super) fn list(&mut self, length: u64) {
        self.head(4, length);
    }

    pub(super) fn map(&mut self, pairs: u64) {
        self.head(5, pairs);
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.0.push(0xf4 | u8::from(value));
    }

    fn head(&mut self, kind: u8, argument: u64) {
        let kind = kind << 5;
        let bytes = argument.to_be_bytes();
        let (info, skipped) = match argument {
            0..=23 => {
                self.0.push(kind | bytes[7]);
                return;
            }
            24..=0xff => (24, 7),
            0x100..=0xffff => (25, 6),
            0x1_0000..=0xffff_ffff => (26, 4),
            _ => (27, 0),
        };
        self.0.push(kind | info);
        self.0.extend_from_slice(&bytes[skipped..]);
    }
}

fn kind(first: u8) -> Kind {
    match first >> 5 {
        0 => Kind::Unsigned,
        1 => Kind::Negative,
        2 => Kind::Bytes,
        3 => Kind::Text,
        4 => Kind::List,
        5 => Kind::Map,
        6 => Kind::Tag,
        _ => Kind::Simple,
    }
}

/// Whether a simple value or float has the shortest form that keeps every bit, payloads of NaN
/// included.
fn is_shortest(head: &Head) -> bool {
    let bits = head.argument;
    match head.info {
        26 => {
            let float = f32::from_bits(bits as u32);
            if float.is_finite() {
                !fits_half(f64::from(float))
            } else {
                bits & 0x1fff != 0
            }
        }
        27 => {
            let float = f64::from_bits(bits);
            if float.is_finite() {
                !fits_half(float) && f64::from(float as f32).to_bits() != bits
            } else {
                bits & 0x1fff_ffff != 0
            }
        }
        _ => true,
    }
}

/// Whether a finite number is one of 16 bits: 11 significant bits, of which the lowest is worth
/// 2^-24 or more, below 2^16.
fn fits_half(float: f64) -> bool {
    let bits = float.to_bits();
    let mantissa = bits & ((1 << 52) - 1);
    let exponent = (bits >> 52 & 0x7ff) as i64 - 1023;
    match exponent {
        _ if float == 0.0 => true,
        -14..=15 => mantissa & ((1 << 42) - 1) == 0,
        -24..=-15 => mantissa & ((1 << (28 - exponent)) - 1) == 0,
        _ => false,
    }
}

/// A place in a header, which is shorter than 4 GiB.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
