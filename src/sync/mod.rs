//! The standard sync protocol: what outsiders reach of a member, and how a member reaches them.
//!
//! ```text
//!  protocol    the trait of a sync protocol, for a program's own
//!  mount       such a protocol at a member's door
//!  session/    one session of the log sync: no I/O, no clock
//!  discovery/  which topics two peers share, and where peers are: no I/O, no clock
//!  codec/      the messages of both lines as bytes
//!  wire/       the endpoint for outsiders
//!  serve/      a member's side: topics, peers, sessions, chunks
//!  client/     our own client: pull and push, and the half that serves them
//!  member_addr one member, and the ways to it
//!  places      how many may be there at once, in all and of one peer
//!  outsiders/  who of the peers that are no members may do what
//!  ticket      where outsiders find a group's logs
//!  guide       an always-on peer for your p2panda app
//! ```
//!
//! # Serving p2panda nodes
//!
//! A group with a [`LogStore`](crate::log_store::LogStore) is an always-on peer for
//! [p2panda](https://p2panda.org) apps: unmodified nodes of the lines 0.6 and 0.7 catch up at any
//! member, push what they wrote, and stay live. Each member that is to serve opens its door with
//! [`Node::serve_sync`](crate::Node::serve_sync). Topics are opened for all of them at once, by
//! [`Outsiders::open_topic`], which says who may read and who may push.
//!
//! ```
//! use quorate::{
//!     GroupKey, Node,
//!     log_store::{Line, LogStore, Topic},
//!     sync::{Admission, Outsiders, SyncOptions},
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // On disk: `Node::open("data")`. Further members join with the group's ticket.
//! let node = Node::in_memory().bind_loopback().open().await?;
//! let group = node.create(GroupKey::generate(), LogStore::new()).await?;
//! let logs = group.logs();
//! let outsiders = Outsiders::of(&logs);
//! outsiders.open_topic(Topic::named("cats"), Line::V07, Admission::everyone()).await?;
//!
//! // The port of a new door is any free one: name an address where apps are to find it again.
//! let bind = vec!["127.0.0.1:0".parse()?];
//! let sync = node.serve_sync(&logs, SyncOptions { bind, ..SyncOptions::default() }).await?;
//! println!("{} at {:?}", sync.id(), sync.addr().addrs);
//!
//! for peer in sync.status().peers {
//!     println!("{} lacks {:?} operations", peer.peer, peer.missing);
//! }
//! # node.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! What a p2panda app adds to find the members, what holds, what to set, and what happens when a
//! member dies: [`guide`].
//!
//! # Who may do what
//!
//! [`Outsiders`] says so for each topic: everybody, a list of peers, or those who asked and were
//! let in, once for reading and once for pushing. A topic that was opened by
//! [`Logs::open_topic`](crate::log_store::Logs::open_topic) alone is for the members.
//!
//! - One that may read and push is a peer as any.
//! - One that may read and not push: what it sends is discarded and counted. It is told that its
//!   own logs are held as far as it has them, or it would send them for ever.
//! - One that may push and not read: what it sends is taken. It is sent nothing, and hears, of the
//!   logs that it names itself, how much the group holds.
//! - One that may neither is closed at the door; if it may ask, that is noted first.
//!
//! A peer is the key of its endpoint, which for a p2panda node is also the key it signs with. It
//! may pass on what others wrote, so a list names whose connections are taken, not whose
//! operations. What was decided is a note of the group: it holds at every member and outlives
//! restarts. A door ends the sessions of a peer that lost a right within a second; a member that
//! does not reach the quorum, and so may not know, serves nobody.
//!
//! A peer that may nothing in a topic is not told by discovery that the topic is there. The overlay
//! of a topic is gossip's: any peer that is served something, or may ask, and knows a topic, can
//! join it and learn the addresses of others there, but no operation.
//!
//! # What it does not do
//!
//! What a session costs is bounded, and how many authors a topic has
//! ([`TOPIC_AUTHORS_MAX`](crate::log_store::TOPIC_AUTHORS_MAX)); how much they store is not.
//! Ephemeral messages are passed on in topics in which a member takes part in them itself, see
//! [`streams`](crate::streams::TopicStream::ephemeral).
//!
//! # Another protocol
//!
//! A program's own [`SyncProtocol`] is mounted at the same door ([`SyncOptions::protocols`]):
//! [`Mount`] says who may come in, how many at once and for how long, and [`Mounted`] gives what
//! their sessions gave. `cargo run --example own_protocol` shows one.
//!
//! # Without p2panda
//!
//! [`pull()`] keeps a copy of a topic and [`push()`] appends to it, from any program with a
//! [`LogTicket`], at the same door.

mod client;
mod codec;
mod discovery;
pub mod guide;
mod member_addr;
mod mount;
mod outsiders;
mod places;
mod protocol;
mod serve;
mod session;
mod ticket;
mod wire;

#[cfg(feature = "http")]
pub use self::client::Http;
pub use self::{
    client::{
        AcceptFuture, Access, Admit, AdmitPeer, BadRun, Caller, ClientWatch, Denied, Dial,
        DialError, DialFuture, Dialled, Have, Identity, Knock, ListenError, ListenFuture, Listener,
        LogServer, LogServerOptions, MemberError, MemberFault, NotSynced, Place, Pull, PullHandle,
        PullStatus, Puller, Push, PushHandle, PushOutcome, PushRefused, PushRule, PushStatus,
        Pushed, Pusher, Quic, QuicDial, RunFault, Secret, ServeError, ServeLimits, ServerError,
        Transport, Transports, pull, push, serve_logs,
    },
    member_addr::MemberAddr,
    mount::{Mount, MountError, MountHandle, MountOptions, Mounted, PeerEvent},
    outsiders::{
        Admission, Decision, KnownPeer, Outsiders, OutsidersError, Request, Rights, TopicMode, Who,
    },
    protocol::{
        Cause, Fault, FromSync, SyncError, SyncFuture, SyncProtocol, SyncRead, SyncSink, SyncWrite,
        TopicMap, TopicQuery,
    },
    serve::{
        OpenSyncError, PeerState, PeerStatus, Sync, SyncOptions, SyncStatus, SyncWatch,
        SyncWithError, Synced,
    },
    ticket::{LogTicket, ParseLogTicketError},
};
pub(crate) use self::{
    discovery::{EPHEMERAL_BYTES_MAX, Ephemeral, EphemeralError, Stamp},
    serve::{Channel, Kept},
};
