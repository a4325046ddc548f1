//! Bonds are lost and found: cut links, restarts, silence, departure, shutdown.

use std::time::Instant;

use super::*;
use crate::bond::BondId;

/// Waits until there is another bond with that member than this one.
async fn rebonded(me: &Member, other: &Member, old: BondId) -> Bond {
    let found = async {
        let mut bonds = me.mesh.bonds();
        loop {
            match me.mesh.bond_to(other.id()) {
                Some(bond) if bond.id() != old => return bond,
                _ => bonds.changed().await,
            };
        }
    };
    soon("a new bond", found).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_link_is_dialled_again() {
    let (one, two, ours, theirs) = pair(&GroupKey::generate()).await;
    for link in one.node.links.all() {
        link.connection.close(99, "cut by the test");
    }
    let why = soon("the end", theirs.terminated()).await;
    assert!(matches!(why, TerminationReason::LinkLost(_)), "{why}");
    let ours = rebonded(&one, &two, ours.id()).await;
    let theirs = rebonded(&two, &one, theirs.id()).await;
    assert_eq!(ours.id(), theirs.id());
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_bond_tells_its_reason_and_another_is_formed() {
    let (one, two, ours, theirs) = pair(&GroupKey::generate()).await;
    ours.close("for a test");
    let (here, there) = tokio::join!(
        soon("the end", ours.terminated()),
        soon("the end", theirs.terminated())
    );
    assert_eq!(here, TerminationReason::Closed("for a test".into()));
    assert_eq!(there, TerminationReason::ClosedByPeer("for a test".into()));
    assert!(ours.is_terminated());
    rebonded(&one, &two, ours.id()).await;
    assert_eq!(one.node.links.count(), 1, "the link outlives its bond");
    one.shut().await;
    two.shut().await;
}

/// The old process dies without a word; the new one has its key and its port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_replaces_its_link_at_once() {
    let key = GroupKey::generate();
    let one = Member::start(&key, vec![]).await;
    // A runtime of its own, so that it can be killed.
    let doomed = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (known, its_key) = (vec![one.addr()], key.clone());
    let two = doomed.spawn(async move { Member::start(&its_key, known).await });
    let two = two.await.expect("started");
    let old = one.bonded(&two).await;
    let (secret, port, member) = (two.node.secret, two.node.port(), two.id());
    doomed.shutdown_background();
    two.node.links.abandon();
    drop(two);
    let killed = Instant::now();
    let node = Node::start_as(secret, port, CALM).await;
    let two = Member::with(node, &key, Mock::new(member), vec![one.addr()]);
    let new = rebonded(&one, &two, old.id()).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(old.is_terminated());
    assert_eq!(new.id(), two.bonded(&one).await.id());
    let one_link = async {
        while one.node.links.count() != 1 {
            one.mesh.bonds().changed().now_or_never();
            yielded().await;
        }
    };
    soon("one link", one_link).await;
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_another_member_id_is_another_bond() {
    let key = GroupKey::generate();
    let (one, two, old, _) = pair(&key).await;
    let (secret, port) = (two.node.secret, two.node.port());
    two.shut().await;
    drop(two);
    let node = Node::start_as(secret, port, CALM).await;
    let two = Member::on(node, &key, vec![one.addr()]);
    let new = one.bonded(&two).await;
    assert!(old.is_terminated());
    assert_eq!(old.peer(), new.peer());
    assert_ne!(old.member(), new.member());
    assert!(one.mesh.bond_to(old.member()).is_none());
    one.shut().await;
    two.shut().await;
}

/// The socket lives, the Raft core does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_peer_is_silent_and_then_heard_again() {
    let key = GroupKey::generate();
    let quick = Timing {
        heartbeats_missed: 3,
        ..CALM
    };
    let one = Member::on(Node::start(quick).await, &key, vec![]);
    let two = Member::start(&key, vec![one.addr()]).await;
    let bond = one.bonded(&two).await;
    two.mock.alive.send_replace(false);
    let silent = Note::Silent(two.peer());
    one.mock
        .noted("silent", |notes| notes.last() == Some(&silent))
        .await;
    assert!(bond.is_silent() && !bond.is_terminated());
    // The silence has a length, which is none of the heartbeats that were missed before.
    let silent_for = bond.silent_for().expect("it is silent");
    tokio::time::sleep(quick.heartbeat).await;
    assert!(bond.silent_for() >= Some(silent_for + quick.heartbeat));
    assert!(bond.silent_for() < Some(bond.age()));
    two.mock.alive.send_replace(true);
    let heard = Note::Heard(two.peer());
    one.mock
        .noted("heard", |notes| notes.last() == Some(&heard))
        .await;
    assert_eq!(bond.silent_for(), None);
    assert_eq!(one.mock.count(|note| *note == silent), 1, "told once");
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bond_that_stays_silent_ends_and_is_dialled_again() {
    let key = GroupKey::generate();
    let quick = Timing {
        bond_timeout: Duration::from_millis(1_500),
        ..CALM
    };
    let one = Member::on(Node::start(quick).await, &key, vec![]);
    let two = Member::start(&key, vec![one.addr()]).await;
    let bond = one.bonded(&two).await;
    two.mock.alive.send_replace(false);
    assert_eq!(
        soon("its end", bond.terminated()).await,
        TerminationReason::Silence
    );
    two.mock.alive.send_replace(true);
    rebonded(&one, &two, bond.id()).await;
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_departure_is_heard_before_the_node_goes() {
    let (one, two, ours, _) = pair(&GroupKey::generate()).await;
    soon("the departure", two.mesh.depart()).await;
    assert_eq!(
        one.mock.count(|note| *note == Note::Departed(two.peer())),
        1
    );
    assert_eq!(two.mock.count(|note| matches!(note, Note::Departed(_))), 0);
    assert!(!ours.is_terminated(), "it ends with the node, not before");
    let gone = Instant::now();
    two.shut().await;
    soon("its end", ours.terminated()).await;
    assert!(
        gone.elapsed() < Duration::from_secs(2),
        "{:?}",
        gone.elapsed()
    );
    one.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rival_genesis_is_refused_and_both_are_told() {
    let key = GroupKey::generate();
    let founded = || {
        let mut mock = Mock::new(MemberId::mint());
        mock.introduction.genesis = Some(genesis());
        mock
    };
    let one = Member::with(Node::start(CALM).await, &key, founded(), vec![]);
    let known = vec![one.addr()];
    let two = Member::with(Node::start(CALM).await, &key, founded(), known);
    for (me, other) in [(&one, &two), (&two, &one)] {
        let mut refusals = me.mesh.refusals();
        let told = soon("a refusal", refusals.wait_for(Option::is_some))
            .await
            .expect("lives");
        assert_eq!(*told, Some((other.peer(), Refusal::OtherGenesis)));
    }
    let said = async {
        while two.mesh.dial_errors().is_empty() {
            yielded().await;
        }
    };
    soon("an error", said).await;
    let errors = two.mesh.dial_errors();
    assert!(errors[0].1.contains("same key"), "{errors:?}");
    assert!(one.mesh.bonds().is_empty() && two.mesh.bonds().is_empty());
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_peer_is_not_dialled_again() {
    let (one, two, ours, _) = pair(&GroupKey::generate()).await;
    one.mesh.forget(two.peer());
    two.mesh.forget(one.peer());
    ours.close("no longer wanted");
    let ended = |note: &Note| matches!(note, Note::Ended(..));
    one.mock
        .noted("ended", |notes| notes.iter().any(ended))
        .await;
    two.mock
        .noted("ended", |notes| notes.iter().any(ended))
        .await;
    // Longer than the first pauses between two dials.
    tokio::time::sleep(Timing::LAN.redial_min * 6).await;
    assert!(one.mesh.bonds().is_empty() && two.mesh.bonds().is_empty());
    one.mesh.learn(two.addr());
    one.bonded(&two).await;
    one.shut().await;
    two.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_leaves_nothing() {
    let (one, two, ours, theirs) = pair(&GroupKey::generate()).await;
    ours.request(Lane::Vote, "x".into())
        .await
        .expect("answered");
    theirs
        .request(Lane::Forward, "x".into())
        .await
        .expect("answered");
    let stream = ours.open_stream(StreamKind::Append).await.expect("opened");
    let told = Instant::now();
    one.shut().await;
    soon("its end", theirs.terminated()).await;
    assert!(
        told.elapsed() < Duration::from_secs(2),
        "{:?}",
        told.elapsed()
    );
    two.shut().await;
    drop(stream);
    for member in [&one, &two] {
        assert_eq!(member.mesh.0.tasks(), 0, "the group's tasks");
        assert_eq!(member.node.links.tasks(), 0, "the links' tasks");
        assert_eq!(member.node.links.count(), 0);
        assert!(member.mesh.bonds().is_empty());
        let counted = member.node.counters.read();
        assert_eq!(counted.links_opened, counted.links_closed);
        assert_eq!((counted.bonds_formed, counted.bonds_ended), (1, 1));
    }
    // Once more is no harm, and nobody is let in any more.
    one.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_group_is_unknown_and_the_others_live_on() {
    let (first, second) = (GroupKey::generate(), GroupKey::generate());
    let (one, two, ours, theirs) = pair(&first).await;
    let mocks = [(); 2].map(|()| Arc::new(Mock::new(MemberId::mint())));
    let here = one
        .node
        .open(&second, Arc::clone(&mocks[0]), vec![two.addr()]);
    let there = two
        .node
        .open(&second, Arc::clone(&mocks[1]), vec![one.addr()]);
    let formed = |notes: &Vector<Note>| !notes.is_empty();
    mocks[0].noted("formed", formed).await;
    mocks[1].noted("formed", formed).await;
    here.close("the group is closed").await;
    let ended = Note::Ended(
        one.peer(),
        TerminationReason::ClosedByPeer("the group is closed".into()),
    );
    mocks[1]
        .noted("ended", |notes| notes.contains(&ended))
        .await;
    let refused = async {
        while there.dial_errors().is_empty() {
            yielded().await;
        }
    };
    soon("a refusal", refused).await;
    assert!(!ours.is_terminated() && !theirs.is_terminated());
    assert!(there.bonds().is_empty() && here.bonds().is_empty());
    one.shut().await;
    two.shut().await;
}
