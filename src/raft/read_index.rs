//! Linearizable reads on any member: ReadIndex, one round for everybody who waits.
//!
//! A read may be answered from the state at or behind the read index: the leader's commit index
//! at some moment after the read was asked, confirmed by a quorum to be the leader's still.
//! Nothing here trusts a clock. (Ongaro, *Consensus: Bridging Theory and Practice*, section 6.4.)

use std::{collections::BTreeSet, io, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use openraft::{ReadPolicy, raft::AppendEntriesRequest};
use tokio::sync::{mpsc, oneshot};

use super::{Membership, Types, Vote, codec, network::APPEND, replica::Replica};
use crate::{bond::Lane, error::Cause, identity::MemberId};

/// Reads that may wait for a round; a further one waits for room.
const WAITING_MAX: usize = 8_192;
/// Pause after a round that found no leader, so that a group without one is not asked in a spin.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Why a read index cannot be had.
#[derive(Clone, Debug)]
pub(crate) enum ReadError {
    /// No quorum confirmed a leader in time.
    NoLeader,
    /// The group does not run on this node any more.
    Stopped(Cause),
}

type Answer = oneshot::Sender<u64>;

/// Where reads queue up for the next round.
pub(super) struct ReadRounds {
    ask: mpsc::Sender<Answer>,
}

impl ReadRounds {
    /// The queue and the task that serves it; the task ends with the replica.
    pub(super) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (ask, asked) = mpsc::channel(WAITING_MAX);
        (Self { ask }, asked)
    }
}

impl Replica {
    /// An index such that a state which has applied it holds everything that was acknowledged,
    /// and everything any read has seen, when this was called.
    pub(crate) async fn read_index(&self, patience: Duration) -> Result<u64, ReadError> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.read_rounds().ask.send(answer).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(Some(index)) => Ok(index),
            Ok(None) => Err(self
                .stopped()
                .map_or(ReadError::NoLeader, ReadError::Stopped)),
            Err(_) => Err(ReadError::NoLeader),
        }
    }

    /// Serves rounds until the replica stops. Whoever asks while a round is under way waits for
    /// the next one: a round confirms only what was asked before it began.
    pub(super) async fn serve_reads(&self, mut asked: mpsc::Receiver<Answer>) {
        let mut waiting: Vec<Answer> = Vec::new();
        loop {
            if waiting.is_empty() && asked.recv_many(&mut waiting, WAITING_MAX).await == 0 {
                return;
            }
            while waiting.len() < WAITING_MAX
                && let Ok(more) = asked.try_recv()
            {
                waiting.push(more);
            }
            match self.read_round().await {
                Some(index) => waiting.drain(..).for_each(|answer| {
                    let _ = answer.send(index);
                }),
                None => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    // Who has lost patience has dropped the other end.
                    waiting.retain(|it| !it.is_closed());
                }
            }
        }
    }

    async fn read_round(&self) -> Option<u64> {
        let leader = self.leader()?;
        if leader == self.member() {
            return self.read_index_here().await;
        }
        let bond = self.mesh().bond_to(leader)?;
        let answer = self.ask_over(bond, leader, Bytes::from_static(&[READ_INDEX]));
        let limit = self.config().timing.election_timeout_max * 2;
        let answer = tokio::time::timeout(limit, answer).await.ok()?.ok()?;
        decode_read_index(answer).ok().flatten()
    }

    /// The read index that openraft gives to a leader with a lease, once our own round of
    /// questions has confirmed that this leader leads.
    ///
    /// openraft's own round (`ReadPolicy::ReadIndex`) is not used: it takes the answer to an append
    /// for the answer to every later one of no higher index, so an answer from before a read, to
    /// an append before it, can vouch for an empty append sent after it. A leader that hung wakes
    /// with such answers in its socket, and would answer from before its successor.
    async fn read_index_here(&self) -> Option<u64> {
        let raft = self.raft()?;
        let seen = raft.with_raft_state(|it| {
            let membership = it.membership_state.effective().membership().clone();
            (*it.vote_ref(), membership)
        });
        let (vote, membership) = seen.await.ok()?;
        if !vote.committed || vote.leader_id.voted_for != self.member() {
            return None;
        }
        // Both after the read was asked, in one term: their order does not matter.
        let index = async {
            let linearizer = raft.get_read_linearizer(ReadPolicy::LeaseRead).await.ok()?;
            let id = *linearizer.read_log_id().log_id();
            (id.leader_id.term == vote.leader_id.term).then_some(id.index)
        };
        let limit = self.config().timing.election_timeout_max;
        let confirmed = tokio::time::timeout(limit, self.leads_still(vote, &membership));
        let (index, confirmed) = tokio::join!(index, confirmed);
        index.filter(|_| confirmed == Ok(true))
    }

    /// Whether a majority has not heard of a higher vote after this was called. Each question is an
    /// empty append, and its answer is matched to it by number.
    async fn leads_still(&self, vote: Vote, membership: &Membership) -> bool {
        let configurations = membership.get_joint_config();
        let mut with_us = BTreeSet::from([self.member()]);
        let mut asked: FuturesUnordered<_> = membership
            .voter_ids()
            .filter(|it| *it != self.member())
            .map(|member| async move { (member, self.follows(member, vote).await) })
            .collect();
        loop {
            let majority =
                |it: &BTreeSet<MemberId>| it.intersection(&with_us).count() > it.len() / 2;
            if configurations.iter().all(majority) {
                return true;
            }
            match asked.next().await {
                Some((member, true)) => {
                    with_us.insert(member);
                }
                Some((_, false)) => {}
                None => return false,
            }
        }
    }

    async fn follows(&self, member: MemberId, vote: Vote) -> bool {
        let Some(bond) = self.mesh().bond_to(member) else {
            return false;
        };
        let empty = AppendEntriesRequest::<Types> {
            vote,
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let mut message = BytesMut::with_capacity(128);
        message.put_u8(APPEND);
        codec::put_member(&mut message, member);
        message.put_slice(&codec::encode_append(&empty));
        match bond.request(Lane::Vote, message.freeze()).await {
            Ok(answer) => matches!(codec::decode_appended(answer), Ok(Ok(_))),
            Err(_) => false,
        }
    }

    /// Answers another member's question. It joins our own queue, so that one round serves both.
    pub(super) fn read_index_forwarded(&self) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            let found = if self.leader() == Some(self.member()) {
                let patience = self.config().timing.election_timeout_max;
                self.read_index(patience).await.ok()
            } else {
                None
            };
            encode_read_index(found)
        })
    }
}

/// The request's first byte on [`Lane::Forward`].
pub(super) const READ_INDEX: u8 = 16;

fn encode_read_index(index: Option<u64>) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(u8::from(index.is_some()));
    out.put_u64_le(index.unwrap_or_default());
    out.freeze()
}

fn decode_read_index(mut from: Bytes) -> io::Result<Option<u64>> {
    let found = codec::take_u8(&mut from)? == 1;
    let index = codec::take_u64(&mut from)?;
    Ok(found.then_some(index))
}
