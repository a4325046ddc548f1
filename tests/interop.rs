//! Unmodified p2panda nodes of both lines sync with a group as with one of their own.
//!
//! A stock node is a process of its own, built in a workspace of its own: `make interop` builds
//! both lines and runs this, which plain `cargo test` ignores. The longest run, 100,000 operations
//! a line, is `make interop-long`.

#[path = "interop/harness/child.rs"]
mod child;
#[path = "behaviour/cluster.rs"]
#[expect(
    dead_code,
    reason = "shared with the behaviour tests, which use all of it"
)]
mod cluster;
#[path = "interop/firewall.rs"]
mod firewall;
#[cfg(feature = "mdns")]
#[path = "interop/lan.rs"]
mod lan;
#[path = "interop/harness/mint.rs"]
mod mint;
#[path = "interop/harness/namespace.rs"]
mod namespace;
#[path = "interop/harness/peer.rs"]
mod peer;
#[path = "interop/harness/stock.rs"]
mod stock;
#[path = "interop/takeover.rs"]
mod takeover;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use peer::{Dials, Group};
use quorate::{
    PeerId,
    log_store::Line,
    sync::{Admission, PeerState, PeerStatus, Rights},
};
use stock::Stock;

/// One test a line and, where it says so, a direction of dialling.
macro_rules! on_both_lines {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        mod line_0_6 {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs stock nodes: make interop"]
            async fn $name() { super::$name(quorate::log_store::Line::V06).await; })*
        }
        mod line_0_7 {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs stock nodes: make interop"]
            async fn $name() { super::$name(quorate::log_store::Line::V07).await; })*
        }
    };
}

use on_both_lines;

#[path = "interop/catch_up.rs"]
mod catch_up;
#[path = "interop/long.rs"]
mod long;
#[path = "interop/streams.rs"]
mod streams;

on_both_lines! {
    a_stock_node_that_dials_catches_up;
    a_stock_node_that_is_dialled_catches_up;
    a_stock_node_that_dials_catches_up_on_10_000;
    what_a_stock_node_wrote_offline_is_pushed_when_it_dials;
    what_a_stock_node_wrote_offline_is_pushed_when_it_is_dialled;
    it_stays_live_in_both_directions;
    two_stock_nodes_exchange_everything_through_the_group;
    many_write_at_once;
    a_stock_node_restarts_in_the_middle;
    pruned_logs_are_served;
    large_bodies_go_both_ways;
    an_unknown_topic_is_not_served;
    a_stock_node_that_asks_is_served_once_it_is_let_in;
    a_stock_node_that_is_live_is_cut_off_when_it_is_refused;
    another_member_goes_on_when_the_serving_one_is_lost;
}

async fn a_stock_node_that_dials_catches_up(line: Line) {
    catch_up(line, Dials::Stock, 200).await;
}

async fn a_stock_node_that_is_dialled_catches_up(line: Line) {
    catch_up(line, Dials::Member, 200).await;
}

async fn a_stock_node_that_dials_catches_up_on_10_000(line: Line) {
    catch_up(line, Dials::Stock, 10_000).await;
}

async fn catch_up(line: Line, dials: Dials, count: u32) {
    let group = Group::of(3, line).await;
    let minted = group.mint(1, count, 100).await;
    let stock = group.meet("reader", dials, &[0]).await;
    let processed = stock.processed(group.topic, count as usize).await;
    assert_eq!(processed, minted);
    assert_eq!(stock.seen().failed, Vec::<String>::new());
    stock.stop().await;
    group.end().await;
}

async fn what_a_stock_node_wrote_offline_is_pushed_when_it_dials(line: Line) {
    push(line, Dials::Stock, 1_000).await;
}

async fn what_a_stock_node_wrote_offline_is_pushed_when_it_is_dialled(line: Line) {
    push(line, Dials::Member, 1_000).await;
}

async fn push(line: Line, dials: Dials, count: usize) {
    let group = Group::of(3, line).await;
    // Alone first: it writes, stops, and comes back to a group it has not met.
    let mut options = group.options("writer");
    let mut alone = Stock::start(&options).await;
    alone.subscribe(group.topic).await;
    alone.publish(group.topic, count, 100).await;
    let written = published(&alone, &group);
    alone.stop().await;
    if dials == Dials::Stock {
        options.peers = vec![group.address(0)];
    }
    let mut stock = Stock::start(&options).await;
    stock.subscribe(group.topic).await;
    if dials == Dials::Member {
        group.introduce(&stock, &[0]);
    }
    let held = group.holds(count).await;
    assert_eq!(held, written);
    stock.stop().await;
    group.end().await;
}

fn published(stock: &Stock, group: &Group) -> BTreeSet<String> {
    let seen = stock.seen();
    let of_topic = seen.published.get(&group.topic.to_string());
    of_topic.into_iter().flatten().cloned().collect()
}

