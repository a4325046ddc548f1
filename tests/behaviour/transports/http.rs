//! HTTP alone: middlemen that cut and change what passes, and strangers that want no session.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream};
use quorate::{
    PeerAddr,
    log_store::Operation,
    sync::{Have, LogServerOptions, MemberAddr, PushOutcome, Pushed},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{Kind, carrier::Carrier};
use crate::client::ground::{Ground, Writer, append, soon};

/// What a middleman does with the first connection, after so many bytes from the member.
#[derive(Clone, Copy, Debug)]
enum Does {
    Cut,
    Flip,
}

/// Passes everything on between clients and a member, but for one thing, once.
async fn middleman(to: &MemberAddr, after: usize, does: Does) -> (MemberAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("it is bound");
    let peer = to.peer();
    let to: SocketAddr = to.addrs("http")[0]
        .trim_start_matches("http://")
        .parse()
        .expect("an address");
    let passing = tokio::spawn(async move {
        let mut spoils = Some((after, does));
        while let Ok((client, _)) = listener.accept().await {
            let spoil = spoils.take();
            tokio::spawn(async move {
                let member = TcpStream::connect(to).await.ok()?;
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_member, mut to_member) = member.into_split();
                let up = async { tokio::io::copy(&mut from_client, &mut to_member).await.ok() };
                let down = async {
                    let (mut passed, mut buffer) = (0, [0; 4_096]);
                    loop {
                        let count = from_member.read(&mut buffer).await.ok()?;
                        if count == 0 {
                            return None::<()>;
                        }
                        match spoil {
                            Some((after, Does::Cut)) if passed + count > after => return None,
                            Some((after, Does::Flip))
                                if (passed..passed + count).contains(&after) =>
                            {
                                buffer[after - passed] ^= 1;
                            }
                            _ => {}
                        }
                        to_client.write_all(&buffer[..count]).await.ok()?;
                        passed += count;
                    }
                };
                tokio::select! {
                    _ = up => {}
                    _ = down => {}
                }
                Some(())
            });
        }
    });
    let there = MemberAddr::from(PeerAddr::new(peer, []));
    (there.with("http", &format!("http://{addr}")), passing)
}

/// Where in the answer something happens: its head, the handshake, the frames.
const PLACES: [usize; 6] = [10, 150, 400, 900, 5_000, 60_000];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_through_a_middleman_that_cuts_or_changes_it_is_complete() {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(Kind::Http));
    let all = Writer::new(1).many(2_000);
    append(&ground.logs[0], &all).await;
    let server = carrier.serve(&ground.logs[0]).await;
    for does in [Does::Cut, Does::Flip] {
        for after in PLACES {
            let (addr, passing) = middleman(&server.addr(), after, does).await;
            let pull = carrier.pull(&[addr], Have::new()).once();
            let puller = pull.silent_after(Duration::from_secs(10)).start();
            let handle = puller.handle();
            let taken: Vec<Operation> = soon("the pull", puller.collect()).await;
            assert!(taken == all, "{does:?} after {after}: {}", taken.len());
            let status = handle.status();
            // The date in the head and the like may be changed as anybody likes.
            let harmless = matches!(does, Does::Flip) && after < 400;
            assert!(
                harmless || status.failures == 1,
                "{does:?} after {after}: {status:?}"
            );
            passing.abort();
        }
    }
    soon("it closes", server.close()).await;
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_through_a_middleman_is_answered_by_the_member_alone() {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(Kind::Http));
    let server = carrier.serve(&ground.logs[0]).await;
    let mut ada = Writer::new(1);
    let mut number = 0;
    for does in [Does::Cut, Does::Flip] {
        for after in [900, 1_000, 1_100] {
            let (addr, passing) = middleman(&server.addr(), after, does).await;
            let all = ada.many(300);
            // One by one, so that there are many answers.
            let slowly = stream::iter(all.clone()).then(|it| async {
                tokio::task::yield_now().await;
                it
            });
            let pusher = carrier.push(&[addr]).start(slowly);
            let pushed: Vec<Pushed> = soon("the push", pusher.collect()).await;
            assert_eq!(pushed.len(), all.len());
            for (it, given) in pushed.iter().zip(&all) {
                assert_eq!(it.id, given.id());
                let (PushOutcome::Appended { number: told } | PushOutcome::Held { number: told }) =
                    it.outcome
                else {
                    panic!("{does:?} after {after}: {it:?}");
                };
                assert_eq!(told, number, "{does:?} after {after}");
                number += 1;
            }
            passing.abort();
        }
    }
    soon("it closes", server.close()).await;
    ground.close().await;
}

