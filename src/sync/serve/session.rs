//! One session with one peer, from the topic handshake to its end: the stream on one side, the
//! log store on the other, the session's rules between them.

mod live;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Shared, account,
    admission::{Admitted, shown},
    inbound::{Inbound, Told},
    lately::{Lately, PassedOn},
    peers::{Granted, Job, Peers, Slot},
    topic::{Feed, News, next},
};
use crate::{
    identity::PeerId,
    log_store::{Heights, Line, OperationId, Origin, Topic},
    net::WireError,
    sync::{
        codec::Limits,
        outsiders::Rights,
        protocol::{Fault, SyncError},
        session::{Event, Plan, Role, Session},
        wire::{Connection, Recv, Send},
    },
};

/// For the answer of a quorum before we say what we hold.
const READ_INDEX_MAX: Duration = Duration::from_secs(2);
/// Operations in one page, and their bytes.
const PAGE_OPERATIONS: usize = 64;
const PAGE_BYTES: usize = 256 * 1024;
/// Before a live peer whose operations were not all taken is met again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// What the status says of operations of a peer that may not push.
const NOT_PUSHED: &str = "it may read this topic and not push: what it sent was not taken";

/// How a session ended when nothing was wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A chunk was sent; look after this time what has become of it.
    Sent(Duration),
    /// There was nothing to send yet; look again after this time.
    Look(Duration),
    /// Both sides had what they lacked, and that was all there was to do.
    Complete,
    /// The peer was live, and is to be asked what it holds.
    Ask,
    /// The peer wanted to end it.
    Closed,
    /// Another session serves the peer.
    Surplus,
    /// We stop: the topic is closed, there is no quorum, or the member stops serving.
    Stopped,
}

/// What is agreed on when a session begins.
pub(super) struct Agreed {
    pub(super) peer: PeerId,
    pub(super) topic: Topic,
    pub(super) line: Line,
    pub(super) role: Role,
    /// None for a surplus session.
    pub(super) slot: Option<Slot>,
    pub(super) feed: Feed,
    /// What the peer may do; the session ends when that changes.
    pub(super) admitted: Admitted,
    /// Whether it ends when the peer has everything.
    pub(super) once: bool,
}

/// Runs the session on the second stream, and closes the connection.
pub(super) async fn run(
    shared: &Arc<Shared>,
    connection: &Connection,
    agreed: Agreed,
) -> Result<End, SyncError> {
    let opening = async {
        match agreed.role {
            Role::Initiator => connection.open().await,
            Role::Acceptor => connection.accept().await,
        }
    };
    let (send, recv) = timeout(shared.patience.handshake, opening)
        .await
        .map_err(|_| SyncError::unexpected("no session was begun in time"))?
        .map_err(SyncError::unexpected)?;
    connection.admit();
    account::open(shared, &agreed);
    let mut running = Running::new(shared, agreed, send, recv);
    let ended = running.drive().await;
    let ended = match ended {
        Ok(end) => {
            if end == End::Closed {
                running.send.finish();
                // The peer closes the connection once it has read the end of our side.
                let _ = timeout(shared.patience.closing, connection.closed()).await;
            }
            Ok(end)
        }
        Err(error) => Err(error),
    };
    connection.close("the session has ended");
    running.settle(ended).await
}

struct Running<'a> {
    shared: &'a Arc<Shared>,
    agreed: Agreed,
    session: Session,
    send: Send,
    recv: Recv,
    /// What is being written; an empty piece is none.
    out: [Bytes; 1],
    inbound: Option<Inbound>,
    /// What has become of what came in.
    told: Arc<Told>,
    live: Option<broadcast::Receiver<News>>,
    ours: Heights,
    /// What the peer holds, where that decides what it is told.
    theirs: Option<Heights>,
    /// Whether it has tried to push, and may not.
    asked: bool,
    plan: Plan,
    /// While it may be sent.
    granted: Option<Granted>,
    /// Where the plan stands: which range, and behind which sequence number.
    at: (usize, Option<u32>),
    given: u64,
    step: Step,
    came_from: Lately,
    passed_on: PassedOn,
    began: Instant,
    deadline: Instant,
    /// When a live peer is to be asked what it holds.
    ask_at: Option<Instant>,
    finish_when_sent: bool,
    sent: u64,
    /// Of those, the live ones.
    lives: u32,
    /// Whether its end was told.
    accounted: bool,
}

/// What the session is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Say what is held, and hear it.
    Haves,
    /// Send a chunk, then close.
    Chunk,
    /// Send nothing, then close and look again.
    Nothing(Duration),
    /// Send nothing, then stay.
    Live,
    /// Another session serves the peer.
    Surplus,
    /// Wait for the other side to finish.
    Closing,
}

