//! The task that owns a bond: its control stream, its heartbeat, and its end.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{
    Bond, Lane, MeshEvent, Message, Opening, Proven, Service, TerminationReason,
    heartbeat::{Event, Heartbeat},
    lane,
    message::{CLOSE_BYTES_MAX, MESSAGE_BYTES_MAX},
    stream::PRIORITY_CONTROL,
};
use crate::{
    config::Timing,
    identity::{BootId, PeerAddr},
    net::{BondStream, Link},
};

/// How long the peer's connection may take the word that a bond is over.
const FAREWELL: Duration = Duration::from_millis(200);

/// Frames that may wait in the control stream; the peer has stopped reading if more do.
const UNSENT_MAX: usize = super::handle::OUTBOX;

/// What the mesh does for its bonds' workers.
pub(crate) trait Home: Send + Sync + 'static {
    /// The peer of this bond says where it can be reached now.
    fn moved(&self, bond: &Bond, addr: PeerAddr);

    /// The peer of this bond has bonded with another.
    fn rumor(&self, addr: PeerAddr);

    /// The bond is over; called once.
    fn ended(&self, bond: &Bond, reason: &TerminationReason);
}

/// A bond that is about to begin: everything its task needs.
pub(crate) struct Worker {
    bond: Bond,
    told: mpsc::Receiver<Bytes>,
    stream: BondStream,
    service: Arc<dyn Service>,
    heartbeat: Heartbeat,
    /// The ping to answer once the pulse has come back, and the newest that came since.
    pulse: Option<(u64, BoxFuture<'static, bool>)>,
    asked: Option<u64>,
}

impl Worker {
    /// A bond over this link, with its control stream. Nothing happens before [`Worker::start`].
    pub(crate) fn new(
        proven: Proven,
        boot: BootId,
        link: Link,
        stream: BondStream,
        service: Arc<dyn Service>,
        timing: &Timing,
        tasks: TaskTracker,
    ) -> Self {
        stream.send.set_priority(PRIORITY_CONTROL);
        let (bond, told) = Bond::new(proven, boot, link, tasks);
        let heartbeat = Heartbeat::new(timing, Instant::now());
        Self {
            bond,
            told,
            stream,
            service,
            heartbeat,
            pulse: None,
            asked: None,
        }
    }

    pub(crate) fn bond(&self) -> &Bond {
        &self.bond
    }

    /// Writes a message ahead of everything else that the bond will say.
    pub(crate) fn first(&mut self, message: Bytes) {
        self.stream.send.push(message);
    }

    /// Starts the bond's task.
    pub(crate) fn start(self, home: Arc<dyn Home>) {
        self.bond.0.tasks.clone().spawn(self.run(home));
    }

    async fn run(mut self, home: Arc<dyn Home>) {
        let bond = self.bond.clone();
        // However the task ends, the bond has ended.
        let panicked = Ends {
            bond: &bond,
            home: &*home,
            done: false,
        };
        let reason = tokio::select! {
            biased;
            reason = bond.terminated() => reason,
            reason = self.work(&*home) => {
                bond.end(reason);
                bond.terminated().await
            }
        };
        panicked.done(&reason);
        self.farewell(&reason).await;
    }

    async fn work(&mut self, home: &dyn Home) -> TerminationReason {
        let alarm = tokio::time::sleep_until(Instant::now().into());
        tokio::pin!(alarm);
        loop {
            let Some(deadline) = self.heartbeat.deadline() else {
                return TerminationReason::Silence;
            };
            if alarm.deadline().into_std() != deadline {
                alarm.as_mut().reset(deadline.into());
            }
            if self.stream.send.waiting() > UNSENT_MAX {
                return TerminationReason::Protocol("control messages pile up".into());
            }
            tokio::select! {
                biased;
                frame = self.stream.recv.read_frame(MESSAGE_BYTES_MAX) => {
                    let heard = match frame {
                        Ok(Some(frame)) => self.heard(&frame, home),
                        Ok(None) => Err(TerminationReason::LinkLost("the stream ended".into())),
                        Err(error) => Err(TerminationReason::LinkLost(error.to_string())),
                    };
                    if let Err(reason) = heard {
                        return reason;
                    }
                }
                flushed = self.stream.send.flush(), if self.stream.send.waiting() > 0 => {
                    if let Err(error) = flushed {
                        return TerminationReason::LinkLost(error.to_string());
                    }
                }
                message = self.told.recv() => {
                    // The other half is in the bond's handle, which this task holds.
                    if let Some(message) = message {
                        self.stream.send.push(message);
                    }
                }
                (ping, alive) = pulsed(&mut self.pulse) => self.pulsed(ping, alive),
                () = &mut alarm => self.tick(),
            }
        }
    }

