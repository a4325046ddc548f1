//! The pacer against a modelled stock peer: slow, asynchronous ingest behind a bound that loses.

use proptest::prelude::*;

use super::*;

const BOUNDS: ChunkBounds = ChunkBounds {
    start: 200,
    min: 8,
    max: 1_000,
    start_bytes: 4 << 20,
    max_bytes: 16 << 20,
};

/// One log of a stock node: operations queue up to a bound, one after the other is ingested; what
/// does not fit is lost, and what does not follow the last one ingested is refused.
struct Stock {
    room: u64,
    per_operation: Duration,
    queue: VecDeque<u64>,
    height: u64,
    ready: Instant,
}

impl Stock {
    fn receive(&mut self, at: u64, now: Instant) {
        self.work(now);
        if (self.queue.len() as u64) < self.room {
            if self.queue.is_empty() {
                self.ready = now + self.per_operation;
            }
            self.queue.push_back(at);
        }
    }

    fn work(&mut self, now: Instant) {
        while self.ready <= now
            && let Some(at) = self.queue.pop_front()
        {
            self.ready += self.per_operation;
            if at == self.height {
                self.height += 1;
            }
        }
    }
}

fn granted(turn: Turn) -> Grant {
    match turn {
        Turn::Send { grant, .. } => grant,
        other => panic!("nothing is to be sent: {other:?}"),
    }
}

struct Outcome {
    sent: u64,
    took: Duration,
    chunks: u64,
}

/// Serves a peer until it has everything; the wire takes 20 us an operation.
fn serve(total: u64, room: u64, per_operation: Duration) -> Outcome {
    let start = Instant::now();
    let mut now = start;
    let mut stock = Stock {
        room,
        per_operation,
        queue: VecDeque::new(),
        height: 0,
        ready: now,
    };
    let mut pacer = Pacer::new(BOUNDS);
    let (mut target, mut outcome) = (0, (0, 0));
    for _ in 0..1_000_000 {
        stock.work(now);
        let seen = Seen {
            held: stock.height,
            missing: total - stock.height,
            reached: stock.height >= target,
        };
        match pacer.turn(1, seen, now) {
            Turn::Complete => {
                return Outcome {
                    sent: outcome.0,
                    chunks: outcome.1,
                    took: now - start,
                };
            }
            Turn::Wait(pause) => now += pause,
            Turn::Send {
                grant, operations, ..
            } => {
                assert!(
                    (BOUNDS.min..=BOUNDS.max).contains(&operations),
                    "{operations}"
                );
                let from = stock.height;
                target = (from + operations).min(total);
                for at in from..target {
                    now += Duration::from_micros(20);
                    stock.receive(at, now);
                }
                outcome = (outcome.0 + target - from, outcome.1 + 1);
                now += pacer.sent(grant, now);
            }
        }
    }
    panic!("the peer never has everything: {} of {total}", stock.height);
}

#[test]
fn a_peer_that_keeps_up_is_sent_everything_once_and_ever_more_at_once() {
    let outcome = serve(100_000, 1_000_000, Duration::from_micros(50));
    assert_eq!(outcome.sent, 100_000);
    assert!(outcome.chunks < 120, "{}", outcome.chunks);
}

#[test]
fn a_stock_like_peer_gets_everything_at_its_own_speed() {
    // 4 ms an operation, 256 places: 10,000 take 40 s at best.
    let outcome = serve(10_000, 256, Duration::from_millis(4));
    assert!(outcome.sent <= 10_000 * 3 / 2, "{} sent", outcome.sent);
    assert!(
        outcome.took < Duration::from_secs(120),
        "{:?}",
        outcome.took
    );
}

#[test]
fn a_peer_that_keeps_next_to_nothing_still_gets_everything() {
    let outcome = serve(2_000, 10, Duration::from_millis(1));
    assert!(outcome.sent <= 2_000 * 4, "{} sent", outcome.sent);
}

