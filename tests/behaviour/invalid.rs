//! Commands that a member's machine refuses: a member in foreign hands sends them, the others take
//! none of it, say so and go on.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{Mutex, PoisonError},
};

use futures_util::{StreamExt, TryStreamExt};
use quorate::{
    ExecuteError, InvalidCommand, NotApplied, Position, Role, Snapshot, SnapshotReader,
    StateMachine, Status, Table, Warning,
    config::Config,
    log_store::{
        Line, LogCommand, LogOutput, LogStore, LogView, Logs, Operation, OperationId, RawOperation,
    },
};

use crate::{
    cluster::{Fresh, Member, Place, group_of, settled, voters, within},
    logs::{Writer, forged, topic},
};

/// A log store in foreign hands: it proposes and takes whatever it is given.
#[derive(Default)]
struct Foreign(LogStore);

impl StateMachine for Foreign {
    const NAME: &'static str = LogStore::NAME;
    const STORED: bool = true;
    type Command = LogCommand;
    type Output = LogOutput;
    type Query = Infallible;
    type Answer = Infallible;
    type View = LogView;

    fn open(&mut self, table: Table) {
        self.0.open(table);
    }
    fn apply(&mut self, at: Position, command: LogCommand) -> LogOutput {
        self.0.apply(at, command)
    }
    fn view(&self) -> LogView {
        self.0.view()
    }
    fn query(_: &LogView, query: Infallible) -> Infallible {
        query
    }
    fn snapshot(&self) -> Snapshot {
        self.0.snapshot()
    }
    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.0.restore(from)
    }
}

fn append(operations: &[&Operation]) -> LogCommand {
    let raw = |it: &&Operation| RawOperation {
        header: it.header().clone(),
        body: it.body().cloned(),
    };
    LogCommand::Append {
        topic: topic(),
        operations: operations.iter().map(raw).collect(),
    }
}

async fn all_vote<M: Fresh>(member: &Member<M>) {
    let what = "three members vote";
    member.status_when(what, |it| voters(it) == 3).await;
}

/// What a member holds of the topic.
async fn held(logs: &Logs, count: usize) -> Vec<OperationId> {
    let commits = logs.subscribe(topic(), 0).take(count).try_collect();
    let commits: Vec<(u64, Operation)> = within("commits", commits).await.expect("it runs");
    commits.into_iter().map(|(_, it)| it.id()).collect()
}

