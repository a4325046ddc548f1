//! Who is remembered, and who is forgotten for whom.

use super::*;

fn peer(number: u32) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PeerId::from_bytes(bytes)
}

fn at(number: u32) -> PeerAddr {
    PeerAddr::new(peer(number), [([127, 0, 0, 1], 4_000).into()])
}

/// A table in which strangers have all places but those of the ones given.
fn full(of: &[(u32, Rank)]) -> (Arc<Peers>, Arc<Mutex<Vec<PeerId>>>) {
    let forgotten = Arc::<Mutex<Vec<PeerId>>>::default();
    let telling = Arc::clone(&forgotten);
    let peers = Peers::new(move |peer| telling.lock().expect("no panic").push(peer));
    for (number, rank) in of {
        assert!(peers.learn(&at(*number), *rank));
    }
    for number in of.len()..PEERS_MAX {
        assert!(peers.learn(&at(1_000_000 + number as u32), Rank::Met));
    }
    assert!(forgotten.lock().expect("no panic").is_empty());
    (Arc::new(peers), forgotten)
}

#[test]
fn strangers_give_way_to_strangers_and_to_nobody_who_is_less_known() {
    let (peers, forgotten) = full(&[(1, Rank::Hearsay), (2, Rank::Wanted)]);
    // Hearsay first, and never a peer of its own.
    assert!(peers.learn(&at(3), Rank::Met));
    let first = forgotten.lock().expect("no panic").first().copied();
    assert_eq!(first, Some(peer(1)));
    for number in 1..FORGOTTEN_AT_ONCE {
        assert!(peers.learn(&at(2_000_000 + number as u32), Rank::Met));
    }
    assert!(
        !peers.learn(&at(4), Rank::Hearsay),
        "nobody gives way to hearsay"
    );
    for number in 0..2 * PEERS_MAX {
        assert!(peers.learn(&at(10 + number as u32), Rank::Met));
    }
    let table = peers.locked();
    assert_eq!(table.len(), PEERS_MAX);
    assert!(table.contains_key(&peer(2)), "the program asked for it");
    assert!(!table.contains_key(&peer(3)));
}

#[test]
fn who_is_served_now_or_was_served_well_lately_stays() {
    let (peers, _) = full(&[]);
    let topic = Topic::named("cats");
    let served = peers.take(peer(1), topic).expect("there is room");
    let counted = peers.count(peer(2), 1).expect("there is room");
    let success = peers.with(peer(3), topic, |it| {
        it.told.last_success = Some(SystemTime::now());
    });
    assert!(success.is_some());
    for number in 0..2 * PEERS_MAX {
        assert!(peers.learn(&at(10 + number as u32), Rank::Met));
    }
    {
        let table = peers.locked();
        assert!([1, 2, 3].iter().all(|it| table.contains_key(&peer(*it))));
    }
    drop((served, counted));
    assert!(!peers.is_busy(peer(1)));
    for number in 0..2 * PEERS_MAX {
        peers.learn(&at(20_000 + number as u32), Rank::Met);
    }
    let table = peers.locked();
    let stays = [1, 2, 3].map(|it| table.contains_key(&peer(it)));
    assert_eq!(stays, [false, false, true]);
}

#[test]
fn the_place_of_a_topic_that_was_opened_again_is_not_given_back_by_an_old_session() {
    let (peers, _) = full(&[]);
    let topic = Topic::named("cats");
    let old = peers.take(peer(1), topic).expect("there is room");
    assert!(peers.take(peer(1), topic).is_none());
    peers.close_topic(topic);
    let new = peers.take(peer(1), topic).expect("it is opened again");
    drop(old);
    assert!(peers.is_taken(peer(1), topic));
    drop(new);
    assert!(!peers.is_taken(peer(1), topic));
}
