//! Every tunable, its default and its limit.
//!
//! ```
//! use quorate::config::{Config, Timing};
//!
//! let config = Config {
//!     timing: Timing::INTERNET,
//!     ..Config::default()
//! };
//! config.check().expect("the relations between the settings hold");
//! ```

use std::time::Duration;

/// How fast a group notices and acts. One preset for a LAN, one for the internet. Give all members
/// of a group the same: a member that is faster than the others disturbs them. Each time is at most
/// [`TIME_LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats on a bond, and between two of the leader's.
    pub heartbeat: Duration,
    /// Heartbeats that may go unanswered before a bond counts as silent and an early election
    /// is tried.
    pub heartbeats_missed: u32,
    /// Silence after which a bond is closed and dialled anew.
    pub bond_timeout: Duration,
    /// The least time without a leader after which a voter campaigns by Raft's own clock.
    pub election_timeout_min: Duration,
    /// The most; also the leader's lease. "Election timeout" in our documents means this.
    pub election_timeout_max: Duration,
    /// The most jitter before an early campaign.
    pub campaign_jitter: Duration,
    /// The first pause before a lost bond is dialled again; doubles, with jitter, up to
    /// `redial_max`.
    pub redial_min: Duration,
    /// The longest pause between two dials of one peer.
    pub redial_max: Duration,
    /// How long one dial may take.
    pub dial_timeout: Duration,
}

impl Timing {
    /// For nodes in one room or one data centre: heartbeats every 40 ms, an election timeout of
    /// 250 to 500 ms, an early election after 120 ms of silence.
    pub const LAN: Self = Self {
        heartbeat: Duration::from_millis(40),
        heartbeats_missed: 3,
        bond_timeout: Duration::from_millis(1_500),
        election_timeout_min: Duration::from_millis(250),
        election_timeout_max: Duration::from_millis(500),
        campaign_jitter: Duration::from_millis(20),
        redial_min: Duration::from_millis(50),
        redial_max: Duration::from_secs(2),
        dial_timeout: Duration::from_secs(3),
    };

    /// For nodes far apart: heartbeats every 250 ms, an election timeout of 1 to 2 s, an early
    /// election after 750 ms of silence.
    pub const INTERNET: Self = Self {
        heartbeat: Duration::from_millis(250),
        heartbeats_missed: 3,
        bond_timeout: Duration::from_secs(6),
        election_timeout_min: Duration::from_millis(1_000),
        election_timeout_max: Duration::from_millis(2_000),
        campaign_jitter: Duration::from_millis(100),
        redial_min: Duration::from_millis(250),
        redial_max: Duration::from_secs(15),
        dial_timeout: Duration::from_secs(10),
    };
}

/// The settings of a node and of the groups on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How fast a group notices and acts. Default: [`Timing::LAN`].
    pub timing: Timing,
    /// The largest encoded command, in bytes. Default 2 MiB, at most [`COMMAND_BYTES_LIMIT`]. Give
    /// all members the same: a leader refuses what is larger than its own.
    pub command_bytes_max: usize,
    /// Commands of one group that may wait for their answer on this node; more wait for room.
    /// Default 4,096.
    pub commands_outstanding_max: usize,
    /// Bytes of commands of one group that may wait for their answer on this node; more wait
    /// for room. Default 32 MiB.
    pub command_bytes_outstanding_max: usize,
    /// How long `execute` and `retry` try before they say `NotApplied` or `Unknown`; up to twice as
    /// long where their turn has to come first, or a session is to be opened for them. The wait for
    /// room comes before that, see [`commands_outstanding_max`](Self::commands_outstanding_max).
    /// Default 10 s, at most [`TIME_LIMIT`].
    pub execute_timeout: Duration,
    /// How long `query` waits for a quorum to confirm what must be read. Default 10 s, at most
    /// [`TIME_LIMIT`].
    pub query_timeout: Duration,
    /// How long `join` tries to be admitted. Default 30 s, at most [`TIME_LIMIT`].
    pub join_timeout: Duration,
    /// Members that vote; further ones stay learners. Default 5. The leader's setting counts, so
    /// give all members the same one.
    pub max_voters: usize,
    /// Journal entries behind the leader at which a learner counts as caught up, and is made a
    /// voter if there is room. Default 256. The leader's setting counts.
    pub learner_lag_max: u64,
    /// Journal bytes after which a snapshot is taken, unless the state is larger: then that many.
    /// Default 64 MiB.
    pub snapshot_after_bytes: u64,
    /// Journal entries kept behind a snapshot, so that members which lag less than that need no
    /// snapshot. Default 4,096.
    pub journal_entries_kept: u64,
    /// Groups on one node; a further one is refused. Default 1,024.
    pub groups_max: usize,
    /// Free disk space below which writes are refused, in bytes. Default 256 MiB.
    pub disk_reserve_bytes: u64,
}

