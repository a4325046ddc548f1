//! Pulling from members that die, keep silent, talk too much, or meet a slow reader.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;

use super::{
    super::{
        Denied, Dial, DialFuture, Have, MemberFault, Pull, PullStatus,
        frames::{FRAME_MAX, Frame, Heads},
    },
    member::{
        Client, LINE, STREAM_BYTES, Stage, heads, honest, log, log_of, peer, run, soon, ticket,
        topic,
    },
};
use crate::{
    identity::PeerAddr,
    log_store::{Line, Operation},
    sync::MemberAddr,
};

/// The fault of a first member that plays this, before a second one tells the truth.
async fn fault<F>(script: impl Fn(Client) -> F + Send + Sync + 'static) -> MemberFault
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let stage = Arc::new(Stage::default());
    stage.plays(0, script);
    stage.plays(1, |client| honest(client, log(7), 2));
    let pull = stage
        .pull(2, Have::new())
        .silent_after(Duration::from_millis(500));
    let puller = pull.once().start();
    let handle = puller.handle();
    let delivered: Vec<Operation> = soon("the end", puller.collect()).await;
    assert_eq!(delivered, log(7));
    let error = handle.status().last_error.expect("the first member fails");
    assert_eq!(error.member, peer(0));
    error.fault
}

#[tokio::test]
async fn a_member_that_leaves_keeps_silent_or_refuses_is_named() {
    let lost = fault(|mut client| async move { client.pulls().await.map(drop) }).await;
    assert!(matches!(lost, MemberFault::Lost { .. }), "{lost}");

    let silent = fault(Client::leaves).await;
    assert!(matches!(silent, MemberFault::Silent { .. }), "{silent}");

    let denied = fault(|mut client| async move {
        client.pulls().await?;
        let (why, text) = (Denied::OverQuota, "later".to_owned());
        client.is_sent(Frame::Refused { why, text }).await
    })
    .await;
    assert_eq!(denied.to_string(), "over quota: later");

    let other = fault(|mut client| async move {
        client.pulls().await?;
        let heads = Heads {
            line: Line::V06,
            logs: Vec::new(),
            operations: 0,
            bytes: 0,
        };
        client.is_sent(Frame::Heads(heads)).await?;
        client.leaves().await
    })
    .await;
    let found = Line::V06;
    assert_eq!(
        other,
        MemberFault::OtherLine {
            wanted: LINE,
            found
        }
    );
}

#[tokio::test]
async fn a_member_that_breaks_the_protocol_is_named_with_what_it_did() {
    let claim = (FRAME_MAX as u32 + 1).to_be_bytes().to_vec();
    let heads = heads(&log(7), 0).encode().to_vec();
    let cases = [
        (claim, "and at most 9437184 are taken"),
        (vec![0, 0, 0, 2, 200, 1], "an unknown message"),
        (Frame::Run(run(&log(1))).encode().to_vec(), "sent Run where"),
        ([heads.clone(), heads].concat(), "sent Heads where"),
    ];
    for (sent, what) in cases {
        let fault = fault(move |mut client| {
            let sent = sent.clone();
            async move {
                client.pulls().await?;
                client.is_sent_bytes(&sent).await?;
                client.leaves().await
            }
        })
        .await;
        assert!(matches!(fault, MemberFault::Protocol { .. }), "{fault}");
        assert!(fault.to_string().contains(what), "{fault}, not {what}");
    }
}

#[tokio::test]
async fn a_member_that_says_without_end_that_there_is_no_news_is_left() {
    let stage = Arc::new(Stage::default());
    stage.plays(0, |mut client| async move {
        client.pulls().await?;
        client.is_sent(heads(&[], 0)).await?;
        loop {
            client.is_sent(Frame::CaughtUp(Vec::new())).await?;
        }
    });
    stage.plays(1, |client| honest(client, log(7), 2));
    let mut puller = stage.pull(2, Have::new()).start();
    let taken: Vec<Operation> = soon("the truth", puller.by_ref().take(7).collect()).await;
    assert_eq!(taken, log(7));
    let error = puller
        .status()
        .last_error
        .expect("the first member is left");
    assert!(error.to_string().contains("too often"), "{error}");
}

