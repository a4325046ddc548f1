//! quorate
#![forbid(unsafe_code)]

pub mod config;
mod bond;
mod error;
mod group;
pub mod identity;
mod machine;
mod mesh;
mod metrics;
mod net;
mod node;
mod raft;
mod storage;

pub use identity::{GroupId, GroupKey, GroupTicket, MemberId, PeerAddr, PeerId};
