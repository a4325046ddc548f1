//! Stays bonded with one peer: dials, proves, and does it again when the bond is lost.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    admission::{self, NotBonded},
    group::Group,
    link::{Link, code},
    links::Links,
    roster::Wanted,
};
use crate::{
    bond::{NotProven, initiate, refuse},
    config::Timing,
    identity::{PeerAddr, PeerId},
    net::WireError,
};

/// Runs until it is dropped.
pub(super) async fn stay_bonded(group: &Arc<Group>, peer: PeerId, wanted: &Wanted) {
    let mut backoff = Backoff::new(group.links().timing());
    let mut bonds = group.bonds();
    loop {
        if group.bond_with(peer).is_some() {
            group.note_error(peer, None);
            while group.bond_with(peer).is_some() {
                bonds.changed().await;
            }
            // Both sides have lost it: who dials first is left to chance.
            backoff.reset();
            sleep(backoff.jitter()).await;
            continue;
        }
        let Some(addr) = group.addr_of(peer) else {
            return;
        };
        match attempt(group, &addr).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                tracing::debug!(peer = %peer.short(), group = ?group.id(), %error, "not bonded");
                group.note_error(peer, Some(error.to_string()));
            }
        }
        if group.bond_with(peer).is_some() {
            continue;
        }
        let pause = backoff.pause();
        tokio::select! {
            () = sleep(pause) => {}
            () = wanted.moved.notified() => backoff.reset(),
            () = bonded(group, peer) => {}
        }
    }
}

/// Returns once there is a bond with the peer.
async fn bonded(group: &Group, peer: PeerId) {
    let mut bonds = group.bonds();
    while group.bond_with(peer).is_none() {
        bonds.changed().await;
    }
}

/// One try: a link, a proof over it, a bond.
async fn attempt(group: &Arc<Group>, addr: &PeerAddr) -> Result<(), DialError> {
    let peer = addr.peer;
    let link = tokio::select! {
        link = link_to(group.links(), addr) => link.map_err(DialError::NoLink)?,
        // The peer was quicker than our dial.
        () = bonded(group, peer) => return Ok(()),
    };
    let ours = Ours::on(&link);
    let gate = match link.is_proven() {
        true => None,
        false => Some(link.gate.lock().await),
    };
    if group.bond_with(peer).is_some() {
        drop((gate, ours));
        superfluous(&link);
        return Ok(());
    }
    let patience = group.links().timing().dial_timeout;
    let opened = timeout(patience, link.connection.open()).await;
    let mut stream = match opened {
        Ok(stream) => stream.map_err(DialError::NoLink)?,
        Err(_) => return Err(DialError::NoLink(unanswered(&link))),
    };
    let opened = Instant::now();
    match initiate(&link.channel, group.credentials(), &mut stream, opened).await {
        Ok(proof) => {
            link.prove();
            drop(gate);
            admission::settle(group, &link, proof, stream).await?;
            Ok(())
        }
        Err(error) => {
            group.counters().handshakes_refused.add(1);
            if matches!(error, NotProven::Slow) {
                unanswered(&link);
            } else if !error.is_theirs() {
                tracing::info!(peer = %peer.short(), %error, "a handshake of ours is refused here");
                refuse(&mut stream, opened).await;
            }
            Err(error.into())
        }
    }
}

/// The peer was quicker: a link of ours that nobody needs any more does not linger.
fn superfluous(link: &Link) {
    if link.dialled && !link.is_proven() && link.ours.load(Ordering::Relaxed) == 0 {
        link.connection
            .close(code::REDUNDANT, "another link is kept");
    }
}

/// A link that does not answer and carries no bond is given up, so that the next try dials anew.
fn unanswered(link: &Link) -> WireError {
    if link.bonds() == 0 {
        link.connection.close(code::IDLE, "no answer");
    }
    WireError::new("the connection does not answer")
}

/// The link with this peer, or a fresh one. Dials of several groups to one peer are one dial.
async fn link_to(links: &Links, addr: &PeerAddr) -> Result<Arc<Link>, WireError> {
    if let Some(link) = links.link_with(addr.peer) {
        return Ok(link);
    }
    let asked = Instant::now();
    let door = links.door(addr.peer);
    let mut failed = door.lock().await;
    if let Some(link) = links.link_with(addr.peer) {
        return Ok(link);
    }
    if let Some((at, error)) = &*failed
        && *at >= asked
    {
        return Err(error.clone());
    }
    let dialled = timeout(links.timing().dial_timeout, links.transport().dial(addr)).await;
    let dialled = match dialled {
        Ok(dialled) => dialled.and_then(|connection| links.adopt(connection, None)),
        Err(_) => Err(WireError::new("no answer")),
    };
    *failed = dialled
        .as_ref()
        .err()
        .map(|error| (Instant::now(), error.clone()));
    dialled
}

/// A handshake of ours on a link, for as long as it lives.
struct Ours(Arc<Link>);

impl Ours {
    fn on(link: &Arc<Link>) -> Self {
        link.ours.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(link))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.ours.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Pauses between tries: doubling, from half to the whole of it at random.
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(timing: &Timing) -> Self {
        Self {
            min: timing.redial_min,
            max: timing.redial_max,
            next: timing.redial_min,
        }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.max);
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }

    fn jitter(&self) -> Duration {
        self.min.mul_f64(rand::random_range(0.0..=1.0))
    }
}

/// Why a try failed, in words for people.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot be reached: {0}")]
    NoLink(WireError),
    #[error(transparent)]
    NotProven(#[from] NotProven),
    #[error(transparent)]
    NotBonded(#[from] NotBonded),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_never_agree() {
        let mut backoff = Backoff::new(&Timing::LAN);
        let mut whole = Timing::LAN.redial_min;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(
                pause <= whole && pause >= whole / 2,
                "{pause:?} of {whole:?}"
            );
            whole = (whole * 2).min(Timing::LAN.redial_max);
        }
        backoff.reset();
        assert!(backoff.pause() <= Timing::LAN.redial_min);
    }
}
