//! One session of the log sync, without its stream: bytes and operations in, bytes and events out.
//!
//! ```text
//!        what we send                          what we take
//!   Have      at once, or after theirs    Have       once
//!   Plan      PreSync, or Done if empty   PreSync    once, after our Have; or Done
//!   Operation* as many as announced       Operation* at most as many as announced
//!   Done      once                        Done       once; once more is tolerated
//!   --------- the exchange has ended when both Done are out ---------
//!   Live*     then                        Live*      not before that, also behind Close
//!   Close     and wait for their end      Close      finish, when all is sent
//! ```
//!
//! Both sides do the same at the same time; nothing that one sends waits for more than the other's
//! `Have`, so two sessions can not wait for each other. Stock dies of a `Live` or `Close` before
//! its own exchange has ended, and of an end of the stream before `Done`: neither leaves here.
//!
//! There is no clock: who drives a session sets its deadlines.

mod handshake;
mod output;
mod plan;
#[cfg(test)]
mod tests;

use bytes::Bytes;

#[cfg(test)]
pub(crate) use self::output::OUTPUT_MAX;
use self::output::Output;
pub(crate) use self::{
    handshake::Handshake,
    plan::{Budget, Plan, Range},
};
use super::{
    codec::{Decoder, FrameFault, Heights, Limits, Message, TooLong},
    protocol::SyncError,
};
use crate::log_store::Line;

/// Which side of the stream this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Opened the stream. Nobody sees it before something is written, so it writes first.
    Initiator,
    /// The stream was opened to it.
    Acceptor,
}

/// What the remote said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// What it holds: what is above that, or not in it, is to be sent.
    TheirHave(Heights),
    /// What it is about to send. Never comes where it has nothing to send.
    TheirPlan {
        /// At most so many operations come.
        operations: u32,
        /// Its own figure; nothing holds it to it.
        bytes: u64,
    },
    /// An operation that it holds. Nothing of it was looked at.
    Operation {
        /// As its author encoded it.
        header: Bytes,
        /// As its author wrote it.
        body: Option<Bytes>,
    },
    /// It has sent what it wanted to.
    TheirDone,
    /// An operation that is new to it. Nothing of it was looked at.
    Live {
        /// As its author encoded it.
        header: Bytes,
        /// As its author wrote it.
        body: Option<Bytes>,
    },
    /// It wants the session to end: finish our side when [`Session::may_finish`].
    Closed,
    /// It has ended its side in good order. The last event.
    Ended,
}

/// One side of one session, after the topic is agreed.
///
/// Keep giving it what the stream brings, and after each piece take all events out; keep sending
/// what [`poll_transmit`](Self::poll_transmit) gives. Both at the same time: a remote may read
/// nothing while it writes.
///
/// # Invariants
/// - Messages leave in the order of the picture above, whatever order the calls come in.
/// - At most [`OUTPUT_MAX`] bytes and one page wait to be sent; at most one frame is held of what
///   was received.
/// - After an error every call gives that error.
#[derive(Debug)]
pub(crate) struct Session {
    role: Role,
    decoder: Decoder,
    output: Output,
    ours: Ours,
    theirs: Theirs,
    close_wanted: bool,
    end_received: bool,
    failed: Option<SessionError>,
    counts: Counts,
}

/// How much a session has moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Operations given to it to be sent, live ones too.
    pub(crate) sent_operations: u64,
    /// Their headers and bodies.
    pub(crate) sent_bytes: u64,
    /// Operations that came out of it, live ones too.
    pub(crate) received_operations: u64,
    /// Their headers and bodies.
    pub(crate) received_bytes: u64,
}

/// What we have sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    Nothing,
    Have,
    PreSync { left: u32 },
    Done,
    Close,
}

/// What the remote has sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    Nothing,
    Have,
    PreSync { announced: u32, left: u32 },
    Done,
    DoneAgain,
    Close,
    End,
}

impl Session {
    pub(crate) fn new(line: Line, role: Role, limits: Limits) -> Self {
        Self {
            role,
            decoder: Decoder::new(line, limits),
            output: Output::new(line),
            ours: Ours::Nothing,
            theirs: Theirs::Nothing,
            close_wanted: false,
            end_received: false,
            failed: None,
            counts: Counts::default(),
        }
    }

    /// Bytes of the stream, as they came. Take the events out before giving more.
    pub(crate) fn received(&mut self, bytes: Bytes) {
        self.decoder.push(bytes);
    }

    /// The remote has finished its side of the stream. One that broke is no end: drop the session.
    pub(crate) fn received_end(&mut self) {
        self.end_received = true;
    }

