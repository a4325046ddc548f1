//! The mutual proof of a group's key over one connection: no I/O, no clock, no randomness.
//!
//! Whoever opened the stream is the initiator. Both prove that they hold the key of one group,
//! bound to this very connection by its exported keying material (`ekm`), to both peer ids, to
//! both roles and to every byte said before. Neither says who it is in the group before that.
//!
//! ```text
//!   initiator                                                   acceptor
//!       | -- Hello { versions, key epoch, nonce, hint } ----------> |  which group? by the hint
//!       | <---------- Hello { versions, key epoch, nonce, hint } -- |
//!       | <---------------- HMAC(k_auth, "acceptor" ‖ T(acceptor)) -|
//!       | -- HMAC(k_auth, "initiator" ‖ T(initiator)) ------------> |
//!
//!   k_auth, k_hint = HKDF-SHA-256(key, label ‖ GroupId)
//!   hint           = first 16 bytes of HMAC(k_hint, ekm ‖ the sender's peer id)
//!   T(role)        = SHA-256 over, each after its length as u32 BE:
//!                    ALPN, role, key epoch (u32 BE), GroupId, initiator id, acceptor id, ekm,
//!                    the initiator's hello frame, the acceptor's hello frame
//!   BondId         = first 16 bytes of HKDF-SHA-256(ekm, label ‖ GroupId ‖ both nonces)
//! ```
//!
//! # Frames (frozen format; integers are big-endian)
//!
//! ```text
//!   refusal    0x00                                                             1 byte
//!   hello      kind  min   max   key epoch  nonce     hint                     57 bytes
//!              1     2     2     4          32        16
//!              kind: 0x01 from the initiator, 0x02 from the acceptor
//!   proof      kind  tag                                                       33 bytes
//!              1     32
//!              kind: 0x03 from the acceptor, 0x04 from the initiator
//! ```
//!
//! `min` and `max` are the protocol versions that the sender speaks; the highest in common is
//! spoken. Since both hellos are in `T`, versions cannot be talked down.
//!
//! A frame of any other length is refused, so there are no trailing bytes and nothing to parse
//! beyond fixed offsets. The hint names its sender so that a stranger who is dialled cannot send
//! it back on the same connection to learn whether the dialler would answer to it.
//!
//! Every failure is the same refusal to the peer: [`REFUSAL`], [`REFUSED_AFTER`] the stream was
//! opened. [`HandshakeError`] tells causes apart for the local log only.

mod frame;
#[cfg(test)]
mod tests;

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use self::frame::{
    Hello, KIND_ACCEPTOR_HELLO, KIND_ACCEPTOR_PROOF, KIND_INITIATOR_HELLO, KIND_INITIATOR_PROOF,
    KIND_REFUSAL, PROOF_BYTES, frame_of,
};
use crate::identity::{GroupId, GroupKey, PeerId};

/// The longest frame before the proof holds, in bytes: room for growth, nothing for an attacker.
pub(crate) const FRAME_MAX: usize = 1024;
/// How long the whole handshake may take, both sides together.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(3);
/// When a refusal is sent, counted from the opening of the stream: fixed, so that its time does
/// not tell the cause.
pub(crate) const REFUSED_AFTER: Duration = Duration::from_millis(250);
/// The one answer to everything that fails before the proof holds.
pub(crate) const REFUSAL: &[u8] = &[KIND_REFUSAL];

/// Equals the connection's ALPN; in `T` so that a proof is good for this protocol alone.
const ALPN: &[u8] = b"quorate/bond/1";
/// The protocol versions that this code speaks.
const VERSIONS: RangeInclusive<u16> = 1..=1;
/// The epoch of a key that was never rotated.
const FIRST_EPOCH: u32 = 0;

const LABEL_AUTH: &[u8] = b"quorate/bond-auth/1";
const LABEL_HINT: &[u8] = b"quorate/bond-hint/1";
const LABEL_BOND: &[u8] = b"quorate/bond-id/1";

const _: () = assert!(HANDSHAKE_TIME.as_millis() > REFUSED_AFTER.as_millis());

/// The connection that a handshake runs over, as this side sees it.
#[derive(Clone, Copy)]
pub(crate) struct Channel {
    /// 32 bytes exported from the connection's TLS secrets; equal on both sides, and on no other
    /// connection. Only from a completed handshake, never from 0-RTT.
    pub(crate) ekm: [u8; 32],
    /// This node, as the connection proved it to the other side.
    pub(crate) local: PeerId,
    /// The other node, as the connection proved it to this side.
    pub(crate) remote: PeerId,
}

