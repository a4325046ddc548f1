//! Changes good messages into bad ones that look like good ones.

use super::Shape;

/// Integers at which something is different: lengths of heads, 32 bits, all bits.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    23,
    24,
    31,
    32,
    33,
    127,
    128,
    255,
    256,
    511,
    512,
    513,
    4_096,
    65_535,
    65_536,
    65_537,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 32) + 1,
    1 << 53,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];
/// How deep things are nested: around what headers, messages and bodies may be, and far beyond.
const DEPTHS: &[usize] = &[1, 2, 60, 63, 64, 65, 79, 80, 81, 127, 128, 129, 5_000];
/// No input is made longer than this.
const LONGEST: usize = 64 * 1024;

/// Splitmix, so that an input is its seed and number.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn of(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed);
        let seed = dice.next();
        Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of_list<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() >> self.below(64),
            _ => self.of_list(NUMBERS),
        }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// A range within so many bytes, mostly a short one.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let longest = if self.one_in(4) {
            length
        } else {
            40.min(length)
        };
        from..(from + self.below(longest + 1)).min(length)
    }
}

/// One input.
pub(super) fn mutate(dice: &mut Dice, shape: Shape, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    if shape == Shape::Framed && !dice.one_in(8) {
        return mutate_framed(dice, &bytes, corpus);
    }
    for _ in 0..1 + dice.below(4) {
        change(dice, shape, &mut bytes, corpus);
        bytes.truncate(LONGEST);
    }
    bytes
}

/// Changes what is in the frames, and gives them the lengths they have then.
fn mutate_framed(dice: &mut Dice, bytes: &[u8], corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut frames = frames(bytes);
    let others: Vec<Vec<u8>> = corpus.iter().flat_map(|it| self::frames(it)).collect();
    if dice.one_in(4) {
        frames.push(others[dice.below(others.len())].clone());
    }
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(frames.len());
        if let Some(frame) = frames.get_mut(at) {
            change(dice, Shape::Postcard, frame, &others);
            frame.truncate(LONGEST);
        }
    }
    let mut out = Vec::new();
    for frame in frames {
        out.extend((frame.len() as u32).to_be_bytes());
        out.extend(frame);
    }
    out
}

/// The frames of a stream, without their lengths.
fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<4>() {
        let length = (u32::from_be_bytes(*head) as usize).min(rest.len());
        found.push(rest[..length].to_vec());
        bytes = &rest[length..];
    }
    found
}

fn change(dice: &mut Dice, shape: Shape, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let aware = match shape {
        Shape::Cbor => !dice.one_in(3) && change_cbor(dice, bytes, corpus),
        Shape::Postcard => dice.one_in(2) && change_postcard(dice, bytes),
        Shape::Framed | Shape::Text => false,
    };
    if !aware {
        change_any(dice, bytes, corpus);
    }
}

/// Changes that know nothing of what the bytes mean.
fn change_any(dice: &mut Dice, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = dice.below(bytes.len());
    match dice.below(9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = dice.next() as u8,
        2 if !bytes.is_empty() => bytes[at] = dice.of_list(&[0, 1, 0x7f, 0x80, 0xff]),
        3 => bytes.truncate(at),
        4 => {
            let count = dice.below(9);
            let more = dice.bytes(count);
            bytes.splice(at..at, more);
        }
        5 => {
            let range = dice.range(bytes.len());
            bytes.drain(range);
        }
        6 => {
            let range = dice.range(bytes.len());
            let again = bytes[range].to_vec();
            bytes.splice(at..at, again);
        }
        7 => {
            let other = &corpus[dice.below(corpus.len())];
            let from = dice.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let other = &corpus[dice.below(corpus.len())];
            bytes.extend_from_slice(other);
        }
    }
}

/// A varint in place of what is there: a count, a length or a number, or in the middle of one.
fn change_postcard(dice: &mut Dice, bytes: &mut Vec<u8>) -> bool {
    if bytes.is_empty() {
        return false;
    }
    let at = dice.below(bytes.len());
    let behind = bytes[at..].iter().position(|it| it & 0x80 == 0);
    let end = at + behind.map_or(1, |it| it + 1);
    let mut number = match dice.below(3) {
        // Of about the right size.
        0 => (bytes.len() - at) as u64 + dice.below(5) as u64,
        _ => dice.number(),
    };
    let mut varint = Vec::new();
    while number >= 0x80 {
        varint.push(number as u8 | 0x80);
        number >>= 7;
    }
    varint.push(number as u8);
    if dice.one_in(6) {
        // Longer than it need be, or than any number is.
        let last = varint.len() - 1;
        varint[last] |= 0x80;
        varint.extend(std::iter::repeat_n(0x80, dice.below(9)));
        varint.push(0);
    }
    bytes.splice(at..end, varint);
    true
}

