//! What is decided about outsiders, where an earlier or a later version has decided as well.

use bytes::Bytes;

use super::guest::{House, topic};
use crate::{
    identity::PeerId,
    log_store::{Expected, Line},
    sync::{
        Decision, Outsiders, OutsidersError, Rights,
        outsiders::{entry_name, standing_name},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_version_has_noted_is_not_overwritten() {
    let house = House::of(1).await;
    let logs = &house.logs[0];
    let outsiders = Outsiders::of(logs);
    let (topic, peer) = (topic(Line::V07), PeerId::from_bytes([1; 32]));
    let later = Bytes::from_static(&[2, 7, 7, 7]);
    for name in [standing_name(topic, peer), entry_name(peer)] {
        let noted = logs.note(name, Some(later.clone()), Expected::Absent).await;
        noted.expect("it is noted");
    }
    let approved = outsiders.approve(topic, peer, Rights::ALL).await;
    assert!(matches!(approved, Err(OutsidersError::Unreadable)));
    let named = outsiders.name_peer(peer, Some("Ada's phone")).await;
    assert!(matches!(named, Err(OutsidersError::Unreadable)));
    for name in [standing_name(topic, peer), entry_name(peer)] {
        let notes = logs.notes(&name).expect("readable");
        assert_eq!(notes[0].value, later);
    }
    // It says what helps.
    outsiders.reconsider(topic, peer).await.expect("taken back");
    outsiders.forget_peer(peer).await.expect("forgotten");
    let approved = outsiders.approve(topic, peer, Rights::READ).await;
    approved.expect("approved");
    let decided = outsiders.decisions().await.expect("readable");
    assert_eq!(decided[0].decision, Decision::Approved(Rights::READ));
    let named = outsiders.name_peer(peer, Some("Ada's phone")).await;
    named.expect("named");
    house.close().await;
}
