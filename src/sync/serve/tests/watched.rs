//! Waiting for what a door's status says.

use super::{
    super::{Patience, PeerState, SyncOptions, SyncStatus},
    doors::served,
    guest::{Guest, House, soon, topic},
};
use crate::log_store::{Line, mint::Writer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_a_door_is_told_what_becomes_of_a_peer_and_of_the_door() {
    let line = Line::V07;
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let mut status = door.watch_status();
    assert!(status.now().serving && status.now().peers.is_empty());
    let guest = Guest::new().await;
    let mut talk = served(&guest, &door, line, None).await;
    let is = |state| {
        let (peer, topic) = (guest.id(), topic(line));
        move |it: &SyncStatus| {
            let mut peers = it.peers.iter();
            peers.any(|it| (it.peer, it.topic, it.state) == (peer, topic, state))
        }
    };
    let now = soon("it is live", status.wait_for(is(PeerState::Live))).await;
    assert_eq!(now.expect("the door is open").sessions, 1);
    let ada = Writer::new(1, topic(line), line).many(1);
    house.append(ada).await;
    talk.hear().await.expect("it is told");
    talk.connection.close("enough");
    let ended = status.wait_for(|it| it.sessions == 0 && is(PeerState::Waiting)(it));
    let now = soon("it has ended", ended).await.expect("the door is open");
    assert_eq!((now.peers[0].sent, now.peers[0].sessions), (1, 1));

    // With another endpoint, too.
    let network = SyncOptions {
        network: [7; 32],
        ..door.options()
    };
    door.configure(network).await.expect("it makes sense");
    let counts_anew = |it: &SyncStatus| it.peers.iter().all(|it| it.sessions == 0);
    let fresh = status.wait_for(|it| it.open && it.serving && counts_anew(it));
    soon("it serves again", fresh)
        .await
        .expect("the door is open");
    door.stop().await;
    let closed = soon("it is closed", status.wait_for(|it| !it.open)).await;
    assert!(!closed.expect("there is a handle").serving);
    drop(door);
    let more = soon("the end", status.changed()).await;
    assert_eq!(more, None);
    guest.close().await;
    house.close().await;
}
