//! The acknowledgements of one subscription, on their way to its cursor, and its refusals.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    cursor::{Held, Progress},
    error::AckError,
    window::{Again, Redelivery, Window},
};

/// Shared by a subscription and what it has delivered. With the last of them the cursor's task
/// writes what is left and ends.
pub(super) struct Acks {
    window: Mutex<Window>,
    /// The cursor as it should be.
    wanted: watch::Sender<u64>,
    progress: watch::Receiver<Progress>,
    /// Something was refused.
    refused: Notify,
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
            refused: Notify::new(),
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
            refused: Notify::new(),
        })
    }

    pub(super) fn acknowledge(&self, number: u64) -> Result<(), AckError> {
        self.change(|it| it.acknowledge(number));
        self.held()
    }

    pub(super) fn acknowledge_unrefused(&self, number: u64) {
        self.change(|it| it.acknowledge_unrefused(number));
    }

    pub(super) fn refuse(&self, number: u64, attempt: u32, why: &str) -> Result<(), AckError> {
        self.window().refuse(number, attempt, Instant::now(), why);
        self.refused.notify_one();
        self.held()
    }

    /// Waits until something was refused since this was called last. Cancel-safe.
    pub(super) async fn refused(&self) {
        self.refused.notified().await;
    }

    /// What was refused and comes again next, and when.
    pub(super) fn due(&self) -> Option<(Instant, u64)> {
        self.window().due()
    }

    pub(super) fn again(&self, number: u64) -> Option<Again> {
        self.window().again(number)
    }

    pub(super) fn set_redelivery(&self, redelivery: Redelivery) {
        self.window().set_redelivery(redelivery);
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

    /// Whether the cursor is still held, as far as is known here.
    fn held(&self) -> Result<(), AckError> {
        match &self.progress.borrow().lost {
            Some(lost) => Err(lost.clone()),
            None => Ok(()),
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
