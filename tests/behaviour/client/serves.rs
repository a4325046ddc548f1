//! What a member does with clients that do not keep to the protocol.

use std::time::Duration;

use quorate::sync::ServeLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::ground::{Ground, Writer, append, member, soon, topic};

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

fn pull() -> Vec<u8> {
    // Any line, following, nothing held.
    frame(&[&[0][..], topic().as_bytes(), &[0, 1, 0]].concat())
}

fn push() -> Vec<u8> {
    frame(&[&[1][..], topic().as_bytes(), &[0]].concat())
}

async fn read_frame(stream: &mut DuplexStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    soon("a length", stream.read_exact(&mut length))
        .await
        .ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    soon("a body", stream.read_exact(&mut body)).await.ok()?;
    Some(body)
}

/// The reason of the refusal that comes last.
async fn refusal(stream: &mut DuplexStream) -> Option<u8> {
    let mut last = None;
    while let Some(frame) = read_frame(stream).await {
        last = Some(frame);
    }
    last.filter(|it| it[0] == 8).map(|it| it[1])
}

const UNKNOWN_TOPIC: Option<u8> = Some(1);
const OTHER_LINE: Option<u8> = Some(2);
const MALFORMED: Option<u8> = Some(5);
const SILENT: Option<u8> = Some(6);
const TOO_MANY_LOGS: Option<u8> = Some(7);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_break_the_protocol_are_told_so_and_the_group_is_untouched() {
    let ground = Ground::open(1).await;
    append(&ground.logs[0], &Writer::new(1).many(10)).await;
    *ground.ways.limits.lock().expect("no panic") = ServeLimits {
        request_within: Duration::from_millis(100),
        silent_after: Duration::from_millis(100),
        logs_max: 3,
        ..ServeLimits::default()
    };
    let known = [9; 97];
    let many = [&[0][..], topic().as_bytes(), &[0, 1, 4], &known.repeat(4)].concat();
    let other_topic = [&[0][..], &[3; 32], &[0, 1, 0]].concat();
    let other_line = [&[0][..], topic().as_bytes(), &[1, 0, 1, 0]].concat();
    let empty_batch = [push(), frame(&[2, 0, 0])].concat();
    let batch = |number: u8| frame(&[2, number, 1, 1, b'x', 0]);
    let cases: [(&str, Vec<u8>, Option<u8>); 12] = [
        ("says nothing", Vec::new(), SILENT),
        ("stops within a frame", vec![0, 0, 1], SILENT),
        ("claims 4 GiB", vec![255; 4], MALFORMED),
        ("sends no message", frame(&[200, 1]), MALFORMED),
        ("begins with a batch", batch(0), MALFORMED),
        ("asks twice", [pull(), pull()].concat(), MALFORMED),
        ("names too many logs", frame(&many), TOO_MANY_LOGS),
        ("wants another topic", frame(&other_topic), UNKNOWN_TOPIC),
        ("wants the other line", frame(&other_line), OTHER_LINE),
        ("pushes nothing", empty_batch, MALFORMED),
        (
            "skips a batch",
            [push(), batch(0), batch(2)].concat(),
            MALFORMED,
        ),
        (
            "pushes and falls silent",
            [push(), batch(0)].concat(),
            SILENT,
        ),
    ];
    for (what, sent, why) in cases {
        let mut stream = ground.ways.stream(member(0).peer).expect("it is up");
        soon(what, stream.write_all(&sent))
            .await
            .expect("there is room");
        assert_eq!(refusal(&mut stream).await, why, "{what}");
    }
    let heights = ground.logs[0].heights(topic()).await.expect("a quorum");
    assert_eq!(heights.len(), 1);
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_dropped() {
    let ground = Ground::open(1).await;
    append(&ground.logs[0], &Writer::new(1).many(3_000)).await;
    ground.ways.limits.lock().expect("no panic").stalled_after = Duration::from_millis(50);
    let mut stream = ground.ways.stream(member(0).peer).expect("it is up");
    stream.write_all(&pull()).await.expect("there is room");
    // Its half of the stream is closed while a run waits to be written.
    let mut all = Vec::new();
    let closed = async {
        while stream.write_all(&[0]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon("the end", closed).await;
    soon("the rest", stream.read_to_end(&mut all))
        .await
        .expect("it ended");
    assert!(all.len() <= 64 * 1024, "what was on its way: {}", all.len());
    ground.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pushes_too_fast_waits() {
    let ground = Ground::open(1).await;
    ground
        .ways
        .limits
        .lock()
        .expect("no panic")
        .pushed_per_second = 100;
    let mut stream = ground.ways.stream(member(0).peer).expect("it is up");
    let start = tokio::time::Instant::now();
    stream.write_all(&push()).await.expect("there is room");
    // Operations of which nothing can be read cost as much as others.
    for number in 0..3 {
        let batch = [&[2, number, 10][..], &[1, b'x', 0].repeat(10)].concat();
        stream
            .write_all(&frame(&batch))
            .await
            .expect("there is room");
        let answer = read_frame(&mut stream).await.expect("an answer");
        assert_eq!(answer[..3], [7, number, 10], "ten are refused");
    }
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "ten each tenth of a second"
    );
    ground.close().await;
}
