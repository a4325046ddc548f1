//! Before the proof: one refusal for everything, and little room.

use std::time::Instant;

use super::*;
use crate::{
    bond::{Channel, Credentials, HANDSHAKE_TIME},
    net::{ALPN, Link},
};

const REFUSED_AFTER: Duration = Duration::from_millis(250);

/// Late on two busy cores, and still far from any other time-out.
const LATE: Duration = Duration::from_millis(2_000);

/// Somebody with a transport and no node.
struct Stranger(Quic);

impl Stranger {
    async fn new() -> Self {
        Self(quic(rand::random(), 0).await)
    }

    async fn dial(&self, addr: &PeerAddr) -> Link {
        soon("a connection", self.0.dial(addr))
            .await
            .expect("dialled")
    }

    /// Waits to be dialled, and for the first stream on it.
    async fn dialled(&self) -> (Link, BondStream) {
        let knock = soon("a knock", self.0.accept()).await.expect("open");
        let link = soon("a connection", knock.accept())
            .await
            .expect("accepted");
        let stream = soon("a stream", link.accept()).await.expect("opened");
        (link, stream)
    }
}

fn hello(link: &Link, local: PeerId, key: &GroupKey) -> Bytes {
    let ekm = link
        .export(b"EXPORTER-quorate-bond-1", ALPN)
        .expect("exported");
    let channel = Channel {
        ekm,
        local,
        remote: link.remote(),
    };
    let credentials = Credentials::new(key, group(key));
    crate::bond::hello_for_tests(&channel, &credentials, rand::random())
}

