//! Commands in, the machine's outputs out, exactly once.

use std::{collections::VecDeque, fmt, future::Future};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::oneshot;

use super::{
    Group, Stopped,
    submit::{Held, Outcome},
};
use crate::{
    machine::{Position, StateMachine, decode, encode},
    raft::{Answer, BATCH_BYTES_TARGET, BATCH_COMMANDS_MAX, Validator},
};

/// Packs of one `execute_many` that are under way at once.
const PACKS_IN_FLIGHT: usize = 16;

impl<M: StateMachine> Group<M> {
    /// Has the command applied, exactly once, and gives the machine's output. Works on any member:
    /// the command goes to the leader, and again to the next one if that is lost meanwhile.
    ///
    /// When this returns `Ok`, a quorum has synced the command to disk. Dropping the future
    /// cancels the wait, not the command. Waits for room when
    /// [`commands_outstanding_max`](crate::config::Config::commands_outstanding_max) are under way.
    ///
    /// # Errors
    /// [`ExecuteError::NotApplied`]: it was not applied and will not be; try again.
    /// [`ExecuteError::Unknown`]: it may have been applied; [`Group::retry`] asks again without
    /// applying it twice. [`ExecuteError::Stopped`]: the group does not run on this node any more.
    pub fn execute(
        &self,
        command: M::Command,
    ) -> impl Future<Output = Result<M::Output, ExecuteError>> + Send + 'static {
        let executing = self.execute_at(command);
        async move { executing.await.map(|(_, output)| output) }
    }

    /// Like [`Group::execute`], and says where the command stands in the order of the group.
    ///
    /// # Errors
    /// As [`Group::execute`].
    pub fn execute_at(
        &self,
        command: M::Command,
    ) -> impl Future<Output = Result<(Position, M::Output), ExecuteError>> + Send + 'static {
        let encoded = self.encode(&command);
        let submitter = self.submitter.clone();
        let validator = self.replica.validator().cloned();
        async move {
            let pack = vec![encoded?];
            if let Some((_, refused)) = refused(validator.as_ref(), &pack).await {
                return Err(refused);
            }
            let answered = submitter.submit(pack).await;
            sole(answered.await)
        }
    }

    /// Applies many commands, in their order, and gives their outputs in the same order. Keeps the
    /// pipeline full: commands are packed, and several packs are under way at once.
    ///
    /// The stream pulls from the iterator as room permits and does nothing unless it is polled.
    /// The order holds among the commands of one call while the leader stays the same; a change of
    /// leader in the middle may let packs of 256 overtake each other.
    ///
    /// # Errors
    /// Each item is one command's result, as of [`Group::execute`].
    pub fn execute_many<I>(
        &self,
        commands: I,
    ) -> impl Stream<Item = Result<M::Output, ExecuteError>> + Send + 'static
    where
        I: IntoIterator<Item = M::Command>,
        I::IntoIter: Send + 'static,
    {
        let many = Many {
            group: self.clone(),
            commands: commands.into_iter(),
            spare: VecDeque::new(),
            under_way: VecDeque::new(),
            ready: VecDeque::new(),
        };
        stream::unfold(many, |mut many| async move {
            let result = many.next().await?;
            Some((result, many))
        })
    }

    /// Asks again what became of a command whose fate was unknown. It is applied now if it was not
    /// before, and never twice.
    ///
    /// # Errors
    /// As [`Group::execute`]; unknown for good if its session has expired meanwhile or the process
    /// was restarted in between.
    pub fn retry(
        &self,
        unresolved: Unresolved,
    ) -> impl Future<Output = Result<M::Output, ExecuteError>> + Send + 'static {
        let submitter = self.submitter.clone();
        async move {
            let Some(held) = unresolved.0 else {
                return Err(ExecuteError::Unknown(Unresolved(None)));
            };
            let answered = submitter.submit_again(&held).await;
            match answered.await {
                Ok(outcome) => sole(Ok(outcome)).map(|(_, output)| output),
                // The group is stopping; the place in the session is kept for who asks again.
                Err(_) => Err(ExecuteError::Unknown(Unresolved(Some(held)))),
            }
        }
    }

    /// Hands in a command that the machine would not refuse, for it is not validated; waits for
    /// room, and gives the future of its output. Commands handed in one after the other keep their
    /// order as those of one [`Group::execute_many`] do.
    pub(crate) async fn hand_in(
        &self,
        command: M::Command,
    ) -> Result<
        impl Future<Output = Result<M::Output, ExecuteError>> + Send + 'static + use<M>,
        ExecuteError,
    > {
        let encoded = self.encode(&command)?;
        drop(command);
        let answered = self.submitter.submit(vec![encoded]).await;
        Ok(async move { sole(answered.await).map(|(_, output)| output) })
    }

    fn encode(&self, command: &M::Command) -> Result<Bytes, ExecuteError> {
        if let Some(cause) = self.replica.stopped() {
            return Err(ExecuteError::Stopped(Stopped::new(cause)));
        }
        let max = self.replica.config().command_bytes_max;
        let encoded = encode(command).map_err(|error| {
            let why = error.to_string();
            ExecuteError::NotApplied(NotApplied::Refused { why })
        })?;
        if encoded.len() > max {
            let bytes = encoded.len();
            return Err(ExecuteError::NotApplied(NotApplied::TooLarge {
                bytes,
                max,
            }));
        }
        // What is committed must be readable by every member, so try here what they will do.
        if let Err(error) = self.replica.check_command()(&encoded) {
            let why = format!("it does not decode as it was encoded: {error}");
            return Err(ExecuteError::NotApplied(NotApplied::Refused { why }));
        }
        Ok(encoded)
    }
}

