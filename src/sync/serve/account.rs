//! What a session has come to: for the status of its peer, and for who hears of it at this member.

use std::{sync::atomic::Ordering::Relaxed, time::SystemTime};

use super::{
    Shared,
    inbound::Told,
    peers,
    session::{Agreed, End},
};
use crate::{
    log_store::{SessionEnd, SessionNews},
    sync::protocol::SyncError,
};

/// Why a session has ended that was dropped.
const CUT: &str = "it was ended on this side, before it was over";

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
    shared.peers.with(agreed.peer, agreed.topic, |it| {
        count(&mut it.told, sent, told);
        match (ended, wrong) {
            (Err(error), _) => it.told.last_error = Some(error.to_string()),
            (Ok(_), Some(wrong)) => it.told.last_error = Some(wrong),
            (Ok(_), None) => it.told.last_success = Some(SystemTime::now()),
        }
    });
    let error = ended.as_ref().err().map(ToString::to_string);
    let end = ended_with(sent, told, error);
    tell(shared, agreed, Some(end));
}

/// It was dropped before its end: what came to pass by then is told, and nothing of how it went.
pub(super) fn cut(shared: &Shared, agreed: &Agreed, sent: u64, told: &Told) {
    let (peer, topic) = (agreed.peer, agreed.topic);
    let peers = &shared.peers;
    peers.look(peer, topic, |it| count(&mut it.told, sent, told));
    let end = ended_with(sent, told, Some(CUT.to_owned()));
    tell(shared, agreed, Some(end));
}

fn count(counts: &mut peers::Told, sent: u64, told: &Told) {
    counts.sessions += 1;
    counts.sent += sent;
    counts.received += told.received.load(Relaxed);
    counts.appended += told.appended.load(Relaxed);
    counts.refused += told.refused.load(Relaxed);
    counts.put_off += told.again.load(Relaxed);
}

fn ended_with(sent: u64, told: &Told, error: Option<String>) -> SessionEnd {
    SessionEnd {
        sent,
        received: told.received.load(Relaxed),
        appended: told.appended.load(Relaxed),
        error,
    }
}

fn tell(shared: &Shared, agreed: &Agreed, ended: Option<SessionEnd>) {
    shared.logs.tell_session(SessionNews {
        topic: agreed.topic,
        peer: agreed.peer,
        ended,
    });
}
