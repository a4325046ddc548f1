//! Two sessions in memory: random logs, budgets and deliveries.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::monitor::Monitor;
use crate::{
    log_store::{Author, Line, LogId, Topic},
    sync::{
        codec::{CborWrite, Decoder, Heights, Limits},
        session::{
            Budget, Event, Handshake, Misuse, OUTPUT_MAX, Plan, Role, Session, SessionError,
        },
    },
};

type Log = (Author, LogId);
type Pages = VecDeque<(Bytes, Option<Bytes>)>;

/// Steps without any effect after which two sides count as waiting for each other.
const STUCK: u32 = 2_000;

/// Splitmix, so that a run is its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((it ^ (it >> 31)) % limit.max(1) as u64) as usize
    }
}

/// What one side holds: all operations of each log from 0 on.
#[derive(Clone, Default, Debug, PartialEq)]
struct Store(BTreeMap<Log, Vec<(Bytes, Option<Bytes>)>>);

impl Store {
    fn random(dice: &mut Dice, share: &Self) -> Self {
        let mut store = Self::default();
        for author in 0..1 + dice.below(4) {
            for log in 0..1 + dice.below(2) {
                let length = dice.below(40);
                let log = (
                    Author::from_bytes([author as u8; 32]),
                    LogId::from_bytes([log as u8; 32]),
                );
                let known = share.0.get(&log).cloned().unwrap_or_default();
                let mut operations: Vec<_> = known.into_iter().take(length).collect();
                if !share.0.contains_key(&log) {
                    operations = (0..length).map(|seq| operation(log, seq, dice)).collect();
                }
                if !operations.is_empty() {
                    store.0.insert(log, operations);
                }
            }
        }
        store
    }

    fn heights(&self) -> Heights {
        let mut heights = Heights::new();
        for ((author, log), operations) in &self.0 {
            let seq = operations.len() as u32 - 1;
            heights.entry(*author).or_default().insert(*log, seq);
        }
        heights
    }

    fn plan(&self, theirs: &Heights, budget: Budget) -> Plan {
        Plan::compute(
            &self.heights(),
            theirs,
            budget,
            None,
            |author, log, after, until| {
                let from = after.map_or(0, |it| it as usize + 1);
                let found = &self.0[&(author, log)][from..=until as usize];
                Ok::<_, ()>((found.len() as u64, found.iter().map(size).sum()))
            },
        )
        .unwrap()
    }

    /// Takes an operation in if it is the next of its log, as a store would.
    fn take(&mut self, header: Bytes, body: Option<Bytes>) {
        let (log, seq) = named(&header);
        let operations = self.0.entry(log).or_default();
        if seq == operations.len() {
            operations.push((header, body));
        } else {
            assert!(seq < operations.len(), "a gap was sent");
        }
    }
}

fn size(operation: &(Bytes, Option<Bytes>)) -> u64 {
    (operation.0.len() + operation.1.as_ref().map_or(0, Bytes::len)) as u64
}

/// A header that is one CBOR item and names author, log and sequence number.
fn operation(log: Log, seq: usize, dice: &mut Dice) -> (Bytes, Option<Bytes>) {
    let mut name = BytesMut::new();
    name.put_slice(log.0.as_bytes());
    name.put_slice(log.1.as_bytes());
    name.put_u32(seq as u32);
    let mut header = BytesMut::new();
    CborWrite::bytes(&mut header, &name);
    let length = if dice.below(20) == 0 {
        30_000
    } else {
        dice.below(300)
    };
    let body = (dice.below(5) > 0).then(|| Bytes::from(vec![dice.below(256) as u8; length]));
    (header.freeze(), body)
}

fn named(header: &Bytes) -> (Log, usize) {
    let name = &header[2..];
    let part = |at: usize| <[u8; 32]>::try_from(&name[at..at + 32]).unwrap();
    let seq = u32::from_be_bytes(name[64..68].try_into().unwrap()) as usize;
    (
        (Author::from_bytes(part(0)), LogId::from_bytes(part(32))),
        seq,
    )
}

