//! Links that are slow, and members that hang: large operations take longer than silence may and
//! come through, and a member that says nothing any more is left in a time that is known.

use std::{
    slice::from_ref,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use quorate::{
    log_store::Operation,
    sync::{Have, PushOutcome, Pushed, ServeLimits},
};

use super::{Kind, carrier::Carrier, link};
use crate::client::ground::{Ground, Writer, append, soon};

/// What the slow link carries of one client, each way.
const BYTES_PER_SECOND: usize = 96 * 1024;
/// Takes seven seconds.
const BODY: usize = 640 * 1024;
/// How long nothing may move.
const STILL: Duration = Duration::from_secs(2);

/// Until the next chunk comes: 15 s of silence, 3 s for a dial, and room for a busy machine.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(20);

async fn a_slow_link_carries_large_operations(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    let held = ada.many_of(1, BODY);
    append(&ground.logs[0], &held).await;
    let limits = ServeLimits {
        stalled_after: STILL,
        silent_after: STILL,
        ..ServeLimits::default()
    };
    let slow = link::server(&carrier, &ground, limits, Some(BYTES_PER_SECOND));
    let (server, there, _link) = slow.await;
    let begun = Instant::now();
    let pulling = async {
        let pull = carrier.pull(from_ref(&there), Have::new()).once();
        let puller = pull.silent_after(STILL).start();
        let handle = puller.handle();
        let taken: Vec<Operation> = soon("the pull", puller.collect()).await;
        assert!(taken == held, "{} operations", taken.len());
        assert_eq!(handle.status().sessions, 1, "{:?}", handle.status());
    };
    let pushing = async {
        let push = carrier.push(from_ref(&there)).silent_after(STILL);
        let pusher = push.start(stream::iter(ben.many_of(1, BODY)));
        let pushed: Vec<Pushed> = soon("the push", pusher.collect()).await;
        let outcome = &pushed[0].outcome;
        let refused = matches!(outcome, PushOutcome::Refused(_));
        assert!(!refused, "{outcome:?}");
    };
    tokio::join!(pulling, pushing);
    assert!(begun.elapsed() > 2 * STILL, "the link was not slow");
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_member_that_hangs_is_left_within_a_known_time(kind: Kind) {
    const COUNT: usize = 400;
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    // Far more than a client and its sockets hold.
    let all = Writer::new(1).many_of(COUNT, 128 * 1024);
    append(&ground.logs[0], &all).await;
    let limits = ServeLimits::default();
    let (hangs, there, link) = link::server(&carrier, &ground, limits, None).await;
    let other = carrier.serve(&ground.logs[0]).await;
    // With the silence that is the default.
    let mut puller = carrier.pull(&[there, other.addr()], Have::new()).start();
    let mut taken: Vec<Operation> = Vec::new();
    let take = async {
        let first = COUNT / 8;
        taken.extend(puller.by_ref().take(first).collect::<Vec<_>>().await);
        link.stop();
        let (mut before, mut longest) = (Instant::now(), Duration::ZERO);
        while taken.len() < COUNT {
            taken.extend(puller.next().await);
            longest = longest.max(before.elapsed());
            before = Instant::now();
        }
        longest
    };
    let longest = soon("all of it", take).await;
    println!("{kind:?}: a member hangs, the next chunk comes after {longest:.1?}");
    assert_eq!(taken, all);
    assert!(puller.status().failures >= 1, "{:?}", puller.status());
    assert!(longest < TAKEN_OVER_WITHIN, "{longest:?}");
    drop(puller);
    for server in [hangs, other] {
        soon("it closes", server.close()).await;
    }
    ground.close().await;
}

macro_rules! over_links {
    ($($name:ident $kind:ident),*) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_slow_link_carries_large_operations() {
                super::a_slow_link_carries_large_operations(super::Kind::$kind).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_member_that_hangs_is_left_within_a_known_time() {
                super::a_member_that_hangs_is_left_within_a_known_time(super::Kind::$kind).await;
            }
        })*
    };
}
over_links!(quic Quic);
#[cfg(feature = "http")]
over_links!(http Http);
