//! A machine that keeps its state in the node's store: restarts, laggards, faults, exactly once.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use quorate::{
    ExecuteError, Group, Order, Position, Snapshot, SnapshotReader, StateMachine, Table, TableView,
    config::Config,
};

use crate::cluster::{Member, Place, Resting, below, group_at, settled, temporary, views, within};

/// Counts how often each key was named; `clear` deletes what is in a range.
#[derive(Default)]
struct Counts {
    table: Table,
}

impl StateMachine for Counts {
    const NAME: &'static str = "test.counts";
    const STORED: bool = true;
    type Command = String;
    /// How often it now was.
    type Output = u64;
    type Query = String;
    type Answer = u64;
    type View = TableView;

    fn open(&mut self, table: Table) {
        self.table = table;
    }

    fn apply(&mut self, _: Position, key: String) -> u64 {
        if let Some((from, to)) = key
            .strip_prefix("clear ")
            .and_then(|it| it.split_once(".."))
        {
            self.table.delete_range(from.as_bytes(), to.as_bytes());
            return 0;
        }
        let count = number(self.table.get(key.as_bytes()).as_deref()) + 1;
        self.table.put(key.as_bytes(), count.to_be_bytes().to_vec());
        count
    }

    fn view(&self) -> TableView {
        self.table.view()
    }

    fn query(view: &TableView, key: String) -> u64 {
        let read = view.read(|moment| moment.get(key.as_bytes()));
        number(read.expect("open").expect("sound").as_deref())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of_table(&self.table)
    }

    fn restore(&mut self, from: SnapshotReader<'_>) -> io::Result<()> {
        self.table.restore(from)
    }
}

fn number(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(0, |it| u64::from_be_bytes(it.try_into().expect("8 bytes")))
}

type Model = BTreeMap<String, u64>;

fn held(view: &TableView) -> Model {
    let read = view.read(|moment| {
        let mut held = Model::new();
        let mut keep = |key: &[u8], value: &[u8]| {
            held.insert(
                String::from_utf8_lossy(key).into_owned(),
                number(Some(value)),
            );
            ControlFlow::Continue(())
        };
        moment
            .scan(b"", b"", Order::Ascending, &mut keep)
            .map(|()| held)
    });
    read.expect("open").expect("sound")
}

async fn assert_all_hold(members: &[Member<Counts>], model: &Model) {
    for view in views(members).await {
        assert!(held(&view) == *model, "a member differs from the model");
    }
}

async fn write(group: &Group<Counts>, key: &str, model: &mut Model) {
    let count = within("a write", group.execute(key.to_owned()))
        .await
        .expect("written");
    let expected = model.entry(key.to_owned()).or_default();
    *expected += 1;
    assert_eq!(count, *expected, "{key}");
}

