//! One session against a remote that breaks each rule.

use bytes::{Bytes, BytesMut};

use crate::{
    log_store::{Author, Line, LogId, Topic},
    sync::{
        codec::{self, HandshakeMessage, Heights, Limits, Message, WireFault},
        protocol::{Fault, SyncError},
        session::{Event, Handshake, Misbehaviour, Role, Session, SessionError},
    },
};

const LINES: [Line; 2] = [Line::V06, Line::V07];

fn have() -> Message {
    Message::Have(Heights::new())
}

fn pre_sync(operations: u32) -> Message {
    Message::PreSync {
        operations,
        bytes: 1,
    }
}

fn operation() -> Message {
    Message::Operation {
        header: Bytes::from_static(&[0x40]),
        body: None,
    }
}

fn live() -> Message {
    Message::Live {
        header: Bytes::from_static(&[0x40]),
        body: None,
    }
}

/// What an honest side does meanwhile.
#[derive(Clone, Copy, PartialEq)]
enum We {
    /// Have said nothing.
    AreSilent,
    /// Have said what we hold and are still sending.
    Send,
    /// Have said `Done`.
    AreDone,
}

/// What comes of these messages, each as far as it is taken.
fn hear(line: Line, role: Role, we: We, messages: &[Message]) -> Result<Vec<Event>, SessionError> {
    let mut session = Session::new(line, role, Limits::of(line));
    if we != We::AreSilent {
        session.our_have(Heights::new()).unwrap();
    }
    let mut events = Vec::new();
    for message in messages {
        let mut bytes = BytesMut::new();
        codec::encode(line, message, &mut bytes).unwrap();
        session.received(bytes.freeze());
        while let Some(event) = session.poll_event()? {
            events.push(event);
        }
        if we != We::AreSilent && session.wants_plan() {
            session.plan(u32::from(we == We::Send), 1).unwrap();
        }
    }
    session.received_end();
    while let Some(event) = session.poll_event()? {
        events.push(event);
    }
    Ok(events)
}

type Case = (We, Vec<Message>, Misbehaviour);

/// What comes before its turn, or does not come at all.
fn too_early() -> Vec<Case> {
    use Message::{Close, Done};
    use Misbehaviour as M;
    use We::{AreDone, AreSilent, Send};
    let before_have = |got| M::BeforeHave { got };
    let before_ours = |got| M::BeforeOurHave { got };
    let early = |got| M::BeforeTheExchangeEnded { got };
    let ended = |phase| M::EndedEarly { phase };
    vec![
        (AreDone, vec![operation()], before_have("Operation")),
        (AreDone, vec![pre_sync(1)], before_have("PreSync")),
        (AreDone, vec![Done], before_have("Done")),
        (AreDone, vec![live()], before_have("Live")),
        (AreDone, vec![Close], before_have("Close")),
        (AreSilent, vec![have(), pre_sync(1)], before_ours("PreSync")),
        (AreSilent, vec![have(), Done], before_ours("Done")),
        (AreDone, vec![have(), live()], early("Live")),
        (AreDone, vec![have(), pre_sync(1), live()], early("Live")),
        (AreDone, vec![have(), pre_sync(1), Close], early("Close")),
        (Send, vec![have(), Done, live()], early("Live")),
        (Send, vec![have(), Done, Close], early("Close")),
        (AreDone, vec![], ended("its Have")),
        (AreDone, vec![have()], ended("its Done")),
        (AreDone, vec![have(), pre_sync(1)], ended("its Done")),
        (Send, vec![have(), Done], ended("our Done")),
    ]
}