/// What a group's key gives for its handshakes, computed once. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Credentials(Arc<Derived>);

struct Derived {
    group: GroupId,
    epoch: u32,
    auth: Hmac<Sha256>,
    hint: Hmac<Sha256>,
}

impl Credentials {
    pub(crate) fn new(key: &GroupKey, group: GroupId) -> Self {
        Self::of_epoch(key, group, FIRST_EPOCH)
    }

    /// The key of a later epoch: how many times the group has rotated it.
    fn of_epoch(key: &GroupKey, group: GroupId, epoch: u32) -> Self {
        let keys = Hkdf::<Sha256>::new(None, key.bytes());
        let state = |label: &[u8]| {
            let mut derived = Zeroizing::new([0; 32]);
            keys.expand_multi_info(&[label, group.as_bytes()], &mut derived[..])
                .expect("32 bytes are within what HKDF-SHA-256 can give");
            Hmac::new_from_slice(&derived[..]).expect("HMAC takes keys of any length")
        };
        let (auth, hint) = (state(LABEL_AUTH), state(LABEL_HINT));
        Self(Arc::new(Derived {
            group,
            epoch,
            auth,
            hint,
        }))
    }

    pub(crate) fn group(&self) -> GroupId {
        self.0.group
    }

    /// What `sender` names this group by on the connection with this `ekm`. An acceptor keeps a
    /// table of them a connection, with `sender` the remote peer.
    pub(crate) fn hint(&self, ekm: &[u8; 32], sender: &PeerId) -> [u8; 16] {
        let mac = self
            .0
            .hint
            .clone()
            .chain_update(ekm)
            .chain_update(sender.as_bytes());
        let mut hint = [0; 16];
        hint.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        hint
    }
}

/// Names the group and nothing of its key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?}, epoch {})", self.0.group, self.0.epoch)
    }
}

/// The side that opened the stream, waiting for the acceptor's two frames.
#[derive(Debug)]
pub(crate) struct Initiator(Side);

impl Initiator {
    /// The state and the hello frame to send. `nonce` must be random and used once.
    pub(crate) fn start(
        channel: &Channel,
        credentials: &Credentials,
        nonce: [u8; 32],
    ) -> (Self, Bytes) {
        Self::speaking(VERSIONS, channel, credentials, nonce)
    }

    fn speaking(
        versions: RangeInclusive<u16>,
        channel: &Channel,
        credentials: &Credentials,
        nonce: [u8; 32],
    ) -> (Self, Bytes) {
        let hello = Hello::new(versions, channel, credentials, nonce);
        let frame = Bytes::copy_from_slice(&hello.encode(KIND_INITIATOR_HELLO));
        (
            Self(Side {
                channel: *channel,
                credentials: credentials.clone(),
                hello,
            }),
            frame,
        )
    }

    /// Judges the acceptor's two frames. Gives the proof frame to send and, since the acceptor
    /// has proven the key, who this bond is.
    ///
    /// # Errors
    /// The first check that failed; then nothing may be sent but an end of the stream.
    pub(crate) fn finish(
        self,
        acceptor_hello: &[u8],
        acceptor_proof: &[u8],
    ) -> Result<(Bytes, Proof), HandshakeError> {
        let Self(Side {
            channel,
            credentials,
            hello: ours,
        }) = self;
        let theirs = Hello::decode(KIND_ACCEPTOR_HELLO, acceptor_hello)?;
        let version = judge(&channel, &credentials, &ours, &theirs)?;
        let talk = Talk {
            initiator: channel.local,
            acceptor: channel.remote,
            hellos: (&ours, &theirs),
        };
        verify(
            acceptor_proof,
            &talk,
            Role::Acceptor,
            &channel,
            &credentials,
        )?;
        let proof = prove(&talk, Role::Initiator, &channel, &credentials);
        Ok((
            Bytes::copy_from_slice(&proof),
            talk.proof(&channel, &credentials, version),
        ))
    }
}

/// The side that the stream was opened to, waiting for the initiator's proof.
#[derive(Debug)]
pub(crate) struct Acceptor {
    side: Side,
    theirs: Hello,
    version: u16,
}

