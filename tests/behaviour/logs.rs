//! The log store in a group: appended anywhere, the same everywhere, in one order, nothing twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStreamExt, future::join_all};
use quorate::{
    config::Config,
    log_store::{
        Author, AuthorKey, ChainRefused, Draft, Heights, Line, LogError, LogRefused, LogStore,
        Logs, Operation, Outcome, Refusal, Topic,
    },
};

use crate::cluster::{Member, Place, below, group_at, group_of, settled, temporary, within};

pub(crate) fn topic() -> Topic {
    Topic::named("cats")
}

/// An author who writes one log of the topic.
pub(crate) struct Writer {
    key: AuthorKey,
    topic: Topic,
    line: Line,
    last: Option<Operation>,
}

impl Writer {
    pub(crate) fn new(number: u8) -> Self {
        Self::of(number, topic(), Line::V07)
    }

    pub(crate) fn of(number: u8, topic: Topic, line: Line) -> Self {
        Self {
            key: AuthorKey::from_bytes(&[number; 32]),
            topic,
            line,
            last: None,
        }
    }

    pub(crate) fn author(&self) -> Author {
        self.key.author()
    }

    pub(crate) fn next(&mut self, body: &[u8]) -> Operation {
        let draft = self.draft(body);
        self.keep(draft)
    }

    fn flagged(&mut self) -> Operation {
        let draft = Draft {
            prune: true,
            ..self.draft(b"flag")
        };
        self.keep(draft)
    }

    pub(crate) fn many(&mut self, count: usize) -> Vec<Operation> {
        (0..count)
            .map(|n| self.next(format!("{n}").as_bytes()))
            .collect()
    }

    fn draft(&self, body: &[u8]) -> Draft {
        let body = Some(body.to_vec().into());
        match &self.last {
            Some(last) => Draft::after(last, 7, body),
            None => Draft::first(self.line, self.topic.log_id(), 7, body),
        }
    }

    fn keep(&mut self, draft: Draft) -> Operation {
        let operation = Operation::sign(draft, &self.key).expect("an honest draft");
        self.last = Some(operation.clone());
        operation
    }
}

/// The same operation with another signature.
pub(crate) fn forged(operation: &Operation) -> Operation {
    let mut header = operation.header().to_vec();
    header[50] ^= 1;
    let body = operation.body().cloned();
    Operation::decode(operation.line(), header.into(), body).expect("a signature is any 64 bytes")
}

pub(crate) async fn logs_of(count: usize) -> (Vec<Member<LogStore>>, Vec<Logs>) {
    let members = group_of::<LogStore>(count).await;
    let logs: Vec<Logs> = members.iter().map(|it| it.group.logs()).collect();
    within("a topic is opened", logs[0].open_topic(topic(), Line::V07))
        .await
        .expect("opened");
    (members, logs)
}

async fn all(
    logs: &Logs,
    operations: impl IntoIterator<Item = Operation, IntoIter: Send + 'static>,
) -> Vec<Outcome> {
    let outcomes = logs.append_many(topic(), operations).try_collect();
    within("all outcomes", outcomes).await.expect("a quorum")
}

/// What a member holds of the topic, in commit order, through the given number of operations.
async fn commits(logs: &Logs, count: usize) -> Vec<(u64, Operation)> {
    let commits = logs.subscribe(topic(), 0).take(count).try_collect();
    within("the commits", commits).await.expect("it runs")
}

/// Waits until all members have the same heights, and gives them.
async fn equal(members: &[Member<LogStore>]) -> Heights {
    let mut seen = Vec::new();
    for member in members {
        let logs = member.group.logs();
        let heights = within("heights", logs.heights(topic())).await;
        seen.push(heights.expect("a quorum"));
    }
    assert!(seen.iter().all(|it| *it == seen[0]), "{seen:#?}");
    seen.remove(0)
}

