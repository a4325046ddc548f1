//! How much one peer is sent at once: chunks that adapt to what it keeps. No I/O, no clock.
//!
//! A stock node takes operations off the wire as fast as they come and loses what its own pipeline
//! does not keep up with; one lost operation makes it refuse all that follow in that log. Its only
//! acknowledgement is its next `Have`, and that trails what has arrived. So a peer is sent one
//! chunk, over all topics, and the next one when its `Have` shows the whole of the first; where
//! `Have` stops moving before that, the rest is taken as lost and sent again, in smaller chunks.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::log_store::Line;

/// Bounds of the chunks of one line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkBounds {
    /// Operations of the first chunk.
    pub(crate) start: u64,
    /// The fewest a chunk shrinks to.
    pub(crate) min: u64,
    /// The most a chunk grows to.
    pub(crate) max: u64,
    /// Bytes of the first chunk, headers and bodies.
    pub(crate) start_bytes: u64,
    /// The most bytes a chunk grows to.
    pub(crate) max_bytes: u64,
}

impl ChunkBounds {
    /// What unmodified nodes were seen to keep: one of line 0.6 that is sent 400 at once takes
    /// nothing any more, for good; one of line 0.7 kept 1,000. What a node writes itself at the
    /// same time goes through the same pipeline, so there is room for that.
    pub(crate) fn of(line: Line) -> Self {
        let (start, max) = match line {
            Line::V06 => (128, 200),
            Line::V07 => (250, 500),
        };
        Self {
            start,
            min: 8,
            max,
            start_bytes: 4 * 1024 * 1024,
            max_bytes: 16 * 1024 * 1024,
        }
    }
}

/// The fewest bytes a chunk shrinks to. One operation goes alone if it is larger.
const MIN_BYTES: u64 = 64 * 1024;

/// The first pause between the end of a chunk and the look at what has become of it.
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// The longest pause between two looks.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Silence of `Have` after which what it lacks of a chunk counts as lost; doubles with each loss in
/// a row, up to the second.
const STALLED_FIRST: Duration = Duration::from_secs(2);
const STALLED_MAX: Duration = Duration::from_secs(60);
/// How long a topic keeps others of the same peer waiting when nothing is heard of its chunk.
const HELD_MAX: Duration = Duration::from_secs(60);
/// How long a topic waits for its turn before it asks again.
const TURN_WAIT: Duration = Duration::from_millis(100);
/// How long the place of a topic that has not asked again is kept, while others wait behind it.
const PLACE_MAX: Duration = Duration::from_secs(2);
/// Chunks that were kept whole, one after the other, before a size that has failed is tried again.
const CEILING_PATIENCE: u32 = 32;
/// Topics that wait for their turn; further ones are served without an order among them.
const WAITING_MAX: usize = 256;

/// Names a chunk that was granted: what is reported of it later says nothing of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant(u64);

/// What may be done for a peer in one topic now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has everything: live mode.
    Complete,
    /// Send the next chunk, at most this much, and then report [`Pacer::sent`],
    /// [`Pacer::failed`] or [`Pacer::unsent`].
    Send {
        /// Names it.
        grant: Grant,
        /// Operations.
        operations: u64,
        /// Bytes; a first operation that has more goes alone.
        bytes: u64,
    },
    /// Nothing yet; look at its `Have` again after this time.
    Wait(Duration),
}

/// What a peer's `Have` says about one topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// A number that grows with what the peer holds.
    pub(crate) held: u64,
    /// Operations that we hold and it does not.
    pub(crate) missing: u64,
    /// Whether it holds all of the last chunk it was sent.
    pub(crate) reached: bool,
}

/// The pace of one peer.
///
/// # Invariants
/// - At most one chunk is under way at a time.
/// - Of topics that go on asking, each has its turn before another has two.
/// - `bounds.min <= operations <= ceiling <= bounds.max`.
#[derive(Debug)]
pub(crate) struct Pacer<T> {
    bounds: ChunkBounds,
    operations: u64,
    bytes: u64,
    /// No chunk is made larger than this: a larger one has failed lately.
    ceiling: u64,
    kept_in_a_row: u32,
    lost_in_a_row: u32,
    /// Chunks of which it is known what the peer has kept.
    settled: u64,
    /// How long the last chunk took to be seen, in part: when to look at the next one.
    look: Duration,
    grants: u64,
    under_way: Option<UnderWay<T>>,
    /// In the order in which they have their turns, and when they last asked.
    waiting: VecDeque<(T, Instant)>,
}

#[derive(Debug)]
struct UnderWay<T> {
    grant: Grant,
    topic: T,
    granted: Instant,
    /// When it was sent; none while it is.
    sent: Option<Instant>,
    /// The last `Have`, and since when it says so.
    held: u64,
    moved: Instant,
    looks: u32,
}

impl<T: Copy + PartialEq> Pacer<T> {
    /// A peer of which nothing is known yet.
    pub(crate) fn new(bounds: ChunkBounds) -> Self {
        Self {
            bounds,
            operations: bounds.start,
            bytes: bounds.start_bytes,
            ceiling: bounds.max,
            kept_in_a_row: 0,
            lost_in_a_row: 0,
            settled: 0,
            look: LOOK_FIRST,
            grants: 0,
            under_way: None,
            waiting: VecDeque::new(),
        }
    }

    /// Operations of the next chunk.
    pub(crate) fn chunk(&self) -> u64 {
        self.operations
    }

