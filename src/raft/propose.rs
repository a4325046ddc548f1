//! Handing a journal entry to the leader, wherever it is, and reading its answer.
//!
//! An entry goes to the leader as the bytes that will lie in the journal: nothing is encoded
//! again on the way. On [`Lane::Forward`] a message whose first byte is the entry's version is
//! such an entry; every other request begins with a byte of 16 and above.

use std::{future::Future, io, pin::pin};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use openraft::{errors::ClientWriteError, impls::OneshotResponder, raft::ClientWriteResult};
use serde::{Deserialize, Serialize};

use super::{Command, Raft, Types, codec, replica::Replica, sessions::Answer};
use crate::{
    bond::{Bond, Lane, LaneError},
    error::Cause,
    identity::MemberId,
    machine::Position,
};

/// The answer to one journal entry: where it stands and what became of each of its commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// The position of the entry's first command.
    pub(crate) at: Position,
    /// One a command; none for entries without commands.
    pub(crate) answers: Vec<Answer>,
}

/// What became of one attempt to have an entry committed.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It is committed and applied.
    Done(Reply),
    /// It was certainly not proposed; another attempt may be.
    NotProposed,
    /// It may have been proposed and may still be committed.
    Unclear,
    /// It was certainly not proposed and never can be: the text says why.
    Refused(String),
    /// The group does not run on this node any more.
    Stopped(Cause),
}

const DONE: u8 = 0;
const NOT_PROPOSED: u8 = 1;
const UNCLEAR: u8 = 2;
const REFUSED: u8 = 3;

const OUTPUT: u8 = 0;
const EARLIER: u8 = 1;
const EXPIRED: u8 = 2;
const LOST: u8 = 3;

/// Bytes of outputs that one answer to a forwarded entry may hold: what a lane's frame can take
/// with room to spare. Outputs beyond it are said to be lost; the commands were applied.
const OUTPUT_BYTES_MAX: usize = crate::config::COMMAND_BYTES_LIMIT;

impl Replica {
    /// Tries once to have this entry committed by the leader this node knows of.
    ///
    /// Entries given by one caller one after the other reach the leader's journal in that order
    /// while the leader stays the same: what leads to that happens before this returns.
    pub(crate) fn propose(&self, entry: Bytes) -> BoxFuture<'static, Attempt> {
        if let Some(cause) = self.stopped() {
            return Box::pin(async { Attempt::Stopped(cause) });
        }
        let (Some(raft), Some(leader)) = (self.raft(), self.leader()) else {
            return Box::pin(async { Attempt::NotProposed });
        };
        if let Err(error) = self.store().check_writable() {
            return Box::pin(async move { Attempt::Refused(error.to_string()) });
        }
        if leader == self.member() {
            if self.intake_is_closed() {
                return Box::pin(async { Attempt::NotProposed });
            }
            return Box::pin(propose_here(raft, entry));
        }
        let Some(bond) = self.mesh().bond_to(leader) else {
            return Box::pin(async { Attempt::NotProposed });
        };
        // Its commands were validated before they were packed; it comes back as an append.
        if let Some(validator) = self.validator() {
            validator.vouch(&entry);
        }
        let asking = self.ask_over(bond, leader, entry);
        Box::pin(async move {
            match asking.await {
                Ok(answer) => decode_attempt(answer).unwrap_or_else(|error| {
                    tracing::warn!(%leader, %error, "the leader's answer cannot be read");
                    Attempt::Unclear
                }),
                Err(LaneError::TooLarge { .. }) => Attempt::NotProposed,
                Err(_) => Attempt::Unclear,
            }
        })
    }

    /// One request to the leader over its bond. Given up once somebody else is known to lead: the
    /// bond of a leader that has died ends long after there is another.
    pub(super) fn ask_over(
        &self,
        bond: Bond,
        leader: MemberId,
        request: Bytes,
    ) -> impl Future<Output = Result<Bytes, LaneError>> + Send + 'static {
        let mut told = self.watch();
        async move {
            tokio::select! {
                biased;
                answer = bond.request(Lane::Forward, request) => answer,
                _ = told.wait_for(|it| it.leader.is_some_and(|it| it != leader)) => {
                    Err(LaneError::Terminated)
                }
            }
        }
    }

    /// Proposes an entry that another member forwarded, if this node leads. Entries of one member
    /// are proposed in the order in which they are given.
    pub(super) fn propose_forwarded(
        &self,
        from: MemberId,
        entry: Bytes,
    ) -> BoxFuture<'static, Attempt> {
        if self.stopped().is_some() || !self.takes_commands() {
            return Box::pin(async { Attempt::NotProposed });
        }
        let checked = self
            .store()
            .check_writable()
            .and_then(|()| self.check_entry(&entry));
        if let Err(error) = checked {
            return Box::pin(async move { Attempt::Refused(error.to_string()) });
        }
        let Some(raft) = self.raft() else {
            return Box::pin(async { Attempt::NotProposed });
        };
        let Some(validator) = self.validator().cloned() else {
            return Box::pin(propose_here(raft, entry));
        };
        let (me, mut turn) = (self.me(), self.turns().take(from));
        Box::pin(async move {
            let valid = validator.entries(vec![entry.clone()]).await;
            turn.come().await;
            let Some(replica) = me.upgrade().filter(|it| it.stopped().is_none()) else {
                return Attempt::NotProposed;
            };
            if let Err(why) = valid {
                replica.note_invalid(from, &why);
                return Attempt::Refused(why.to_string());
            }
            // Another may lead by now, or be about to.
            if !replica.takes_commands() {
                return Attempt::NotProposed;
            }
            drop(replica);
            let proposed = propose_here(raft, entry);
            drop(turn);
            proposed.await
        })
    }

    fn takes_commands(&self) -> bool {
        self.leader() == Some(self.member()) && !self.intake_is_closed()
    }
}

