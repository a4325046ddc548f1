//! A task of its own that gives items, one after the other, to whoever holds this end of it.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{sync::mpsc, task::JoinHandle};

/// The receiving end. Dropping it leaves the task alone; [`Given::abort`] ends it.
///
/// # Invariants
/// - A task that has panicked does not look like one that has come to its end: the panic goes on
///   in whoever asks for the next item, once.
pub(crate) struct Given<T> {
    items: mpsc::Receiver<T>,
    /// Until its end was seen.
    task: Option<JoinHandle<()>>,
}

impl<T> Given<T> {
    /// What this task sends there. It alone may have the sender.
    pub(crate) fn new(items: mpsc::Receiver<T>, task: JoinHandle<()>) -> Self {
        Self {
            items,
            task: Some(task),
        }
    }

    /// The next item; `None` once the task has ended and all was taken.
    ///
    /// # Panics
    /// As the task did.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(item) = ready!(self.items.poll_recv(cx)) {
            return Poll::Ready(Some(item));
        }
        let Some(task) = &mut self.task else {
            return Poll::Ready(None);
        };
        let ended = ready!(Pin::new(task).poll(cx));
        self.task = None;
        match ended {
            Err(ended) if ended.is_panic() => resume_unwind(ended.into_panic()),
            _ => Poll::Ready(None),
        }
    }

    /// The same. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Ends the task, if it has not ended.
    pub(crate) fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl<T> fmt::Debug for Given<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given").finish_non_exhaustive()
    }
}
