//! Changing a door's settings while it is open.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{OpenSyncError, Shared, Sync, SyncOptions};
use crate::{
    identity::{PeerAddr, PeerId},
    net::at_former_port,
};

/// How long the ports that the door had may still be taken.
const FORMER_PORT_WAIT: Duration = Duration::from_secs(2);

impl Sync {
    /// The settings as they are now.
    #[must_use]
    pub fn options(&self) -> SyncOptions {
        self.shared().settings()
    }

    /// Changes the settings, all at once: take [`Sync::options`], and change what is to be another.
    ///
    /// [`SyncOptions::ask_again`] and [`SyncOptions::peers`] change while sessions go on; a peer
    /// that is named no more is looked for as any other that was met. Everything else, the network
    /// for one, takes a new endpoint: all sessions end, another member or this one takes them up
    /// again, what the status counts begins anew, and each
    /// [`EphemeralStream`](crate::streams::EphemeralStream) is closed: take part again. It keeps
    /// its id, its ports unless other ones are asked for, and the peers that were added.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use quorate::{GroupKey, Node, log_store::LogStore, sync::SyncOptions};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let node = Node::in_memory().bind_loopback().open().await?;
    /// # let logs = node.create(GroupKey::generate(), LogStore::new()).await?.logs();
    /// # let bind = vec!["127.0.0.1:0".parse()?];
    /// let sync = node.serve_sync(&logs, SyncOptions { bind, ..SyncOptions::default() }).await?;
    /// let before = sync.addr();
    /// sync.configure(SyncOptions { ask_again: Duration::from_secs(60), ..sync.options() }).await?;
    /// sync.configure(SyncOptions { network: [7; 32], ..sync.options() }).await?;
    /// assert_eq!(sync.addr(), before);
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`OpenSyncError`] if a value makes no sense, an address cannot be had, or the door is
    /// closed. The door is then open as before, unless the text says that it could not be opened
    /// again.
    pub async fn configure(&self, options: SyncOptions) -> Result<(), OpenSyncError> {
        let door = self.clone();
        // To its end, also where nobody waits for it: half of it would be a closed door.
        let changing = tokio::spawn(async move { door.change(options).await });
        let changed = changing.await.map_err(|error| OpenSyncError {
            why: error.to_string(),
        });
        changed.flatten()
    }

    async fn change(&self, options: SyncOptions) -> Result<(), OpenSyncError> {
        let mut kept = self.door.turn.lock().await;
        let shared = self.shared();
        if shared.stop.is_cancelled() {
            let why = "the door is closed: open it with serve_sync".to_owned();
            return Err(OpenSyncError { why });
        }
        if let Some(why) = options.fault() {
            return Err(OpenSyncError { why });
        }
        let former = shared.settings();
        if options.has_endpoint_of(&former) {
            shared.change(&options);
            return Ok(());
        }
        let here = shared.kept();
        let added = shared.peers.wanted();
        shared.close().await;
        let opened = shared.reopen(&options, &former, &here).await;
        let (opened, refused) = match opened {
            Ok(opened) => (opened, None),
            Err(refused) => match shared.reopen(&former, &former, &here).await {
                Ok(opened) => (opened, Some(refused)),
                Err(again) => {
                    let why = format!(
                        "{}; nor could it be opened again: {}",
                        refused.why, again.why
                    );
                    return Err(OpenSyncError { why });
                }
            },
        };
        kept.keep(opened.kept()).await;
        self.door.shared.store(Arc::clone(&opened));
        opened.tell_watchers();
        for addr in added {
            if !former.peers.iter().any(|it| it.peer == addr.peer) {
                opened.look_for(&addr);
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

impl Shared {
    fn settings(&self) -> SyncOptions {
        SyncOptions {
            ask_again: self.ask_again(),
            peers: self.named().clone(),
            ..self.options.clone()
        }
    }

    /// Changes what can be changed while sessions go on.
    fn change(self: &Arc<Self>, options: &SyncOptions) {
        self.ask_again.send_replace(options.ask_again);
        let former = std::mem::replace(&mut *self.named(), options.peers.clone());
        let is_in = |peer: PeerId, of: &[PeerAddr]| of.iter().any(|it| it.peer == peer);
        for addr in former {
            if !is_in(addr.peer, &options.peers) {
                self.peers.unwanted(addr.peer);
            }
        }
        for addr in &options.peers {
            self.look_for(addr);
        }
    }

    /// A door like this one, which is closed, where it was if it is not to be elsewhere.
    async fn reopen(
        &self,
        options: &SyncOptions,
        former: &SyncOptions,
        kept: &BTreeMap<String, String>,
    ) -> Result<Arc<Self>, OpenSyncError> {
        let again = || {
            let (logs, secret) = (&self.logs, self.secret.clone());
            let more = (self.patience, Arc::clone(&self.watched));
            Self::open(logs, secret, options.clone(), kept, more)
        };
        match options.bind == former.bind {
            true => at_former_port(FORMER_PORT_WAIT, again).await,
            false => again().await,
        }
    }
}
