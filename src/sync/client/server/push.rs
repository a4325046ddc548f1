//! A member takes what a client pushes, and answers when a quorum has it.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use super::{
    super::{
        frames::{Frame, OWED_MAX, RUN_OPERATIONS_MAX},
        outcome::{Denied, PushOutcome},
        stream::FrameReader,
    },
    AtDoor, ServeError, ServeLimits, Told, blocking, send,
};
use crate::log_store::{Line, LogError, Logs, Operation, Outcome, RawOperation, Refusal, Topic};

/// How often a batch whose fate is unknown is handed in again: nothing is appended twice.
const TRIES: u32 = 5;
/// The fewest operations a second that a session may push. After a full batch it then waits for
/// less than [`OWED_MAX`], the longest that a client waits for its turn.
pub(crate) const PUSHED_MIN: u32 = 8;

const _: () = assert!(
    RUN_OPERATIONS_MAX as u64 / (PUSHED_MIN as u64) < OWED_MAX.as_secs(),
    "an honest client is answered in time"
);

pub(super) async fn serve<R, W>(
    reader: &mut FrameReader<R>,
    write: &mut W,
    (logs, door): (Logs, Option<&AtDoor>),
    (topic, wanted): (Topic, Option<Line>),
    limits: &ServeLimits,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    logs.heights_confirmed(topic, limits.confirm_within).await?;
    let line = super::pull::line(&logs, topic).await?;
    if wanted.is_some_and(|it| it != line) {
        return Err(ServeError::denied(Denied::OtherLine));
    }
    let mut quorate = logs.quorate();
    let mut due = None;
    // What was pushed in other sessions is waited for here.
    let owed = door.map_or(Duration::ZERO, |it| (it.meter)(0, 0));
    let mut ready_at = Instant::now() + owed;
    let mut answers = Answers::new(write, limits, Told::of(door));
    loop {
        // A client that pushes faster than it may waits in its own window, but for a little. One
        // that is gone meanwhile holds no place.
        let resting = async {
            tokio::select! {
                () = sleep_until(ready_at) => Ok(()),
                why = reader.broken(REST_BYTES) => Err(why.into()),
                () = lost(&mut quorate) => Err(ServeError::denied(Denied::NoQuorum)),
            }
        };
        answers.waiting(Some(ready_at), resting).await??;
        let reading = async {
            tokio::select! {
                frame = reader.next_frame(limits.silent_after) => Ok(frame?),
                () = lost(&mut quorate) => Err(ServeError::denied(Denied::NoQuorum)),
            }
        };
        let frame = answers.waiting(None, reading).await??;
        let (number, operations) = match frame {
            None | Some(Frame::End) => return Ok(()),
            Some(Frame::Batch { number, operations }) => (number, operations),
            Some(other) => return Err(ServeError::unexpected(other.name())),
        };
        if operations.is_empty() || due.is_some_and(|due| due != number) {
            return Err(ServeError::unexpected(
                "a batch out of turn, or an empty one",
            ));
        }
        due = number.checked_add(1);
        ready_at = Instant::now().max(ready_at) + pause(operations.len(), limits);
        if let Some(door) = door {
            let owed = (door.meter)(operations.len(), bytes(&operations));
            ready_at = ready_at.max(Instant::now() + owed);
        }
        let taking = take(&logs, topic, line, operations);
        let outcomes = answers.waiting(None, taking).await??;
        answers.send(&Frame::Committed { number, outcomes }).await?;
    }
}

/// What is taken in of a client that is to wait, in bytes.
const REST_BYTES: usize = 1024 * 1024;
/// From how long a rest on the client is told of it at once.
const REST_TOLD: Duration = Duration::from_secs(1);

/// What the client hears: answers, and every so often that it is being served. So it need not take
/// a member that takes its time for one that hangs.
struct Answers<'a, W> {
    write: &'a mut W,
    limits: &'a ServeLimits,
    told: Told,
    due: Instant,
}

impl<'a, W: AsyncWrite + Unpin> Answers<'a, W> {
    fn new(write: &'a mut W, limits: &'a ServeLimits, told: Told) -> Self {
        let due = Instant::now() + limits.heartbeat();
        Self {
            write,
            limits,
            told,
            due,
        }
    }

    async fn send(&mut self, frame: &Frame) -> Result<(), ServeError> {
        send(self.write, &frame.encode(), self.limits).await?;
        self.due = Instant::now() + self.limits.heartbeat();
        Ok(())
    }

    /// Waits for something; the client hears of it, and how long it is to wait if that is known.
    async fn waiting<T>(
        &mut self,
        until: Option<Instant>,
        what: impl Future<Output = T>,
    ) -> Result<T, ServeError> {
        tokio::pin!(what);
        // A rest that is worth a word is told of at once.
        let rest = Instant::now() + REST_TOLD;
        if until.is_some_and(|it| it > rest) {
            self.due = Instant::now();
        }
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                members = self.told.next() => self.send(&members).await?,
                () = sleep_until(self.due) => {
                    let left = until.map(|it| it.saturating_duration_since(Instant::now()));
                    let ms = left.unwrap_or_default().as_millis();
                    let ms = u64::try_from(ms).unwrap_or(u64::MAX);
                    self.send(&Frame::Wait { ms }).await?;
                }
            }
        }
    }
}

async fn lost(quorate: &mut crate::log_store::Quorate) {
    while quorate.changed().await {}
}

fn bytes(operations: &[RawOperation]) -> usize {
    let bytes = |it: &RawOperation| it.header.len() + it.body.as_ref().map_or(0, |it| it.len());
    operations.iter().map(bytes).sum()
}

fn pause(operations: usize, limits: &ServeLimits) -> Duration {
    Duration::from_secs_f64(operations as f64 / f64::from(limits.pushed_per_second.max(PUSHED_MIN)))
}

/// Appends a batch: what became of each, in order, once all of it is committed or refused.
async fn take(
    logs: &Logs,
    topic: Topic,
    line: Line,
    batch: Vec<RawOperation>,
) -> Result<Vec<PushOutcome>, ServeError> {
    let decoded = blocking(move || {
        let decode = |it: RawOperation| Operation::decode(line, it.header, it.body);
        Ok(batch.into_iter().map(decode).collect::<Vec<_>>())
    })
    .await?;
    let sound = decoded.iter().filter_map(|it| it.as_ref().ok().cloned());
    let sound: Vec<Operation> = sound.collect();
    let mut outcomes = append(logs, topic, sound).await?.into_iter();
    let outcome = |decoded: Result<Operation, _>| match decoded {
        Ok(_) => outcomes.next().map(PushOutcome::from),
        Err(why) => Some(PushOutcome::Refused(Refusal::Invalid(why).into())),
    };
    let outcomes = decoded.into_iter().map(outcome).collect::<Option<_>>();
    outcomes.ok_or(ServeError::Logs(LogError::Unknown))
}

async fn append(
    logs: &Logs,
    topic: Topic,
    operations: Vec<Operation>,
) -> Result<Vec<Outcome>, ServeError> {
    let mut tries = 1;
    loop {
        match logs.ingest(topic, operations.clone()).await {
            Err(LogError::Unknown) if tries < TRIES => tries += 1,
            outcomes => return Ok(outcomes?),
        }
    }
}
