//! The places of a server: who has one, for how long, and that nothing is left when it closes.

use std::sync::{Arc, Mutex, Weak};

use futures_util::{StreamExt, stream};
use quorate::{
    PeerId,
    log_store::Operation,
    sync::{
        Access, Denied, Have, LogServer, LogServerOptions, MemberFault, PullStatus, Puller, Secret,
        ServeLimits,
    },
};

use super::{
    Kind,
    carrier::{Carrier, NETWORK},
    over_each,
};
use crate::client::ground::{Ground, Writer, append, soon};

over_each!(
    one_client_has_as_many_sessions_as_it_may,
    a_client_that_is_gone_while_it_has_to_wait_leaves_its_place,
    a_server_says_who_asks,
    a_closed_server_has_let_go_of_everything,
    damaged_kept_settings_do_not_stop_the_start,
);

async fn take(puller: &mut Puller, count: usize) -> Vec<Operation> {
    soon("the operations", puller.take(count).collect()).await
}

async fn one_client_has_as_many_sessions_as_it_may(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let all = Writer::new(1).many(10);
    append(&ground.logs[0], &all).await;
    let options = LogServerOptions {
        sessions_of_peer_max: 1,
        ..LogServerOptions::default()
    };
    let server = carrier.serve_with(&ground.logs[0], options).await;
    let pull = |key: u8| {
        let pull = carrier.pull(&[server.addr()], Have::new());
        pull.with_key(Secret::from([key; 32])).start()
    };
    let mut first = pull(3);
    assert_eq!(take(&mut first, 10).await, all);
    let mut second = pull(3);
    let mut watch = second.handle().watch_status();
    let turned_away = |it: &PullStatus| {
        let fault = it.last_error.as_ref().map(|it| &it.fault);
        let why = Denied::OverQuota;
        matches!(fault, Some(MemberFault::Denied { why: it, .. }) if *it == why)
    };
    soon("the refusal", watch.wait_for(turned_away)).await;
    let mut other = pull(4);
    assert_eq!(take(&mut other, 10).await, all);
    // It asks again, and gets the place that the other session has left.
    drop(first);
    assert_eq!(take(&mut second, 10).await, all);
    drop((second, other));
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_client_that_is_gone_while_it_has_to_wait_leaves_its_place(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let options = LogServerOptions {
        sessions_max: 1,
        limits: ServeLimits {
            pushed_per_second: 1,
            ..ServeLimits::default()
        },
        ..LogServerOptions::default()
    };
    let server = carrier.serve_with(&ground.logs[0], options).await;
    // Three batches: after the first it is to wait for minutes.
    let all = Writer::new(1).many(9_000);
    let mut pusher = carrier.push(&[server.addr()]).start(stream::iter(all));
    let first = soon("an answer", pusher.next()).await;
    assert!(first.is_some());
    drop(pusher);
    let mut second = carrier.pull(&[server.addr()], Have::new()).start();
    assert_eq!(take(&mut second, 10).await.len(), 10);
    drop(second);
    soon("it closes", server.close()).await;
    ground.close().await;
}

/// A server that keeps what it is asked, and by whom; until it is closed it holds the first.
async fn asked(
    ground: &Ground,
    carrier: &Carrier,
) -> (LogServer, Weak<Mutex<Vec<(PeerId, Access)>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let weak = Arc::downgrade(&asked);
    let logs = ground.logs[0].clone();
    let options = LogServerOptions {
        transports: carrier.transports(),
        network: NETWORK,
        ..LogServerOptions::default()
    };
    let admit = move |peer, _, access| {
        asked.lock().expect("no panic").push((peer, access));
        Ok(logs.clone())
    };
    let server = LogServer::open(options, Arc::new(admit)).await;
    (server.expect("there is an address"), weak)
}

async fn a_server_says_who_asks(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let (server, kept) = asked(&ground, &carrier).await;
    let key = Secret::from([3; 32]);
    let push = carrier.push(&[server.addr()]).with_key(key.clone());
    let pusher = push.start(stream::iter(Writer::new(1).many(1)));
    soon("the push", pusher.count()).await;
    let pull = carrier.pull(&[server.addr()], Have::new()).once();
    soon("the pull", pull.with_key(key.clone()).start().count()).await;
    let asked = kept
        .upgrade()
        .expect("it runs")
        .lock()
        .expect("no panic")
        .clone();
    let peer = key.peer();
    assert_eq!(asked, [(peer, Access::Push), (peer, Access::Pull)]);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_closed_server_has_let_go_of_everything(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    // More than any socket holds: one session is writing, one follows.
    let mut ada = Writer::new(1);
    append(&ground.logs[0], &ada.many_of(300, 128 * 1024)).await;
    let (server, kept) = asked(&ground, &carrier).await;
    let mut writing = carrier.pull(&[server.addr()], Have::new()).start();
    assert_eq!(take(&mut writing, 1).await.len(), 1);
    let mut following = carrier.pull(&[server.addr()], Have::new()).start();
    assert_eq!(take(&mut following, 300).await.len(), 300);
    assert!(kept.upgrade().is_some());
    soon("it closes", server.close()).await;
    assert!(kept.upgrade().is_none(), "something still runs");
    drop((writing, following));
    ground.close().await;
}

async fn damaged_kept_settings_do_not_stop_the_start(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    append(&ground.logs[0], &Writer::new(1).many(10)).await;
    let secret = Secret::from([5; 32]);
    let texts = [
        "bind nonsense\nurl nonsense\n",
        "url \n",
        "bind 127.0.0.1:99999\n\u{0}",
    ];
    for text in texts {
        let options = LogServerOptions {
            secret: secret.clone(),
            kept: [(carrier.name().to_owned(), text.to_owned())].into(),
            ..LogServerOptions::default()
        };
        let server = carrier.serve_with(&ground.logs[0], options).await;
        // It is who it was, and is found where it says.
        assert_eq!(server.addr().peer(), secret.peer());
        let mut puller = carrier.pull(&[server.addr()], Have::new()).start();
        assert_eq!(take(&mut puller, 10).await.len(), 10);
        drop(puller);
        soon("it closes", server.close()).await;
    }
    ground.close().await;
}