/// What comes again, or without being announced.
fn too_much() -> Vec<Case> {
    use Message::{Close, Done};
    use Misbehaviour as M;
    use We::AreDone;
    let more = |announced| M::MoreThanAnnounced { announced };
    let two = [operation(), operation()];
    let three = [&[have(), pre_sync(2), operation()][..], &two].concat();
    vec![
        (AreDone, vec![have(), have()], M::HaveAgain),
        (AreDone, vec![have(), pre_sync(1), have()], M::HaveAgain),
        (
            AreDone,
            vec![have(), pre_sync(1), pre_sync(1)],
            M::PreSyncAgain,
        ),
        (AreDone, vec![have(), Done, pre_sync(1)], M::PreSyncAgain),
        (AreDone, vec![have(), operation()], M::OperationUnannounced),
        (
            AreDone,
            vec![have(), Done, operation()],
            M::OperationUnannounced,
        ),
        (AreDone, three, more(2)),
        (AreDone, vec![have(), pre_sync(0), operation()], more(0)),
        (AreDone, vec![have(), Done, Done, Done], M::DoneAgain),
        (AreDone, vec![have(), Done, Close, Done], M::DoneAgain),
    ]
}

#[test]
fn each_illegal_order_gets_its_error() {
    for line in LINES {
        for (we, messages, misbehaviour) in too_early().into_iter().chain(too_much()) {
            let found = hear(line, Role::Acceptor, we, &messages);
            let error = found.expect_err("a liar is found out");
            let wanted = SessionError::Misbehaved(misbehaviour);
            assert_eq!(error, wanted, "{messages:?}");
            assert_eq!(error.fault(), Fault::Remote);
            let public = SyncError::from(error);
            assert!(matches!(public, SyncError::UnexpectedBehaviour(_)));
        }
        let found = hear(line, Role::Initiator, We::AreSilent, &[have()]);
        let early = Misbehaviour::BeforeOurHave { got: "Have" };
        let error = SessionError::Misbehaved(early);
        assert_eq!(found, Err(error), "nobody sees a silent initiator");
    }
}

#[test]
fn what_stock_does_is_no_lie() {
    for line in LINES {
        let taken = |messages: &[Message]| {
            let found = hear(line, Role::Acceptor, We::AreDone, messages);
            let mut events = found.expect("tolerated");
            assert_eq!(events.pop(), Some(Event::Ended));
            events.len()
        };
        // Done twice, when a log was pruned meanwhile; fewer operations than announced.
        assert_eq!(taken(&[have(), Message::Done, Message::Done, live()]), 3);
        assert_eq!(taken(&[have(), pre_sync(5), operation(), Message::Done]), 4);
        // Live and Close behind its own Close; an end without Close, where it has no live mode.
        let close = [
            have(),
            Message::Done,
            Message::Close,
            live(),
            Message::Close,
        ];
        assert_eq!(taken(&close), 4);
        assert_eq!(taken(&[have(), Message::Done]), 2);
    }
}

#[test]
fn after_an_error_there_is_only_the_error() {
    for line in LINES {
        let mut session = Session::new(line, Role::Acceptor, Limits::of(line));
        let mut bytes = BytesMut::new();
        for message in [Message::Done, have()] {
            codec::encode(line, &message, &mut bytes).unwrap();
        }
        session.received(bytes.freeze());
        let error = session.poll_event().unwrap_err();
        assert_eq!(session.poll_event(), Err(error.clone()));
        assert_eq!(session.our_have(Heights::new()), Err(error.clone()));
        assert_eq!(session.close(), Err(error));
        assert!(session.poll_transmit().is_none());
    }
}

