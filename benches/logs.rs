//! The log store: signatures, one thread's `apply`, and appends through a group, of operations with
//! bodies of 128 bytes.

mod ground;

use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use ground::{Ground, Table, rate};
use quorate::{
    Position, StateMachine,
    log_store::{
        AuthorKey, Draft, Line, LogCommand, LogStore, Logs, Operation, Outcome, RawOperation,
        Topic, verify_all,
    },
};

const BODY: usize = 128;
const MANY: usize = 50_000;
const SINGLE: usize = 3_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut table = Table::new(&["what", "where", "operations/s"]);
    for line in [Line::V06, Line::V07] {
        let topic = Topic::named("bench");
        let operations = minted(1, line, MANY)?;
        let begun = Instant::now();
        let verified = verify_all(&operations);
        anyhow::ensure!(verified.iter().all(Result::is_ok), "an honest signature");
        table.row(&cells(
            &format!("verify_all, line {line}"),
            "all cores",
            begun,
            MANY,
        ));
        apply(&mut table, topic, line, &operations);
    }
    for (store, durable) in [("RocksDB", true), ("memory", false)] {
        through(&mut table, store, durable).await?;
    }
    table.print();
    Ok(())
}

/// One thread, a table in memory: decoding, checks and writes, without the disk.
fn apply(table: &mut Table, topic: Topic, line: Line, operations: &[Operation]) {
    let mut store = LogStore::new();
    let at = Position::default();
    store.apply(at, LogCommand::OpenTopic { topic, line });
    let commands: Vec<LogCommand> = operations
        .chunks(512)
        .map(|chunk| {
            let operations = chunk.iter().map(|it| RawOperation {
                header: it.header().clone(),
                body: it.body().cloned(),
            });
            let operations = operations.collect();
            LogCommand::Append { topic, operations }
        })
        .collect();
    let begun = Instant::now();
    for command in commands {
        store.apply(at, command);
    }
    let what = format!("apply, line {line}");
    table.row(&cells(
        &what,
        "one thread, in memory",
        begun,
        operations.len(),
    ));
}

async fn through(table: &mut Table, store: &str, durable: bool) -> anyhow::Result<()> {
    let ground = Ground::keeping(durable, LogStore::new).await?;
    let (leader, follower) = (ground.leader().logs(), ground.follower().logs());
    let topic = Topic::named("bench");
    leader.open_topic(topic, Line::V07).await?;
    for round in 0..2 {
        for (at, (name, logs)) in [("leader", &leader), ("follower", &follower)]
            .iter()
            .enumerate()
        {
            let author = u8::try_from(round * 2 + at)?;
            let operations = minted(author, Line::V07, MANY)?;
            let begun = Instant::now();
            appended(logs, topic, operations).await?;
            let what = format!("append_many, {name}");
            table.row(&cells(&what, store, begun, MANY));
        }
    }
    let three = ground.groups.iter().zip(10..).map(|(group, author)| {
        let (logs, operations) = (group.logs(), minted(author, Line::V07, MANY));
        async move { appended(&logs, topic, operations?).await }
    });
    let three: Vec<_> = three.collect();
    let begun = Instant::now();
    try_join_all(three).await?;
    table.row(&cells("append_many, all three", store, begun, 3 * MANY));

    let mut number = 20;
    for (name, logs) in [("leader", &leader), ("follower", &follower)] {
        for outstanding in [1, 64] {
            // One operation of each author: none waits for another.
            let operations: Vec<_> = (0..SINGLE)
                .map(|it| {
                    let seed = [&[number][..], &it.to_be_bytes()].concat();
                    first(AuthorKey::from_bytes(&padded(&seed)))
                })
                .collect::<Result<_, _>>()?;
            number += 1;
            let begun = Instant::now();
            stream::iter(operations)
                .map(|operation| logs.append(topic, operation))
                .buffer_unordered(outstanding)
                .try_for_each(|_| async { Ok(()) })
                .await?;
            let what = format!("append, {name}, {outstanding} outstanding");
            table.row(&cells(&what, store, begun, SINGLE));
        }
    }
    let read = follower.read(AuthorKey::from_bytes(&[0; 32]).author(), topic.log_id(), ..);
    let begun = Instant::now();
    let count = read
        .try_fold(0, |count, _| async move { Ok(count + 1) })
        .await?;
    table.row(&cells("read, follower", store, begun, count));
    let begun = Instant::now();
    let commits = follower.subscribe(topic, 0).take(MANY);
    let count = commits
        .try_fold(0, |count, _| async move { Ok(count + 1) })
        .await?;
    table.row(&cells("subscribe, follower", store, begun, count));
    ground.close().await;
    Ok(())
}

async fn appended(logs: &Logs, topic: Topic, operations: Vec<Operation>) -> anyhow::Result<()> {
    let mut outcomes = std::pin::pin!(logs.append_many(topic, operations));
    while let Some(outcome) = outcomes.try_next().await? {
        let appended = matches!(outcome, Outcome::Appended { .. });
        anyhow::ensure!(appended, "an honest operation: {outcome:?}");
    }
    Ok(())
}

fn minted(author: u8, line: Line, count: usize) -> anyhow::Result<Vec<Operation>> {
    let key = AuthorKey::from_bytes(&[author; 32]);
    let log = Topic::named("bench").log_id();
    let body = || Some(vec![7; BODY].into());
    let mut operations = vec![Operation::sign(Draft::first(line, log, 7, body()), &key)?];
    while operations.len() < count {
        let draft = Draft::after(&operations[operations.len() - 1], 7, body());
        operations.push(Operation::sign(draft, &key)?);
    }
    Ok(operations)
}

fn first(key: AuthorKey) -> anyhow::Result<Operation> {
    let log = Topic::named("bench").log_id();
    let draft = Draft::first(Line::V07, log, 7, Some(vec![7; BODY].into()));
    Ok(Operation::sign(draft, &key)?)
}

fn padded(seed: &[u8]) -> [u8; 32] {
    let mut out = [9; 32];
    out[..seed.len()].copy_from_slice(seed);
    out
}

fn cells(what: &str, place: &str, begun: Instant, count: usize) -> [String; 3] {
    let per_second = count as f64 / begun.elapsed().as_secs_f64();
    [what.into(), place.into(), rate(per_second)]
}
