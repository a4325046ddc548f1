//! Who is let in, who is refused, and what the error says.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use quorate::{
    GroupKey, GroupTicket, JoinError, Map, Node, OpenError, PeerAddr, PeerId, Role, Warning,
    config::Config,
};

use crate::{
    cluster::{Member, Place, below, copy, group_at, group_of, settled, temporary, views, within},
    ledger::{Ledger, assert_equal},
};

fn impatient() -> Config {
    Config { join_timeout: Duration::from_secs(4), ..Config::default() }
}

/// A socket that is bound and never answers, under the name of a peer that does not exist.
fn silent(number: u8) -> (UdpSocket, PeerAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let addr = socket.local_addr().expect("it is bound");
    (socket, PeerAddr::new(nobody(number), [addr]))
}

fn nobody(number: u8) -> PeerId {
    // Only a point of the curve can be dialled.
    PeerId::from_bytes(*iroh::SecretKey::from_bytes(&[number; 32]).public().as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_on_the_same_directory_is_refused() {
    let root = temporary();
    let place = below(&root, "a");
    let first = place.open(&Config::default()).await;
    let Place::Directory(directory) = place else { panic!("it is on disk") };
    let refused = Node::builder(&directory).bind_loopback().open().await;
    let error = refused.expect_err("it is in use");
    assert!(matches!(error, OpenError::Locked(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(directory.to_str().expect("text")) && text.contains("in use"), "{text}");
    // The first one is unharmed, and after its shutdown the place is free.
    let member = first.create(GroupKey::generate(), Ledger::default()).await.expect("founded");
    within("a write", member.execute("a".into())).await.expect("written");
    first.shutdown().await;
    let second = Node::builder(&directory).bind_loopback().open().await;
    second.expect("the directory is free").shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_a_newer_format_is_refused_by_name() {
    let root = temporary();
    let place = below(&root, "a");
    place.open(&Config::default()).await.shutdown().await;
    let Place::Directory(directory) = place else { panic!("it is on disk") };
    fs::write(directory.join("FORMAT"), "quorate store format 77\n").expect("written");
    let refused = Node::builder(&directory).bind_loopback().open().await;
    let error = refused.expect_err("it is newer");
    assert!(matches!(error, OpenError::Newer(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("77") && text.contains("newer version"), "{text}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_key_is_for_its_owner_only_and_names_the_node_for_good() {
    use std::os::unix::fs::PermissionsExt;
    let root = temporary();
    let place = below(&root, "a");
    let node = place.open(&Config::default()).await;
    let peer = node.peer_id();
    let Place::Directory(directory) = &place else { panic!("it is on disk") };
    let key = directory.join("node.key");
    let mode = || fs::metadata(&key).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    node.shutdown().await;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("loosened");
    let node = place.open(&Config::default()).await;
    assert_eq!(node.peer_id(), peer);
    assert_eq!(mode(), 0o600, "it is tightened again");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stays_at_its_port_and_its_name() {
    let root = temporary();
    for place in [below(&root, "a"), Place::MEMORY] {
        let member = Member::<Ledger>::found(place, &Config::default()).await;
        let (addr, id) = (member.node.addr(), member.id());
        assert!(!addr.addrs.is_empty());
        let back: Member<Ledger> = member.rest().await.start().await;
        assert_eq!(back.node.addr(), addr);
        assert_eq!(back.id(), id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_data_directory_stops() {
    let root = temporary();
    let places = ["a", "b", "c"].map(|it| below(&root, it)).to_vec();
    let mut members = group_at::<Ledger>(places, &Config::default()).await;
    let leader = settled(&members).await;
    within("a write", members[leader].group.execute("before".into())).await.expect("written");
    let original = members.remove((leader + 1) % 3);
    let Place::Directory(directory) = original.place.clone() else { panic!("it is on disk") };
    let resting = original.rest().await;
    let copied = root.path().join("copy");
    copy(&directory, &copied);

    let one: Member<Ledger> = resting.start().await;
    one.status_when("it is back", |it| it.leader.is_some()).await;
    let config = Config::default();
    let other = Place::Directory(copied).open(&config).await;
    assert_eq!(other.peer_id(), one.peer());
    let ticket = members[0].group.ticket();
    let joined = within("starting the copy", other.join(&ticket, Ledger::default())).await;
    let reason = match joined {
        Err(error) => error.to_string(),
        Ok(group) => {
            let other = Member { node: other, group, place: Place::MEMORY, config };
            let stopping = async {
                tokio::select! {
                    reason = one.stop_reason() => reason,
                    reason = other.stop_reason() => reason,
                }
            };
            within("one of the two stops", stopping).await
        }
    };
    assert!(reason.contains("was copied"), "{reason}");
    within("a write", members[1].group.execute("after".into())).await.expect("written");
    assert_equal(&views(&members).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rival_group_with_the_same_key_is_refused_on_both_sides() {
    let config = impatient();
    let key = GroupKey::generate();
    let nodes = [Place::MEMORY.open(&config).await, Place::MEMORY.open(&config).await];
    let first = nodes[0].create(key.clone(), Ledger::default()).await.expect("founded");
    let second = nodes[1].create(key, Ledger::default()).await.expect("founded as well");
    within("a write", first.execute("of the first".into())).await.expect("written");
    within("a write", second.execute("of the second".into())).await.expect("written");
    assert_eq!(first.id(), second.id(), "the key makes the id");
    assert_ne!(first.member(), second.member());

    // The second is started again, now with the first one's ticket.
    let ticket = first.ticket();
    let rival = Member { node: nodes[1].clone(), group: second, place: Place::MEMORY, config };
    let down = rival.rest().await;
    let node = down.place.open(&down.config).await;
    let says_so = |text: &str| text.contains("another group was founded with the same key");
    match within("joining the rival", node.join(&ticket, Ledger::default())).await {
        Err(error) => assert!(says_so(&error.to_string()), "{error}"),
        Ok(group) => {
            let rival = Member { node, group, place: down.place, config: down.config };
            let warned = |it: &quorate::Status| it.warnings.contains(&Warning::RivalGroup);
            rival.status_when("the rival is warned", warned).await;
        }
    }
    let first = Member {
        node: nodes[0].clone(),
        group: first,
        place: Place::MEMORY,
        config: impatient(),
    };
    let warned = |it: &quorate::Status| it.warnings.contains(&Warning::RivalGroup);
    first.status_when("the first is warned", warned).await;
    assert!(says_so(&Warning::RivalGroup.to_string()));
    assert!(first.group.bonds().is_empty());
    // It goes on as it was.
    within("a write", first.group.execute("on".into())).await.expect("written");
    assert_eq!(first.group.status().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_with_a_wrong_key_is_refused_without_a_hint() {
    let member = Member::<Ledger>::found(Place::MEMORY, &Config::default()).await;
    let wrong = GroupKey::generate();
    let id = wrong.group_id("test.ledger");
    let ticket = GroupTicket::new(wrong, id, vec![member.node.addr()]);
    let node = Place::MEMORY.open(&impatient()).await;
    let refused = within("joining", node.join(&ticket, Ledger::default())).await;
    let error = refused.expect_err("the key is wrong");
    let JoinError::NoAnswer { tried } = &error else { panic!("{error:?}") };
    assert_eq!(tried.len(), 1, "{tried:?}");
    assert_eq!(tried[0].0.peer, member.peer());
    println!("with a wrong key: {error}");
    assert!(!error.to_string().contains(&member.id().to_string()));
    assert!(member.group.bonds().is_empty());
    assert_eq!(member.group.status().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_through_dead_addresses_lists_them_all() {
    let key = GroupKey::generate();
    let id = key.group_id("test.ledger");
    let (_one, first) = silent(1);
    let (_two, second) = silent(2);
    let ticket = GroupTicket::new(key, id, vec![first.clone(), second.clone()]);
    let node = Place::MEMORY.open(&impatient()).await;
    let started = Instant::now();
    let refused = within("joining", node.join(&ticket, Ledger::default())).await;
    let error = refused.expect_err("nobody is there");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let JoinError::NoAnswer { tried } = &error else { panic!("{error:?}") };
    println!("with dead addresses only: {error}");
    for addr in [first, second] {
        assert!(tried.iter().any(|(it, _)| it.peer == addr.peer), "{tried:?}");
        let short = addr.peer.short().to_string();
        assert!(error.to_string().contains(&short), "{error} does not name {short}");
    }
    assert!(node.groups().is_empty(), "what did not come about is not listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_address_in_the_ticket_costs_nothing() {
    let member = Member::<Ledger>::found(Place::MEMORY, &Config::default()).await;
    let (_socket, dead) = silent(3);
    let living = member.node.addr();
    // The dead come first, and the living has a dead address besides its own.
    let mut addrs = dead.addrs.clone();
    addrs.extend(living.addrs.iter().copied());
    let living = PeerAddr::new(living.peer, addrs);
    let ticket = member.group.ticket();
    let ticket = GroupTicket::new(ticket.key().clone(), ticket.group(), vec![dead, living]);
    let node = Place::MEMORY.open(&impatient()).await;
    let started = Instant::now();
    let joined = within("joining", node.join(&ticket, Ledger::default())).await;
    let group = joined.expect("joined through the living address");
    println!("with one dead and one living address: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    within("a write", group.execute("a".into())).await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_found_nobody_succeeds_later() {
    let member = Member::<Ledger>::found(Place::MEMORY, &Config::default()).await;
    let ticket = member.group.ticket();
    let down = member.rest().await;
    let node = Place::MEMORY.open(&impatient()).await;
    let refused = within("joining", node.join(&ticket, Ledger::default())).await;
    assert!(matches!(refused, Err(JoinError::NoAnswer { .. })), "{refused:?}");
    let _member: Member<Ledger> = down.start().await;
    let joined = within("joining again", node.join(&ticket, Ledger::default())).await;
    let group = joined.expect("joined");
    within("a write", group.execute("a".into())).await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ticket_of_another_machine_is_refused_at_once() {
    let member = Member::<Ledger>::found(Place::MEMORY, &Config::default()).await;
    let node = Place::MEMORY.open(&Config::default()).await;
    let refused = node.join(&member.group.ticket(), Map::new()).await;
    let error = refused.expect_err("it is for a ledger");
    assert!(matches!(error, JoinError::OtherMachine { .. }), "{error:?}");
    assert!(error.to_string().contains("quorate.map"), "{error}");
    assert!(node.groups().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_goes_through_text_and_lets_a_node_in() {
    let members = group_of::<Ledger>(2).await;
    let text = members[1].group.ticket().expose();
    let ticket: GroupTicket = text.parse().expect("a ticket");
    assert_eq!(ticket.members().len(), 2);
    let third = Member::<Ledger>::join(Place::MEMORY, &Config::default(), &ticket).await;
    third.status_when("it votes", |it| it.role == Role::Follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_runs_once_on_a_node() {
    let members = group_of::<Ledger>(2).await;
    let ticket = members[0].group.ticket();
    for member in &members {
        let again = member.node.join(&ticket, Ledger::default()).await;
        assert!(matches!(again, Err(JoinError::AlreadyOpen)), "{again:?}");
    }
    let again = members[0].node.create(ticket.key().clone(), Ledger::default()).await;
    assert!(matches!(again, Err(quorate::CreateError::AlreadyOpen)), "{again:?}");
    within("a write", members[1].group.execute("a".into())).await.expect("written");
}