/// Gives the entry to the Raft core before it returns, and answers once it is applied.
fn propose_here(raft: Raft, entry: Bytes) -> impl Future<Output = Attempt> + Send + 'static {
    let (responder, answer) = OneshotResponder::<Types, ClientWriteResult<Types>>::new_pair();
    let mut sending: BoxFuture<'static, _> =
        Box::pin(async move { raft.client_write_ff(Command(entry), Some(responder)).await });
    // The first poll puts it into the core's queue unless that is full.
    let sent = (&mut sending).now_or_never();
    async move {
        let sent = match sent {
            Some(sent) => sent,
            None => pin!(sending).await,
        };
        if sent.is_err() {
            return Attempt::Unclear;
        }
        match answer.await {
            Ok(Ok(written)) => Attempt::Done(written.data),
            // The core answers this before anything is appended.
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Attempt::NotProposed,
            Ok(Err(_)) | Err(_) => Attempt::Unclear,
        }
    }
}

pub(super) fn encode_attempt(attempt: &Attempt) -> Bytes {
    let reply = match attempt {
        Attempt::Done(reply) => reply,
        Attempt::NotProposed => return Bytes::from_static(&[NOT_PROPOSED]),
        Attempt::Unclear | Attempt::Stopped(_) => return Bytes::from_static(&[UNCLEAR]),
        Attempt::Refused(why) => return [&[REFUSED], why.as_bytes()].concat().into(),
    };
    let bytes: usize = reply.answers.iter().map(|it| 32 + output_len(it)).sum();
    let mut room = OUTPUT_BYTES_MAX;
    let mut out = BytesMut::with_capacity(32 + bytes.min(OUTPUT_BYTES_MAX));
    out.put_u8(DONE);
    out.put_u64_le(reply.at.term);
    out.put_u64_le(reply.at.index);
    out.put_u32_le(u32::try_from(reply.answers.len()).unwrap_or(u32::MAX));
    for answer in &reply.answers {
        let Some(left) = room.checked_sub(output_len(answer)) else {
            out.put_u8(LOST);
            continue;
        };
        room = left;
        match answer {
            Answer::Output(bytes) => {
                out.put_u8(OUTPUT);
                put_output(&mut out, bytes);
            }
            Answer::Earlier(at, bytes) => {
                out.put_u8(EARLIER);
                out.put_u64_le(at.term);
                out.put_u64_le(at.index);
                out.put_u32_le(at.offset);
                put_output(&mut out, bytes);
            }
            Answer::Expired => out.put_u8(EXPIRED),
            Answer::Lost => out.put_u8(LOST),
        }
    }
    out.freeze()
}

