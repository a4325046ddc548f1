//! Pushing to members that die, lie about what they took, or never answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};

use super::{
    super::{
        MemberFault, Push, PushOutcome, Pushed, Pusher,
        frames::{Frame, RUN_OPERATIONS_MAX},
    },
    member::{Client, Stage, log, peer, soon, ticket, topic},
};
use crate::log_store::{Operation, OperationId};

fn push(stage: &Arc<Stage>, members: u8, operations: Vec<Operation>) -> Pusher {
    let push = Push::new(&ticket(members), topic())
        .over(stage.clone())
        .in_order();
    let push = push.retry(Duration::from_millis(1), Duration::from_millis(5));
    push.silent_after(Duration::from_millis(500))
        .start(stream::iter(operations))
}

/// A member that says it holds everything.
async fn takes_all(mut client: Client, seen: Arc<AtomicUsize>) -> Option<()> {
    client.asked().await?;
    while let Some(Frame::Batch { number, operations }) = client.asked().await {
        seen.fetch_add(operations.len(), Ordering::SeqCst);
        let outcomes = vec![PushOutcome::Held { number: 0 }; operations.len()];
        client
            .is_sent(Frame::Committed { number, outcomes })
            .await?;
    }
    Some(())
}

fn ids(operations: &[Operation]) -> Vec<OperationId> {
    operations.iter().map(Operation::id).collect()
}

/// The fault of a first member that plays this, before a second one takes everything.
async fn fault<F>(script: impl Fn(Client) -> F + Send + Sync + 'static) -> MemberFault
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let stage = Arc::new(Stage::default());
    stage.plays(0, script);
    stage.plays(1, |client| takes_all(client, Arc::default()));
    let pusher = push(&stage, 2, log(20));
    let handle = pusher.handle();
    let pushed: Vec<Pushed> = soon("the answers", pusher.collect()).await;
    let answered: Vec<OperationId> = pushed.iter().map(|it| it.id).collect();
    assert_eq!(answered, ids(&log(20)));
    let status = handle.status();
    assert_eq!((status.sent, status.resent, status.answered), (20, 20, 20));
    let error = status.last_error.expect("the first member fails");
    assert_eq!(error.member, peer(0));
    error.fault
}

#[tokio::test]
async fn a_member_that_leaves_or_never_answers_is_left_and_nothing_is_lost() {
    let lost = fault(|mut client| async move {
        client.asked().await?;
        client.asked().await.map(drop)
    })
    .await;
    assert!(matches!(lost, MemberFault::Lost { .. }), "{lost}");
    let silent = fault(Client::leaves).await;
    assert!(matches!(silent, MemberFault::Silent { .. }), "{silent}");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_believed_of_nobody() {
    let held = |count| vec![PushOutcome::Held { number: 0 }; count];
    let committed = |number, outcomes| Frame::Committed { number, outcomes };
    let cases = [
        (committed(1, held(20)), "answered batch 1"),
        (committed(0, held(19)), "answered batch 0"),
        (committed(0, held(0)), "answered batch 0"),
        (Frame::CaughtUp(Vec::new()), "sent CaughtUp where"),
    ];
    for (answer, what) in cases {
        let fault = fault(move |mut client| {
            let answer = answer.clone();
            async move {
                client.asked().await?;
                client.asked().await?;
                client.is_sent(answer).await?;
                client.leaves().await
            }
        })
        .await;
        assert!(fault.to_string().contains(what), "{fault}, not {what}");
    }
}

#[tokio::test]
async fn what_is_under_way_is_bounded_and_answers_that_nobody_reads_hold_it_back() {
    let (seen, given) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stage = Arc::new(Stage::default());
    let count = seen.clone();
    stage.plays(0, move |client| takes_all(client, count.clone()));
    // The same operation for ever: what is in it does not matter here.
    let (one, count) = (log(1).remove(0), given.clone());
    let endless = stream::repeat_with(move || {
        count.fetch_add(1, Ordering::SeqCst);
        one.clone()
    });
    let push = Push::new(&ticket(1), topic()).over(stage.clone());
    let mut pusher = push.start(endless);
    soon("an answer", pusher.next()).await.expect("it goes on");
    let stands_still = async {
        let mut before = usize::MAX;
        while before != given.load(Ordering::SeqCst) {
            before = given.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    soon("the push waits", stands_still).await;
    // One with the reader, two that wait for it, four under way, and one cut off behind.
    let (bound, given) = (8 * RUN_OPERATIONS_MAX, given.load(Ordering::SeqCst));
    assert!(given <= bound, "{given} operations, over {bound}");
    assert!(seen.load(Ordering::SeqCst) <= given);
}

#[tokio::test]
async fn nothing_to_push_dials_nobody_and_ends() {
    let stage = Arc::new(Stage::default());
    let pusher = push(&stage, 1, Vec::new());
    let handle = pusher.handle();
    let pushed: Vec<Pushed> = soon("the end", pusher.collect()).await;
    assert!(pushed.is_empty());
    let status = handle.status();
    assert_eq!(
        (status.complete, status.sessions, status.failures),
        (true, 0, 0)
    );
}

#[tokio::test]
async fn a_panic_in_the_programs_own_operations_is_no_end() {
    let stage = Arc::new(Stage::default());
    stage.plays(0, |client| takes_all(client, Arc::default()));
    let mut given = log(1).into_iter();
    let operations = stream::poll_fn(move |_| match given.next() {
        Some(it) => std::task::Poll::Ready(Some(it)),
        None => panic!("the program's own"),
    });
    let push = Push::new(&ticket(1), topic()).over(stage);
    let reading = tokio::spawn(push.start(operations).collect::<Vec<Pushed>>());
    let ended = soon("the end", reading).await;
    assert!(ended.expect_err("it goes on in the reader").is_panic());
}

/// How long it takes to push to a member that answers so much later than it says.
async fn waits_for_its_turn(says: u64, answers: Duration) -> Result<Duration, MemberFault> {
    let stage = Arc::new(Stage::default());
    stage.plays(0, move |mut client| async move {
        client.asked().await?;
        let Frame::Batch { number, operations } = client.asked().await? else {
            return None;
        };
        client.is_sent(Frame::Wait { ms: says }).await?;
        tokio::time::sleep(answers).await;
        let outcomes = vec![PushOutcome::Held { number: 0 }; operations.len()];
        client
            .is_sent(Frame::Committed { number, outcomes })
            .await?;
        client.leaves().await
    });
    stage.plays(1, |client| takes_all(client, Arc::default()));
    let begun = std::time::Instant::now();
    let pusher = push(&stage, 2, log(1));
    let handle = pusher.handle();
    soon("the answer", pusher.collect::<Vec<Pushed>>()).await;
    match handle.status().last_error {
        Some(error) => Err(error.fault),
        None => Ok(begun.elapsed()),
    }
}

#[tokio::test]
async fn a_member_that_says_that_it_takes_longer_is_waited_for() {
    let later = Duration::from_millis(1_500);
    let took = waits_for_its_turn(2_000, later).await;
    assert!(took.expect("it said so") >= later);
    let left = waits_for_its_turn(100, later).await;
    let Err(MemberFault::Silent { after }) = left else {
        panic!("{left:?}");
    };
    assert!(after >= Duration::from_millis(500), "all of it: {after:?}");
}
