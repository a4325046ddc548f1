//! The streams themselves over each transport: who is at the other end, where they end, and clients
//! and members that do not keep to the protocol.

use std::time::Duration;

use futures_util::StreamExt;
use quorate::{
    PeerAddr,
    log_store::Operation,
    sync::{
        Caller, Dialled, Have, Identity, Listener, LogServerOptions, MemberAddr, MemberFault,
        PullStatus, Secret, ServeLimits,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Kind,
    carrier::{Carrier, NETWORK},
    over_each,
};
use crate::client::ground::{Ground, Writer, append, soon, topic};

over_each!(
    both_ends_have_proven_who_they_are,
    a_stream_carries_every_byte_both_ways_and_ends,
    a_member_that_falls_silent_is_left,
    a_member_that_is_cut_off_within_a_frame_is_left,
    clients_that_break_the_protocol_are_told_so,
    a_client_that_never_reads_is_dropped,
    a_closed_listener_takes_nobody,
);

/// The next client, let in.
async fn caller(listener: &dyn Listener) -> Caller {
    let knock = soon("a knock", listener.accept()).await;
    let knock = knock.expect("it listens");
    soon("the handshake", knock).await.expect("it is let in")
}

async fn both_ends_have_proven_who_they_are(kind: Kind) {
    let carrier = Carrier::new(kind);
    let (member, listener) = carrier.listen(None).await;
    let me = Secret::from([3; 32]);
    let dialling = async {
        let mut dialled = carrier.dial(&member, me.clone()).await.expect("it answers");
        // Some streams are seen with their first bytes alone.
        dialled.write.write_all(b"x").await.expect("there is room");
        dialled
    };
    let (caller, _dialled) =
        soon("both", async { tokio::join!(caller(&*listener), dialling) }).await;
    assert_eq!(caller.peer, me.peer());

    let answering = async {
        while let Some(knock) = listener.accept().await {
            tokio::spawn(async move { knock.await.map(drop) });
        }
    };
    // Somebody else is expected at this address; and the member is in another network.
    let other = PeerAddr::new(Secret::from([9; 32]).peer(), []);
    let name = carrier.name();
    let addrs = member.addrs(name);
    let other = addrs
        .iter()
        .fold(MemberAddr::from(other), |it, addr| it.with(name, addr));
    let identity = Identity {
        network: [5; 32],
        secret: me.clone(),
    };
    let elsewhere = carrier.transports().dialler(&identity);
    let tried = async {
        (
            carrier.dial(&other, me).await,
            elsewhere.dial(&member).await,
        )
    };
    let (imposter, stranger) = tokio::select! {
        tried = soon("both fail", tried) => tried,
        () = answering => panic!("the listener has ended"),
    };
    assert!(imposter.is_err(), "a member without the key was believed");
    assert!(
        stranger.is_err(),
        "a member of another network was believed"
    );
    assert_ne!(NETWORK, [5; 32]);
}

async fn a_stream_carries_every_byte_both_ways_and_ends(kind: Kind) {
    const BYTES: usize = 3_000_000;
    let carrier = Carrier::new(kind);
    let (member, listener) = carrier.listen(None).await;
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    let echoing = async {
        let Caller {
            mut read,
            mut write,
            gone,
            ..
        } = caller(&*listener).await;
        // While more comes in.
        let copied = tokio::io::copy(&mut read, &mut write).await;
        assert_eq!(copied.expect("it is whole"), BYTES as u64);
        write.shutdown().await.expect("it ends");
        drop((read, write));
        gone.await;
    };
    let dialling = async {
        let dialled = carrier.dial(&member, Secret::generate()).await;
        let Dialled {
            mut read,
            mut write,
        } = dialled.expect("it answers");
        let writing = async {
            write.write_all(&sent).await.expect("there is room");
            write.shutdown().await.expect("it ends");
        };
        let mut back = Vec::new();
        let (_, count) = tokio::join!(writing, read.read_to_end(&mut back));
        assert_eq!(count.expect("the end is clean"), BYTES);
        assert!(back == sent, "other bytes came back");
    };
    soon("the echo", async { tokio::join!(echoing, dialling) }).await;
}

/// What a pull says of the first member, with which this is done, before it goes on at a second.
async fn fault<F>(kind: Kind, first: impl FnOnce(Caller) -> F) -> MemberFault
where
    F: Future<Output = ()>,
{
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let all = Writer::new(1).many(50);
    append(&ground.logs[0], &all).await;
    let (bad, listener) = carrier.listen(None).await;
    let good = carrier.serve(&ground.logs[0]).await;
    let pull = carrier.pull(&[bad.clone(), good.addr()], Have::new());
    let puller = pull.silent_after(Duration::from_secs(2)).start();
    let handle = puller.handle();
    let taking = async {
        let taken: Vec<Operation> = soon("the operations", puller.take(50).collect()).await;
        assert_eq!(taken, all);
    };
    let first = async { first(caller(&*listener).await).await };
    let failing = async {
        let failed = |it: &PullStatus| it.last_error.is_some();
        let mut watch = handle.watch_status();
        let status = soon("the fault", watch.wait_for(failed)).await;
        status.and_then(|it| it.last_error).expect("it failed")
    };
    let error = tokio::select! {
        (error, ()) = async { tokio::join!(failing, taking) } => error,
        () = async { first.await; std::future::pending().await } => unreachable!(),
    };
    assert_eq!(error.member, bad.peer());
    soon("it closes", good.close()).await;
    ground.close().await;
    error.fault
}

async fn a_member_that_falls_silent_is_left(kind: Kind) {
    let silent = fault(kind, |caller| async move {
        let _held = caller;
        std::future::pending().await
    })
    .await;
    assert!(matches!(silent, MemberFault::Silent { .. }), "{silent}");
}

async fn a_member_that_is_cut_off_within_a_frame_is_left(kind: Kind) {
    let lost = fault(kind, |mut caller| async move {
        // A hundred bytes are announced, and five come.
        let part = [0, 0, 0, 100, 4, 1, 1, 1, 1];
        caller.write.write_all(&part).await.expect("there is room");
        caller.write.flush().await.expect("it is sent");
    })
    .await;
    assert!(matches!(lost, MemberFault::Lost { .. }), "{lost}");
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

fn pull() -> Vec<u8> {
    // Any line, following, nothing held.
    frame(&[&[0][..], topic().as_bytes(), &[0, 1, 0]].concat())
}

/// The reason of the refusal that comes last, before a clean end.
fn refusal(mut frames: &[u8]) -> Option<u8> {
    let mut last = None;
    while let Some((length, rest)) = frames.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        (last, frames) = (Some(frame), rest);
    }
    last.filter(|it| it[0] == 8).map(|it| it[1])
}

async fn clients_that_break_the_protocol_are_told_so(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    append(&ground.logs[0], &Writer::new(1).many(10)).await;
    let limits = ServeLimits {
        request_within: Duration::from_secs(2),
        ..ServeLimits::default()
    };
    let server = carrier.serve_within(&ground.logs[0], limits).await;
    let other_topic = frame(&[&[0][..], &[3; 32], &[0, 1, 0]].concat());
    let cases: [(&str, Vec<u8>, u8); 6] = [
        ("stops within a frame", vec![0, 0, 1], 6),
        ("claims 4 GiB", vec![255; 4], 5),
        (
            "sends far too much",
            [vec![255; 4], vec![0; 500_000]].concat(),
            5,
        ),
        ("sends no message", frame(&[200, 1]), 5),
        ("asks twice", [pull(), pull()].concat(), 5),
        ("wants another topic", other_topic, 1),
    ];
    for (what, sent, why) in cases {
        let dialled = carrier.dial(&server.addr(), Secret::generate()).await;
        let Dialled {
            mut read,
            mut write,
        } = dialled.expect("it answers");
        let mut answer = Vec::new();
        let writing = async {
            // The member need not take all of it.
            let _ = write.write_all(&sent).await;
            let _ = write.flush().await;
        };
        let both = async { tokio::join!(writing, read.read_to_end(&mut answer)) };
        let (_, end) = soon(what, both).await;
        assert!(end.is_ok(), "{what}: {end:?}");
        assert_eq!(refusal(&answer), Some(why), "{what}");
    }
    let heights = ground.logs[0].heights(topic()).await.expect("a quorum");
    assert_eq!(heights.len(), 1);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_client_that_never_reads_is_dropped(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    // More than any socket holds.
    append(&ground.logs[0], &Writer::new(1).many_of(300, 128 * 1024)).await;
    let options = LogServerOptions {
        sessions_max: 1,
        limits: ServeLimits {
            stalled_after: Duration::from_millis(300),
            ..ServeLimits::default()
        },
        ..LogServerOptions::default()
    };
    let server = carrier.serve_with(&ground.logs[0], options).await;
    let dialled = carrier.dial(&server.addr(), Secret::generate()).await;
    let mut dialled = dialled.expect("it answers");
    let asked = dialled.write.write_all(&pull()).await;
    asked.expect("there is room");
    dialled.write.flush().await.expect("it is sent");
    // Its place is free again although it stays: a second client is served.
    let second = carrier.pull(&[server.addr()], Have::new());
    let mut second = second.dial_within(Duration::from_secs(1)).start();
    assert!(soon("the second", second.next()).await.is_some());
    drop(dialled);
    drop(second);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_closed_listener_takes_nobody(kind: Kind) {
    let carrier = Carrier::new(kind);
    let (member, listener) = carrier.listen(None).await;
    let settings = listener.settings();
    soon("it closes", listener.close()).await;
    assert!(soon("the end", listener.accept()).await.is_none());
    soon("once more", listener.close()).await;
    drop(listener);
    let dialling = carrier.dial(&member, Secret::generate());
    let dialled = tokio::time::timeout(Duration::from_secs(1), dialling).await;
    assert!(!matches!(dialled, Ok(Ok(_))), "nobody listens there");
    // Its address is free, and wanted again.
    let (again, _listener) = carrier.listen(Some(settings)).await;
    assert_eq!(again, member);
}
