//! Requests over lanes, and streams of their own.

use super::*;
use crate::bond::LaneError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_out_of_order_and_what_is_outstanding_is_bounded() {
    let (one, two, bond, _) = pair(&GroupKey::generate()).await;
    let waiting: Vec<_> = (0..2_000)
        .map(|_| {
            let bond = bond.clone();
            tokio::spawn(async move { bond.request(Lane::Forward, "wait".into()).await })
        })
        .collect();
    let mut running = two.mock.running.subscribe();
    soon("a full lane", running.wait_for(|running| *running == 1_024))
        .await
        .expect("lives");
    // The lane is full; the other lane is not.
    let quick = bond.request(Lane::Vote, "quick".into());
    assert_eq!(soon("the other lane", quick).await, Ok("quick".into()));
    assert_eq!(*two.mock.running.borrow(), 1_024);
    two.mock.answers.add_permits(2_000);
    for answer in waiting {
        assert_eq!(
            soon("an answer", answer).await.expect("no panic"),
            Ok("wait".into())
        );
    }
    // And out of order on one lane.
    let late = tokio::spawn({
        let bond = bond.clone();
        async move { bond.request(Lane::Forward, "wait".into()).await }
    });
    soon("it runs", running.wait_for(|running| *running == 1))
        .await
        .expect("lives");
    assert_eq!(
        bond.request(Lane::Forward, "early".into()).await,
        Ok("early".into())
    );
    assert!(!late.is_finished());
    two.mock.answers.add_permits(1);
    assert_eq!(late.await.expect("no panic"), Ok("wait".into()));
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_every_size_pass_and_none_above_the_limit() {
    let (one, two, bond, _) = pair(&GroupKey::generate()).await;
    for size in [0, 1, 1_023, 1_025, 70_000, 1 << 20, 8 << 20] {
        let body = Bytes::from(vec![size as u8; size]);
        let answer = soon("an answer", bond.request(Lane::Forward, body.clone())).await;
        assert!(answer == Ok(body), "{size}");
    }
    let refused = bond.request(Lane::Vote, "refuse".into()).await;
    assert_eq!(refused, Err(LaneError::Refused));
    let huge = bond.request(Lane::Vote, vec![0; 9 << 20].into()).await;
    assert!(matches!(huge, Err(LaneError::TooLarge { .. })), "{huge:?}");
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_request_leaves_room_for_others() {
    let (one, two, bond, _) = pair(&GroupKey::generate()).await;
    for _ in 0..3 {
        let mut dropped = Vec::new();
        for _ in 0..1_024 {
            let mut request = Box::pin(bond.request(Lane::Forward, "quick".into()));
            // Sent, and forgotten.
            let _ = futures_util::poll!(&mut request);
            dropped.push(request);
        }
    }
    let answer = soon("an answer", bond.request(Lane::Forward, "still".into())).await;
    assert_eq!(answer, Ok("still".into()));
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_end_with_their_bond() {
    let (one, two, bond, _) = pair(&GroupKey::generate()).await;
    let stuck = tokio::spawn({
        let bond = bond.clone();
        async move { bond.request(Lane::Forward, "wait".into()).await }
    });
    let mut running = two.mock.running.subscribe();
    soon("it runs", running.wait_for(|running| *running == 1))
        .await
        .expect("lives");
    bond.close("enough");
    assert_eq!(
        soon("its end", stuck).await.expect("no panic"),
        Err(LaneError::Terminated)
    );
    assert_eq!(
        bond.request(Lane::Vote, "x".into()).await,
        Err(LaneError::Terminated)
    );
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_their_own_reach_the_service() {
    let (one, two, ours, theirs) = pair(&GroupKey::generate()).await;
    for bond in [&ours, &theirs] {
        for kind in [StreamKind::Append, StreamKind::Snapshot] {
            let mut stream = bond.open_stream(kind).await.expect("opened");
            for nth in 0..100 {
                stream
                    .send
                    .write_frame(format!("{nth}").into())
                    .await
                    .expect("written");
                let answer = soon("an answer", stream.recv.read_frame(100))
                    .await
                    .expect("read");
                assert_eq!(answer, Some(format!("{kind:?} {nth}").into()));
            }
            stream.send.finish();
            assert_eq!(soon("the end", stream.recv.read_frame(100)).await, Ok(None));
        }
    }
    one.shut().await;
    two.shut().await;
}
