//! Commands that wait behind others are told what becomes of them as well.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use quorate::{
    ExecuteError, Group, Position, Snapshot, SnapshotReader, StateMachine, Unresolved,
    config::Config,
};
use tokio::sync::mpsc;

use crate::cluster::{Place, group_at, within};

const TRIES: Duration = Duration::from_secs(1);
/// Many more than entries may be under way: 64.
const ASKING: usize = 1_000;

/// While it is set, nothing is applied, so nothing is answered.
static SHUT: AtomicBool = AtomicBool::new(false);

/// Shuts it, and opens it in the end, however that comes: a runtime waits for its machines.
struct Shut;

impl Shut {
    fn now() -> Self {
        SHUT.store(true, Ordering::Relaxed);
        Self
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        SHUT.store(false, Ordering::Relaxed);
    }
}

/// Counts, when the gate is open.
#[derive(Default)]
struct Gated(u64);

impl StateMachine for Gated {
    const NAME: &'static str = "test.gated";
    type Command = ();
    type Output = u64;
    type Query = ();
    type Answer = u64;
    type View = u64;

    fn apply(&mut self, _at: Position, (): ()) -> u64 {
        while SHUT.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        self.0 += 1;
        self.0
    }

    fn view(&self) -> u64 {
        self.0
    }

    fn query(view: &u64, (): ()) -> u64 {
        *view
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.0)
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.0 = from.value()?;
        Ok(())
    }
}

fn unresolved(told: Result<u64, ExecuteError>) -> Unresolved {
    match told {
        Err(ExecuteError::Unknown(unresolved)) => unresolved,
        other => panic!("nothing is applied: {other:?}"),
    }
}

/// Asks again until it is told more than that nobody knows.
async fn insist(group: &Group<Gated>, mut unknown: Unresolved, told_nothing: impl Fn()) {
    loop {
        match group.retry(unknown).await {
            Ok(_) => return,
            Err(ExecuteError::Unknown(again)) if again.can_retry() => unknown = again,
            Err(error) => panic!("{error}"),
        }
        told_nothing();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_ask_again_and_again_do_not_keep_out_the_others() {
    let config = Config {
        execute_timeout: TRIES,
        ..Config::default()
    };
    let members = group_at::<Gated>(vec![Place::MEMORY], &config).await;
    let group = &members[0].group;
    within("a first command", group.execute(()))
        .await
        .expect("applied");
    let shut = Shut::now();
    let first = join_all((0..ASKING).map(|_| group.execute(())));
    let first = within("all are told something", first).await;
    let (tell, mut told_again) = mpsc::channel(1);
    let insisting = first.into_iter().map(|told| {
        let (group, tell, unknown) = (group.clone(), tell.clone(), unresolved(told));
        tokio::spawn(async move {
            let told_nothing = || {
                let _ = tell.try_send(());
            };
            insist(&group, unknown, told_nothing).await;
        })
    });
    let insisting: Vec<_> = insisting.collect();
    // By then they are under way, as many as there is room for, and the others wait.
    let told = within("they ask again", told_again.recv()).await;
    told.expect("they go on");

    let asked = Instant::now();
    let told = join_all((0..ASKING).map(|_| group.execute(())));
    let told = within("new ones are told too", told).await;
    // Twice as long as promised; behind all that ask again it would be 15 times as long.
    let took = asked.elapsed();
    println!("new ones are told after {took:?}");
    assert!(took < 4 * TRIES, "new ones were told after {took:?}");
    let mut unknown = Vec::new();
    for told in told {
        match told {
            Err(ExecuteError::NotApplied(_)) => {}
            other => unknown.push(unresolved(other)),
        }
    }

    drop(shut);
    let applied = 1 + ASKING + unknown.len();
    for unknown in unknown {
        within("a retry", insist(group, unknown, || ())).await;
    }
    for insisting in insisting {
        within("all are resolved", insisting)
            .await
            .expect("no panic");
    }
    let count = within("a query", group.query(())).await.expect("read");
    assert_eq!(count, applied as u64, "each once");
}
