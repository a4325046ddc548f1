//! A group of processes: founded, loaded, killed, restarted with the same command lines.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use quorate::{GroupKey, config::Timing};
use tempfile::TempDir;

use crate::{
    check, member,
    process::{History, Process},
};

/// "Election timeout" in what is promised: its longest.
pub(crate) const ELECTION_TIMEOUT: Duration = Timing::LAN.election_timeout_max;

/// How a test shares the machine with the others, whichever way they are run.
pub(crate) enum Turn {
    /// Beside others.
    Shared,
    /// Alone: it measures, or loads the machine fully.
    Alone,
}

impl Turn {
    pub(crate) fn take(&self) -> File {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("processes.lock");
        let file = File::create(path).expect("a lock file");
        match self {
            Self::Shared => file.lock_shared().expect("a shared turn"),
            Self::Alone => file.lock().expect("a turn alone"),
        }
        file
    }
}

type Environment = Vec<(&'static str, String)>;

/// One member's place: what outlives its processes.
struct Seat {
    directory: PathBuf,
    environment: Environment,
    process: Option<Process>,
    member: String,
    peer: String,
}

pub(crate) struct Cluster {
    // Dropped in this order: the processes, their directories, the turn.
    seats: Vec<Seat>,
    home: TempDir,
    pub(crate) history: Arc<History>,
    next_client: u64,
    _turn: File,
}

impl Cluster {
    /// Founds a group of this many voters.
    pub(crate) fn start(count: usize, turn: &Turn, settings: &[(&'static str, u64)]) -> Self {
        let turn = turn.take();
        let home = tempfile::tempdir().expect("a directory");
        let settings: Environment = settings
            .iter()
            .map(|(name, value)| (*name, value.to_string()))
            .collect();
        let mut cluster = Self {
            seats: Vec::new(),
            home,
            history: Arc::default(),
            next_client: 1,
            _turn: turn,
        };
        let key = GroupKey::generate().expose().to_string();
        cluster.add_seat(vec![(member::KEY, key)], &settings);
        let ticket = cluster.process(0).ask("ticket");
        for _ in 1..count {
            cluster.add_seat(vec![(member::TICKET, ticket.clone())], &settings);
        }
        for seat in 0..count {
            cluster.process(seat).ask(&format!("await voters {count}"));
            cluster.process(seat).ask(&format!("await reached {count}"));
        }
        cluster
    }

    fn add_seat(&mut self, start: Environment, settings: &Environment) {
        let directory = self
            .home
            .path()
            .join(format!("member-{}", self.seats.len()));
        self.seats.push(Seat {
            directory,
            environment: start.into_iter().chain(settings.iter().cloned()).collect(),
            process: None,
            member: String::new(),
            peer: String::new(),
        });
        self.restart(self.seats.len() - 1);
    }

    pub(crate) fn process(&mut self, seat: usize) -> &mut Process {
        self.seats[seat].process.as_mut().expect("it runs")
    }

    pub(crate) fn peer(&self, seat: usize) -> &str {
        &self.seats[seat].peer
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.seats.len())
            .filter(|it| self.seats[*it].process.is_some())
            .collect()
    }

    /// Starts the member's process, with the command line of the first time.
    pub(crate) fn begin_restart(&mut self, seat: usize) {
        let it = &mut self.seats[seat];
        assert!(it.process.is_none(), "it runs");
        it.process = Some(Process::start(
            &it.directory,
            &it.environment,
            &self.history,
        ));
    }

    /// A further process with the member's command line.
    pub(crate) fn second_process(&self, seat: usize) -> Process {
        let it = &self.seats[seat];
        Process::start(&it.directory, &it.environment, &self.history)
    }

    pub(crate) fn directory(&self, seat: usize) -> &Path {
        &self.seats[seat].directory
    }

    /// Starts the member's process and waits until the group runs there.
    pub(crate) fn restart(&mut self, seat: usize) {
        self.begin_restart(seat);
        self.wait_up(seat);
    }

    pub(crate) fn wait_up(&mut self, seat: usize) {
        let (member, peer) = self.process(seat).up();
        let it = &mut self.seats[seat];
        if it.member.is_empty() {
            (it.member, it.peer) = (member, peer);
        }
        // What it was before, it is again: the state was found and resumed.
        else {
            assert_eq!(
                (&it.member, &it.peer),
                (&member, &peer),
                "it resumed as another"
            );
        }
    }

    /// SIGKILLs one member.
    pub(crate) fn kill(&mut self, seat: usize) {
        self.seats[seat].process.take().expect("it runs").kill();
    }

    /// SIGKILLs these at once.
    pub(crate) fn kill_at_once(&mut self, seats: &[usize]) {
        for seat in seats {
            self.process(*seat).begin_kill();
        }
        for seat in seats {
            self.kill(*seat);
        }
    }

    /// Has one member shut down in order.
    pub(crate) fn stop(&mut self, seat: usize) {
        self.seats[seat].process.take().expect("it runs").stop();
    }

    /// The seat of the leader, once it knows itself that it leads.
    pub(crate) fn leader(&mut self) -> usize {
        let running = self.running();
        self.leader_among(&running)
    }

    pub(crate) fn leader_among(&mut self, seats: &[usize]) -> usize {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            for seat in seats {
                if self.process(*seat).ask("status").starts_with("leader ") {
                    return *seat;
                }
            }
            assert!(Instant::now() < deadline, "no leader among {seats:?}");
            self.process(seats[0]).ask("await leader");
        }
    }

    /// Some seat that runs and is not this one.
    pub(crate) fn other_than(&self, seat: usize) -> usize {
        let other = self.running().into_iter().find(|it| *it != seat);
        other.expect("another one runs")
    }

    /// Starts clients in a member's process.
    pub(crate) fn load(&mut self, seat: usize, clients: u64, pause_us: u64) {
        let first = self.next_client;
        self.next_client += clients;
        self.process(seat)
            .ask(&format!("load {first} {clients} {pause_us}"));
    }

    /// An id that no client uses.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_client += 1;
        (self.next_client - 1) << 32
    }

    /// Ends the clients in these processes; each append's fate is known then.
    pub(crate) fn unload(&mut self, seats: &[usize]) {
        for seat in seats {
            self.process(*seat).ask("unload");
        }
    }

    /// Waits until all that run hold one state, and checks it against everything acknowledged.
    pub(crate) fn settle(&mut self, title: &str) -> check::Verdict {
        let running = self.running();
        for seat in &running {
            let answer = self.process(*seat).ask("ready");
            assert_eq!(answer, "ready", "member {seat}");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let states = loop {
            let states: Vec<Vec<u8>> = running.iter().map(|seat| self.dump(*seat)).collect();
            if states.windows(2).all(|it| it[0] == it[1]) {
                break states;
            }
            let sizes: Vec<usize> = states.iter().map(Vec::len).collect();
            assert!(
                Instant::now() < deadline,
                "{title}: the states stay unequal: {sizes:?}"
            );
            for seat in &running {
                self.process(*seat).ask("ready");
            }
        };
        let verdict = self.history.read(|told| check::judge(&states[0], told));
        println!("{title}: {verdict}");
        verdict
    }

    fn dump(&mut self, seat: usize) -> Vec<u8> {
        let path = self.home.path().join(format!("state-{seat}"));
        let answer = self.process(seat).ask(&format!("dump {}", path.display()));
        assert_eq!(answer, "dumped");
        std::fs::read(path).expect("it was written")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (nth, seat) in self.seats.iter_mut().enumerate() {
            match &mut seat.process {
                Some(process) => eprintln!("member {nth}, {}: {}", seat.member, process.picture()),
                None => eprintln!("member {nth}, {}: no process", seat.member),
            }
        }
    }
}
