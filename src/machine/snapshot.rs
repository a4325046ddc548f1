//! State carried whole: written once by one member, read by another or after a restart.
//!
//! Both directions stream. What a value needs in memory while it is read is bounded by the bytes
//! that are really there, never by a length that the bytes claim.

use std::{
    error::Error,
    fmt,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
};

use postcard::de_flavors::Flavor;
use serde::{Serialize, de::DeserializeOwned};

use super::Table;

/// How much is moved at once between a snapshot and what it is written to or read from, in bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// A state captured at one position, to be written elsewhere and later.
///
/// Capture first, then hand over: whatever the closure holds must no longer change when the machine
/// does. A clone of an [`im::OrdMap`] or of an `Arc` is such a capture and costs nothing.
///
/// ```
/// use std::collections::BTreeMap;
/// use quorate::{Snapshot, SnapshotReader};
///
/// let state = BTreeMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)]);
/// let mut bytes = Vec::new();
/// Snapshot::of(state.clone()).write_to(&mut bytes)?;
///
/// let mut from = bytes.as_slice();
/// let restored: BTreeMap<String, u64> = SnapshotReader::new(&mut from).value()?;
/// assert_eq!(restored, state);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Snapshot {
    write: WriteState,
}

type WriteState = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

impl Snapshot {
    /// A snapshot in the machine's own format. `write` runs once, on another thread, while commands
    /// are applied again; checksums are added around it.
    ///
    /// Two members that applied the same commands must write the same bytes: no addresses, no
    /// clock, no order of a hash table.
    pub fn new(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        Self {
            write: Box::new(write),
        }
    }

    /// A snapshot that is this value, encoded as postcard and read back by
    /// [`SnapshotReader::value`]. Writing it fails when `value` does not say how long its sequences
    /// are.
    pub fn of<T: Serialize + Send + 'static>(value: T) -> Self {
        Self::new(move |out| {
            let mut sink = Sink {
                out: BufWriter::with_capacity(CHUNK_BYTES, out),
                failed: None,
            };
            match postcard::to_io(&value, &mut sink) {
                Ok(_) => Ok(()),
                Err(error) => Err(sink.failed.take().unwrap_or_else(|| {
                    invalid(format!(
                        "the state cannot be encoded as a snapshot: {error}"
                    ))
                })),
            }
        })
    }

    /// A snapshot of everything a table holds: what a machine returns that keeps its state there.
    /// [`Table::restore`] reads it. Pinned now, by a thread that keeps
    /// the moment, and written a piece at a time.
    #[must_use]
    pub fn of_table(table: &Table) -> Self {
        match table.pin() {
            Ok(write) => Self::new(write),
            Err(error) => Self::new(move |_| Err(error)),
        }
    }

    /// Writes the state out. A group does this by itself; call it to test a machine.
    ///
    /// # Errors
    /// What `out` failed with, or what the machine's own writer did.
    pub fn write_to(self, out: &mut dyn Write) -> io::Result<()> {
        (self.write)(out)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

/// The bytes of a snapshot on their way into a machine: a plain [`Read`], or one [`value`].
///
/// Their checksums are verified as they are read, so a damaged snapshot shows as an error of the
/// reader: pass it on. [`Snapshot`] has an example.
///
/// [`value`]: SnapshotReader::value
pub struct SnapshotReader<'a> {
    from: &'a mut dyn Read,
}

impl<'a> SnapshotReader<'a> {
    /// Reads a snapshot from `from`. A group does this by itself; call it to test a machine.
    pub fn new(from: &'a mut dyn Read) -> Self {
        Self { from }
    }

    /// The value that [`Snapshot::of`] wrote, decoded as it streams in.
    ///
    /// # Errors
    /// When the bytes are not such a value, end early, go on after it, or cannot be read.
    ///
    /// A type that reserves room for a map by the count that the bytes claim would undo the bound
    /// on memory (the maps of the standard library do not, those of [`im`] do): read such a map as
    /// a `Vec` of pairs, which is encoded alike.
    pub fn value<T: DeserializeOwned>(self) -> io::Result<T> {
        let mut decoder = postcard::Deserializer::from_flavor(Source {
            from: BufReader::with_capacity(CHUNK_BYTES, self.from),
            taken: Vec::new(),
            failed: None,
        });
        let decoded = T::deserialize(&mut decoder);
        let mut source = decoder.finalize().map_err(not_such_a_value)?;
        match (decoded, source.failed.take()) {
            (_, Some(failed)) => Err(failed),
            (Err(error), None) => Err(not_such_a_value(error)),
            (Ok(_), None) if !source.from.fill_buf()?.is_empty() => {
                Err(invalid("the snapshot goes on after its value"))
            }
            (Ok(value), None) => Ok(value),
        }
    }
}

impl Read for SnapshotReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.from.read(into)
    }
}

impl fmt::Debug for SnapshotReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReader").finish_non_exhaustive()
    }
}

/// Keeps the I/O error that postcard would turn into "buffer full".
struct Sink<W: Write> {
    out: W,
    failed: Option<io::Error>,
}

impl<W: Write> Sink<W> {
    fn keep<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        done.map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.out.write(bytes);
        self.keep(done)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let done = self.out.write_all(bytes);
        self.keep(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.out.flush();
        self.keep(done)
    }
}

/// What postcard decodes from.
struct Source<'a> {
    from: BufReader<&'a mut dyn Read>,
    /// The bytes last taken: grows with what arrives, not with what was announced.
    taken: Vec<u8>,
    /// The I/O error that postcard would turn into "unexpected end".
    failed: Option<io::Error>,
}

