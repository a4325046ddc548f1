//! Operations for tests: honest logs, and what dishonest authors would write.

use bytes::Bytes;

use super::operation::{Author, AuthorKey, Draft, Line, LogId, Operation, OperationId, Topic};

/// An author who writes one log.
pub(crate) struct Writer {
    key: AuthorKey,
    line: Line,
    topic: Topic,
    last: Option<Operation>,
}

impl Writer {
    /// The author with this number; the same each time.
    pub(crate) fn new(number: u8, topic: Topic, line: Line) -> Self {
        Self {
            key: AuthorKey::from_bytes(&[number; 32]),
            line,
            topic,
            last: None,
        }
    }

    pub(crate) fn author(&self) -> Author {
        self.key.author()
    }

    pub(crate) fn log(&self) -> LogId {
        self.topic.log_id()
    }

    /// The next operation of the log.
    pub(crate) fn next(&mut self, body: &str) -> Operation {
        let draft = self.draft(body);
        self.keep(draft)
    }

    /// The next one, with the prune flag.
    pub(crate) fn prune(&mut self, body: &str) -> Operation {
        let draft = Draft {
            prune: true,
            ..self.draft(body)
        };
        self.keep(draft)
    }

    pub(crate) fn many(&mut self, count: usize) -> Vec<Operation> {
        (0..count).map(|n| self.next(&format!("{n}"))).collect()
    }

    /// Another operation than the log's own, which goes on as if it were not there.
    pub(crate) fn aside(&self, seq: u32, backlink: Option<OperationId>, prune: bool) -> Operation {
        let draft = Draft {
            seq,
            backlink,
            prune,
            ..self.draft("aside")
        };
        Operation::sign(draft, &self.key).expect("a draft that keeps the rules")
    }

    fn draft(&self, body: &str) -> Draft {
        let body = (!body.is_empty()).then(|| Bytes::copy_from_slice(body.as_bytes()));
        match &self.last {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(self.line, self.topic.log_id(), 7, body),
        }
    }

    fn keep(&mut self, draft: Draft) -> Operation {
        let operation = Operation::sign(draft, &self.key).expect("a draft that keeps the rules");
        self.last = Some(operation.clone());
        operation
    }
}

/// The same operation with another signature: well-formed, and forged.
pub(crate) fn forged(operation: &Operation) -> Operation {
    let mut header = operation.header().to_vec();
    // Behind version and key: 1 + 1 + (2 + 32) bytes and the 2 of the signature's own head.
    header[50] ^= 1;
    let (line, body) = (operation.line(), operation.body().cloned());
    Operation::decode(line, header.into(), body).expect("a signature is any 64 bytes")
}
