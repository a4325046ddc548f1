//! Who knocks, and what a peer opens on a link: handshakes, lanes and streams.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};

use super::{admission, group::Group, link::Link, links::Links};
use crate::{
    bond::{FRAME_MAX, HANDSHAKE_TIME, NotProven, Opening, Proof, refuse, respond},
    net::{BondStream, Incoming},
};

/// How long a knock may take to become a connection.
const KNOCK_TIME: Duration = Duration::from_secs(5);

/// How long a stream waits for its bond, which it may have overtaken.
const BOND_WAIT: Duration = Duration::from_secs(1);

/// Lets peers in until the transport is closed.
pub(super) async fn accept(links: Links) {
    while let Some(incoming) = links.transport().accept().await {
        match links.stranger() {
            Some(permit) => links.spawn(answer(links.clone(), incoming, permit)),
            None => {
                tracing::warn!("too many links without a proof: one more is refused");
                incoming.refuse();
            }
        }
    }
}

async fn answer(links: Links, incoming: Box<dyn Incoming>, permit: OwnedSemaphorePermit) {
    match timeout(KNOCK_TIME, incoming.accept()).await {
        Ok(Ok(connection)) => {
            // Fails where the node is shutting down, or the connection is gone again.
            let _ = links.adopt(connection, Some(permit));
        }
        Ok(Err(error)) => tracing::debug!(%error, "a knock came to nothing"),
        Err(_) => tracing::debug!("a knock took too long"),
    }
}

/// The first steps of a stream that the peer has opened.
pub(super) async fn open(links: Links, link: Arc<Link>, mut stream: BondStream) {
    let opened = Instant::now();
    let first = first_frame(&mut stream, opened).await;
    if link.is_proven()
        && let Ok(first) = &first
        && let Some((opening, bond)) = Opening::decode(first)
    {
        match link.seated(bond, BOND_WAIT).await {
            Some(seat) => seat.bond.serve(seat.service, opening, stream),
            None => {
                tracing::debug!(peer = %link.peer().short(), "a stream of no bond is reset");
                stream.send.reset();
            }
        }
        return;
    }
    match prove(&links, &link, first, &mut stream, opened).await {
        Ok((group, proof)) => {
            link.prove();
            // What comes of it is logged and counted there.
            let _ = admission::settle(&group, &link, proof, stream).await;
        }
        Err(error) => {
            links.counters().handshakes_refused.add(1);
            tracing::info!(
                peer = %link.peer().short(),
                via = link.connection.describe(),
                %error,
                "a handshake is refused"
            );
            refuse(&mut stream, opened).await;
            link.failed().await;
        }
    }
}

async fn first_frame(stream: &mut BondStream, opened: Instant) -> Result<Bytes, NotProven> {
    let frame = timeout_at(opened + HANDSHAKE_TIME, stream.recv.read_frame(FRAME_MAX)).await;
    frame.map_err(|_| NotProven::Slow)??.ok_or(NotProven::Left)
}

async fn prove(
    links: &Links,
    link: &Arc<Link>,
    first: Result<Bytes, NotProven>,
    stream: &mut BondStream,
    opened: Instant,
) -> Result<(Arc<Group>, Proof), NotProven> {
    let first = first?;
    let mut meant = None;
    let find = |hint: &[u8; 16]| {
        meant = link.group_of(hint, links);
        meant.as_ref().map(|group| group.credentials().clone())
    };
    let proof = respond(&link.channel, find, &first, stream, opened).await?;
    // Without a group there is no proof.
    Ok((meant.ok_or(NotProven::Left)?, proof))
}
