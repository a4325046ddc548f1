//! What holds when nobody cheats, and the parties that the attacks are made of.

mod attacks;
mod damage;

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