async fn restart_one_then_all(places: Vec<Place>) {
    let mut members = group_at::<Counts>(places, &Config::default()).await;
    let mut model = Model::new();
    for n in 0..40 {
        write(&members[n % 3].group, &format!("key {}", n % 7), &mut model).await;
    }
    let clear = "clear key 2..key 4".to_owned();
    within("a clear", members[1].group.execute(clear))
        .await
        .expect("written");
    model.retain(|key, _| !("key 2".."key 4").contains(&key.as_str()));
    assert_all_hold(&members, &model).await;
    for _ in 0..3 {
        let back: Member<Counts> = members.remove(0).rest().await.start().await;
        within("it has caught up", back.group.ready())
            .await
            .expect("it runs");
        let applied = back.node.metrics().commands_applied;
        assert_eq!(applied, 0, "what was applied before is applied again");
        members.push(back);
        write(&members[2].group, "key 3", &mut model).await;
        assert_all_hold(&members, &model).await;
    }
    let mut resting = Vec::new();
    for member in members {
        resting.push(member.rest().await);
    }
    let starting = resting.into_iter().map(Resting::start);
    let members: Vec<Member<Counts>> = join_all(starting).await;
    settled(&members).await;
    assert_all_hold(&members, &model).await;
    for member in &members {
        let applied = member.node.metrics().commands_applied;
        assert_eq!(applied, 0, "what was applied before is applied again");
    }
    write(&members[1].group, "key 0", &mut model).await;
    let asked = members[2].group.query("key 0".into());
    let answer = within("a query", asked).await.expect("answered");
    assert_eq!(answer, model["key 0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_on_disk_is_there_after_restarts_and_nothing_is_applied_again() {
    let root = temporary();
    restart_one_then_all(["a", "b", "c"].map(|it| below(&root, it)).to_vec()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_in_memory_is_there_after_restarts_and_nothing_is_applied_again() {
    restart_one_then_all(vec![Place::MEMORY; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_with_members_that_rebuilt_it() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Counts>(places, &Config::default()).await;
    let mut model = Model::new();
    // The session of the first member, which stays up.
    for n in 0..20 {
        write(&members[0].group, &format!("key {}", n % 3), &mut model).await;
    }
    for _ in 0..2 {
        let back: Member<Counts> = members.remove(1).rest().await.start().await;
        within("it has caught up", back.group.ready())
            .await
            .expect("it runs");
        members.push(back);
        // Whoever has lost the session answers that it expired, and does not apply this.
        write(&members[0].group, "key 1", &mut model).await;
    }
    let leader = members[1].id();
    let moved = members[0].group.transfer_leadership(leader);
    within("a transfer", moved).await.expect("moved");
    for n in 0..20 {
        write(&members[0].group, &format!("key {}", n % 3), &mut model).await;
    }
    assert_all_hold(&members, &model).await;
}

/// Writes keys that no other does, each until it is known to be applied; gives how many.
async fn insist(group: Group<Counts>, who: usize, done: Arc<AtomicBool>) -> usize {
    let mut n = 0;
    while !done.load(Relaxed) {
        let key = format!("{who}/{n:06}");
        let mut outcome = group.execute(key.clone()).await;
        let count = loop {
            outcome = match outcome {
                Ok(count) => break count,
                Err(ExecuteError::NotApplied(_)) => group.execute(key.clone()).await,
                Err(ExecuteError::Unknown(unknown)) => group.retry(unknown).await,
                Err(error) => panic!("{key}: {error}"),
            };
        };
        assert_eq!(count, 1, "{key} was applied before");
        n += 1;
    }
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_is_applied_once_while_the_others_restart() {
    // So short that many an outcome is unknown, and is asked for again of who has restarted.
    let config = Config {
        execute_timeout: Duration::from_millis(20),
        ..Config::default()
    };
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Counts>(places, &config).await;
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|who| tokio::spawn(insist(members[0].group.clone(), who, Arc::clone(&done))))
        .collect();
    for _ in 0..4 {
        let back: Member<Counts> = members.remove(1).rest().await.start().await;
        within("it has caught up", back.group.ready())
            .await
            .expect("it runs");
        members.push(back);
    }
    done.store(true, Relaxed);
    let mut model = Model::new();
    for (who, written) in within("the clients end", join_all(clients))
        .await
        .into_iter()
        .enumerate()
    {
        let keys = 0..written.expect("no panic");
        model.extend(keys.map(|n| (format!("{who}/{n:06}"), 1)));
    }
    println!("{} commands, each once, over 4 restarts", model.len());
    assert!(model.len() > 50, "too little to show anything");
    assert_all_hold(&members, &model).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_too_long_gets_the_table_as_a_snapshot() {
    let config = Config {
        snapshot_after_bytes: 8 * 1024,
        journal_entries_kept: 8,
        ..Config::default()
    };
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Counts>(places, &config).await;
    let mut model = Model::new();
    for n in 0..50 {
        write(&members[n % 3].group, &format!("before {n}"), &mut model).await;
    }
    let away = members.remove(1).rest().await;
    let last = members[0].group.status().applied.index;
    let clear = "clear before 1..before 2".to_owned();
    within("a clear", members[0].group.execute(clear))
        .await
        .expect("written");
    model.retain(|key, _| !("before 1".."before 2").contains(&key.as_str()));
    let mut n = 0;
    // One command an entry: openraft purges by the thousand entries.
    while members
        .iter()
        .any(|it| it.group.status().purged_index <= last)
    {
        write(&members[0].group, &format!("while away {n}"), &mut model).await;
        n += 1;
    }
    let back: Member<Counts> = away.start().await;
    within("it has caught up", back.group.ready())
        .await
        .expect("it runs");
    assert!(
        back.node.metrics().snapshots_installed >= 1,
        "by the journal"
    );
    members.push(back);
    assert_all_hold(&members, &model).await;
    // And what was restored is what it has after a restart.
    let back: Member<Counts> = members.remove(2).rest().await.start().await;
    members.push(back);
    write(&members[2].group, "last", &mut model).await;
    assert_all_hold(&members, &model).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_of_a_closed_node_says_so() {
    let member = Member::<Counts>::found(Place::MEMORY, &Config::default()).await;
    write(&member.group, "k", &mut Model::new()).await;
    let view = member.group.view().1;
    assert_eq!(held(&view).len(), 1);
    let applied = view.read(|moment| moment.applied()).expect("open");
    assert!(applied >= member.group.view().0);
    within("the shutdown", member.node.shutdown()).await;
    assert!(view.read(|_| ()).is_err());
}
