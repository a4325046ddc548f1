//! A lane: one persistent stream that carries many requests at once, each answered under its own
//! number and in any order.
//!
//! ```text
//!   request   number u64 BE   body                 answer   number u64 BE   0x01   body
//!                                                           number u64 BE   0x00   (refused)
//! ```
//!
//! A lane is opened by its first request and belongs to the side that opened it. Callers write
//! straight into the stream; only what the send window refuses is left to the lane's task, so that
//! a request costs no hop to another task on its way out.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::{Bond, Lane, LaneError, Service, TerminationReason, stream::Opening};
use crate::{
    config::COMMAND_BYTES_LIMIT,
    net::{BondStream, RecvStream, SendStream, WireError, frame::FrameError},
};

/// The largest body: the largest command and what Raft wraps around it.
pub(crate) const BODY_MAX: usize = COMMAND_BYTES_LIMIT + 64 * 1024;

/// Number and status.
const HEAD: usize = 8 + 1;

/// Requests outstanding on one lane; more wait.
pub(crate) const OUTSTANDING_MAX: usize = 1_024;

/// KiB of request bodies outstanding on one lane; more wait.
const OUTSTANDING_KIB: usize = 32 * 1024;

const _: () = assert!(BODY_MAX / 1024 < OUTSTANDING_KIB);

/// How often a task may go on without letting others run.
const ROUNDS_MAX: usize = 32;

const REFUSED: u8 = 0;
const ANSWERED: u8 = 1;

/// The asking end.
pub(super) struct LaneClient {
    lane: Lane,
    state: Mutex<State>,
    /// Wakes the lane's task when the stream would not take everything.
    blocked: Notify,
    slots: Semaphore,
    kib: Semaphore,
}

/// # Invariants
/// - Every number in `waiting` has been given to `queued` or to the stream, never to both.
/// - While `running` is false, `waiting` and `queued` are empty and `stream` is none.
#[derive(Default)]
struct State {
    next: u64,
    running: bool,
    stream: Option<SendStream>,
    queued: Vec<(u64, Bytes)>,
    waiting: HashMap<u64, oneshot::Sender<Result<Bytes, LaneError>>>,
}

impl LaneClient {
    pub(super) fn new(lane: Lane) -> Self {
        Self {
            lane,
            state: Mutex::default(),
            blocked: Notify::new(),
            slots: Semaphore::new(OUTSTANDING_MAX),
            kib: Semaphore::new(OUTSTANDING_KIB),
        }
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        bond: &Bond,
        body: Bytes,
    ) -> Result<Bytes, LaneError> {
        if body.len() > BODY_MAX {
            return Err(LaneError::TooLarge {
                bytes: body.len(),
                max: BODY_MAX,
            });
        }
        let kib = (body.len() / 1024 + 1) as u32;
        let room = async { tokio::try_join!(self.slots.acquire(), self.kib.acquire_many(kib)) };
        let _room = tokio::select! {
            biased;
            // The semaphores are never closed.
            room = room => room.map_err(|_| LaneError::Terminated)?,
            _ = bond.terminated() => return Err(LaneError::Terminated),
        };
        let (answer, answered) = oneshot::channel();
        let number = self.send(bond, body, answer);
        // A dropped call must not leave its number behind.
        let _forget = Forget { lane: self, number };
        answered.await.unwrap_or(Err(LaneError::Terminated))
    }

