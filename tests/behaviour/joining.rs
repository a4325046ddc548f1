//! Coming late, coming back after leaving, coming back with nothing.

use quorate::{Map, MapCommand, Role, config::Config};

use crate::{
    cluster::{
        Member, Place, Resting, below, group_at, group_of, settled, temporary, views, within,
    },
    ledger::{Ledger, assert_equal},
};

/// Takes a snapshot early and keeps next to nothing of the journal behind it.
fn snapshots_soon() -> Config {
    Config {
        snapshot_after_bytes: 8 * 1024,
        journal_entries_kept: 4,
        ..Config::default()
    }
}

/// Writes until the leader has put a snapshot in the place of its journal's beginning.
async fn write_past_a_snapshot(members: &[Member<Ledger>], named: &str) -> usize {
    let leader = settled(members).await;
    let group = &members[leader].group;
    let start = group.status().committed_index;
    let mut n = 0;
    let writing = async {
        // Raft drops what a snapshot covers some thousand entries at a time, and once no try to
        // send them to a member that is down is under way.
        while group.status().purged_index <= start {
            let command = format!("{named}/{n}/{}", "x".repeat(200));
            group.execute(command).await.expect("written");
            n += 1;
        }
    };
    within("a snapshot", writing).await;
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_joiner_catches_up_by_the_journal() {
    let mut members = group_of::<Map>(3).await;
    for n in 0..500 {
        let writer = &members[n % 3].group;
        let command = MapCommand::put(format!("key {n}"), vec![7; n]);
        within("a write", writer.execute(command))
            .await
            .expect("written");
    }
    let ticket = members[1].group.ticket();
    members.push(Member::join(Place::MEMORY, &Config::default(), &ticket).await);
    let views = views(&members).await;
    let first: Vec<_> = views[0].iter().collect();
    assert_eq!(first.len(), 500);
    for view in &views {
        assert!(view.iter().eq(first.iter().copied()), "the states differ");
    }
    let metrics = members[3].node.metrics();
    assert_eq!(metrics.snapshots_installed, 0);
    assert_eq!(metrics.commands_applied, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_joiner_catches_up_by_a_snapshot() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let config = snapshots_soon();
    let mut members = group_at::<Ledger>(places, &config).await;
    let written = write_past_a_snapshot(&members, "before").await;
    let ticket = members[1].group.ticket();
    members.push(Member::join(below(&root, "d"), &config, &ticket).await);
    let then = views(&members).await;
    assert_equal(&then);
    assert_eq!(then[3].len(), written);
    assert_eq!(members[3].node.metrics().snapshots_installed, 1);
    // It goes on from the snapshot, and its sessions are everybody's.
    for member in &members {
        within("a write", member.group.execute("after".into()))
            .await
            .expect("written");
    }
    let last = views(&members).await;
    assert_equal(&last);
    assert_eq!(last[3].len(), written + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_down_for_long_is_brought_up_by_a_snapshot() {
    let config = snapshots_soon();
    let mut members = group_at::<Ledger>(vec![Place::MEMORY; 3], &config).await;
    let leader = settled(&members).await;
    let down: Resting = members.remove((leader + 1) % 3).rest().await;
    let written = write_past_a_snapshot(&members, "meanwhile").await;
    members.push(down.start().await);
    let then = views(&members).await;
    assert_equal(&then);
    assert_eq!(then[2].len(), written);
    assert_eq!(members[2].node.metrics().snapshots_installed, 1);
    println!("{written} commands, most of them by a snapshot");

    // And all of them start again from snapshot and journal.
    for _ in 0..3 {
        let member: Member<Ledger> = members.remove(0).rest().await.start().await;
        members.push(member);
        settled(&members).await;
    }
    let last = views(&members).await;
    assert_equal(&last);
    assert_eq!(last[0], then[0]);
}

async fn leave_and_join_again(places: Vec<Place>) {
    let config = Config::default();
    let mut members = group_at::<Ledger>(places, &config).await;
    let leader = settled(&members).await;
    let leaving = members.remove((leader + 1) % 3);
    within("a write", leaving.group.execute("before".into()))
        .await
        .expect("written");
    let (old, peer) = (leaving.id(), leaving.peer());
    within("leaving", leaving.group.leave())
        .await
        .expect("left");
    assert!(leaving.node.groups().is_empty());
    let reason = leaving.stop_reason().await;
    assert!(reason.contains("left the group"), "{reason}");
    for member in &members {
        member
            .status_when("the group shrinks", |it| {
                it.members.iter().all(|m| m.member != old)
            })
            .await;
        within("a write", member.group.execute("meanwhile".into()))
            .await
            .expect("written");
    }
    // On the running node, and once more after a restart.
    let Member {
        node,
        config,
        place,
        ..
    } = leaving;
    let ticket = members[0].group.ticket();
    let again = within("joining again", node.join(&ticket, Ledger::default())).await;
    let again = Member {
        node,
        group: again.expect("joined"),
        place,
        config,
    };
    assert_ne!(again.id(), old, "a member id is never used twice");
    assert_eq!(again.peer(), peer);
    again
        .status_when("it votes again", |it| it.role == Role::Follower)
        .await;
    let member = again.id();
    let again: Member<Ledger> = again.rest().await.start().await;
    assert_eq!(again.id(), member, "a restart keeps the id");
    members.push(again);
    within("a write", members[2].group.execute("after".into()))
        .await
        .expect("written");
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[2].len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_and_joins_again_on_the_same_directory() {
    let root = temporary();
    leave_and_join_again(["a", "b", "c"].map(|it| below(&root, it)).to_vec()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_and_joins_again_in_memory() {
    leave_and_join_again(vec![Place::MEMORY; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_comes_back_as_a_new_member() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Ledger>(places, &Config::default()).await;
    let leader = settled(&members).await;
    within("a write", members[leader].group.execute("before".into()))
        .await
        .expect("written");
    let lost = members.remove((leader + 1) % 3);
    let (old_id, old_peer) = (lost.id(), lost.peer());
    let Place::Directory(directory) = lost.place.clone() else {
        panic!("it is on disk")
    };
    let ticket = lost.rest().await.ticket;
    std::fs::remove_dir_all(&directory).expect("wiped");

    let config = Config::default();
    let back = Member::<Ledger>::join(Place::Directory(directory), &config, &ticket).await;
    assert_ne!(back.id(), old_id);
    assert_ne!(back.peer(), old_peer, "the secret key was wiped as well");
    // Its former self still counts, until it is removed.
    within("removing", back.group.remove(old_id))
        .await
        .expect("removed");
    members.push(back);
    for member in &members {
        member
            .status_when("three members, all voting", |it| {
                crate::cluster::voters(it) == 3 && it.members.len() == 3
            })
            .await;
    }
    within("a write", members[2].group.execute("after".into()))
        .await
        .expect("written");
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[2].len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_data_and_kept_its_key_replaces_its_former_self() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Ledger>(places, &Config::default()).await;
    let leader = settled(&members).await;
    within("a write", members[leader].group.execute("before".into()))
        .await
        .expect("written");
    let lost = members.remove((leader + 1) % 3);
    let (old_id, peer) = (lost.id(), lost.peer());
    let Place::Directory(directory) = lost.place.clone() else {
        panic!("it is on disk")
    };
    let resting = lost.rest().await;
    for part in ["db", "snapshots"] {
        std::fs::remove_dir_all(directory.join(part)).expect("wiped");
    }
    std::fs::remove_file(directory.join("FORMAT")).expect("wiped");

    let back: Member<Ledger> = resting.start().await;
    assert_eq!(back.peer(), peer);
    assert_ne!(back.id(), old_id);
    members.push(back);
    let new_id = members[2].id();
    for member in &members {
        member
            .status_when("the new member votes in the place of the old", |it| {
                let votes = it.members.iter().any(|m| m.member == new_id && m.voter);
                votes && it.members.iter().all(|m| m.member != old_id)
            })
            .await;
    }
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[2].len(), 1);
}
