//! What bonds bring in: who is let in after the proof, and what each message may do.
//!
//! Holding the key makes a peer no leader. Every Raft message is checked: it is for this member,
//! and the sender that its vote names is the member proven on the bond it came by. It is not
//! checked against the local membership: joiners and laggards must hear leaders they do not know.

use std::{io, sync::Weak};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    StreamExt,
    future::{self, BoxFuture},
    pin_mut, stream,
    stream::BoxStream,
};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteResponse};

use super::{
    Raft, Types, Vote, codec,
    machine::SnapshotFile,
    membership::MEMBERSHIP,
    network::{
        ANSWER_FRAME_MAX, APPEND, APPEND_FRAME_MAX, PRE_VOTE, SNAPSHOT_FRAME_MAX, TRANSFER, VOTE,
        encode_transferred,
    },
    propose::encode_attempt,
    read_index::READ_INDEX,
    replica::Replica,
    validate::APPENDS_AHEAD,
};
use crate::{
    bond::{Introduction, Lane, MeshEvent, Proven, Refusal, Service, StreamKind},
    identity::{MemberId, PeerAddr, PeerId},
    net::{BondStream, RecvStream},
};

/// Requests with a first byte below this are journal entries, forwarded as they are.
const FIRST_REQUEST: u8 = 16;
/// Terms beyond this come from a member gone wrong: at a million elections a second it lasts
/// 140,000 years, and counting on from it never overflows.
const TERM_MAX: u64 = u64::MAX / 4;

/// The group's answers to its bonds.
pub(super) struct Inbound(pub(super) Weak<Replica>);

impl Service for Inbound {
    fn introduction(&self) -> Introduction {
        // A replica that is gone names a member that nobody is, and is refused.
        self.0.upgrade().map_or_else(
            || Introduction {
                genesis: None,
                member: MemberId::default(),
                format: 0,
                machine: String::new(),
            },
            |it| it.introduction(),
        )
    }

    fn admit<'a>(
        &'a self,
        peer: PeerId,
        theirs: &'a Introduction,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            match self.0.upgrade() {
                Some(replica) => replica.admit(peer, theirs).await,
                None => Err(Refusal::Stopped),
            }
        })
    }

    fn pulse(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(replica) = self.0.upgrade() else {
                return false;
            };
            match replica.raft() {
                Some(_) if replica.stopped().is_some() => false,
                Some(raft) => raft.with_raft_state(|_| ()).await.is_ok(),
                // Not admitted yet: there is no core that could hang.
                None => replica.stopped().is_none() && !replica.was_admitted(),
            }
        })
    }

    fn request(&self, from: Proven, lane: Lane, body: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        let Some(replica) = self.0.upgrade() else {
            return Box::pin(async { None });
        };
        match (lane, body.first().copied()) {
            (Lane::Vote, Some(kind)) => Box::pin(async move {
                let answer = answer_vote_lane(&replica, &from, kind, body.slice(1..)).await;
                answer
                    .inspect_err(|error| tracing::warn!(member = %from.member, %error, "refused"))
                    .ok()
                    .flatten()
            }),
            (Lane::Forward, Some(kind)) if kind < FIRST_REQUEST => {
                // Proposed before this returns, or given its turn, so that entries keep the order
                // they came in.
                let attempt = replica.propose_forwarded(from.member, body);
                Box::pin(async move { Some(encode_attempt(&attempt.await)) })
            }
            (Lane::Forward, Some(READ_INDEX)) => {
                Box::pin(async move { Some(replica.read_index_forwarded().await) })
            }
            (Lane::Forward, Some(MEMBERSHIP)) => {
                Box::pin(async move { replica.membership_forwarded(from, body.slice(1..)).await })
            }
            _ => Box::pin(async { None }),
        }
    }

    fn stream(&self, from: Proven, kind: StreamKind, stream: BondStream) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(replica) = self.0.upgrade() else {
                return;
            };
            let served = match kind {
                StreamKind::Append => serve_appends(&replica, &from, stream).await,
                StreamKind::Snapshot => receive_snapshot(&replica, &from, stream).await,
            };
            if let Err(error) = served {
                tracing::debug!(member = %from.member, ?kind, %error, "a stream ended early");
            }
        })
    }

    fn event(&self, event: MeshEvent) {
        if let Some(replica) = self.0.upgrade() {
            replica.mesh_event(event);
        }
    }

    fn roster_changed(&self, roster: Vec<PeerAddr>) {
        if let Some(replica) = self.0.upgrade() {
            replica.keep_roster(roster);
        }
    }
}