#[tokio::test]
async fn members_that_die_in_the_middle_cost_no_operation_and_double_none() {
    let all = log(200);
    let stage = Arc::new(Stage::default());
    for at in 0..3 {
        let all = all.clone();
        // Each gives two runs, and dies within the third.
        stage.plays(at, move |mut client| {
            let all = all.clone();
            async move {
                let request = client.pulls().await?;
                let have = request.have.first().map_or(0, |it| it.seq as usize + 1);
                client.is_sent(heads(&all, have)).await?;
                for operations in all[have..].chunks(7).take(2) {
                    client.is_sent(Frame::Run(run(operations))).await?;
                }
                let next = (have + 14).min(all.len());
                if next == all.len() {
                    return client.is_sent(Frame::CaughtUp(Vec::new())).await;
                }
                let torn = Frame::Run(run(&all[next..])).encode();
                client.is_sent_bytes(&torn[..torn.len() - 1]).await
            }
        });
    }
    let puller = stage.pull(3, Have::new()).once().start();
    let handle = puller.handle();
    let taken: Vec<Operation> = soon("all", puller.collect()).await;
    assert_eq!(taken, all);
    let status = handle.status();
    assert_eq!((status.verified, status.delivered), (200, 200));
    assert_eq!((status.failures, status.sessions), (14, 15));
}

/// Operations of a run below.
const RUN: usize = 300;

#[tokio::test]
async fn a_slow_reader_holds_the_member_back_and_memory_is_bounded() {
    let sent = Arc::new(AtomicUsize::new(0));
    let (count, all) = (sent.clone(), log(RUN * 20));
    let truth = all.clone();
    let stage = Arc::new(Stage::default());
    stage.plays(0, move |mut client| {
        let (count, all) = (count.clone(), all.clone());
        async move {
            client.pulls().await?;
            client.is_sent(heads(&all, 0)).await?;
            for operations in all.chunks(RUN) {
                let frame = Frame::Run(run(operations)).encode();
                for part in frame.chunks(1_000) {
                    client.is_sent_bytes(part).await?;
                    count.fetch_add(part.len(), Ordering::SeqCst);
                }
            }
            client.is_sent(Frame::CaughtUp(Vec::new())).await?;
            client.leaves().await
        }
    });
    let mut puller = stage.pull(1, Have::new()).once().start();
    let handle = puller.handle();
    let first = soon("a run", puller.next_run()).await.expect("it goes on");
    soon("the member waits", stands_still(&sent)).await;
    let frame = Frame::Run(run(&truth[..RUN])).encode().len();
    // With the reader, two that wait for it, one to be given, one checked, one read from the
    // stream; and what the stream and one read of it hold.
    let bound = 6 * frame + 2 * STREAM_BYTES;
    let held = sent.load(Ordering::SeqCst);
    assert!(held <= bound, "{held} bytes, over {bound}");
    assert!(held >= 3 * frame, "something waits for the reader: {held}");
    let status = handle.status();
    assert!(
        status.verified - status.delivered <= 3 * RUN as u64,
        "{status:?}"
    );
    assert_eq!(status.behind, Some((truth.len() - RUN) as u64));
    assert!(!status.complete);

    let rest: Vec<Operation> = soon("the rest", puller.collect()).await;
    assert_eq!([first, rest].concat(), truth);
    assert_eq!(handle.status().behind, Some(0));
}