impl<'a> Running<'a> {
    fn new(shared: &'a Arc<Shared>, agreed: Agreed, send: Send, recv: Recv) -> Self {
        let Agreed {
            peer, topic, line, ..
        } = agreed;
        let inbound = Inbound::start(
            shared.logs.clone(),
            (topic, line),
            shared.options.inbound_bytes_max,
            shared.rates.of(peer),
        );
        Self {
            shared,
            session: Session::new(line, agreed.role, Limits::of(line)),
            send,
            recv,
            out: [Bytes::new()],
            told: Arc::clone(inbound.told()),
            inbound: Some(inbound),
            // From before what we say that we hold: nothing falls between the two.
            live: Some(agreed.feed.subscribe()),
            agreed,
            ours: Heights::new(),
            theirs: None,
            asked: false,
            plan: Plan::default(),
            granted: None,
            at: (0, None),
            given: 0,
            step: Step::Haves,
            came_from: Lately::default(),
            passed_on: PassedOn::default(),
            began: Instant::now(),
            deadline: Instant::now() + shared.patience.handshake,
            ask_at: None,
            finish_when_sent: false,
            sent: 0,
            lives: 0,
            accounted: false,
        }
    }

    async fn drive(&mut self) -> Result<End, SyncError> {
        let mut serving = self.shared.serving.subscribe();
        let over = self.agreed.admitted.over.clone();
        let told = Arc::clone(&self.told);
        loop {
            if let Some(end) = self.advance().await? {
                return Ok(end);
            }
            if self.out[0].is_empty() {
                let idle = !self.is_timed();
                self.out[0] = self.session.poll_transmit().unwrap_or_default();
                if idle && !self.out[0].is_empty() {
                    self.moved();
                }
            }
            let writing = !self.out[0].is_empty();
            if self.finish_when_sent && !writing && self.session.may_finish() {
                self.finish_when_sent = false;
                self.send.finish();
            }
            let listens = self.listens();
            let (ask_at, asks) = (self.ask_at.unwrap_or(self.deadline), self.ask_at.is_some());
            let timed = self.is_timed();
            let retries = self.step == Step::Live && !asks;
            let mut chunks = &mut self.out[..];
            tokio::select! {
                read = self.recv.read() => {
                    match read {
                        Ok(Some(bytes)) => self.session.received(bytes),
                        Ok(None) => self.session.received_end(),
                        Err(error) => return self.lost(error),
                    }
                    self.moved();
                }
                written = self.send.write(&mut chunks), if writing => {
                    if let Err(error) = written {
                        return self.lost(error);
                    }
                    self.moved();
                }
                news = next(self.live.as_mut()), if listens => match news {
                    Some(news) => self.tell(&news)?,
                    // Too slow for what is new: back to chunks.
                    None => return Ok(End::Ask),
                },
                // Some of what a live peer sent was not taken: it is to hear what we hold.
                () = told.retry.notified(), if retries => {
                    self.ask_at = Some(Instant::now() + RETRY_PAUSE);
                }
                () = sleep_until(ask_at), if asks => {
                    self.ask_at = None;
                    self.close(Step::Closing)?;
                }
                () = sleep_until(self.deadline), if timed => return self.timed_out(),
                () = over.cancelled() => return Ok(End::Stopped),
                _ = serving.wait_for(|it| !it) => return Ok(End::Stopped),
            }
        }
    }

    /// Takes out what the peer said, and takes the session as far as it goes by itself.
    async fn advance(&mut self) -> Result<Option<End>, SyncError> {
        while let Some(event) = self.session.poll_event()? {
            if let Some(end) = self.heard(event).await? {
                return Ok(Some(end));
            }
        }
        if self.session.wants_have() && !self.say_have().await? {
            return Ok(Some(End::Stopped));
        }
        if self.session.wants_plan() {
            self.session.plan(self.plan.operations, self.plan.bytes)?;
        }
        while self.session.wants_operations() > 0 {
            self.give().await?;
        }
        if self.session.exchange_ended() {
            match self.step {
                Step::Chunk | Step::Nothing(_) | Step::Surplus => self.session.close()?,
                Step::Live if self.agreed.once => {
                    self.went_well(Peers::caught_up);
                    self.close(Step::Closing)?;
                }
                Step::Live if self.ask_at.is_none() => self.went_well(Peers::went_live),
                _ => {}
            }
        }
        Ok(None)
    }

    async fn heard(&mut self, event: Event) -> Result<Option<End>, SyncError> {
        match event {
            Event::TheirHave(theirs) => return self.decide(theirs).await,
            Event::TheirPlan { .. } | Event::TheirDone => {}
            Event::Operation { header, body } | Event::Live { header, body } => {
                let id = OperationId::from_bytes(*blake3::hash(&header).as_bytes());
                self.came_from.remember(id);
                self.take(id, header, body);
            }
            Event::Closed | Event::Ended if self.step == Step::Live => {
                self.flush().await?;
                return Ok(Some(End::Closed));
            }
            // Both have closed: neither waits for the other.
            Event::Closed => self.finish_when_sent = true,
            Event::Ended => return Ok(Some(self.over())),
        }
        Ok(None)
    }