/// Reads to the end of the stream: nothing but the refusal may come, and not before its time.
async fn only_the_refusal(stream: &mut BondStream, opened: Instant, not_before: Duration) {
    let frame = soon("the refusal", stream.recv.read_frame(4096))
        .await
        .expect("a frame");
    let took = opened.elapsed();
    assert_eq!(frame, Some(Bytes::from_static(&[0])));
    assert!(took >= not_before && took < not_before + LATE, "{took:?}");
    assert_eq!(
        soon("the end", stream.recv.read_frame(4096)).await,
        Ok(None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_stranger_says_the_refusal_is_the_same() {
    let key = GroupKey::generate();
    let member = Member::start(&key, vec![]).await;
    let wrong = GroupKey::generate();
    type Say = Box<dyn Fn(&Link, PeerId) -> Bytes + Send>;
    let says: Vec<(&str, Say)> = vec![
        (
            "a hello of another key",
            Box::new(move |link, me| hello(link, me, &wrong)),
        ),
        (
            "nothing but a byte",
            Box::new(|_, _| Bytes::from_static(&[1])),
        ),
        ("an empty frame", Box::new(|_, _| Bytes::new())),
        ("garbage", Box::new(|_, _| vec![0xa5; 57].into())),
        ("a lane", Box::new(|_, _| vec![0x10; 17].into())),
        ("a refusal", Box::new(|_, _| Bytes::from_static(&[0]))),
        ("an oversized frame", Box::new(|_, _| vec![1; 1025].into())),
    ];
    for (what, say) in says {
        let stranger = Stranger::new().await;
        let link = stranger.dial(&member.addr()).await;
        let mut stream = link.open().await.expect("opened");
        let opened = Instant::now();
        stream
            .send
            .write_frame(say(&link, stranger.0.peer_id()))
            .await
            .expect(what);
        only_the_refusal(&mut stream, opened, REFUSED_AFTER).await;
        link.close(0, "");
    }
    assert_eq!(member.node.counters.read().handshakes_refused, 7);
    assert!(member.mesh.bonds().is_empty());
    member.shut().await;
}

/// The hello is right, the key is not proven.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_proof_is_the_same_refusal() {
    let key = GroupKey::generate();
    let member = Member::start(&key, vec![]).await;
    let stranger = Stranger::new().await;
    let link = stranger.dial(&member.addr()).await;
    let mut stream = link.open().await.expect("opened");
    let opened = Instant::now();
    let hello = hello(&link, stranger.0.peer_id(), &key);
    stream.send.write_frame(hello).await.expect("written");
    for _ in 0..2 {
        soon("hello and proof", stream.recv.read_frame(1024))
            .await
            .expect("read");
    }
    stream
        .send
        .write_frame(vec![4; 33].into())
        .await
        .expect("written");
    only_the_refusal(&mut stream, opened, REFUSED_AFTER).await;
    member.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_refused_when_its_time_is_over() {
    let member = Member::start(&GroupKey::generate(), vec![]).await;
    let stranger = Stranger::new().await;
    let link = stranger.dial(&member.addr()).await;
    let mut stream = link.open().await.expect("opened");
    let opened = Instant::now();
    // A stream exists for the other side with its first byte; a length, and then nothing.
    stream.send.write_torn_for_tests().await;
    only_the_refusal(&mut stream, opened, HANDSHAKE_TIME).await;
    member.shut().await;
}

/// A member's own frames, carried by somebody else over connections of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_frames_are_refused_on_both_sides() {
    let key = GroupKey::generate();
    let (one, two) = (
        Member::start(&key, vec![]).await,
        Member::start(&key, vec![]).await,
    );
    let relay = Stranger::new().await;
    one.mesh.learn(relay.0.local_addr());
    let (_from, mut from) = relay.dialled().await;
    let met = Instant::now();
    let to = relay.dial(&two.addr()).await;
    let mut out = to.open().await.expect("opened");
    let opened = Instant::now();
    let hello = soon("a hello", from.recv.read_frame(1024))
        .await
        .expect("read")
        .expect("one");
    out.send.write_frame(hello).await.expect("written");
    only_the_refusal(&mut out, opened, REFUSED_AFTER).await;
    // What the second would answer to the first is no better: here a frame that is no hello.
    for _ in 0..2 {
        from.send
            .write_frame(vec![2; 57].into())
            .await
            .expect("written");
    }
    let frame = soon("the refusal", from.recv.read_frame(1024))
        .await
        .expect("read");
    assert_eq!(frame, Some(Bytes::from_static(&[0])));
    assert!(met.elapsed() >= REFUSED_AFTER);
    assert!(one.mesh.bonds().is_empty() && two.mesh.bonds().is_empty());
    one.shut().await;
    two.shut().await;
}

/// In the initiator's role: whoever is dialled learns no more than whoever dials.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_dialled_and_cannot_prove_gets_the_same_refusal() {
    let key = GroupKey::generate();
    let stranger = Stranger::new().await;
    let member = Member::start(&key, vec![stranger.0.local_addr()]).await;
    let (link, mut stream) = stranger.dialled().await;
    let opened = Instant::now();
    let theirs = soon("a hello", stream.recv.read_frame(1024))
        .await
        .expect("read")
        .expect("one");
    assert_eq!(theirs.len(), 57, "nothing but the hello");
    let wrong = hello(&link, stranger.0.peer_id(), &GroupKey::generate());
    let mut answer = vec![wrong, vec![3; 33].into()];
    stream
        .send
        .write_frames(&mut answer)
        .await
        .expect("written");
    // The opening was a moment before we saw it.
    let early = REFUSED_AFTER - Duration::from_millis(100);
    only_the_refusal(&mut stream, opened, early).await;
    member.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_three_failures_the_link_is_closed() {
    let member = Member::start(&GroupKey::generate(), vec![]).await;
    let stranger = Stranger::new().await;
    let link = stranger.dial(&member.addr()).await;
    for _ in 0..3 {
        let mut stream = link.open().await.expect("opened");
        let opened = Instant::now();
        stream
            .send
            .write_frame(Bytes::new())
            .await
            .expect("written");
        only_the_refusal(&mut stream, opened, REFUSED_AFTER).await;
    }
    let why = soon("the end", link.closed()).await;
    assert!(why.to_string().contains("too many failures"), "{why}");
    member.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_has_two_streams_and_one_handshake_at_a_time() {
    let member = Member::start(&GroupKey::generate(), vec![]).await;
    let stranger = Stranger::new().await;
    let link = stranger.dial(&member.addr()).await;
    let (mut first, mut second) = (
        link.open().await.expect("opened"),
        link.open().await.expect("opened"),
    );
    let third = tokio::time::timeout(Duration::from_millis(100), link.open()).await;
    assert!(third.is_err(), "a third stream was allowed");
    let opened = Instant::now();
    for stream in [&mut first, &mut second] {
        stream
            .send
            .write_frame(Bytes::new())
            .await
            .expect("written");
    }
    only_the_refusal(&mut first, opened, REFUSED_AFTER).await;
    // The second is looked at only after the first.
    only_the_refusal(&mut second, opened, REFUSED_AFTER * 2).await;
    member.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_without_a_proof_are_limited_and_members_still_bond() {
    let key = GroupKey::generate();
    let member = Member::start(&key, vec![]).await;
    let stranger = Stranger::new().await;
    let mut links = Vec::new();
    for _ in 0..4 {
        links.push(stranger.dial(&member.addr()).await);
    }
    // One more from the same peer is closed.
    let fifth = stranger.dial(&member.addr()).await;
    soon("the end of the fifth", fifth.closed()).await;
    assert_eq!(member.node.links.count(), 4);
    let other = Member::start(&key, vec![member.addr()]).await;
    member.bonded(&other).await;
    member.shut().await;
    other.shut().await;
}

/// A bond's streams are good on its own connection only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_no_bond_is_reset() {
    let (one, two, bond, _) = pair(&GroupKey::generate()).await;
    let mut stream = bond.link().open().await.expect("opened");
    let mut head = vec![0x10];
    head.extend_from_slice(&[9; 16]);
    stream.send.write_frame(head.into()).await.expect("written");
    let answer = soon("an answer", stream.recv.read_frame(1024)).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(!bond.is_terminated());
    one.shut().await;
    two.shut().await;
}