    /// Whether chunks are as small as they get.
    pub(crate) fn is_smallest(&self) -> bool {
        self.operations == self.bounds.min
    }

    /// How many chunks have been settled: kept, or taken as lost.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// What to do for this peer in this topic, given its latest `Have`.
    pub(crate) fn turn(&mut self, topic: T, seen: Seen, now: Instant) -> Turn {
        match &self.under_way {
            Some(chunk) if chunk.topic == topic => {
                if let Some(turn) = self.look_after(seen, now) {
                    return turn;
                }
            }
            Some(chunk) if now.duration_since(chunk.granted) > HELD_MAX => self.under_way = None,
            _ => {}
        }
        if seen.missing == 0 {
            self.leave(topic);
            return Turn::Complete;
        }
        if self.under_way.is_some() || self.is_behind(topic, now) {
            self.queue(topic, now);
            return Turn::Wait(TURN_WAIT);
        }
        self.leave(topic);
        self.grants += 1;
        let grant = Grant(self.grants);
        self.under_way = Some(UnderWay {
            grant,
            topic,
            granted: now,
            sent: None,
            held: seen.held,
            moved: now,
            looks: 0,
        });
        Turn::Send {
            grant,
            operations: self.operations,
            bytes: self.bytes,
        }
    }

    /// The chunk is written, and the peer has read it.
    pub(crate) fn sent(&mut self, grant: Grant, now: Instant) -> Duration {
        if let Some(chunk) = self.granted(grant) {
            chunk.sent = Some(now);
            chunk.moved = now;
        }
        self.look
    }

    /// The session ended before the chunk was written and read.
    pub(crate) fn failed(&mut self, grant: Grant) {
        if self.granted(grant).is_some() {
            self.under_way = None;
            self.shrink();
        }
    }

    /// Nothing was sent after all: a chunk that was sent before goes on being looked after.
    pub(crate) fn unsent(&mut self, grant: Grant) {
        if self.granted(grant).is_some_and(|it| it.sent.is_none()) {
            self.under_way = None;
        }
    }

    /// The topic is closed.
    pub(crate) fn closed(&mut self, topic: T) {
        self.under_way = self.under_way.take().filter(|it| it.topic != topic);
        self.leave(topic);
    }

    /// Whether another topic is in front of this one. Whoever has not asked for long may be gone.
    fn is_behind(&mut self, topic: T, now: Instant) -> bool {
        self.waiting
            .retain(|(_, asked)| now.duration_since(*asked) <= PLACE_MAX);
        self.waiting.front().is_some_and(|it| it.0 != topic)
    }

    fn queue(&mut self, topic: T, now: Instant) {
        if let Some(place) = self.waiting.iter_mut().find(|it| it.0 == topic) {
            place.1 = now;
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((topic, now));
        }
    }

    fn leave(&mut self, topic: T) {
        self.waiting.retain(|it| it.0 != topic);
    }

    fn granted(&mut self, grant: Grant) -> Option<&mut UnderWay<T>> {
        self.under_way.as_mut().filter(|it| it.grant == grant)
    }

    /// What has become of the chunk under way; none if that is settled.
    fn look_after(&mut self, seen: Seen, now: Instant) -> Option<Turn> {
        let stalled = STALLED_FIRST * 2u32.pow(self.lost_in_a_row.min(5));
        let chunk = self.under_way.as_mut()?;
        let Some(sent) = chunk.sent else {
            // Another session of this topic is about to send it.
            if now.duration_since(chunk.granted) > HELD_MAX {
                self.under_way = None;
                return None;
            }
            return Some(Turn::Wait(TURN_WAIT));
        };
        if seen.reached {
            let took = now.duration_since(sent);
            // Seen at the first look: it may have been there for long.
            self.look = match chunk.looks {
                0 => self.look / 2,
                _ => took.mul_f64(0.8).clamp(LOOK_FIRST / 10, LOOK_MAX),
            };
            self.under_way = None;
            self.settled += 1;
            self.grow();
            return None;
        }
        chunk.looks += 1;
        if seen.held > chunk.held {
            chunk.held = seen.held;
            chunk.moved = now;
        }
        if now.duration_since(chunk.moved) >= stalled.min(STALLED_MAX) {
            self.under_way = None;
            self.settled += 1;
            self.shrink();
            return None;
        }
        let pause = LOOK_FIRST * 2u32.pow(chunk.looks.min(5) - 1);
        Some(Turn::Wait(pause.min(LOOK_MAX)))
    }

    fn grow(&mut self) {
        self.lost_in_a_row = 0;
        self.kept_in_a_row += 1;
        if self.kept_in_a_row.is_multiple_of(CEILING_PATIENCE) {
            self.ceiling = (self.ceiling + self.ceiling / 4 + 1).min(self.bounds.max);
        }
        let more = self.operations + self.operations / 4 + 1;
        self.operations = more.min(self.ceiling);
        self.bytes = (self.bytes + self.bytes / 4).min(self.bounds.max_bytes);
    }

    fn shrink(&mut self) {
        self.kept_in_a_row = 0;
        self.lost_in_a_row += 1;
        self.ceiling = (self.operations * 3 / 4).max(self.bounds.min);
        self.operations = (self.operations / 2).max(self.bounds.min);
        self.bytes = (self.bytes / 2).max(MIN_BYTES.min(self.bounds.start_bytes));
        self.look = LOOK_FIRST;
    }
}

#[cfg(test)]
mod tests;
