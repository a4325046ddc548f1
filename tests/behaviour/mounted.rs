//! A program's own sync protocol at a member's door: who is let in, what comes out, what ends it.

use std::{sync::Arc, time::Duration};

use futures_util::SinkExt;
use quorate::{
    GroupKey, Node, PeerId,
    log_store::LogStore,
    sync::{
        FromSync, Mount, MountHandle, MountOptions, Mounted, Sync, SyncError, SyncFuture,
        SyncOptions, SyncProtocol, SyncRead, SyncSink, SyncWrite,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::ground::soon;

/// The initiator sends a byte and a megabyte after it; the acceptor gives its length back.
#[derive(Debug)]
struct Megabyte;

const BYTES: usize = 1_000_000;
/// A topic that makes the acceptor wait for ever.
const STUCK: u8 = 9;

impl SyncProtocol<u8> for Megabyte {
    fn name(&self) -> &'static str {
        "test/megabyte/1"
    }

    fn initiate<'a>(
        self: Arc<Self>,
        topic: u8,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
        sink: SyncSink<'a, u8>,
    ) -> SyncFuture<'a> {
        Box::pin(async move {
            write.write_all(&[topic]).await?;
            write.write_all(&vec![topic; BYTES]).await?;
            let mut length = [0; 4];
            read.read_exact(&mut length).await?;
            // Before it answers nothing is agreed.
            sink.send(FromSync::HandshakeSuccess(topic)).await?;
            let header = length.to_vec();
            sink.send(FromSync::Data {
                header,
                payload: None,
            })
            .await
        })
    }

    fn accept<'a>(
        self: Arc<Self>,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
        sink: SyncSink<'a, u8>,
    ) -> SyncFuture<'a> {
        Box::pin(async move {
            let topic = read.read_u8().await?;
            if topic == STUCK {
                std::future::pending::<()>().await;
            }
            let mut bytes = vec![0; BYTES];
            read.read_exact(&mut bytes).await?;
            sink.send(FromSync::HandshakeSuccess(topic)).await?;
            // Twice is against the contract, whoever does it.
            let again = sink.send(FromSync::HandshakeSuccess(topic)).await;
            assert!(matches!(again, Err(SyncError::Critical(_))));
            write.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
            Ok(())
        })
    }
}

async fn member(options: MountOptions) -> (Node, Sync, Mounted<u8>) {
    let node = Node::in_memory().bind_loopback().open().await;
    let node = node.expect("loopback can be bound");
    let group = node.create(GroupKey::generate(), LogStore::new()).await;
    let logs = group.expect("it is founded").logs();
    let (mount, mounted) = Mount::new(Arc::new(Megabyte), options).expect("a fine name");
    let options = SyncOptions {
        bind: vec![([127, 0, 0, 1], 0).into()],
        protocols: vec![mount.clone()],
        ..SyncOptions::default()
    };
    let twice = SyncOptions {
        protocols: vec![mount.clone(), mount],
        ..options.clone()
    };
    let twice = node.serve_sync(&logs, twice).await;
    assert!(
        twice
            .expect_err("it is there twice")
            .to_string()
            .contains("twice")
    );
    let door = soon("the door", node.serve_sync(&logs, options)).await;
    let door = door.expect("loopback can be bound");
    let mut status = door.watch_status();
    soon("it serves", status.wait_for(|it| it.serving)).await;
    (node, door, mounted)
}

async fn tried(
    handle: &MountHandle<u8>,
    (from, to): (&Sync, &Sync),
    topic: u8,
) -> Result<(), SyncError> {
    soon("the session", handle.sync(from, &to.addr(), topic)).await
}

/// Waits for the place of the session before, if it is not free yet.
async fn is_not_let_in(handle: &MountHandle<u8>, way: (&Sync, &Sync), topic: u8) {
    loop {
        let ended = tried(handle, way, topic).await;
        let error = ended.expect_err("it is not let in").to_string();
        if !error.contains("as many sessions") {
            assert!(error.contains("not served"), "{error}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_protocol_runs_with_those_who_are_let_in_and_within_its_limits() {
    let friend = Arc::new(std::sync::Mutex::new(None::<PeerId>));
    let known = Arc::clone(&friend);
    let options = MountOptions::default()
        .admitting(move |peer| *known.lock().expect("no panic") == Some(peer))
        .sessions_max(1)
        .deadline(Duration::from_secs(20));
    let (host, there, mut hosted) = member(options).await;
    let short = MountOptions::default().deadline(Duration::from_secs(2));
    let (guest, here, mut mounted) = member(short).await;
    let handle = mounted.handle();
    let way = (&here, &there);

    // Nobody has let it in.
    is_not_let_in(&handle, way, 1).await;
    *friend.lock().expect("no panic") = Some(here.id());
    tried(&handle, way, 1).await.expect("it is let in");
    let given = soon("its event", hosted.next()).await.expect("it is kept");
    assert_eq!(
        (given.peer, given.event),
        (here.id(), FromSync::HandshakeSuccess(1))
    );
    let first = soon("ours", mounted.next()).await.expect("it is kept");
    assert_eq!(
        (first.peer, first.event),
        (there.id(), FromSync::HandshakeSuccess(1))
    );
    let header = (BYTES as u32).to_be_bytes().to_vec();
    let second = soon("ours", mounted.next()).await.expect("it is kept");
    assert_eq!(
        second.event,
        FromSync::Data {
            header,
            payload: None
        }
    );

    // The other way nobody is let in: the default.
    is_not_let_in(&hosted.handle(), (&there, &here), 1).await;

    // One that is stuck ends by the deadline, once the place of the one before is free.
    let stuck = async {
        loop {
            let ended = tried(&handle, way, STUCK).await;
            let error = ended.expect_err("it is stuck").to_string();
            if error.contains("took too long") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the deadline", stuck).await;
    let again = async {
        while tried(&handle, way, 2).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("its place is free again", again).await;

    // Nobody listens any more: nobody is let in.
    drop(hosted);
    is_not_let_in(&handle, way, 3).await;
    for node in [guest, host] {
        soon("it stops", node.shutdown()).await;
    }
}