/// What a call of `execute_many` has under way.
struct Many<M: StateMachine, I> {
    group: Group<M>,
    commands: I,
    /// Taken from the iterator and not yet in a pack: too large for the one before, or behind a
    /// command that was refused. One pack's and one more at most.
    spare: VecDeque<Result<Bytes, ExecuteError>>,
    under_way: VecDeque<(usize, oneshot::Receiver<Outcome>)>,
    ready: VecDeque<Result<M::Output, ExecuteError>>,
}

impl<M: StateMachine, I: Iterator<Item = M::Command>> Many<M, I> {
    async fn next(&mut self) -> Option<Result<M::Output, ExecuteError>> {
        loop {
            if let Some(result) = self.ready.pop_front() {
                return Some(result);
            }
            while self.under_way.len() < PACKS_IN_FLIGHT {
                match self.next_pack().await {
                    Ok(pack) if pack.is_empty() => break,
                    Ok(pack) => {
                        let count = pack.len();
                        let answered = self.group.submitter.submit(pack).await;
                        self.under_way.push_back((count, answered));
                    }
                    // Behind what is under way, so that results stay in order.
                    Err((pack, error)) => return self.after(pack, error).await,
                }
            }
            let (count, answered) = self.under_way.pop_front()?;
            self.take_in(count, answered.await);
        }
    }

    /// The next commands that fit together, validated together; a command that cannot be sent ends
    /// the pack.
    async fn next_pack(&mut self) -> Result<Vec<Bytes>, (Vec<Bytes>, ExecuteError)> {
        let mut pack = Vec::new();
        let mut bytes = 0;
        let mut unsendable = None;
        while pack.len() < BATCH_COMMANDS_MAX && bytes < BATCH_BYTES_TARGET {
            match self.next_encoded() {
                None => break,
                Some(Ok(encoded))
                    if bytes + encoded.len() > BATCH_BYTES_TARGET && !pack.is_empty() =>
                {
                    self.spare.push_front(Ok(encoded));
                    break;
                }
                Some(Ok(encoded)) => {
                    bytes += encoded.len();
                    pack.push(encoded);
                }
                Some(Err(error)) => {
                    unsendable = Some(error);
                    break;
                }
            }
        }
        // A pack is encoded without a pause, and so may many be, one after the other.
        tokio::task::yield_now().await;
        let validator = self.group.replica.validator();
        if let Some((at, error)) = refused(validator, &pack).await {
            // Those behind it have not been asked about; what ended the pack comes after them.
            let behind = pack.split_off(at).into_iter().skip(1).map(Ok);
            let behind = behind.chain(unsendable.map(Err));
            for encoded in behind.rev() {
                self.spare.push_front(encoded);
            }
            return Err((pack, error));
        }
        match unsendable {
            None => Ok(pack),
            Some(error) => Err((pack, error)),
        }
    }

    fn next_encoded(&mut self) -> Option<Result<Bytes, ExecuteError>> {
        self.spare.pop_front().or_else(|| {
            let command = self.commands.next()?;
            Some(self.group.encode(&command))
        })
    }

    async fn after(
        &mut self,
        pack: Vec<Bytes>,
        error: ExecuteError,
    ) -> Option<Result<M::Output, ExecuteError>> {
        if !pack.is_empty() {
            let count = pack.len();
            let answered = self.group.submitter.submit(pack).await;
            self.under_way.push_back((count, answered));
        }
        while let Some((count, answered)) = self.under_way.pop_front() {
            self.take_in(count, answered.await);
        }
        self.ready.push_back(Err(error));
        self.ready.pop_front()
    }

    fn take_in(&mut self, count: usize, outcome: Result<Outcome, oneshot::error::RecvError>) {
        let results = several(count, outcome);
        self.ready
            .extend(results.into_iter().map(|it| it.map(|(_, output)| output)));
    }
}

