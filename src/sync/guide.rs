//! An always-on peer for your p2panda app: what the app adds, what the members run, what holds.
//!
#![doc = include_str!("guide.md")]
