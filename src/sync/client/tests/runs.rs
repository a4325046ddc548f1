//! Every rule of what a member sends: named, with the member, and nothing of it delivered.

use std::sync::Arc;

use futures_util::StreamExt;

use super::{
    super::{
        BadRun, Have, MemberFault, RunFault,
        frames::{Frame, Run},
    },
    member::{LINE, Stage, heads, honest, log, log_of, peer, raw, run, soon, topic},
};
use crate::log_store::{AuthorKey, Draft, Line, Operation, Refused, Topic};

/// What the client has before.
const HAVE: usize = 2;
/// The honest log.
const ALL: usize = 10;

/// The client has two operations, and a first member sends it a good run and then this one; another
/// member sends the truth. The rule that the first has broken.
async fn refused(bad: Run, verify_all: bool) -> RunFault {
    let log = log(ALL);
    let mut have = Have::new();
    log[..HAVE].iter().for_each(|it| have.advance(it));
    let (author, of) = (bad.author, bad.log);
    let stage = Arc::new(Stage::default());
    let all = log.clone();
    stage.plays(0, move |mut client| {
        let (all, bad) = (all.clone(), bad.clone());
        async move {
            client.pulls().await?;
            client.is_sent(heads(&all, HAVE)).await?;
            client.is_sent(Frame::Run(run(&all[HAVE..4]))).await?;
            client.is_sent(Frame::Run(bad)).await?;
            client.leaves().await
        }
    });
    let truth = log.clone();
    stage.plays(1, move |client| honest(client, truth.clone(), 3));
    let mut pull = stage.pull(2, have).once();
    if verify_all {
        pull = pull.verify_all();
    }
    let puller = pull.start();
    let handle = puller.handle();
    let delivered: Vec<Operation> = soon("the end", puller.collect()).await;
    assert_eq!(delivered, log[HAVE..], "the truth, each once");
    let status = handle.status();
    assert_eq!((status.failures, status.sessions), (1, 2));
    let error = status.last_error.expect("the first member has lied");
    assert_eq!(error.member, peer(0));
    let text = error.to_string();
    assert!(text.starts_with("member 0000000000: log "), "{text}");
    let MemberFault::BadRun(BadRun {
        author: by,
        log,
        rule,
    }) = error.fault
    else {
        panic!("another fault: {error:?}");
    };
    assert_eq!((by, log), (author, of));
    rule
}

/// The good run ends at 3, so the next begins at 4.
fn good() -> Vec<Operation> {
    log(ALL)[4..8].to_vec()
}

fn forged(operation: &Operation) -> Operation {
    let mut header = operation.header().to_vec();
    // Within the signature, behind version, key and the heads of the items.
    header[50] ^= 1;
    let body = operation.body().cloned();
    Operation::decode(operation.line(), header.into(), body).expect("well-formed")
}

/// The author of the log signs something else in that place.
fn signed(at: usize, change: impl FnOnce(&mut Draft)) -> Operation {
    let mut draft = Draft::after(&log(ALL)[at - 1], 8, Some("another".into()));
    change(&mut draft);
    Operation::sign(draft, &AuthorKey::from_bytes(&[1; 32])).expect("by the rules")
}

#[tokio::test]
async fn a_forged_newest_signature() {
    let mut bad = good();
    bad[3] = forged(&bad[3]);
    let why = Refused::SignatureInvalid { id: bad[3].id() };
    for all in [false, true] {
        let rule = refused(run(&bad), all).await;
        assert_eq!(rule, RunFault::Invalid { seq: 7, why });
    }
}

#[tokio::test]
async fn a_forged_signature_below_makes_another_operation_of_it() {
    let mut bad = good();
    bad[1] = forged(&bad[1]);
    for all in [false, true] {
        let rule = refused(run(&bad), all).await;
        assert_eq!(rule, RunFault::Unlinked { seq: 6 });
    }
}

#[tokio::test]
async fn a_swapped_operation() {
    let mut bad = good();
    bad[1] = signed(5, |_| ());
    let rule = refused(run(&bad), false).await;
    assert_eq!(rule, RunFault::Unlinked { seq: 6 });
}

