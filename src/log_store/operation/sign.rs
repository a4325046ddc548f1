//! Making operations, and checking who made them.

use std::{fmt, num::NonZero, thread};

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::{
    Operation,
    header::{self, Header},
    names::{Author, Line, LogId, OperationId},
    refused::Refused,
};

/// The secret key of an author: 32 bytes, an Ed25519 seed.
///
/// Treat it as a password. It is wiped from memory when dropped, never printed by `Debug`, and
/// not `Copy`. Two processes that write to one log with one key will fork it.
///
/// ```
/// use quorate::log_store::AuthorKey;
///
/// let key = AuthorKey::generate();
/// let kept = key.expose();                // for a file or a password store
/// assert_eq!(AuthorKey::from_bytes(&kept).author(), key.author());
/// assert_eq!(format!("{key:?}"), "AuthorKey([redacted])");
/// ```
///
/// # Invariants
/// - On the heap for good: moving the key copies a pointer, not the secret.
#[derive(Clone)]
pub struct AuthorKey(Box<SigningKey>);

impl AuthorKey {
    /// A new random key, seeded by the operating system.
    #[must_use]
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(&mut seed[..]);
        Self::from_bytes(&seed)
    }

    /// The key with these 32 bytes. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)))
    }

    /// The 32 bytes, which are wiped when dropped.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public key: the name under which its operations are known.
    #[must_use]
    pub fn author(&self) -> Author {
        Author::from_bytes(self.0.verifying_key().to_bytes())
    }
}

impl fmt::Debug for AuthorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorKey([redacted])")
    }
}

/// What an operation is to say, before it is signed.
///
/// ```
/// use quorate::log_store::{AuthorKey, Draft, Line, Operation, Topic};
///
/// let key = AuthorKey::generate();
/// let topic = Topic::named("chat");
///
/// let first = Draft::first(Line::V07, topic.log_id(), 1_700_000_000_000_000, Some("hi".into()));
/// let first = Operation::sign(first, &key)?;
///
/// let next = Draft::after(&first, 1_700_000_001_000_000, Some("again".into()));
/// let next = Operation::sign(next, &key)?;
/// assert_eq!((next.seq(), next.backlink()), (1, Some(first.id())));
/// # Ok::<(), quorate::log_store::Refused>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The line of the topic.
    pub line: Line,
    /// The log of the author: [`Topic::log_id`](super::Topic::log_id) of the topic.
    pub log_id: LogId,
    /// The place in the log, from 0.
    pub seq: u32,
    /// The operation before, exactly where `seq` is not 0.
    pub backlink: Option<OperationId>,
    /// Whether everything below may go.
    pub prune: bool,
    /// The author's time, in microseconds since 1970. Nobody checks it.
    pub timestamp_micros: u64,
    /// What the operation carries, at most [`BODY_BYTES_MAX`](super::BODY_BYTES_MAX). Empty is
    /// the same as none.
    pub body: Option<Bytes>,
}

impl Draft {
    /// The first operation of a log.
    #[must_use]
    pub fn first(line: Line, log_id: LogId, timestamp_micros: u64, body: Option<Bytes>) -> Self {
        Self {
            line,
            log_id,
            seq: 0,
            backlink: None,
            prune: false,
            timestamp_micros,
            body,
        }
    }

    /// The operation after `before`, in its log. After the last that a log can have comes none:
    /// [`Operation::sign`] refuses it.
    #[must_use]
    pub fn after(before: &Operation, timestamp_micros: u64, body: Option<Bytes>) -> Self {
        Self {
            line: before.line(),
            log_id: before.log_id(),
            // Wraps to a first operation that has a backlink, which breaks a rule.
            seq: before.seq().wrapping_add(1),
            backlink: Some(before.id()),
            prune: false,
            timestamp_micros,
            body,
        }
    }
}

impl Operation {
    /// Signs what a draft says.
    ///
    /// # Errors
    ///
    /// The rule that the draft breaks: a backlink with sequence 0 or none with another, a body
    /// that is too large.
    pub fn sign(draft: Draft, key: &AuthorKey) -> Result<Self, Refused> {
        let body = draft.body.filter(|body| !body.is_empty());
        let header = Header {
            author: key.author(),
            payload_size: body.as_ref().map_or(0, |body| body.len() as u64),
            payload_hash: body.as_ref().map(|body| blake3::hash(body).into()),
            timestamp_micros: draft.timestamp_micros,
            seq: draft.seq,
            backlink: draft.backlink,
            log_id: draft.log_id,
            prune: draft.prune,
        };
        let signature = key.0.sign(&header.encode(draft.line, None));
        let bytes = header.encode(draft.line, Some(&signature.to_bytes()));
        Self::decode(draft.line, bytes.into(), body)
    }

    /// Whether the author signed the header. Tens of microseconds: many at once are checked by
    /// [`verify_all`].
    ///
    /// Together with [`Operation::decode`] this is all that can be checked of one operation
    /// without its log.
    ///
    /// # Errors
    ///
    /// The author is no Ed25519 public key, or the signature is not theirs. The check is the
    /// strict one: keys and signatures of small order are refused.
    pub fn verify(&self) -> Result<(), Refused> {
        let invalid = Refused::SignatureInvalid { id: self.id() };
        let key = VerifyingKey::from_bytes(self.author().as_bytes())
            .map_err(|_| Refused::AuthorInvalid)?;
        let signature = header::signature(self.header()).ok_or(invalid)?;
        let signed = header::signed(self.header()).ok_or(invalid)?;
        key.verify_strict(&signed, &Signature::from_bytes(&signature))
            .map_err(|_| invalid)
    }
}

/// Checks the signatures of many operations, on all cores; the results are in their order.
///
/// Blocks until done: in a task, call it through `spawn_blocking`.
///
/// ```
/// use quorate::log_store::{AuthorKey, Draft, Line, Operation, Topic, verify_all};
///
/// let draft = Draft::first(Line::V06, Topic::named("chat").log_id(), 0, None);
/// let operation = Operation::sign(draft, &AuthorKey::generate())?;
/// assert_eq!(verify_all(&[operation.clone(), operation]), [Ok(()), Ok(())]);
/// # Ok::<(), quorate::log_store::Refused>(())
/// ```
#[must_use]
pub fn verify_all(operations: &[Operation]) -> Vec<Result<(), Refused>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(operations.len() / OPERATIONS_PER_THREAD_MIN);
    if threads < 2 {
        return operations.iter().map(Operation::verify).collect();
    }
    let share = operations.len().div_ceil(threads);
    let mut results = vec![Ok(()); operations.len()];
    thread::scope(|scope| {
        for (operations, results) in operations.chunks(share).zip(results.chunks_mut(share)) {
            scope.spawn(move || {
                for (operation, result) in operations.iter().zip(results) {
                    *result = operation.verify();
                }
            });
        }
    });
    results
}

/// Starting a thread takes about as long as checking one signature; below this it does not pay.
const OPERATIONS_PER_THREAD_MIN: usize = 8;