    /// How it ended, when we wanted it to.
    fn over(&mut self) -> End {
        match self.step {
            Step::Chunk => {
                let look = self.granted.take().map(Granted::sent);
                End::Sent(look.unwrap_or_default())
            }
            Step::Nothing(pause) => End::Look(pause),
            Step::Surplus => End::Surplus,
            Step::Closing if self.agreed.once => End::Complete,
            Step::Haves | Step::Live | Step::Closing => End::Ask,
        }
    }

    /// Says what we hold, as far as the peer may know. False if what it may do has changed.
    async fn say_have(&mut self) -> Result<bool, SyncError> {
        let Agreed { peer, topic, .. } = self.agreed;
        let logs = &self.shared.logs;
        let ours = logs.heights_confirmed(topic, READ_INDEX_MAX).await;
        self.ours = ours.map_err(SyncError::critical)?;
        // What was decided before that is applied here by now.
        let looked = self.shared.follow_admissions().await;
        looked.map_err(SyncError::critical)?;
        let Admitted { rights, over, .. } = &self.agreed.admitted;
        if over.is_cancelled() {
            return Ok(false);
        }
        let have = self.shared.peers.have(peer, topic, &self.ours);
        let have = match &self.theirs {
            Some(theirs) => shown(*rights, have, theirs),
            None => shown(*rights, have, &self.shared.peers.theirs(peer, topic)),
        };
        self.session.our_have(have)?;
        Ok(true)
    }

    /// What is to be done about a peer that holds this. An end if it may not do what it did.
    async fn decide(&mut self, theirs: Heights) -> Result<Option<End>, SyncError> {
        let Agreed {
            peer, topic, line, ..
        } = self.agreed;
        if self.agreed.admitted.rights != Rights::ALL {
            self.theirs = Some(theirs.clone());
        }
        let serves = self.agreed.slot.is_some();
        if self.session.wants_have() {
            if serves {
                // What is echoed to it depends on it.
                self.shared.peers.with(peer, topic, |it| it.keep(&theirs));
            }
            // Before its next word is judged: it may be in the same packet.
            if !self.say_have().await? {
                return Ok(Some(End::Stopped));
            }
        }
        if !serves {
            self.step = Step::Surplus;
            return Ok(None);
        }
        if !self.agreed.admitted.rights.read {
            // It is sent nothing; what it pushes is taken for as long as it likes.
            self.shared.peers.heard(peer, topic, line, &theirs);
            self.step = Step::Live;
            return Ok(None);
        }
        let (shared, ours) = (Arc::clone(self.shared), self.ours.clone());
        let deciding = tokio::task::spawn_blocking(move || {
            let logs = &shared.logs;
            let size = |author, log, after, until| logs.size(author, log, after, until);
            shared.peers.job(peer, topic, line, (&ours, &theirs), size)
        });
        let job = deciding.await.map_err(SyncError::critical)?;
        let job = job.map_err(SyncError::critical)?;
        tracing::debug!(peer = %peer.short(), ?job, "heard what a peer holds");
        self.step = match job {
            Job::Live => Step::Live,
            Job::Look(pause) => Step::Nothing(pause),
            Job::Send(plan, granted) => {
                (self.plan, self.granted) = (plan, Some(granted));
                Step::Chunk
            }
        };
        Ok(None)
    }

