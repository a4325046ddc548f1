//! The first stream of a session: both sides learn the topic. No I/O.
//!
//! ```text
//!   initiator                        acceptor
//!       | -- Topic(32 bytes) ---------> |   the first byte tells the line
//!       | <------------------- Done --- |   also where the topic is not served here:
//!       | -- Done --------------------> |   then the connection is dropped
//! ```

use bytes::{Bytes, BytesMut};

use super::{Misbehaviour, SessionError};
use crate::{
    log_store::{Line, Topic},
    sync::codec::{
        self, FrameFault, Frames, HANDSHAKE_FRAME_MAX, HandshakeMessage, WireFault,
        line_of_first_byte,
    },
};

/// One side of the topic handshake.
///
/// Give it what the stream brings with [`received`](Self::received), send what
/// [`poll_transmit`](Self::poll_transmit) gives, until it [`is_done`](Self::is_done) and gives
/// nothing more. An error ends it.
#[derive(Debug)]
pub(crate) struct Handshake {
    state: State,
    frames: Option<(Line, Frames)>,
    topic: Option<Topic>,
    output: BytesMut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The acceptor waits for the topic.
    Asked,
    /// The initiator waits for the answer.
    Answer,
    /// The acceptor waits for the end.
    End,
    Done,
}

impl Handshake {
    /// The side that opened the stream and asks for the topic, in the topic's line.
    pub(crate) fn initiate(line: Line, topic: Topic) -> Self {
        let mut output = BytesMut::new();
        codec::encode_handshake(line, &HandshakeMessage::Topic(topic), &mut output);
        Self {
            state: State::Answer,
            frames: Some((line, Frames::new(line, HANDSHAKE_FRAME_MAX))),
            topic: Some(topic),
            output,
        }
    }

    /// The side that the stream was opened to. It answers as soon as it knows the topic, as stock
    /// does; look at [`asked`](Self::asked), and drop the connection if it is not served.
    pub(crate) fn accept() -> Self {
        Self {
            state: State::Asked,
            frames: None,
            topic: None,
            output: BytesMut::new(),
        }
    }

    /// Bytes of the stream, as they came.
    ///
    /// # Errors
    /// The remote does not keep to the protocol.
    pub(crate) fn received(&mut self, bytes: Bytes) -> Result<(), SessionError> {
        let Some(first) = bytes.first() else {
            return Ok(());
        };
        if self.frames.is_none() {
            let line = line_of_first_byte(*first)
                .ok_or(WireFault::Malformed("no topic handshake of any line"))
                .map_err(FrameFault::from)?;
            self.frames = Some((line, Frames::new(line, HANDSHAKE_FRAME_MAX)));
        }
        if let Some((_, frames)) = &mut self.frames {
            frames.push(bytes);
        }
        while let Some((line, frames)) = &mut self.frames {
            let line = *line;
            let Some(frame) = frames.next().map_err(FrameFault::from)? else {
                if self.state == State::Done && frames.held() > 0 {
                    return Err(Misbehaviour::AfterTheEnd.into());
                }
                break;
            };
            self.message(line, codec::decode_handshake(line, &frame)?)?;
        }
        Ok(())
    }

    /// The remote ended the stream.
    ///
    /// # Errors
    /// It was not done.
    pub(crate) fn received_end(&mut self) -> Result<(), SessionError> {
        if self.state == State::Done {
            return Ok(());
        }
        Err(Misbehaviour::EndedEarly {
            phase: "the topic handshake",
        }
        .into())
    }

    /// What to send, or `None` for now.
    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.output.is_empty()).then(|| self.output.split().freeze())
    }

    /// What is asked for, as soon as that is known.
    pub(crate) fn asked(&self) -> Option<(Line, Topic)> {
        let (line, _) = self.frames.as_ref()?;
        Some((*line, self.topic?))
    }

    /// Both sides are done, once everything of [`poll_transmit`](Self::poll_transmit) is sent.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn message(&mut self, line: Line, message: HandshakeMessage) -> Result<(), SessionError> {
        match (self.state, message) {
            (State::Asked, HandshakeMessage::Topic(topic)) => {
                self.topic = Some(topic);
                self.state = State::End;
                codec::encode_handshake(line, &HandshakeMessage::Done, &mut self.output);
            }
            (State::Answer, HandshakeMessage::Done) => {
                self.state = State::Done;
                codec::encode_handshake(line, &HandshakeMessage::Done, &mut self.output);
            }
            (State::End, HandshakeMessage::Done) => self.state = State::Done,
            (State::Done, _) => return Err(Misbehaviour::AfterTheEnd.into()),
            _ => return Err(Misbehaviour::HandshakeOutOfOrder.into()),
        }
        Ok(())
    }
}
