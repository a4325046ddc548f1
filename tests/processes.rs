//! Groups of real processes on loopback, with RocksDB, under SIGKILL, SIGSTOP and restarts.
//!
//! The binary starts itself again as members: a child runs [`member_process`] and nothing else,
//! told by the environment what to be, and talks with its test over lines on stdin and stdout. A
//! test ends only what it started, by handle. Heavier runs: `QUORATE_HEAVY=1`.

#[path = "processes/check.rs"]
mod check;
#[path = "processes/cluster.rs"]
mod cluster;
#[path = "processes/failover.rs"]
mod failover;
#[path = "processes/hung.rs"]
mod hung;
#[path = "processes/ledger.rs"]
mod ledger;
#[path = "processes/logs.rs"]
mod logs;
#[path = "processes/member.rs"]
mod member;
#[path = "processes/memory.rs"]
mod memory;
#[path = "processes/process.rs"]
mod process;
#[path = "processes/publish.rs"]
mod publish;
#[path = "processes/restart.rs"]
mod restart;

/// What a child runs; without the environment of one it is a test that holds nothing up.
#[test]
fn member_process() {
    if let Some(settings) = member::Settings::from_env() {
        member::run(settings);
    }
}

/// Whether the heavier runs are wanted.
fn heavy() -> bool {
    std::env::var_os("QUORATE_HEAVY").is_some_and(|it| it != "0")
}