    /// What the remote said next, or `None` until more comes.
    ///
    /// # Errors
    /// The session has failed; [`SessionError::fault`] says whose fault it is.
    pub(crate) fn poll_event(&mut self) -> Result<Option<Event>, SessionError> {
        self.check()?;
        loop {
            let judged = match self.decoder.next() {
                Ok(Some(message)) => self.judge(message),
                Ok(None) if self.end_received => self.judge_end(),
                Ok(None) => return Ok(None),
                Err(fault) => Err(fault.into()),
            };
            match judged {
                Ok(Judged::Event(event)) => return Ok(Some(event)),
                Ok(Judged::Nothing) => {}
                Ok(Judged::Over) => return Ok(None),
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    /// The next piece to send, or `None` for now.
    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.output.pop()
    }

    /// Whether it is time to say what we hold: at once for an initiator, after theirs for an
    /// acceptor, whose `Have` may depend on it.
    pub(crate) fn wants_have(&self) -> bool {
        self.ours == Ours::Nothing
            && (self.role == Role::Initiator || self.theirs != Theirs::Nothing)
    }

    /// Says what we hold. Once; not cut short by any budget.
    ///
    /// # Errors
    /// The session has failed, or this was called twice.
    pub(crate) fn our_have(&mut self, heights: Heights) -> Result<(), SessionError> {
        self.check()?;
        if self.ours != Ours::Nothing {
            return Err(Misuse::HaveTwice.into());
        }
        self.send(Message::Have(heights))?;
        self.ours = Ours::Have;
        Ok(())
    }

    /// Whether it is time for the plan.
    pub(crate) fn wants_plan(&self) -> bool {
        self.ours == Ours::Have && self.theirs != Theirs::Nothing
    }

    /// Says how much is about to be sent; no operations mean that we are done.
    ///
    /// # Errors
    /// The session has failed, or this was called twice or before both sides said what they hold.
    pub(crate) fn plan(&mut self, operations: u32, bytes: u64) -> Result<(), SessionError> {
        self.check()?;
        if !self.wants_plan() {
            return Err(Misuse::PlanOutOfOrder.into());
        }
        if operations == 0 {
            return self.done();
        }
        self.send(Message::PreSync { operations, bytes })?;
        self.ours = Ours::PreSync { left: operations };
        Ok(())
    }

    /// How many operations it takes now: 0 if there is no room, or nothing left of the plan.
    pub(crate) fn wants_operations(&self) -> u32 {
        match self.ours {
            Ours::PreSync { left } if self.output.has_room() && self.failed.is_none() => left,
            _ => 0,
        }
    }

    /// One page of what was planned, in order.
    ///
    /// # Errors
    /// The session has failed, it wants none now, or there are more than were announced; then
    /// none of them is sent.
    pub(crate) fn give(
        &mut self,
        operations: Vec<(Bytes, Option<Bytes>)>,
    ) -> Result<(), SessionError> {
        self.check()?;
        let Ours::PreSync { left } = self.ours else {
            return Err(Misuse::OperationsOutOfOrder.into());
        };
        if !self.output.has_room() {
            return Err(Misuse::NoRoom.into());
        }
        let count = u32::try_from(operations.len()).unwrap_or(u32::MAX);
        let left = left.checked_sub(count).ok_or(Misuse::MoreThanPlanned)?;
        for (header, body) in operations {
            self.count_sent(&header, body.as_ref());
            self.send(Message::Operation { header, body })?;
        }
        self.ours = Ours::PreSync { left };
        Ok(())
    }

    /// Everything was given. Fewer than planned is allowed: a log may be pruned in between.
    ///
    /// # Errors
    /// The session has failed, or there was no plan with operations.
    pub(crate) fn end_of_operations(&mut self) -> Result<(), SessionError> {
        self.check()?;
        if !matches!(self.ours, Ours::PreSync { .. }) {
            return Err(Misuse::OperationsOutOfOrder.into());
        }
        self.done()
    }

    /// Both sides are done with what they planned.
    pub(crate) fn exchange_ended(&self) -> bool {
        let theirs = matches!(
            self.theirs,
            Theirs::Done | Theirs::DoneAgain | Theirs::Close | Theirs::End
        );
        theirs && matches!(self.ours, Ours::Done | Ours::Close)
    }

    /// Whether it takes a live operation now.
    pub(crate) fn wants_live(&self) -> bool {
        self.is_live() && self.output.has_room()
    }

    /// Sends an operation that is new. A stock peer that is still behind refuses everything after
    /// a gap: send it only what follows on what it has.
    ///
    /// # Errors
    /// The session has failed, or it does not take any now: the exchange has not ended, there is
    /// no room, or a side has closed.
    pub(crate) fn live(&mut self, header: Bytes, body: Option<Bytes>) -> Result<(), SessionError> {
        self.check()?;
        if !self.is_live() {
            return Err(Misuse::NotLive.into());
        }
        if !self.output.has_room() {
            return Err(Misuse::NoRoom.into());
        }
        self.count_sent(&header, body.as_ref());
        self.send(Message::Live { header, body })
    }

    /// Asks the remote to end the session, as soon as the exchange has ended. Go on until
    /// [`Event::Ended`], and do not finish our side before.
    ///
    /// # Errors
    /// The session has failed.
    pub(crate) fn close(&mut self) -> Result<(), SessionError> {
        self.check()?;
        self.close_wanted = true;
        self.close_if_ended()
    }

    /// Whether our side of the stream may be finished now: the remote asked for it or has ended,
    /// and all is sent.
    pub(crate) fn may_finish(&self) -> bool {
        matches!(self.theirs, Theirs::Close | Theirs::End)
            && self.exchange_ended()
            && self.output.is_empty()
    }

    /// How much was moved so far.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn judge(&mut self, message: Message) -> Result<Judged, SessionError> {
        use Misbehaviour as M;
        let name = message.name();
        let event = match (message, self.theirs) {
            (_, Theirs::End) => return Err(M::AfterTheEnd.into()),
            (Message::Have(_), _) if self.ours == Ours::Nothing && self.is_initiator() => {
                return Err(M::BeforeOurHave { got: name }.into());
            }
            (Message::Have(heights), Theirs::Nothing) => {
                self.theirs = Theirs::Have;
                Event::TheirHave(heights)
            }
            (_, Theirs::Nothing) => return Err(M::BeforeHave { got: name }.into()),
            (Message::Have(_), _) => return Err(M::HaveAgain.into()),
            (_, _) if self.ours == Ours::Nothing => {
                return Err(M::BeforeOurHave { got: name }.into());
            }
            (Message::PreSync { operations, bytes }, Theirs::Have) => {
                self.theirs = Theirs::PreSync {
                    announced: operations,
                    left: operations,
                };
                Event::TheirPlan { operations, bytes }
            }
            (Message::PreSync { .. }, _) => return Err(M::PreSyncAgain.into()),
            (Message::Operation { header, body }, Theirs::PreSync { announced, left }) => {
                let left = left
                    .checked_sub(1)
                    .ok_or(M::MoreThanAnnounced { announced })?;
                self.theirs = Theirs::PreSync { announced, left };
                self.count_received(&header, body.as_ref());
                Event::Operation { header, body }
            }
            (Message::Operation { .. }, _) => return Err(M::OperationUnannounced.into()),
            (Message::Done, Theirs::Have | Theirs::PreSync { .. }) => {
                self.theirs = Theirs::Done;
                self.close_if_ended()?;
                Event::TheirDone
            }
            // Stock does this when a log was pruned under a session that had nothing else to send.
            (Message::Done, Theirs::Done) => {
                self.theirs = Theirs::DoneAgain;
                return Ok(Judged::Nothing);
            }
            (Message::Done, _) => return Err(M::DoneAgain.into()),
            (Message::Live { .. } | Message::Close, _) if !self.exchange_ended() => {
                return Err(M::BeforeTheExchangeEnded { got: name }.into());
            }
            (Message::Live { header, body }, _) => {
                self.count_received(&header, body.as_ref());
                Event::Live { header, body }
            }
            (Message::Close, Theirs::Close) => return Ok(Judged::Nothing),
            (Message::Close, _) => {
                self.theirs = Theirs::Close;
                Event::Closed
            }
        };
        Ok(Judged::Event(event))
    }

    fn judge_end(&mut self) -> Result<Judged, SessionError> {
        if self.theirs == Theirs::End {
            return Ok(Judged::Over);
        }
        if !self.exchange_ended() || self.decoder.held() > 0 {
            return Err(Misbehaviour::EndedEarly {
                phase: match self.theirs {
                    Theirs::Nothing => "its Have",
                    Theirs::Have | Theirs::PreSync { .. } => "its Done",
                    _ if self.decoder.held() > 0 => "the end of a message",
                    _ => "our Done",
                },
            }
            .into());
        }
        self.theirs = Theirs::End;
        Ok(Judged::Event(Event::Ended))
    }

    fn is_initiator(&self) -> bool {
        self.role == Role::Initiator
    }

    fn is_live(&self) -> bool {
        self.exchange_ended()
            && self.ours == Ours::Done
            && !matches!(self.theirs, Theirs::Close | Theirs::End)
            && self.failed.is_none()
    }

    fn done(&mut self) -> Result<(), SessionError> {
        self.send(Message::Done)?;
        self.ours = Ours::Done;
        self.close_if_ended()
    }

    fn close_if_ended(&mut self) -> Result<(), SessionError> {
        if self.close_wanted && self.is_live() {
            self.send(Message::Close)?;
            self.ours = Ours::Close;
        }
        Ok(())
    }

    fn send(&mut self, message: Message) -> Result<(), SessionError> {
        match self.output.push(&message) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(SessionError::TooLong(error))),
        }
    }

    fn check(&self) -> Result<(), SessionError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: SessionError) -> SessionError {
        self.failed.get_or_insert(error).clone()
    }

    fn count_sent(&mut self, header: &Bytes, body: Option<&Bytes>) {
        self.counts.sent_operations += 1;
        self.counts.sent_bytes += (header.len() + body.map_or(0, Bytes::len)) as u64;
    }

    fn count_received(&mut self, header: &Bytes, body: Option<&Bytes>) {
        self.counts.received_operations += 1;
        self.counts.received_bytes += (header.len() + body.map_or(0, Bytes::len)) as u64;
    }
}

