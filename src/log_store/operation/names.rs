//! The names of lines, topics, logs, authors and operations.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A generation of p2panda's formats. A topic belongs to one: operations of one line cannot be
/// read on the other.
///
/// ```
/// use quorate::log_store::Line;
///
/// assert_eq!("0.7".parse(), Ok(Line::V07));
/// assert_eq!(Line::V06.to_string(), "0.6");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Line {
    /// What p2panda 0.6.1 speaks.
    V06,
    /// What p2panda 0.7.1 speaks.
    V07,
}

impl Line {
    /// Both lines, the older one first.
    pub const ALL: [Self; 2] = [Self::V06, Self::V07];

    pub(super) fn other(self) -> Self {
        match self {
            Self::V06 => Self::V07,
            Self::V07 => Self::V06,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V06 => "0.6",
            Self::V07 => "0.7",
        })
    }
}

impl FromStr for Line {
    type Err = ParseLineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "0.6" => Ok(Self::V06),
            "0.7" => Ok(Self::V07),
            _ => Err(ParseLineError),
        }
    }
}

/// The text is not a [`Line`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is \"0.6\" or \"0.7\"")]
pub struct ParseLineError;

/// The text is not the name that it was read as: 64 hexadecimal digits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} is 64 hexadecimal digits")]
pub struct ParseNameError {
    what: &'static str,
}

/// A name of 32 bytes, printed and parsed as 64 lower-case hexadecimal digits.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// Printed and parsed as 64 lower-case hexadecimal digits.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The name with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first ten digits, for logs and tables read by people.
            #[must_use]
            pub fn short(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0[..5])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                from_hex(text).map(Self).ok_or(ParseNameError { what: $what })
            }
        }
    };
}

name! {
    /// What nodes agree to sync: 32 bytes, mostly random. Who knows them can ask for its logs.
    ///
    /// ```
    /// use quorate::log_store::Topic;
    ///
    /// let topic = Topic::named("chat");
    /// assert_eq!(topic.to_string().parse::<Topic>()?, topic);
    /// # Ok::<(), quorate::log_store::ParseNameError>(())
    /// ```
    Topic, "a topic"
}

name! {
    /// Which of an author's logs: for a standard node the BLAKE3 hash of the topic.
    LogId, "a log id"
}

name! {
    /// Who signed an operation: an Ed25519 public key. Whether the bytes are one shows when a
    /// signature is checked.
    Author, "an author"
}

name! {
    /// One operation: the BLAKE3 hash of its whole header, signature included.
    OperationId, "an operation id"
}

impl Topic {
    /// The topic of this name: its BLAKE3 hash. Whoever guesses the name knows the topic.
    ///
    /// ```
    /// use quorate::log_store::Topic;
    ///
    /// assert_ne!(Topic::named("chat"), Topic::named("files"));
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(blake3::hash(name.as_bytes()).into())
    }

    /// The log that every author has in this topic: the BLAKE3 hash of its bytes.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        LogId(blake3::hash(&self.0).into())
    }

    /// What the topic is called where strangers listen, in gossip and discovery: the BLAKE3 hash
    /// of its bytes and a constant of the protocol.
    #[must_use]
    pub fn derived(&self) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&DERIVATION);
        Self(hasher.finalize().into())
    }
}

/// Mixed into the topic that gossip and discovery show; the same in both lines.
const DERIVATION: [u8; 32] = [
    253, 6, 251, 217, 173, 228, 215, 244, 130, 181, 150, 142, 220, 244, 49, 219, 35, 94, 163, 197,
    229, 93, 143, 227, 97, 61, 38, 202, 63, 250, 26, 233,
];

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()?;
    bytes.try_into().ok()
}
