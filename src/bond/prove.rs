//! Moves the handshake's frames over a stream and keeps its times. What the frames mean is
//! `handshake.rs`.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    Channel, Credentials, Proof,
    handshake::{
        Acceptor, FRAME_MAX, HANDSHAKE_TIME, HandshakeError, Initiator, REFUSAL, REFUSED_AFTER,
    },
};
use crate::net::{BondStream, WireError, frame::FrameError};

/// How long a refused peer is given to take the refusal before the stream is dropped.
const REFUSAL_WRITE: Duration = Duration::from_secs(1);

/// The handshake of the side that opened the stream.
pub(crate) async fn initiate(
    channel: &Channel,
    credentials: &Credentials,
    stream: &mut BondStream,
    opened: Instant,
) -> Result<Proof, NotProven> {
    within(opened, async {
        let (initiator, hello) = Initiator::start(channel, credentials, rand::random());
        stream.send.write_frame(hello).await?;
        let hello = next(stream).await?;
        if hello == REFUSAL {
            return Err(HandshakeError::Refused.into());
        }
        let proof = next(stream).await?;
        let (ours, proof) = initiator.finish(&hello, &proof)?;
        stream.send.write_frame(ours).await?;
        Ok(proof)
    })
    .await
}

/// The handshake of the other side, which has read the initiator's first frame.
pub(crate) async fn respond(
    channel: &Channel,
    find: impl FnOnce(&[u8; 16]) -> Option<Credentials>,
    hello: &[u8],
    stream: &mut BondStream,
    opened: Instant,
) -> Result<Proof, NotProven> {
    within(opened, async {
        let (acceptor, hello, proof) = Acceptor::answer(channel, find, hello, rand::random())?;
        stream.send.write_frames(&mut vec![hello, proof]).await?;
        let proof = next(stream).await?;
        Ok(acceptor.finish(&proof)?)
    })
    .await
}

/// Sends the one refusal, when its time has come, and ends the stream.
pub(crate) async fn refuse(stream: &mut BondStream, opened: Instant) {
    sleep_until(opened + REFUSED_AFTER).await;
    let written = stream.send.write_frame(Bytes::from_static(REFUSAL));
    // A peer that is gone needs no refusal.
    let _ = tokio::time::timeout(REFUSAL_WRITE, written).await;
    stream.send.finish();
}

async fn within<T>(
    opened: Instant,
    handshake: impl Future<Output = Result<T, NotProven>>,
) -> Result<T, NotProven> {
    timeout_at(opened + HANDSHAKE_TIME, handshake)
        .await
        .unwrap_or(Err(NotProven::Slow))
}

async fn next(stream: &mut BondStream) -> Result<Bytes, NotProven> {
    stream
        .recv
        .read_frame(FRAME_MAX)
        .await?
        .ok_or(NotProven::Left)
}

/// Why a handshake came to nothing, for the log of this side only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotProven {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the peer ended the stream in the middle of the handshake")]
    Left,
    #[error("the handshake took too long")]
    Slow,
}

impl NotProven {
    /// Whether the peer ended the handshake, so that it needs no refusal of ours.
    pub(crate) fn is_theirs(&self) -> bool {
        matches!(
            self,
            Self::Handshake(HandshakeError::Refused) | Self::Wire(_) | Self::Left
        )
    }
}
