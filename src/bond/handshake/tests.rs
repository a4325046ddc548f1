//! Every attack in both roles. "V" is the side under attack, and nothing here may make it believe.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

/// One side, with everything that an honest run depends on, so that an attack is one change.
#[derive(Clone)]
struct Party {
    channel: Channel,
    credentials: Credentials,
    nonce: [u8; 32],
}

const INITIATOR: PeerId = PeerId::from_bytes([0x0a; 32]);
const ACCEPTOR: PeerId = PeerId::from_bytes([0x0b; 32]);
const STRANGER: PeerId = PeerId::from_bytes([0x0c; 32]);

fn credentials(key: u8, machine: &str) -> Credentials {
    let key = GroupKey::from_bytes(&[key; 32]);
    Credentials::new(&key, key.group_id(machine))
}

fn initiator() -> Party {
    Party {
        channel: Channel {
            ekm: [9; 32],
            local: INITIATOR,
            remote: ACCEPTOR,
        },
        credentials: credentials(7, "example.map"),
        nonce: [1; 32],
    }
}

fn acceptor() -> Party {
    Party {
        channel: Channel {
            ekm: [9; 32],
            local: ACCEPTOR,
            remote: INITIATOR,
        },
        credentials: credentials(7, "example.map"),
        nonce: [2; 32],
    }
}

impl Party {
    fn with_nonce(mut self, nonce: u8) -> Self {
        self.nonce = [nonce; 32];
        self
    }

    fn with_ekm(mut self, ekm: u8) -> Self {
        self.channel.ekm = [ekm; 32];
        self
    }

    fn with_remote(mut self, remote: PeerId) -> Self {
        self.channel.remote = remote;
        self
    }

    fn with_local(mut self, local: PeerId) -> Self {
        self.channel.local = local;
        self
    }

    fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// An attacker who somehow makes the hint that `victim` expects: shows that the proof alone
    /// holds what the hint also happens to hold.
    fn hello_for(&self, kind: u8, victim: &Party) -> Vec<u8> {
        let mut hello = Hello::new(VERSIONS, &self.channel, &self.credentials, self.nonce);
        hello.hint = victim
            .credentials
            .hint(&victim.channel.ekm, &victim.channel.remote);
        hello.encode(kind).to_vec()
    }

    fn hello(&self, kind: u8) -> Vec<u8> {
        Hello::new(VERSIONS, &self.channel, &self.credentials, self.nonce)
            .encode(kind)
            .to_vec()
    }

    /// The proof of this party in `role` if these were the hellos, whatever it thinks of them.
    fn proof(&self, role: Role, of_initiator: &[u8], of_acceptor: &[u8]) -> Vec<u8> {
        let first = Hello::decode(KIND_INITIATOR_HELLO, of_initiator).expect("a hello");
        let second = Hello::decode(KIND_ACCEPTOR_HELLO, of_acceptor).expect("a hello");
        let Channel { local, remote, .. } = self.channel;
        let (initiator, acceptor) = match role {
            Role::Initiator => (local, remote),
            Role::Acceptor => (remote, local),
        };
        let talk = Talk {
            initiator,
            acceptor,
            hellos: (&first, &second),
        };
        prove(&talk, role, &self.channel, &self.credentials).to_vec()
    }

    /// Runs this party as initiator against these frames.
    fn initiate(&self, hello: &[u8], proof: &[u8]) -> Result<Proof, HandshakeError> {
        let (state, _) = Initiator::start(&self.channel, &self.credentials, self.nonce);
        state.finish(hello, proof).map(|(_, proof)| proof)
    }

    /// Runs this party as acceptor against these frames.
    fn accept(&self, hello: &[u8], proof: &[u8]) -> Result<Proof, HandshakeError> {
        let known = self
            .credentials
            .hint(&self.channel.ekm, &self.channel.remote);
        let find = |hint: &[u8; 16]| (*hint == known).then(|| self.credentials.clone());
        let (state, _, _) = Acceptor::answer(&self.channel, find, hello, self.nonce)?;
        state.finish(proof)
    }
}

/// The four frames of the honest run of `initiator()` and `acceptor()`.
struct Frames {
    initiator_hello: Vec<u8>,
    acceptor_hello: Vec<u8>,
    acceptor_proof: Vec<u8>,
    initiator_proof: Vec<u8>,
}

