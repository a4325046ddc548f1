//! A stock node behind a firewall that lets it dial and nobody dial it, in a network namespace that
//! the test makes; what has been dialled may answer.

use quorate::log_store::Line;

use crate::{namespace, takeover};

/// Where the node is.
const PORT: u16 = 4700;
/// How often the serving member is lost.
const LOSSES: u32 = 2;

#[test]
#[ignore = "needs stock nodes: make interop"]
fn a_node_of_0_6_that_must_dial_is_served_on() {
    namespace::run(&firewall(), "firewall::inside_0_6");
}

#[test]
#[ignore = "needs stock nodes: make interop"]
fn a_node_of_0_7_that_must_dial_is_served_on() {
    namespace::run(&firewall(), "firewall::inside_0_7");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a test above, in a namespace"]
async fn inside_0_6() {
    inside(Line::V06).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a test above, in a namespace"]
async fn inside_0_7() {
    inside(Line::V07).await;
}

async fn inside(line: Line) {
    if namespace::is_inside() {
        takeover::lose_the_member_that_a_node_dialled(line, LOSSES, PORT).await;
    }
}

fn firewall() -> String {
    format!(
        "ip link set lo up && nft add table inet guard \
         && nft 'add chain inet guard inside {{ type filter hook input priority 0; }}' \
         && nft add rule inet guard inside udp dport {PORT} ct state new drop"
    )
}
