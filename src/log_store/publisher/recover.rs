//! What happens when an operation was not taken: everything under way is awaited, the committed
//! end of the log is read, and what is left goes on from there.

use std::{collections::VecDeque, time::Duration};

use tokio::time::sleep;

use super::{Batch, Chain, Inner, Pending, PublishError, Tip};
use crate::{
    group::{ExecuteError, Group},
    log_store::{
        error::{ChainRefused, LogRefused, Outcome, Refusal},
        ingest,
        machine::{LogOutput, LogStore},
        operation::{Draft, Operation},
        reader,
    },
};

/// How often one message is signed anew before it is given up.
const ROUNDS_MAX: u32 = 32;
/// Who is displaced again waits for a random part of this times the rounds before, so that two who
/// write one log do not displace each other for ever.
const BACKOFF: Duration = Duration::from_millis(8);
/// Between two questions when no quorum answers, or a session does not tell.
const PAUSE: Duration = Duration::from_millis(100);
/// Operations signed before others get their turn on this thread.
const SIGNED_AT_ONCE: usize = 16;

/// What became of a proposed operation.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    Committed(u64),
    /// By itself, or by its topic: signing it anew does not help.
    Refused(Refusal),
    /// By what its log holds: it goes elsewhere.
    Displaced,
    /// It was not applied and will not be.
    NotApplied(PublishError),
    /// It was applied or never will be; the store tells.
    Look,
    /// The group stopped, and it may have been applied.
    Unknown,
}

impl Fate {
    /// Of a command whose answer will tell no more.
    pub(super) fn of_error(error: ExecuteError) -> Self {
        match error {
            ExecuteError::NotApplied(why) => Self::NotApplied(why.into()),
            ExecuteError::Stopped(stopped) => Self::NotApplied(PublishError::Stopped(stopped)),
            // Its session is gone and takes nothing any more, or the answer was too large.
            ExecuteError::Unknown(_) | ExecuteError::AnswerLost { .. } => Self::Look,
        }
    }

    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Appended { number } | Outcome::Held { number } => Self::Committed(number),
            Outcome::Refused(Refusal::Chain(
                ChainRefused::Gap { .. }
                | ChainRefused::Backlink { .. }
                | ChainRefused::Fork { .. }
                | ChainRefused::Pruned { .. },
            )) => Self::Displaced,
            Outcome::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

/// What became of each of a command's operations. Where it is not known it is asked for until it
/// is: a session applies a command at most once, so nothing is left hanging that could be applied
/// after all.
pub(super) async fn fates(
    group: Group<LogStore>,
    answer: impl Future<Output = Result<LogOutput, ExecuteError>>,
    count: usize,
) -> Vec<Fate> {
    let mut answer = answer.await;
    while let Err(ExecuteError::Unknown(unresolved)) = answer {
        if group.status().stopped.is_some() {
            return vec![Fate::Unknown; count];
        }
        if !unresolved.can_retry() {
            return vec![Fate::Look; count];
        }
        sleep(PAUSE).await;
        answer = group.retry(unresolved).await;
    }
    let mut fates = match answer {
        Ok(LogOutput::Appended(runs)) => ingest::expand(runs).map(Fate::of).collect(),
        Ok(LogOutput::Refused(refused)) => {
            vec![Fate::Refused(Refusal::Topic(refused)); count]
        }
        // Nothing else answers an append.
        Ok(_) => Vec::new(),
        Err(error) => vec![Fate::of_error(error); count],
    };
    fates.resize(count, Fate::Look);
    fates
}

impl Inner {
    /// Ends what has an end, and has the rest wait again, in its order, as the log's next
    /// operations. Nobody publishes meanwhile.
    pub(super) async fn recover(&self, mut left: Vec<(Pending, Fate)>, under_way: VecDeque<Batch>) {
        for batch in under_way {
            let fates = batch.answer.await;
            left.extend(batch.carried.into_iter().zip(fates));
        }
        let rounds = left.iter().map(|it| it.0.rounds).max().unwrap_or(0);
        if rounds > 0 {
            sleep((BACKOFF * rounds).mul_f64(rand::random())).await;
        }
        let mut chain = self.chain.lock().await;
        chain.tip = None;
        let (tip, left) = match self.end_of_log(left).await {
            Ok(found) => found,
            Err((error, left)) => {
                let waiting = std::mem::take(&mut chain.waiting);
                for pending in left.into_iter().chain(waiting) {
                    pending.end(Err(error.clone()));
                }
                return;
            }
        };
        self.chain_anew(&mut chain, tip, left).await;
    }