pub(super) fn decode_attempt(mut from: Bytes) -> io::Result<Attempt> {
    match codec::take_u8(&mut from)? {
        DONE => {}
        NOT_PROPOSED => return Ok(Attempt::NotProposed),
        UNCLEAR => return Ok(Attempt::Unclear),
        REFUSED => {
            return Ok(Attempt::Refused(
                String::from_utf8_lossy(&from).into_owned(),
            ));
        }
        _ => return Err(codec::malformed("an answer of an unknown kind")),
    }
    let at = Position {
        term: codec::take_u64(&mut from)?,
        index: codec::take_u64(&mut from)?,
        offset: 0,
    };
    let count = codec::take_u32(&mut from)? as usize;
    let mut answers = Vec::with_capacity(count.min(from.len()));
    for _ in 0..count {
        answers.push(match codec::take_u8(&mut from)? {
            OUTPUT => Answer::Output(take_output(&mut from)?),
            EARLIER => {
                let at = Position {
                    term: codec::take_u64(&mut from)?,
                    index: codec::take_u64(&mut from)?,
                    offset: codec::take_u32(&mut from)?,
                };
                Answer::Earlier(at, take_output(&mut from)?)
            }
            EXPIRED => Answer::Expired,
            LOST => Answer::Lost,
            _ => return Err(codec::malformed("an answer of an unknown kind")),
        });
    }
    codec::end(&from)?;
    Ok(Attempt::Done(Reply { at, answers }))
}

fn put_output(out: &mut BytesMut, bytes: &Bytes) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn take_output(from: &mut Bytes) -> io::Result<Bytes> {
    let length = codec::take_u32(from)? as usize;
    if from.len() < length {
        return Err(codec::malformed("fewer bytes than it says"));
    }
    Ok(from.split_to(length))
}

fn output_len(answer: &Answer) -> usize {
    match answer {
        Answer::Output(bytes) | Answer::Earlier(_, bytes) => bytes.len(),
        Answer::Expired | Answer::Lost => 0,
    }
}

impl Replica {
    /// Whether a forwarded entry may be proposed: well-formed, within the limits, and all of its
    /// commands known to the machine.
    fn check_entry(&self, entry: &Bytes) -> io::Result<()> {
        let super::Batch::Commands { commands, .. } = super::Batch::decode(entry)? else {
            return Ok(());
        };
        let max = self.config().command_bytes_max;
        for command in &commands {
            if command.len() > max {
                return Err(codec::malformed("a command larger than this member allows"));
            }
            (self.check_command())(command).map_err(|_| {
                codec::malformed("a command that this member's machine cannot read")
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let reply = Reply {
            at: Position {
                term: 3,
                index: 9,
                offset: 0,
            },
            answers: vec![
                Answer::Output(Bytes::from_static(b"abc")),
                Answer::Expired,
                Answer::Lost,
                Answer::Earlier(
                    Position {
                        term: 1,
                        index: 2,
                        offset: 3,
                    },
                    Bytes::from_static(b"x"),
                ),
                Answer::Output(Bytes::new()),
            ],
        };
        let bytes = encode_attempt(&Attempt::Done(reply.clone()));
        match decode_attempt(bytes.clone()).expect("reads") {
            Attempt::Done(read) => assert_eq!(read, reply),
            other => panic!("{other:?}"),
        }
        for cut in 0..bytes.len() {
            assert!(decode_attempt(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn outputs_that_do_not_fit_a_frame_are_lost_and_the_others_are_not() {
        let large = Answer::Output(Bytes::from(vec![7; OUTPUT_BYTES_MAX / 2 + 1]));
        let small = Answer::Output(Bytes::from_static(b"small"));
        let reply = Reply {
            at: Position::default(),
            answers: vec![large.clone(), large.clone(), small.clone()],
        };
        match decode_attempt(encode_attempt(&Attempt::Done(reply))).expect("reads") {
            Attempt::Done(read) => assert_eq!(read.answers, [large, Answer::Lost, small]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_attempt_without_an_answer_keeps_what_it_says() {
        let read = |it| decode_attempt(encode_attempt(&it)).expect("reads");
        assert!(matches!(read(Attempt::NotProposed), Attempt::NotProposed));
        assert!(matches!(read(Attempt::Unclear), Attempt::Unclear));
        assert!(matches!(
            read(Attempt::Stopped(Cause::new("x"))),
            Attempt::Unclear
        ));
        assert!(matches!(read(Attempt::Refused("no".into())), Attempt::Refused(it) if it == "no"));
    }
}
