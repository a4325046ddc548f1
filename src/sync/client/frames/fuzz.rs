//! Damaged messages of our own client and of its members, alone and as a stream of bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{super::stream::FrameReader, tests::golden, *};
use crate::fuzz::{Fuzz, Shape, bounded_by, cuts};

fn corpus() -> Vec<Bytes> {
    let all = golden().into_iter().map(|(frame, _)| frame.encode());
    let mut all: Vec<Bytes> = all.collect();
    all.push(all.concat().into());
    all
}

#[test]
fn fuzzed_messages_of_our_own_client() {
    Fuzz::new("client", Shape::Framed, corpus()).run(|bytes| {
        let (_, body) = bytes.split_at(bytes.len().min(4));
        // A run of outcomes is written as two numbers.
        let outcomes = (RUN_OPERATIONS_MAX * 2 * size_of::<PushOutcome>()) as u64;
        let at_least = match body.first() {
            Some(&7) => outcomes,
            // Serde takes room for up to 1 MiB of each list that is announced.
            Some(&10) => 4 * 1024 * 1024,
            _ => 16 * 1024,
        };
        match bounded_by(at_least, body, || Frame::decode(body)) {
            Ok(frame) => {
                let again = frame.encode();
                let (_, again) = again.split_at(4);
                assert_eq!(Frame::decode(again), Ok(frame.clone()));
                // Runs of outcomes may come in pieces, reasons by unknown numbers, addresses in any
                // order.
                let free = matches!(
                    frame,
                    Frame::Committed { .. } | Frame::Refused { .. } | Frame::Members(_)
                );
                if !free {
                    assert_eq!(again, body);
                }
            }
            Err(fault) => {
                let text = fault.to_string();
                assert!(
                    text.starts_with(fault.frame) && text.contains(": "),
                    "{text}"
                );
            }
        }
    });
}

/// Gives its pieces one at a time, and then the end.
struct Pieces<'a>(Vec<&'a [u8]>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.retain(|it| !it.is_empty());
        if let Some(piece) = self.0.first_mut() {
            let (now, later) = piece.split_at(piece.len().min(to.remaining()));
            to.put_slice(now);
            *piece = later;
        }
        Poll::Ready(Ok(()))
    }
}

#[test]
fn fuzzed_streams_of_our_own_client() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("it has a clock");
    let _clock = runtime.enter();
    let read = |pieces: Vec<&[u8]>| {
        let mut reader = FrameReader::new(Pieces(pieces), FRAME_MAX);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut found = Vec::new();
        loop {
            let next = std::pin::pin!(reader.next_frame(Duration::MAX));
            let Poll::Ready(next) = next.poll(&mut cx) else {
                panic!("all is there");
            };
            match next {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => return (found, None),
                Err(fault) => return (found, Some(fault.to_string())),
            }
        }
    };
    Fuzz::new("client's streams", Shape::Framed, corpus())
        .inputs(500)
        .run(|bytes| {
            let whole = read(vec![bytes]);
            for pieces in cuts(bytes) {
                assert_eq!(read(pieces), whole);
            }
        });
}
