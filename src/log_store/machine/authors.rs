//! How many authors a topic has: bounded, so that what is held can always be said.
//!
//! A `Have` names every author of a topic, and what it may name is limited. Whoever may push can
//! make up authors without end; beyond the limit the operations of new ones are refused, and those
//! of the others go on.

use std::ops::ControlFlow;

use super::{LogStore, readable};
use crate::{
    log_store::{
        operation::{LogId, Topic},
        table::{self, Head},
    },
    machine::{Order, Table},
};

/// The most authors of one topic whose logs hold something and were not taken out of it. Frozen:
/// members must agree on what they refuse.
///
/// Half of what a `Have` may name, so that a peer that holds logs of others besides is still
/// understood.
pub const TOPIC_AUTHORS_MAX: u32 = 32_768;

impl LogStore {
    /// The authors of a topic, counted anew where that was not written down yet.
    pub(super) fn authors(&self, topic: Topic) -> u32 {
        authors(&self.table, topic.log_id())
    }

    /// As if it had as many as it may.
    #[cfg(test)]
    pub(in crate::log_store) fn fill_with_authors(&self, topic: Topic) {
        self.put_authors(topic, TOPIC_AUTHORS_MAX);
    }

    pub(super) fn put_authors(&self, topic: Topic, count: u32) {
        let key = table::authors_key(topic.log_id());
        self.table.put(&key, table::encode_authors(count));
    }
}

/// The same at every member: the table is, and a store that was written before there was a limit
/// is counted when it first matters.
pub(super) fn authors(table: &Table, log: LogId) -> u32 {
    if let Some(value) = table.get(&table::authors_key(log)) {
        return readable(table::decode_authors(&value));
    }
    let (from, to) = table::heads(log);
    let mut count = 0;
    table.scan(&from, &to, Order::Ascending, &mut |_, value| {
        count += u32::from(counts(&readable(Head::decode(value))));
        ControlFlow::Continue(())
    });
    count
}

/// Whether an author with this head is one of the topic's.
pub(super) fn counts(head: &Head) -> bool {
    head.associated && head.held.is_some()
}