#[test]
fn bombs_are_encoding_faults_of_the_remote() {
    let cases: [(Line, &[u8]); 5] = [
        (Line::V07, &[0x7f, 0xff, 0xff, 0xff]),
        (Line::V07, &[0, 0, 0, 7, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]), // authors without end
        (
            Line::V07,
            &[0, 0, 0, 8, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x7f, 1],
        ), // 2^35 operations
        (
            Line::V06,
            &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        (
            Line::V06,
            b"\xa2dtypedSyncevalue\xa2dtypedHaveevalue\xba\xff\xff\xff\xff",
        ),
    ];
    for (line, bytes) in cases {
        let mut session = Session::new(line, Role::Acceptor, Limits::of(line));
        session.received(Bytes::copy_from_slice(bytes));
        let error = session.poll_event().unwrap_err();
        let SessionError::Encoding(fault) = error else {
            panic!("{line:?} {bytes:02x?}: {error}");
        };
        let bomb = matches!(
            fault.fault,
            WireFault::TooLarge { .. } | WireFault::TooMany { .. } | WireFault::IntegerTooLarge(_)
        );
        assert!(bomb, "{line:?} {bytes:02x?}: {error}");
        assert!(matches!(
            SyncError::from(error),
            SyncError::InvalidEncoding(_)
        ));
    }
}

#[test]
fn a_have_without_end_is_cut_at_the_limit() {
    for line in LINES {
        let limits = Limits {
            authors: 100,
            ..Limits::of(line)
        };
        let mut session = Session::new(line, Role::Acceptor, limits);
        let heights: Heights = (0..101)
            .map(|it| {
                let log = (LogId::from_bytes([1; 32]), 0);
                (Author::from_bytes([it; 32]), [log].into())
            })
            .collect();
        let mut bytes = BytesMut::new();
        codec::encode(line, &Message::Have(heights), &mut bytes).unwrap();
        session.received(bytes.freeze());
        let fault = WireFault::TooMany {
            what: "authors",
            claimed: 101,
            limit: 100,
        };
        let fault = fault.of("Have");
        assert_eq!(session.poll_event(), Err(SessionError::Encoding(fault)));
    }
}

#[test]
fn a_message_cut_off_by_the_end_is_no_end() {
    for line in LINES {
        let mut session = Session::new(line, Role::Acceptor, Limits::of(line));
        let mut bytes = BytesMut::new();
        codec::encode(line, &have(), &mut bytes).unwrap();
        session.our_have(Heights::new()).unwrap();
        session.received(bytes.freeze());
        session.poll_event().unwrap().unwrap();
        session.plan(0, 0).unwrap();
        let mut bytes = BytesMut::new();
        codec::encode(line, &Message::Done, &mut bytes).unwrap();
        codec::encode(line, &live(), &mut bytes).unwrap();
        let cut = bytes.len() - 1;
        session.received(bytes.freeze().slice(..cut));
        session.received_end();
        let mut last = session.poll_event();
        while let Ok(Some(_)) = last {
            last = session.poll_event();
        }
        assert!(matches!(
            last,
            Err(SessionError::Misbehaved(Misbehaviour::EndedEarly { .. }))
        ));
    }
}

#[test]
fn handshakes_refuse_what_is_out_of_order() {
    for line in LINES {
        let bytes = |messages: &[HandshakeMessage]| {
            let mut bytes = BytesMut::new();
            for message in messages {
                codec::encode_handshake(line, message, &mut bytes);
            }
            bytes.freeze()
        };
        let topic = || HandshakeMessage::Topic(Topic::from_bytes([7; 32]));
        let initiate = || Handshake::initiate(line, Topic::from_bytes([7; 32]));
        let turn = Err(SessionError::Misbehaved(Misbehaviour::HandshakeOutOfOrder));
        assert_eq!(initiate().received(bytes(&[topic()])), turn);
        let twice = bytes(&[topic(), topic()]);
        assert_eq!(Handshake::accept().received(twice), turn);
        let after = Err(SessionError::Misbehaved(Misbehaviour::AfterTheEnd));
        let more = bytes(&[HandshakeMessage::Done, HandshakeMessage::Done]);
        assert_eq!(initiate().received(more), after);
        let more = bytes(&[topic(), HandshakeMessage::Done, HandshakeMessage::Done]);
        assert_eq!(Handshake::accept().received(more), after);
        let mut cut = Handshake::accept();
        cut.received(bytes(&[topic()])).unwrap();
        assert!(cut.received_end().is_err());
        // Done comes first: no topic handshake of any line begins so, or it is not its turn.
        let done = bytes(&[HandshakeMessage::Done]);
        assert!(Handshake::accept().received(done).is_err());
    }
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        &[0xa2; 100],
        &[0, 0, 1, 0],
        &[0xff; 4],
    ] {
        let found = Handshake::accept().received(Bytes::from_static(bytes));
        assert!(
            matches!(found, Err(SessionError::Encoding(_))),
            "{bytes:02x?}"
        );
    }
}
