//! Operations: signed headers with bodies, as p2panda 0.6.1 and 0.7.1 make them.
//!
//! An operation is kept as the bytes it came in: they are stored, sent and hashed as they are,
//! and never encoded again. So only the one canonical form is taken, and nothing that a standard
//! node of the same line would refuse. Where the rules here are stricter than there, [`Refused`]
//! or the codec of the line says why.

mod cbor;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden_tests;
mod header;
mod header_v06;
mod header_v07;
mod names;
mod refused;
#[cfg(test)]
mod rule_tests;
mod sign;
#[cfg(test)]
mod stock_tests;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

use header::Header;

pub use names::{Author, Line, LogId, OperationId, ParseLineError, ParseNameError, Topic};
pub use refused::{Field, Refused};
pub use sign::{AuthorKey, Draft, verify_all};

/// The longest header, in bytes. What standard nodes write has up to 272; line 0.7 can carry up
/// to 512 previous operations and extensions of later versions.
pub const HEADER_BYTES_MAX: u64 = 64 * 1024;

/// The largest body, in bytes. A standard node would take more, but slowly, and must hold all of
/// it in memory several times.
pub const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// One entry of one author's log: the bytes of its header and body, and what the header says.
///
/// Cheap to clone: the bytes are shared.
///
/// ```
/// use quorate::log_store::{AuthorKey, Draft, Line, Operation, Topic};
///
/// let draft = Draft::first(Line::V07, Topic::named("chat").log_id(), 0, Some("hi".into()));
/// let made = Operation::sign(draft, &AuthorKey::generate())?;
///
/// // What the other side does with what it got.
/// let got = Operation::decode(Line::V07, made.header().clone(), made.body().cloned())?;
/// got.verify()?;
/// assert_eq!(got, made);
/// # Ok::<(), quorate::log_store::Refused>(())
/// ```
///
/// # Invariants
/// - The header is canonical for its line, and the id is its hash.
/// - The body, if it is there, is the one that the header names. It may be missing, where the
///   sender did not have it or dropped it.
/// - The signature may be anything until [`Operation::verify`] has been asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Operation {
    line: Line,
    id: OperationId,
    header: Bytes,
    body: Option<Bytes>,
    says: Header,
}

impl Operation {
    /// Checks everything that the bytes tell alone: form, limits, versions, and that the body is
    /// the one that was signed. Not the signature, and not whether it continues its log.
    ///
    /// Takes time proportional to the size, and copies neither header nor body.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn decode(line: Line, header: Bytes, body: Option<Bytes>) -> Result<Self, Refused> {
        let length = header.len() as u64;
        if length > HEADER_BYTES_MAX {
            return Err(Refused::HeaderTooLong { bytes: length });
        }
        let says = Header::decode(line, &header).map_err(|refused| {
            let other = line.other();
            match Header::decode(other, &header) {
                Ok(_) => Refused::OtherLine { found: other },
                Err(_) => refused,
            }
        })?;
        if let Some(body) = &body {
            check_body(&says, body)?;
        }
        let id = OperationId::from_bytes(blake3::hash(&header).into());
        Ok(Self {
            line,
            id,
            header,
            body,
            says,
        })
    }

    /// The generation of formats that it is written in.
    #[must_use]
    pub fn line(&self) -> Line {
        self.line
    }

    /// Its name: the BLAKE3 hash of its header.
    #[must_use]
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// Who is said to have signed it.
    #[must_use]
    pub fn author(&self) -> Author {
        self.says.author
    }

    /// The log of the author that it is in.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.says.log_id
    }

    /// Its place in the log, from 0.
    #[must_use]
    pub fn seq(&self) -> u32 {
        self.says.seq
    }

    /// The operation before it; none exactly where [`Operation::seq`] is 0.
    #[must_use]
    pub fn backlink(&self) -> Option<OperationId> {
        self.says.backlink
    }

    /// Whether everything below it in its log may go.
    #[must_use]
    pub fn prune(&self) -> bool {
        self.says.prune
    }

    /// When the author says to have made it, in microseconds since 1970. Any number.
    #[must_use]
    pub fn timestamp_micros(&self) -> u64 {
        self.says.timestamp_micros
    }

    /// How many bytes the body has, wherever it may be.
    #[must_use]
    pub fn payload_size(&self) -> u64 {
        self.says.payload_size
    }

    /// The BLAKE3 hash of the body; none exactly where [`Operation::payload_size`] is 0.
    #[must_use]
    pub fn payload_hash(&self) -> Option<[u8; 32]> {
        self.says.payload_hash
    }

    /// The header as it came.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// The body as it came; none where there is none, or where it was not sent along.
    #[must_use]
    pub fn body(&self) -> Option<&Bytes> {
        self.body.as_ref()
    }

    /// How many bytes are here: header and body.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.header.len() + self.body.as_ref().map_or(0, Bytes::len)) as u64
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("line", &format_args!("{}", self.line))
            .field("id", &self.id)
            .field("author", &self.author())
            .field("seq", &self.seq())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

fn check_body(says: &Header, body: &[u8]) -> Result<(), Refused> {
    let (found, wanted) = (body.len() as u64, says.payload_size);
    let Some(hash) = says.payload_hash else {
        return Err(Refused::BodyUnexpected);
    };
    if found != wanted {
        return Err(Refused::BodySize { found, wanted });
    }
    if blake3::hash(body) != hash {
        return Err(Refused::BodyHash);
    }
    Ok(())
}
