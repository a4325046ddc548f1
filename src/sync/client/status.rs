//! What a pull or a push says of itself, at any time.

use std::time::SystemTime;

use tokio::sync::watch;

use super::dial::MemberError;
use crate::{identity::PeerId, log_store::Line};

/// How a pull is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullStatus {
    /// The member that serves it at the moment, by the name of its sync endpoint.
    pub member: Option<PeerId>,
    /// The topic's line, once a member has said it.
    pub line: Option<Line>,
    /// Operations that were received and checked.
    pub verified: u64,
    /// Their bytes, of headers and bodies.
    pub verified_bytes: u64,
    /// Signatures that were checked for it. The others follow from the hash chain.
    pub signatures: u64,
    /// Operations that the reader has taken.
    pub delivered: u64,
    /// Operations that the member announced, or sent, and the reader has not taken yet. `None`
    /// before a member has said.
    pub behind: Option<u64>,
    /// Whether the reader has taken everything that the serving member has. False again when the
    /// member is lost, until the next has been asked.
    pub complete: bool,
    /// When it was complete last.
    pub completed_at: Option<SystemTime>,
    /// Logs that cannot be continued from here, for what follows was pruned without a flag.
    pub cut_off: u64,
    /// How often members have told of another list of members than before. Then the handle's
    /// `ticket` is another one, to be kept.
    pub learned: u64,
    /// Sessions begun, with whichever member.
    pub sessions: u64,
    /// Failures, all of them; after each another member was or will be asked.
    pub failures: u64,
    /// The latest failure, with the member and what it did.
    pub last_error: Option<MemberError>,
}

/// How a push is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushStatus {
    /// The member that takes it at the moment, by the name of its sync endpoint.
    pub member: Option<PeerId>,
    /// Operations sent for the first time.
    pub sent: u64,
    /// Operations sent once more, to another member. None is committed twice.
    pub resent: u64,
    /// Operations answered: committed or refused.
    pub answered: u64,
    /// Operations that were refused among them.
    pub refused: u64,
    /// Whether everything was given, sent and answered.
    pub complete: bool,
    /// How often members have told of another list of members than before. Then the handle's
    /// `ticket` is another one, to be kept.
    pub learned: u64,
    /// Sessions begun, with whichever member.
    pub sessions: u64,
    /// Failures, all of them; after each another member was or will be asked.
    pub failures: u64,
    /// The latest failure, with the member and what it did.
    pub last_error: Option<MemberError>,
}

/// Watches the status of a pull ([`PullStatus`]) or a push ([`PushStatus`]).
#[derive(Clone, Debug)]
pub struct ClientWatch<S>(pub(crate) watch::Receiver<S>);

impl<S: Clone> ClientWatch<S> {
    /// The status as it is now.
    #[must_use]
    pub fn now(&self) -> S {
        self.0.borrow().clone()
    }

    /// Waits until it is another than was seen here last; `None` once the pull or push has ended
    /// and the last was seen. Cancel-safe.
    pub async fn changed(&mut self) -> Option<S> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Waits until it is as wanted, and gives it; `None` if the pull or push has ended before.
    /// Cancel-safe.
    pub async fn wait_for(&mut self, wanted: impl FnMut(&S) -> bool) -> Option<S> {
        self.0.wait_for(wanted).await.ok().map(|it| it.clone())
    }
}
