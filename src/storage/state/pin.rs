//! A group's state kept as it is now, to be read whole by another thread, later.
//!
//! A moment of the engine lasts as long as a call. So a thread makes the call, says that it has
//! the moment, and waits until somebody wants it or nobody can any more.

use std::{io, ops::ControlFlow, sync::mpsc, time::Duration};

use bytes::Bytes;

use super::{Family, GroupState, Order, StateMoment, keys, unsealed};

/// What is handed on at once, in bytes; two such pieces may wait.
const PIECE_BYTES: usize = 256 * 1024;
/// How often one that nobody asks for looks whether the store closes.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The whole table as it was when this was made, to be visited on any thread. Dropped, or once the
/// store closes, the thread behind it ends.
pub(crate) struct PinnedState {
    go: mpsc::SyncSender<()>,
    pieces: mpsc::Receiver<Told>,
}

/// The next piece; none at the end.
type Told = io::Result<Option<Vec<(Bytes, Bytes)>>>;

impl GroupState {
    /// Pins what is written, as it is now.
    ///
    /// # Errors
    /// If no thread can be had; if the store is closed or has failed.
    pub(crate) fn pin(&self) -> io::Result<PinnedState> {
        let (go, told_to_go) = mpsc::sync_channel(1);
        let (tell, pieces) = mpsc::sync_channel(2);
        let (tell_pinned, pinned) = mpsc::sync_channel(1);
        let state = self.clone();
        let keep = move || {
            let kept = state.at_one_moment(&mut |moment| {
                if tell_pinned.send(()).is_ok() && state.wait_to_go(&told_to_go) {
                    state.hand_on(moment, &tell);
                }
            });
            if let Err(error) = kept {
                // Nobody listens if it is not wanted any more.
                let _ = tell.send(Err(error));
            }
        };
        std::thread::Builder::new()
            .name("quorate-pin".into())
            .spawn(keep)?;
        match pinned.recv() {
            Ok(()) => Ok(PinnedState { go, pieces }),
            Err(_) => match pieces.recv() {
                Ok(Err(error)) => Err(error),
                _ => Err(ended()),
            },
        }
    }

    fn wait_to_go(&self, told: &mpsc::Receiver<()>) -> bool {
        loop {
            match told.recv_timeout(LOOK_EVERY) {
                Ok(()) => return true,
                Err(mpsc::RecvTimeoutError::Timeout)
                    if self.inner.flusher.check_usable().is_ok() => {}
                Err(_) => return false,
            }
        }
    }

    /// Sends everything, until nobody takes it or the store closes.
    fn hand_on(&self, moment: &StateMoment<'_>, tell: &mpsc::SyncSender<Told>) {
        let mut piece = Vec::new();
        let mut bytes = 0;
        let mut step = |key: &[u8], value: &[u8]| -> io::Result<ControlFlow<()>> {
            let value = unsealed(key, value, self.inner.local)?;
            let key = keys::state_user_key(key).unwrap_or_default();
            bytes += key.len() + value.len();
            piece.push((Bytes::copy_from_slice(key), value));
            if bytes < PIECE_BYTES {
                return Ok(ControlFlow::Continue(()));
            }
            bytes = 0;
            self.inner.flusher.check_usable()?;
            Ok(match tell.send(Ok(Some(std::mem::take(&mut piece)))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        };
        let (group, generation) = (self.inner.local.number(), moment.head.generation.max(1));
        let from = keys::state(group, generation);
        let to = keys::state(group, generation + 1);
        let mut broken = Ok(());
        let scanned = moment.reads.scan(
            Family::State,
            &from,
            &to,
            Order::Ascending,
            &mut |key, value| {
                step(key, value).unwrap_or_else(|error| {
                    broken = Err(error);
                    ControlFlow::Break(())
                })
            },
        );
        // Nobody listens if it is not wanted any more.
        let _ = match scanned.and(broken) {
            Ok(()) => tell
                .send(Ok(Some(piece)))
                .and_then(|()| tell.send(Ok(None))),
            Err(error) => tell.send(Err(error)),
        };
    }
}

/// Called for each key and value until it fails.
type VisitOrFail<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>;

impl PinnedState {
    /// Visits all of it, in the order of the keys.
    ///
    /// # Errors
    /// Those of `visit`; if the store closes or fails meanwhile, or what it holds is damaged.
    pub(crate) fn visit(self, visit: VisitOrFail<'_>) -> io::Result<()> {
        self.go.send(()).map_err(|_| ended())?;
        while let Some(piece) = self.pieces.recv().map_err(|_| ended())?? {
            for (key, value) in &piece {
                visit(key, value)?;
            }
        }
        Ok(())
    }
}

fn ended() -> io::Error {
    io::Error::other("the store closed while its state was read")
}
