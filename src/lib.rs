//! quorate
#![forbid(unsafe_code)]

mod bond;
pub mod config;
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
