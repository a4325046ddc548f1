//! Linearizable reads on any member: ReadIndex, one round for everybody who waits.
//!
//! A read may be answered from the state at or behind the read index: the leader's commit index
//! at some moment after the read was asked, confirmed by a quorum to be the leader's still.
//! Nothing here trusts a clock. (Ongaro, *Consensus: Bridging Theory and Practice*, section 6.4.)

use std::{io, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};

use super::{codec, replica::Replica};
use crate::error::Cause;

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
            Ok(None) => Err(self.stopped().map_or(ReadError::NoLeader, ReadError::Stopped)),
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

    async fn read_index_here(&self) -> Option<u64> {
        let linearizer = self.raft()?.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
        Some(linearizer.read_log_id().index())
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
