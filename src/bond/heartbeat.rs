//! Whether the other end of a bond still answers, and how fast: no I/O, time is passed in.
//!
//! A ping goes out every `heartbeat`; its pong comes only after a round trip through the peer's
//! Raft core. A ping is *missed* when the next one is due and no pong came since it went out.
//! After `heartbeats_missed` of them in a row the bond is *silent*, until a pong is *heard*
//! again; after `bond_timeout` without any it is *dead*.
//!
//! ```text
//!            missed = heartbeats_missed            bond_timeout without a pong
//!   hearing ---------------------------> silent ------------------------------> dead
//!      ^                                    |
//!      +------------------------------------+
//!                 a pong that counts
//! ```
//!
//! **Our own stalls are not the peer's silence.** Pings count from when they were sent, not from
//! when they were due, and a wake-up counts one missed ping at most. A wake-up that comes late by
//! more than a heartbeat says that this process (or this machine) stood still; answers may be
//! waiting unread. It counts none, and time stood still is not time the peer was silent. Only
//! where one late wake-up follows another is each counted: a process that is always late must not
//! be blind for good.
//!
//! # Which pongs count
//! A pong counts if it answers a ping that was sent and is newer than the newest answered so far.
//! So duplicates and pongs overtaken by newer ones are nothing; a late pong counts as soon as it
//! comes, since the way and the peer worked after its ping was sent. On a way with a round trip
//! longer than `heartbeat` several pings are under way at once and no pong is late.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::config::Timing;

/// Pings whose sending time is remembered. More than `bond_timeout / heartbeat` in any preset; a
/// pong older than these still counts as heard, and only measures nothing.
const SENT_MAX: usize = 64;

/// What happened, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Send a ping with this sequence number now.
    Ping(u64),
    /// The peer missed `heartbeats_missed` heartbeats in a row.
    Silent,
    /// A silent peer answered again.
    Heard,
    /// Nothing was heard for `bond_timeout`: close the bond. The last event.
    Dead,
}

/// The heartbeat of one bond, on one side.
///
/// # Invariants
/// - `answered <= sent`: only pings that were sent are answered.
/// - `Silent` and `Heard` alternate, `Silent` first; nothing follows `Dead`.
/// - At most one ping a `heartbeat`.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    missed_max: u32,
    timeout: Duration,
    /// How many pings were sent; their sequence numbers are 1, 2, 3, ...
    sent: u64,
    /// The newest ping that was answered; 0 before the first.
    answered: u64,
    /// (sequence number, when it was sent) of pings not answered, oldest first.
    under_way: VecDeque<(u64, Instant)>,
    next_ping: Instant,
    /// When a pong last came, later by the time we stood still since then.
    heard_at: Instant,
    /// Pings in a row that were missed.
    missed: u32,
    silent: bool,
    dead: bool,
    /// Whether the last wake-up was late.
    was_late: bool,
    rtt: Option<Rtt>,
}

#[derive(Clone, Copy, Debug)]
struct Rtt {
    #[cfg(test)]
    last: Duration,
    smoothed: Duration,
}

impl Heartbeat {
    /// A bond that begins now; its first ping is due at once.
    pub(crate) fn new(timing: &Timing, now: Instant) -> Self {
        Self {
            interval: timing.heartbeat,
            missed_max: timing.heartbeats_missed,
            timeout: timing.bond_timeout,
            sent: 0,
            answered: 0,
            under_way: VecDeque::new(),
            next_ping: now,
            heard_at: now,
            missed: 0,
            silent: false,
            dead: false,
            was_late: false,
            rtt: None,
        }
    }

    /// When to call [`tick`](Self::tick) next; never once the bond is dead. Changes with every
    /// tick and pong.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.dead).then(|| self.next_ping.min(self.dead_at()))
    }

    /// A wake-up. Earlier than the deadline it does nothing.
    pub(crate) fn tick(&mut self, now: Instant) -> impl Iterator<Item = Event> + use<> {
        let events = if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.wake(now)
        } else {
            [None; 2]
        };
        events.into_iter().flatten()
    }

    /// A pong with this sequence number came.
    pub(crate) fn pong(&mut self, seq: u64, now: Instant) -> Option<Event> {
        // What came in while we stood still says nothing about the round trip.
        let late = self.stood_still(now).is_some();
        if self.dead || seq <= self.answered || seq > self.sent {
            return None;
        }
        self.answered = seq;
        while let Some((sent, at)) = self.under_way.front().copied() {
            if sent > seq {
                break;
            }
            self.under_way.pop_front();
            if sent == seq && !late {
                self.measure(now.saturating_duration_since(at));
            }
        }
        if late {
            self.under_way.clear();
        }
        self.heard_at = now;
        self.missed = 0;
        std::mem::take(&mut self.silent).then_some(Event::Heard)
    }

    /// The last round trip that was measured.
    #[cfg(test)]
    fn rtt_last(&self) -> Option<Duration> {
        self.rtt.map(|rtt| rtt.last)
    }

    /// The round trip, smoothed over about eight heartbeats.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|rtt| rtt.smoothed)
    }

    /// Whether the peer is silent now.
    #[cfg(test)]
    fn is_silent(&self) -> bool {
        self.silent
    }

    fn wake(&mut self, now: Instant) -> [Option<Event>; 2] {
        let late = self.stood_still(now);
        let pardoned = late.is_some() && !self.was_late;
        self.was_late = late.is_some();
        if let Some(late) = late {
            self.heard_at = (self.heard_at + late).min(now);
            self.under_way.clear();
        }
        if pardoned {
            // Time for one more answer, however little of the timeout was left.
            let answer_by = now + self.interval;
            let shortfall = answer_by.saturating_duration_since(self.dead_at());
            self.heard_at = (self.heard_at + shortfall).min(now);
        }
        if now >= self.dead_at() {
            self.dead = true;
            return [Some(Event::Dead), None];
        }
        if now < self.next_ping {
            return [None; 2];
        }
        if self.sent > self.answered && !pardoned {
            self.missed = self.missed.saturating_add(1);
        }
        let fell_silent = self.missed >= self.missed_max && !self.silent;
        self.silent |= fell_silent;
        [fell_silent.then_some(Event::Silent), Some(self.ping(now))]
    }

    fn ping(&mut self, now: Instant) -> Event {
        self.sent += 1;
        if self.under_way.len() == SENT_MAX {
            self.under_way.pop_front();
        }
        self.under_way.push_back((self.sent, now));
        self.next_ping = now + self.interval;
        Event::Ping(self.sent)
    }

    fn dead_at(&self) -> Instant {
        self.heard_at + self.timeout
    }

    /// By how much a wake-up now is late, if by more than jitter.
    fn stood_still(&self, now: Instant) -> Option<Duration> {
        let late = now.saturating_duration_since(self.deadline()?);
        (late > self.interval).then_some(late)
    }

    /// RFC 6298's smoothing.
    fn measure(&mut self, last: Duration) {
        let smoothed = match self.rtt {
            Some(before) => before.smoothed * 7 / 8 + last / 8,
            None => last,
        };
        self.rtt = Some(Rtt {
            #[cfg(test)]
            last,
            smoothed,
        });
    }
}
