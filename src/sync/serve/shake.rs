//! The topic handshake over its stream, as either side.

use tokio::time::timeout;

use super::session::HANDSHAKE_MAX;
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
) -> Result<(), SyncError> {
    let (send, recv) = timeout(HANDSHAKE_MAX, connection.open())
        .await
        .map_err(|_| SyncError::unexpected("it takes no stream"))?
        .map_err(SyncError::unexpected)?;
    let handshake = Handshake::initiate(line, topic);
    shake(handshake, send, recv, |_, _| true).await.map(drop)
}

/// Runs the topic handshake as the side that was dialled; what the peer asks for, if it is served.
pub(super) async fn answer(
    connection: &Connection,
    served: impl Fn(Line, Topic) -> bool,
) -> Result<(Line, Topic), SyncError> {
    let (send, recv) = timeout(HANDSHAKE_MAX, connection.accept())
        .await
        .map_err(|_| SyncError::unexpected("no topic was asked for in time"))?
        .map_err(SyncError::unexpected)?;
    shake(Handshake::accept(), send, recv, served).await
}

async fn shake(
    mut handshake: Handshake,
    mut send: Send,
    mut recv: Recv,
    served: impl Fn(Line, Topic) -> bool,
) -> Result<(Line, Topic), SyncError> {
    let shaking = async {
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
    };
    let shaken = timeout(HANDSHAKE_MAX, shaking).await;
    shaken.map_err(|_| SyncError::unexpected("the topic handshake took too long"))?
}
