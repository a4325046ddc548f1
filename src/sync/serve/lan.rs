//! The local network: nodes of line 0.7 find this member there by themselves, and it them.
//!
//! An advert carries the addresses in its records and a signature over them in its text, which is
//! made for one line. So one advert serves one line, and nodes of line 0.6 are not found this way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{Shared, discover, peers::Rank};
use crate::{
    identity::PeerId,
    log_store::Line,
    sync::{
        discovery::TransportInfo,
        wire::{Advert, Lan},
    },
};

const LINE: Line = Line::V07;
/// Between two looks at our own addresses, and before a network that failed is tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// Before a node whose advert changes again and again is asked once more.
const ASKED_LATELY: Duration = Duration::from_secs(5);
/// Nodes that this is remembered of.
const REMEMBERED_MAX: usize = 256;

/// Advertises this member and meets those that advertise themselves.
pub(super) async fn meet(shared: Arc<Shared>) {
    loop {
        match shared.wire.lan().await {
            Ok(lan) => met(&shared, lan).await,
            Err(error) => tracing::debug!(%error, "the local network has no mDNS"),
        }
        sleep(PAUSE).await;
    }
}

async fn met(shared: &Arc<Shared>, mut lan: Lan) {
    let mut advertised = None;
    let mut asked = BTreeMap::new();
    loop {
        let addr = shared.wire.addr();
        if advertised.as_ref() != Some(&addr) {
            let info = shared.infos.of(LINE, &addr, &shared.secret);
            let addrs: BTreeSet<SocketAddr> = addr.addrs.iter().copied().collect();
            let told = match info.user_data() {
                Some(data) => lan.advertise(addrs, &data).map_err(|it| it.to_string()),
                None => Err("the relay's URL is too long for a record".to_owned()),
            };
            if let Err(error) = told {
                tracing::warn!(error, "this member cannot be found on the local network");
            }
            advertised = Some(addr);
        }
        tokio::select! {
            advert = lan.next() => match advert {
                Some(advert) => seen(shared, &mut asked, &advert),
                None => return,
            },
            () = sleep(PAUSE) => {}
        }
    }
}

fn seen(shared: &Arc<Shared>, asked: &mut BTreeMap<PeerId, Instant>, advert: &Advert) {
    let Advert { peer, addrs, .. } = advert;
    if *peer == shared.wire.id() || shared.doors.is_door(*peer) || !shared.is_welcome(*peer) {
        return;
    }
    let addrs = addrs.iter().copied();
    let info = TransportInfo::from_user_data(&advert.user_data, *peer, addrs);
    let Some(info) = info.ok().filter(|it| it.verify(LINE, peer).is_ok()) else {
        tracing::debug!(peer = %peer.short(), "an advert that the node has not signed");
        return;
    };
    let addr = discover::place(*peer, &info);
    let now = Instant::now();
    asked.retain(|_, at| now.duration_since(*at) < ASKED_LATELY);
    if !shared.learn(&addr, Rank::Hearsay) || asked.len() >= REMEMBERED_MAX {
        return;
    }
    if asked.insert(*peer, now).is_none() && *shared.serving.borrow() {
        let shared = Arc::clone(shared);
        Arc::clone(&shared).run(async move {
            let _dialling = shared.dials.meet.acquire().await;
            if let Err(error) = discover::ask(&shared, &addr, LINE).await {
                tracing::debug!(peer = %addr.peer.short(), %error, "seen on the network, not met");
            }
        });
    }
}
