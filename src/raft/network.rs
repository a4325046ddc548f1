//! How Raft messages leave: over bonds, a pipelined stream of appends to each member, votes and
//! heartbeats on a lane of their own, snapshots in chunks with credits.

use std::{
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
    stream,
};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
};
use tokio::sync::Semaphore;

use super::{MemberNode, Types, Vote, codec, machine::SnapshotFile};
use crate::{
    bond::{Bond, Lane, LaneError, StreamKind},
    identity::MemberId,
    mesh::Mesh,
    net::{BondStream, RecvStream, SendStream, WireError},
    storage::StoredSnapshot,
};

/// Appends under way to one member; together with the entries one may carry, this bounds what a
/// member that does not answer can make us hold.
const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// The largest frame of a stream of appends: a packed entry of the largest command beside others.
pub(super) const APPEND_FRAME_MAX: usize = 24 * 1024 * 1024;
/// The largest answer on a stream of appends or snapshots.
pub(super) const ANSWER_FRAME_MAX: usize = 4 * 1024;
/// Bytes of a snapshot in one frame.
const SNAPSHOT_CHUNK: usize = 256 * 1024;
/// The largest frame of a stream of snapshots.
pub(super) const SNAPSHOT_FRAME_MAX: usize = 2 * SNAPSHOT_CHUNK;
/// Chunks sent and not yet acknowledged: 1 MiB, so that a snapshot cannot fill the connection's
/// window and delay appends.
const SNAPSHOT_CREDITS: u64 = 4;
/// A credit is the count of bytes received; any other length is the final answer.
const CREDIT_BYTES: usize = 8;
/// How long a receiver may take over its credits before the transfer is given up.
const SNAPSHOT_STALL_MAX: Duration = Duration::from_secs(30);

/// Requests on [`Lane::Vote`].
pub(super) const VOTE: u8 = 1;
pub(super) const PRE_VOTE: u8 = 2;
pub(super) const APPEND: u8 = 3;
pub(super) const TRANSFER: u8 = 4;

/// Makes a client for each member and class of messages.
pub(super) struct Network {
    pub(super) mesh: Mesh,
}

/// Sends to one member. The bond is looked up at each use: it may have been lost and made anew.
pub(crate) struct Client {
    mesh: Mesh,
    target: MemberId,
    /// Heartbeats go as single requests on the lane that nothing can delay.
    heartbeat: bool,
    /// The stream of appends of the last session, if that one ended with nothing outstanding.
    stream: Option<(Bond, BondStream)>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: MemberId, _: &MemberNode) -> Client {
        Client {
            mesh: self.mesh.clone(),
            target,
            heartbeat: false,
            stream: None,
        }
    }

    async fn new_heartbeat_client(&mut self, target: MemberId, _: &MemberNode) -> Client {
        Client {
            mesh: self.mesh.clone(),
            target,
            heartbeat: true,
            stream: None,
        }
    }
}

impl Client {
    fn bond(&self) -> Result<Bond, RPCError<Types>> {
        self.mesh
            .bond_to(self.target)
            .ok_or_else(|| Unreachable::from_string("no bond with this member").into())
    }

    async fn ask(
        &self,
        kind: u8,
        body: impl FnOnce(&mut BytesMut),
    ) -> Result<Bytes, RPCError<Types>> {
        let bond = self.bond()?;
        let mut message = BytesMut::with_capacity(128);
        message.put_u8(kind);
        codec::put_member(&mut message, self.target);
        body(&mut message);
        bond.request(Lane::Vote, message.freeze())
            .await
            .map_err(lane_failed)
    }

    async fn ask_append(
        &self,
        request: AppendEntriesRequest<Types>,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        let encoded = codec::encode_append(&request);
        let answer = self.ask(APPEND, |to| to.put_slice(&encoded)).await?;
        codec::decode_appended(answer).map_err(|error| NetworkError::new(&error).into())
    }

