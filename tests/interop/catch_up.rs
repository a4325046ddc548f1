//! Topics in which stock nodes catch up, and no more: they always wish to go on live.

use std::{net::SocketAddr, time::Duration};

use quorate::{
    log_store::Line,
    sync::{Admission, PeerState, SyncOptions},
};

use crate::{
    mint::Mint,
    peer::{Dials, Group},
    published,
};

on_both_lines! {
    a_stock_node_catches_up_again_and_again_where_members_are_not_live;
}

const ASK_AGAIN: Duration = Duration::from_secs(1);

async fn a_stock_node_catches_up_again_and_again_where_members_are_not_live(line: Line) {
    let options = SyncOptions {
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        ask_again: ASK_AGAIN,
        ..SyncOptions::default()
    };
    let admission = Admission::everyone().catch_up_only();
    let group = Group::with(line, admission, vec![options; 2]).await;
    let mut wanted = group.mint(1, 300, 100).await;
    // It finds the members, and they dial it.
    let mut stock = group.meet("archive", Dials::Stock, &[0, 1]).await;
    stock.processed(group.topic, 300).await;
    let mut log = Mint::new(line, group.topic, 2);
    for turn in 0..3 {
        let operation = log.next(100);
        wanted.insert(operation.id().to_string());
        group.append([operation]).await;
        stock.processed(group.topic, 301 + turn).await;
    }
    stock.publish(group.topic, 20, 100).await;
    wanted.extend(published(&stock, &group));
    assert_eq!(group.holds(323).await, wanted);
    // With nothing to say, too, it is asked at the interval and not all the time.
    let before = stock.seen().syncs_started;
    tokio::time::sleep(ASK_AGAIN * 10).await;
    let sessions = stock.seen().syncs_started - before;
    println!("line {line}: {sessions} sessions in {:?}", ASK_AGAIN * 10);
    assert!((1..=60).contains(&sessions), "{sessions} sessions");
    for member in &group.members {
        let peers = member.sync.status().peers;
        assert!(peers.iter().all(|it| it.state != PeerState::Live));
    }
    assert_eq!(stock.seen().failed, Vec::<String>::new());
    stock.stop().await;
    group.end().await;
}