impl Acceptor {
    /// Judges the initiator's hello. `find` gives the credentials of the group that a hint on
    /// this connection means. `nonce` must be random and used once. Gives the state and the two
    /// frames to send: hello and proof.
    ///
    /// # Errors
    /// The first check that failed; the peer gets [`REFUSAL`] when its time has come.
    pub(crate) fn answer(
        channel: &Channel,
        find: impl FnOnce(&[u8; 16]) -> Option<Credentials>,
        initiator_hello: &[u8],
        nonce: [u8; 32],
    ) -> Result<(Self, Bytes, Bytes), HandshakeError> {
        Self::speaking(VERSIONS, channel, find, initiator_hello, nonce)
    }

    fn speaking(
        versions: RangeInclusive<u16>,
        channel: &Channel,
        find: impl FnOnce(&[u8; 16]) -> Option<Credentials>,
        initiator_hello: &[u8],
        nonce: [u8; 32],
    ) -> Result<(Self, Bytes, Bytes), HandshakeError> {
        let theirs = Hello::decode(KIND_INITIATOR_HELLO, initiator_hello)?;
        let credentials = find(&theirs.hint).ok_or(HandshakeError::UnknownGroup)?;
        let ours = Hello::new(versions, channel, &credentials, nonce);
        let version = judge(channel, &credentials, &ours, &theirs)?;
        let talk = Talk {
            initiator: channel.remote,
            acceptor: channel.local,
            hellos: (&theirs, &ours),
        };
        let proof = prove(&talk, Role::Acceptor, channel, &credentials);
        let hello = ours.encode(KIND_ACCEPTOR_HELLO);
        let side = Side {
            channel: *channel,
            credentials,
            hello: ours,
        };
        Ok((
            Self {
                side,
                theirs,
                version,
            },
            Bytes::copy_from_slice(&hello),
            Bytes::copy_from_slice(&proof),
        ))
    }

    /// Judges the initiator's proof.
    ///
    /// # Errors
    /// The check that failed; the peer gets [`REFUSAL`] when its time has come.
    pub(crate) fn finish(self, initiator_proof: &[u8]) -> Result<Proof, HandshakeError> {
        let Self {
            side:
                Side {
                    channel,
                    credentials,
                    hello: ours,
                },
            theirs,
            version,
        } = self;
        let talk = Talk {
            initiator: channel.remote,
            acceptor: channel.local,
            hellos: (&theirs, &ours),
        };
        verify(
            initiator_proof,
            &talk,
            Role::Initiator,
            &channel,
            &credentials,
        )?;
        Ok(talk.proof(&channel, &credentials, version))
    }
}

/// What a side holds on to between its frames.
struct Side {
    channel: Channel,
    credentials: Credentials,
    hello: Hello,
}

/// Shows neither the keying material nor the nonce.
impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {:?}", self.credentials, self.channel.remote)
    }
}

/// What a finished handshake has established: the peer at the other end of this connection holds
/// the group's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) group: GroupId,
    pub(crate) bond: BondId,
    /// The protocol version that both sides speak from here on.
    pub(crate) version: u16,
}

/// A bond's name: the same on both sides, and new for each proof, also on one link.
///
/// Printed as 32 lower-case hexadecimal digits; `Debug` shows the first ten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BondId([u8; 16]);

impl BondId {
    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for BondId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for BondId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BondId({})",
            data_encoding::HEXLOWER.encode(&self.0[..5])
        )
    }
}

#[derive(Clone, Copy)]
enum Role {
    Initiator,
    Acceptor,
}

impl Role {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Initiator => b"initiator",
            Self::Acceptor => b"acceptor",
        }
    }

    fn proof_kind(self) -> u8 {
        match self {
            Self::Initiator => KIND_INITIATOR_PROOF,
            Self::Acceptor => KIND_ACCEPTOR_PROOF,
        }
    }
}

/// What two hellos must agree on; gives the version to speak.
fn judge(
    channel: &Channel,
    credentials: &Credentials,
    ours: &Hello,
    theirs: &Hello,
) -> Result<u16, HandshakeError> {
    if channel.local == channel.remote {
        return Err(HandshakeError::Oneself);
    }
    let hint = credentials.hint(&channel.ekm, &channel.remote);
    if !bool::from(hint.ct_eq(&theirs.hint)) {
        return Err(HandshakeError::UnknownGroup);
    }
    if ours.epoch != theirs.epoch {
        return Err(HandshakeError::OtherKeyEpoch {
            ours: ours.epoch,
            theirs: theirs.epoch,
        });
    }
    let highest = ours.max.min(theirs.max);
    if highest < ours.min.max(theirs.min) {
        return Err(HandshakeError::NoCommonVersion {
            ours: (ours.min, ours.max),
            theirs: (theirs.min, theirs.max),
        });
    }
    Ok(highest)
}

