//! The register of peers, as all members share it.

use quorate::{
    PeerId,
    sync::{Admission, KnownPeer, OutsidersError},
};

use super::ground::{Friend, Serving, Writer, group, holds, open, shutdown, until};
use crate::cluster::within;

async fn known(member: &Serving, peer: PeerId) -> Option<KnownPeer> {
    let peers = within("the register", member.outsiders.peers()).await;
    let peers = peers.expect("it can be read");
    peers.into_iter().find(|it| it.peer == peer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_know_whom_one_has_met_and_how_it_went() {
    let members = group(3).await;
    open(&members[0], Admission::everyone()).await;
    let mut ada = Writer::new(1);
    ada.write(&members[0].logs, 10).await;
    let friend = Friend::new().await;
    let id = friend.id();
    friend.meets(&members[1]);
    holds(&friend.logs, &ada, 10).await;
    for member in &members {
        until("it is known, and that it went well", async || {
            let known = known(member, id).await;
            known.is_some_and(|it| it.last_success.is_some() && !it.addr.addrs.is_empty())
        })
        .await;
    }
    let naming = members[2].outsiders.name_peer(id, Some("Ada's phone"));
    within("the name", naming).await.expect("named");
    for member in &members {
        until("its name is known", async || {
            let known = known(member, id).await;
            known.is_some_and(|it| it.name.as_deref() == Some("Ada's phone"))
        })
        .await;
    }
    for bad in ["", "two\nlines", &"n".repeat(65)] {
        let naming = members[0].outsiders.name_peer(id, Some(bad)).await;
        assert!(matches!(naming, Err(OutsidersError::BadName)), "{naming:?}");
    }

    // It goes, and members that look for it in vain say so. Its name stays.
    friend.stop().await;
    until("it is known that it is gone", async || {
        let known = known(&members[0], id).await;
        known.is_some_and(|it| it.last_error.is_some() && it.name.is_some())
    })
    .await;
    let refusing = members[0].outsiders.refuse(super::ground::topic(), id);
    within("the refusal", refusing).await.expect("refused");
    // What was on its way to the register when it was refused may still come.
    until("it is forgotten", async || {
        let forgetting = members[0].outsiders.forget_peer(id);
        within("the peer is forgotten", forgetting)
            .await
            .expect("forgotten");
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        known(&members[1], id).await.is_none()
    })
    .await;
    shutdown(members).await;
}
