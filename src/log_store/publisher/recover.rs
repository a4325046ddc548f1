//! What happens when an operation was not taken: everything under way is awaited, the committed
//! end of the log is read, and what is left goes on from there.
//!
//! Meanwhile others may publish: what they sign waits, and is signed anew with the rest.

use std::{collections::VecDeque, time::Duration};

use tokio::time::sleep;

use super::{Batch, Chain, Inner, Pending, PublishError, Tip};
use crate::{
    group::{ExecuteError, Group},
    log_store::{
        error::{ChainRefused, LogError, LogRefused, Outcome, Refusal},
        ingest,
        machine::{LogOutput, LogStore},
        operation::{Draft, Operation},
        reader,
    },
};

/// How often another writer may take a message's place before it is given up.
const ROUNDS_MAX: u32 = 32;
/// Who has lost its place again waits for a random part of this times the rounds before, so that
/// two who write one log do not displace each other for ever.
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

/// What may have to go on from the log's committed end.
pub(super) struct Left {
    pending: Pending,
    /// The store is to tell whether it was applied.
    look: bool,
}

impl Left {
    /// As [`PublishError`] says: unknown where it is not known.
    fn fail(self, error: &PublishError) {
        let error = match self.look {
            true => PublishError::Unknown,
            false => error.clone(),
        };
        self.pending.end(Err(error));
    }
}

impl Inner {
    /// Ends what has an end, and has the rest wait again, in its order, as the log's next
    /// operations.
    pub(super) async fn recover(&self, left: Vec<(Pending, Fate)>, mut under_way: VecDeque<Batch>) {
        let mut left: Vec<Left> = left.into_iter().filter_map(|it| self.left(it)).collect();
        while let Some(first) = under_way.front_mut() {
            tokio::select! {
                biased;
                fates = &mut first.answer => {
                    self.patience.hear(&fates);
                    let carried = under_way.pop_front().map(|it| it.carried).unwrap_or_default();
                    let more = carried.into_iter().zip(fates);
                    left.extend(more.filter_map(|it| self.left(it)));
                }
                () = self.patience.lost() => self.give_up(&mut under_way, &mut left).await,
            }
        }
        let rounds = left.iter().map(|it| it.pending.rounds).max().unwrap_or(0);
        if rounds > 0 {
            sleep((BACKOFF * rounds).mul_f64(rand::random())).await;
        }
        let mut tip = self.tip_for(&mut left).await;
        let answered = matches!(tip, Ok(_) | Err(PublishError::Refused(_)));
        if answered && let Err(error) = self.look(&tip, &mut left).await {
            tip = Err(error.into());
        }
        let mut chain = self.chain.lock().await;
        match tip {
            Ok(tip) => self.chain_anew(&mut chain, tip, left).await,
            Err(error) => {
                (chain.tip, chain.handed_in) = (None, None);
                left.into_iter().for_each(|it| it.fail(&error));
                for pending in chain.waiting.drain(..) {
                    pending.end(Err(error.clone()));
                }
            }
        }
    }

    /// Ends what has an end.
    fn left(&self, (mut pending, fate): (Pending, Fate)) -> Option<Left> {
        let look = matches!(fate, Fate::Look);
        match fate {
            Fate::Look | Fate::Displaced => {}
            // What is refused is a whole entry; the others in it go on.
            Fate::NotApplied(PublishError::NotTaken { .. }) if !pending.suspect => {
                pending.suspect = true;
            }
            Fate::Committed(number) => {
                self.committed(pending, number);
                return None;
            }
            Fate::Refused(refusal) => {
                pending.end(Err(PublishError::Refused(refusal)));
                return None;
            }
            Fate::NotApplied(error) => {
                pending.end(Err(error));
                return None;
            }
            Fate::Unknown => {
                pending.end(Err(PublishError::Unknown));
                return None;
            }
        }
        Some(Left { pending, look })
    }

    /// The committed end of the log, from which the rest goes on. Waits for a quorum while there is
    /// something whose fate only a quorum knows.
    async fn tip_for(&self, left: &mut Vec<Left>) -> Result<Tip, PublishError> {
        loop {
            let asked = tokio::select! {
                tip = self.committed_tip() => tip,
                () = self.patience.lost() => {
                    self.give_up(&mut VecDeque::new(), left).await;
                    Err(PublishError::NoQuorum)
                }
            };
            match asked {
                Err(PublishError::NoQuorum) if left.is_empty() => {
                    return Err(PublishError::NoQuorum);
                }
                Err(PublishError::NoQuorum) => sleep(PAUSE).await,
                asked => return asked,
            }
        }
    }

    /// Looks in the store what became of those of which nothing else tells.
    async fn look(
        &self,
        tip: &Result<Tip, PublishError>,
        left: &mut Vec<Left>,
    ) -> Result<(), LogError> {
        let looked = left.iter().filter(|it| it.look);
        let ids: Vec<_> = looked.map(|it| it.pending.operation.id()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let first = tip.as_ref().map_or(0, |it| it.first);
        let read = self.logs.elsewhere(move |it| reader::numbers(it, ids));
        let mut numbers = read.await?.into_iter();
        for mut it in std::mem::take(left) {
            match it.look.then(|| numbers.next().flatten()) {
                Some(Some(number)) => self.committed(it.pending, number),
                // It may have been there.
                Some(None) if it.pending.operation.seq() < first => {
                    it.pending.end(Err(PublishError::Unknown));
                }
                _ => {
                    it.look = false;
                    left.push(it);
                }
            }
        }
        Ok(())
    }

    /// Ends what is certainly not applied, and begins to wait anew for the rest.
    pub(super) async fn give_up(&self, under_way: &mut VecDeque<Batch>, left: &mut Vec<Left>) {
        self.patience.begin();
        let mut chain = self.chain.lock().await;
        let certain = left.extract_if(.., |it| !it.look).map(|it| it.pending);
        for pending in certain.chain(chain.waiting.drain(..)) {
            pending.end(Err(PublishError::NoQuorum));
        }
        chain.tip = chain.handed_in;
        drop(chain);
        under_way.iter_mut().for_each(Batch::give_up);
    }

    /// Those left and those that wait become the log's next operations: as they are where they
    /// fit, else signed anew.
    async fn chain_anew(&self, chain: &mut Chain, mut tip: Tip, left: Vec<Left>) {
        // Else the log ends with ours, and nobody but our own that were refused was in the way.
        let others = std::mem::replace(&mut *self.end(), tip.last) != tip.last;
        let waiting = std::mem::take(&mut chain.waiting);
        let left = left.into_iter().map(|it| it.pending);
        chain.handed_in = Some(tip);
        let mut signed = 0;
        for mut pending in left.chain(waiting) {
            if !tip.fits(&pending.operation) {
                if others && pending.rounds == ROUNDS_MAX {
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
                pending.rounds += u32::from(others);
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
