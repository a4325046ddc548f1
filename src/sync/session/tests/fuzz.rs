//! Damaged sessions: whatever comes, cut anywhere, is judged alike.

use bytes::{Bytes, BytesMut};

use crate::{
    fuzz::{Fuzz, Shape, bounded, cuts},
    log_store::{Line, Topic},
    sync::{
        codec::{
            self, Decoder, Heights, Limits, Message,
            golden::{Golden, LINES},
        },
        session::{Event, Handshake, Role, Session, SessionError},
    },
};

fn shape(line: Line) -> Shape {
    match line {
        Line::V06 => Shape::Cbor,
        Line::V07 => Shape::Framed,
    }
}

/// What a session makes of what comes, in these pieces and then the end.
fn run(line: Line, role: Role, pieces: &[&[u8]]) -> (Vec<Event>, Option<SessionError>, Vec<u8>) {
    let mut session = Session::new(line, role, Limits::of(line));
    let (mut events, mut said) = (Vec::new(), Vec::new());
    let mut answer = |session: &mut Session| {
        if session.wants_have() {
            session.our_have(Heights::new()).expect("it wants it");
        }
        if session.wants_plan() {
            session.plan(1, 10).expect("it wants it");
        }
        if session.wants_operations() > 0 {
            let header = Bytes::from_static(&[0x80]);
            session.give(vec![(header, None)]).expect("it wants them");
            session.end_of_operations().expect("all were given");
        }
        while let Some(bytes) = session.poll_transmit() {
            said.extend_from_slice(&bytes);
        }
    };
    answer(&mut session);
    for piece in pieces.iter().copied().map(Some).chain([None]) {
        match piece {
            Some(piece) => session.received(Bytes::copy_from_slice(piece)),
            None => session.received_end(),
        }
        loop {
            match session.poll_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(session.poll_event(), Err(error.clone()));
                    return (events, Some(error), said);
                }
            }
            answer(&mut session);
        }
    }
    (events, None, said)
}

#[test]
fn fuzzed_sessions() {
    for line in LINES {
        let golden = Golden::of(line);
        let of = |name: &str| golden.bytes(name).to_vec();
        let pre_sync = {
            let mut bytes = BytesMut::new();
            let message = Message::PreSync {
                operations: 2,
                bytes: 600,
            };
            codec::encode(line, &message, &mut bytes).expect("it is short");
            bytes.to_vec()
        };
        let have = of("sync.have.one");
        let corpus = [
            [have.clone(), of("sync.done"), of("live"), of("close")].concat(),
            [
                have,
                pre_sync,
                of("sync.operation"),
                of("sync.operation.bodyless"),
            ]
            .concat(),
            [of("sync.done"), of("live.bodyless"), of("live")].concat(),
            of("sync.have.two_logs"),
        ];
        let fuzz = Fuzz::new("sessions", shape(line), corpus);
        fuzz.inputs(1_000).run(|bytes| {
            for role in [Role::Initiator, Role::Acceptor] {
                let (events, error, said) = bounded(bytes, || run(line, role, &[bytes]));
                for pieces in cuts(bytes) {
                    let (again, late, _) = run(line, role, &pieces);
                    assert_eq!(again, events);
                    assert_eq!(late.is_some(), error.is_some());
                }
                if let Some(error) = error {
                    assert!(error.to_string().contains(' '), "{error}");
                }
                let mut decoder = Decoder::new(line, Limits::of(line));
                decoder.push(said.into());
                while decoder.next().expect("we speak the line").is_some() {}
            }
        });
    }
}

#[test]
fn fuzzed_topic_handshakes() {
    for line in LINES {
        let golden = Golden::of(line);
        let of = |name: &str| golden.bytes(name).to_vec();
        let topic = Topic::from_bytes(golden.array("topic"));
        let corpus = [
            [of("handshake.topic"), of("handshake.done")].concat(),
            of("handshake.done"),
        ];
        let run = |initiates: bool, pieces: &[&[u8]]| {
            let mut side = match initiates {
                true => Handshake::initiate(line, topic),
                false => Handshake::accept(),
            };
            let mut ended = Ok(());
            for piece in pieces {
                ended = ended.and_then(|()| side.received(Bytes::copy_from_slice(piece)));
            }
            let ended = ended.and_then(|()| side.received_end());
            (
                ended.is_ok(),
                side.is_done(),
                side.asked(),
                side.poll_transmit(),
            )
        };
        Fuzz::new("topic handshakes", shape(line), corpus).run(|bytes| {
            for initiates in [true, false] {
                let whole = bounded(bytes, || run(initiates, &[bytes]));
                assert!(whole.3.as_ref().is_none_or(|it| it.len() < 128));
                for pieces in cuts(bytes) {
                    let cut = run(initiates, &pieces);
                    assert_eq!(cut.0, whole.0);
                    if whole.0 {
                        assert_eq!(cut, whole);
                    }
                }
            }
        });
    }
}
