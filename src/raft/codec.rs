//! Raft's values as bytes, on the wire and on disk. Frozen; all numbers little-endian.
//!
//! ```text
//! vote          term u64 | member 16 | committed u8
//! log id        0 | 1, term u64, index u64
//! entry         term u64 | index u64 | kind u8 | length u32 | payload
//! append        vote | previous log id | commit log id | count u32 | count x entry
//! membership    postcard of { configs: [[member]], nodes: [(member, address)] }
//! ```
//!
//! A payload is taken out of the frame it came in without a copy.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{
    EntryPayload,
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Command, Entry, LogId, MemberNode, Membership, SnapshotMeta, StoredMembership, Types, Vote,
    log_id,
};
use crate::identity::{MemberId, PeerAddr};

/// Members a membership may name; far above `max_voters` and all learners.
const MEMBERS_MAX: usize = 1_024;
/// Entries one append may carry, whatever a sender claims.
const ENTRIES_MAX: u32 = 65_536;

/// What a journal record's payload is.
pub(super) const KIND_BLANK: u8 = 0;
pub(super) const KIND_COMMANDS: u8 = 1;
pub(super) const KIND_MEMBERSHIP: u8 = 2;

pub(super) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_slice(&vote.leader_id.voted_for.to_bytes());
    out.put_u8(u8::from(vote.committed));
}

pub(super) fn take_vote(from: &mut Bytes) -> io::Result<Vote> {
    let term = take_u64(from)?;
    let member = take_member(from)?;
    Ok(match take_u8(from)? {
        0 => Vote::new(term, member),
        1 => Vote::new_committed(term, member),
        _ => return Err(malformed("a vote that is neither committed nor not")),
    })
}

pub(super) fn put_log_id(out: &mut BytesMut, id: Option<&LogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            out.put_u64_le(id.leader_id.term);
            out.put_u64_le(id.index);
        }
    }
}

pub(super) fn take_log_id(from: &mut Bytes) -> io::Result<Option<LogId>> {
    match take_u8(from)? {
        0 => Ok(None),
        1 => Ok(Some(log_id(take_u64(from)?, take_u64(from)?))),
        _ => Err(malformed("a log id that is neither there nor not")),
    }
}

pub(super) fn put_member(out: &mut BytesMut, member: MemberId) {
    out.put_slice(&member.to_bytes());
}

pub(super) fn take_member(from: &mut Bytes) -> io::Result<MemberId> {
    let mut bytes = [0; 16];
    need(from, 16)?;
    from.copy_to_slice(&mut bytes);
    Ok(MemberId::from_bytes(bytes))
}

/// An entry's payload as (kind, bytes).
pub(super) fn encode_payload(entry: &Entry) -> (u8, Bytes) {
    match &entry.payload {
        EntryPayload::Blank => (KIND_BLANK, Bytes::new()),
        EntryPayload::Normal(command) => (KIND_COMMANDS, command.0.clone()),
        EntryPayload::Membership(membership) => (KIND_MEMBERSHIP, encode_membership(membership)),
    }
}

pub(super) fn decode_entry(id: LogId, kind: u8, payload: Bytes) -> io::Result<Entry> {
    let payload = match kind {
        KIND_BLANK if payload.is_empty() => EntryPayload::Blank,
        KIND_COMMANDS => EntryPayload::Normal(Command(payload)),
        KIND_MEMBERSHIP => EntryPayload::Membership(decode_membership(&payload)?),
        _ => return Err(malformed("an entry of a kind this program does not know")),
    };
    Ok(Entry {
        log_id: id,
        payload,
    })
}

pub(super) fn encode_append(request: &AppendEntriesRequest<Types>) -> Bytes {
    let payloads: Vec<_> = request.entries.iter().map(encode_payload).collect();
    let bytes: usize = payloads.iter().map(|(_, it)| 21 + it.len()).sum();
    let mut out = BytesMut::with_capacity(64 + bytes);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.prev_log_id.as_ref());
    put_log_id(&mut out, request.leader_commit.as_ref());
    out.put_u32_le(u32::try_from(payloads.len()).unwrap_or(u32::MAX));
    for (entry, (kind, payload)) in request.entries.iter().zip(payloads) {
        out.put_u64_le(entry.log_id.leader_id.term);
        out.put_u64_le(entry.log_id.index);
        out.put_u8(kind);
        out.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        out.put_slice(&payload);
    }
    out.freeze()
}

