//! Adverts on the local network, by mDNS, as p2panda nodes of line 0.7 write and read them.

use std::{collections::BTreeSet, net::SocketAddr};

use futures_util::{StreamExt, stream::BoxStream};
use iroh::{
    EndpointId,
    address_lookup::{AddressLookup, EndpointData},
};
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};

use crate::{identity::PeerId, net::WireError};

/// The service under which stock nodes advertise themselves.
const SERVICE: &str = "p2pandav1";

/// Our place on the local network; dropping it withdraws the advert.
pub(crate) struct Lan {
    lookup: MdnsAddressLookup,
    events: BoxStream<'static, DiscoveryEvent>,
}

/// What a node advertises of itself. Nothing of it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advert {
    pub(crate) peer: PeerId,
    pub(crate) addrs: BTreeSet<SocketAddr>,
    pub(crate) user_data: String,
}

impl Lan {
    pub(super) async fn open(id: EndpointId) -> Result<Self, WireError> {
        let lookup = MdnsAddressLookup::builder().service_name(SERVICE);
        let lookup = lookup.build(id).map_err(WireError::new)?;
        let events = lookup.subscribe().await.boxed();
        Ok(Self { lookup, events })
    }

    /// Advertises exactly these addresses, in place of what was advertised before.
    ///
    /// # Errors
    /// The user data is too long for a record.
    pub(crate) fn advertise(
        &self,
        addrs: BTreeSet<SocketAddr>,
        user_data: &str,
    ) -> Result<(), WireError> {
        let user_data = user_data.parse().map_err(WireError::new)?;
        let data = EndpointData::from(addrs).with_user_data(user_data);
        self.lookup.publish(&data);
        Ok(())
    }

    /// The next advert of another node, at least once for each change; `None` when the service has
    /// ended. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Advert> {
        loop {
            let DiscoveryEvent::Discovered { endpoint_info, .. } = self.events.next().await? else {
                continue;
            };
            let Some(user_data) = endpoint_info.user_data() else {
                continue; // no stock node's
            };
            return Some(Advert {
                peer: PeerId::from_bytes(*endpoint_info.endpoint_id.as_bytes()),
                addrs: endpoint_info.ip_addrs().copied().collect(),
                user_data: user_data.to_string(),
            });
        }
    }
}
