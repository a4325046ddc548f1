//! Members that claim to lead, and what the others make of it.

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;

use super::{entry, log_id};
use crate::{
    group::Group,
    identity::{GroupKey, MemberId},
    machine::{InvalidCommand, Position, Snapshot, SnapshotReader, StateMachine, encode},
    node::Node,
    raft::{Batch, Role, Types, Vote, replica::Replica},
};

const STUCK: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// It counts words, and takes no bad ones.
#[derive(Default)]
struct Choosy(u64);

impl StateMachine for Choosy {
    const NAME: &'static str = "test.choosy";
    const VALIDATES: bool = true;
    type Command = String;
    type Output = u64;
    type Query = ();
    type Answer = u64;
    type View = u64;

    fn validate(word: &String) -> Result<(), InvalidCommand> {
        if word == "bad" {
            return Err(InvalidCommand::new("a bad word"));
        }
        Ok(())
    }
    fn apply(&mut self, _: Position, _: String) -> u64 {
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

/// Three members that vote; the first leads.
async fn three() -> (Vec<Node>, Vec<Group<Choosy>>) {
    let (mut nodes, mut groups): (Vec<Node>, Vec<Group<Choosy>>) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let node = Node::in_memory().bind_loopback().open().await;
        let node = node.expect("loopback can be bound");
        let group = match groups.first() {
            None => node.create(GroupKey::generate(), Choosy::default()).await,
            Some(first) => Ok(
                soon("a join", node.join(&first.ticket(), Choosy::default()))
                    .await
                    .expect("the group is there"),
            ),
        };
        groups.push(group.expect("it can be founded"));
        nodes.push(node);
    }
    for group in &groups {
        let mut told = group.replica().watch();
        let vote = told.wait_for(|it| it.members.iter().filter(|it| it.settled_voter).count() == 3);
        soon("all vote", vote).await.expect("it runs");
    }
    assert_eq!(groups[0].replica().state().role, Role::Leader);
    (nodes, groups)
}

/// What a member would send as the leader of this term: a bad word.
fn bad(term: u64, from: MemberId) -> AppendEntriesRequest<Types> {
    let command = encode(&"bad").expect("encodes");
    let commands = Batch::Commands {
        session: 1,
        first_seq: 0,
        lowest_unanswered: 0,
        commands: vec![command],
    };
    append(term, from, commands.encode())
}

fn append(term: u64, from: MemberId, command: Bytes) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: Vote::new_committed(term, from),
        prev_log_id: Some(log_id(term, 100)),
        entries: vec![entry(term, 101, command)],
        leader_commit: None,
    }
}

async fn refused(at: &Arc<Replica>, request: &AppendEntriesRequest<Types>) {
    let before = at.state().invalid_commands;
    let valid = soon("an append is judged", at.validate_append(request)).await;
    valid.expect_err("a bad word was taken");
    assert_eq!(at.state().invalid_commands, before + 1, "it is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_sends_that_does_not_lead_has_the_leader_heard_on() {
    let (_nodes, groups) = three().await;
    let replicas: Vec<_> = groups.iter().map(|it| Arc::clone(it.replica())).collect();
    let state = replicas[0].state();
    for (at, liar) in [(1, 2), (2, 1)] {
        refused(&replicas[at], &bad(state.term, replicas[liar].member())).await;
    }
    // Neither follower takes it for the leader's: without one of them nothing is committed.
    let said = soon("a word", groups[0].execute("good".into())).await;
    assert_eq!(said.expect("a quorum is there"), 1);
    for replica in &replicas {
        let now = replica.state();
        assert_eq!((now.term, now.leader), (state.term, state.leader));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_to_a_term_far_ahead_shields_nobody() {
    let (_nodes, groups) = three().await;
    let replicas: Vec<_> = groups.iter().map(|it| Arc::clone(it.replica())).collect();
    let (term, leader) = (replicas[0].state().term, replicas[0].member());
    for follower in &replicas[1..] {
        refused(follower, &bad(u64::MAX / 4, leader)).await;
    }
    for follower in &replicas[1..] {
        refused(follower, &bad(term, leader)).await;
    }
    for follower in &replicas[1..] {
        let mut told = follower.watch();
        let another = told.wait_for(|it| it.leader.is_some_and(|it| it != leader));
        soon("another leads", another).await.expect("it runs");
    }
}
