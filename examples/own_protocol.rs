//! A sync protocol of one's own at a member's door: two members of different groups agree on a set
//! of words.
//!
//! A session: the initiator names a topic and sends its words, a line each and an empty one; the
//! acceptor sends the words that were not among them, and an empty line. Both give what was new.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::SinkExt;
use quorate::{
    GroupKey, Node,
    log_store::LogStore,
    sync::{
        FromSync, Mount, MountOptions, Mounted, Sync, SyncError, SyncFuture, SyncOptions,
        SyncProtocol, SyncRead, SyncSink, SyncWrite, TopicMap,
    },
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// Whatever a peer sends, a session reads no more than this.
const SESSION_BYTES_MAX: u64 = 64 * 1024;

/// Words by topic; a topic is a text.
#[derive(Debug, Default)]
struct Words(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Words {
    fn of(&self, topic: &str) -> Option<BTreeSet<String>> {
        let words = self.0.lock().expect("no panic");
        words.get(topic).cloned()
    }

    fn add(&self, topic: &str, word: &str) {
        let mut words = self.0.lock().expect("no panic");
        words.entry(topic.into()).or_default().insert(word.into());
    }
}

/// Which words belong to a topic, and which topics there are.
impl TopicMap<String, BTreeSet<String>> for Words {
    fn get<'a>(
        &'a self,
        topic: &'a String,
    ) -> Pin<Box<dyn Future<Output = Option<BTreeSet<String>>> + Send + 'a>> {
        Box::pin(async move { self.of(topic) })
    }
}

/// Lines up to an empty one.
async fn read_lines(
    from: &mut (impl AsyncBufReadExt + Unpin),
) -> Result<BTreeSet<String>, SyncError> {
    let mut lines = BTreeSet::new();
    loop {
        let mut line = String::new();
        // What is no text is the remote's fault, and so is an end in the middle.
        from.read_line(&mut line).await?;
        match line.strip_suffix('\n') {
            None => return Err(SyncError::unexpected("it ended in the middle")),
            Some("") => return Ok(lines),
            Some(line) => lines.insert(line.to_owned()),
        };
    }
}

async fn write_lines<'a>(
    to: SyncWrite<'_>,
    lines: impl IntoIterator<Item = &'a String>,
) -> Result<(), SyncError> {
    let mut text: String = lines.into_iter().map(|it| format!("{it}\n")).collect();
    text.push('\n');
    to.write_all(text.as_bytes()).await?;
    Ok(to.flush().await?)
}

async fn give(
    sink: SyncSink<'_, String>,
    words: impl IntoIterator<Item = String>,
) -> Result<(), SyncError> {
    for word in words {
        let (header, payload) = (word.into_bytes(), None);
        sink.send(FromSync::Data { header, payload }).await?;
    }
    Ok(())
}

impl SyncProtocol<String> for Words {
    fn name(&self) -> &'static str {
        "example/words/1"
    }

    fn initiate<'a>(
        self: Arc<Self>,
        topic: String,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
        sink: SyncSink<'a, String>,
    ) -> SyncFuture<'a> {
        Box::pin(async move {
            let ours = self.get(&topic).await.unwrap_or_default();
            write_lines(write, std::iter::once(&topic).chain(&ours)).await?;
            let news = read_lines(&mut BufReader::new(read.take(SESSION_BYTES_MAX))).await?;
            // That it answers says that it takes the topic.
            sink.send(FromSync::HandshakeSuccess(topic)).await?;
            give(sink, news).await
        })
    }

    fn accept<'a>(
        self: Arc<Self>,
        write: SyncWrite<'a>,
        read: SyncRead<'a>,
        sink: SyncSink<'a, String>,
    ) -> SyncFuture<'a> {
        Box::pin(async move {
            let mut read = BufReader::new(read.take(SESSION_BYTES_MAX));
            let mut topic = String::new();
            read.read_line(&mut topic).await?;
            let topic = topic.trim_end().to_owned();
            let theirs = read_lines(&mut read).await?;
            let Some(ours) = self.get(&topic).await else {
                return Err(SyncError::unexpected("a topic that is not served here"));
            };
            sink.send(FromSync::HandshakeSuccess(topic)).await?;
            give(sink, theirs.difference(&ours).cloned()).await?;
            write_lines(write, ours.difference(&theirs)).await
        })
    }
}

/// A member whose door speaks it, with everybody who finds it.
async fn member(words: &Arc<Words>) -> anyhow::Result<(Node, Sync, Mounted<String>)> {
    let node = Node::in_memory().bind_loopback().open().await?;
    let group = node.create(GroupKey::generate(), LogStore::new()).await?;
    let options = MountOptions::default().admitting(|_peer| true);
    let (mount, mounted) = Mount::new(words.clone(), options)?;
    let options = SyncOptions {
        bind: vec!["127.0.0.1:0".parse()?],
        protocols: vec![mount],
        ..SyncOptions::default()
    };
    let mut watch = group.watch_status();
    watch.wait_for(|it| it.leader.is_some()).await;
    let door = node.serve_sync(&group.logs(), options).await?;
    door.watch_status().wait_for(|it| it.serving).await;
    Ok((node, door, mounted))
}

/// Keeps what sessions give, until there are so many words.
async fn keep(words: &Words, mounted: &mut Mounted<String>, until: usize) -> anyhow::Result<()> {
    let mut topic = String::new();
    while words.of(&topic).is_none_or(|it| it.len() < until) {
        match mounted.next().await.map(|it| it.event) {
            Some(FromSync::HandshakeSuccess(agreed)) => topic = agreed,
            Some(FromSync::Data { header, .. }) => words.add(&topic, &String::from_utf8(header)?),
            None => break,
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (ada, ben) = (Arc::new(Words::default()), Arc::new(Words::default()));
    for (words, word) in [
        (&ada, "cat"),
        (&ada, "hat"),
        (&ada, "mat"),
        (&ben, "hat"),
        (&ben, "bat"),
    ] {
        words.add("rhymes", word);
    }
    let (ada_node, ada_door, mut ada_mounted) = member(&ada).await?;
    let (ben_node, ben_door, mut ben_mounted) = member(&ben).await?;

    let (handle, there) = (ada_mounted.handle(), ben_door.addr());
    let session = handle.sync(&ada_door, &there, "rhymes".to_owned());
    let (ended, ada_kept, ben_kept) = tokio::join!(
        session,
        keep(&ada, &mut ada_mounted, 4),
        keep(&ben, &mut ben_mounted, 4),
    );
    ended?;
    ada_kept?;
    ben_kept?;
    println!("ada has {:?}", ada.of("rhymes").unwrap_or_default());
    println!("ben has {:?}", ben.of("rhymes").unwrap_or_default());
    anyhow::ensure!(ada.of("rhymes") == ben.of("rhymes"), "they do not agree");
    ada_node.shutdown().await;
    ben_node.shutdown().await;
    Ok(())
}