fn run(initiator: &Party, acceptor: &Party) -> Frames {
    let initiator_hello = initiator.hello(KIND_INITIATOR_HELLO);
    let acceptor_hello = acceptor.hello(KIND_ACCEPTOR_HELLO);
    Frames {
        acceptor_proof: acceptor.proof(Role::Acceptor, &initiator_hello, &acceptor_hello),
        initiator_proof: initiator.proof(Role::Initiator, &initiator_hello, &acceptor_hello),
        initiator_hello,
        acceptor_hello,
    }
}

fn honest() -> Frames {
    run(&initiator(), &acceptor())
}

/// The same bytes under another kind.
fn as_kind(kind: u8, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[0] = kind;
    frame
}

use HandshakeError::{Malformed, Oversized, Refused, UnknownGroup, WrongProof};

// ---- What holds when nobody cheats ----

#[test]
fn both_sides_agree_on_group_bond_and_version() {
    let (i, a) = (initiator(), acceptor());
    let (state, hello) = Initiator::start(&i.channel, &i.credentials, i.nonce);
    let find = |_: &[u8; 16]| Some(a.credentials.clone());
    let (waiting, answer, proof) =
        Acceptor::answer(&a.channel, find, &hello, a.nonce).expect("an honest hello");
    let (ours, at_initiator) = state.finish(&answer, &proof).expect("an honest acceptor");
    let at_acceptor = waiting.finish(&ours).expect("an honest initiator");
    assert_eq!(at_initiator, at_acceptor);
    assert_eq!(at_initiator.group, i.credentials.group());
    assert_eq!(at_initiator.version, 1);
}

#[test]
fn the_frames_are_frozen() {
    // Computed by an independent implementation of the module's documentation.
    let frames = honest();
    let hex = |frame: &[u8]| data_encoding::HEXLOWER.encode(frame);
    assert_eq!(
        hex(&frames.initiator_hello),
        "01000100010000000001010101010101010101010101010101010101010101010101010101010101012f15c802\
         03ce2c183c883a55bb32e243"
    );
    assert_eq!(
        hex(&frames.acceptor_hello),
        "02000100010000000002020202020202020202020202020202020202020202020202020202020202023b7f1a7b\
         f2bdc09ed9d08ac4901968bb"
    );
    assert_eq!(
        hex(&frames.acceptor_proof),
        "0395489ae64f17e0736da41ac87a4877b45322c4790b7d3c6919cc11d49d7e74b0"
    );
    assert_eq!(
        hex(&frames.initiator_proof),
        "04df0a43f22c912d759f3b092d850537bcfb4648155a02f99b324436279f0a8c8e"
    );
    let bond = acceptor().accept(&frames.initiator_hello, &frames.initiator_proof);
    assert_eq!(
        bond.expect("honest").bond.to_string(),
        "30beaef582f173aa3cb74b9983f60110"
    );
}

#[test]
fn the_state_machines_send_the_frames_of_the_honest_run() {
    let (frames, i, a) = (honest(), initiator(), acceptor());
    let (state, hello) = Initiator::start(&i.channel, &i.credentials, i.nonce);
    assert_eq!(hello, frames.initiator_hello);
    let find = |_: &[u8; 16]| Some(a.credentials.clone());
    let (_, hello, proof) = Acceptor::answer(&a.channel, find, &hello, a.nonce).expect("honest");
    assert_eq!(
        (&hello[..], &proof[..]),
        (&frames.acceptor_hello[..], &frames.acceptor_proof[..])
    );
    let (proof, _) = state.finish(&hello, &proof).expect("honest");
    assert_eq!(proof, frames.initiator_proof);
}

#[test]
fn each_proof_makes_a_new_bond() {
    let bond = |i: Party, a: Party| {
        let frames = run(&i, &a);
        let at_initiator = i.initiate(&frames.acceptor_hello, &frames.acceptor_proof);
        let at_acceptor = a.accept(&frames.initiator_hello, &frames.initiator_proof);
        assert_eq!(at_initiator, at_acceptor);
        at_initiator.expect("honest").bond
    };
    let other = credentials(7, "example.queue");
    let bonds = [
        bond(initiator(), acceptor()),
        bond(initiator().with_nonce(3), acceptor()),
        bond(initiator(), acceptor().with_nonce(3)),
        bond(initiator().with_ekm(3), acceptor().with_ekm(3)),
        bond(
            initiator().with_credentials(other.clone()),
            acceptor().with_credentials(other),
        ),
    ];
    for (nth, bond) in bonds.iter().enumerate() {
        assert!(!bonds[..nth].contains(bond), "bond {nth} is not new");
    }
}

