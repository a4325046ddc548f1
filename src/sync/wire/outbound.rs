//! Connections that gossip has dialled: it tells nobody of them, so they are noted as they come
//! up, for whoever decides with whom there may be any.

use iroh::endpoint::{
    AfterHandshakeOutcome, Connection, EndpointHooks, Side, VarInt, WeakConnectionHandle,
};
use tokio::sync::mpsc;

use crate::identity::PeerId;

/// Connections that nobody has looked at yet; with more, further ones are closed.
pub(super) const WAITING_MAX: usize = 64;

/// Notes them.
#[derive(Debug)]
pub(super) struct Noting {
    /// That of gossip.
    pub(super) alpn: Vec<u8>,
    /// Weak ones: a connection that gossip drops is to close.
    pub(super) to: mpsc::Sender<WeakConnectionHandle>,
}

impl EndpointHooks for Noting {
    async fn after_handshake<'a>(&'a self, connection: &'a Connection) -> AfterHandshakeOutcome {
        let ours = connection.side() == Side::Client && connection.alpn() == self.alpn;
        if ours && self.to.try_send(connection.weak_handle()).is_err() {
            return AfterHandshakeOutcome::Reject {
                error_code: VarInt::from_u32(0),
                reason: b"too many at once".to_vec(),
            };
        }
        AfterHandshakeOutcome::Accept
    }
}

/// A connection that gossip has dialled. It is gossip's, and not kept open by this.
pub(crate) struct Outbound {
    peer: PeerId,
    connection: WeakConnectionHandle,
}

impl Outbound {
    /// None if it is gone already.
    pub(super) fn of(connection: WeakConnectionHandle) -> Option<Self> {
        let peer = connection.upgrade()?.remote_id();
        Some(Self {
            peer: PeerId::from_bytes(*peer.as_bytes()),
            connection,
        })
    }

    /// The authenticated name of the other end.
    pub(crate) fn remote(&self) -> PeerId {
        self.peer
    }

    /// Waits for the end of the connection.
    pub(crate) async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Ends the connection at once. Idempotent.
    pub(crate) fn close(&self, reason: &str) {
        if let Some(connection) = self.connection.upgrade() {
            connection.close(VarInt::from_u32(0), reason.as_bytes());
        }
    }
}