async fn it_stays_live_in_both_directions(line: Line) {
    let group = Group::of(3, line).await;
    let mut wanted = group.mint(1, 50, 100).await;
    let mut stock = group.meet("live", Dials::Stock, &[0]).await;
    stock.processed(group.topic, 50).await;
    // The group's news reach it, one by one, whoever of the members they came in by.
    let mut log = mint::Mint::new(line, group.topic, 2);
    for turn in 0..30 {
        let operation = log.next(100);
        wanted.insert(operation.id().to_string());
        let logs = &group.members[turn % 3].logs;
        let appended = logs.append(group.topic, operation).await;
        appended.expect("it is appended");
        stock.processed(group.topic, 51 + turn).await;
    }
    // And its news reach the group.
    stock.publish(group.topic, 30, 100).await;
    wanted.extend(published(&stock, &group));
    assert_eq!(group.holds(110).await, wanted);
    stock.stop().await;
    group.end().await;
}

async fn two_stock_nodes_exchange_everything_through_the_group(line: Line) {
    let group = Group::of(3, line).await;
    let mut one = group.meet("one", Dials::Stock, &[0]).await;
    let mut two = group.meet("two", Dials::Stock, &[1]).await;
    one.publish(group.topic, 300, 100).await;
    two.publish(group.topic, 300, 100).await;
    let mut all = published(&one, &group);
    all.extend(published(&two, &group));
    assert_eq!(all.len(), 600);
    assert_eq!(group.holds(600).await, all);
    let full = |heights: &[stock::Height]| {
        heights.len() == 2 && heights.iter().all(|it| (it.highest, it.held) == (299, 300))
    };
    one.heights_when(group.topic, "it has both logs", full)
        .await;
    two.heights_when(group.topic, "it has both logs", full)
        .await;
    one.stop().await;
    two.stop().await;
    group.end().await;
}

async fn many_write_at_once(line: Line) {
    let group = Group::of(3, line).await;
    let mut one = group.meet("one", Dials::Stock, &[0]).await;
    let mut two = group.meet("two", Dials::Member, &[2]).await;
    let topic = group.topic;
    let minting = async {
        let mut minted = group.mint(1, 200, 100).await;
        minted.extend(group.mint(2, 200, 100).await);
        minted
    };
    let ((), (), mut all) = tokio::join!(
        one.publish(topic, 200, 100),
        two.publish(topic, 200, 100),
        minting
    );
    all.extend(published(&one, &group));
    all.extend(published(&two, &group));
    assert_eq!(group.holds(800).await, all);
    let full = |heights: &[stock::Height]| {
        heights.len() == 4 && heights.iter().all(|it| (it.highest, it.held) == (199, 200))
    };
    one.heights_when(topic, "it has all four logs", full).await;
    two.heights_when(topic, "it has all four logs", full).await;
    one.stop().await;
    two.stop().await;
    group.end().await;
}

async fn a_stock_node_restarts_in_the_middle(line: Line) {
    const COUNT: u32 = 2_000;
    let group = Group::of(3, line).await;
    group.mint(1, COUNT, 100).await;
    let mut options = group.options("restarted");
    options.peers = vec![group.address(0)];
    let mut stock = Stock::start(&options).await;
    stock.subscribe(group.topic).await;
    stock.processed(group.topic, COUNT as usize / 3).await;
    stock.kill().await;
    let mut stock = Stock::start(&options).await;
    stock.subscribe(group.topic).await;
    let full = |heights: &[stock::Height]| {
        heights
            .iter()
            .any(|it| (it.highest, it.held) == (u64::from(COUNT - 1), u64::from(COUNT)))
    };
    stock
        .heights_when(group.topic, "it has the whole log", full)
        .await;
    stock.stop().await;
    group.end().await;
}

async fn pruned_logs_are_served(line: Line) {
    let group = Group::of(3, line).await;
    let mut log = mint::Mint::new(line, group.topic, 1);
    let mut operations: Vec<_> = (0..300).map(|_| log.next(100)).collect();
    operations.push(log.prune(100));
    operations.extend((0..50).map(|_| log.next(100)));
    for operation in operations {
        let appended = group.members[0].logs.append(group.topic, operation).await;
        appended.expect("it is appended");
    }
    let mut stock = group.meet("reader", Dials::Stock, &[0]).await;
    // From the operation that pruned on: 300 to 350.
    let full =
        |heights: &[stock::Height]| heights.iter().any(|it| (it.highest, it.held) == (350, 51));
    stock
        .heights_when(group.topic, "it has what is left of the log", full)
        .await;
    stock.stop().await;
    group.end().await;
}

async fn large_bodies_go_both_ways(line: Line) {
    let bytes = if line == Line::V06 {
        256 * 1024
    } else {
        1024 * 1024
    };
    let group = Group::of(3, line).await;
    let minted = group.mint(1, 8, bytes).await;
    let mut stock = group.meet("large", Dials::Stock, &[0]).await;
    assert_eq!(stock.processed(group.topic, 8).await, minted);
    stock.publish(group.topic, 8, bytes).await;
    let mut all = published(&stock, &group);
    all.extend(minted);
    assert_eq!(group.holds(16).await, all);
    stock.stop().await;
    group.end().await;
}