#[test]
fn the_highest_common_version_is_spoken() {
    for (ours, theirs, spoken) in [
        (1..=1, 1..=1, Some(1)),
        (1..=3, 1..=2, Some(2)),
        (1..=2, 1..=3, Some(2)),
        (2..=5, 1..=9, Some(5)),
        (3..=3, 3..=4, Some(3)),
        (1..=2, 3..=4, None),
        (3..=4, 1..=2, None),
    ] {
        let (i, a) = (initiator(), acceptor());
        let (state, hello) = Initiator::speaking(ours.clone(), &i.channel, &i.credentials, i.nonce);
        let find = |_: &[u8; 16]| Some(a.credentials.clone());
        let answered = Acceptor::speaking(theirs.clone(), &a.channel, find, &hello, a.nonce);
        let Some(spoken) = spoken else {
            let refused = HandshakeError::NoCommonVersion {
                ours: (*theirs.start(), *theirs.end()),
                theirs: (*ours.start(), *ours.end()),
            };
            assert_eq!(answered.err(), Some(refused));
            // An acceptor that answers nevertheless is refused in the other role too.
            let hello = Hello::new(theirs, &a.channel, &a.credentials, a.nonce);
            let refused = state.finish(&hello.encode(KIND_ACCEPTOR_HELLO), &[]);
            assert!(matches!(
                refused,
                Err(HandshakeError::NoCommonVersion { .. })
            ));
            continue;
        };
        let (waiting, hello, proof) = answered.expect("a version in common");
        let (proof, at_initiator) = state.finish(&hello, &proof).expect("honest");
        assert_eq!(at_initiator.version, spoken);
        assert_eq!(waiting.finish(&proof), Ok(at_initiator));
    }
}

#[test]
fn the_hint_differs_by_group_key_connection_and_sender() {
    let hints = [
        credentials(7, "example.map").hint(&[9; 32], &INITIATOR),
        credentials(8, "example.map").hint(&[9; 32], &INITIATOR),
        credentials(7, "example.queue").hint(&[9; 32], &INITIATOR),
        credentials(7, "example.map").hint(&[8; 32], &INITIATOR),
        credentials(7, "example.map").hint(&[9; 32], &ACCEPTOR),
    ];
    for (nth, hint) in hints.iter().enumerate() {
        assert!(!hints[..nth].contains(hint), "hint {nth} is not new");
    }
}

