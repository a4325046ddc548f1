//! The local network: a stock node and a member that know nothing of each other but the topic.
//!
//! Both run in a network namespace that the test makes, with one interface, so that nothing is said
//! on the network of the machine.

use std::net::SocketAddr;

use quorate::{
    log_store::Line,
    sync::{Admission, SyncOptions},
};

use crate::{namespace, peer::Group, stock::Stock};

const ADDRESS: [u8; 4] = [10, 77, 0, 1];

/// The namespace's one interface; its other end is there so that it counts as up.
const INTERFACE: &str = "ip link set lo up && ip link add lan0 type veth peer name lan1 \
    && ip addr add 10.77.0.1/24 dev lan0 && ip link set lan0 up && ip link set lan1 up \
    && ip route add 224.0.0.0/4 dev lan0";

#[test]
#[ignore = "needs stock nodes: make interop"]
fn a_stock_node_finds_a_member_on_the_local_network_by_itself() {
    namespace::run(INTERFACE, "lan::inside");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, in a namespace"]
async fn inside() {
    if !namespace::is_inside() {
        return;
    }
    let door = |bind| SyncOptions {
        bind: vec![SocketAddr::from((bind, 0))],
        mdns: bind == ADDRESS,
        ..SyncOptions::default()
    };
    let options = [door(ADDRESS), door([127, 0, 0, 1]), door([127, 0, 0, 1])];
    let group = Group::with(Line::V07, Admission::everyone(), options).await;
    let minted = group.mint(1, 500, 100).await;
    let mut options = group.options("reader");
    options.mdns = true;
    let mut stock = Stock::start(&options).await;
    stock.subscribe(group.topic).await;
    assert_eq!(stock.processed(group.topic, 500).await, minted);
    // And the other way: what it writes is live by now.
    stock.publish(group.topic, 10, 100).await;
    assert_eq!(group.holds(510).await.len(), 510);
    stock.stop().await;
    group.end().await;
}
