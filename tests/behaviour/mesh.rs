//! The mesh: who is bonded with whom, over how many connections.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate::{GroupKey, Map, MapCommand, MapQuery, config::Config};

use crate::cluster::{Member, Place, group_of, settled, ticket_of, within};

async fn bonded_with<M: crate::cluster::Fresh>(member: &Member<M>, count: usize) {
    let mut bonds = member.group.bonds();
    let complete = async {
        while bonds.len() != count {
            bonds.changed().await;
        }
    };
    within(&format!("{count} bonds"), complete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_knows_one_member_is_bonded_with_all_within_a_second() {
    let members = group_of::<Map>(3).await;
    let leader = settled(&members).await;
    let known = members[(leader + 1) % 3].peer();
    let ticket = ticket_of(&members[0].group.ticket(), &[known]);
    assert_eq!(ticket.members().len(), 1);

    let started = Instant::now();
    let fourth = Member::<Map>::join(Place::MEMORY, &Config::default(), &ticket).await;
    bonded_with(&fourth, 3).await;
    let took = started.elapsed();
    println!("the mesh of four closed in {took:?}, the node's start included");
    for member in &members {
        bonded_with(member, 3).await;
    }
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_join_at_once_end_in_one_mesh_with_one_connection_a_pair() {
    let config = Config::default();
    let first = Member::<Map>::found(Place::MEMORY, &config).await;
    let ticket = first.group.ticket();
    let joining = (0..4).map(|_| Member::<Map>::join(Place::MEMORY, &config, &ticket));
    let mut members = join_all(joining).await;
    members.push(first);
    for member in &members {
        bonded_with(member, 4).await;
    }
    let single = async {
        while members.iter().any(|it| it.node.connections() != 4) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("one connection a pair", single).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bonds_tell_who_comes_and_who_goes() {
    let config = Config::default();
    let first = Member::<Map>::found(Place::MEMORY, &config).await;
    let mut bonds = first.group.bonds();
    assert!(bonds.is_empty());

    let second = Member::<Map>::join(Place::MEMORY, &config, &first.group.ticket()).await;
    while !bonds.contains_peer(&second.peer()) {
        within("the bond shows", bonds.changed()).await;
    }
    let here = bonds.get(&second.peer()).expect("it is there");
    let there = second.group.bonds().get(&first.peer()).expect("it is there as well");
    assert_eq!(here.id(), there.id(), "both sides name the bond alike");
    assert_eq!(here.peer(), second.peer());
    assert_eq!(bonds.iter().count(), 1);
    assert!(!here.is_terminated());

    second.node.shutdown().await;
    within("the bond says that it is over", here.terminated()).await;
    assert!(here.is_terminated());
    while bonds.contains_peer(&second.peer()) {
        within("the bond goes", bonds.changed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bond_that_was_closed_is_made_anew() {
    let members = group_of::<Map>(2).await;
    let mut bonds = members[0].group.bonds();
    for round in 0..5 {
        let old = within("a bond", async {
            loop {
                match bonds.get(&members[1].peer()) {
                    Some(bond) if !bond.is_terminated() => return bond,
                    _ => drop(bonds.changed().await),
                }
            }
        })
        .await;
        old.close("a test");
        within("it ends", old.terminated()).await;
        let renewed = async {
            while bonds.get(&members[1].peer()).is_none_or(|it| it.id() == old.id()) {
                bonds.changed().await;
            }
        };
        within("another bond", renewed).await;
        let value = format!("{round}");
        let written = members[1].group.execute(MapCommand::put("round", value));
        within("a write over the new bond", written).await.expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_groups_share_one_connection_a_pair() {
    let config = Config::default();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Place::MEMORY.open(&config).await);
    }
    let mut groups = Vec::new();
    for _ in 0..20 {
        let founded = nodes[0].create(GroupKey::generate(), Map::new());
        groups.push(within("founding", founded).await.expect("founded"));
    }
    let mut joined = Vec::new();
    for group in &groups {
        let ticket = group.ticket();
        for node in &nodes[1..] {
            let joining = node.join(&ticket, Map::new());
            joined.push(within("joining", joining).await.expect("joined"));
        }
    }
    for (number, group) in groups.iter().chain(&joined).enumerate() {
        let writing = group.execute(MapCommand::put(format!("{number}"), "here"));
        within("a write in each group, by each node", writing).await.expect("written");
        assert!(nodes.iter().all(|it| it.connections() <= 2), "more connections than pairs");
    }
    for group in &joined {
        let length = within("a read", group.query(MapQuery::Len)).await.expect("answered");
        assert_eq!(length, quorate::MapAnswer::Len(3), "a group holds its own writes only");
    }
    for node in &nodes {
        assert_eq!(node.groups().len(), 20);
        assert_eq!(node.connections(), 2);
        let opened = node.metrics().links_opened;
        println!("20 groups, 3 nodes: {opened} connections were opened by or to this one");
    }
}