/// The first of the commands that the machine refuses, if it is one that looks, and the error that
/// says so.
async fn refused(
    validator: Option<&Validator>,
    commands: &[Bytes],
) -> Option<(usize, ExecuteError)> {
    let (at, why) = validator?.commands(commands.to_vec()).await?;
    let why = why.to_string();
    Some((at, ExecuteError::NotApplied(NotApplied::Refused { why })))
}

fn sole<O: serde::de::DeserializeOwned>(
    outcome: Result<Outcome, oneshot::error::RecvError>,
) -> Result<(Position, O), ExecuteError> {
    several(1, outcome)
        .pop()
        .unwrap_or(Err(ExecuteError::Unknown(Unresolved(None))))
}

fn several<O: serde::de::DeserializeOwned>(
    count: usize,
    outcome: Result<Outcome, oneshot::error::RecvError>,
) -> Vec<Result<(Position, O), ExecuteError>> {
    let same = |error: fn() -> ExecuteError| (0..count).map(|_| Err(error())).collect();
    match outcome {
        Ok(Outcome::Applied(first, answers)) => (first.offset..)
            .zip(answers)
            .map(|(offset, answer)| read_answer(Position { offset, ..first }, answer))
            .collect(),
        Ok(Outcome::Unknown(held)) if held.len() == count => held
            .into_iter()
            .map(|it| Err(ExecuteError::Unknown(Unresolved(Some(it)))))
            .collect(),
        Ok(Outcome::NoLeader) => same(|| ExecuteError::NotApplied(NotApplied::NoLeader)),
        Ok(Outcome::Refused(why)) => (0..count)
            .map(|_| {
                let why = why.clone();
                Err(ExecuteError::NotApplied(NotApplied::Refused { why }))
            })
            .collect(),
        Ok(Outcome::Stopped(cause)) => (0..count)
            .map(|_| Err(ExecuteError::Stopped(Stopped::new(cause.clone()))))
            .collect(),
        // The task ended with the group while the command was under way.
        Ok(Outcome::Unknown(_)) | Err(_) => same(|| ExecuteError::Unknown(Unresolved(None))),
    }
}

fn read_answer<O: serde::de::DeserializeOwned>(
    at: Position,
    answer: Answer,
) -> Result<(Position, O), ExecuteError> {
    let (at, bytes) = match answer {
        Answer::Output(bytes) => (at, bytes),
        Answer::Earlier(at, bytes) => (at, bytes),
        Answer::Lost => {
            let why = "it is too large, or was given up before".into();
            return Err(ExecuteError::AnswerLost { why });
        }
        Answer::Expired => return Err(ExecuteError::Unknown(Unresolved(None))),
    };
    match decode(&bytes) {
        Ok(output) => Ok((at, output)),
        Err(error) => Err(ExecuteError::AnswerLost {
            why: format!("this node's machine cannot read it: {error}"),
        }),
    }
}

/// What `execute` could not do, and what it means for the command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// The command was not applied and will not be. Trying again is safe.
    #[error("the command was not applied: {0}")]
    NotApplied(NotApplied),
    /// The command may have been applied, or may yet be. [`Group::retry`] asks again without
    /// applying it twice; a fresh `execute` could.
    #[error("what became of the command is unknown: retry it in its session")]
    Unknown(Unresolved),
    /// The command was applied, once, but its output cannot be had. Do not try again.
    #[error("the command was applied, but its output is lost: {why}")]
    AnswerLost {
        /// In words. Outputs of one entry's commands, up to 256, may together have 8 MiB.
        why: String,
    },
    /// The group does not run on this node any more. The command was not applied.
    #[error(transparent)]
    Stopped(Stopped),
}

/// Why a command was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotApplied {
    /// No leader with a quorum was found in
    /// [`execute_timeout`](crate::config::Config::execute_timeout): too few members are up, or
    /// this node is cut off from them.
    #[error("no leader with a quorum in time: check that a majority of the voters is up")]
    NoLeader,
    /// The encoded command is too large.
    #[error("its {bytes} bytes exceed command_bytes_max, {max}: split it")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit, [`command_bytes_max`](crate::config::Config::command_bytes_max).
        max: usize,
    },
    /// It cannot be taken; the text says why.
    #[error("{why}")]
    Refused {
        /// In words.
        why: String,
    },
}

/// A command whose fate is unknown, and its place in its session.
///
/// While this lives the group keeps the answer for it. Give it to [`Group::retry`], or drop it to
/// let the matter rest.
pub struct Unresolved(Option<Held>);

impl Unresolved {
    /// Whether asking again can help: false once the session is gone.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unresolved")
            .field("can_retry", &self.can_retry())
            .finish()
    }
}
