//! Membership of a topic's overlay, by iroh-gossip: who is a neighbour, and what is said there.

use bytes::Bytes;
use futures_util::StreamExt;
use iroh::{Endpoint, EndpointId};
use iroh_gossip::{
    api::{Event, GossipReceiver, GossipSender},
    net::Gossip,
    proto::{HyparviewConfig, TopicId},
};

use super::{ACTIVE_VIEW, GOSSIP_MESSAGE_MAX};
use crate::{identity::PeerId, net::WireError};

pub(super) fn spawn(endpoint: &Endpoint, alpn: Vec<u8>) -> Gossip {
    let membership = HyparviewConfig {
        active_view_capacity: ACTIVE_VIEW,
        passive_view_capacity: ACTIVE_VIEW * 4,
        ..HyparviewConfig::default()
    };
    Gossip::builder()
        .alpn(alpn)
        .membership_config(membership)
        .max_message_size(GOSSIP_MESSAGE_MAX)
        .spawn(endpoint.clone())
}

/// What happens among our neighbours in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// A new one.
    Up(PeerId),
    /// It left, or was replaced by another.
    Down(PeerId),
    /// Somebody in the overlay has sent a message to all.
    Said(Bytes),
}

/// Our place in the overlay of one topic; dropping it leaves the overlay.
pub(crate) struct Membership {
    sender: GossipSender,
    receiver: GossipReceiver,
}

impl Membership {
    pub(super) async fn join(gossip: &Gossip, topic: [u8; 32]) -> Result<Self, WireError> {
        let joined = gossip.subscribe(TopicId::from_bytes(topic), Vec::new());
        let (sender, receiver) = joined.await.map_err(WireError::new)?.split();
        Ok(Self { sender, receiver })
    }

    /// Invites these peers, whose addresses were learnt.
    ///
    /// # Errors
    /// The endpoint is closed.
    pub(crate) async fn invite(&self, peers: &[PeerId]) -> Result<(), WireError> {
        let ids = peers
            .iter()
            .filter_map(|peer| EndpointId::from_bytes(peer.as_bytes()).ok())
            .collect();
        self.sender.join_peers(ids).await.map_err(WireError::new)
    }

    /// Sends a message to all in the overlay, as far as there are any.
    ///
    /// # Errors
    /// The endpoint is closed.
    pub(crate) async fn say(&self, message: Bytes) -> Result<(), WireError> {
        self.sender.broadcast(message).await.map_err(WireError::new)
    }

    /// The next change; `None` once the endpoint is closed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Neighbour> {
        loop {
            match self.receiver.next().await?.ok()? {
                Event::NeighborUp(id) => return Some(Neighbour::Up(peer(id))),
                Event::NeighborDown(id) => return Some(Neighbour::Down(peer(id))),
                Event::Received(message) => return Some(Neighbour::Said(message.content)),
                Event::Lagged => {}
            }
        }
    }
}

fn peer(id: EndpointId) -> PeerId {
    PeerId::from_bytes(*id.as_bytes())
}