#[test]
fn another_topic_waits_for_the_chunk_under_way_and_then_has_its_turn() {
    let now = Instant::now();
    let mut pacer = Pacer::new(BOUNDS);
    let behind = |held, reached| Seen {
        held,
        missing: 1_000,
        reached,
    };
    let grant = granted(pacer.turn('a', behind(0, true), now));
    assert!(matches!(
        pacer.turn('b', behind(0, true), now),
        Turn::Wait(_)
    ));
    pacer.sent(grant, now);
    let now = now + Duration::from_secs(1);
    // It is there: yet the other topic is in front, whoever asks first.
    assert!(matches!(
        pacer.turn('a', behind(200, true), now),
        Turn::Wait(_)
    ));
    assert!(matches!(
        pacer.turn('b', behind(0, true), now),
        Turn::Send { .. }
    ));
}

#[test]
fn topics_that_go_on_asking_have_their_turns_one_after_the_other() {
    let mut now = Instant::now();
    let mut pacer = Pacer::new(BOUNDS);
    let mut turns = Vec::new();
    // The first asks three times as often as the others.
    for topic in ['a', 'a', 'b', 'a', 'c'].into_iter().cycle().take(500) {
        let seen = Seen {
            held: turns.len() as u64,
            missing: 1_000,
            reached: true,
        };
        if let Turn::Send { grant, .. } = pacer.turn(topic, seen, now) {
            turns.push(topic);
            pacer.sent(grant, now);
        }
        now += Duration::from_millis(30);
    }
    assert!(turns.len() > 50, "{turns:?}");
    for three in turns[3..].chunks_exact(3) {
        for topic in ['a', 'b', 'c'] {
            assert!(three.contains(&topic), "{turns:?}");
        }
    }
}

#[test]
fn a_topic_that_asks_no_more_holds_up_no_other() {
    let now = Instant::now();
    let mut pacer = Pacer::new(BOUNDS);
    let seen = Seen {
        held: 0,
        missing: 1_000,
        reached: true,
    };
    let grant = granted(pacer.turn('a', seen, now));
    pacer.sent(grant, now);
    pacer.turn('b', seen, now);
    let waits = pacer.turn('a', seen, now + PLACE_MAX);
    assert!(matches!(waits, Turn::Wait(_)), "{waits:?}");
    let later = now + PLACE_MAX + Duration::from_millis(1);
    let sends = pacer.turn('a', seen, later);
    assert!(matches!(sends, Turn::Send { .. }), "{sends:?}");
}

#[test]
fn a_failed_chunk_shrinks_the_next() {
    let now = Instant::now();
    let mut pacer = Pacer::new(BOUNDS);
    let seen = Seen {
        held: 0,
        missing: 500,
        reached: true,
    };
    let grant = granted(pacer.turn('a', seen, now));
    pacer.failed(grant);
    let turn = pacer.turn('a', seen, now);
    assert!(
        matches!(
            turn,
            Turn::Send {
                operations: 100,
                ..
            }
        ),
        "{turn:?}"
    );
}

#[test]
fn what_is_said_of_a_chunk_of_long_ago_says_nothing_of_another_one() {
    let now = Instant::now();
    let mut pacer = Pacer::new(BOUNDS);
    let seen = Seen {
        held: 0,
        missing: 500,
        reached: true,
    };
    let old = granted(pacer.turn('a', seen, now));
    let later = now + HELD_MAX + Duration::from_secs(1);
    let new = granted(pacer.turn('a', seen, later));
    pacer.failed(old);
    pacer.unsent(old);
    pacer.sent(old, later);
    let waits = pacer.turn('b', seen, later);
    assert!(matches!(waits, Turn::Wait(_)), "{waits:?}");
    assert_eq!(pacer.chunk(), BOUNDS.start);
    pacer.unsent(new);
    granted(pacer.turn('b', seen, later));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn everything_arrives_and_sends_are_bounded(
        total in 1..4_000u64,
        room in 8..600u64,
        micros in 20..6_000u64,
    ) {
        let outcome = serve(total, room, Duration::from_micros(micros));
        // What is lost costs its chunk; chunks halve at each loss.
        prop_assert!(outcome.sent <= total * 5 + 2_000, "{} for {total}", outcome.sent);
    }
}