/// No setting may allow a larger command, in bytes: it must fit a frame and a journal record.
pub const COMMAND_BYTES_LIMIT: usize = 8 * 1024 * 1024;

/// No time in the settings may be longer: 30 days. Who wants to wait for ever asks again.
pub const TIME_LIMIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Default for Config {
    fn default() -> Self {
        Self {
            timing: Timing::LAN,
            command_bytes_max: 2 * 1024 * 1024,
            commands_outstanding_max: 4_096,
            command_bytes_outstanding_max: 32 * 1024 * 1024,
            execute_timeout: Duration::from_secs(10),
            query_timeout: Duration::from_secs(10),
            join_timeout: Duration::from_secs(30),
            max_voters: 5,
            learner_lag_max: 256,
            snapshot_after_bytes: 64 * 1024 * 1024,
            journal_entries_kept: 4_096,
            groups_max: 1_024,
            disk_reserve_bytes: 256 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Whether the relations between the settings hold.
    ///
    /// # Errors
    /// Names the first one that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Timing {
            heartbeat,
            heartbeats_missed,
            bond_timeout,
            election_timeout_min,
            election_timeout_max,
            redial_min,
            redial_max,
            campaign_jitter,
            dial_timeout,
        } = self.timing;
        let silence = heartbeat.saturating_mul(heartbeats_missed);
        let longest = [
            silence,
            bond_timeout,
            election_timeout_max,
            redial_max,
            campaign_jitter,
            dial_timeout,
            self.execute_timeout,
            self.query_timeout,
            self.join_timeout,
        ];
        let relations: [(bool, &'static str); 11] = [
            (
                longest.iter().all(|it| *it <= TIME_LIMIT),
                "no time may be longer than TIME_LIMIT, 30 days",
            ),
            (!heartbeat.is_zero(), "timing.heartbeat must not be zero"),
            (
                heartbeats_missed > 0,
                "timing.heartbeats_missed must not be zero",
            ),
            (
                silence < election_timeout_min,
                "timing.heartbeat x heartbeats_missed must be below election_timeout_min",
            ),
            (
                election_timeout_min < election_timeout_max,
                "timing.election_timeout_min must be below election_timeout_max",
            ),
            (
                silence < bond_timeout,
                "timing.bond_timeout must exceed the silence it follows",
            ),
            (
                !redial_min.is_zero() && redial_min <= redial_max,
                "timing.redial_min must be above zero and at most redial_max",
            ),
            (
                (1..=COMMAND_BYTES_LIMIT).contains(&self.command_bytes_max),
                "command_bytes_max must be 1 to COMMAND_BYTES_LIMIT",
            ),
            (
                self.command_bytes_outstanding_max >= self.command_bytes_max
                    && self.commands_outstanding_max > 0,
                "what may be outstanding must hold at least one command",
            ),
            (self.max_voters > 0, "max_voters must not be zero"),
            (self.groups_max > 0, "groups_max must not be zero"),
        ];
        match relations.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(ConfigError(broken)),
            None => Ok(()),
        }
    }
}

/// Two settings contradict each other, or one is outside its limit; the text says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot work: {0}")]
pub struct ConfigError(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_hold_their_own_relations() {
        for timing in [Timing::LAN, Timing::INTERNET] {
            Config {
                timing,
                ..Config::default()
            }
            .check()
            .expect("a preset works");
        }
    }

    #[test]
    fn a_broken_relation_is_named() {
        let mut config = Config::default();
        config.timing.election_timeout_max = config.timing.election_timeout_min;
        let error = config.check().expect_err("equal timeouts cannot work");
        assert!(
            error.to_string().contains("election_timeout_min"),
            "{error}"
        );
        let endless = Config {
            execute_timeout: Duration::MAX,
            ..Config::default()
        };
        let error = endless.check().expect_err("longer than any clock");
        assert!(error.to_string().contains("30 days"), "{error}");
    }
}
