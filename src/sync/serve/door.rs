//! The handle on a member's door, for programs.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use super::{
    super::{outsiders::Outsiders, ticket::LogTicket},
    Kept, Patience, Shared, SyncOptions, SyncStatus, SyncWatch,
};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::Logs,
};

/// A member that serves outsiders: unmodified p2panda nodes of the lines 0.6 and 0.7.
///
/// A handle; clones are handles on the same door. It is open until [`Sync::stop`], or until the
/// node shuts down. It listens on a port of its own with a key of its own, so that nothing that
/// comes in there reaches the group's bonds.
///
/// ```
/// use quorate::{
///     GroupKey, Node,
///     log_store::{Line, LogStore, Topic},
///     sync::{Admission, Outsiders, SyncOptions},
/// };
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::in_memory().bind_loopback().open().await?;
/// let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
/// let outsiders = Outsiders::of(&logs);
/// outsiders.open_topic(Topic::named("cats"), Line::V07, Admission::everyone()).await?;
///
/// let options = SyncOptions { bind: vec!["127.0.0.1:0".parse()?], ..SyncOptions::default() };
/// let sync = node.serve_sync(&logs, options).await?;
/// println!("stock nodes find it at {}", sync.addr());
/// println!("and our own clients by {}", sync.ticket());
/// # assert!(sync.status().peers.is_empty());
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sync {
    pub(super) door: Arc<Door>,
}

/// What the handles on a door share.
pub(super) struct Door {
    /// Another one once it was opened again with other settings.
    pub(super) shared: ArcSwap<Shared>,
    /// One change of the settings, or the end, at a time.
    pub(super) turn: tokio::sync::Mutex<Kept>,
}

/// The door could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("outsiders cannot be served: {why}")]
pub struct OpenSyncError {
    pub(super) why: String,
}

impl Sync {
    /// Opens the door, where it was. `secret` is the key of its endpoint.
    pub(crate) async fn start(
        logs: &Logs,
        secret: Zeroizing<[u8; 32]>,
        options: SyncOptions,
        kept: Kept,
    ) -> Result<Self, OpenSyncError> {
        Self::start_with(logs, secret, (options, kept), Patience::default()).await
    }

    pub(super) async fn start_with(
        logs: &Logs,
        secret: Zeroizing<[u8; 32]>,
        (options, mut kept): (SyncOptions, Kept),
        patience: Patience,
    ) -> Result<Self, OpenSyncError> {
        let shared =
            Shared::open(logs, secret, options, kept.of(), (patience, Arc::default())).await?;
        kept.keep(shared.kept()).await;
        let door = Door {
            shared: ArcSwap::new(shared),
            turn: tokio::sync::Mutex::new(kept),
        };
        Ok(Self {
            door: Arc::new(door),
        })
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.door.shared.load_full()
    }

    /// The name of the door's endpoint; not that of the node.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.shared().wire.id()
    }

    /// Where peers can dial it at the moment.
    #[must_use]
    pub fn addr(&self) -> PeerAddr {
        self.shared().wire.addr()
    }

    /// By which transports our own clients reach it, and the addresses of each: `"quic"`, and those
    /// of [`SyncOptions::transports`].
    #[must_use]
    pub fn transports(&self) -> BTreeMap<String, Vec<String>> {
        self.shared().transports()
    }

    /// Who of the peers that are no members may do what, and who has asked.
    #[must_use]
    pub fn outsiders(&self) -> Outsiders {
        Outsiders::of(&self.shared().logs)
    }

    /// A ticket to all open topics at this member, and at every other one of the group whose door
    /// it has heard of. A client of ours that has used it hears of the members that come later.
    #[must_use]
    pub fn ticket(&self) -> LogTicket {
        let shared = self.shared();
        let members = shared.all_doors();
        LogTicket::new(shared.options.network, shared.open_topics(), members)
    }

    /// Looks for a peer, in every open topic that admits it, until it is found: it is dialled, and
    /// dialled again with growing pauses of up to a minute.
    pub fn add_peer(&self, addr: PeerAddr) {
        self.shared().look_for(&addr);
    }

    /// Whom it serves, and how far they are.
    #[must_use]
    pub fn status(&self) -> SyncStatus {
        self.shared().status()
    }

    /// Watches that, over changes of the settings too.
    ///
    /// ```
    /// # use quorate::{GroupKey, Node, log_store::LogStore, sync::SyncOptions};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
    /// # let bind = vec!["127.0.0.1:0".parse()?];
    /// # let options = SyncOptions { bind, ..SyncOptions::default() };
    /// let sync = node.serve_sync(&logs, options).await?;
    /// let mut status = sync.watch_status();
    /// // It reaches a quorum, and nobody lacks anything.
    /// let complete = status.wait_for(|it| {
    ///     it.serving && it.peers.iter().all(|it| it.is_complete())
    /// });
    /// assert!(complete.await.is_some());
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn watch_status(&self) -> SyncWatch {
        let shared = self.shared();
        let watch = shared.watched.watch();
        shared.tell_watchers();
        watch
    }

    /// Closes the door: ends all sessions and gives the socket back. Nothing listens any more, and
    /// the status says so. Idempotent.
    pub async fn stop(&self) {
        let _turn = self.door.turn.lock().await;
        self.shared().close().await;
    }

    /// Whether it is closed: by [`Sync::stop`], or because it could not be opened again.
    pub(crate) async fn is_stopped(&self) -> bool {
        // While it is opened again with other settings it is not.
        let _turn = self.door.turn.lock().await;
        self.shared().stop.is_cancelled()
    }
}

impl fmt::Debug for Sync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sync")
            .field("id", &self.id())
            .field("serving", &*self.shared().serving.borrow())
            .finish_non_exhaustive()
    }
}
