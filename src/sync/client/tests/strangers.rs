//! What a member holds of a request before whoever sends it is let in.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::io::{AsyncWriteExt, DuplexStream, duplex, split};

use super::{
    super::{
        Access, Admit, Denied, ServeError, ServeLimits,
        frames::{FRAME_MAX, Frame, Known, PullRequest},
        serve_logs,
        stream::FrameReader,
    },
    member::{soon, topic},
};
use crate::log_store::{Author, LogId, OperationId, Topic};

/// A Pull that names many logs, as the client of a large topic sends it.
fn long_pull() -> Vec<u8> {
    let known = |at: u32| {
        let mut author = [0; 32];
        author[..4].copy_from_slice(&at.to_be_bytes());
        Known {
            author: Author::from_bytes(author),
            log: LogId::from_bytes([8; 32]),
            seq: at,
            id: OperationId::from_bytes([9; 32]),
        }
    };
    let request = PullRequest {
        topic: topic(),
        line: None,
        follow: false,
        have: (0..20_000).map(known).collect(),
    };
    Frame::Pull(request).encode().to_vec()
}

/// What a member was asked for.
type Asked = Arc<Mutex<Vec<(Topic, Access)>>>;

/// A member that lets nobody in, and whom it was asked about.
fn closed() -> (Admit, Asked) {
    let asked = Asked::default();
    let asking = Arc::clone(&asked);
    let admit: Admit = Arc::new(move |topic, access| {
        asking.lock().expect("no panic").push((topic, access));
        Err(Denied::NotYet)
    });
    (admit, asked)
}

fn serve(
    admit: Admit,
) -> (
    DuplexStream,
    tokio::task::JoinHandle<Result<(), ServeError>>,
) {
    let (near, far) = duplex(1024);
    let serving = tokio::spawn(async move {
        let limits = ServeLimits::default();
        serve_logs(split(far), &admit, &limits).await
    });
    (near, serving)
}

#[tokio::test]
async fn a_stranger_is_turned_away_before_its_request_is_read() {
    let (admit, asked) = closed();
    let (client, serving) = serve(admit);
    let (read, mut write) = split(client);
    let pull = long_pull();
    let sent = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&sent);
    let writing = tokio::spawn(async move {
        for piece in pull.chunks(64) {
            if write.write_all(piece).await.is_err() {
                return;
            }
            counted.fetch_add(piece.len(), Relaxed);
        }
    });
    let mut reader = FrameReader::new(read, FRAME_MAX);
    let refused = soon("the refusal", reader.next_frame(Duration::from_secs(20))).await;
    let Ok(Some(Frame::Refused { why, .. })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(why, Denied::NotYet);
    assert!(soon("the end", serving).await.expect("no panic").is_err());
    soon("the client notices", writing).await.expect("no panic");
    let asked = asked.lock().expect("no panic").clone();
    assert_eq!(asked, [(topic(), Access::Pull)]);
    // What was read, and what the stream itself holds.
    let taken = sent.load(Relaxed);
    assert!(taken < 4 * 1024, "{taken} bytes were taken of a stranger");
}

#[tokio::test]
async fn a_long_frame_that_is_no_request_is_refused_by_its_length() {
    for tag in [1, 2, 4, 7, 200] {
        let (admit, asked) = closed();
        let (mut client, serving) = serve(admit);
        let head = [&(FRAME_MAX as u32).to_be_bytes()[..], &[tag]].concat();
        client.write_all(&head).await.expect("it is open");
        let served = soon("the end", serving).await.expect("no panic");
        let Err(ServeError::Protocol { what }) = served else {
            panic!("{served:?}");
        };
        assert!(what.contains("at most 64"), "{what}");
        assert_eq!(*asked.lock().expect("no panic"), []);
    }
}

#[tokio::test]
async fn a_request_that_stops_in_its_first_bytes_ends_in_time() {
    let (admit, _) = closed();
    let (near, far) = duplex(1024);
    let limits = ServeLimits {
        request_within: Duration::from_millis(50),
        ..ServeLimits::default()
    };
    let (read, mut write) = split(near);
    write
        .write_all(&long_pull()[..20])
        .await
        .expect("it is open");
    let served = soon("the end", serve_logs(split(far), &admit, &limits)).await;
    assert!(matches!(served, Err(ServeError::Silent)), "{served:?}");
    drop(read);
}
