//! A door's settings at run time, syncing once on demand, and a door that is closed.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use futures_util::StreamExt;
use quorate::{
    PeerAddr, PeerId,
    sync::{Admission, SyncOptions, SyncWithError},
};

use super::ground::{
    Client, Friend, Serving, Writer, group, held, holds, open, options, shutdown, topic,
};
use crate::cluster::within;

async fn configure(serving: &Serving, options: SyncOptions) {
    let changing = serving.sync.configure(options);
    within("the settings", changing).await.expect("changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_while_the_door_is_open() {
    let members = group(1).await;
    open(&members[0], Admission::everyone()).await;
    let (serving, sync) = (&members[0], &members[0].sync);
    let mut ada = Writer::new(1);
    ada.write(&serving.logs, 5).await;
    let client = Client::of(serving, 3);
    let mut puller = client.pulls();
    for _ in 0..5 {
        within("it follows", puller.next())
            .await
            .expect("it goes on");
    }
    let failures = puller.status().failures;
    // While sessions go on: how often is asked, and whom it looks for.
    let friend = Friend::new().await;
    let live = SyncOptions {
        ask_again: Duration::from_secs(2),
        peers: vec![friend.sync.addr()],
        ..sync.options()
    };
    configure(serving, live.clone()).await;
    holds(&friend.logs, &ada, 5).await;
    assert_eq!(puller.status().failures, failures);
    assert_eq!(sync.options(), live);

    // With another endpoint: the network, and then back.
    let (id, addr) = (sync.id(), sync.addr());
    let elsewhere = SyncOptions {
        network: [7; 32],
        ..sync.options()
    };
    configure(serving, elsewhere.clone()).await;
    assert_eq!((sync.id(), sync.addr()), (id, addr.clone()));
    assert_eq!(sync.ticket().network(), [7; 32]);
    ada.write(&serving.logs, 5).await;
    let mut watch = puller.handle().watch_status();
    within("it is cut off", watch.wait_for(|it| it.failures > failures))
        .await
        .expect("it goes on");
    let there = Client::of(serving, 4).pulls().take(10);
    let there = within("another network", there.collect::<Vec<_>>()).await;
    assert_eq!(there.len(), 10);
    assert_eq!(held(&friend.logs, &ada).await, 5);
    configure(serving, live).await;
    holds(&friend.logs, &ada, 10).await;
    for _ in 0..5 {
        within("it goes on", puller.next()).await.expect("it does");
    }

    // What cannot be leaves all as it was.
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let bind = vec![taken.local_addr().expect("it is bound")];
    let bad = SyncOptions {
        bind,
        ..sync.options()
    };
    let refused = within("the settings", sync.configure(bad)).await;
    assert!(refused.is_err());
    assert_eq!(sync.addr(), addr);
    ada.write(&serving.logs, 1).await;
    holds(&friend.logs, &ada, 11).await;
    friend.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_synced_with_once_on_demand() {
    let members = group(1).await;
    let (serving, sync) = (&members[0], &members[0].sync);
    let friend = Friend::new().await;
    let missing = within("nothing is open", sync.sync_with(friend.sync.addr())).await;
    assert_eq!(missing, Err(SyncWithError::NotAdmitted));
    open(serving, Admission::everyone()).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    ada.write(&serving.logs, 700).await;
    ben.write(&friend.logs, 30).await;
    let synced = within("the sync", sync.sync_with(friend.sync.addr())).await;
    let synced = synced.expect("it is there");
    assert_eq!((synced.len(), synced[0].topic), (1, topic()));
    assert_eq!(held(&friend.logs, &ada).await, 700);
    holds(&serving.logs, &ben, 30).await;
    // Again, whether it is live by now or not.
    ada.write(&serving.logs, 3).await;
    ben.write(&friend.logs, 3).await;
    let synced = within("the sync", sync.sync_with(friend.sync.addr())).await;
    synced.expect("it is there");
    assert_eq!(held(&friend.logs, &ada).await, 703);
    // By a session that its side began, maybe, which is a little behind.
    holds(&serving.logs, &ben, 33).await;

    let nobody = PeerAddr::new(
        PeerId::from_bytes(*friend.id().as_bytes()),
        [SocketAddr::from(([127, 0, 0, 1], 9))],
    );
    friend.stop().await;
    let failed = within("nobody answers", sync.sync_with(nobody)).await;
    assert!(
        matches!(failed, Err(SyncWithError::Failed { .. })),
        "{failed:?}"
    );
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_listens_at_a_door_that_is_closed() {
    let members = group(1).await;
    open(&members[0], Admission::everyone()).await;
    let (serving, sync) = (&members[0], &members[0].sync);
    let mut ada = Writer::new(1);
    ada.write(&serving.logs, 5).await;
    let friend = Friend::new().await;
    friend.meets(serving);
    holds(&friend.logs, &ada, 5).await;
    let port = *sync.addr().addrs.iter().next().expect("it listens");
    let status = sync.status();
    assert!(status.open && status.serving);
    assert!(UdpSocket::bind(port).is_err(), "the door has it");

    within("it stops", serving.member.node.stop_sync(&serving.logs)).await;
    let status = sync.status();
    assert_eq!(
        (status.open, status.serving, status.sessions),
        (false, false, 0)
    );
    drop(UdpSocket::bind(port).expect("nobody listens"));
    let late = within("the sync", sync.sync_with(friend.sync.addr())).await;
    assert_eq!(late, Err(SyncWithError::NotServing));
    assert!(sync.configure(options()).await.is_err());
    ada.write(&serving.logs, 1).await;
    // The group goes on without a door, and opens another one.
    let again = SyncOptions {
        bind: vec![port],
        ..options()
    };
    let opened = serving.member.node.serve_sync(&serving.logs, again.clone());
    let opened = within("a door opens", opened).await.expect("it is free");
    assert!(opened.status().open);
    holds(&friend.logs, &ada, 6).await;
    // One that was closed by its handle does not stand in the way either.
    within("it stops", opened.stop()).await;
    let opened = serving.member.node.serve_sync(&serving.logs, again);
    let opened = within("a door opens", opened).await.expect("it is free");
    let mut status = opened.watch_status();
    within("it serves", status.wait_for(|it| it.serving)).await;
    friend.stop().await;
    shutdown(members).await;
}
