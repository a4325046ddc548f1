//! Every attack in both roles: `v` is the side under attack, `m` the attacker.

use HandshakeError::{Malformed, UnknownGroup, WrongProof};

use super::*;

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
