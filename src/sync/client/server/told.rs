//! What a session at a member's door has besides the logs: the door's meter, and where the doors of
//! all members are, which clients are told.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::super::{super::member_addr::MemberAddr, frames::Frame};

/// Told how many operations and bytes a client has pushed, says how long it is to wait with more.
pub(crate) type Meter = Arc<dyn Fn(usize, usize) -> Duration + Send + Sync>;

/// How often a client is told at the most.
const PAUSE: Duration = Duration::from_secs(1);

/// A session at a member's door: pushes are counted with those of other sessions, and clients hear
/// of all members.
pub(crate) struct AtDoor {
    pub(crate) meter: Meter,
    /// As many as a ticket has room for; nothing is said of an empty list.
    pub(crate) members: watch::Receiver<Vec<MemberAddr>>,
}

/// What a session has told of the members, and has not.
pub(super) struct Told {
    members: Option<watch::Receiver<Vec<MemberAddr>>>,
    due: Instant,
}

impl Told {
    /// Nothing so far.
    pub(super) fn of(door: Option<&AtDoor>) -> Self {
        let mut members = door.map(|it| it.members.clone());
        if let Some(members) = &mut members {
            members.mark_changed();
        }
        let due = Instant::now();
        Self { members, due }
    }

    /// What is news at the moment.
    pub(super) fn now(&mut self) -> Option<Frame> {
        let members = self.members.as_mut()?;
        if !members.has_changed().unwrap_or(false) {
            return None;
        }
        let members = members.borrow_and_update().clone();
        self.due = Instant::now() + PAUSE;
        (!members.is_empty()).then_some(Frame::Members(members))
    }

    /// What is news, unless something was told just now.
    pub(super) fn due(&mut self) -> Option<Frame> {
        (Instant::now() >= self.due).then(|| self.now()).flatten()
    }

    /// Waits for news; for ever, where there will be none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Frame {
        loop {
            sleep_until(self.due).await;
            let Some(members) = &mut self.members else {
                return std::future::pending().await;
            };
            // What is seen here is marked again: dropped behind it, this still tells of it later.
            if members.changed().await.is_err() {
                self.members = None;
                continue;
            }
            members.mark_changed();
            if let Some(frame) = self.now() {
                return frame;
            }
        }
    }
}
