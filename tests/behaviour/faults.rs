//! A machine that panics: what stops, what it says, and what goes on.

use std::io;

use quorate::{
    ExecuteError, Group, GroupKey, Map, MapCommand, Node, Position, Snapshot, SnapshotReader,
    StateMachine, config::Config,
};

use crate::cluster::{Member, Place, below, group_at, temporary, within};

/// Counts, and panics when it is told to.
#[derive(Default)]
struct Brittle {
    count: u64,
}

impl StateMachine for Brittle {
    const NAME: &'static str = "test.brittle";
    type Command = bool;
    type Output = u64;
    type Query = ();
    type Answer = u64;
    type View = u64;

    fn apply(&mut self, _at: Position, breaks: bool) -> u64 {
        assert!(!breaks, "told to break");
        self.count += 1;
        self.count
    }

    fn view(&self) -> u64 {
        self.count
    }

    fn query(view: &u64, (): ()) -> u64 {
        *view
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.count)
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.count = from.value()?;
        Ok(())
    }
}

fn says_so(reason: &str) {
    for part in ["test.brittle", "panicked", "told to break", "restart"] {
        assert!(reason.contains(part), "{reason:?} does not say {part:?}");
    }
}

async fn other_group(nodes: &[Node]) -> Vec<Group<Map>> {
    let founded = nodes[0].create(GroupKey::generate(), Map::new());
    let mut groups = vec![within("founding", founded).await.expect("founded")];
    for node in &nodes[1..] {
        let ticket = groups[0].ticket();
        let joined = within("joining", node.join(&ticket, Map::new())).await;
        groups.push(joined.expect("joined"));
    }
    groups
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_apply_stops_that_group_on_every_member_and_nothing_else() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let config = Config::default();
    let members = group_at::<Brittle>(places.clone(), &config).await;
    let nodes: Vec<Node> = members.iter().map(|it| it.node.clone()).collect();
    let others = other_group(&nodes).await;
    for member in &members {
        within("a write", member.group.execute(false)).await.expect("written");
    }
    let broken = within("the command that breaks", members[1].group.execute(true)).await;
    let fate = broken.expect_err("no output");
    assert!(
        matches!(fate, ExecuteError::Unknown(_) | ExecuteError::Stopped(_)),
        "it is in the journal for good, so never `NotApplied`: {fate:?}"
    );
    println!("who asked for it is told: {fate}");
    for member in &members {
        says_so(&member.stop_reason().await);
        let refused = within("a write there", member.group.execute(false)).await;
        match refused {
            Err(ExecuteError::Stopped(stopped)) => says_so(stopped.reason()),
            other => panic!("{other:?}"),
        }
        assert_eq!(member.group.query_local(()), 3, "the state before it is still shown");
    }
    for (number, group) in others.iter().enumerate() {
        let write = group.execute(MapCommand::put(format!("{number}"), "on"));
        within("the other group goes on", write).await.expect("written");
    }

    // It comes again at the restart, on each member.
    let ticket = members[0].group.ticket();
    for node in &nodes {
        within("a shutdown", node.shutdown()).await;
    }
    drop((members, others, nodes));
    for place in places {
        let node = place.open(&config).await;
        match within("the restart", node.join(&ticket, Brittle::default())).await {
            Err(error) => says_so(&error.to_string()),
            Ok(group) => {
                let member = Member { node, group, place, config: config.clone() };
                says_so(&member.stop_reason().await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_query_reaches_only_who_asked() {
    #[derive(Default)]
    struct Touchy;

    impl StateMachine for Touchy {
        const NAME: &'static str = "test.touchy";
        type Command = ();
        type Output = ();
        type Query = bool;
        type Answer = ();
        type View = ();

        fn apply(&mut self, _at: Position, (): ()) {}

        fn view(&self) {}

        fn query((): &(), breaks: bool) {
            assert!(!breaks, "told to break");
        }

        fn snapshot(&self) -> Snapshot {
            Snapshot::of(())
        }

        fn restore(&mut self, _from: SnapshotReader<'_>) -> io::Result<()> {
            Ok(())
        }
    }

    let member = Member::<Touchy>::found(Place::MEMORY, &Config::default()).await;
    let asked = tokio::spawn(member.group.query(true));
    let panicked = within("the query", asked).await.expect_err("it panics");
    assert!(panicked.is_panic());
    within("a query", member.group.query(false)).await.expect("answered");
    within("a write", member.group.execute(())).await.expect("written");
}
