//! What a group does for its users, seen from outside: nodes in one process, over loopback.
//!
//! One binary, since each links the database. Every test has nodes, directories and ports of its
//! own; `RUST_LOG` shows what they say.

#[path = "behaviour/cluster.rs"]
mod cluster;
#[path = "behaviour/ledger.rs"]
mod ledger;

#[path = "behaviour/admission/mod.rs"]
mod admission;
#[path = "behaviour/client/mod.rs"]
mod client;
#[path = "behaviour/faults.rs"]
mod faults;
#[path = "behaviour/identity.rs"]
mod identity;
#[path = "behaviour/invalid.rs"]
mod invalid;
#[path = "behaviour/joining.rs"]
mod joining;
#[path = "behaviour/logs.rs"]
mod logs;
#[path = "behaviour/membership.rs"]
mod membership;
#[path = "behaviour/mesh.rs"]
mod mesh;
#[path = "behaviour/minority.rs"]
mod minority;
#[path = "behaviour/mounted.rs"]
mod mounted;
#[path = "behaviour/once.rs"]
mod once;
#[path = "behaviour/reads.rs"]
mod reads;
#[path = "behaviour/restart.rs"]
mod restart;
#[path = "behaviour/stored.rs"]
mod stored;
#[path = "behaviour/streams/mod.rs"]
mod streams;
#[path = "behaviour/transports/mod.rs"]
mod transports;
#[path = "behaviour/waiting.rs"]
mod waiting;
#[path = "behaviour/writes.rs"]
mod writes;