    /// The next page of the plan.
    async fn give(&mut self) -> Result<(), SyncError> {
        let (range, after) = self.at;
        let Some(range) = self.plan.ranges.get(range).copied() else {
            return Ok(self.session.end_of_operations()?);
        };
        let after = after.or(range.after);
        if after.is_some_and(|it| it >= range.until) {
            self.at = (self.at.0 + 1, None);
            return Ok(());
        }
        let logs = self.shared.logs.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let (author, log) = (range.author, range.log);
            logs.page(author, log, after, range.until, PAGE_OPERATIONS, PAGE_BYTES)
        });
        let page = reading.await.map_err(SyncError::critical)?;
        let page = page.map_err(SyncError::critical)?;
        let Some(last) = page.last().map(|it| it.seq) else {
            // Pruned meanwhile.
            self.at = (self.at.0 + 1, None);
            return Ok(());
        };
        self.at.1 = Some(last);
        let count = page.len() as u64;
        self.sent += count;
        let page = page.into_iter().map(|it| (it.header, it.body)).collect();
        self.session.give(page)?;
        self.given += count;
        if self.given == u64::from(self.plan.operations) {
            self.session.end_of_operations()?;
        }
        Ok(())
    }

    fn take(&mut self, id: OperationId, header: Bytes, body: Option<Bytes>) {
        if self.agreed.admitted.rights.push {
            // Before it can be committed. Who may not push is nobody's origin.
            let origin = Origin::Sync(self.agreed.peer);
            self.shared.logs.came_in(id, origin);
            if let Some(inbound) = &mut self.inbound {
                inbound.take(header, body);
            }
            return;
        }
        let Agreed {
            peer, topic, line, ..
        } = self.agreed;
        self.shared.peers.turned_away(peer, topic, NOT_PUSHED);
        if !std::mem::replace(&mut self.asked, true) {
            let addr = self.shared.peers.addr(peer);
            self.shared.ask_for(addr, (topic, line), Rights::PUSH);
        }
    }

    fn close(&mut self, step: Step) -> Result<(), SyncError> {
        self.step = step;
        self.deadline = Instant::now() + self.shared.patience.closing;
        Ok(self.session.close()?)
    }

    /// Writes what is left, so that the other side can finish.
    async fn flush(&mut self) -> Result<(), SyncError> {
        let flushing = async {
            loop {
                if self.out[0].is_empty() {
                    self.out[0] = self.session.poll_transmit().unwrap_or_default();
                }
                if self.out[0].is_empty() {
                    return Ok(());
                }
                let bytes = std::mem::take(&mut self.out[0]);
                self.send
                    .write_all(bytes)
                    .await
                    .map_err(SyncError::unexpected)?;
            }
        };
        let flushed = timeout(self.shared.patience.closing, flushing).await;
        flushed.map_err(|_| SyncError::unexpected("it does not read"))?
    }

    fn moved(&mut self) {
        let (patience, now) = (&self.shared.patience, Instant::now());
        self.deadline = match self.step {
            Step::Haves => (now + patience.handshake).min(self.began + patience.haves),
            Step::Closing => return,
            _ => now + patience.standstill,
        };
    }

    /// Stock drops the connection as soon as it has read our `Close`.
    fn lost(&mut self, error: WireError) -> Result<End, SyncError> {
        if self.session.exchange_ended() && self.step != Step::Live {
            return Ok(self.over());
        }
        Err(SyncError::unexpected(error))
    }

    /// A live session may be silent; all else must go on.
    fn is_timed(&self) -> bool {
        self.step != Step::Live || !self.session.exchange_ended() || !self.out[0].is_empty()
    }

    fn timed_out(&mut self) -> Result<End, SyncError> {
        let exchanged = self.session.exchange_ended();
        if self.step == Step::Closing {
            // It was to be asked again, and has more to say than there is time for.
            return Ok(self.over());
        }
        if exchanged && self.step != Step::Live {
            // It has everything we had for it, and does not finish: nothing is lost by leaving.
            return Ok(self.over());
        }
        Err(SyncError::unexpected("nothing has moved for too long"))
    }

    /// Notes how it went, once what came in is committed or refused.
    async fn settle(mut self, ended: Result<End, SyncError>) -> Result<End, SyncError> {
        let Agreed { peer, topic, .. } = self.agreed;
        // Stopped by us: a chunk that was granted and not sent holds up no other.
        if let Some(granted) = self.granted.take()
            && ended.is_err()
        {
            granted.failed();
        }
        let Some(inbound) = self.inbound.take() else {
            return ended;
        };
        let told = Arc::clone(&self.told);
        if self.agreed.admitted.over.is_cancelled() {
            // Nothing of what still waits was acknowledged, and it may not be taken any more.
            inbound.discard();
        }
        inbound.finish().await;
        let wrong = told.wrong();
        let again = told.again.load(Relaxed);
        if self.agreed.slot.is_some() {
            let failed = ended.as_ref().err();
            let theirs = failed.filter(|it| it.fault() == Fault::Remote);
            let wrong = theirs.map(ToString::to_string).or(wrong.last.clone());
            // What failed on this side says nothing of the peer.
            if failed.is_none() || wrong.is_some() {
                self.shared.registers(peer, wrong);
            }
        }
        self.shared.peers.echo(peer, topic, wrong.authors);
        self.accounted = true;
        account::close(
            self.shared,
            &self.agreed,
            self.sent,
            &told,
            wrong.last,
            &ended,
        );
        match ended {
            // What did not fit, or came after a gap, is asked for again.
            Ok(End::Look(_) | End::Complete | End::Closed) if again > 0 => Ok(End::Ask),
            ended => ended,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.accounted {
            // Ended from outside: by whoever waited for it, or with the topic or the door.
            account::cut(self.shared, &self.agreed, self.sent, &self.told);
        }
    }
}