#[test]
fn debug_shows_no_key_and_no_keying_material() {
    let (state, _) = Initiator::start(&initiator().channel, &initiator().credentials, [1; 32]);
    let shown = format!("{state:?}");
    assert!(shown.contains("GroupId(") && shown.len() < 100, "{shown}");
    for secret in ["9, 9, 9", "0909", "7, 7, 7", "0707"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

// ---- A peer that lacks the key, or has another one ----

#[test]
fn wrong_key_is_refused_in_both_roles() {
    let wrong = credentials(8, "example.map");
    let frames = run(&initiator(), &acceptor().with_credentials(wrong.clone()));
    let v = initiator();
    assert_eq!(
        v.initiate(&frames.acceptor_hello, &frames.acceptor_proof),
        Err(UnknownGroup)
    );

    let frames = run(&initiator().with_credentials(wrong), &acceptor());
    let v = acceptor();
    assert_eq!(
        v.accept(&frames.initiator_hello, &frames.initiator_proof),
        Err(UnknownGroup)
    );
}

#[test]
fn wrong_key_behind_the_right_hint_is_refused_in_both_roles() {
    for wrong in [
        credentials(8, "example.map"),
        credentials(7, "example.queue"),
    ] {
        let v = initiator();
        let m = acceptor().with_credentials(wrong.clone());
        let hello = m.hello_for(KIND_ACCEPTOR_HELLO, &v);
        let proof = m.proof(Role::Acceptor, &v.hello(KIND_INITIATOR_HELLO), &hello);
        assert_eq!(v.initiate(&hello, &proof), Err(WrongProof));

        let v = acceptor();
        let m = initiator().with_credentials(wrong);
        let hello = m.hello_for(KIND_INITIATOR_HELLO, &v);
        let proof = m.proof(Role::Initiator, &hello, &v.hello(KIND_ACCEPTOR_HELLO));
        assert_eq!(v.accept(&hello, &proof), Err(WrongProof));
    }
}

#[test]
fn another_group_of_the_same_key_is_refused_in_both_roles() {
    let other = credentials(7, "example.queue");
    let frames = run(&initiator(), &acceptor().with_credentials(other.clone()));
    let refused = initiator().initiate(&frames.acceptor_hello, &frames.acceptor_proof);
    assert_eq!(refused, Err(UnknownGroup));
    let frames = run(&initiator().with_credentials(other), &acceptor());
    let refused = acceptor().accept(&frames.initiator_hello, &frames.initiator_proof);
    assert_eq!(refused, Err(UnknownGroup));
}

#[test]
fn the_transcript_itself_binds_the_group() {
    // The same derived keys under another group id: cannot be had, and would not help.
    let right = credentials(7, "example.map");
    let forged = Credentials(Arc::new(Derived {
        group: GroupId::from_bytes([5; 32]),
        epoch: right.0.epoch,
        auth: right.0.auth.clone(),
        hint: right.0.hint.clone(),
    }));
    let frames = run(&initiator(), &acceptor().with_credentials(forged.clone()));
    let refused = initiator().initiate(&frames.acceptor_hello, &frames.acceptor_proof);
    assert_eq!(refused, Err(WrongProof));
    let frames = run(&initiator().with_credentials(forged), &acceptor());
    let refused = acceptor().accept(&frames.initiator_hello, &frames.initiator_proof);
    assert_eq!(refused, Err(WrongProof));
}

#[test]
fn a_table_of_hints_gone_wrong_does_not_help_a_stranger() {
    let (v, m) = (
        acceptor(),
        initiator().with_credentials(credentials(8, "example.map")),
    );
    let find = |_: &[u8; 16]| Some(v.credentials.clone());
    let hello = m.hello(KIND_INITIATOR_HELLO);
    let refused = Acceptor::answer(&v.channel, find, &hello, v.nonce);
    assert_eq!(refused.err(), Some(UnknownGroup));
}

#[test]
fn another_key_epoch_is_refused_in_both_roles() {
    let key = GroupKey::from_bytes(&[7; 32]);
    let group = key.group_id("example.map");
    let rotated = Credentials::of_epoch(&key, group, 1);
    let differ = HandshakeError::OtherKeyEpoch { ours: 0, theirs: 1 };

    let m = acceptor().with_credentials(rotated.clone());
    let frames = run(&initiator(), &m);
    let refused = initiator().initiate(&frames.acceptor_hello, &frames.acceptor_proof);
    assert_eq!(refused, Err(differ));
    // Lied about in flight: the frame names our epoch, the proof was made for the other.
    let mut hello = frames.acceptor_hello.clone();
    hello[5..9].fill(0);
    assert_eq!(
        initiator().initiate(&hello, &frames.acceptor_proof),
        Err(WrongProof)
    );
    // And a prover of the other epoch who sees the changed frame.
    let proof = m.proof(Role::Acceptor, &frames.initiator_hello, &hello);
    assert_eq!(initiator().initiate(&hello, &proof), Err(WrongProof));

    let m = initiator().with_credentials(rotated);
    let frames = run(&m, &acceptor());
    let refused = acceptor().accept(&frames.initiator_hello, &frames.initiator_proof);
    assert_eq!(refused, Err(differ));
    let mut hello = frames.initiator_hello.clone();
    hello[5..9].fill(0);
    assert_eq!(
        acceptor().accept(&hello, &frames.initiator_proof),
        Err(WrongProof)
    );
    let proof = m.proof(Role::Initiator, &hello, &frames.acceptor_hello);
    assert_eq!(acceptor().accept(&hello, &proof), Err(WrongProof));
}

// ---- Our own words, sent back to us ----

#[test]
fn own_hello_reflected_is_refused_in_both_roles() {
    // As initiator: our hello comes back as the acceptor's, as it is and renamed.
    let v = initiator();
    let own = v.hello(KIND_INITIATOR_HELLO);
    assert_eq!(v.initiate(&own, &[]), Err(Malformed));
    assert_eq!(
        v.initiate(&as_kind(KIND_ACCEPTOR_HELLO, &own), &[]),
        Err(UnknownGroup)
    );

    // On a second stream of the same connection, the stranger we dialled sends us our own hello:
    // it must not even learn that we would answer to it.
    let v = initiator();
    assert_eq!(v.accept(&own, &[]), Err(UnknownGroup));

    // As acceptor: our hello comes back as the initiator's.
    let v = acceptor();
    let own = v.hello(KIND_ACCEPTOR_HELLO);
    assert_eq!(v.accept(&own, &[]), Err(Malformed));
    assert_eq!(
        v.accept(&as_kind(KIND_INITIATOR_HELLO, &own), &[]),
        Err(UnknownGroup)
    );
}

#[test]
fn own_proof_reflected_is_refused_in_both_roles() {
    // As acceptor: our proof comes back as the initiator's.
    let (frames, v) = (honest(), acceptor());
    let own = &frames.acceptor_proof;
    assert_eq!(v.accept(&frames.initiator_hello, own), Err(Malformed));
    let renamed = as_kind(KIND_INITIATOR_PROOF, own);
    assert_eq!(v.accept(&frames.initiator_hello, &renamed), Err(WrongProof));

    // As initiator: a stranger lets us prove ourselves as acceptor on another stream of the same
    // connection, and hands us that proof. (With the right hint, which it does not have.)
    let v = initiator();
    let m = acceptor().with_credentials(credentials(8, "example.map"));
    let m_hello = m.hello_for(KIND_INITIATOR_HELLO, &v);
    let oracle = v.clone().with_nonce(4);
    let find = |_: &[u8; 16]| Some(oracle.credentials.clone());
    let (_, hello, proof) =
        Acceptor::answer(&oracle.channel, find, &m_hello, oracle.nonce).expect("the right hint");
    assert_eq!(v.initiate(&hello, &proof), Err(UnknownGroup));
    let mut hinted = hello.to_vec();
    hinted[41..].copy_from_slice(&v.credentials.hint(&v.channel.ekm, &v.channel.remote));
    assert_eq!(v.initiate(&hinted, &proof), Err(WrongProof));
}

// ---- Words from another time or place ----

#[test]
fn replay_on_the_same_connection_is_refused_in_both_roles() {
    let frames = honest();
    let v = initiator().with_nonce(3);
    assert_eq!(
        v.initiate(&frames.acceptor_hello, &frames.acceptor_proof),
        Err(WrongProof)
    );
    let v = acceptor().with_nonce(3);
    assert_eq!(
        v.accept(&frames.initiator_hello, &frames.initiator_proof),
        Err(WrongProof)
    );
}

#[test]
fn replay_on_another_connection_is_refused_in_both_roles() {
    let frames = honest();
    let v = initiator().with_ekm(8);
    assert_eq!(
        v.initiate(&frames.acceptor_hello, &frames.acceptor_proof),
        Err(UnknownGroup)
    );
    let v = acceptor().with_ekm(8);
    assert_eq!(
        v.accept(&frames.initiator_hello, &frames.initiator_proof),
        Err(UnknownGroup)
    );
}

#[test]
fn the_proof_itself_binds_the_connection_in_both_roles() {
    // Equal nonces and the hint of the new connection: only `ekm` in the transcript is left.
    let v = initiator().with_ekm(8);
    let m = acceptor();
    let hello = m.hello_for(KIND_ACCEPTOR_HELLO, &v);
    let proof = m.proof(Role::Acceptor, &v.hello(KIND_INITIATOR_HELLO), &hello);
    assert_eq!(v.initiate(&hello, &proof), Err(WrongProof));

    let v = acceptor().with_ekm(8);
    let m = initiator();
    let hello = m.hello_for(KIND_INITIATOR_HELLO, &v);
    let proof = m.proof(Role::Initiator, &hello, &v.hello(KIND_ACCEPTOR_HELLO));
    assert_eq!(v.accept(&hello, &proof), Err(WrongProof));
}

#[test]
fn replay_for_another_group_on_the_same_connection_is_refused_in_both_roles() {
    let frames = honest();
    let other = credentials(7, "example.queue");
    let v = initiator().with_credentials(other.clone());
    assert_eq!(
        v.initiate(&frames.acceptor_hello, &frames.acceptor_proof),
        Err(UnknownGroup)
    );
    let hello = acceptor().hello_for(KIND_ACCEPTOR_HELLO, &v);
    assert_eq!(v.initiate(&hello, &frames.acceptor_proof), Err(WrongProof));

    let v = acceptor().with_credentials(other);
    assert_eq!(
        v.accept(&frames.initiator_hello, &frames.initiator_proof),
        Err(UnknownGroup)
    );
    let hello = initiator().hello_for(KIND_INITIATOR_HELLO, &v);
    assert_eq!(v.accept(&hello, &frames.initiator_proof), Err(WrongProof));
}

#[test]
fn relay_through_a_third_endpoint_is_refused_in_both_roles() {
    // INITIATOR dials STRANGER, STRANGER dials ACCEPTOR and passes every byte on. Even with equal
    // keying material on both connections, the ids differ.
    let i = initiator().with_remote(STRANGER);
    let a = acceptor().with_remote(STRANGER);
    let frames = run(&i, &a);
    assert_eq!(
        i.initiate(&frames.acceptor_hello, &frames.acceptor_proof),
        Err(UnknownGroup)
    );
    assert_eq!(
        a.accept(&frames.initiator_hello, &frames.initiator_proof),
        Err(UnknownGroup)
    );

    // And with the hints made right, the proofs do not fit.
    let hello = a.hello_for(KIND_ACCEPTOR_HELLO, &i);
    let proof = a.proof(Role::Acceptor, &frames.initiator_hello, &hello);
    assert_eq!(i.initiate(&hello, &proof), Err(WrongProof));
    let hello = i.hello_for(KIND_INITIATOR_HELLO, &a);
    let proof = i.proof(Role::Initiator, &hello, &frames.acceptor_hello);
    assert_eq!(a.accept(&hello, &proof), Err(WrongProof));
}

#[test]
fn another_members_proof_is_refused_in_both_roles() {
    // A stranger with a member's proof in hand, made for that member's own id.
    let frames = honest();
    let v = initiator().with_remote(STRANGER);
    let hello = acceptor().hello_for(KIND_ACCEPTOR_HELLO, &v);
    let proof = acceptor().proof(Role::Acceptor, &frames.initiator_hello, &hello);
    assert_eq!(v.initiate(&hello, &proof), Err(WrongProof));
    let v = acceptor().with_remote(STRANGER);
    let hello = initiator().hello_for(KIND_INITIATOR_HELLO, &v);
    let proof = initiator().proof(Role::Initiator, &hello, &frames.acceptor_hello);
    assert_eq!(v.accept(&hello, &proof), Err(WrongProof));
}

#[test]
fn swapped_roles_are_refused_in_both_roles() {
    // The acceptor's frames are given where the initiator's belong, and the other way round.
    let frames = honest();
    let v = acceptor().with_remote(ACCEPTOR).with_local(INITIATOR);
    assert_eq!(
        v.accept(&frames.acceptor_hello, &frames.acceptor_proof),
        Err(Malformed)
    );
    let hello = as_kind(KIND_INITIATOR_HELLO, &frames.acceptor_hello);
    let proof = as_kind(KIND_INITIATOR_PROOF, &frames.acceptor_proof);
    assert_eq!(v.accept(&hello, &proof), Err(WrongProof));

    let v = initiator().with_remote(INITIATOR).with_local(ACCEPTOR);
    assert_eq!(
        v.initiate(&frames.initiator_hello, &frames.initiator_proof),
        Err(Malformed)
    );
    let hello = as_kind(KIND_ACCEPTOR_HELLO, &frames.initiator_hello);
    let proof = as_kind(KIND_ACCEPTOR_PROOF, &frames.initiator_proof);
    assert_eq!(v.initiate(&hello, &proof), Err(WrongProof));
}

#[test]
fn the_label_alone_tells_the_roles_apart() {
    // A proof over the right transcript for the other role, with everything else equal.
    let (frames, i, a) = (honest(), initiator(), acceptor());
    let first = Hello::decode(KIND_INITIATOR_HELLO, &frames.initiator_hello).expect("a hello");
    let second = Hello::decode(KIND_ACCEPTOR_HELLO, &frames.acceptor_hello).expect("a hello");
    let talk = Talk {
        initiator: INITIATOR,
        acceptor: ACCEPTOR,
        hellos: (&first, &second),
    };
    let as_acceptor = prove(&talk, Role::Acceptor, &i.channel, &i.credentials);
    let as_initiator = prove(&talk, Role::Initiator, &a.channel, &a.credentials);
    let swapped = as_kind(KIND_INITIATOR_PROOF, &as_acceptor);
    assert_eq!(a.accept(&frames.initiator_hello, &swapped), Err(WrongProof));
    let swapped = as_kind(KIND_ACCEPTOR_PROOF, &as_initiator);
    assert_eq!(
        i.initiate(&frames.acceptor_hello, &swapped),
        Err(WrongProof)
    );
}

#[test]
fn a_connection_to_oneself_is_refused_in_both_roles() {
    let i = initiator().with_remote(INITIATOR);
    let a = acceptor().with_local(INITIATOR);
    let frames = run(&i, &a);
    let oneself = Err(HandshakeError::Oneself);
    assert_eq!(
        i.initiate(&frames.acceptor_hello, &frames.acceptor_proof),
        oneself
    );
    assert_eq!(
        a.accept(&frames.initiator_hello, &frames.initiator_proof),
        oneself
    );
}

// ---- Bytes changed in flight ----

#[test]
fn versions_cannot_be_talked_down_in_both_roles() {
    let (i, a) = (initiator(), acceptor());
    let speak = |party: &Party| Hello::new(1..=3, &party.channel, &party.credentials, party.nonce);
    let (of_i, of_a) = (
        speak(&i).encode(KIND_INITIATOR_HELLO),
        speak(&a).encode(KIND_ACCEPTOR_HELLO),
    );
    let down = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[3..5].copy_from_slice(&1u16.to_be_bytes());
        frame
    };
    let start = || Initiator::speaking(1..=3, &i.channel, &i.credentials, i.nonce).0;
    let answer = |hello: &[u8]| {
        let find = |_: &[u8; 16]| Some(a.credentials.clone());
        Acceptor::speaking(1..=3, &a.channel, find, hello, a.nonce).map(|(state, ..)| state)
    };

    // The initiator's hello is changed: the acceptor proves what it saw, the initiator what it
    // said; each refuses the other.
    let proof = a.proof(Role::Acceptor, &down(&of_i), &of_a);
    assert_eq!(start().finish(&of_a, &proof).err(), Some(WrongProof));
    let proof = i.proof(Role::Initiator, &of_i, &of_a);
    let waiting = answer(&down(&of_i)).expect("the change does not show yet");
    assert_eq!(waiting.version, 1, "talked down, if it were believed");
    assert_eq!(waiting.finish(&proof), Err(WrongProof));

    // The acceptor's hello is changed.
    let proof = a.proof(Role::Acceptor, &of_i, &of_a);
    assert_eq!(start().finish(&down(&of_a), &proof).err(), Some(WrongProof));
    let proof = i.proof(Role::Initiator, &of_i, &down(&of_a));
    assert_eq!(
        answer(&of_i).expect("untouched").finish(&proof),
        Err(WrongProof)
    );
}

#[test]
fn other_versions_are_refused_in_both_roles() {
    for (min, max) in [(2u16, 2u16), (2, u16::MAX), (0, 0), (u16::MAX, u16::MAX)] {
        let change = |frame: Vec<u8>| {
            let mut frame = frame;
            frame[1..3].copy_from_slice(&min.to_be_bytes());
            frame[3..5].copy_from_slice(&max.to_be_bytes());
            frame
        };
        let refused = HandshakeError::NoCommonVersion {
            ours: (1, 1),
            theirs: (min, max),
        };
        let frames = honest();
        let hello = change(frames.acceptor_hello);
        assert_eq!(
            initiator().initiate(&hello, &frames.acceptor_proof),
            Err(refused)
        );
        let hello = change(frames.initiator_hello);
        assert_eq!(
            acceptor().accept(&hello, &frames.initiator_proof),
            Err(refused)
        );
    }
    // Versions in no order.
    let mut frames = honest();
    frames.acceptor_hello[1] = 9;
    frames.initiator_hello[1] = 9;
    let refused = initiator().initiate(&frames.acceptor_hello, &frames.acceptor_proof);
    assert_eq!(refused, Err(Malformed));
    let refused = acceptor().accept(&frames.initiator_hello, &frames.initiator_proof);
    assert_eq!(refused, Err(Malformed));
}

#[test]
fn every_single_flipped_bit_is_refused_in_both_roles() {
    let frames = honest();
    let (i, a) = (initiator(), acceptor());
    let flips = |frame: &[u8]| {
        let frame = frame.to_vec();
        (0..frame.len() * 8).map(move |bit| {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        })
    };
    let mut refused = 0;
    for hello in flips(&frames.initiator_hello) {
        assert!(a.accept(&hello, &frames.initiator_proof).is_err());
        // Nor does the honest initiator believe an acceptor that saw the changed frame.
        if let Ok(hello) = Hello::decode(KIND_INITIATOR_HELLO, &hello) {
            let hello = hello.encode(KIND_INITIATOR_HELLO);
            let proof = a.proof(Role::Acceptor, &hello, &frames.acceptor_hello);
            assert!(i.initiate(&frames.acceptor_hello, &proof).is_err());
        }
        refused += 1;
    }
    for hello in flips(&frames.acceptor_hello) {
        assert!(i.initiate(&hello, &frames.acceptor_proof).is_err());
        if Hello::decode(KIND_ACCEPTOR_HELLO, &hello).is_ok() {
            let proof = i.proof(Role::Initiator, &frames.initiator_hello, &hello);
            assert!(a.accept(&frames.initiator_hello, &proof).is_err());
        }
        refused += 1;
    }
    for proof in flips(&frames.acceptor_proof) {
        assert!(i.initiate(&frames.acceptor_hello, &proof).is_err());
        refused += 1;
    }
    for proof in flips(&frames.initiator_proof) {
        assert!(a.accept(&frames.initiator_hello, &proof).is_err());
        refused += 1;
    }
    assert_eq!(refused, 8 * 2 * (HELLO_BYTES + PROOF_BYTES));
}

#[test]
fn frames_of_another_length_are_refused_in_both_roles() {
    let frames = honest();
    let (i, a) = (initiator(), acceptor());
    let lengths = |frame: &[u8]| {
        let mut all: Vec<(Vec<u8>, HandshakeError)> = (0..frame.len())
            .map(|length| (frame[..length].to_vec(), Malformed))
            .collect();
        let long = |length: usize| [frame, &vec![0; length - frame.len()]].concat();
        all.extend([frame.len() + 1, 256, FRAME_MAX].map(|length| (long(length), Malformed)));
        all.extend([FRAME_MAX + 1, 1 << 20].map(|length| (long(length), Oversized)));
        all
    };
    for (hello, error) in lengths(&frames.initiator_hello) {
        assert_eq!(a.accept(&hello, &frames.initiator_proof), Err(error));
    }
    for (hello, error) in lengths(&frames.acceptor_hello) {
        assert_eq!(i.initiate(&hello, &frames.acceptor_proof), Err(error));
    }
    for (proof, error) in lengths(&frames.acceptor_proof) {
        assert_eq!(i.initiate(&frames.acceptor_hello, &proof), Err(error));
    }
    for (proof, error) in lengths(&frames.initiator_proof) {
        assert_eq!(a.accept(&frames.initiator_hello, &proof), Err(error));
    }
}

#[test]
fn a_refusal_is_understood_at_every_step() {
    let (frames, i, a) = (honest(), initiator(), acceptor());
    assert_eq!(a.accept(REFUSAL, &frames.initiator_proof), Err(Refused));
    assert_eq!(a.accept(&frames.initiator_hello, REFUSAL), Err(Refused));
    assert_eq!(i.initiate(REFUSAL, &frames.acceptor_proof), Err(Refused));
    assert_eq!(i.initiate(&frames.acceptor_hello, REFUSAL), Err(Refused));
}

// ---- Garbage ----

const ROUNDS: usize = 10_000;

/// Feeds `frame` to every entry point; the other frames are the honest ones.
fn nobody_believes(frames: &Frames, parties: &(Party, Party), frame: &[u8]) {
    let (i, a) = parties;
    assert!(
        a.accept(frame, &frames.initiator_proof).is_err(),
        "{frame:?}"
    );
    assert!(
        a.accept(&frames.initiator_hello, frame).is_err(),
        "{frame:?}"
    );
    assert!(
        i.initiate(frame, &frames.acceptor_proof).is_err(),
        "{frame:?}"
    );
    assert!(
        i.initiate(&frames.acceptor_hello, frame).is_err(),
        "{frame:?}"
    );
}

#[test]
fn ten_thousand_random_byte_strings_are_refused_at_every_entry() {
    let (frames, parties) = (honest(), (initiator(), acceptor()));
    let mut random = StdRng::seed_from_u64(2);
    for round in 0..ROUNDS {
        let length = match round % 4 {
            0 => random.random_range(0..FRAME_MAX + 16),
            1 => HELLO_BYTES,
            2 => PROOF_BYTES,
            _ => random.random_range(0..64),
        };
        let mut frame = vec![0; length];
        random.fill(&mut frame[..]);
        // Half of them get past the first byte.
        if let (Some(kind), 0..2) = (frame.first_mut(), round % 8 / 2) {
            *kind = random.random_range(0..5);
        }
        nobody_believes(&frames, &parties, &frame);
    }
}

#[test]
fn ten_thousand_random_mutations_are_refused_at_every_entry() {
    let (frames, parties) = (honest(), (initiator(), acceptor()));
    let all = [
        &frames.initiator_hello,
        &frames.acceptor_hello,
        &frames.acceptor_proof,
        &frames.initiator_proof,
    ];
    let mut random = StdRng::seed_from_u64(3);
    for round in 0..ROUNDS {
        let original = all[round % 4];
        let mut frame = original.clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=frame.len());
            match random.random_range(0..5) {
                0 if at < frame.len() => frame[at] ^= 1 << random.random_range(0..8),
                1 if at < frame.len() => frame[at] = random.random(),
                2 => frame.insert(at, random.random()),
                3 => frame.truncate(at),
                _ => frame[..at].reverse(),
            }
        }
        // A mutation that undid itself, or became another honest frame, is no attack.
        if all.iter().all(|honest| frame != **honest) {
            nobody_believes(&frames, &parties, &frame);
        }
    }
}
