//! The ways into a door besides its own endpoint: transports that a program has registered, which
//! carry our own client.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::{sync::Semaphore, time::timeout};

use super::{FULL, KNOCKS_MAX, OpenSyncError, Shared, SyncOptions, entrance::Client};
use crate::sync::{
    client::{Caller, Listener, Listeners, Place, Secret, Settings},
    member_addr::{MemberAddr, QUIC},
    protocol::SyncError,
};

/// Where each transport of a door listened the last time, and how that is kept.
pub(crate) struct Kept {
    of: BTreeMap<String, String>,
    keep: Box<Keep>,
}

type Keep = dyn Fn(BTreeMap<String, String>) -> BoxFuture<'static, ()> + Send + Sync;

impl Kept {
    pub(crate) fn new(
        of: BTreeMap<String, String>,
        keep: impl Fn(BTreeMap<String, String>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        let keep = Box::new(keep);
        Self { of, keep }
    }

    pub(super) fn of(&self) -> &BTreeMap<String, String> {
        &self.of
    }

    /// Keeps where they listen now; of one that is not used at the moment, where it did.
    pub(super) async fn keep(&mut self, now: BTreeMap<String, String>) {
        let former = self.of.clone();
        self.of.extend(now);
        if self.of != former {
            (self.keep)(self.of.clone()).await;
        }
    }
}

/// Listens with all of them.
pub(super) async fn open(
    options: &SyncOptions,
    secret: &[u8; 32],
    kept: &BTreeMap<String, String>,
) -> Result<Listeners, OpenSyncError> {
    let place = Place {
        network: options.network,
        secret: Secret::from(*secret),
        sessions_max: options.sessions_max,
        kept: None,
    };
    let opened = Listeners::open(&options.transports, &place, kept).await;
    opened.map_err(|(transport, why)| OpenSyncError {
        why: format!("{transport} cannot listen: {why}"),
    })
}

/// Lets in whom it may, until the listener is closed.
pub(super) async fn accept(shared: Arc<Shared>, transport: String, listener: Arc<dyn Listener>) {
    let knocks = Arc::new(Semaphore::new(KNOCKS_MAX + shared.options.sessions_max));
    while let Some(knock) = listener.accept().await {
        let room = Arc::clone(&knocks).try_acquire_owned();
        let (true, Ok(room)) = (*shared.serving.borrow(), room) else {
            continue;
        };
        let (admitting, transport) = (Arc::clone(&shared), transport.clone());
        shared.run(async move {
            let shaking = timeout(admitting.patience.knock, knock).await;
            let ended = match shaking {
                Ok(Ok(caller)) => admitting.let_in(caller).await,
                Ok(Err(why)) => Err(SyncError::unexpected(why)),
                Err(_) => Err(SyncError::unexpected("the handshake took too long")),
            };
            if let Err(error) = ended {
                tracing::debug!(%transport, %error, "a client that came in was not served");
            }
            drop(room);
        });
    }
}

impl Shared {
    async fn let_in(self: &Arc<Self>, caller: Caller) -> Result<(), SyncError> {
        let known = self.peers.is_known(caller.peer);
        let Some(_place) = self.knocks.take_fairly(caller.peer, known) else {
            return Err(SyncError::critical(FULL));
        };
        let stream = (caller.read, caller.write);
        let client = Client::Carried(caller.peer);
        self.serve_stream(stream, client, caller.gone).await
    }

    /// This member, by all the ways to it.
    pub(super) fn member_addr(&self) -> MemberAddr {
        self.listeners.add_to(self.wire.addr().into())
    }

    /// The addresses of all transports.
    pub(super) fn transports(&self) -> BTreeMap<String, Vec<String>> {
        let mut all = self.listeners.addrs();
        let quic = MemberAddr::from(self.wire.addr()).addrs(QUIC);
        all.insert(QUIC.to_owned(), quic);
        all
    }

    /// What a restart should find again, by transport.
    pub(super) fn kept(&self) -> BTreeMap<String, String> {
        let mut all = self.listeners.settings();
        let quic = Settings {
            bind: self.wire.bound(),
            urls: Vec::new(),
        };
        all.insert(QUIC.to_owned(), quic.text());
        all
    }
}

/// Where the door's own endpoint listened the last time.
pub(super) fn former(kept: &BTreeMap<String, String>) -> Settings {
    Settings::read(kept.get(QUIC).map(|it| &it[..]), |_| true)
}
