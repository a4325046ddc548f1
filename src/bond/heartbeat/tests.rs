//! The heartbeat by the clock of the test: scripts first, random schedules after.

use proptest::prelude::*;

use super::*;

const INTERVAL: u64 = 40;
const MISSED: u32 = 3;
const TIMEOUT: u64 = 1_500;

/// A heartbeat and a clock in milliseconds.
struct Clock {
    start: Instant,
    heart: Heartbeat,
}

impl Clock {
    fn new() -> Self {
        let start = Instant::now();
        let timing = Timing {
            heartbeat: Duration::from_millis(INTERVAL),
            heartbeats_missed: MISSED,
            bond_timeout: Duration::from_millis(TIMEOUT),
            ..Timing::LAN
        };
        Self {
            start,
            heart: Heartbeat::new(&timing, start),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn tick(&mut self, ms: u64) -> Vec<Event> {
        self.heart.tick(self.at(ms)).collect()
    }

    fn pong(&mut self, seq: u64, ms: u64) -> Option<Event> {
        self.heart.pong(seq, self.at(ms))
    }

    fn deadline(&self) -> Option<u64> {
        let deadline = self.heart.deadline()?;
        Some(deadline.duration_since(self.start).as_millis() as u64)
    }

    /// Ticks at every deadline up to and with `until`; what came of it, and when.
    fn tick_until(&mut self, until: u64) -> Vec<(u64, Event)> {
        let mut events = Vec::new();
        while let Some(due) = self.deadline().filter(|due| *due <= until) {
            events.extend(self.tick(due).into_iter().map(|event| (due, event)));
        }
        events
    }
}

fn without_pings(events: Vec<(u64, Event)>) -> Vec<(u64, Event)> {
    events
        .into_iter()
        .filter(|(_, event)| !matches!(event, Event::Ping(_)))
        .collect()
}

#[test]
fn the_first_ping_is_due_at_once_and_then_one_each_interval() {
    let mut clock = Clock::new();
    assert_eq!(clock.deadline(), Some(0));
    assert_eq!(clock.tick(0), [Event::Ping(1)]);
    assert_eq!(clock.deadline(), Some(40));
    assert_eq!(clock.tick(39), [], "too early");
    clock.pong(1, 39);
    assert_eq!(clock.tick(45), [Event::Ping(2)]);
    assert_eq!(clock.deadline(), Some(85), "counted from when it was sent");
}

#[test]
fn the_round_trip_is_measured_and_smoothed() {
    let mut clock = Clock::new();
    assert_eq!((clock.heart.rtt_last(), clock.heart.rtt()), (None, None));
    clock.tick(0);
    clock.pong(1, 8);
    let ms = Duration::from_millis;
    assert_eq!(
        (clock.heart.rtt_last(), clock.heart.rtt()),
        (Some(ms(8)), Some(ms(8)))
    );
    clock.tick(40);
    clock.pong(2, 56);
    assert_eq!(
        (clock.heart.rtt_last(), clock.heart.rtt()),
        (Some(ms(16)), Some(ms(9)))
    );
}

#[test]
fn silence_comes_when_three_pings_had_their_time_and_no_answer() {
    let mut clock = Clock::new();
    clock.tick(0);
    clock.pong(1, 5);
    // The peer dies at 6 ms. Pings 2, 3, 4 go out at 40, 80, 120; the last had its time at 160.
    assert_eq!(without_pings(clock.tick_until(159)), []);
    assert!(!clock.heart.is_silent());
    assert_eq!(clock.tick(160), [Event::Silent, Event::Ping(5)]);
    assert!(clock.heart.is_silent());
    assert_eq!(without_pings(clock.tick_until(1_000)), [], "said once");
}

#[test]
fn a_silent_peer_is_heard_again_and_can_fall_silent_again() {
    let mut clock = Clock::new();
    assert_eq!(without_pings(clock.tick_until(120)), [(120, Event::Silent)]);
    assert_eq!(clock.pong(4, 130), Some(Event::Heard));
    assert!(!clock.heart.is_silent());
    assert_eq!(clock.pong(4, 131), None);
    assert_eq!(without_pings(clock.tick_until(300)), [(280, Event::Silent)]);
}

#[test]
fn a_peer_never_heard_is_dead_after_the_timeout_and_nothing_follows() {
    let mut clock = Clock::new();
    let events = without_pings(clock.tick_until(10_000));
    assert_eq!(events, [(120, Event::Silent), (1_500, Event::Dead)]);
    assert_eq!(clock.deadline(), None);
    assert_eq!(clock.tick(20_000), []);
    assert_eq!(clock.pong(5, 20_000), None);
}

#[test]
fn a_pong_puts_the_death_off() {
    let mut clock = Clock::new();
    clock.tick_until(1_400);
    assert_eq!(
        clock.pong(3, 1_410),
        Some(Event::Heard),
        "late, but newer than any before"
    );
    assert_eq!(
        without_pings(clock.tick_until(2_909)),
        [(1_520, Event::Silent)]
    );
    assert_eq!(
        without_pings(clock.tick_until(2_910)),
        [(2_910, Event::Dead)]
    );
}

#[test]
fn duplicates_overtaken_and_invented_pongs_do_not_count() {
    let mut clock = Clock::new();
    clock.tick_until(80);
    assert_eq!(clock.pong(2, 85), None);
    let measured = clock.heart.rtt();
    assert!(measured.is_some());
    clock.tick_until(160);
    for seq in [2, 1, 0, 6, u64::MAX] {
        assert_eq!(clock.pong(seq, 170), None);
    }
    assert_eq!(clock.heart.rtt(), measured);
    // Had one of them counted, this would come later. Ping 3 went out at 80 and counts itself.
    assert_eq!(without_pings(clock.tick_until(400)), [(200, Event::Silent)]);
}

#[test]
fn a_round_trip_longer_than_the_interval_is_no_silence() {
    let mut clock = Clock::new();
    let rtt = 170;
    for ms in 0..5_000 {
        if ms >= rtt && (ms - rtt) % INTERVAL == 0 {
            let heard = clock.pong((ms - rtt) / INTERVAL + 1, ms);
            // The very first pong is longer under way than three heartbeats.
            assert_eq!(heard.is_some(), ms == rtt, "at {ms}");
        }
        let events = clock.tick(ms);
        assert_eq!(events.contains(&Event::Silent), ms == 120, "at {ms}");
    }
    assert_eq!(clock.heart.rtt(), Some(Duration::from_millis(rtt)));
}

#[test]
fn our_own_stall_is_not_the_peers_silence() {
    let mut clock = Clock::new();
    clock.tick(0);
    clock.pong(1, 5);
    assert_eq!(clock.tick(40), [Event::Ping(2)]);
    // Ten seconds in which this process does not run; its pong waits unread.
    assert_eq!(clock.tick(10_040), [Event::Ping(3)]);
    assert_eq!(clock.pong(2, 10_040), None);
    let before = clock.heart.rtt();
    assert_eq!(
        before,
        Some(Duration::from_millis(5)),
        "the stall is no round trip"
    );
    assert_eq!(clock.pong(3, 10_046), None);
    assert_eq!(clock.tick(10_080), [Event::Ping(4)]);
    assert_eq!(clock.heart.rtt_last(), Some(Duration::from_millis(6)));
}

#[test]
fn a_pong_read_before_the_late_tick_measures_nothing_either() {
    let mut clock = Clock::new();
    clock.tick(0);
    assert_eq!(clock.pong(1, 5_000), None);
    assert_eq!(clock.heart.rtt(), None);
    assert_eq!(clock.tick(5_000), [Event::Ping(2)]);
}

#[test]
fn after_a_stall_a_dead_peer_is_still_found_out() {
    let mut clock = Clock::new();
    clock.tick(0);
    clock.pong(1, 5);
    clock.tick(40);
    assert_eq!(clock.tick(10_040), [Event::Ping(3)], "pardoned");
    let events = without_pings(clock.tick_until(20_000));
    let [(silent, Event::Silent), (dead, Event::Dead)] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(silent, 10_160, "pings 3, 4, 5 had their time");
    assert_eq!(dead, 5 + 1_500 + 9_960, "the stall is not counted");
}

#[test]
fn a_stall_just_before_the_timeout_leaves_time_for_one_answer() {
    let mut clock = Clock::new();
    clock.tick(0);
    clock.tick_until(1_480);
    assert_eq!(clock.deadline(), Some(1_500), "about to die");
    assert_eq!(clock.tick(9_000), [Event::Ping(39)], "pardoned");
    assert_eq!(clock.tick(9_039), []);
    assert_eq!(clock.tick(9_040), [Event::Dead]);
}

#[test]
fn lateness_below_an_interval_counts_one_missed() {
    let mut clock = Clock::new();
    clock.tick(0);
    assert_eq!(clock.tick(79), [Event::Ping(2)]);
    assert_eq!(clock.tick(158), [Event::Ping(3)]);
    assert_eq!(clock.tick(237), [Event::Silent, Event::Ping(4)]);
}

#[test]
fn a_process_that_is_always_late_is_not_blind() {
    let mut clock = Clock::new();
    let events: Vec<_> = (0..100).flat_map(|nth| clock.tick(nth * 200)).collect();
    let nth = |wanted| events.iter().position(|event| *event == wanted);
    let (silent, dead) = (nth(Event::Silent), nth(Event::Dead));
    assert!(
        silent.is_some_and(|at| at >= 4) && dead > silent,
        "{events:?}"
    );
}

/// What the random schedules are made of.
#[derive(Clone, Debug)]
struct Step {
    /// How much later than its deadline the tick comes, in ms.
    late: u64,
    /// After how long this ping's pong comes, if it comes.
    answer: Option<u64>,
    /// Whether what came in during a stall is read before the tick.
    read_first: bool,
}

fn steps(
    late: impl Strategy<Value = u64>,
    answer: impl Strategy<Value = Option<u64>>,
) -> impl Strategy<Value = Vec<Step>> {
    let step = (late, answer, any::<bool>()).prop_map(|(late, answer, read_first)| Step {
        late,
        answer,
        read_first,
    });
    prop::collection::vec(step, 1..200)
}

/// (time, event) of every event, and (time, sequence number) of every pong that counted.
type Run = (Vec<(u64, Event)>, Vec<(u64, u64)>);

/// Runs a schedule. A process that is late by more than an interval stood still: what came in
/// meanwhile is read when it wakes.
fn run(steps: &[Step]) -> Run {
    let mut clock = Clock::new();
    let (mut events, mut pongs) = (Vec::new(), Vec::new());
    let mut coming = Vec::new();
    for step in steps {
        let Some(due) = clock.deadline() else { break };
        let wake = due + step.late;
        let still = step.late > INTERVAL;
        coming.sort_unstable();
        let mut read = |clock: &mut Clock, events: &mut Vec<(u64, Event)>| {
            let ready = coming.partition_point(|(at, _)| *at <= wake);
            for (at, seq) in coming.drain(..ready) {
                let now = if still { wake } else { at };
                if seq > clock.heart.answered && clock.deadline().is_some() {
                    pongs.push((now, seq));
                }
                events.extend(clock.pong(seq, now).map(|event| (now, event)));
            }
        };
        // A pong may move the deadline away; the timer of the old one still fires.
        if !still || step.read_first {
            read(&mut clock, &mut events);
        }
        let ticked = clock.tick(wake);
        events.extend(ticked.iter().map(|event| (wake, *event)));
        read(&mut clock, &mut events);
        for event in ticked {
            if let (Event::Ping(seq), Some(after)) = (event, step.answer) {
                coming.push((wake + after, seq));
            }
        }
    }
    (events, pongs)
}

fn late() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(0), 3 => 0..INTERVAL, 1 => 0u64..5_000]
}

