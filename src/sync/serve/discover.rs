//! Discovery: which topics a peer shares with us, and where peers are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::timeout;

use super::{Shared, peers::Rank};
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Topic},
    sync::{
        codec::line_of_first_discovery_byte,
        discovery::{Address, Discovery, Found, Local, Stamp, TransportInfo},
        protocol::SyncError,
        wire::{Connection, Recv, Send, Service},
    },
};

/// Infos about others that are taken from one session; a stock node passes on all that it knows.
const INFOS_MAX: usize = 64;
/// For a whole discovery session.
const SESSION_MAX: Duration = Duration::from_secs(10);

/// What we say about ourselves: signed once a line and change of address, since a stock node that
/// sees a new signature each time asks again at once.
#[derive(Default)]
pub(super) struct Infos {
    signed: Mutex<BTreeMap<Line, (BTreeSet<Address>, TransportInfo)>>,
}

impl Infos {
    pub(super) fn of(&self, line: Line, addr: &PeerAddr, secret: &[u8; 32]) -> TransportInfo {
        let addresses: BTreeSet<Address> = addr
            .addrs
            .iter()
            .copied()
            .map(Address::Ip)
            .chain(addr.relay.clone().map(Address::Relay))
            .collect();
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let former = signed.get(&line);
        if let Some((of, info)) = former
            && *of == addresses
        {
            return info.clone();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = now.map_or(0, |it| it.as_micros() as u64);
        let stamp = Stamp::after(former.map(|(_, info)| info.stamp()), micros);
        let info = TransportInfo::sign(line, stamp, addresses.iter().cloned(), secret);
        signed.insert(line, (addresses, info.clone()));
        info
    }
}

/// What we say to this peer: only of topics that it may know of.
fn local(shared: &Shared, peer: PeerId, line: Line) -> Local {
    let info = shared.infos.of(line, &shared.wire.addr(), &shared.secret);
    // Whoever finds one member finds them all.
    let mut infos = shared.other_infos(line);
    infos.insert(shared.wire.id(), info);
    Local {
        salt: rand::random(),
        topics: shared
            .topics_told(peer)
            .into_iter()
            .filter(|(_, it)| *it == line)
            .flat_map(|(topic, _)| {
                // Its own name where there are messages that are not kept.
                let own = shared.channels.has(topic).then_some(topic);
                own.into_iter().chain([topic.derived()])
            })
            .collect(),
        infos,
    }
}

/// Answers a peer that asks.
pub(super) async fn answer(shared: &Arc<Shared>, connection: &Connection) -> Result<(), SyncError> {
    let answering = async {
        let (send, mut recv) = connection.accept().await.map_err(SyncError::unexpected)?;
        let first = recv.read().await.map_err(SyncError::unexpected)?;
        let first = first.ok_or_else(|| SyncError::unexpected("an empty discovery session"))?;
        let line = first
            .first()
            .and_then(|it| line_of_first_discovery_byte(*it));
        let line = line.ok_or_else(|| SyncError::encoding("discovery of no line we know"))?;
        let mut bob = Discovery::bob(line, local(shared, connection.remote(), line));
        bob.received(first)?;
        let found = talk(bob, send, recv).await?;
        Ok::<_, SyncError>((line, found))
    };
    let answered = timeout(SESSION_MAX, answering).await;
    let (line, found) =
        answered.map_err(|_| SyncError::unexpected("discovery took too long"))??;
    connection.close("done");
    shared.met(connection.remote(), line, &found, false);
    Ok(())
}

/// Asks a peer, in a line.
pub(super) async fn ask(
    shared: &Arc<Shared>,
    addr: &PeerAddr,
    line: Line,
) -> Result<(), SyncError> {
    if !shared.is_welcome(addr.peer) {
        return Ok(());
    }
    let found = find(shared, addr, line).await?;
    shared.met(addr.peer, line, &found, true);
    Ok(())
}

/// Asks a peer, in a line, which of the open topics that it may know of it has too, and leaves it
/// at that.
pub(super) async fn common(
    shared: &Arc<Shared>,
    addr: &PeerAddr,
    line: Line,
) -> Result<Vec<Topic>, SyncError> {
    let found = find(shared, addr, line).await?;
    let mut topics = shared.topics_told(addr.peer);
    topics.retain(|(topic, _)| found.topics.contains(&topic.derived()));
    Ok(topics.into_iter().map(|it| it.0).collect())
}

async fn find(shared: &Arc<Shared>, addr: &PeerAddr, line: Line) -> Result<Found, SyncError> {
    let asking = async {
        let dialling = shared.wire.dial(addr, Service::Discovery);
        let connection = dialling.await.map_err(SyncError::unexpected)?;
        let (send, recv) = connection.open().await.map_err(SyncError::unexpected)?;
        let alice = Discovery::alice(line, local(shared, addr.peer, line));
        let found = talk(alice, send, recv).await?;
        // Bob closes once he has read ours.
        let _ = timeout(Duration::from_secs(1), connection.closed()).await;
        Ok::<_, SyncError>(found)
    };
    let asked = timeout(SESSION_MAX, asking).await;
    asked.map_err(|_| SyncError::unexpected("discovery took too long"))?
}

async fn talk(mut side: Discovery, mut send: Send, mut recv: Recv) -> Result<Found, SyncError> {
    loop {
        while let Some(bytes) = side.poll_transmit() {
            send.write_all(bytes).await.map_err(SyncError::unexpected)?;
        }
        if side.is_done() {
            send.finish();
            return Ok(side.found().clone());
        }
        match recv.read().await.map_err(SyncError::unexpected)? {
            Some(bytes) => side.received(bytes)?,
            None => side.received_end()?,
        }
    }
}

/// What an info that is verified says about where its node is.
pub(super) fn place(peer: PeerId, info: &TransportInfo) -> PeerAddr {
    let mut addr = PeerAddr::new(peer, []);
    for address in info.addresses() {
        match address {
            Address::Ip(ip) => drop(addr.addrs.insert(*ip)),
            Address::Relay(url) => addr.relay = Some(url.clone()),
        }
    }
    addr.capped()
}

impl Shared {
    /// Takes in what a discovery session found out, which we asked for or the peer did.
    fn met(self: &Arc<Self>, remote: PeerId, line: Line, found: &Found, asked: bool) {
        let told: Vec<Topic> = self
            .topics_told(remote)
            .into_iter()
            .map(|it| it.0)
            .collect();
        let has = |topic: &Topic| found.topics.contains(topic);
        let common: Vec<Topic> = told
            .iter()
            .copied()
            .filter(|it| has(&it.derived()))
            .collect();
        // Where both have messages that are not kept.
        let spoken: Vec<Topic> = told.into_iter().filter(has).collect();
        let strange = common.is_empty() && spoken.is_empty();
        if strange && !asked {
            // A stranger that shares nothing is not remembered, nor whom it names.
            return;
        }
        let others = found.infos.iter().filter(|(peer, _)| {
            **peer != self.wire.id() && **peer != remote && !self.doors.is_door(**peer)
        });
        let own = found.infos.get_key_value(&remote);
        for (peer, info) in own.into_iter().chain(others.take(INFOS_MAX)) {
            if info.verify(line, peer).is_ok() {
                let rank = match *peer == remote && !strange {
                    true => Rank::Met,
                    false => Rank::Hearsay,
                };
                self.learn(&place(*peer, info), rank);
            }
        }
        for topic in spoken {
            self.channels.invite(topic, remote);
        }
        tracing::debug!(peer = %remote.short(), topics = common.len(), "met in discovery");
        for topic in common {
            self.keep(remote, topic);
            if let Some(feed) = self.feed(topic) {
                feed.invite(remote);
            }
        }
    }
}