pub(super) fn decode_append(mut from: Bytes) -> io::Result<AppendEntriesRequest<Types>> {
    let vote = take_vote(&mut from)?;
    let prev_log_id = take_log_id(&mut from)?;
    let leader_commit = take_log_id(&mut from)?;
    let count = take_u32(&mut from)?;
    if count > ENTRIES_MAX {
        return Err(malformed("more entries than one append may carry"));
    }
    // At least 21 bytes each: a claimed count cannot reserve more than the frame justifies.
    let mut entries = Vec::with_capacity((count as usize).min(from.len() / 21));
    let prev = prev_log_id.map_or((0, None), |it| (it.leader_id.term, Some(it.index)));
    let (mut term, mut last) = prev;
    for _ in 0..count {
        let id = log_id(take_u64(&mut from)?, take_u64(&mut from)?);
        let follows = last.map_or(Some(0), |it| it.checked_add(1)) == Some(id.index);
        let in_order = (term..=vote.leader_id.term).contains(&id.leader_id.term);
        if !follows || !in_order {
            return Err(malformed("entries that do not follow one another"));
        }
        (term, last) = (id.leader_id.term, Some(id.index));
        let kind = take_u8(&mut from)?;
        let length = take_u32(&mut from)? as usize;
        need(&from, length)?;
        entries.push(decode_entry(id, kind, from.split_to(length))?);
    }
    end(&from)?;
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

pub(super) fn encode_appended(result: &StreamAppendResult<Types>) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    match result {
        Ok(matching) => {
            out.put_u8(0);
            put_log_id(&mut out, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(id)) => {
            out.put_u8(1);
            put_log_id(&mut out, Some(id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(super) fn decode_appended(mut from: Bytes) -> io::Result<StreamAppendResult<Types>> {
    let result = match take_u8(&mut from)? {
        0 => Ok(take_log_id(&mut from)?),
        1 => Err(StreamAppendError::Conflict(
            take_log_id(&mut from)?.ok_or_else(|| malformed("a conflict without its log id"))?,
        )),
        2 => Err(StreamAppendError::HigherVote(take_vote(&mut from)?)),
        _ => return Err(malformed("an append answer of an unknown kind")),
    };
    end(&from)?;
    Ok(result)
}

pub(super) fn put_vote_request(out: &mut BytesMut, request: &VoteRequest<Types>) {
    put_vote(out, &request.vote);
    put_log_id(out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
}

pub(super) fn take_vote_request(from: &mut Bytes) -> io::Result<VoteRequest<Types>> {
    let vote = take_vote(from)?;
    let mut request = VoteRequest::new(vote, take_log_id(from)?);
    request.leadership_transfer = take_u8(from)? == 1;
    Ok(request)
}

pub(super) fn encode_vote_response(response: &VoteResponse<Types>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_vote(&mut out, &response.vote);
    put_log_id(&mut out, response.last_log_id.as_ref());
    out.put_u8(u8::from(response.vote_granted));
    out.freeze()
}

pub(super) fn decode_vote_response(mut from: Bytes) -> io::Result<VoteResponse<Types>> {
    let vote = take_vote(&mut from)?;
    let last_log_id = take_log_id(&mut from)?;
    let granted = take_u8(&mut from)? == 1;
    end(&from)?;
    Ok(VoteResponse::new(vote, last_log_id, granted))
}

/// A membership without maps: what comes from outside is counted before it is kept.
#[derive(Serialize, Deserialize)]
struct MembershipRecord {
    configs: Vec<Vec<MemberId>>,
    nodes: Vec<(MemberId, PeerAddr)>,
}

pub(super) fn encode_membership(membership: &Membership) -> Bytes {
    let record = MembershipRecord {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|config| config.iter().copied().collect())
            .collect(),
        nodes: membership
            .nodes()
            .map(|(member, node)| (*member, node.addr.clone()))
            .collect(),
    };
    // Vectors of plain values into memory cannot fail to encode.
    postcard::to_stdvec(&record).unwrap_or_default().into()
}

pub(super) fn decode_membership(from: &[u8]) -> io::Result<Membership> {
    let record: MembershipRecord = match postcard::take_from_bytes(from) {
        Ok((record, [])) => record,
        _ => return Err(malformed("a membership that cannot be read")),
    };
    let too_many = record.nodes.len() > MEMBERS_MAX
        || record.configs.len() > 2
        || record.configs.iter().any(|it| it.len() > MEMBERS_MAX)
        || record
            .nodes
            .iter()
            .any(|(_, it)| it.addrs.len() > PeerAddr::ADDRS_MAX);
    if too_many {
        return Err(malformed("a membership larger than any group"));
    }
    let configs: Vec<BTreeSet<MemberId>> = record
        .configs
        .into_iter()
        .map(|config| config.into_iter().collect())
        .collect();
    let nodes: BTreeMap<MemberId, MemberNode> = record
        .nodes
        .into_iter()
        .map(|(member, addr)| (member, MemberNode { addr }))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes)
        .map_err(|error| malformed(&format!("a membership that contradicts itself: {error}")))
}

pub(super) fn encode_snapshot_meta(meta: &SnapshotMeta) -> Bytes {
    let mut out = BytesMut::new();
    put_log_id(&mut out, meta.last_log_id.as_ref());
    put_log_id(&mut out, meta.last_membership.log_id().as_ref());
    out.put_slice(&encode_membership(meta.last_membership.membership()));
    out.freeze()
}

pub(super) fn decode_snapshot_meta(mut from: Bytes) -> io::Result<SnapshotMeta> {
    let last_log_id = take_log_id(&mut from)?;
    let membership_id = take_log_id(&mut from)?;
    let membership = decode_membership(&from)?;
    Ok(SnapshotMeta {
        last_log_id,
        last_membership: StoredMembership::new(membership_id, membership),
    })
}

pub(super) fn encode_log_id(id: &LogId) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    put_log_id(&mut out, Some(id));
    out.freeze()
}

pub(super) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(25);
    put_vote(&mut out, vote);
    out.freeze()
}

pub(super) fn take_u8(from: &mut Bytes) -> io::Result<u8> {
    need(from, 1)?;
    Ok(from.get_u8())
}

pub(super) fn take_u32(from: &mut Bytes) -> io::Result<u32> {
    need(from, 4)?;
    Ok(from.get_u32_le())
}

pub(super) fn take_u64(from: &mut Bytes) -> io::Result<u64> {
    need(from, 8)?;
    Ok(from.get_u64_le())
}

pub(super) fn end(from: &Bytes) -> io::Result<()> {
    if from.is_empty() {
        Ok(())
    } else {
        Err(malformed("stray bytes at its end"))
    }
}

pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a Raft message or record holds {what}"),
    )
}

fn need(from: &Bytes, bytes: usize) -> io::Result<()> {
    if from.len() < bytes {
        return Err(malformed("fewer bytes than it says"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::PeerId;

    fn membership() -> Membership {
        let node = |it: u8| MemberNode {
            addr: PeerAddr::new(
                PeerId::from_bytes([it; 32]),
                [([127, 0, 0, 1], 4000 + u16::from(it)).into()],
            ),
        };
        let nodes: BTreeMap<_, _> = (1..=4)
            .map(|it| (MemberId::from(it), node(it as u8)))
            .collect();
        let voters = |ids: &[u64]| ids.iter().copied().map(MemberId::from).collect();
        Membership::new(vec![voters(&[1, 2, 3]), voters(&[2, 3, 4])], nodes).expect("valid")
    }

    fn request() -> AppendEntriesRequest<Types> {
        let entries = vec![
            decode_entry(log_id(3, 8), KIND_BLANK, Bytes::new()).expect("blank"),
            decode_entry(log_id(3, 9), KIND_COMMANDS, Bytes::from_static(b"xyz")).expect("normal"),
            decode_entry(
                log_id(3, 10),
                KIND_MEMBERSHIP,
                encode_membership(&membership()),
            )
            .expect("membership"),
        ];
        AppendEntriesRequest {
            vote: Vote::new_committed(3, MemberId::from(2)),
            prev_log_id: Some(log_id(2, 7)),
            entries,
            leader_commit: Some(log_id(2, 6)),
        }
    }

    #[test]
    fn an_append_is_read_as_it_was_written() {
        let read = decode_append(encode_append(&request())).expect("reads");
        assert_eq!(format!("{read:?}"), format!("{:?}", request()));
    }

    #[test]
    fn a_cut_or_lengthened_append_is_refused() {
        let whole = encode_append(&request());
        for cut in 0..whole.len() {
            assert!(decode_append(whole.slice(..cut)).is_err(), "cut at {cut}");
        }
        let longer = [whole.as_ref(), b"!"].concat();
        assert!(decode_append(longer.into()).is_err());
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        let mut request = request();
        request.entries.remove(1);
        assert!(decode_append(encode_append(&request)).is_err());
    }

    #[test]
    fn a_snapshot_meta_is_read_as_it_was_written() {
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(4, 44)),
            last_membership: StoredMembership::new(Some(log_id(2, 20)), membership()),
        };
        assert_eq!(
            decode_snapshot_meta(encode_snapshot_meta(&meta)).expect("reads"),
            meta
        );
        let empty = SnapshotMeta::default();
        assert_eq!(
            decode_snapshot_meta(encode_snapshot_meta(&empty)).expect("reads"),
            empty
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_append(bytes.clone());
            let _ = decode_appended(bytes.clone());
            let _ = decode_vote_response(bytes.clone());
            let _ = take_vote_request(&mut bytes.clone());
            let _ = decode_snapshot_meta(bytes.clone());
            let _ = decode_membership(&bytes);
        }
    }
}