fn warned(status: &Status) -> bool {
    let warned = status.warnings.contains(&Warning::InvalidCommands);
    assert_eq!(warned, status.invalid_commands > 0, "{status:#?}");
    warned
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_sends_forged_operations_is_refused_told_and_replaced() {
    let config = Config::default();
    let foreign = Member::<Foreign>::found(Place::MEMORY, &config).await;
    let ticket = foreign.group.ticket();
    let mut honest = Vec::new();
    for _ in 0..2 {
        honest.push(Member::<LogStore>::join(Place::MEMORY, &config, &ticket).await);
    }
    all_vote(&foreign).await;
    for member in &honest {
        all_vote(member).await;
        assert!(!warned(&member.group.status()));
    }
    assert_eq!(foreign.group.status().role, Role::Leader);
    let logs: Vec<Logs> = honest.iter().map(|it| it.group.logs()).collect();
    within("a topic", logs[0].open_topic(topic(), Line::V07))
        .await
        .expect("opened");
    let mut writer = Writer::new(1);
    let first = writer.next(b"first");
    let appended = within("an append", logs[0].append(topic(), first.clone())).await;
    appended.expect("appended");

    // A long command and a short one: what is checked elsewhere, and what is checked at once.
    let second = writer.next(&[7; 4_096]);
    let mut bad = vec![forged(&second)];
    bad.push(forged(&Writer::new(2).next(b"short")));
    let forging: Vec<_> = bad
        .iter()
        .map(|it| tokio::spawn(foreign.group.execute(append(&[it]))))
        .collect();
    for member in &honest {
        member.status_when("it is told", warned).await;
        let another = |it: &Status| it.leader.is_some_and(|it| it != foreign.id());
        member.status_when("another member leads", another).await;
    }

    // The group goes on, and where the forged operations were to be others are.
    let appended = within("an append", logs[1].append(topic(), second.clone())).await;
    assert_eq!(appended.expect("appended").number, 1);
    for logs in &logs {
        assert_eq!(held(logs, 2).await, [first.id(), second.id()]);
        let heights = within("heights", logs.heights(topic())).await;
        assert_eq!(heights.expect("a quorum").len(), 1, "somebody forged");
    }
    for forged in forging {
        let outcome = within("the forger is answered", forged).await;
        outcome
            .expect("no panic")
            .expect_err("a forged operation was taken");
    }
    for member in &honest {
        let status = member.group.status();
        assert!(warned(&status) && status.stopped.is_none(), "{status:#?}");
        assert!(member.node.metrics().invalid_commands >= status.invalid_commands);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_refuses_what_a_member_forges_and_forwards() {
    let config = Config::default();
    let leader = Member::<LogStore>::found(Place::MEMORY, &config).await;
    let ticket = leader.group.ticket();
    let foreign = Member::<Foreign>::join(Place::MEMORY, &config, &ticket).await;
    let third = Member::<LogStore>::join(Place::MEMORY, &config, &ticket).await;
    all_vote(&leader).await;
    all_vote(&foreign).await;
    all_vote(&third).await;
    let logs = leader.group.logs();
    within("a topic", logs.open_topic(topic(), Line::V07))
        .await
        .expect("opened");
    let mut writer = Writer::new(1);
    let (first, second) = (writer.next(b"first"), writer.next(&[7; 4_096]));

    // Among honest ones, too: nothing of the command is taken.
    for bad in [
        append(&[&first, &forged(&second)]),
        append(&[&forged(&first)]),
    ] {
        match within("an answer", foreign.group.execute(bad)).await {
            Err(ExecuteError::NotApplied(NotApplied::Refused { why })) => {
                assert!(why.contains("forged"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    let status = leader.group.status();
    assert!(
        warned(&status) && status.invalid_commands == 2,
        "{status:#?}"
    );
    assert_eq!(status.role, Role::Leader);
    assert!(!warned(&third.group.status()));

    let output = foreign.group.execute(append(&[&first, &second]));
    let output = within("honest operations of the same member", output).await;
    assert!(matches!(output, Ok(LogOutput::Appended(_))), "{output:?}");
    for member in [&leader, &third] {
        let held = held(&member.group.logs(), 2).await;
        assert_eq!(held, [first.id(), second.id()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_forges_itself_is_refused_before_it_is_proposed() {
    let members = group_of::<LogStore>(3).await;
    let logs = members[0].group.logs();
    within("a topic", logs.open_topic(topic(), Line::V07))
        .await
        .expect("opened");
    let first = Writer::new(1).next(b"first");
    for member in &members {
        let refused = within(
            "a command",
            member.group.execute(append(&[&forged(&first)])),
        )
        .await;
        let refused = matches!(
            refused,
            Err(ExecuteError::NotApplied(NotApplied::Refused { .. }))
        );
        assert!(refused);
        // Behind the refused one, in their order.
        let many = [append(&[&forged(&first)]), append(&[&first])];
        let mut many = std::pin::pin!(member.group.execute_many(many));
        assert!(within("the first", many.try_next()).await.is_err());
        let second = within("the second", many.try_next()).await;
        assert!(
            matches!(second, Ok(Some(LogOutput::Appended(_)))),
            "{second:?}"
        );
    }
    for member in &members {
        assert!(!warned(&member.group.status()), "it was told of itself");
    }
    assert_eq!(held(&logs, 1).await, [first.id()]);
}

/// How often each word was asked about, in this process.
static ASKED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Not counted: tests may share a process.
const OTHER_TESTS: &str = "of another test";

/// It counts what it is asked about.
#[derive(Default)]
struct Words(u64);

impl StateMachine for Words {
    const NAME: &'static str = "test.words";
    const VALIDATES: bool = true;
    type Command = String;
    type Output = u64;
    type Query = ();
    type Answer = u64;
    type View = u64;

    fn validate(word: &String) -> Result<(), InvalidCommand> {
        assert!(!word.starts_with("panic"), "as the test wants it");
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        *asked.entry(word.clone()).or_default() += 1;
        Ok(())
    }
    fn apply(&mut self, _: Position, _: String) -> u64 {
        self.0 += 1;
        self.0
    }
    fn view(&self) -> u64 {
        self.0
    }
    fn query(view: &u64, (): ()) -> u64 {
        *view
    }
    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.0)
    }
    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.0 = from.value()?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_member_asks_its_machine_once_about_each_command() {
    let members = group_of::<Words>(3).await;
    let leader = settled(&members).await;
    for (at, member) in members.iter().enumerate() {
        for word in ["short".into(), "long".repeat(2_000)] {
            let word = format!("{at} {word}");
            within("a word", member.group.execute(word))
                .await
                .expect("said");
        }
    }
    let many = (0..400).map(|it| format!("many {it} {}", "x".repeat(it)));
    let follower = &members[(leader + 1) % 3];
    let many = follower.group.execute_many(many).try_collect::<Vec<u64>>();
    let outputs = within("many words", many).await.expect("said");
    // Validated side by side, applied in the order given.
    assert_eq!(outputs, (7..407).collect::<Vec<u64>>());
    for member in &members {
        within("it is applied", member.group.ready())
            .await
            .expect("it runs");
    }
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    asked.remove(OTHER_TESTS);
    assert_eq!(asked.len(), 406);
    assert!(asked.values().all(|it| *it == 3), "{asked:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_panics_over_a_command_refuses_it() {
    let members = group_of::<Words>(1).await;
    let refused = within("a word", members[0].group.execute("panic".into())).await;
    match refused {
        Err(ExecuteError::NotApplied(NotApplied::Refused { why })) => {
            assert!(why.contains("panicked"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let next = within("a word", members[0].group.execute(OTHER_TESTS.into())).await;
    assert_eq!(next.expect("it goes on"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_commands_those_that_cannot_be_sent_fail_in_their_places() {
    let config = Config::default();
    let member = Member::<Words>::found(Place::MEMORY, &config).await;
    let (good, bad) = (OTHER_TESTS.to_owned(), "panic".to_owned());
    let long = "x".repeat(config.command_bytes_max + 1);
    let many = [
        &good, &good, &bad, &good, &long, &good, &bad, &bad, &good, &long,
    ];
    let many = many.map(Clone::clone);
    let results = member.group.execute_many(many).collect::<Vec<_>>();
    let results = within("many words", results).await;
    let told = results.into_iter().map(|it| match it {
        Ok(count) => count.to_string(),
        Err(ExecuteError::NotApplied(NotApplied::Refused { .. })) => "refused".into(),
        Err(ExecuteError::NotApplied(NotApplied::TooLarge { .. })) => "long".into(),
        Err(other) => panic!("{other:?}"),
    });
    let told: Vec<String> = told.collect();
    let expected = [
        "1", "2", "refused", "3", "long", "4", "refused", "refused", "5", "long",
    ];
    assert_eq!(told, expected);
}
