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

    pub(crate) fn panicked() -> Self {
        Self::new("the machine panicked over it")
    }
}

const WORDS_BYTES_MAX: usize = 512;

/// How a machine is asked about commands.
#[derive(Clone, Copy)]
pub(crate) struct ValidateCommand {
    /// Judges an encoded command, on any thread, for as long as it takes.
    pub(crate) ask: fn(&[u8]) -> Result<(), InvalidCommand>,
    /// Below so many bytes of commands that is not long: [`StateMachine::VALIDATES_INLINE_BELOW`].
    pub(crate) inline_below: usize,
}

/// What asks the machine, if it wants to be asked.
pub(super) fn validator<M: StateMachine>() -> Option<ValidateCommand> {
    M::VALIDATES.then_some(ValidateCommand {
        ask: |command| {
            // All of it is the user's code: reading the command, judging it, letting go of it.
            catch_unwind(AssertUnwindSafe(|| ask::<M>(command)))
                .unwrap_or_else(|_| Err(InvalidCommand::panicked()))
        },
        inline_below: M::VALIDATES_INLINE_BELOW,
    })
}

fn ask<M: StateMachine>(command: &[u8]) -> Result<(), InvalidCommand> {
    // Not refused: it may be of a later version of the machine, whose members know it. A leader
    // that was updated first would be deposed for it, over and over, by those that come next.
    // Taken, it stops who cannot read it, when it is applied, until it is updated. What is
    // proposed or forwarded was checked to decode where that happened.
    let Ok(command) = host::decode::<M::Command>(command) else {
        return Ok(());
    };
    M::validate(&command)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Deserializer, Serialize};

    use super::*;
    use crate::machine::{Position, Snapshot, SnapshotReader, encode, host::Machine};

    /// Panics when a 7 is read, when an 8 is judged, and when a 9 is let go of.
    #[derive(Serialize)]
    struct Touchy(u8);

    impl<'de> Deserialize<'de> for Touchy {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let number = u8::deserialize(from)?;
            assert!(number != 7, "as the test wants it");
            Ok(Self(number))
        }
    }

    impl Drop for Touchy {
        fn drop(&mut self) {
            assert!(self.0 != 9, "as the test wants it");
        }
    }

    /// Takes even numbers.
    struct Even;

    impl StateMachine for Even {
        const NAME: &'static str = "test.even";
        const VALIDATES: bool = true;
        type Command = Touchy;
        type Output = ();
        type Query = ();
        type Answer = ();
        type View = ();

        fn validate(Touchy(number): &Touchy) -> Result<(), InvalidCommand> {
            assert!(*number != 8, "as the test wants it");
            if number.is_multiple_of(2) {
                return Ok(());
            }
            Err(InvalidCommand::new("it is odd"))
        }
        fn apply(&mut self, _: Position, _: Touchy) {}
        fn view(&self) {}
        fn query((): &(), (): ()) {}
        fn snapshot(&self) -> Snapshot {
            Snapshot::of(())
        }
        fn restore(&mut self, _: SnapshotReader<'_>) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_what_a_later_version_may_have_sent_is_left_to_apply() {
        let ask = validator::<Even>().expect("it validates").ask;
        ask(&encode(&2_u8).expect("encodes")).expect("even");
        let refused = ask(&encode(&3_u8).expect("encodes"));
        assert_eq!(refused, Err(InvalidCommand::new("it is odd")));
        ask(&encode(&(3_u8, "of later")).expect("encodes")).expect("not known yet");
    }

    #[test]
    fn wherever_the_machine_panics_over_a_command_it_is_refused() {
        let ask = validator::<Even>().expect("it validates").ask;
        for number in [7_u8, 8, 9] {
            let refused = ask(&encode(&number).expect("encodes"));
            assert_eq!(refused, Err(InvalidCommand::panicked()), "{number}");
        }
        let check = host::Host::new(Even, None).0.check();
        for number in [7_u8, 9] {
            let refused = check(&encode(&number).expect("encodes"));
            assert_eq!(refused, Err(host::Undecodable::Panicked), "{number}");
        }
    }
}
