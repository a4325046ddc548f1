//! All bonds of one group on this node, over the links that the groups of the node share.
//!
//! # How two nodes end up with one link and one bond
//!
//! Either side may dial, both may at once, and a peer may come back under a new boot id before the
//! old connection has timed out. So more than one connection to a peer may exist for a moment, and
//! nothing is decided about them before a proof has succeeded on one and both have said their boot
//! ids. Then **the side with the lower peer id decides**, under one lock, and the other follows:
//!
//! - The other says which link and which bond with us it holds already (`Agree`).
//! - A link to another process start of the peer is dead: the new one replaces it at once.
//! - Otherwise the first link that gets this far is kept. A second is redundant, if the other side
//!   holds the first one too, or may be about to (it is younger than [`links::SETTLED`]); else the
//!   other side has lost the first one, and the second replaces it.
//! - For the bonds of one group the same holds.
//!
//! One decides, so there is nothing to flap between; no bond ever moves from a link to another.

mod acceptor;
mod admission;
mod bonds;
mod dialer;
mod group;
mod link;
mod links;
mod roster;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::bonds::Bonds;
use self::group::Group;
pub(crate) use self::links::Links;
use crate::{
    bond::{Bond, Refusal, Service},
    identity::{GroupId, GroupKey, MemberId, PeerAddr, PeerId},
};

/// What a mesh is made of.
pub(crate) struct MeshSpec {
    pub(crate) key: GroupKey,
    pub(crate) group: GroupId,
    pub(crate) service: Arc<dyn Service>,
    /// Peers to dial at once and for as long as they are not forgotten: what the roster of the last
    /// run and the ticket name.
    pub(crate) known: Vec<PeerAddr>,
}

/// A handle to all bonds of one group. It lives until [`Mesh::close`], whoever drops it.
#[derive(Clone)]
pub(crate) struct Mesh(Arc<Group>);

impl Mesh {
    fn new(group: Arc<Group>) -> Self {
        Self(group)
    }

    /// The bonds, watchable.
    pub(crate) fn bonds(&self) -> Bonds {
        self.0.bonds()
    }

    pub(crate) fn bond_to(&self, member: MemberId) -> Option<Bond> {
        self.0.bond(|bond| bond.member() == member)
    }

    pub(crate) fn bond_with(&self, peer: PeerId) -> Option<Bond> {
        self.0.bond_with(peer)
    }

    /// A peer to stay bonded with: dialled now and, with backoff and jitter, whenever there is no
    /// bond. Also takes back a [`Mesh::forget`]. Addresses add up until the peer says its own.
    pub(crate) fn learn(&self, addr: PeerAddr) {
        self.0.learn(addr);
    }

    /// A peer that is no longer wanted: not dialled any more, not named to others, and not learned
    /// again from what others say. Closes nothing by itself.
    pub(crate) fn forget(&self, peer: PeerId) {
        self.0.forget(peer);
    }

    /// Everybody known, ourselves first.
    pub(crate) fn roster(&self) -> Vec<PeerAddr> {
        self.0.roster()
    }

    /// The last failure for each learned peer that is not bonded now, in words.
    pub(crate) fn dial_errors(&self) -> Vec<(PeerAddr, String)> {
        self.0.dial_errors()
    }

    /// The last refusal that a peer told us after the proof. What *we* refuse is not shown here.
    pub(crate) fn refusals(&self) -> watch::Receiver<Option<(PeerId, Refusal)>> {
        self.0.refusals()
    }

    /// Tells every bonded peer that this node is about to stop; waits until they have heard, at
    /// most 200 ms. The bonds live on.
    pub(crate) async fn depart(&self) {
        self.0.depart().await;
    }

    /// Ends all bonds, tells the peers why, and ends the mesh's tasks. The group is unknown to
    /// peers from then on. Idempotent.
    pub(crate) async fn close(&self, reason: &str) {
        self.0.close(reason).await;
    }
}
