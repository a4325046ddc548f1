//! Checks of commands that cost too much for `apply`: what a refusal says, and how bytes are asked
//! about.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{StateMachine, host};

/// Why a command may not be taken, in words; from [`StateMachine::validate`].
///
/// ```
/// let invalid = quorate::InvalidCommand::new("the signature is another's");
/// assert_eq!(invalid.to_string(), "the signature is another's");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidCommand(String);

impl InvalidCommand {
    /// A refusal with these words. Only the first 512 bytes or so are kept: they are sent to
    /// others.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        let mut why = why.into();
        let end = why.floor_char_boundary(WORDS_BYTES_MAX);
        why.truncate(end);
        Self(why)
    }
}

const WORDS_BYTES_MAX: usize = 512;

/// Asks a machine about an encoded command, on any thread, for as long as it takes.
pub(crate) type ValidateCommand = fn(&[u8]) -> Result<(), InvalidCommand>;

/// What asks the machine, if it wants to be asked.
pub(super) fn validator<M: StateMachine>() -> Option<ValidateCommand> {
    M::VALIDATES.then_some(|command| {
        // What does not decode is found elsewhere: before it is proposed, and when it is applied.
        let Ok(command) = host::decode::<M::Command>(command) else {
            return Ok(());
        };
        catch_unwind(AssertUnwindSafe(|| M::validate(&command)))
            .unwrap_or_else(|_| Err(InvalidCommand::new("the machine panicked over it")))
    })
}