struct Side {
    session: Session,
    monitor: Monitor,
    store: Store,
    theirs: Option<Heights>,
    budget: Budget,
    pages: Option<Pages>,
    live: Vec<(Bytes, Option<Bytes>)>,
    closes: bool,
    /// Decodes what arrives, for the monitor.
    ears: Decoder,
    /// On the way to this side.
    pipe: VecDeque<Bytes>,
    end_in_pipe: bool,
    end_heard: bool,
    finished: bool,
    ended: bool,
}

impl Side {
    fn new(line: Line, role: Role, store: Store, budget: Budget, closes: bool) -> Self {
        Self {
            session: Session::new(line, role, Limits::of(line)),
            monitor: Monitor::new(line, role == Role::Initiator),
            store,
            theirs: None,
            budget,
            pages: None,
            live: Vec::new(),
            closes,
            ears: Decoder::new(line, Limits::of(line)),
            pipe: VecDeque::new(),
            end_in_pipe: false,
            end_heard: false,
            finished: false,
            ended: false,
        }
    }

    /// Does what the session asks for; whether there was anything.
    fn drive(&mut self, dice: &mut Dice) -> bool {
        let mut moved = false;
        while let Some(event) = self
            .session
            .poll_event()
            .expect("both keep to the protocol")
        {
            moved = true;
            self.event(event);
        }
        if self.session.wants_have() {
            self.session.our_have(self.store.heights()).unwrap();
            moved = true;
        }
        if self.session.wants_plan() {
            let plan = self.store.plan(self.theirs.as_ref().unwrap(), self.budget);
            self.session.plan(plan.operations, plan.bytes).unwrap();
            self.pages = (plan.operations > 0).then(|| {
                let ranges = plan.ranges.iter();
                ranges
                    .flat_map(|range| {
                        let from = range.after.map_or(0, |it| it as usize + 1);
                        let log = &self.store.0[&(range.author, range.log)];
                        log[from..=range.until as usize].to_vec()
                    })
                    .collect()
            });
            moved = true;
        }
        if let Some(pages) = &mut self.pages {
            let wanted = self.session.wants_operations() as usize;
            let page = (1 + dice.below(16)).min(wanted).min(pages.len());
            if page > 0 {
                self.session.give(pages.drain(..page).collect()).unwrap();
                moved = true;
            }
            if pages.is_empty() {
                self.session.end_of_operations().unwrap();
                self.pages = None;
                moved = true;
            }
        }
        if self.session.wants_live()
            && let Some((header, body)) = self.live.pop()
        {
            self.session.live(header, body).unwrap();
            moved = true;
        }
        if self.closes && self.live.is_empty() && self.session.exchange_ended() {
            self.closes = false;
            self.session.close().unwrap();
            moved = true;
        }
        moved
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::TheirHave(heights) => self.theirs = Some(heights),
            Event::Operation { header, body } | Event::Live { header, body } => {
                self.store.take(header, body);
            }
            Event::Ended => self.ended = true,
            Event::TheirPlan { .. } | Event::TheirDone | Event::Closed => {}
        }
    }
}

/// Moves bytes from one side to the other; whether there were any.
fn send(from: &mut Side, to: &mut Side, dice: &mut Dice) -> bool {
    let may_finish = from.session.may_finish();
    if let Some(mut bytes) = from.session.poll_transmit() {
        assert!(!may_finish && !from.finished, "something behind the end");
        from.monitor.says(&bytes);
        while !bytes.is_empty() {
            let piece = 1 + dice.below(bytes.len().min(5_000));
            to.pipe.push_back(bytes.split_to(piece));
        }
        return true;
    }
    if may_finish && !from.finished {
        from.monitor.ends();
        from.finished = true;
        to.end_in_pipe = true;
        return true;
    }
    false
}

