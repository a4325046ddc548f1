//! How far the delivery of what was committed before a subscription has got.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::event::StreamEvent;
use crate::log_store::{LogError, Logs, Topic};

/// Between two questions when no quorum answers.
const PAUSE: Duration = Duration::from_millis(200);

/// # Invariants
/// - While `asking` is there, `until` is what this member held at the start: a lower bound.
/// - Once it is not, everything that was committed in the group at the start is below `until`.
pub(super) struct Replay {
    logs: Logs,
    topic: Topic,
    stage: Stage,
    until: u64,
    asking: Option<BoxFuture<'static, Result<u64, LogError>>>,
    told_delayed: bool,
}

enum Stage {
    Before { from: u64 },
    During,
    Over,
}

impl Replay {
    /// From a number on. `known` says that this member has just applied everything that was
    /// committed before; else the group is asked.
    ///
    /// # Errors
    /// [`LogError::Storage`].
    pub(super) fn begin(
        logs: &Logs,
        topic: Topic,
        from: u64,
        known: bool,
    ) -> Result<Self, LogError> {
        let until = logs.length(topic).map_err(LogError::from)?.max(from);
        Ok(Self {
            logs: logs.clone(),
            topic,
            stage: Stage::Before { from },
            until,
            asking: (!known).then(|| ask(logs.clone(), topic, Duration::ZERO)),
            told_delayed: false,
        })
    }

    /// What is to be told, where all that is held below `position` has been delivered.
    pub(super) fn event<M>(&mut self, position: u64) -> Option<StreamEvent<M>> {
        let until = self.until;
        match self.stage {
            Stage::Before { from } => {
                self.stage = Stage::During;
                Some(StreamEvent::ReplayStarted { from, until })
            }
            Stage::During if self.asking.is_none() && position >= until => {
                self.stage = Stage::Over;
                Some(StreamEvent::ReplayEnded)
            }
            Stage::During | Stage::Over => None,
        }
    }

    /// Waits until more is known of how far it goes, for ever once that is known. Cancel-safe.
    /// Gives what stands in the way, the first time.
    ///
    /// # Errors
    /// What is no use to wait out.
    pub(super) async fn learn(&mut self) -> Result<Option<LogError>, LogError> {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let answer = asking.await;
        self.asking = None;
        match answer {
            Ok(until) => {
                self.until = self.until.max(until);
                Ok(None)
            }
            Err(error @ (LogError::Stopped(_) | LogError::Storage(_))) => Err(error),
            Err(error) => {
                self.asking = Some(ask(self.logs.clone(), self.topic, PAUSE));
                let told = std::mem::replace(&mut self.told_delayed, true);
                Ok((!told).then_some(error))
            }
        }
    }
}

/// The topic's length, with everything in it that was committed when this was asked.
fn ask(logs: Logs, topic: Topic, pause: Duration) -> BoxFuture<'static, Result<u64, LogError>> {
    Box::pin(async move {
        sleep(pause).await;
        logs.confirmed_now().await?;
        Ok(logs.length(topic)?)
    })
}
