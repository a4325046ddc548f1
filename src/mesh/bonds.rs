//! The bonds of a group as a map that can be watched.

use std::fmt;

use im::OrdMap;
use tokio::sync::watch;

use crate::{bond::Bond, identity::PeerId};

/// The live bonds of one group, at most one a peer. Reading costs no more than a clone of the map,
/// which shares its parts.
///
/// Every clone has its own mark of what it has seen, for [`Bonds::changed`].
///
/// ```
/// use quorate::{GroupKey, Map, Node};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let first = Node::in_memory().bind_loopback().open().await?;
/// # let second = Node::in_memory().bind_loopback().open().await?;
/// # let group = first.create(GroupKey::generate(), Map::new()).await?;
/// let mut bonds = group.bonds();
/// assert!(bonds.is_empty());
/// let other = second.join(&group.ticket(), Map::new()).await?;
/// while !bonds.contains_peer(&second.peer_id()) {
///     bonds.changed().await;
/// }
/// let bond = bonds.get(&second.peer_id()).ok_or("it is there")?;
/// assert_eq!(Some(bond.id()), other.bonds().get(&first.peer_id()).map(|it| it.id()));
/// second.shutdown().await;
/// println!("{} has gone: {}", bond.peer().short(), bond.terminated().await);
/// # first.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Bonds(watch::Receiver<OrdMap<PeerId, Bond>>);

impl Bonds {
    pub(super) fn new(map: watch::Receiver<OrdMap<PeerId, Bond>>) -> Self {
        Self(map)
    }

    /// How many peers are bonded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether nobody is bonded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Whether this peer is bonded.
    #[must_use]
    pub fn contains_peer(&self, peer: &PeerId) -> bool {
        self.0.borrow().contains_key(peer)
    }

    /// The bond with this peer.
    #[must_use]
    pub fn get(&self, peer: &PeerId) -> Option<Bond> {
        self.0.borrow().get(peer).cloned()
    }

    /// The bonds at this moment, by peer.
    pub fn iter(&self) -> impl Iterator<Item = (PeerId, Bond)> + use<> {
        self.snapshot().into_iter()
    }

    /// The map at this moment.
    #[must_use]
    pub fn snapshot(&self) -> OrdMap<PeerId, Bond> {
        self.0.borrow().clone()
    }

    /// Waits until the map differs from what this handle has last been told of, and gives it.
    /// Cancel-safe. After the group has been closed it gives the last map, at once and every time;
    /// [`Bonds::is_closed`] tells.
    pub async fn changed(&mut self) -> OrdMap<PeerId, Bond> {
        // An error says that nothing will change any more.
        let _ = self.0.changed().await;
        self.0.borrow_and_update().clone()
    }

    /// Whether the group has been closed, so that nothing will change any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

/// The map as it is now.
impl fmt::Debug for Bonds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
