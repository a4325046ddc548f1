//! Who votes, who is removed, who leaves.

use quorate::{
    GroupKey, MembershipChangeError, Role, Warning,
    config::Config,
};

use crate::{
    cluster::{Member, Place, group_at, group_of, settled, views, voters, within},
    ledger::{Ledger, assert_equal},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_grow_one_by_one_to_three_then_in_pairs_up_to_five() {
    let config = Config::default();
    let mut members = vec![Member::<Ledger>::found(Place::MEMORY, &config).await];
    for (count, voting) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5)] {
        if count > 1 {
            let ticket = members[(count - 1) / 2].group.ticket();
            members.push(Member::join(Place::MEMORY, &config, &ticket).await);
        }
        for member in &members {
            let what = format!("{voting} of {count} vote");
            let status = member
                .status_when(&what, |it| it.members.len() == count && voters(it) == voting)
                .await;
            assert_eq!(status.warnings.contains(&Warning::FewVoters), voting < 3);
        }
        if voting < count {
            // Long enough for the leader to look some times whether there is more to promote.
            for member in &members {
                within("ready", member.group.ready()).await.expect("it runs");
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            let status = members[0].group.status();
            assert_eq!(voters(&status), voting, "{count} members");
        }
    }
    let learners = members.iter().filter(|it| it.group.status().role == Role::Learner).count();
    assert_eq!(learners, 2);
    // Learners take commands and answer as everybody does.
    for member in &members {
        within("a write", member.group.execute("here".into())).await.expect("written");
    }
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[6].len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_removed_and_the_others_go_on() {
    let mut members = group_of::<Ledger>(3).await;
    let leader = settled(&members).await;
    let dead = members.remove((leader + 1) % 3);
    let id = dead.id();
    dead.node.shutdown().await;
    within("removing", members[0].group.remove(id)).await.expect("removed");
    for member in &members {
        let gone = |it: &quorate::Status| it.members.len() == 2 && voters(it) == 2;
        let status = member.status_when("two are left", gone).await;
        assert!(status.warnings.contains(&Warning::FewVoters));
    }
    within("a second time", members[0].group.remove(id)).await.expect("nothing to do");
    within("a write", members[1].group.execute("on".into())).await.expect("written");
    assert_equal(&views(&members).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_member_that_is_removed_stops_and_says_why() {
    let mut members = group_of::<Ledger>(3).await;
    let leader = settled(&members).await;
    let removed = members.remove((leader + 1) % 3);
    let asked = within("removing", members[0].group.remove(removed.id())).await;
    asked.expect("removed");
    let reason = removed.stop_reason().await;
    assert!(reason.contains("removed"), "{reason}");
    let refused = within("a write there", removed.group.execute("no".into())).await;
    assert!(matches!(refused, Err(quorate::ExecuteError::Stopped(_))), "{refused:?}");
    within("a write", members[1].group.execute("on".into())).await.expect("written");
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[0].len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_itself_is_removed_on_request() {
    let mut members = group_of::<Ledger>(3).await;
    let leader = settled(&members).await;
    let old = members.remove(leader);
    let asked = within("removing the leader", members[0].group.remove(old.id())).await;
    asked.expect("removed");
    let reason = old.stop_reason().await;
    assert!(reason.contains("removed"), "{reason}");
    settled(&members).await;
    within("a write", members[1].group.execute("on".into())).await.expect("written");
    assert_equal(&views(&members).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_that_comes_back_is_refused_and_says_so() {
    let mut members = group_of::<Ledger>(3).await;
    let leader = settled(&members).await;
    let gone = members.remove((leader + 1) % 3);
    let id = gone.id();
    let down = gone.rest().await;
    within("removing", members[0].group.remove(id)).await.expect("removed");

    let node = down.place.open(&down.config).await;
    let reason = match within("coming back", node.join(&down.ticket, Ledger::default())).await {
        Err(error) => error.to_string(),
        Ok(group) => {
            let back = Member { node, group, place: down.place, config: down.config };
            assert_eq!(back.id(), id, "it resumes what its directory holds");
            let reason = back.stop_reason().await;
            // It leaves here as well, and is free to come as somebody new.
            within("leaving", back.group.leave()).await.expect("left");
            let ticket = members[0].group.ticket();
            let joined = within("joining anew", back.node.join(&ticket, Ledger::default())).await;
            let group = joined.expect("joined");
            assert_ne!(group.member(), id);
            within("a write", group.execute("as somebody new".into())).await.expect("written");
            reason
        }
    };
    assert!(reason.contains("removed from the group"), "{reason}");
    assert!(members[0].group.status().members.iter().all(|it| it.member != id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_learner_that_comes_back_is_refused_and_says_so() {
    let config = Config { max_voters: 1, ..Config::default() };
    let mut members = group_at::<Ledger>(vec![Place::MEMORY; 3], &config).await;
    let gone = members.remove(1);
    assert_eq!(gone.group.status().role, Role::Learner);
    let id = gone.id();
    let down = gone.rest().await;
    within("removing", members[0].group.remove(id)).await.expect("removed");
    let node = down.place.open(&down.config).await;
    let reason = match within("coming back", node.join(&down.ticket, Ledger::default())).await {
        Err(error) => error.to_string(),
        Ok(group) => {
            Member { node, group, place: down.place, config: down.config }.stop_reason().await
        }
    };
    assert!(reason.contains("removed from the group"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_leaves_and_the_others_go_on() {
    let mut members = group_of::<Ledger>(3).await;
    let leader = settled(&members).await;
    let leaving = members.remove(leader);
    within("a write", leaving.group.execute("before".into())).await.expect("written");
    within("leaving", leaving.group.leave()).await.expect("left");
    for member in &members {
        member.status_when("two are left", |it| it.members.len() == 2).await;
    }
    settled(&members).await;
    within("a write", members[0].group.execute("after".into())).await.expect("written");
    let views = views(&members).await;
    assert_equal(&views);
    assert_eq!(views[0].len(), 2);
    // A second leaves a single voter, which still acknowledges.
    let leader = settled(&members).await;
    let leaving = members.remove(leader);
    within("leaving", leaving.group.leave()).await.expect("left");
    members[0].status_when("one is left, and leads", |it| it.role == Role::Leader).await;
    within("a write", members[0].group.execute("alone".into())).await.expect("written");
    let status = members[0].group.status();
    assert!(status.warnings.contains(&Warning::FewVoters));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_takes_the_group_with_it() {
    let node = Place::MEMORY.open(&Config::default()).await;
    let key = GroupKey::generate();
    let founded = within("founding", node.create(key.clone(), Ledger::default())).await;
    let group = founded.expect("founded");
    within("a write", group.execute("gone soon".into())).await.expect("written");
    let member = group.member();
    match within("removing", group.remove(member)).await {
        Err(MembershipChangeError::Refused { why }) => assert!(why.contains("leave"), "{why}"),
        other => panic!("the last voter was removed: {other:?}"),
    }
    within("leaving", group.leave()).await.expect("left");
    assert!(node.groups().is_empty());
    // The key is free again: another group, which knows nothing of the former.
    let founded = within("founding anew", node.create(key, Ledger::default())).await;
    let group = founded.expect("founded");
    assert_ne!(group.member(), member);
    let entries = within("a read", group.query(())).await.expect("answered");
    assert!(entries.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_changed_is_refused_in_words() {
    let members = group_of::<Ledger>(2).await;
    let stranger = Member::<Ledger>::found(Place::MEMORY, &Config::default()).await;
    for member in &members {
        match within("removing a stranger", member.group.remove(stranger.id())).await {
            Err(MembershipChangeError::Refused { why }) => {
                assert!(why.contains("no such member"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        match within("a transfer", member.group.transfer_leadership(stranger.id())).await {
            Err(MembershipChangeError::Refused { why }) => assert!(why.contains("voter"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
