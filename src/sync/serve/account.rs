//! What a session has come to: for the status of its peer, and for who hears of it at this member.

use std::{sync::atomic::Ordering::Relaxed, time::SystemTime};

use super::{
    Shared,
    inbound::Told,
    session::{Agreed, End},
};
use crate::{
    log_store::{SessionEnd, SessionNews},
    sync::protocol::SyncError,
};

/// It begins. A surplus session too: it may bring something.
pub(super) fn open(shared: &Shared, agreed: &Agreed) {
    tell(shared, agreed, None);
}

/// It has ended, and what came in is committed or refused.
pub(super) fn close(
    shared: &Shared,
    agreed: &Agreed,
    sent: u64,
    told: &Told,
    wrong: Option<String>,
    ended: &Result<End, SyncError>,
) {
    let received = told.received.load(Relaxed);
    let appended = told.appended.load(Relaxed);
    let end = SessionEnd {
        sent,
        received,
        appended,
        error: ended.as_ref().err().map(ToString::to_string),
    };
    shared.peers.with(agreed.peer, agreed.topic, |it| {
        it.told.sessions += 1;
        it.told.sent += sent;
        it.told.received += received;
        it.told.appended += appended;
        it.told.refused += told.refused.load(Relaxed);
        it.told.put_off += told.again.load(Relaxed);
        match (ended, wrong) {
            (Err(error), _) => it.told.last_error = Some(error.to_string()),
            (Ok(_), Some(wrong)) => it.told.last_error = Some(wrong),
            (Ok(_), None) => it.told.last_success = Some(SystemTime::now()),
        }
    });
    tell(shared, agreed, Some(end));
}

fn tell(shared: &Shared, agreed: &Agreed, ended: Option<SessionEnd>) {
    shared.logs.tell_session(SessionNews {
        topic: agreed.topic,
        peer: agreed.peer,
        ended,
    });
}
