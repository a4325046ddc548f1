//! Watches what one side puts on the wire, by the rules that stock nodes live by.
//!
//! Written from the protocol, apart from the session: it knows only messages sent and messages
//! that had arrived by then.

use bytes::Bytes;

use crate::{
    log_store::Line,
    sync::codec::{Decoder, Limits, Message},
};

pub(super) struct Monitor {
    decoder: Decoder,
    initiator: bool,
    heard_anything: bool,
    heard_have: bool,
    heard_done: bool,
    sent: Vec<&'static str>,
    announced: Option<u32>,
    pub(super) operations: u32,
}

impl Monitor {
    pub(super) fn new(line: Line, initiator: bool) -> Self {
        Self {
            decoder: Decoder::new(line, Limits::of(line)),
            initiator,
            heard_anything: false,
            heard_have: false,
            heard_done: false,
            sent: Vec::new(),
            announced: None,
            operations: 0,
        }
    }

    /// The other side's message has arrived at this one.
    pub(super) fn hears(&mut self, message: &Message) {
        self.heard_anything = true;
        self.heard_have |= matches!(message, Message::Have(_));
        self.heard_done |= matches!(message, Message::Done);
    }

    /// This side puts these bytes on the wire; gives the messages that they complete.
    pub(super) fn says(&mut self, bytes: &Bytes) -> Vec<Message> {
        if self.initiator && self.sent.is_empty() {
            assert!(!self.heard_anything, "nobody answers a silent initiator");
        }
        self.decoder.push(bytes.clone());
        let mut messages = Vec::new();
        while let Some(message) = self.decoder.next().expect("we speak the line") {
            self.judge(&message);
            self.sent.push(message.name());
            messages.push(message);
        }
        messages
    }

    /// This side finishes its stream.
    pub(super) fn ends(&self) {
        assert!(self.sent.contains(&"Done"), "an end before Done");
        assert_eq!(self.decoder.held(), 0, "an end inside a message");
    }

    fn judge(&mut self, message: &Message) {
        let sent = &self.sent;
        let last = sent.last().copied().unwrap_or("");
        let said = |name| sent.contains(&name);
        match message {
            Message::Have(_) => assert!(sent.is_empty(), "Have comes first: {sent:?}"),
            Message::PreSync { operations, .. } => {
                assert_eq!(last, "Have", "PreSync follows Have");
                assert!(self.heard_have, "PreSync answers their Have");
                assert!(*operations > 0, "PreSync announces something");
                self.announced = Some(*operations);
            }
            Message::Operation { .. } => {
                assert!(said("PreSync") && !said("Done"), "Operation: {last}");
                self.operations += 1;
                assert!(self.operations <= self.announced.unwrap(), "announced");
            }
            Message::Done => {
                assert!(said("Have") && self.heard_have && !said("Done"), "{sent:?}");
                assert_eq!(self.operations, self.announced.unwrap_or(0), "as announced");
            }
            Message::Live { .. } => {
                assert!(said("Done") && self.heard_done, "Live: {sent:?}");
                assert!(!said("Close"), "Live behind Close");
            }
            Message::Close => {
                assert!(said("Done") && self.heard_done, "Close: {sent:?}");
                assert!(!said("Close"), "Close twice");
            }
        }
    }
}