/// Waits until a number has not changed for a while. That nothing happens has no event.
async fn stands_still(number: &AtomicUsize) {
    let mut before = usize::MAX;
    while before != number.load(Ordering::SeqCst) {
        before = number.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn an_address_that_is_added_is_asked_while_nobody_answers() {
    let stage = Arc::new(Stage::default());
    stage.plays(9, |client| honest(client, log(3), 2));
    let hour = Duration::from_secs(3_600);
    let mut puller = stage.pull(2, Have::new()).retry(hour, hour).start();
    let handle = puller.handle();
    let late = handle
        .wait_for_initial_sync(Duration::from_millis(50))
        .await;
    let late = late.expect_err("nobody is there");
    assert!(
        late.to_string().ends_with("not reached: it is down"),
        "{late}"
    );
    handle.add_address(PeerAddr::new(peer(9), []));
    let taken: Vec<Operation> = soon("all", puller.by_ref().take(3).collect()).await;
    assert_eq!(taken, log(3));
    let reading = tokio::spawn(async move { puller.next().await });
    let status = handle.wait_for_initial_sync(Duration::from_secs(30)).await;
    let status = status.expect("it is complete");
    assert_eq!((status.member, status.complete), (Some(peer(9)), true));
    reading.abort();
}

#[tokio::test]
async fn complete_is_not_said_of_a_member_that_is_lost() {
    let stage = Arc::new(Stage::default());
    stage.plays(0, |mut client| async move {
        let have = client.pulls().await?.have.len();
        let held = if have == 0 { 0 } else { 3 };
        client.is_sent(heads(&log(3), held)).await?;
        if have == 0 {
            client.is_sent(Frame::Run(run(&log(3)))).await?;
            client.is_sent(Frame::CaughtUp(Vec::new())).await?;
        }
        client.leaves().await
    });
    let pull = stage
        .pull(1, Have::new())
        .silent_after(Duration::from_millis(200));
    let mut puller = pull.start();
    let mut watch = puller.handle().watch_status();
    let reading = tokio::spawn(async move { while puller.next().await.is_some() {} });
    let complete = |it: &PullStatus| it.complete;
    let status = soon("complete", watch.wait_for(complete))
        .await
        .expect("it goes on");
    assert_eq!(status.delivered, 3);
    let lost = |it: &PullStatus| it.failures == 1 && !it.complete;
    let status = soon("lost", watch.wait_for(lost))
        .await
        .expect("it goes on");
    assert!(status.completed_at.is_some());
    reading.abort();
}

#[tokio::test]
async fn several_authors_come_each_in_order() {
    let logs = [log_of(1, LINE, topic(), 20), log_of(2, LINE, topic(), 30)];
    let stage = Arc::new(Stage::default());
    let sent = logs.clone();
    stage.plays(0, move |mut client| {
        let [ada, ben] = sent.clone();
        async move {
            client.pulls().await?;
            client.is_sent(heads(&ada, 0)).await?;
            for part in [&ada[..10], &ben[..10], &ada[10..], &ben[10..]] {
                client.is_sent(Frame::Run(run(part))).await?;
            }
            client.is_sent(Frame::CaughtUp(Vec::new())).await?;
            client.leaves().await
        }
    });
    let puller = stage.pull(1, Have::new()).once().start();
    let taken: Vec<Operation> = soon("all", puller.collect()).await;
    for log in logs {
        let of = taken.iter().filter(|it| it.author() == log[0].author());
        assert!(of.eq(&log));
    }
}

#[derive(Debug)]
struct Panics;

impl Dial for Panics {
    fn dial<'a>(&'a self, _: &'a MemberAddr) -> DialFuture<'a> {
        panic!("the program's own");
    }
}

#[tokio::test]
async fn a_panic_in_the_programs_own_way_is_no_end() {
    let pull = Pull::new(&ticket(1), topic(), Have::new()).over(Arc::new(Panics));
    let reading = tokio::spawn(pull.once().start().collect::<Vec<Operation>>());
    let ended = soon("the end", reading).await;
    assert!(ended.expect_err("it goes on in the reader").is_panic());
}
