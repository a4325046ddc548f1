//! Logs as a p2panda node would have written them, made without one.

use bytes::Bytes;
use quorate::log_store::{AuthorKey, Draft, Line, Operation, Topic};

/// Writes one author's log, operation by operation.
pub(crate) struct Mint {
    line: Line,
    topic: Topic,
    key: AuthorKey,
    last: Option<Operation>,
}

impl Mint {
    pub(crate) fn new(line: Line, topic: Topic, author: u8) -> Self {
        Self {
            line,
            topic,
            key: AuthorKey::from_bytes(&[author; 32]),
            last: None,
        }
    }

    /// The next operation, its body a CBOR text of about so many bytes.
    pub(crate) fn next(&mut self, bytes: usize) -> Operation {
        self.write(Some(body(self.seq(), bytes)), false)
    }

    /// The next operation, which lets go of all before it.
    pub(crate) fn prune(&mut self, bytes: usize) -> Operation {
        self.write(Some(body(self.seq(), bytes)), true)
    }

    fn seq(&self) -> u32 {
        self.last.as_ref().map_or(0, |it| it.seq() + 1)
    }

    fn write(&mut self, body: Option<Bytes>, prune: bool) -> Operation {
        let micros = 1_700_000_000_000_000 + u64::from(self.seq());
        let mut draft = match &self.last {
            None => Draft::first(self.line, self.topic.log_id(), micros, body),
            Some(last) => Draft::after(last, micros, body),
        };
        draft.prune = prune;
        let operation = Operation::sign(draft, &self.key).expect("it keeps the rules");
        self.last = Some(operation.clone());
        operation
    }
}

/// What p2panda's `Node` takes for a message of type `String`: a CBOR text, its length written the
/// shortest way.
fn body(seq: u32, bytes: usize) -> Bytes {
    let seq = seq.to_string();
    let text = "0".repeat(bytes.saturating_sub(5 + seq.len())) + &seq;
    let mut out = match text.len() {
        length @ 0..24 => vec![0x60 + length as u8],
        length @ 24..256 => vec![0x78, length as u8],
        length @ 256..65_536 => [&[0x79], &(length as u16).to_be_bytes()[..]].concat(),
        length => [&[0x7a], &(length as u32).to_be_bytes()[..]].concat(),
    };
    out.extend_from_slice(text.as_bytes());
    out.into()
}