#[tokio::test]
async fn a_swapped_body() {
    let mut bad = run(&good());
    bad.operations[2].body = Some("x".into());
    let why = Refused::BodyHash;
    assert_eq!(refused(bad, false).await, RunFault::Invalid { seq: 6, why });
}

#[tokio::test]
async fn a_gap_between_runs_and_within_one() {
    let rule = refused(run(&log(ALL)[5..8]), false).await;
    assert_eq!(
        rule,
        RunFault::Gap {
            wanted: 4,
            found: 5
        }
    );
    let mut bad = good();
    bad.remove(1);
    let rule = refused(run(&bad), false).await;
    assert_eq!(
        rule,
        RunFault::Gap {
            wanted: 5,
            found: 6
        }
    );
}

#[tokio::test]
async fn a_fork_and_what_came_already() {
    let other = signed(4, |draft| draft.backlink = Some(log(ALL)[0].id()));
    let held = log(ALL)[3].id();
    let rule = refused(run(&[other]), false).await;
    assert_eq!(rule, RunFault::Fork { seq: 4, held });
    let rule = refused(run(&log(ALL)[3..6]), false).await;
    assert_eq!(rule, RunFault::Again { seq: 3 });
    // Not with the prune flag either.
    let again = signed(3, |draft| draft.prune = true);
    let rule = refused(run(&[again]), false).await;
    assert_eq!(rule, RunFault::Again { seq: 3 });
}

#[tokio::test]
async fn a_prune_flag_that_nobody_signed() {
    let flagged = forged(&signed(8, |draft| draft.prune = true));
    let why = Refused::SignatureInvalid { id: flagged.id() };
    let rule = refused(run(&[flagged]), false).await;
    assert_eq!(rule, RunFault::Invalid { seq: 8, why });
}

#[tokio::test]
async fn another_line() {
    let other = log_of(1, Line::V06, topic(), ALL);
    let rule = refused(run(&other[4..6]), false).await;
    assert!(matches!(rule, RunFault::Invalid { seq: 4, .. }), "{rule:?}");
}

#[tokio::test]
async fn another_topic_another_log_and_another_author() {
    let other = log_of(1, LINE, Topic::named("dogs"), ALL);
    assert_eq!(
        refused(run(&other[4..6]), false).await,
        RunFault::OtherTopic
    );
    let mut bad = run(&good());
    bad.operations[1] = raw(&other[5]);
    assert_eq!(refused(bad, false).await, RunFault::OtherLog { seq: 5 });
    let mut bad = run(&good());
    bad.operations[1] = raw(&log_of(2, LINE, topic(), ALL)[5]);
    assert_eq!(refused(bad, false).await, RunFault::OtherAuthor { seq: 5 });
}

#[tokio::test]
async fn an_empty_run_and_one_that_lies_about_its_place() {
    let mut bad = run(&good());
    bad.operations.clear();
    assert_eq!(refused(bad, false).await, RunFault::Empty);
    let mut bad = run(&good());
    bad.first = 5;
    let rule = refused(bad, false).await;
    assert_eq!(
        rule,
        RunFault::Gap {
            wanted: 5,
            found: 4
        }
    );
}

#[tokio::test]
async fn a_signed_prune_flag_may_leave_a_gap() {
    let log = log(ALL);
    let flagged = signed(8, |draft| draft.prune = true);
    let stage = Arc::new(Stage::default());
    let sent = flagged.clone();
    stage.plays(0, move |mut client| {
        let (log, sent) = (log.clone(), sent.clone());
        async move {
            client.pulls().await?;
            client.is_sent(heads(&log, 0)).await?;
            client.is_sent(Frame::Run(run(&log[..4]))).await?;
            client.is_sent(Frame::Run(run(&[sent]))).await?;
            client.is_sent(Frame::CaughtUp(Vec::new())).await?;
            client.leaves().await
        }
    });
    let puller = stage.pull(1, Have::new()).once().start();
    let delivered: Vec<Operation> = soon("the end", puller.collect()).await;
    assert_eq!(delivered.len(), 5);
    assert_eq!(delivered[4], flagged);
}
