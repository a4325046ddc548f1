//! Neighbours in a topic's overlay that the door has dialled itself.

use tokio::sync::mpsc;

use super::{
    super::{Patience, peers::Rank},
    guest::{Guest, House, soon, topic},
};
use crate::{
    identity::PeerId,
    log_store::Line,
    sync::{
        Admission, Outsiders,
        wire::{Neighbour, Service},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_was_dialled_is_left_when_it_loses_its_rights() {
    let line = Line::V07;
    let house = House::of(1).await;
    let door = house.door(0, Patience::default()).await;
    let (came, mut coming) = mpsc::channel(8);
    let guest = Guest::that(move |knock| {
        let came = came.clone();
        tokio::spawn(async move {
            if let Ok((Service::Gossip, connection)) = knock.accept(|_, _| true).await {
                let _ = came.send(connection).await;
            }
        });
    })
    .await;
    let mut overlay = guest.join(topic(line)).await;
    let shared = door.shared();
    assert!(shared.learn(&guest.addr(), Rank::Met));
    shared
        .feed(topic(line))
        .expect("it is open")
        .invite(guest.id());
    let connection = soon("the door dials", coming.recv()).await;
    let connection = connection.expect("the guest is there");
    let neighbour = soon("a neighbour", overlay.next()).await;
    assert_eq!(neighbour, Some(Neighbour::Up(door.id())));
    assert!(!connection.is_closed(), "it has every right");

    let outsiders = Outsiders::of(&house.logs[0]);
    for line in Line::ALL {
        let others = Admission::peers([PeerId::from_bytes([9; 32])]);
        let changing = outsiders.open_topic(topic(line), line, others);
        soon("the change", changing)
            .await
            .expect("a quorum is there");
    }
    soon("the door hangs up", connection.closed()).await;
    door.stop().await;
    guest.close().await;
    house.close().await;
}