/// One item of CBOR, as far as it can be told.
#[derive(Clone, Copy, Debug)]
struct Item {
    at: usize,
    head: usize,
    /// Behind it, with all that is in it.
    end: usize,
    major: u8,
}

fn change_cbor(dice: &mut Dice, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) -> bool {
    let found = items(bytes);
    if found.is_empty() {
        return false;
    }
    let Item {
        at,
        head,
        end,
        major,
    } = dice.of_list(&found);
    match dice.below(10) {
        0..3 => {
            let number = match dice.below(3) {
                // Around what it is.
                0 => (bytes[at] & 0x1f) as u64 + dice.below(3) as u64,
                _ => dice.number(),
            };
            let longer = dice.one_in(4);
            bytes.splice(at..at + head, cbor_head(major, number, longer));
        }
        3 => bytes[at] = (dice.below(8) as u8) << 5 | (bytes[at] & 0x1f),
        // Lengths that are not known, and those that have no meaning.
        4 => bytes[at] = bytes[at] & 0xe0 | (28 + dice.below(4) as u8),
        5 => drop(bytes.drain(at..end)),
        6 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        7 => {
            let other = &corpus[dice.below(corpus.len())];
            let items = items(other);
            if let Some(item) = items.get(dice.below(items.len())) {
                bytes.splice(at..end, other[item.at..item.end].iter().copied());
            }
        }
        8 => {
            let depth = dice.of_list(DEPTHS);
            // A list of one, a tag, a map of one with an empty key.
            let around: &[u8] = dice.of_list(&[&[0x81], &[0xc1], &[0xa1, 0x40]]);
            bytes.splice(at..at, around.repeat(depth));
        }
        _ => {
            let other = dice.of_list(&found);
            let moved = bytes[other.at..other.end].to_vec();
            bytes.splice(at..end, moved);
        }
    }
    true
}

/// The head of an item; in more bytes than it needs, if it is to be longer.
fn cbor_head(major: u8, number: u64, longer: bool) -> Vec<u8> {
    let width = match number {
        0..=23 => 0,
        24..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    let width = match (width, longer) {
        (0, true) => 1,
        (width @ 1..8, true) => 2 * width,
        (width, _) => width,
    };
    let info = match width {
        0 => number as u8,
        1 => 24,
        2 => 25,
        4 => 26,
        _ => 27,
    };
    let mut head = vec![major << 5 | info];
    head.extend(&number.to_be_bytes()[8 - width..]);
    head
}

/// All items that begin within the bytes, nested ones too, as far as they can be read.
fn items(bytes: &[u8]) -> Vec<Item> {
    let mut found = Vec::new();
    // The items begun whose ends are not found yet, and how much is missing of each.
    let mut open: Vec<(usize, u64)> = Vec::new();
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        let (major, info) = (first >> 5, first & 0x1f);
        let width = match info {
            0..24 => 0,
            24..28 => 1 << (info - 24),
            _ => break,
        };
        let Some(argument) = bytes.get(at + 1..at + 1 + width) else {
            break;
        };
        let argument = match width {
            0 => u64::from(info),
            _ => argument
                .iter()
                .fold(0, |sum: u64, it| sum << 8 | u64::from(*it)),
        };
        let (head, number) = (1 + width, found.len());
        let (strings, inside) = match major {
            2 | 3 => (argument, 0),
            4 => (0, argument),
            5 => (0, argument.saturating_mul(2)),
            6 => (0, 1),
            _ => (0, 0),
        };
        let end = at.saturating_add(head).saturating_add(strings as usize);
        let end = end.min(bytes.len());
        found.push(Item {
            at,
            head,
            end,
            major,
        });
        at = end;
        if inside > 0 {
            open.push((number, inside));
            continue;
        }
        while let Some((number, left)) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            found[*number].end = at;
            open.pop();
        }
    }
    for (number, _) in open {
        found[number].end = bytes.len();
    }
    found
}
