//! The acknowledgements of one subscription, on their way to its cursor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{
    cursor::{Held, Progress},
    error::AckError,
    window::Window,
};

/// Shared by a subscription and what it has delivered. With the last of them the cursor's task
/// writes what is left and ends.
pub(super) struct Acks {
    window: Mutex<Window>,
    /// The cursor as it should be.
    wanted: watch::Sender<u64>,
    progress: watch::Receiver<Progress>,
}

impl Acks {
    /// Without a cursor: nothing outlives the subscription.
    pub(super) fn uncounted(from: u64) -> Arc<Self> {
        let progress = Progress {
            committed: u64::MAX,
            ..Progress::default()
        };
        Arc::new(Self {
            window: Mutex::new(Window::new(from)),
            wanted: watch::Sender::new(from),
            // Without a sender nothing ever changes.
            progress: watch::channel(progress).1,
        })
    }

    /// For a cursor, which a task of its own keeps.
    pub(super) fn kept(held: Held) -> Arc<Self> {
        let from = held.cursor();
        let (wanted, wants) = watch::channel(from);
        let (tell, progress) = watch::channel(Progress {
            committed: from,
            ..Progress::default()
        });
        tokio::spawn(held.keep(wants, tell));
        Arc::new(Self {
            window: Mutex::new(Window::new(from)),
            wanted,
            progress,
        })
    }

    pub(super) fn acknowledge(&self, number: u64) -> Result<(), AckError> {
        self.change(|it| it.acknowledge(number));
        match &self.progress.borrow().lost {
            Some(lost) => Err(lost.clone()),
            None => Ok(()),
        }
    }

    pub(super) fn deliver(&self, number: u64) {
        self.change(|it| it.deliver(number));
    }

    pub(super) fn pass_to(&self, number: u64) {
        self.change(|it| it.pass_to(number));
    }

    /// The oldest that is not acknowledged, if nothing more may be delivered because of it.
    pub(super) fn full(&self) -> Option<u64> {
        let window = self.window();
        window.oldest().filter(|_| window.is_full())
    }

    /// Tells when the cursor should move.
    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// Tells how far the group knows.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits until the group knows all that is acknowledged now.
    pub(super) async fn flush(&self) -> Result<(), AckError> {
        let wanted = self.window().cursor();
        let mut progress = self.progress();
        let told = progress.wait_for(|it| it.committed >= wanted || it.lost.is_some());
        let told = told.await.map(|it| it.lost.clone());
        match told {
            Ok(None) => Ok(()),
            Ok(Some(lost)) => Err(lost),
            Err(_) => Err(AckError::NotKept {
                why: "its task has ended with its runtime".into(),
            }),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Window)) {
        let mut window = self.window();
        change(&mut window);
        let cursor = window.cursor();
        self.wanted
            .send_if_modified(|it| std::mem::replace(it, cursor) != cursor);
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
