//! The topic handshake over its stream, as either side.

use std::time::Duration;

use tokio::time::{error::Elapsed, timeout};

use crate::{
    log_store::{Line, Topic},
    sync::{
        protocol::SyncError,
        session::Handshake,
        wire::{Connection, Recv, Send},
    },
};

/// Runs the topic handshake as the side that dialled.
pub(super) async fn ask(
    connection: &Connection,
    line: Line,
    topic: Topic,
    within: Duration,
) -> Result<(), SyncError> {
    let (send, recv) = timeout(within, connection.open())
        .await
        .map_err(|_| SyncError::unexpected("it takes no stream"))?
        .map_err(SyncError::unexpected)?;
    let handshake = Handshake::initiate(line, topic);
    let shaking = shake(handshake, send, recv, |_, _| true);
    in_time(timeout(within, shaking).await).map(drop)
}

/// Runs the topic handshake as the side that was dialled; what the peer asks for, if it is served.
pub(super) async fn answer(
    connection: &Connection,
    served: impl Fn(Line, Topic) -> bool,
    within: Duration,
) -> Result<(Line, Topic), SyncError> {
    let (send, recv) = timeout(within, connection.accept())
        .await
        .map_err(|_| SyncError::unexpected("no topic was asked for in time"))?
        .map_err(SyncError::unexpected)?;
    let shaking = shake(Handshake::accept(), send, recv, served);
    in_time(timeout(within, shaking).await)
}

async fn shake(
    mut handshake: Handshake,
    mut send: Send,
    mut recv: Recv,
    served: impl Fn(Line, Topic) -> bool,
) -> Result<(Line, Topic), SyncError> {
    loop {
        while let Some(bytes) = handshake.poll_transmit() {
            send.write_all(bytes).await.map_err(SyncError::unexpected)?;
        }
        let asked = handshake.asked();
        if let Some((line, topic)) = asked
            && !served(line, topic)
        {
            let why = format!("a topic that is not served in line {line} was asked for");
            return Err(SyncError::unexpected(why));
        }
        if let (true, Some(asked)) = (handshake.is_done(), asked) {
            send.finish();
            return Ok(asked);
        }
        match recv.read().await.map_err(SyncError::unexpected)? {
            Some(bytes) => handshake.received(bytes)?,
            None => handshake.received_end()?,
        }
    }
}

fn in_time<T>(shaken: Result<Result<T, SyncError>, Elapsed>) -> Result<T, SyncError> {
    shaken.map_err(|_| SyncError::unexpected("the topic handshake took too long"))?
}
