//! Consensus groups of trusted nodes: one state machine, kept equal and durable on all of them.
//!
//! A handful of nodes that hold one [`GroupKey`] form a *group*: a mesh of *bonds*, QUIC
//! connections on which both sides have proven the key, carrying Raft messages and heartbeats.
//! They replicate a [`StateMachine`], yours or the built-in [`Map`], and survive the loss of a
//! minority of them without losing, doubling or reordering anything they acknowledged. Its state is
//! in memory, or in a [`Table`] of the node's store.
//!
//! # Quick start
//!
//! ```
//! use quorate::{GroupKey, Map, MapCommand, MapQuery, Node};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // On disk: `Node::open("data")`. One process founds the group ...
//! let first = Node::in_memory().bind_loopback().open().await?;
//! let group = first.create(GroupKey::generate(), Map::new()).await?;
//!
//! // ... others, elsewhere, join with its ticket. It holds the key: treat it as a password.
//! let ticket = group.ticket();
//! let second = Node::in_memory().bind_loopback().open().await?;
//! let other = second.join(&ticket, Map::new()).await?;
//!
//! // Any member takes commands and answers queries.
//! other.execute(MapCommand::put("colour", "green")).await?;
//! let answer = group.query(MapQuery::get("colour")).await?;
//! assert_eq!(answer.into_value().as_deref(), Some(&b"green"[..]));
//!
//! second.shutdown().await;
//! first.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Floors: a module imports only from lower ones
//!
//! ```text
//!  node       wires everything
//!  streams/   messages of an application, published and delivered over the log store
//!  sync/      the standard sync protocol, for peers that are no members
//!  log_store/ append-only logs of signed operations, replicated
//!  group/     execute, query, status: the typed handle
//!  raft/      openraft, and nothing else names it
//!  mesh/      all bonds of one group: dial, accept, roster
//!  bond/      one proven relation: handshake, messages, heartbeat, lanes
//!  net/ | storage/ | machine/     the wire | the disk | your trait; blind to each other
//!  identity/  config  error  metrics
//! ```
//!
//! # Invariants
//!
//! 1. A bond never changes the quorum. Only a committed membership entry does.
//! 2. Nothing is acknowledged before a quorum has it synced; vote and entries reach the disk in
//!    the order Raft needs.
//! 3. A [`MemberId`] is never used twice: minted at random where no state is found, so a wiped
//!    disk is a new member.
//! 4. Every queue, frame, session and retry has a limit. Full means wait or refuse, never grow.
//! 5. One task owns a connection; others hold handles.
//! 6. After a storage failure every group on this node stops, after a panic in `apply` that
//!    group; they say so and write no more.
//! 7. Before a peer has proven the key it costs one bounded buffer and one deadline, and it
//!    learns nothing: not whether the group exists, not who is in it.

mod bond;
pub mod config;
mod error;
#[cfg(test)]
mod fuzz;
mod group;
mod identity;
pub mod log_store;
mod machine;
mod mesh;
mod metrics;
mod net;
mod node;
mod raft;
mod storage;
pub mod streams;
pub mod sync;
mod task;

pub use crate::{
    bond::{Bond, BondId, TerminationReason},
    group::{
        ExecuteError, Group, Health, MemberStatus, MembershipChangeError, NotApplied, QueryError,
        Status, StatusWatch, Stopped, Unresolved, Warning,
    },
    identity::{
        GroupId, GroupKey, GroupTicket, MemberId, ParseGroupIdError, ParseGroupKeyError,
        ParseMemberIdError, ParsePeerIdError, ParseTicketError, PeerAddr, PeerId,
    },
    machine::{
        InvalidCommand, Map, MapAnswer, MapCommand, MapOutput, MapQuery, Moment, Order, Position,
        Snapshot, SnapshotReader, StateMachine, Table, TableView, Visit,
    },
    mesh::Bonds,
    metrics::Metrics,
    node::{CreateError, JoinError, MemoryDisk, Node, NodeBuilder, OpenError, Relay},
    raft::Role,
};

/// The README's example must compile and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
