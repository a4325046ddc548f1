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
fn who_is_wanted_is_remembered_even_where_all_were_served_well() {
    let (peers, forgotten) = full(&[]);
    for served in peers.locked().values_mut() {
        served.came = Rank::Served;
    }
    assert!(!peers.learn(&at(1), Rank::Met), "no stranger takes a place");
    assert!(peers.learn(&at(1), Rank::Wanted));
    assert_eq!(forgotten.lock().expect("no panic").len(), 1, "one for one");
    assert!(peers.is_known(peer(1)));
    assert_eq!(peers.locked().len(), PEERS_MAX);
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

/// The state of one peer in one topic, and the time.
struct Serving {
    peers: Arc<Peers>,
    now: Instant,
    theirs: Heights,
}

impl Serving {
    const TOPIC: Topic = Topic::from_bytes([7; 32]);
    const LOG: LogId = LogId::from_bytes([8; 32]);

    fn author(number: u8) -> Author {
        Author::from_bytes([number; 32])
    }

    fn heights(of: &[(u8, u32)]) -> Heights {
        let logs = of.iter();
        logs.map(|(number, seq)| (Self::author(*number), [(Self::LOG, *seq)].into()))
            .collect()
    }

    /// Serves the next chunk, of which the peer takes what is not of author 1: it has another
    /// branch there. Gives whose logs the chunk had; none once there is nothing for it.
    fn next_chunk(&mut self, ours: &Heights) -> Option<Vec<Author>> {
        let whom = (peer(1), Self::TOPIC, Line::V07);
        let size = |_, _, after: Option<u32>, until: u32| {
            let operations = u64::from(until) + 1 - after.map_or(0, |it| u64::from(it) + 1);
            Ok((operations, 300 * operations))
        };
        for _ in 0..10_000 {
            let job = self
                .peers
                .job_at(self.now, whom, (ours, &self.theirs), size);
            let (plan, granted) = match job.expect("it is readable") {
                Job::Live => return None,
                Job::Look(pause) => {
                    self.now += pause;
                    continue;
                }
                Job::Send(plan, granted) => (plan, granted),
            };
            assert_ne!(plan.operations, 0);
            self.now += granted.sent_at(self.now);
            let taken = plan.ranges.iter();
            for range in taken.filter(|it| it.author != Self::author(1)) {
                self.theirs
                    .insert(range.author, [(range.log, range.until)].into());
            }
            return Some(plan.ranges.iter().map(|it| it.author).collect());
        }
        panic!("it is never served");
    }
}

#[test]
fn a_peer_on_another_branch_of_one_log_gets_all_the_others() {
    let peers = Arc::new(Peers::new(|_| {}));
    assert!(peers.learn(&at(1), Rank::Met));
    peers.with(peer(1), Serving::TOPIC, |_| ()).expect("room");
    let mut serving = Serving {
        peers: Arc::clone(&peers),
        now: Instant::now(),
        theirs: Serving::heights(&[(1, 3)]),
    };
    let ours = Serving::heights(&[(1, 900), (2, 2_000), (3, 2_000)]);
    let mut with_forked = 0;
    let mut chunks = 0;
    let began = serving.now;
    while let Some(authors) = serving.next_chunk(&ours) {
        chunks += 1;
        with_forked += u32::from(authors.contains(&Serving::author(1)));
    }
    assert_eq!(
        serving.theirs,
        Serving::heights(&[(1, 3), (2, 2_000), (3, 2_000)])
    );
    assert_eq!(with_forked, 2, "of {chunks} chunks");
    // Two chunks that were waited for, and the rest at the pace of a peer that takes all.
    let took = serving.now - began;
    assert!(
        took < Duration::from_secs(20),
        "{took:?} for {chunks} chunks"
    );
    let told = |look: fn(&Told) -> u64| peers.look(peer(1), Serving::TOPIC, |it| look(&it.told));
    assert_eq!(told(|it| it.set_aside), Some(1));
    // After a while it is tried again, for the peer may have been mended.
    serving.now += Duration::from_mins(6);
    assert_eq!(serving.next_chunk(&ours), Some(vec![Serving::author(1)]));
}

#[test]
fn a_peer_that_lacks_only_what_is_set_aside_is_live_and_holds_up_no_other_topic() {
    let peers = Arc::new(Peers::new(|_| {}));
    assert!(peers.learn(&at(1), Rank::Met));
    peers.with(peer(1), Serving::TOPIC, |_| ()).expect("room");
    let mut serving = Serving {
        peers: Arc::clone(&peers),
        now: Instant::now(),
        theirs: Serving::heights(&[(1, 3)]),
    };
    let ours = Serving::heights(&[(1, 900)]);
    while serving.next_chunk(&ours).is_some() {}
    let told = |look: fn(&Told) -> Option<u64>| {
        let told = peers.look(peer(1), Serving::TOPIC, |it| look(&it.told));
        told.flatten()
    };
    assert_eq!(told(|it| Some(it.set_aside)), Some(1));
    assert_eq!(told(|it| it.missing), Some(0));
    let behind = Seen {
        held: 0,
        missing: 9,
        reached: true,
    };
    let other = Topic::from_bytes([9; 32]);
    let turn = peers.pace(peer(1), Line::V07, |it| it.turn(other, behind, serving.now));
    assert!(matches!(turn, Some(Turn::Send { .. })), "{turn:?}");
}

#[test]
fn where_a_peer_was_seen_last_is_where_it_is_dialled() {
    let peers = Arc::new(Peers::new(|_| {}));
    let of = |hosts: std::ops::Range<u8>, relay: &str| {
        let addrs = hosts.map(|it| ([192, 0, 2, it], 4_000).into());
        let mut addr = PeerAddr::new(peer(1), addrs);
        addr.relay = Some(relay.to_owned());
        addr
    };
    assert!(peers.learn(&of(100..116, "https://a.example"), Rank::Met));
    for now in [
        of(200..201, "https://b.example"),
        of(1..2, "https://c.example"),
    ] {
        assert!(peers.learn(&now, Rank::Met));
        let known = peers.addr(peer(1));
        assert!(
            known.addrs.is_superset(&now.addrs),
            "it is known by {known}"
        );
        assert_eq!(known.relay, now.relay);
        assert_eq!(known.addrs.len(), PeerAddr::ADDRS_MAX);
    }
}