/// What comes of a message.
enum Judged {
    Event(Event),
    /// Nothing that anybody need know.
    Nothing,
    /// All was said.
    Over,
}

/// Why a session failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SessionError {
    /// The remote broke the order.
    #[error(transparent)]
    Misbehaved(#[from] Misbehaviour),
    /// The remote sent what is no message.
    #[error(transparent)]
    Encoding(#[from] FrameFault),
    /// A message of ours is too long to be sent.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Whoever drives the session called it out of order. The session goes on.
    #[error(transparent)]
    Misused(#[from] Misuse),
}

#[cfg(test)]
impl SessionError {
    /// Whose fault it is.
    pub(crate) fn fault(&self) -> super::protocol::Fault {
        use super::protocol::Fault;
        match self {
            Self::Misbehaved(_) | Self::Encoding(_) => Fault::Remote,
            Self::TooLong(_) | Self::Misused(_) => Fault::Ours,
        }
    }
}

impl From<SessionError> for SyncError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Misbehaved(it) => Self::unexpected(it),
            SessionError::Encoding(it) => Self::encoding(it),
            SessionError::TooLong(it) => Self::critical(it),
            SessionError::Misused(it) => Self::critical(it),
        }
    }
}

/// How the remote broke the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Misbehaviour {
    /// Something else before it said what it holds.
    #[error("{got} before Have")]
    BeforeHave {
        /// What came.
        got: &'static str,
    },
    /// It can not know what we hold yet.
    #[error("{got} before our Have was sent")]
    BeforeOurHave {
        /// What came.
        got: &'static str,
    },
    /// It said twice what it holds.
    #[error("a second Have")]
    HaveAgain,
    /// It announced twice, or after it was done.
    #[error("a second PreSync, or one after Done")]
    PreSyncAgain,
    /// An operation without a `PreSync` before it, or after `Done`.
    #[error("an Operation that was not announced, or after Done")]
    OperationUnannounced,
    /// More operations than it announced.
    #[error("more operations than the {announced} announced")]
    MoreThanAnnounced {
        /// How many it announced.
        announced: u32,
    },
    /// Done a third time, or after `Close`.
    #[error("Done again")]
    DoneAgain,
    /// Live operations belong behind both `Done`, and so does the end.
    #[error("{got} before the exchange ended")]
    BeforeTheExchangeEnded {
        /// What came.
        got: &'static str,
    },
    /// It ended its side in the middle.
    #[error("the stream ended before {phase}")]
    EndedEarly {
        /// What was missing.
        phase: &'static str,
    },
    /// Something came behind the last message.
    #[error("something behind the last message")]
    AfterTheEnd,
    /// A message of the topic handshake at another step.
    #[error("a message of the topic handshake that is not its turn")]
    HandshakeOutOfOrder,
}

/// How this side called a session out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Misuse {
    /// `our_have` twice.
    #[error("our Have was given twice")]
    HaveTwice,
    /// `plan` before both `Have`, or twice.
    #[error("the plan was given too early, or twice")]
    PlanOutOfOrder,
    /// Operations without a plan for them.
    #[error("operations were given without a plan, or after its end")]
    OperationsOutOfOrder,
    /// More operations than the plan has.
    #[error("more operations were given than planned")]
    MoreThanPlanned,
    /// Send first.
    #[error("no room: what waits must be sent first")]
    NoRoom,
    /// Not live yet, or not any more.
    #[error("the session is not live")]
    NotLive,
}
