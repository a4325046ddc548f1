//! A member takes what a client pushes, and answers when a quorum has it.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use super::{
    super::{
        frames::{FRAME_MAX, Frame},
        outcome::{Denied, PushOutcome},
        stream::FrameReader,
    },
    Meter, ServeError, ServeLimits, blocking, send,
};
use crate::log_store::{Line, LogError, Logs, Operation, Outcome, RawOperation, Refusal, Topic};

/// How often a batch whose fate is unknown is handed in again: nothing is appended twice.
const TRIES: u32 = 5;

pub(super) async fn serve<R, W>(
    reader: &mut FrameReader<R>,
    write: &mut W,
    logs: Logs,
    (topic, wanted): (Topic, Option<Line>),
    limits: &ServeLimits,
    meter: Option<&Meter>,
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
    let owed = meter.map_or(Duration::ZERO, |it| it(0, 0));
    let mut ready_at = Instant::now() + owed;
    loop {
        // A client that pushes faster than it may waits in its own window, but for one frame. One
        // that is gone meanwhile holds no place.
        tokio::select! {
            () = sleep_until(ready_at) => {}
            why = reader.broken(FRAME_MAX) => return Err(why.into()),
            () = lost(&mut quorate) => return Err(ServeError::denied(Denied::NoQuorum)),
        }
        let frame = tokio::select! {
            frame = reader.next_frame(limits.silent_after) => frame?,
            () = lost(&mut quorate) => return Err(ServeError::denied(Denied::NoQuorum)),
        };
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
        if let Some(meter) = meter {
            ready_at = ready_at.max(Instant::now() + meter(operations.len(), bytes(&operations)));
        }
        let outcomes = take(&logs, topic, line, operations).await?;
        let answer = Frame::Committed { number, outcomes }.encode();
        send(write, &answer, limits).await?;
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
    Duration::from_secs_f64(operations as f64 / f64::from(limits.pushed_per_second.max(1)))
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
