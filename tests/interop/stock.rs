//! An unmodified p2panda node, driven over a pipe. Both lines build this file.
//!
//! # Options
//!
//! ```text
//! --key <hex>              signing key, 32 bytes, which is the node's identity
//! --db <path>              SQLite file; a node started on it again goes on where it was
//! --connections <count>    to the database, 1 by default (see below)
//! --port <port>            UDP port on 127.0.0.1 and ::1 (0, the default: any)
//! --peer <id>@<ip:port>    in the address book, as a bootstrap node, before the start; repeatable
//! --mdns                   active mDNS, which is off otherwise
//! --network <hex>          network id, 32 bytes, in place of p2panda's
//! ```
//!
//! With more than one connection, of which p2panda takes up to 16 where it opens the file itself,
//! a publish can fail with `database is locked`.
//!
//! # Commands
//!
//! One a line on stdin. They are carried out one after the other, in order. The end of stdin, or
//! `quit`, ends the process. Topics, ids and keys are 64 hexadecimal digits; a text is the rest of
//! its line. A command that cannot be carried out is answered with `error <text>`.
//!
//! ```text
//! subscribe <topic>                     subscribed <topic>
//! unsubscribe <topic>                   unsubscribed <topic>
//! publish <topic> <count> <bytes>       published <topic> <operation>   (count times)
//!                                       publish-done <topic> <count>
//! publish-text <topic> <text>           published <topic> <operation>
//! prune <topic> [<text>]                pruned <topic> <operation>
//! heights <topic>                       height <topic> <author> <log> <highest> <held>  (each log)
//!                                       heights-end <topic>
//! ephemeral-subscribe <topic>           ephemeral-subscribed <topic>
//! ephemeral <topic> <text>              ephemeral-sent <topic>
//! peer <id>@<ip:port>                   peer-added <id>
//! quit
//! ```
//!
//! A `publish` makes bodies of `bytes` bytes each, a CBOR text, none like another (25 and 258 bytes
//! cannot be had: one less). Its answers come as the operations are signed and stored,
//! `publish-done` once the node has processed the last. `prune` publishes an operation with the
//! prune flag, without a body where there is no text. `heights` reads the node's store: the
//! highest sequence number and how many operations of the log are held. `ephemeral` subscribes
//! where that was not done, as only then anything of that topic is received; messages are lost
//! where no peer is there yet. `peer` adds to the address book of the running node.
//!
//! # Events
//!
//! ```text
//! ready <id> <ip:port>
//! processed <topic> <author> <operation> <body bytes> <sync|local|import>
//! message <topic> <operation> <text>
//! failed <topic> <error>
//! sync-started <topic> <session> <remote> <incoming operations> <incoming bytes>
//! sync-ended <topic> <session> <remote> <received operations> <sent operations> ok|<error>
//! ephemeral <topic> <author> <text>
//! ```
//!
//! `message` follows `processed` where the decoded text has at most 200 bytes, in one line.
//!
//! A session that goes on to be live tells `sync-ended ... ok` when it has caught up, and once
//! more, with the reason, when it breaks. Operations of its own are `processed` as `local`. One
//! without a body is ingested in silence: p2panda gives no event for it, and for one that came in
//! two sessions at once it can give two. Logs go to stderr, filtered by `RUST_LOG`.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::StreamExt;
use p2panda::network::MdnsDiscoveryMode;
use p2panda::operation::{LogId, Operation};
use p2panda::streams::{
    EphemeralStreamPublisher, EphemeralStreamSubscription, Source, StreamEvent, StreamPublisher,
    StreamSubscription,
};
use p2panda::{EndpointAddr, Hash, Node, NodeId, SigningKey, Topic, VerifyingKey};
use p2panda_core::SeqNum;
use p2panda_net::addrs::NodeInfo;
use p2panda_net::utils::from_verifying_key;
use p2panda_store::address_book::AddressBookStore;
use p2panda_store::logs::LogStore;
use p2panda_store::sqlite::{connection_pool, create_database, run_pending_migrations};
use p2panda_store::topics::TopicStore;
use p2panda_store::{SqliteStore, Transaction};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;

/// How long a started node may take to know its own address.
const READY_WITHIN: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut stock = Stock::start(Options::from_args(std::env::args().skip(1))?).await?;
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Some(command) = commands.next_line().await? {
        match stock.run(&command).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => say(format_args!("error {}", one_line(format!("{error:#}")))),
        }
    }
    // Not a shutdown: a node has none, and a store must bear it.
    std::process::exit(0)
}