async fn answer_vote_lane(
    replica: &Replica,
    from: &Proven,
    kind: u8,
    mut body: Bytes,
) -> io::Result<Option<Bytes>> {
    check_target(replica, &mut body)?;
    let Some(raft) = replica.raft() else {
        return Ok(None);
    };
    Ok(match kind {
        VOTE | PRE_VOTE => {
            let request = codec::take_vote_request(&mut body)?;
            codec::end(&body)?;
            check_candidate(&request.vote, from)?;
            let response =
                if !request.leadership_transfer && replica.follows_a_live_leader(from.member) {
                    refuse_vote(&raft).await
                } else if kind == VOTE {
                    raft.vote(request).await.ok()
                } else {
                    raft.pre_vote(request).await.ok()
                };
            response.map(|it| codec::encode_vote_response(&it))
        }
        APPEND => {
            let request = codec::decode_append(body)?;
            check_heard_leader(replica, &request.vote, from)?;
            let valid = replica.validate_append(&request).await;
            valid.map_err(io::Error::other)?;
            hear(replica, from);
            let answers = raft.stream_append(stream::once(async { request }).boxed());
            pin_mut!(answers);
            let answer = answers.next().await;
            answer
                .and_then(Result::ok)
                .map(|it| codec::encode_appended(&it))
        }
        TRANSFER => {
            let vote = codec::take_vote(&mut body)?;
            let to = codec::take_member(&mut body)?;
            let last = codec::take_log_id(&mut body)?;
            codec::end(&body)?;
            check_leader(&vote, from)?;
            let request = TransferLeaderRequest::<Types>::new(vote, to, last);
            let result = raft.handle_transfer_leader(request).await;
            result.ok().map(|it| encode_transferred(&it))
        }
        _ => return Err(codec::malformed("a request of an unknown kind")),
    })
}

/// Answers as a member whose lease has not run out does.
async fn refuse_vote(raft: &Raft) -> Option<VoteResponse<Types>> {
    let vote = raft.with_raft_state(|it| *it.vote_ref()).await.ok()?;
    Some(VoteResponse::new(vote, None, false))
}

/// The leader's lease on us, as we keep it ourselves.
fn hear(replica: &Replica, from: &Proven) {
    if replica.leader() == Some(from.member) {
        replica.heard().now();
    }
}

async fn serve_appends(replica: &Replica, from: &Proven, stream: BondStream) -> io::Result<()> {
    let BondStream { mut send, mut recv } = stream;
    let hello = recv
        .read_frame(ANSWER_FRAME_MAX)
        .await
        .map_err(io::Error::other)?;
    check_target(replica, &mut hello.ok_or(io::ErrorKind::UnexpectedEof)?)?;
    let raft = replica.raft().ok_or(io::ErrorKind::NotConnected)?;
    let requests = appends(replica, *from, recv);
    let answers = raft.stream_append(requests).ready_chunks(64);
    pin_mut!(answers);
    let mut frames = Vec::with_capacity(64);
    while let Some(ready) = answers.next().await {
        for answer in ready {
            frames.push(codec::encode_appended(&answer.map_err(io::Error::other)?));
        }
        send.write_frames(&mut frames)
            .await
            .map_err(io::Error::other)?;
    }
    send.finish();
    Ok(())
}

/// The leader's requests, checked. The first one that does not hold ends them; the answers to those
/// before it still go out.
fn appends(
    replica: &Replica,
    leader: Proven,
    recv: RecvStream,
) -> BoxStream<'static, AppendEntriesRequest<Types>> {
    let me = replica.me();
    let requests = stream::unfold(recv, move |mut recv| {
        let me = me.clone();
        async move {
            let frame = match recv.read_frame(APPEND_FRAME_MAX).await {
                Ok(frame) => frame?,
                Err(error) => {
                    tracing::debug!(member = %leader.member, %error, "an append stream broke");
                    return None;
                }
            };
            let replica = me.upgrade()?;
            let request = codec::decode_append(frame).and_then(|it| {
                check_heard_leader(&replica, &it.vote, &leader)?;
                Ok(it)
            });
            match request {
                Ok(request) => {
                    hear(&replica, &leader);
                    Some((request, recv))
                }
                Err(error) => {
                    tracing::warn!(member = %leader.member, %error, "an append was refused");
                    None
                }
            }
        }
    });
    if replica.validator().is_none() {
        return requests.boxed();
    }
    let me = replica.me();
    let validated = requests.map(move |request| {
        let me = me.clone();
        async move {
            let valid = me.upgrade()?.validate_append(&request).await;
            valid.is_ok().then_some(request)
        }
    });
    let validated = validated.buffered(APPENDS_AHEAD);
    // Ends with the first that is none.
    validated.scan((), |(), it| future::ready(it)).boxed()
}