/// What a stranger is told who sends this and then nothing.
async fn told(addr: &MemberAddr, sent: &[u8]) -> String {
    let addr = addr.addrs("http")[0]
        .trim_start_matches("http://")
        .to_owned();
    let mut stream = TcpStream::connect(addr).await.expect("it listens");
    // It may be closed before all is sent.
    let _ = stream.write_all(sent).await;
    let mut answer = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_want_no_session_are_told_so_and_cost_a_moment() {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(Kind::Http));
    let all = Writer::new(1).many(10);
    append(&ground.logs[0], &all).await;
    let server = carrier.serve(&ground.logs[0]).await;
    let member = server.addr();
    let post = "POST /quorate/logs/1 HTTP/1.1\r\nhost: a\r\n";
    let many: String = (0..200).map(|at| format!("x-{at}: 1\r\n")).collect();
    let long = format!("{post}x: {}\r\n\r\n", "a".repeat(200_000));
    let cases = [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "404"),
        (
            "GET /quorate/logs/1 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
            "405",
        ),
        ("no HTTP at all\r\n\r\n".to_owned(), "400"),
        (format!("{post}{many}\r\n"), "431"),
        (long, "431"),
        // Nothing more than a head: closed, at the latest, when the handshake took too long.
        (format!("{post}\r\n"), "200"),
        (format!("{post}content-length: 9\r\n\r\nno secret"), "200"),
        // Half a head.
        (post.to_owned(), ""),
    ];
    let all_told = cases.iter().map(|(sent, _)| told(&member, sent.as_bytes()));
    let all_told = futures_util::future::join_all(all_told).await;
    for ((sent, status), told) in cases.iter().zip(all_told) {
        let sent = sent.get(..60).unwrap_or(sent);
        assert!(told.contains(status), "{sent:?} got {told:?}");
    }
    let mut puller = carrier.pull(&[member], Have::new()).start();
    let taken: Vec<Operation> = soon("the pull", (&mut puller).take(10).collect()).await;
    assert_eq!(taken, all);
    drop(puller);
    soon("it closes", server.close()).await;
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_take_no_place_of_a_session() {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(Kind::Http));
    append(&ground.logs[0], &Writer::new(1).many(10)).await;
    let options = LogServerOptions {
        sessions_max: 1,
        ..LogServerOptions::default()
    };
    let server = carrier.serve_with(&ground.logs[0], options).await;
    let addr = server.addr().addrs("http")[0].replace("http://", "");
    let mut strangers = Vec::new();
    for _ in 0..5 {
        let mut stranger = TcpStream::connect(&addr).await.expect("it listens");
        // Taken up, and then no key comes.
        let head = b"POST /quorate/logs/1 HTTP/1.1\r\nhost: a\r\n\r\n";
        stranger.write_all(head).await.expect("there is room");
        let mut answer = [0; 12];
        let told = soon("the answer", stranger.read_exact(&mut answer)).await;
        told.expect("it is taken up");
        assert_eq!(&answer, b"HTTP/1.1 200");
        strangers.push(stranger);
    }
    let pull = carrier.pull(&[server.addr()], Have::new());
    let mut puller = pull.dial_within(Duration::from_secs(30)).start();
    let taken: Vec<Operation> = soon("the pull", (&mut puller).take(10).collect()).await;
    assert_eq!(taken.len(), 10);
    assert_eq!(puller.status().failures, 0, "{:?}", puller.status());
    drop((puller, strangers));
    soon("it closes", server.close()).await;
    ground.close().await;
}