/// Writes a line; without a reader there is nothing left to do.
fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn one_line(text: impl Display) -> String {
    text.to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

struct Options {
    key: SigningKey,
    db: String,
    connections: u32,
    port: u16,
    peers: Vec<EndpointAddr>,
    mdns: bool,
    network: Option<[u8; 32]>,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Options> {
        let (mut key, mut db, mut port, mut network) = (None, None, 0, None);
        let (mut peers, mut mdns, mut connections) = (vec![], false, 1);
        while let Some(name) = args.next() {
            if name == "--mdns" {
                mdns = true;
                continue;
            }
            let value = args
                .next()
                .with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--key" => key = Some(SigningKey::from_bytes(&bytes32(&value)?)),
                "--db" => db = Some(value),
                "--connections" => connections = value.parse().context("--connections")?,
                "--port" => port = value.parse().context("--port")?,
                "--peer" => peers.push(peer(&value)?),
                "--network" => network = Some(bytes32(&value)?),
                _ => bail!("unknown option {name}"),
            }
        }
        Ok(Options {
            key: key.context("--key is missing")?,
            db: db.context("--db is missing")?,
            connections,
            port,
            peers,
            mdns,
            network,
        })
    }
}

fn bytes32(text: &str) -> Result<[u8; 32]> {
    let bytes = hex::decode(text).with_context(|| format!("not hexadecimal: {text}"))?;
    bytes
        .try_into()
        .map_err(|_| anyhow!("not 32 bytes: {text}"))
}

fn topic(text: &str) -> Result<Topic> {
    Ok(Topic::from(bytes32(text)?))
}

fn peer(text: &str) -> Result<EndpointAddr> {
    let (id, addr) = text.split_once('@').context("a peer is <id>@<ip:port>")?;
    let id = VerifyingKey::from_bytes(&bytes32(id)?)?;
    Ok(EndpointAddr::new(from_verifying_key(id)).with_ip_addr(addr.parse()?))
}

struct Stock {
    node: Node,
    streams: HashMap<Topic, Stream>,
    ephemeral: HashMap<Topic, Ephemeral>,
    bodies: u64,
}

struct Stream {
    publisher: StreamPublisher<String>,
    events: JoinHandle<()>,
}

struct Ephemeral {
    publisher: EphemeralStreamPublisher<String>,
    messages: JoinHandle<()>,
}

impl Stock {
    async fn start(options: Options) -> Result<Stock> {
        let store = open(&options.db, options.connections)
            .await
            .with_context(|| format!("opening {}", options.db))?;
        for peer in options.peers {
            add_peer(&store, peer).await?;
        }
        // Chosen here, since a node does not tell what port it got.
        let port = match options.port {
            0 => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port(),
            port => port,
        };
        let mdns = match options.mdns {
            true => MdnsDiscoveryMode::Active,
            false => MdnsDiscoveryMode::Disabled,
        };
        let mut builder = Node::builder()
            .signing_key(options.key)
            .database_pool(store.pool().clone())
            .mdns_mode(mdns)
            .bind_ip_v4(Ipv4Addr::LOCALHOST)
            .bind_port_v4(port)
            .bind_ip_v6(Ipv6Addr::LOCALHOST)
            .bind_port_v6(port);
        if let Some(network) = options.network {
            builder = builder.network_id(network);
        }
        let node = builder.spawn().await?;
        let addr = own_addr(&store, node.id(), port).await?;
        say(format_args!("ready {} {addr}", node.id()));
        Ok(Stock {
            node,
            streams: HashMap::new(),
            ephemeral: HashMap::new(),
            bodies: 0,
        })
    }