async fn receive_snapshot(replica: &Replica, from: &Proven, stream: BondStream) -> io::Result<()> {
    let BondStream { mut send, mut recv } = stream;
    let head = recv
        .read_frame(SNAPSHOT_FRAME_MAX)
        .await
        .map_err(io::Error::other)?;
    let mut head = head.ok_or(io::ErrorKind::UnexpectedEof)?;
    check_target(replica, &mut head)?;
    let vote = codec::take_vote(&mut head)?;
    check_heard_leader(replica, &vote, from)?;
    let length = codec::take_u64(&mut head)?;
    let meta = codec::decode_snapshot_meta(head)?;
    if meta
        .last_log_id
        .is_none_or(|it| it.leader_id.term > vote.leader_id.term)
    {
        return Err(codec::malformed("a snapshot from beyond its leader's term"));
    }
    let raft = replica.raft().ok_or(io::ErrorKind::NotConnected)?;
    tracing::info!(leader = %from.member, length, ?meta.last_log_id, "receiving a snapshot");
    let mut receiver = replica.snapshots().receive()?;
    let mut received = 0;
    while received < length {
        let frame = recv
            .read_frame(SNAPSHOT_FRAME_MAX)
            .await
            .map_err(io::Error::other)?;
        let chunk = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        if chunk.is_empty() || received + chunk.len() as u64 > length {
            return Err(codec::malformed(
                "a snapshot that is not as long as it said",
            ));
        }
        let offset = received;
        received += chunk.len() as u64;
        hear(replica, from);
        let writing = tokio::task::spawn_blocking(move || {
            receiver.write_chunk(offset, &chunk)?;
            Ok::<_, io::Error>(receiver)
        });
        receiver = writing.await.map_err(io::Error::other)??;
        let credit = Bytes::copy_from_slice(&received.to_le_bytes());
        send.write_frame(credit).await.map_err(io::Error::other)?;
    }
    let staging = tokio::task::spawn_blocking(move || receiver.finish());
    let staged = staging.await.map_err(io::Error::other)??;
    if codec::decode_snapshot_meta(staged.meta().clone())? != meta {
        return Err(codec::malformed("a snapshot that is not the one announced"));
    }
    let answer = install(&raft, vote, meta, SnapshotFile::Staged(staged)).await?;
    send.write_frame(answer).await.map_err(io::Error::other)?;
    send.finish();
    Ok(())
}

async fn install(
    raft: &Raft,
    vote: Vote,
    meta: super::SnapshotMeta,
    snapshot: SnapshotFile,
) -> io::Result<Bytes> {
    let snapshot = openraft::storage::Snapshot { meta, snapshot };
    let installed = raft.install_full_snapshot(vote, snapshot).await;
    let response = installed.map_err(io::Error::other)?;
    let mut out = BytesMut::with_capacity(32);
    codec::put_vote(&mut out, &response.vote);
    out.put_u8(0);
    Ok(out.freeze())
}

fn check_target(replica: &Replica, body: &mut Bytes) -> io::Result<()> {
    let target = codec::take_member(body)?;
    if target != replica.member() {
        return Err(codec::malformed("the id of another member as its target"));
    }
    Ok(())
}

/// A leader's vote is its own and was granted by a quorum.
fn check_leader(vote: &Vote, from: &Proven) -> io::Result<()> {
    check_sender(vote, from)?;
    if !vote.committed {
        return Err(codec::malformed(
            "a leader's message under a vote that nobody granted",
        ));
    }
    Ok(())
}

/// As [`check_leader`], and it has not sent in this term what the machine refuses.
fn check_heard_leader(replica: &Replica, vote: &Vote, from: &Proven) -> io::Result<()> {
    check_leader(vote, from)?;
    if replica.refuses_leader(vote.leader_id.term, vote.leader_id.voted_for) {
        return Err(io::Error::other(
            "its leader has sent invalid commands, and is not heard any more in this term",
        ));
    }
    Ok(())
}

/// A candidate's vote is its own, and nothing that a quorum has granted already.
fn check_candidate(vote: &Vote, from: &Proven) -> io::Result<()> {
    check_sender(vote, from)?;
    if vote.committed {
        return Err(codec::malformed(
            "a request for a vote that claims to be granted",
        ));
    }
    Ok(())
}

fn check_sender(vote: &Vote, from: &Proven) -> io::Result<()> {
    let named: MemberId = vote.leader_id.voted_for;
    if named != from.member {
        return Err(codec::malformed(
            "a vote that names another member than its sender",
        ));
    }
    if vote.leader_id.term > TERM_MAX {
        return Err(codec::malformed("a term that no group lives to see"));
    }
    Ok(())
}
