//! Feeds decoders with damaged messages: mutations of good ones, which keep enough of their shape
//! to get far into a decoder. Tests only.
//!
//! ```text
//!   corpus      messages that are good, and the worst that are known
//!   mutate      knows heads, lengths and types of CBOR, varints of postcard, lengths of frames
//!   check       whatever must hold of a decoder, for any bytes: a panic is a find
//! ```
//!
//! An input is its seed, its number and the corpus: what is found is found again, and named with
//! its bytes. `QUORATE_FUZZ=<minutes>` tries each decoder for so long from another seed each time,
//! `QUORATE_FUZZ_SEED=<number>` from that one; else some thousand inputs a decoder, always the
//! same (`make fuzz`).

mod mutate;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use self::mutate::{Dice, mutate};

/// Inputs of each decoder where nothing else is said.
const INPUTS: u64 = 5_000;
/// What a decoder may have allocated at a time: for each byte of its input, and whatever it is.
/// The largest honest share is that of a log in a map, of which the tree keeps room for eleven.
const HELD_BY_BYTE: u64 = 64;
const HELD_AT_LEAST: u64 = 16 * 1024;
/// Inputs up to this long are cut everywhere, longer ones at so many places.
const CUT_EVERYWHERE: usize = 160;
const CUTS: usize = 16;

/// What the bytes of a corpus are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Items of CBOR, one after the other.
    Cbor,
    /// Frames: a length of four bytes, and postcard.
    Framed,
    /// Postcard without a length.
    Postcard,
    /// Anything.
    Text,
}

/// One decoder, and what it is fed with.
pub(crate) struct Fuzz {
    name: &'static str,
    shape: Shape,
    corpus: Vec<Vec<u8>>,
    inputs: u64,
}

impl Fuzz {
    pub(crate) fn new<T: Into<Vec<u8>>>(
        name: &'static str,
        shape: Shape,
        corpus: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            name,
            shape,
            corpus: corpus.into_iter().map(Into::into).collect(),
            inputs: INPUTS,
        }
    }

    /// So many inputs, where nothing else is said: fewer for what takes long.
    pub(crate) fn inputs(mut self, inputs: u64) -> Self {
        self.inputs = inputs;
        self
    }

    /// Tries the corpus as it is, then what becomes of it.
    pub(crate) fn run(self, check: impl Fn(&[u8])) {
        let found = self.find(check);
        if let Some(found) = found {
            panic!("{found}");
        }
    }

    /// The first input that a check does not hold for, in words.
    fn find(&self, check: impl Fn(&[u8])) -> Option<String> {
        assert!(
            !self.corpus.is_empty(),
            "{}: nothing to begin with",
            self.name
        );
        let tell = |bytes: &[u8], which: String| {
            let holds = catch_unwind(AssertUnwindSafe(|| check(bytes))).is_ok();
            let hex = || data_encoding::HEXLOWER.encode(bytes);
            (!holds).then(|| format!("{}, {which}: {}", self.name, hex()))
        };
        for (number, bytes) in self.corpus.iter().enumerate() {
            let found = tell(bytes, format!("number {number} of the corpus"));
            if found.is_some() {
                return found;
            }
        }
        let (seed, until) = plan();
        let began = Instant::now();
        for number in 0.. {
            let enough = match until {
                None => number >= self.inputs,
                Some(until) => began.elapsed() >= until,
            };
            if enough {
                println!("{}: {number} inputs from seed {seed}", self.name);
                break;
            }
            let mut dice = Dice::of(seed, number);
            let bytes = mutate(&mut dice, self.shape, &self.corpus);
            let found = tell(
                &bytes,
                format!("input {number} of QUORATE_FUZZ_SEED={seed}"),
            );
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

/// Where to begin, and for how long to go on.
fn plan() -> (u64, Option<Duration>) {
    let number = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(
            value
                .parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} is no number")),
        )
    };
    let until = number("QUORATE_FUZZ").map(|it| Duration::from_secs(60 * it));
    let seed = number("QUORATE_FUZZ_SEED").unwrap_or_else(|| match until {
        None => 0,
        Some(_) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |it| it.as_secs())
        }
    });
    (seed, until)
}

/// Does what is to be done with an input, and counts what is held for it at a time.
pub(crate) fn bounded<T>(input: &[u8], work: impl FnOnce() -> T) -> T {
    bounded_by(HELD_AT_LEAST, input, work)
}

/// As [`bounded`], where serde takes room for up to 1 MiB of each list that is announced.
pub(crate) fn bounded_by_serde<T>(input: &[u8], work: impl FnOnce() -> T) -> T {
    bounded_by(4 * 1024 * 1024, input, work)
}

/// As [`bounded`], where so much may be held whatever came.
pub(crate) fn bounded_by<T>(at_least: u64, input: &[u8], work: impl FnOnce() -> T) -> T {
    let mut done = None;
    let held = allocation_counter::measure(|| done = Some(work())).bytes_max;
    let allowed = at_least + HELD_BY_BYTE * input.len() as u64;
    assert!(
        held <= allowed,
        "{held} bytes are held for {} that came",
        input.len()
    );
    done.expect("it was done")
}

/// The ways in which a stream of these bytes may be cut.
pub(crate) fn cuts(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let places = match bytes.len() {
        length @ ..=CUT_EVERYWHERE => (0..=length).collect::<Vec<_>>(),
        length => (0..=CUTS).map(|it| it * length / CUTS).collect(),
    };
    let mut cuts: Vec<Vec<&[u8]>> = Vec::new();
    for at in places {
        let (before, behind) = bytes.split_at(at);
        cuts.push(vec![before, behind]);
    }
    cuts.push(bytes.chunks(1).collect());
    cuts.push(bytes.chunks(7).collect());
    cuts
}