    fn send(
        self: &Arc<Self>,
        bond: &Bond,
        body: Bytes,
        answer: oneshot::Sender<Result<Bytes, LaneError>>,
    ) -> u64 {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, answer);
        if let Some(stream) = &mut state.stream {
            stream.push_parts(&number.to_be_bytes(), body);
            // A failure is found by the lane's task, too; it tells everybody who waits.
            let mut cx = Context::from_waker(Waker::noop());
            if stream.poll_flush(&mut cx).is_pending() {
                self.blocked.notify_one();
            }
        } else {
            state.queued.push((number, body));
            if !state.running {
                state.running = true;
                let (lane, bond) = (Arc::clone(self), bond.clone());
                bond.0
                    .tasks
                    .clone()
                    .spawn(async move { lane.run(&bond).await });
            }
        }
        number
    }

    /// The lane's task: opens the stream, hands out answers, writes what callers could not.
    async fn run(&self, bond: &Bond) {
        let failure = tokio::select! {
            biased;
            _ = bond.terminated() => LaneError::Terminated,
            failure = self.serve(bond) => failure,
        };
        let mut state = self.lock();
        state.running = false;
        state.stream = None;
        state.queued.clear();
        for (_, answer) in state.waiting.drain() {
            let _ = answer.send(Err(failure.clone()));
        }
    }

    async fn serve(&self, bond: &Bond) -> LaneError {
        let BondStream { send, mut recv } = match bond.open(Opening::Lane(self.lane)).await {
            Ok(stream) => stream,
            Err(failure) => return failure,
        };
        {
            let mut state = self.lock();
            let queued = std::mem::take(&mut state.queued);
            let stream = state.stream.insert(send);
            for (number, body) in queued {
                stream.push_parts(&number.to_be_bytes(), body);
            }
        }
        self.blocked.notify_one();
        loop {
            tokio::select! {
                () = self.blocked.notified() => {
                    if let Err(error) = self.flush(&mut recv).await {
                        return LaneError::Failed(error);
                    }
                }
                answer = recv.read_frame(BODY_MAX + HEAD) => match answer {
                    Ok(Some(answer)) => self.answer(answer),
                    Ok(None) => return LaneError::Failed(WireError::new("the lane was ended")),
                    Err(error) => return LaneError::Failed(WireError::new(error)),
                },
            }
        }
    }

    /// Writes what waits, and goes on reading answers meanwhile: the peer may take no more
    /// requests before its answers are taken.
    async fn flush(&self, recv: &mut RecvStream) -> Result<(), WireError> {
        poll_fn(|cx| {
            loop {
                let flushed = match &mut self.lock().stream {
                    Some(stream) => stream.poll_flush(cx),
                    None => Poll::Ready(Ok(())),
                };
                if flushed.is_ready() {
                    return flushed;
                }
                match recv.poll_frame(cx, BODY_MAX + HEAD) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Some(answer))) => self.answer(answer),
                    Poll::Ready(Ok(None)) => {
                        return Poll::Ready(Err(WireError::new("the lane was ended")));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(WireError::new(error))),
                }
            }
        })
        .await
    }

    fn answer(&self, mut frame: Bytes) {
        if frame.len() < HEAD {
            return;
        }
        let (number, status) = (frame.get_u64(), frame.get_u8());
        if let Some(waiting) = self.lock().waiting.remove(&number) {
            let _ = waiting.send(if status == ANSWERED {
                Ok(frame)
            } else {
                Err(LaneError::Refused)
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Forget<'a> {
    lane: &'a LaneClient,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.lane.lock().waiting.remove(&self.number);
    }
}

/// A request that is being answered: its number, its weight, and the answer.
type Answering = BoxFuture<'static, (u64, usize, Option<Bytes>)>;

/// The answering end: runs until the lane or the bond ends.
///
/// # Invariants
/// - At most [`OUTSTANDING_MAX`] handlers and [`OUTSTANDING_KIB`] of their requests at a time; a
///   peer that sends more is not read until some are answered.
struct LaneServer {
    send: SendStream,
    recv: RecvStream,
    handlers: FuturesUnordered<Answering>,
    held: usize,
}

/// Answers the requests that arrive on a lane which the peer has opened.
pub(super) async fn serve(bond: Bond, service: Arc<dyn Service>, lane: Lane, stream: BondStream) {
    let BondStream { send, recv } = stream;
    let mut server = LaneServer {
        send,
        recv,
        handlers: FuturesUnordered::new(),
        held: 0,
    };
    let served = poll_fn(|cx| server.poll(cx, &bond, &service, lane));
    tokio::select! {
        biased;
        _ = bond.terminated() => {}
        served = served => if let Err(error) = served {
            tracing::debug!(bond = %bond.id(), ?lane, %error, "a lane is gone");
        },
    }
}

impl LaneServer {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        bond: &Bond,
        service: &Arc<dyn Service>,
        lane: Lane,
    ) -> Poll<Result<(), FrameError>> {
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            while self.handlers.len() < OUTSTANDING_MAX && self.held < OUTSTANDING_KIB * 1024 {
                match self.recv.poll_frame(cx, BODY_MAX + HEAD)? {
                    Poll::Ready(Some(request)) => {
                        if request.len() < 8 {
                            return Poll::Ready(Err(FrameError::Torn));
                        }
                        self.accept(bond, service, lane, request);
                        moved = true;
                    }
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            while let Poll::Ready(Some((number, weight, answer))) =
                self.handlers.poll_next_unpin(cx)
            {
                self.held -= weight;
                self.answer(number, answer);
                moved = true;
            }
            match self.send.poll_flush(cx) {
                Poll::Ready(flushed) => flushed.map_err(FrameError::Wire)?,
                // Answers pile up: nothing more is taken before the peer takes them.
                Poll::Pending => return Poll::Pending,
            }
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn accept(&mut self, bond: &Bond, service: &Arc<dyn Service>, lane: Lane, mut request: Bytes) {
        let number = request.get_u64();
        let weight = request.len();
        self.held += weight;
        let (service, from) = (Arc::clone(service), bond.proven());
        self.handlers.push(
            async move { (number, weight, service.request(from, lane, request).await) }.boxed(),
        );
    }

    fn answer(&mut self, number: u64, answer: Option<Bytes>) {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&number.to_be_bytes());
        head[8] = if answer.is_some() { ANSWERED } else { REFUSED };
        self.send.push_parts(&head, answer.unwrap_or_default());
    }
}

/// A handler that panics takes its lane down; the bond goes with it, so that the peer notices.
pub(super) struct EndsOnPanic(pub(super) Bond);

impl Drop for EndsOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .end(TerminationReason::Closed("a handler panicked".into()));
        }
    }
}