fn answer() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        3 => (0u64..INTERVAL).prop_map(Some),
        1 => (0u64..3_000).prop_map(Some),
        3 => Just(None),
    ]
}

proptest! {
    #[test]
    fn the_invariants_hold_on_any_schedule(steps in steps(late(), answer())) {
        let (events, pongs) = run(&steps);
        let mut pings: Vec<(u64, u64)> = Vec::new();
        let mut silent = false;
        for (nth, (at, event)) in events.iter().enumerate() {
            match event {
                Event::Ping(seq) => {
                    let (before, last) = pings.last().copied().unwrap_or((0, 0));
                    prop_assert_eq!(*seq, last + 1);
                    prop_assert!(last == 0 || *at >= before + INTERVAL, "two pings too close");
                    pings.push((*at, *seq));
                }
                Event::Silent => {
                    prop_assert!(!silent);
                    silent = true;
                    // Three pings had their time since the last pong that counted.
                    let heard = pongs.iter().filter(|(then, _)| then < at).map(|(then, _)| *then);
                    let heard = heard.max().unwrap_or(0);
                    prop_assert!(*at >= heard + INTERVAL * u64::from(MISSED - 1));
                    let old = pings.iter().filter(|(sent, _)| sent + INTERVAL <= *at).count();
                    prop_assert!(old >= MISSED as usize);
                }
                Event::Heard => {
                    prop_assert!(silent);
                    silent = false;
                }
                Event::Dead => {
                    prop_assert_eq!(nth, events.len() - 1, "something followed");
                    let heard = pongs.iter().map(|(then, _)| *then).max().unwrap_or(0);
                    prop_assert!(*at >= heard + TIMEOUT);
                }
            }
        }
    }

    #[test]
    fn a_peer_that_answers_in_time_is_never_silent_however_we_stall(
        steps in steps(
            prop_oneof![0..INTERVAL, 0u64..60_000],
            (0u64..INTERVAL).prop_map(Some),
        ),
    ) {
        let (events, _) = run(&steps);
        let only_pings = events.iter().all(|(_, event)| matches!(event, Event::Ping(_)));
        prop_assert!(only_pings, "{events:?}");
    }

    #[test]
    fn a_peer_that_died_is_found_out_in_time(before in 0u64..50, last in 0u64..INTERVAL) {
        let mut clock = Clock::new();
        for nth in 0..before {
            clock.tick(nth * INTERVAL);
            clock.pong(nth + 1, nth * INTERVAL + last);
        }
        let death = if before == 0 { 0 } else { (before - 1) * INTERVAL + last };
        let events = without_pings(clock.tick_until(death + 2 * TIMEOUT));
        let [(silent, Event::Silent), (dead, Event::Dead)] = events[..] else {
            panic!("{events:?}");
        };
        prop_assert!(silent <= death + INTERVAL * u64::from(MISSED + 1));
        prop_assert_eq!(dead, death + TIMEOUT);
    }
}