fn fits_the_order(commits: &[(u64, Operation)]) {
    let mut next: BTreeMap<Author, u32> = BTreeMap::new();
    for (at, (number, operation)) in commits.iter().enumerate() {
        assert_eq!(*number, at as u64, "a number is left out or doubled");
        let next = next.entry(operation.author()).or_default();
        assert_eq!(operation.seq(), *next, "out of its log's order");
        *next += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_append_at_once_and_hold_the_same_in_one_order() {
    let (members, logs) = logs_of(3).await;
    let writing = (0..6).map(|who| {
        let logs = logs[who % 3].clone();
        tokio::spawn(async move {
            let mut writer = Writer::new(who as u8);
            let (one_by_one, many) = (writer.many(20), writer.many(300));
            for operation in one_by_one {
                logs.append(topic(), operation).await.expect("appended");
            }
            let outcomes: Vec<Outcome> = logs
                .append_many(topic(), many)
                .try_collect()
                .await
                .expect("a quorum");
            assert!(
                outcomes
                    .iter()
                    .all(|it| matches!(it, Outcome::Appended { .. }))
            );
        })
    });
    for done in within("the writers", join_all(writing)).await {
        done.expect("no panic");
    }
    let heights = equal(&members).await;
    assert_eq!(heights.len(), 6);
    assert!(
        heights.values().all(|it| it.values().eq([&319])),
        "{heights:?}"
    );
    let first = commits(&logs[0], 6 * 320).await;
    fits_the_order(&first);
    for logs in &logs[1..] {
        assert_eq!(commits(logs, 6 * 320).await, first, "the members differ");
        let author = Writer::new(4).author();
        let read = logs.read(author, topic().log_id(), 10..).try_collect();
        let read: Vec<Operation> = within("a read", read).await.expect("a quorum");
        let wanted = first.iter().map(|(_, it)| it);
        let wanted = wanted.filter(|it| it.author() == author && it.seq() >= 10);
        assert!(read.iter().eq(wanted), "another log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_told_in_the_order_given() {
    let (_members, logs) = logs_of(1).await;
    let mut writer = Writer::new(1);
    let mut operations = writer.many(5);
    let other = Writer::of(1, Topic::named("dogs"), Line::V07).next(b"a");
    let wrong = Writer::of(1, topic(), Line::V06).next(b"a");
    let broken = forged(&writer.next(b"forged"));
    let beyond = writer.next(b"beyond");
    let double = operations[1].clone();
    operations.reverse();
    operations.extend([other, wrong.clone(), broken, beyond, double]);
    let outcomes = all(&logs[0], operations).await;
    let numbers: Vec<_> = outcomes.iter().map(Outcome::number).collect();
    assert_eq!(numbers[..5], [4, 3, 2, 1, 0].map(Some));
    let refused = |why: ChainRefused| Outcome::Refused(Refusal::Chain(why));
    assert_eq!(outcomes[5], refused(ChainRefused::OtherLog));
    assert!(matches!(outcomes[6], Outcome::Refused(_)), "{outcomes:?}");
    let invalid = matches!(outcomes[7], Outcome::Refused(Refusal::Invalid(_)));
    assert!(invalid, "{outcomes:?}");
    assert_eq!(outcomes[8], refused(ChainRefused::Gap { next: 5 }));
    assert_eq!(outcomes[9], Outcome::Held { number: 1 });
    // Now that the topic holds something its line is settled.
    let refusal = Refusal::Topic(LogRefused::OtherLine { line: Line::V07 });
    let again = all(&logs[0], [wrong]).await;
    assert_eq!(again, [Outcome::Refused(refusal)]);
}

/// The second of two equals is not taken for checked because the first one was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_refused_however_often_it_comes() {
    let (members, logs) = logs_of(2).await;
    let mut writer = Writer::new(1);
    let first = writer.next(b"first");
    let bodiless = Operation::decode(Line::V07, first.header().clone(), None);
    let bodiless = bodiless.expect("its header is whole");
    let before = members[0].group.view().0;
    for wrong in [forged(&first), bodiless] {
        for logs in &logs {
            let calls = [(); 3].map(|()| all(logs, vec![wrong.clone(); 3]));
            for outcome in join_all(calls).await.into_iter().flatten() {
                let invalid = matches!(outcome, Outcome::Refused(Refusal::Invalid(_)));
                assert!(invalid, "{outcome:?}");
            }
        }
    }
    assert_eq!(members[0].group.view().0, before, "something was proposed");
    assert_eq!(
        all(&logs[0], [first]).await,
        [Outcome::Appended { number: 0 }]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_costs_no_proposal() {
    let (members, logs) = logs_of(1).await;
    let operations = Writer::new(1).many(3);
    all(&logs[0], operations.clone()).await;
    // What is applied, not the status: that is told a little later.
    let before = members[0].group.view().0;
    for _ in 0..5 {
        let held = [0, 1, 2].map(|number| Outcome::Held { number });
        assert_eq!(all(&logs[0], operations.clone()).await, held);
    }
    assert_eq!(members[0].group.view().0, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_call_has_under_way_is_appended_once() {
    let (_members, logs) = logs_of(3).await;
    let operations = Writer::new(1).many(600);
    let calls = (0..9).map(|at| all(&logs[at % 3], operations.clone()));
    let mut appended = BTreeSet::new();
    for outcomes in join_all(calls).await {
        for (at, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.number(), Some(at as u64), "{outcome:?}");
            if let Outcome::Appended { number } = outcome {
                assert!(appended.insert(*number), "{number} was appended twice");
            }
        }
    }
    assert_eq!(appended.len(), 600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_polls_holds_up_nobody() {
    let (_members, logs) = logs_of(1).await;
    let mut writer = Writer::new(1);
    let operations = writer.many(3_000);
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stream = Box::pin(logs[0].append_many(topic(), operations.clone()));
        let first = within("an outcome", stream.next()).await.expect("some");
        first.expect("a quorum");
        idle.push(stream);
    }
    assert_eq!(all(&logs[0], operations).await.len(), 3_000);
    drop(idle);
    let next = writer.next(b"more");
    let appended = within("an append", logs[0].append(topic(), next)).await;
    assert_eq!(appended.expect("appended").number, 3_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_and_the_rest_goes_on() {
    let (members, logs) = logs_of(1).await;
    let max = members[0].config.command_bytes_max;
    let mut writer = Writer::new(1);
    let operations = vec![
        writer.next(b"small"),
        writer.next(&vec![7; max - 1_000]),
        writer.next(&vec![7; max]),
    ];
    let outcomes = all(&logs[0], operations).await;
    assert_eq!(outcomes[1].number(), Some(1));
    let large = matches!(outcomes[2], Outcome::Refused(Refusal::TooLarge { .. }));
    assert!(large, "{:?}", outcomes[2]);
    let log = logs[0].read(writer.author(), topic().log_id(), ..);
    let log: Vec<Operation> = within("a read", log.try_collect()).await.expect("read");
    assert_eq!(log[1].body().expect("it has one").len(), max - 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_group_says_so() {
    let (members, logs) = logs_of(1).await;
    let mut live = Box::pin(logs[0].subscribe(topic(), 0));
    assert!(futures_util::FutureExt::now_or_never(live.next()).is_none());
    within("the shutdown", members[0].node.shutdown()).await;
    let error = within(
        "an append",
        logs[0].append(topic(), Writer::new(1).next(b"a")),
    )
    .await;
    assert!(matches!(error, Err(LogError::Stopped(_))), "{error:?}");
    let end = within("the stream", live.next()).await;
    assert!(matches!(end, Some(Err(LogError::Stopped(_)))), "{end:?}");
    assert!(within("its end", live.next()).await.is_none());
    let heights = within("heights", logs[0].heights(topic())).await;
    assert!(matches!(heights, Err(LogError::Stopped(_))), "{heights:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "the source broke")]
async fn a_panic_of_the_source_reaches_the_caller() {
    let (_members, logs) = logs_of(1).await;
    let source = std::iter::from_fn(|| panic!("the source broke"));
    within("the end", logs[0].append_many(topic(), source).count()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_at_all_members_see_each_commit_once_in_order_while_it_happens() {
    let (_members, logs) = logs_of(3).await;
    let early = Writer::new(1).many(700);
    all(&logs[0], early).await;
    let watching = logs.iter().map(|logs| {
        let logs = logs.clone();
        tokio::spawn(async move { commits(&logs, 1_900).await })
    });
    let watching: Vec<_> = watching.collect();
    let writing = (0..3).map(|who| {
        let logs = logs[who].clone();
        tokio::spawn(async move {
            for operation in Writer::new(10 + who as u8).many(400) {
                logs.append(topic(), operation).await.expect("appended");
            }
        })
    });
    for done in within("the writers", join_all(writing)).await {
        done.expect("no panic");
    }
    let mut seen = Vec::new();
    for watched in watching {
        seen.push(watched.await.expect("no panic"));
    }
    fits_the_order(&seen[0]);
    assert!(seen[1] == seen[0] && seen[2] == seen[0], "they differ");
    let from = logs[1].subscribe(topic(), 1_895).take(5).try_collect();
    let from: Vec<(u64, Operation)> = within("the last", from).await.expect("it runs");
    assert_eq!(from, seen[0][1_895..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_operations_are_gone_at_all_members_and_subscribers_skip_them() {
    let (members, logs) = logs_of(3).await;
    let (mut one, mut two) = (Writer::new(1), Writer::new(2));
    all(&logs[0], one.many(1_500)).await;
    all(&logs[1], two.many(10)).await;
    let (author, log) = (one.author(), topic().log_id());
    let pruned = within("a prune", logs[2].prune(author, log, 1_400)).await;
    assert_eq!(pruned.expect("a quorum").operations, 1_400);
    let flag = two.flagged();
    all(&logs[0], [flag.clone()]).await;
    equal(&members).await;
    for logs in &logs {
        let seen = commits(logs, 101).await;
        let numbers: Vec<u64> = seen.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers[..100], (1_400..1_500).collect::<Vec<_>>());
        assert_eq!(seen[100], (1_510, flag.clone()));
        let read = logs.read(author, log, ..).try_collect();
        let read: Vec<Operation> = within("a read", read).await.expect("a quorum");
        assert_eq!((read.len(), read[0].seq()), (100, 1_400));
    }
    // The log goes on where it was.
    let more = all(&logs[1], one.many(1)).await;
    assert_eq!(more[0].number(), Some(1_511));
}

async fn restarts(places: Vec<Place>) {
    let mut members = group_at::<LogStore>(places, &Config::default()).await;
    let opened = members[0].group.logs();
    let opening = opened.open_topic(topic(), Line::V07);
    within("a topic", opening).await.expect("opened");
    let mut writer = Writer::new(1);
    for round in 0..3 {
        let outcomes = all(&members[2].group.logs(), writer.many(200)).await;
        assert_eq!(outcomes[199].number(), Some(round * 200 + 199));
        let down = members.remove(0).rest().await;
        let outcomes = all(&members[0].group.logs(), writer.many(0)).await;
        assert!(outcomes.is_empty());
        members.push(down.start().await);
    }
    let before = commits(&members[0].group.logs(), 600).await;
    let mut resting = Vec::new();
    for member in members {
        resting.push(member.rest().await);
    }
    let members: Vec<Member<LogStore>> =
        join_all(resting.into_iter().map(crate::cluster::Resting::start)).await;
    settled(&members).await;
    equal(&members).await;
    for member in &members {
        assert_eq!(commits(&member.group.logs(), 600).await, before);
    }
    let next = all(&members[1].group.logs(), writer.many(1)).await;
    assert_eq!(next[0].number(), Some(600));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_in_memory_come_back_with_their_logs() {
    restarts(vec![Place::MEMORY; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_on_disk_come_back_with_their_logs() {
    let root = temporary();
    restarts(["a", "b", "c"].map(|it| below(&root, it)).to_vec()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_under_a_change_of_leader_are_all_there_once() {
    let (members, logs) = logs_of(3).await;
    let writing = (0..3).map(|who| {
        let logs = logs[who].clone();
        tokio::spawn(async move {
            let operations = Writer::new(who as u8).many(8_000);
            let outcomes = logs.append_many(topic(), operations);
            outcomes.try_collect::<Vec<Outcome>>().await
        })
    });
    let writing: Vec<_> = writing.collect();
    let mut moved = 0;
    while moved < 3 {
        let leader = settled(&members).await;
        let to = members[(leader + 1) % 3].id();
        let moving = members[leader].group.transfer_leadership(to);
        // Refused to who is too far behind at the moment.
        moved += usize::from(within("a transfer", moving).await.is_ok());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for outcomes in within("the writers", join_all(writing)).await {
        let outcomes = outcomes.expect("no panic").expect("a quorum");
        let refused = outcomes.iter().find(|it| it.number().is_none());
        assert_eq!(refused, None, "nothing was wrong with it");
    }
    let first = commits(&logs[0], 24_000).await;
    fits_the_order(&first);
    assert_eq!(commits(&logs[2], 24_000).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_and_authors_are_let_in_and_out_for_all_members() {
    let (_members, logs) = logs_of(3).await;
    let mut writer = Writer::new(1);
    all(&logs[0], writer.many(2)).await;
    let (author, log) = (writer.author(), topic().log_id());
    let next = writer.next(b"next");
    let refusal = |error: LogError| match error {
        LogError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    };

    within("out", logs[1].dissociate(topic(), author))
        .await
        .expect("out");
    let heights = within("heights", logs[2].heights(topic())).await;
    assert!(heights.expect("a quorum").is_empty());
    let refused = within("an append", logs[2].append(topic(), next.clone())).await;
    let refused = refusal(refused.expect_err("it is out"));
    assert_eq!(refused, Refusal::Chain(ChainRefused::Dissociated));
    let other = Topic::named("dogs").log_id();
    let refused = within("in", logs[0].associate(topic(), author, other)).await;
    let refused = refusal(refused.expect_err("another log"));
    assert_eq!(refused, Refusal::Topic(LogRefused::OtherLog));
    within("in", logs[0].associate(topic(), author, log))
        .await
        .expect("in");

    within("closed", logs[2].close_topic(topic()))
        .await
        .expect("closed");
    let refused = within("an append", logs[1].append(topic(), next.clone())).await;
    let refused = refusal(refused.expect_err("it is closed"));
    assert_eq!(refused, Refusal::Topic(LogRefused::NotOpen));
    let other = within("another line", logs[0].open_topic(topic(), Line::V06)).await;
    let refused = refusal(other.expect_err("it has a line"));
    let line = Line::V07;
    assert_eq!(refused, Refusal::Topic(LogRefused::OtherLine { line }));
    within("open", logs[0].open_topic(topic(), line))
        .await
        .expect("open");
    let appended = within("an append", logs[1].append(topic(), next)).await;
    assert_eq!(appended.expect("appended").number, 2);
}

/// Mints as it is pulled, so that only what is under way is in memory.
fn minted(who: u8, count: usize) -> impl Iterator<Item = Operation> + Send + 'static {
    let mut writer = Writer::new(who);
    (0..count).map(move |n| writer.next(format!("{n}").as_bytes()))
}

async fn drained(outcomes: impl Stream<Item = Result<Outcome, LogError>>) -> usize {
    let mut outcomes = std::pin::pin!(outcomes);
    let mut count = 0;
    while let Some(outcome) = outcomes.next().await {
        let outcome = outcome.expect("a quorum");
        assert!(matches!(outcome, Outcome::Appended { .. }), "{outcome:?}");
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_is_appended_and_read_back_in_a_stream() {
    let (_members, logs) = logs_of(1).await;
    let count = 20_000;
    let appended = drained(logs[0].append_many(topic(), minted(1, count)));
    assert_eq!(within("all of it", appended).await, count);
    let author = Writer::new(1).author();
    let mut read = Box::pin(logs[0].read(author, topic().log_id(), ..));
    for seq in 0..count {
        let operation = within("an operation", read.next()).await.expect("there");
        assert_eq!(operation.expect("read").seq() as usize, seq);
    }
    assert!(within("the end", read.next()).await.is_none());
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_is_restored_by_a_snapshot_and_goes_on() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let config = Config {
        snapshot_after_bytes: 64 * 1024,
        journal_entries_kept: 1,
        ..Config::default()
    };
    let mut members = group_at::<LogStore>(places, &config).await;
    let logs = members[0].group.logs();
    let opening = logs.open_topic(topic(), Line::V07);
    within("a topic", opening).await.expect("opened");
    let mut writer = Writer::new(1);
    all(&logs, writer.many(300)).await;
    let follower = (settled(&members).await + 1) % 3;
    let away = members.remove(follower);
    let applied = away.group.status().applied.index;
    let away = away.rest().await;
    let logs = members[0].group.logs();
    let mut held = 300;
    // Until what the follower lacks is gone from the journals of both: entries are purged by the
    // thousand, so each operation is to be one.
    let lacks = |it: &Member<LogStore>| it.group.status().purged_index > applied;
    while !members.iter().all(lacks) {
        for operation in writer.many(50) {
            within("an append", logs.append(topic(), operation))
                .await
                .expect("appended");
            held += 1;
        }
    }
    members.push(away.start().await);
    within("it catches up", members[2].group.ready())
        .await
        .expect("it runs");
    let heights = equal(&members).await;
    let height = u32::try_from(held - 1).expect("small");
    assert_eq!(heights[&writer.author()][&topic().log_id()], height);
    let wanted = commits(&members[0].group.logs(), held).await;
    assert_eq!(commits(&members[2].group.logs(), held).await, wanted);
    fits_the_order(&wanted);
    all(&members[2].group.logs(), writer.many(3)).await;
    equal(&members).await;
}