/// Takes the next bytes off the pipe; whether there were any.
fn receive(side: &mut Side) -> bool {
    if let Some(bytes) = side.pipe.pop_front() {
        side.ears.push(bytes.clone());
        while let Some(message) = side.ears.next().unwrap() {
            side.monitor.hears(&message);
        }
        side.session.received(bytes);
        return true;
    }
    let ends = side.end_in_pipe && !side.end_heard;
    if ends {
        side.end_heard = true;
        side.session.received_end();
    }
    ends
}

/// Runs one session to its end, in random order.
fn run(sides: &mut [Side; 2], dice: &mut Dice) {
    let mut idle = 0;
    while !(sides[0].ended && sides[1].ended) {
        let at = dice.below(2);
        let [one, two] = sides;
        let (from, to) = if at == 0 { (one, two) } else { (two, one) };
        let moved = match dice.below(3) {
            0 => from.drive(dice),
            1 => send(from, to, dice),
            _ => receive(from),
        };
        idle = if moved { 0 } else { idle + 1 };
        assert!(idle < STUCK, "both wait: {sides:#?}");
    }
    for side in sides {
        assert!(side.pages.is_none() && side.live.is_empty(), "all was sent");
    }
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.session)
    }
}

fn budget(dice: &mut Dice) -> Budget {
    match dice.below(4) {
        0 => Budget::UNLIMITED,
        _ => Budget {
            operations: 1 + dice.below(60) as u32,
            bytes: 1 + dice.below(40_000) as u64,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn two_sessions_converge_in_chunks_and_never_wait_for_each_other(seed: u64) {
        let dice = &mut Dice(seed);
        let line = [Line::V06, Line::V07][dice.below(2)];
        let mut one = Store::random(dice, &Store::default());
        let mut two = Store::random(dice, &one);
        // Of a log that both know, `two` knows no more than `one`.
        let mut all = two.clone();
        all.0.extend(one.0.clone());
        let mut sessions = 0;
        while one != all || two != all {
            sessions += 1;
            prop_assert!(sessions < 700, "each session brings at least one operation");
            let closes = [(true, false), (false, true), (true, true)][dice.below(3)];
            let mut sides = [
                Side::new(line, Role::Initiator, one, budget(dice), closes.0),
                Side::new(line, Role::Acceptor, two, budget(dice), closes.1),
            ];
            run(&mut sides, dice);
            let [a, b] = sides;
            let (sent, got) = (a.session.counts(), b.session.counts());
            prop_assert_eq!(sent.sent_operations, got.received_operations);
            prop_assert_eq!(sent.sent_bytes, got.received_bytes);
            (one, two) = (a.store, b.store);
        }
    }

    #[test]
    fn live_operations_arrive_in_order_behind_the_exchange(seed: u64) {
        let dice = &mut Dice(seed);
        let line = [Line::V06, Line::V07][dice.below(2)];
        let log = (Author::from_bytes([9; 32]), LogId::from_bytes([1; 32]));
        let known: Vec<_> = (0..10).map(|seq| operation(log, seq, dice)).collect();
        let store = Store([(log, known)].into());
        let mut sides = [
            Side::new(line, Role::Initiator, store, Budget::UNLIMITED, true),
            Side::new(line, Role::Acceptor, Store::default(), Budget::UNLIMITED, false),
        ];
        sides[0].live = (10..40).rev().map(|seq| operation(log, seq, dice)).collect();
        run(&mut sides, dice);
        prop_assert_eq!(sides[1].store.0[&log].len(), 40);
    }

    #[test]
    fn handshakes_agree_on_line_and_topic(seed: u64) {
        let dice = &mut Dice(seed);
        let line = [Line::V06, Line::V07][dice.below(2)];
        let topic = Topic::from_bytes([dice.below(256) as u8; 32]);
        let mut sides = [Handshake::initiate(line, topic), Handshake::accept()];
        while !(sides[0].is_done() && sides[1].is_done()) {
            let mut moved = false;
            for at in 0..2 {
                while let Some(mut bytes) = sides[at].poll_transmit() {
                    while !bytes.is_empty() {
                        let piece = 1 + dice.below(bytes.len());
                        sides[1 - at].received(bytes.split_to(piece)).unwrap();
                    }
                    moved = true;
                }
            }
            prop_assert!(moved, "both wait");
        }
        for side in &mut sides {
            prop_assert_eq!(side.asked(), Some((line, topic)));
            side.received_end().unwrap();
        }
    }
}

#[test]
fn close_asked_for_early_waits_for_the_end_of_the_exchange() {
    for line in [Line::V06, Line::V07] {
        let dice = &mut Dice(7);
        let store = Store::random(dice, &Store::default());
        let mut sides = [
            Side::new(line, Role::Initiator, store, Budget::UNLIMITED, false),
            Side::new(
                line,
                Role::Acceptor,
                Store::default(),
                Budget::UNLIMITED,
                false,
            ),
        ];
        sides[0].session.close().unwrap();
        run(&mut sides, dice); // the monitor watches the order
    }
}

#[test]
fn no_more_is_taken_in_than_the_output_holds() {
    for line in [Line::V06, Line::V07] {
        let mut session = Session::new(line, Role::Initiator, Limits::of(line));
        let mut other = Session::new(line, Role::Acceptor, Limits::of(line));
        session.our_have(Heights::new()).unwrap();
        other.received(session.poll_transmit().unwrap());
        other.poll_event().unwrap().unwrap();
        other.our_have(Heights::new()).unwrap();
        session.received(other.poll_transmit().unwrap());
        session.poll_event().unwrap().unwrap();
        session.plan(1_000, 0).unwrap();
        let page = || {
            vec![(
                Bytes::from_static(&[0x40]),
                Some(Bytes::from(vec![1; 50_000])),
            )]
        };
        let mut given = 0;
        while session.wants_operations() > 0 {
            session.give(page()).unwrap();
            given += 1;
        }
        assert!(given * 50_000 < OUTPUT_MAX + 2 * 50_000, "{given}");
        assert_eq!(
            session.give(page()),
            Err(SessionError::Misused(Misuse::NoRoom))
        );
        while session.poll_transmit().is_some() {}
        assert_eq!(session.wants_operations(), 1_000 - given as u32);
    }
}

#[test]
fn calls_out_of_order_change_nothing() {
    let misused = |misuse| Err(SessionError::Misused(misuse));
    let mut session = Session::new(Line::V07, Role::Initiator, Limits::of(Line::V07));
    let operation = || (Bytes::from_static(&[0x40]), None);
    assert_eq!(session.plan(1, 1), misused(Misuse::PlanOutOfOrder));
    assert_eq!(
        session.give(vec![operation()]),
        misused(Misuse::OperationsOutOfOrder)
    );
    assert_eq!(
        session.end_of_operations(),
        misused(Misuse::OperationsOutOfOrder)
    );
    let (header, body) = operation();
    assert_eq!(session.live(header, body), misused(Misuse::NotLive));
    assert!(session.poll_transmit().is_none(), "nothing of it is sent");
    session.our_have(Heights::new()).unwrap();
    assert_eq!(session.our_have(Heights::new()), misused(Misuse::HaveTwice));
    session.received(Bytes::from_static(&[0, 0, 0, 3, 0, 0, 0]));
    session.poll_event().unwrap().unwrap();
    session.plan(1, 1).unwrap();
    assert_eq!(session.plan(1, 1), misused(Misuse::PlanOutOfOrder));
    assert_eq!(
        session.give(vec![operation(), operation()]),
        misused(Misuse::MoreThanPlanned)
    );
    assert_eq!(session.wants_operations(), 1);
}