    /// Carries out a command; false ends the process.
    async fn run(&mut self, line: &str) -> Result<bool> {
        let (command, rest) = word(line);
        let (first, rest) = word(rest);
        match command {
            "" => {}
            "subscribe" => self.subscribe(topic(first)?).await?,
            "unsubscribe" => self.unsubscribe(topic(first)?)?,
            "publish" => {
                let (count, bytes) = word(rest);
                self.publish(topic(first)?, count.parse()?, bytes.trim().parse()?)
                    .await?;
            }
            "publish-text" => {
                let topic = topic(first)?;
                let published = self.stream(topic)?.publish(rest.to_string()).await?;
                say(format_args!("published {topic} {}", published.hash()));
            }
            "prune" => {
                let topic = topic(first)?;
                let message = (!rest.is_empty()).then(|| rest.to_string());
                let pruned = self.stream(topic)?.prune(message).await?;
                let id = pruned.hash();
                pruned.await?;
                say(format_args!("pruned {topic} {id}"));
            }
            "heights" => heights(&self.node.store(), topic(first)?).await?,
            "ephemeral-subscribe" => {
                let topic = topic(first)?;
                self.ephemeral(topic).await?;
                say(format_args!("ephemeral-subscribed {topic}"));
            }
            "ephemeral" => {
                let topic = topic(first)?;
                self.ephemeral(topic)
                    .await?
                    .publish(rest.to_string())
                    .await?;
                say(format_args!("ephemeral-sent {topic}"));
            }
            "peer" => {
                let peer = peer(first)?;
                let id = first.split('@').next().unwrap_or_default();
                add_peer(&self.node.store(), peer).await?;
                say(format_args!("peer-added {id}"));
            }
            "quit" => return Ok(false),
            _ => bail!("unknown command {command}"),
        }
        Ok(true)
    }

    fn stream(&self, topic: Topic) -> Result<&StreamPublisher<String>> {
        let stream = self
            .streams
            .get(&topic)
            .with_context(|| format!("not subscribed {topic}"))?;
        Ok(&stream.publisher)
    }

    async fn subscribe(&mut self, topic: Topic) -> Result<()> {
        ensure!(
            !self.streams.contains_key(&topic),
            "already subscribed {topic}"
        );
        let (publisher, events) = self.node.stream::<String>(topic).await?;
        let events = tokio::spawn(tell_events(topic, events));
        self.streams.insert(topic, Stream { publisher, events });
        say(format_args!("subscribed {topic}"));
        Ok(())
    }

    fn unsubscribe(&mut self, topic: Topic) -> Result<()> {
        let stream = self.streams.remove(&topic);
        let ephemeral = self.ephemeral.remove(&topic);
        ensure!(
            stream.is_some() || ephemeral.is_some(),
            "not subscribed {topic}"
        );
        // The subscription half lives in its task, and the node leaves when both halves are gone.
        stream.inspect(|stream| stream.events.abort());
        ephemeral.inspect(|ephemeral| ephemeral.messages.abort());
        say(format_args!("unsubscribed {topic}"));
        Ok(())
    }

    async fn publish(&mut self, topic: Topic, count: u64, bytes: usize) -> Result<()> {
        let publisher = self.stream(topic)?.clone();
        let mut last = None;
        for _ in 0..count {
            self.bodies += 1;
            let published = publisher.publish(text_of(bytes, self.bodies)).await?;
            say(format_args!("published {topic} {}", published.hash()));
            last = Some(published);
        }
        if let Some(last) = last {
            last.await?;
        }
        say(format_args!("publish-done {topic} {count}"));
        Ok(())
    }

    async fn ephemeral(&mut self, topic: Topic) -> Result<&EphemeralStreamPublisher<String>> {
        if !self.ephemeral.contains_key(&topic) {
            let (publisher, messages) = self.node.ephemeral_stream::<String>(topic).await?;
            let messages = tokio::spawn(tell_messages(topic, messages));
            self.ephemeral.insert(
                topic,
                Ephemeral {
                    publisher,
                    messages,
                },
            );
        }
        Ok(&self.ephemeral[&topic].publisher)
    }
}