/// Who says what in one handshake, as both sides must see it alike.
struct Talk<'a> {
    initiator: PeerId,
    acceptor: PeerId,
    /// The initiator's, then the acceptor's.
    hellos: (&'a Hello, &'a Hello),
}

impl Talk<'_> {
    /// `T`: everything that the proof of `role` vouches for.
    fn transcript(&self, role: Role, channel: &Channel, credentials: &Credentials) -> [u8; 32] {
        let mut hash = Sha256::new();
        let parts: [&[u8]; 9] = [
            ALPN,
            role.label(),
            &credentials.0.epoch.to_be_bytes(),
            credentials.0.group.as_bytes(),
            self.initiator.as_bytes(),
            self.acceptor.as_bytes(),
            &channel.ekm,
            &self.hellos.0.encode(KIND_INITIATOR_HELLO),
            &self.hellos.1.encode(KIND_ACCEPTOR_HELLO),
        ];
        for part in parts {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn proof(&self, channel: &Channel, credentials: &Credentials, version: u16) -> Proof {
        let group = credentials.group();
        let mut bond = [0; 16];
        let (initiator, acceptor) = (&self.hellos.0.nonce, &self.hellos.1.nonce);
        Hkdf::<Sha256>::new(None, &channel.ekm)
            .expand_multi_info(
                &[LABEL_BOND, group.as_bytes(), initiator, acceptor],
                &mut bond,
            )
            .expect("16 bytes are within what HKDF-SHA-256 can give");
        Proof {
            group,
            bond: BondId(bond),
            version,
        }
    }
}

fn tag(talk: &Talk<'_>, role: Role, channel: &Channel, credentials: &Credentials) -> [u8; 32] {
    let transcript = talk.transcript(role, channel, credentials);
    let mac = credentials
        .0
        .auth
        .clone()
        .chain_update(role.label())
        .chain_update(transcript);
    mac.finalize().into_bytes().into()
}

fn prove(
    talk: &Talk<'_>,
    role: Role,
    channel: &Channel,
    credentials: &Credentials,
) -> [u8; PROOF_BYTES] {
    let mut frame = [0; PROOF_BYTES];
    frame[0] = role.proof_kind();
    frame[1..].copy_from_slice(&tag(talk, role, channel, credentials));
    frame
}

fn verify(
    frame: &[u8],
    talk: &Talk<'_>,
    role: Role,
    channel: &Channel,
    credentials: &Credentials,
) -> Result<(), HandshakeError> {
    let found = frame_of(role.proof_kind(), PROOF_BYTES, frame)?;
    let wanted = tag(talk, role, channel, credentials);
    if bool::from(wanted[..].ct_eq(found)) {
        Ok(())
    } else {
        Err(HandshakeError::WrongProof)
    }
}

/// Why no bond came of it, for the local log. To the peer each is the same refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The peer sent [`REFUSAL`].
    #[error("the peer refused: it does not know the group, or one of the proofs failed")]
    Refused,
    /// A frame of another kind, another length or another step, or versions in no order.
    #[error("the peer sent something that is no frame of the handshake")]
    Malformed,
    /// A frame longer than [`FRAME_MAX`].
    #[error("the peer sent a frame longer than {FRAME_MAX} bytes before it proved anything")]
    Oversized,
    /// The hint means no group here, or not the one that was asked for: another key, another
    /// group, or a hint made for another connection or by another peer.
    #[error("the peer named no group that is known here")]
    UnknownGroup,
    /// The two sides hold keys of different epochs.
    #[error("the peer's key is of epoch {theirs}, ours of {ours}")]
    OtherKeyEpoch {
        /// This side's.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// The two sides speak no version in common: update the older one.
    #[error("the peer speaks versions {theirs:?} of the protocol, we {ours:?}")]
    NoCommonVersion {
        /// This side's lowest and highest.
        ours: (u16, u16),
        /// The peer's.
        theirs: (u16, u16),
    },
    /// The proof does not match: the peer lacks the key, or something was changed on the way.
    #[error("the peer's proof is wrong: it lacks the group's key, or was tampered with")]
    WrongProof,
    /// The connection leads back to this very node.
    #[error("the connection leads back to this node")]
    Oneself,
}