impl Source<'_> {
    fn fail(&mut self, error: io::Error) -> postcard::Error {
        if error.kind() != io::ErrorKind::UnexpectedEof {
            self.failed = Some(error);
        }
        postcard::Error::DeserializeUnexpectedEnd
    }
}

impl<'de> Flavor<'de> for Source<'de> {
    type Remainder = Self;
    type Source = &'de [u8];

    fn pop(&mut self) -> postcard::Result<u8> {
        let mut byte = [0];
        match self.from.read_exact(&mut byte) {
            Ok(()) => Ok(byte[0]),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Nothing is known to remain, so no sequence is given room ahead of its elements.
    fn size_hint(&self) -> Option<usize> {
        Some(0)
    }

    /// Only a type that borrows from its input asks for this, and `DeserializeOwned` ones do not.
    fn try_take_n(&mut self, _count: usize) -> postcard::Result<&'de [u8]> {
        Err(postcard::Error::WontImplement)
    }

    fn try_take_n_temp<'a>(&'a mut self, count: usize) -> postcard::Result<&'a [u8]>
    where
        'de: 'a,
    {
        self.taken.clear();
        self.taken.shrink_to(CHUNK_BYTES);
        match (&mut self.from)
            .take(count as u64)
            .read_to_end(&mut self.taken)
        {
            Ok(taken) if taken == count => Ok(&self.taken),
            Ok(_) => Err(postcard::Error::DeserializeUnexpectedEnd),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn finalize(self) -> postcard::Result<Self> {
        Ok(self)
    }
}

fn not_such_a_value(error: postcard::Error) -> io::Error {
    invalid(format!("the snapshot is not of this machine: {error}"))
}

fn invalid(error: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    type Everything = (
        u64,
        String,
        Vec<u8>,
        BTreeMap<String, Option<i32>>,
        char,
        f64,
        bytes::Bytes,
    );

    fn written(snapshot: Snapshot) -> Vec<u8> {
        let mut bytes = Vec::new();
        snapshot.write_to(&mut bytes).expect("memory takes it");
        bytes
    }

    fn read<T: DeserializeOwned>(mut bytes: &[u8]) -> io::Result<T> {
        SnapshotReader::new(&mut bytes).value()
    }

    fn everything() -> Everything {
        let map = BTreeMap::from([("a".to_owned(), Some(-1)), ("b".to_owned(), None)]);
        let long = bytes::Bytes::from(vec![7; 3 * CHUNK_BYTES]);
        (
            u64::MAX,
            "text".to_owned(),
            vec![1, 2, 3],
            map,
            'ß',
            1.5,
            long,
        )
    }

    #[test]
    fn a_value_comes_back() {
        let bytes = written(Snapshot::of(everything()));
        assert_eq!(
            read::<Everything>(&bytes).expect("it was written so"),
            everything()
        );
    }

    #[test]
    fn a_value_cut_anywhere_is_refused() {
        let bytes = written(Snapshot::of(everything()));
        let near_ends = (0..64).chain(bytes.len() - 64..bytes.len());
        for length in near_ends {
            let error = read::<Everything>(&bytes[..length]).expect_err("it is cut");
            assert_eq!(
                error.kind(),
                io::ErrorKind::InvalidData,
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        let mut bytes = written(Snapshot::of(everything()));
        bytes.push(0);
        let error = read::<Everything>(&bytes).expect_err("one byte too many");
        assert!(error.to_string().contains("goes on"), "{error}");
    }

    #[test]
    fn a_claimed_length_takes_no_memory() {
        // Each claims 2^63 elements or more and has none. Reserving that would end the process.
        let bomb = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        read::<Vec<u64>>(&bomb).expect_err("no elements");
        read::<Vec<(bytes::Bytes, bytes::Bytes)>>(&bomb).expect_err("no pairs");
        read::<bytes::Bytes>(&bomb).expect_err("no bytes");
        read::<String>(&bomb).expect_err("no text");
        read::<HashMap<u64, u64>>(&bomb).expect_err("no entries");
    }

    #[test]
    fn errors_of_the_disk_come_through_as_they_are() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("bad checksum"))
            }
        }
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("disk full"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = SnapshotReader::new(&mut Broken)
            .value::<u64>()
            .expect_err("it is broken");
        assert_eq!(error.to_string(), "bad checksum");
        for value in [vec![1_u8], vec![1; 4 * CHUNK_BYTES]] {
            let error = Snapshot::of(value)
                .write_to(&mut Broken)
                .expect_err("it is broken");
            assert_eq!(error.to_string(), "disk full");
        }
    }

    #[test]
    fn writing_needs_no_memory_for_the_whole() {
        /// Counts, and remembers the largest piece it was handed.
        #[derive(Default)]
        struct Count {
            bytes: usize,
            largest: usize,
        }
        impl Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.bytes += bytes.len();
                self.largest = self.largest.max(bytes.len());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut count = Count::default();
        Snapshot::of(vec![u64::MAX; 100_000])
            .write_to(&mut count)
            .expect("it counts");
        assert!(count.bytes > 10 * CHUNK_BYTES && count.largest <= CHUNK_BYTES);
    }

    #[test]
    fn a_machine_may_read_and_write_its_own_format() {
        let bytes = written(Snapshot::new(|out| out.write_all(b"own format")));
        let mut text = String::new();
        SnapshotReader::new(&mut &bytes[..])
            .read_to_string(&mut text)
            .expect("it is text");
        assert_eq!(text, "own format");
    }
}