    fn heard(&mut self, frame: &[u8], home: &dyn Home) -> Result<(), TerminationReason> {
        let broken = |what: &str| TerminationReason::Protocol(what.to_owned());
        match Message::decode(frame).map_err(|error| broken(&error.to_string()))? {
            Message::Ping { seq } => self.asked(seq),
            Message::Pong { seq } => {
                let event = self.heartbeat.pong(seq, Instant::now());
                if let Some(rtt) = self.heartbeat.rtt() {
                    self.bond.set_rtt(rtt);
                }
                if event == Some(Event::Heard) {
                    self.bond.set_silent(false);
                    self.service.event(MeshEvent::Heard(self.bond.clone()));
                }
            }
            Message::PeerEntryUpdate(addr) if addr.peer == self.bond.peer() => {
                home.moved(&self.bond, addr);
            }
            Message::PeerEntryUpdate(_) => return Err(broken("an address of somebody else")),
            Message::BondFormed(addr) => home.rumor(addr),
            Message::Departure => self.departure(),
            Message::Close { reason } => return Err(TerminationReason::ClosedByPeer(reason)),
            Message::Introduce(_)
            | Message::Agree { .. }
            | Message::Accept
            | Message::Refuse(_)
            | Message::Redundant { .. } => return Err(broken("an introduction after the first")),
        }
        Ok(())
    }

    /// The first departure on a bond is said back, so that whoever departs knows it was heard.
    fn departure(&mut self) {
        if !self.bond.is_departing() {
            self.service.event(MeshEvent::Departed(self.bond.proven()));
            self.say(&Message::Departure);
        }
        self.bond.set_parted();
    }

    fn asked(&mut self, ping: u64) {
        if self.pulse.is_some() {
            self.asked = Some(ping);
            return;
        }
        let service = Arc::clone(&self.service);
        self.pulse = Some((ping, async move { service.pulse().await }.boxed()));
    }

    fn pulsed(&mut self, ping: u64, alive: bool) {
        if alive {
            self.say(&Message::Pong { seq: ping });
        }
        if let Some(asked) = self.asked.take() {
            self.asked(asked);
        }
    }

    fn tick(&mut self) {
        for event in self.heartbeat.tick(Instant::now()) {
            match event {
                Event::Ping(seq) => self.say(&Message::Ping { seq }),
                Event::Silent => {
                    self.bond.set_silent(true);
                    self.service.event(MeshEvent::Silent(self.bond.clone()));
                }
                // The loop finds no deadline and ends.
                Event::Heard | Event::Dead => {}
            }
        }
    }

    fn say(&mut self, message: &Message) {
        match message.encode() {
            Ok(frame) => self.stream.send.push(frame),
            Err(error) => tracing::error!(%error, "a message of our own is beyond its limits"),
        }
    }

    /// Tells the peer, if the end is our doing, and lets go of the stream.
    async fn farewell(mut self, reason: &TerminationReason) {
        let why = match reason {
            TerminationReason::Closed(why) => why.as_str(),
            TerminationReason::Silence => "no heartbeat was answered",
            TerminationReason::Protocol(what) => what.as_str(),
            _ => return self.stream.send.reset(),
        };
        let cut = why.floor_char_boundary(CLOSE_BYTES_MAX);
        self.say(&Message::Close {
            reason: why[..cut].to_owned(),
        });
        if tokio::time::timeout(FAREWELL, self.stream.send.flush())
            .await
            .is_ok()
        {
            self.stream.send.finish();
        }
    }
}

impl Bond {
    /// Serves a lane or a stream that the peer has opened for this bond, until it ends.
    pub(crate) fn serve(&self, service: Arc<dyn Service>, opening: Opening, stream: BondStream) {
        stream.send.set_priority(opening.priority());
        let bond = self.clone();
        self.0.tasks.spawn(async move {
            let _ends = lane::EndsOnPanic(bond.clone());
            match opening {
                Opening::Lane(kind @ (Lane::Vote | Lane::Forward)) => {
                    lane::serve(bond, service, kind, stream).await;
                }
                Opening::Stream(kind) => tokio::select! {
                    biased;
                    _ = bond.terminated() => {}
                    () = service.stream(bond.proven(), kind, stream) => {}
                },
            }
        });
    }
}

/// The answer of the pulse under way; pending where there is none.
async fn pulsed(pulse: &mut Option<(u64, BoxFuture<'static, bool>)>) -> (u64, bool) {
    poll_fn(|cx| match pulse {
        None => std::task::Poll::Pending,
        Some((ping, back)) => {
            let (ping, back) = (*ping, back.poll_unpin(cx));
            if back.is_ready() {
                *pulse = None;
            }
            back.map(|alive| (ping, alive))
        }
    })
    .await
}

/// Tells the mesh of the bond's end, also when the worker panics.
struct Ends<'a> {
    bond: &'a Bond,
    home: &'a dyn Home,
    done: bool,
}

impl Ends<'_> {
    fn done(mut self, reason: &TerminationReason) {
        self.done = true;
        self.home.ended(self.bond, reason);
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if !self.done {
            let reason = TerminationReason::Closed("the bond's task was stopped".into());
            self.bond.end(reason.clone());
            self.home.ended(self.bond, &reason);
        }
    }
}