/// The first word of a line, and what follows the space after it.
fn word(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

/// A text that is `bytes` long in CBOR, as near as can be, and starts with its number.
fn text_of(bytes: usize, number: u64) -> String {
    let head = |len: usize| match len {
        0..24 => 1,
        24..0x100 => 2,
        0x100..0x1_0000 => 3,
        _ => 5,
    };
    let longest = (0..=bytes)
        .rev()
        .find(|len| len + head(*len) <= bytes)
        .unwrap_or(0);
    let mut text = number.to_string();
    text.extend(std::iter::repeat_n('x', longest.saturating_sub(text.len())));
    text.truncate(longest);
    text
}

async fn open(db: &str, connections: u32) -> Result<SqliteStore> {
    let url = format!("sqlite://{db}");
    create_database(&url).await?;
    let pool = connection_pool(&url, connections).await?;
    run_pending_migrations(&pool).await?;
    Ok(SqliteStore::from_pool(pool))
}

async fn add_peer(store: &SqliteStore, peer: EndpointAddr) -> Result<()> {
    let permit = store.begin().await?;
    AddressBookStore::insert_node_info(store, NodeInfo::from(peer).bootstrap()).await?;
    store.commit(permit).await?;
    Ok(())
}

/// The node's address as it is in its own address book, from which discovery takes it.
async fn own_addr(store: &SqliteStore, id: NodeId, port: u16) -> Result<SocketAddr> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let started = Instant::now();
    while started.elapsed() < READY_WITHIN {
        let info = AddressBookStore::<NodeId, NodeInfo>::node_info(store, &id).await?;
        let addr = info.and_then(|info| EndpointAddr::try_from(info).ok());
        if addr.is_some_and(|addr| addr.ip_addrs().any(|ip| *ip == wanted)) {
            return Ok(wanted);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("the node has no address {wanted}, is the port taken?")
}

async fn heights(store: &SqliteStore, topic: Topic) -> Result<()> {
    let logs = TopicStore::<Topic, VerifyingKey, LogId>::resolve(store, &topic).await?;
    for (author, logs) in logs {
        let heights = LogStore::<Operation, VerifyingKey, LogId, SeqNum, Hash>::get_log_heights(
            store, &author, &logs,
        )
        .await?
        .unwrap_or_default();
        for (log, highest) in heights {
            let size = LogStore::<Operation, VerifyingKey, LogId, SeqNum, Hash>::get_log_size(
                store, &author, &log, None, None,
            )
            .await?;
            let held = size.map_or(0, |(operations, _bytes)| operations);
            let log = hex::encode(log.as_bytes());
            say(format_args!(
                "height {topic} {author} {log} {highest} {held}"
            ));
        }
    }
    say(format_args!("heights-end {topic}"));
    Ok(())
}

async fn tell_events(topic: Topic, mut events: StreamSubscription<String>) {
    while let Some(event) = events.next().await {
        tell_event(topic, event);
    }
}

fn tell_event(topic: Topic, event: StreamEvent<String>) {
    match event {
        StreamEvent::Processed { operation, source } => {
            let source = match source {
                Source::SyncSession { .. } => "sync",
                Source::LocalStore => "local",
                Source::ExternalStream { .. } => "import",
            };
            let bytes = operation.processed().body().map_or(0, |body| body.size());
            let (author, id) = (operation.author(), operation.id());
            say(format_args!(
                "processed {topic} {author} {id} {bytes} {source}"
            ));
            if operation.message().len() <= 200 {
                let text = one_line(operation.message());
                say(format_args!("message {topic} {id} {text}"));
            }
        }
        StreamEvent::SyncStarted {
            remote_node_id,
            session_id,
            incoming_operations,
            incoming_bytes,
            ..
        } => say(format_args!(
            "sync-started {topic} {session_id} {remote_node_id} {incoming_operations} \
             {incoming_bytes}"
        )),
        StreamEvent::SyncEnded {
            remote_node_id,
            session_id,
            received_operations,
            sent_operations,
            error,
            ..
        } => {
            let outcome = error.map_or("ok".to_string(), one_line);
            say(format_args!(
                "sync-ended {topic} {session_id} {remote_node_id} {received_operations} \
                 {sent_operations} {outcome}"
            ));
        }
        StreamEvent::ProcessingFailed { error, .. } => tell_failure(topic, error),
        StreamEvent::ReplayFailed { error } => tell_failure(topic, error),
        StreamEvent::DecodeFailed { error, .. } => tell_failure(topic, error),
        StreamEvent::AckFailed { error, .. } => tell_failure(topic, error),
        StreamEvent::ImportStarted { .. }
        | StreamEvent::ImportEnded { .. }
        | StreamEvent::ReplayStarted { .. }
        | StreamEvent::ReplayEnded => {}
    }
}

fn tell_failure(topic: Topic, error: impl Display) {
    say(format_args!("failed {topic} {}", one_line(error)));
}

async fn tell_messages(topic: Topic, mut messages: EphemeralStreamSubscription<String>) {
    while let Some(message) = messages.next().await {
        let text = one_line(message.body());
        say(format_args!(
            "ephemeral {topic} {} {text}",
            message.author()
        ));
    }
}
