//! What takes minutes or hours: `make interop-long`.

use std::time::{Duration, Instant};

use quorate::log_store::Line;

use crate::{
    mint::Mint,
    peer::{Dials, Group},
    stock::Height,
    takeover,
};

/// Operations that a stock node is to take from a member, unless `QUORATE_LONG_OPERATIONS` says
/// otherwise.
const OPERATIONS: u32 = 100_000;
/// How often the serving member is lost, unless `QUORATE_LONG_LOSSES` says otherwise.
const LOSSES: u32 = 100;
/// How long 100,000 operations may take.
const WITHIN: Duration = Duration::from_secs(3 * 60 * 60);
/// What the node says that it holds grows at least this often.
const MOVES_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked at, which costs it a look through its whole table, and how often that is
/// told.
const LOOK: Duration = Duration::from_secs(10);
const TELL: Duration = Duration::from_secs(30);

on_both_lines! {
    a_stock_node_catches_up_on_100_000;
    another_member_goes_on_100_times;
}

async fn another_member_goes_on_100_times(line: Line) {
    let losses = std::env::var("QUORATE_LONG_LOSSES").ok();
    let losses = losses.map_or(LOSSES, |it| it.parse().expect("a number"));
    takeover::lose_the_serving_member(line, losses, losses.div_ceil(20)).await;
}

async fn a_stock_node_catches_up_on_100_000(line: Line) {
    let operations = std::env::var("QUORATE_LONG_OPERATIONS").ok();
    let operations = operations.map_or(OPERATIONS, |it| it.parse().expect("a number"));
    let group = Group::of(3, line).await;
    let minting = Instant::now();
    let mut log = Mint::new(line, group.topic, 1);
    group
        .append((0..operations).map(move |_| log.next(100)))
        .await;
    println!("{line}: {operations} minted in {:?}", minting.elapsed());

    let mut stock = group.meet("reader", Dials::Stock, &[0]).await;
    let started = Instant::now();
    let (mut held, mut moved, mut longest) = (0, Instant::now(), Duration::ZERO);
    let mut told = (Instant::now(), 0);
    while held < u64::from(operations) {
        tokio::time::sleep(LOOK).await;
        // Its `Have` is made of the heights of its store.
        let heights = stock.heights(group.topic).await;
        let now: u64 = heights.iter().map(|it| it.highest + 1).sum();
        if now > held {
            longest = longest.max(moved.elapsed());
            (held, moved) = (now, Instant::now());
        }
        let still = moved.elapsed();
        assert!(
            still < MOVES_WITHIN,
            "it has {held} of {operations} since {still:?}"
        );
        assert!(started.elapsed() < WITHIN, "it has {held} of {operations}");
        if told.0.elapsed() >= TELL || held == u64::from(operations) {
            let speed = (held - told.1) as f64 / told.0.elapsed().as_secs_f64();
            let at = started.elapsed().as_secs();
            println!("{line}: {at:5} s  {held} of {operations}, {speed:.0}/s");
            told = (Instant::now(), held);
        }
    }
    let took = started.elapsed();
    let speed = f64::from(operations) / took.as_secs_f64();
    let received = stock.look(crate::stock::Seen::received);
    println!(
        "{line}: {operations} in {took:?}, {speed:.0}/s, stood still for {longest:?} at most, \
         {} sent again",
        received.saturating_sub(u64::from(operations))
    );
    let whole = |it: &Height| (it.highest + 1, it.held) == (held, held);
    let full = |it: &[Height]| it.len() == 1 && it.iter().all(whole);
    stock
        .heights_when(group.topic, "it has the whole log", full)
        .await;
    stock.stop().await;
    group.end().await;
}