    /// The stream of appends: the last session's if its bond still stands, else a new one.
    async fn append_stream(&mut self) -> Result<(), RPCError<Types>> {
        if let Some((bond, _)) = &self.stream
            && !bond.is_terminated()
        {
            return Ok(());
        }
        let bond = self.bond()?;
        let mut opened = bond
            .open_stream(StreamKind::Append)
            .await
            .map_err(lane_failed)?;
        let mut hello = BytesMut::with_capacity(16);
        codec::put_member(&mut hello, self.target);
        opened
            .send
            .write_frame(hello.freeze())
            .await
            .map_err(broken)?;
        self.stream = Some((bond, opened));
        Ok(())
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Ok(self.ask_append(request).await?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if self.heartbeat {
                let client = &*self;
                let answers = stream::unfold(input, move |mut input| async move {
                    let request = input.next().await?;
                    Some((client.ask_append(request).await, input))
                });
                return Ok(Box::pin(answers) as BoxStream<'s, _>);
            }
            // openraft sits out its backoff in here: ask for a request before anything can fail, or
            // a member out of reach is tried in a spin.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            self.append_stream().await?;
            let input = Box::pin(stream::once(std::future::ready(first)).chain(input));
            let Some(run) = Appending::start(&mut self.stream, input) else {
                return Err(Unreachable::from_string("the stream is gone").into());
            };
            Ok(Box::pin(run.answers()) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self
            .ask(VOTE, |to| codec::put_vote_request(to, &request))
            .await?;
        codec::decode_vote_response(answer).map_err(|error| NetworkError::new(&error).into())
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self
            .ask(PRE_VOTE, |to| codec::put_vote_request(to, &request))
            .await?;
        codec::decode_vote_response(answer).map_err(|error| NetworkError::new(&error).into())
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let answer = self
            .ask(TRANSFER, |to| {
                codec::put_vote(to, request.from_leader());
                codec::put_member(to, *request.to_node_id());
                codec::put_log_id(to, request.last_log_id());
            })
            .await?;
        decode_transferred(answer).map_err(|error| NetworkError::new(&error).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotFile::Stored(stored) = snapshot.snapshot else {
            let text = "a snapshot that is still being received cannot be sent";
            return Err(NetworkError::from_string(text).into());
        };
        let bond = self.bond().map_err(|error| match error {
            RPCError::Unreachable(it) => StreamingError::Unreachable(it),
            other => NetworkError::new(&other).into(),
        })?;
        let sending = pin!(send_snapshot(bond, self.target, vote, stored));
        match select(sending, pin!(cancel)).await {
            Either::Left((sent, _)) => sent.map_err(|error| NetworkError::new(&error).into()),
            Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Option<openraft::network::Backoff> {
        let steps = [10, 20, 40, 80, 160]
            .into_iter()
            .chain(std::iter::repeat(250));
        Some(openraft::network::Backoff::new(
            steps.map(Duration::from_millis),
        ))
    }
}

/// One run of appends over a stream: requests go out while answers come in, in the same order.
///
/// # Invariants
/// - `received <= sent`; the run ends well only when nothing is outstanding and the input is used
///   up, and only then does the stream go back to its slot.
struct Appending<'s> {
    slot: &'s mut Option<(Bond, BondStream)>,
    bond: Bond,
    /// Writes all of the input; gives the sending half back at its end.
    writing: Option<BoxFuture<'static, Result<SendStream, WireError>>>,
    written: Option<SendStream>,
    recv: RecvStream,
    sent: Arc<AtomicU64>,
    received: u64,
    in_flight: Arc<Semaphore>,
}

impl<'s> Appending<'s> {
    fn start(
        slot: &'s mut Option<(Bond, BondStream)>,
        input: impl Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    ) -> Option<Self> {
        let (bond, BondStream { send, recv }) = slot.take()?;
        let sent = Arc::<AtomicU64>::default();
        let in_flight = Arc::new(Semaphore::new(APPENDS_IN_FLIGHT_MAX));
        Some(Self {
            slot,
            bond,
            writing: Some(Box::pin(write_all(
                input,
                send,
                Arc::clone(&sent),
                Arc::clone(&in_flight),
            ))),
            written: None,
            recv,
            sent,
            received: 0,
            in_flight,
        })
    }

    fn answers(
        self,
    ) -> impl Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> + 's {
        stream::unfold(Some(self), |run| async move {
            let mut run = run?;
            match run.next_answer().await {
                None => {
                    run.give_back();
                    None
                }
                Some(answer @ Ok(Ok(_))) => Some((answer, Some(run))),
                // After a refusal or a failure the stream is of no use to a later session.
                Some(last) => Some((last, None)),
            }
        })
    }

    async fn next_answer(&mut self) -> Option<Result<StreamAppendResult<Types>, RPCError<Types>>> {
        loop {
            if self.writing.is_none() && self.received == self.sent.load(Ordering::Acquire) {
                return None;
            }
            let frame = if let Some(writing) = &mut self.writing {
                tokio::select! {
                    wrote = writing => match wrote {
                        Ok(send) => {
                            self.written = Some(send);
                            self.writing = None;
                            continue;
                        }
                        Err(error) => return Some(Err(broken(error))),
                    },
                    frame = self.recv.read_frame(ANSWER_FRAME_MAX) => frame,
                }
            } else {
                self.recv.read_frame(ANSWER_FRAME_MAX).await
            };
            let Some(answer) = (match frame {
                Ok(answer) => answer,
                Err(error) => return Some(Err(NetworkError::new(&error).into())),
            }) else {
                return Some(Err(NetworkError::from_string(
                    "the member ended the stream",
                )
                .into()));
            };
            self.received += 1;
            self.in_flight.add_permits(1);
            let answer = codec::decode_appended(answer);
            return Some(answer.map_err(|error| NetworkError::new(&error).into()));
        }
    }

    fn give_back(mut self) {
        if let Some(send) = self.written.take() {
            let recv = self.recv;
            *self.slot = Some((self.bond, BondStream { send, recv }));
        }
    }
}

async fn write_all(
    mut input: impl Stream<Item = AppendEntriesRequest<Types>> + Unpin,
    mut send: SendStream,
    sent: Arc<AtomicU64>,
    in_flight: Arc<Semaphore>,
) -> Result<SendStream, WireError> {
    loop {
        // Room first: a request that was taken from the input must go out.
        match in_flight.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Ok(send),
        }
        let Some(request) = input.next().await else {
            return Ok(send);
        };
        sent.fetch_add(1, Ordering::AcqRel);
        send.write_frame(codec::encode_append(&request)).await?;
    }
}

/// Sends a stored snapshot as it lies on disk and waits until it is installed.
async fn send_snapshot(
    bond: Bond,
    target: MemberId,
    vote: Vote,
    stored: StoredSnapshot,
) -> io::Result<SnapshotResponse<Types>> {
    let opened = bond.open_stream(StreamKind::Snapshot).await;
    let BondStream { mut send, mut recv } = opened.map_err(io::Error::other)?;
    let mut head = BytesMut::new();
    codec::put_member(&mut head, target);
    codec::put_vote(&mut head, &vote);
    head.put_u64_le(stored.len());
    head.put_slice(stored.meta());
    send.write_frame(head.freeze())
        .await
        .map_err(io::Error::other)?;
    let (mut offset, mut acknowledged) = (0, 0);
    while offset < stored.len() {
        while offset - acknowledged >= SNAPSHOT_CREDITS * SNAPSHOT_CHUNK as u64 {
            acknowledged = codec::take_u64(&mut credit(&mut recv).await?)?;
            if acknowledged > offset {
                return Err(codec::malformed("more received bytes than were sent"));
            }
        }
        let source = stored.clone();
        let reading = tokio::task::spawn_blocking(move || source.read_at(offset, SNAPSHOT_CHUNK));
        let chunk = reading.await.map_err(io::Error::other)??;
        offset += chunk.len() as u64;
        send.write_frame(chunk).await.map_err(io::Error::other)?;
    }
    send.finish();
    // Credits for the last chunks still come before the answer. Installing takes as long as the
    // state is large: only the end of the bond ends this wait.
    loop {
        let frame = recv
            .read_frame(ANSWER_FRAME_MAX)
            .await
            .map_err(io::Error::other)?;
        let mut frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.len() != CREDIT_BYTES {
            return Ok(SnapshotResponse::new(codec::take_vote(&mut frame)?));
        }
    }
}

async fn credit(recv: &mut RecvStream) -> io::Result<Bytes> {
    let frame = tokio::time::timeout(SNAPSHOT_STALL_MAX, recv.read_frame(ANSWER_FRAME_MAX)).await;
    match frame {
        Ok(Ok(Some(frame))) => Ok(frame),
        Ok(Ok(None)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

pub(super) fn encode_transferred(result: &TransferLeaderResponse<Types>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    match result {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            codec::put_vote(&mut out, expected);
            codec::put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            codec::put_log_id(&mut out, expected.as_ref());
            codec::put_log_id(&mut out, actual.as_ref());
        }
    }
    out.freeze()
}

fn decode_transferred(mut from: Bytes) -> io::Result<TransferLeaderResponse<Types>> {
    Ok(match codec::take_u8(&mut from)? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged {
            expected: codec::take_vote(&mut from)?,
            actual: codec::take_vote(&mut from)?,
        }),
        2 => Err(TransferLeaderError::LogNotFlushed {
            expected: codec::take_log_id(&mut from)?,
            actual: codec::take_log_id(&mut from)?,
        }),
        _ => return Err(codec::malformed("a transfer answer of an unknown kind")),
    })
}

fn lane_failed(error: LaneError) -> RPCError<Types> {
    match error {
        LaneError::Terminated => Unreachable::new(&error).into(),
        other => NetworkError::new(&other).into(),
    }
}

fn broken(error: WireError) -> RPCError<Types> {
    NetworkError::new(&error).into()
}