async fn an_unknown_topic_is_not_served(line: Line) {
    let group = Group::of(1, line).await;
    group.mint(1, 20, 100).await;
    let mut options = group.options("stranger");
    options.peers = vec![group.address(0)];
    let mut stock = Stock::start(&options).await;
    let other = quorate::log_store::Topic::from_bytes(rand::random());
    stock.subscribe(other).await;
    stock.publish(other, 10, 100).await;
    // It meets the group in the topic that is served, so it had its chance in the other.
    stock.subscribe(group.topic).await;
    stock.processed(group.topic, 20).await;
    assert_eq!(stock.heights(other).await.len(), 1, "only its own log");
    let heights = group.members[0].logs.heights(other).await;
    assert!(heights.expect("a quorum answers").is_empty());
    stock.stop().await;
    group.end().await;
}

async fn a_stock_node_that_asks_is_served_once_it_is_let_in(line: Line) {
    let group = Group::admitting(3, line, Admission::on_request()).await;
    let minted = group.mint(1, 200, 100).await;
    let mut stock = group.meet("asks", Dials::Stock, &[0]).await;
    stock.publish(group.topic, 20, 100).await;
    let id: PeerId = stock.address().0.parse().expect("a peer id");
    let outsiders = group.members[2].sync.outsiders();
    let mut asked = Vec::new();
    while asked.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        asked = outsiders.requests().await.expect("they can be read");
    }
    assert_eq!((asked.len(), asked[0].peer), (1, id));
    assert_eq!(stock.heights(group.topic).await.len(), 1, "only its own");
    // It knocks again, and that is no other request.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let again = outsiders.requests().await.expect("they can be read");
    assert_eq!(again, asked);
    let approving = outsiders.approve(group.topic, id, Rights::ALL);
    approving.await.expect("it is let in");
    let all = group.holds(220).await;
    assert!(all.is_superset(&minted));
    has_log(&mut stock, &group, 200).await;
    assert_eq!(stock.seen().failed, Vec::<String>::new());
    stock.stop().await;
    group.end().await;
}

/// Waits until a stock node holds a log of another author that has so many operations.
async fn has_log(stock: &mut Stock, group: &Group, count: u64) {
    let own = stock.address().0;
    let has = |heights: &[stock::Height]| {
        let mut others = heights.iter().filter(|it| it.author != own);
        others.all(|it| it.held == count) && heights.len() == 2
    };
    stock.heights_when(group.topic, "it has the log", has).await;
}

async fn a_stock_node_that_is_live_is_cut_off_when_it_is_refused(line: Line) {
    let group = Group::of(3, line).await;
    let mut log = mint::Mint::new(line, group.topic, 1);
    let mut stock = group.meet("refused", Dials::Stock, &[0]).await;
    let id: PeerId = stock.address().0.parse().expect("a peer id");
    let logs = &group.members[1].logs;
    for count in 1..=5 {
        let appended = logs.append(group.topic, log.next(100)).await;
        appended.expect("it is appended");
        stock.processed(group.topic, count).await;
    }
    let sessions = || {
        let of = |it: &peer::Serving| it.sync.status().sessions;
        group.members.iter().map(of).sum::<usize>()
    };
    // Between two chunks there is no session: it is live when it has everything.
    let live = |it: &PeerStatus| it.peer == id && it.state == PeerState::Live;
    let is_live = || {
        let mut peers = group.members.iter().flat_map(|it| it.sync.status().peers);
        peers.any(|it| live(&it))
    };
    cluster::within("it is live", async {
        while !is_live() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let outsiders = group.members[1].sync.outsiders();
    let start = Instant::now();
    outsiders
        .refuse(group.topic, id)
        .await
        .expect("it is refused");
    while sessions() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(start.elapsed() < Duration::from_secs(1), "still served");
    }
    println!("{line}: no session {:?} after the word", start.elapsed());
    stock.publish(group.topic, 10, 100).await;
    let appended = logs.append(group.topic, log.next(100)).await;
    appended.expect("it is appended");
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(group.ids().await.len(), 6, "nothing of it was taken");
    has_log(&mut stock, &group, 5).await;
    let changing = outsiders.reconsider(group.topic, id);
    changing.await.expect("it is changed");
    assert_eq!(group.holds(16).await.len(), 16);
    has_log(&mut stock, &group, 6).await;
    stock.stop().await;
    group.end().await;
}

/// The stock node knows one member only.
async fn another_member_goes_on_when_the_serving_one_is_lost(line: Line) {
    takeover::lose_the_serving_member(line, 3, 1).await;
}

/// What a child runs; without the environment of one it is a test that holds nothing up.
#[tokio::test(flavor = "multi_thread")]
async fn member_process() {
    child::run().await;
}