    /// The committed end of the log, and who is to go on from there. Waits for a quorum.
    async fn end_of_log(
        &self,
        left: Vec<(Pending, Fate)>,
    ) -> Result<(Tip, Vec<Pending>), (PublishError, Vec<Pending>)> {
        let tip = loop {
            match self.committed_tip().await {
                Err(PublishError::NoQuorum) => sleep(PAUSE).await,
                tip => break tip,
            }
        };
        let looked = left.iter().filter(|it| matches!(it.1, Fate::Look));
        let ids: Vec<_> = looked.map(|it| it.0.operation.id()).collect();
        let numbers = match ids.is_empty() {
            true => Ok(Vec::new()),
            false => {
                let read = self
                    .logs
                    .elsewhere(move |moment| reader::numbers(moment, ids));
                read.await
            }
        };
        let (numbers, unread) = match numbers {
            Ok(numbers) => (numbers, None),
            Err(error) => (Vec::new(), Some(PublishError::from(error))),
        };
        let mut numbers = numbers.into_iter();
        let mut go_on = Vec::new();
        for (mut pending, fate) in left {
            match fate {
                // What is refused is a whole entry; the others in it go on.
                Fate::NotApplied(PublishError::NotTaken { .. }) if !pending.suspect => {
                    pending.suspect = true;
                    go_on.push(pending);
                }
                Fate::Committed(number) => pending.committed(number),
                Fate::Refused(refusal) => pending.end(Err(PublishError::Refused(refusal))),
                Fate::NotApplied(error) => pending.end(Err(error)),
                Fate::Unknown => pending.end(Err(PublishError::Unknown)),
                Fate::Look => match (numbers.next().flatten(), &unread, &tip) {
                    (Some(number), ..) => pending.committed(number),
                    (None, Some(_), _) => pending.end(Err(PublishError::Unknown)),
                    // It may have been there.
                    (None, _, Ok(tip)) if pending.operation.seq() < tip.first => {
                        pending.end(Err(PublishError::Unknown));
                    }
                    (None, None, Err(PublishError::Stopped(_) | PublishError::Storage(_))) => {
                        pending.end(Err(PublishError::Unknown));
                    }
                    (None, None, _) => go_on.push(pending),
                },
                Fate::Displaced => go_on.push(pending),
            }
        }
        match tip {
            Ok(tip) => Ok((tip, go_on)),
            Err(error) => Err((error, go_on)),
        }
    }

    /// Those left and those that wait become the log's next operations: as they are where they
    /// fit, else signed anew.
    async fn chain_anew(&self, chain: &mut Chain, mut tip: Tip, left: Vec<Pending>) {
        let waiting = std::mem::take(&mut chain.waiting);
        let mut signed = 0;
        for mut pending in left.into_iter().chain(waiting) {
            if !tip.fits(&pending.operation) {
                if pending.rounds == ROUNDS_MAX {
                    pending.end(Err(PublishError::Contended));
                    continue;
                }
                match self.sign_anew(&tip, &pending.operation) {
                    Ok(operation) => pending.operation = operation,
                    Err(refusal) => {
                        pending.end(Err(PublishError::Refused(refusal)));
                        continue;
                    }
                }
                pending.rounds += 1;
                signed += 1;
                if signed % SIGNED_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
            }
            tip = tip.after(&pending.operation);
            chain.waiting.push_back(pending);
        }
        chain.tip = Some(tip);
    }

    fn sign_anew(&self, tip: &Tip, former: &Operation) -> Result<Operation, Refusal> {
        if tip.line != former.line() {
            let line = tip.line;
            return Err(Refusal::Topic(LogRefused::OtherLine { line }));
        }
        let (body, prune) = (former.body().cloned(), former.prune());
        let draft = Draft {
            // When it was published, not when it was signed.
            timestamp_micros: former.timestamp_micros(),
            ..tip.draft(self.topic, body, prune, 0)
        };
        Operation::sign(draft, &self.key).map_err(Refusal::Invalid)
    }
}
