//! Reads: linearizable on any member, or local and at once.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Group, Stopped};
use crate::{
    machine::{Position, StateMachine},
    raft::ReadError,
};

impl<M: StateMachine> Group<M> {
    /// Answers from a state that holds every command acknowledged, and everything any query has
    /// seen, anywhere in the group, before this was called. Works on any member.
    ///
    /// Costs one confirmation by a quorum, shared by all queries that wait; then the query runs
    /// here, on the caller's task.
    ///
    /// # Errors
    /// [`QueryError::NoLeader`] when no quorum confirms a leader in
    /// [`query_timeout`](crate::config::Config::query_timeout): a minority does not answer.
    pub fn query(
        &self,
        query: M::Query,
    ) -> impl Future<Output = Result<M::Answer, QueryError>> + Send + 'static {
        let group = self.clone();
        async move {
            let patience = group.replica.config().query_timeout;
            group.confirmed_through(patience).await?;
            Ok(group.query_local(query))
        }
    }

    /// Answers at once from what this member has applied, which may be behind the group: on a
    /// member that is cut off, by as long as it is cut off.
    pub fn query_local(&self, query: M::Query) -> M::Answer {
        self.views.query(query).1
    }

    /// Waits until what was committed when this was called is applied here.
    pub(crate) async fn confirmed_through(&self, patience: Duration) -> Result<(), QueryError> {
        let deadline = Instant::now() + patience;
        let index = self
            .replica
            .read_index(patience)
            .await
            .map_err(|error| match error {
                ReadError::NoLeader => QueryError::NoLeader,
                ReadError::Stopped(cause) => QueryError::Stopped(Stopped::new(cause)),
            })?;
        match timeout_at(deadline, self.replica.applied_through(index)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(QueryError::Stopped(Stopped::new(cause))),
            Err(_) => Err(QueryError::NoLeader),
        }
    }

    /// How far the latest view goes.
    pub(crate) fn applied(&self) -> Position {
        self.views.applied()
    }

    /// Waits until more is applied here than that, and tells how much.
    pub(crate) async fn applied_beyond(&self, seen: Position) -> Result<Position, Stopped> {
        let more = self.replica.applied_through(seen.index + 1).await;
        more.map_err(Stopped::new)?;
        Ok(self.applied())
    }

    pub(crate) fn query_timeout(&self) -> Duration {
        self.replica.config().query_timeout
    }

    pub(crate) fn execute_timeout(&self) -> Duration {
        self.replica.config().execute_timeout
    }

    pub(crate) fn command_bytes_max(&self) -> usize {
        self.replica.config().command_bytes_max
    }
}

/// Why a query was not answered. It changed nothing; asking again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// No quorum confirmed a leader in time, or this member could not catch up in time.
    #[error("no quorum confirmed the state in time: check that a majority of the voters is up")]
    NoLeader,
    /// The group does not run on this node any more.
    #[error(transparent)]
    Stopped(Stopped),
}
