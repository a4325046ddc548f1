//! A state machine of your own, on three nodes in one process: `cargo run --example counter`.

use std::io;

use quorate::{GroupKey, Node, Position, Snapshot, SnapshotReader, StateMachine};
use serde::{Deserialize, Serialize};

#[derive(Default)]
struct Counter(i64);

#[derive(Serialize, Deserialize)]
enum Change {
    Add(i64),
}

impl StateMachine for Counter {
    const NAME: &'static str = "example.counter";
    type Command = Change; // changes the state, on every member in the same order
    type Output = i64; // what a command answers
    type Query = (); // asks, on one member, without changing anything
    type Answer = i64;
    type View = i64; // what queries see; for a small machine its own state

    fn apply(&mut self, _at: Position, Change::Add(by): Change) -> i64 {
        self.0 = self.0.saturating_add(by); // never panics: it would, on all members
        self.0
    }

    fn view(&self) -> i64 {
        self.0
    }

    fn query(view: &i64, (): ()) -> i64 {
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let open = |name| Node::builder(data.path().join(name)).bind_loopback().open();
    let (ada, ben, cal) = (open("ada").await?, open("ben").await?, open("cal").await?);

    let first = ada.create(GroupKey::generate(), Counter::default()).await?;
    let ticket = first.ticket(); // holds the key: treat it as a password
    let second = ben.join(&ticket, Counter::default()).await?;
    let third = cal.join(&ticket, Counter::default()).await?;
    let status = first.watch_status().wait_for(|it| it.voters() == 3).await;
    println!("{} voters, ada is the {}", status.voters(), status.role);

    println!("ada adds 10: {}", first.execute(Change::Add(10)).await?);
    println!("ben adds 20: {}", second.execute(Change::Add(20)).await?);
    println!("cal reads:   {}", third.query(()).await?);

    ada.shutdown().await;
    println!("ada has stopped; the others go on");
    println!("ben adds 12: {}", second.execute(Change::Add(12)).await?);
    println!("cal reads:   {}", third.query(()).await?);

    cal.shutdown().await;
    ben.shutdown().await;
    Ok(())
}
