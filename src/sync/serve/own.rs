//! Sessions of a program's own protocols, as they come in and go out.

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{FULL, Shared, Sync};
use crate::{
    identity::{PeerAddr, PeerId},
    sync::{
        client::ServeLimits,
        mount::Own,
        protocol::SyncError,
        wire::{Connection, Service},
    },
};

impl Shared {
    /// Whether a peer that has proven its name may come in for this.
    pub(super) fn lets_in(&self, service: Service, peer: PeerId) -> bool {
        match service {
            Service::Own(at) => self.own(at).is_some_and(|it| it.admits(peer)),
            _ => self.is_welcome(peer),
        }
    }

    fn own(&self, at: usize) -> Option<&Arc<dyn Own>> {
        self.options.protocols.get(at).map(|it| &it.own)
    }

    /// Serves a session that a peer has begun.
    pub(super) async fn serve_own(
        self: &Arc<Self>,
        at: usize,
        connection: &Connection,
    ) -> Result<(), SyncError> {
        let peer = connection.remote();
        let own = self.own(at);
        let own = own.ok_or_else(|| SyncError::critical("it is not mounted"))?;
        let over = self.stop.child_token();
        let (Some(_room), Some(_seat)) = (own.room(), self.room(peer, &over)) else {
            connection.close(FULL);
            return Err(SyncError::critical(FULL));
        };
        let session = async {
            let limit = ServeLimits::default().request_within;
            let stream = timeout(limit, connection.accept_bytes()).await;
            let (mut read, mut write) = stream
                .map_err(|_| SyncError::unexpected("nothing was asked for in time"))?
                .map_err(SyncError::unexpected)?;
            connection.admit();
            tokio::select! {
                biased;
                ended = own.accept(peer, &mut write, &mut read) => ended?,
                // It stays until it has everything, so it has given up.
                why = connection.closed() => return Err(SyncError::unexpected(why)),
            }
            write.shutdown().await?;
            // It closes when it has everything.
            let _ = timeout(self.patience.closing, connection.closed()).await;
            Ok(())
        };
        let running = async {
            let running = over.run_until_cancelled(self.while_serving(session)).await;
            running.unwrap_or_else(|| Err(SyncError::critical(FULL)))
        };
        let ended = match timeout(own.deadline(), running).await {
            Ok(ended) => ended,
            Err(_) => Err(SyncError::unexpected("the session took too long")),
        };
        if ended.is_err() {
            connection.close("the session has failed");
        }
        ended
    }

    /// Runs a session for as long as a quorum is reached.
    async fn while_serving<R>(
        &self,
        session: impl Future<Output = Result<R, SyncError>>,
    ) -> Result<R, SyncError> {
        let mut serving = self.serving.subscribe();
        tokio::select! {
            biased;
            _ = serving.wait_for(|it| !it) => Err(SyncError::critical("no quorum is reached here")),
            () = self.stop.cancelled() => Err(SyncError::critical("the door is closed")),
            ended = session => ended,
        }
    }
}

impl Sync {
    /// Runs a session for as long as the door is open and a quorum is reached.
    pub(in crate::sync) async fn while_serving<R>(
        &self,
        session: impl Future<Output = Result<R, SyncError>>,
    ) -> Result<R, SyncError> {
        self.shared().while_serving(session).await
    }

    /// A stream to a peer's own protocol.
    pub(in crate::sync) async fn open_own(
        &self,
        own: &Arc<dyn Own>,
        peer: &PeerAddr,
    ) -> Result<
        (
            impl AsyncWrite + Unpin + Send + use<>,
            impl AsyncRead + Unpin + Send + use<>,
            Connection,
        ),
        SyncError,
    > {
        let shared = self.shared();
        let mounted = &shared.options.protocols;
        let at = mounted.iter().position(|it| Arc::ptr_eq(&it.own, own));
        let at = at.ok_or_else(|| SyncError::critical("it is not mounted at this door"))?;
        let dialled = shared.wire.dial(peer, Service::Own(at)).await;
        let connection = dialled.map_err(SyncError::unexpected)?;
        let (read, write) = connection
            .open_bytes()
            .await
            .map_err(SyncError::unexpected)?;
        Ok((write, read, connection))
    }
}
