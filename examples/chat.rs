//! A chat on three nodes, and a clerk who writes it down: `cargo run --example chat`.
//!
//! The clerk remembers how far it has got under a name that the group keeps. So when the node it
//! works on stops, it goes on at another one, with the next line.

use quorate::{
    GroupKey, Node,
    log_store::{Author, Line, LogStore, Topic},
    streams::{Acknowledge, StreamEvent, StreamFrom, TopicStream},
};
use serde::{Deserialize, Serialize};

/// What is published: any type that serde knows.
#[derive(Serialize, Deserialize)]
struct Said {
    name: String,
    text: String,
}

async fn say(chat: &TopicStream, name: &str, text: &str) -> anyhow::Result<()> {
    let (name, text) = (name.to_owned(), text.to_owned());
    // Signed when `publish` returns; on the disks of a majority when that is awaited.
    chat.publish(&Said { name, text }).await?.await?;
    Ok(())
}

/// The clerk at work: so many lines, each acknowledged once it is written down.
async fn clerk(at: &TopicStream, who: Author, lines: usize) -> anyhow::Result<()> {
    let from = StreamFrom::cursor("minutes");
    let mut messages = at.subscribe::<Said>(from, Acknowledge::Explicit).await?;
    let mut written = 0;
    while written < lines {
        match messages.next().await? {
            StreamEvent::Message(received) => {
                let Said { name, text } = &received.message;
                let own = if received.author() == who { "*" } else { " " };
                println!("{:>4} {own} {name}: {text}", received.number);
                received.ack()?;
                written += 1;
            }
            StreamEvent::DecodeFailed { received, error } => {
                println!("{:>4}   (not a line: {error})", received.number);
                received.ack()?;
            }
            _ => {}
        }
    }
    messages.flush().await?; // the group knows what is written down
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let open = |name| Node::builder(data.path().join(name)).bind_loopback().open();
    let (ada, ben, cal) = (open("ada").await?, open("ben").await?, open("cal").await?);

    let first = ada.create(GroupKey::generate(), LogStore::new()).await?;
    let ticket = first.ticket(); // holds the key: treat it as a password
    let second = ben.join(&ticket, LogStore::new()).await?;
    let third = cal.join(&ticket, LogStore::new()).await?;
    first.watch_status().wait_for(|it| it.voters() == 3).await;

    let topic = Topic::named("chat"); // or 32 bytes that nobody guesses
    let chats = [&first, &second, &third].map(|it| it.topic(topic));
    chats[0].open(Line::V07).await?;
    say(&chats[0], "ada", "is anybody there?").await?;
    say(&chats[1], "ben", "yes. Where is Cal?").await?;
    say(&chats[2], "cal", "here, reading what I missed").await?;

    println!("the clerk, on ada's node; * is what that node signed:");
    clerk(&chats[0], chats[0].author(), 2).await?;

    ada.shutdown().await;
    println!("ada has stopped; the clerk goes on at cal's node:");
    say(&chats[1], "ben", "ada is gone, and nothing she said is").await?;
    clerk(&chats[2], chats[2].author(), 2).await?;

    cal.shutdown().await;
    ben.shutdown().await;
    Ok(())
}
