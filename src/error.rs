//! What every floor shares of errors.

use std::{fmt, sync::Arc};

/// Why a store, a group or a node stopped for good: a text that says what to do, cheap to hand to
/// everyone who waits.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Cause(Arc<str>);

impl Cause {
    pub(crate) fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string().into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cause({})", self.0)
    }
}
