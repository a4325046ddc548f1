//! The secret that makes a group, and the public name derived from it.

use std::{fmt, str::FromStr};

use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::armor::{self, ArmorError};

/// The secret of a group: whoever holds it can be a member.
///
/// Treat it as a password. It is wiped from memory when dropped, never printed by `Debug`, not
/// `Copy`, and compared in constant time. The only way to its text is [`GroupKey::expose`].
///
/// ```
/// use quorate::GroupKey;
///
/// let key = GroupKey::generate();
/// let text = key.expose();                 // "quoratekey1..." for a file or a password store
/// assert_eq!(text.parse::<GroupKey>()?, key);
/// assert_eq!(format!("{key:?}"), "GroupKey([redacted])");
/// # Ok::<(), quorate::ParseGroupKeyError>(())
/// ```
///
/// # Invariants
/// - 32 bytes, on the heap for good: moving the key copies a pointer, not the secret.
#[derive(Clone)]
pub struct GroupKey(Box<Zeroizing<[u8; 32]>>);

impl GroupKey {
    /// What the text form starts with.
    pub const PREFIX: &'static str = "quoratekey1";

    /// A new random key, seeded by the operating system.
    ///
    /// ```
    /// use quorate::GroupKey;
    ///
    /// assert_ne!(GroupKey::generate(), GroupKey::generate());
    /// ```
    #[must_use]
    pub fn generate() -> Self {
        let mut key = Self::blank();
        rand::fill(&mut key.0[..]);
        key
    }

    /// The text form: `quoratekey1`, then 58 digits of lower-case base32, the last of them a
    /// checksum. The text is wiped when dropped.
    ///
    /// ```
    /// use quorate::GroupKey;
    ///
    /// let text = GroupKey::generate().expose();
    /// assert!(text.starts_with(GroupKey::PREFIX));
    /// assert_eq!(text.len(), 69);
    /// ```
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        armor::encode(Self::PREFIX, self.bytes())
    }

    /// The name of the group that is founded with this key and a machine of this name.
    ///
    /// It never changes once the group is founded, even if its key is rotated later.
    ///
    /// ```
    /// use quorate::GroupKey;
    ///
    /// let key = GroupKey::generate();
    /// assert_eq!(key.group_id("example.map"), key.group_id("example.map"));
    /// assert_ne!(key.group_id("example.map"), key.group_id("example.queue"));
    /// ```
    #[must_use]
    pub fn group_id(&self, machine_name: &str) -> GroupId {
        let mut id = [0; 32];
        Hkdf::<Sha256>::new(Some(GROUP_ID_SALT), self.bytes())
            .expand(machine_name.as_bytes(), &mut id)
            .expect("32 bytes are within what HKDF-SHA-256 can give");
        GroupId(id)
    }

    /// The key with these bytes.
    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut key = Self::blank();
        key.0.copy_from_slice(bytes);
        key
    }

    /// The secret itself.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn blank() -> Self {
        Self(Box::new(Zeroizing::new([0; 32])))
    }
}

/// Keeps group ids apart from everything else that is derived from a key. Frozen format.
const GROUP_ID_SALT: &[u8] = b"quorate/group-id/1";

impl PartialEq for GroupKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}

impl Eq for GroupKey {}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupKey([redacted])")
    }
}

impl FromStr for GroupKey {
    type Err = ParseGroupKeyError;

    /// Reads what [`GroupKey::expose`] wrote; whitespace and line ends around it are skipped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The one right length is known, so a novel pasted by mistake is not even decoded.
        let wanted = armor::text_bytes(Self::PREFIX, 32);
        if text.trim().starts_with(Self::PREFIX) && text.trim().len() != wanted {
            return Err(ParseGroupKeyError::Damaged);
        }
        let body = armor::decode(Self::PREFIX, text).map_err(|error| match error {
            ArmorError::Prefix => ParseGroupKeyError::NotAKey,
            ArmorError::Damaged => ParseGroupKeyError::Damaged,
        })?;
        let bytes = body
            .as_slice()
            .try_into()
            .map_err(|_| ParseGroupKeyError::Damaged)?;
        Ok(Self::from_bytes(bytes))
    }
}

/// The text is not a [`GroupKey`]. It never holds any of the text, so it can be logged.
///
/// ```
/// use quorate::{GroupKey, ParseGroupKeyError};
///
/// let typed = "correct horse battery staple".parse::<GroupKey>();
/// assert_eq!(typed, Err(ParseGroupKeyError::NotAKey));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseGroupKeyError {
    /// It does not start as a key does; a ticket starts with `quorate1`, a key otherwise.
    #[error("this is no group key: one starts with \"quoratekey1\"")]
    NotAKey,
    /// It starts as a key does, but digits are missing, added or changed.
    #[error("this group key is mistyped or cut off: its checksum does not match")]
    Damaged,
}

/// A group's public name: derived from its founding key and the name of its machine.
///
/// It tells nothing about the key. Printed and parsed as 64 lower-case hexadecimal digits.
///
/// ```
/// use quorate::{GroupId, GroupKey};
///
/// let id = GroupKey::generate().group_id("example.map");
/// assert_eq!(id.to_string().parse::<GroupId>()?, id);
/// # Ok::<(), quorate::ParseGroupIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId([u8; 32]);

impl GroupId {
    /// The id with these bytes.
    ///
    /// ```
    /// use quorate::GroupId;
    ///
    /// assert_eq!(GroupId::from_bytes([7; 32]).as_bytes(), &[7; 32]);
    /// ```
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    ///
    /// ```
    /// use quorate::GroupKey;
    ///
    /// assert_eq!(GroupKey::generate().group_id("example.map").as_bytes().len(), 32);
    /// ```
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten digits, for logs and tables read by people.
    ///
    /// ```
    /// use quorate::GroupId;
    ///
    /// assert_eq!(GroupId::from_bytes([0xab; 32]).short(), "ababababab");
    /// ```
    #[must_use]
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..5])
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupId({})", self.short())
    }
}

impl FromStr for GroupId {
    type Err = ParseGroupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .map_err(|_| ParseGroupIdError)?;
        bytes.try_into().map(Self).map_err(|_| ParseGroupIdError)
    }
}

/// The text is not a [`GroupId`]: 64 hexadecimal digits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a group id is 64 hexadecimal digits")]
pub struct ParseGroupIdError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_of_a_key_is_frozen() {
        let key = GroupKey::from_bytes(&[7; 32]);
        assert_eq!(key.expose().as_str(), KEY_OF_SEVENS);
        assert_eq!(KEY_OF_SEVENS.parse::<GroupKey>(), Ok(key));
    }

    #[test]
    fn the_group_id_is_frozen() {
        let id = GroupKey::from_bytes(&[7; 32]).group_id("example.map");
        assert_eq!(id.to_string(), GROUP_OF_SEVENS);
    }

    #[test]
    fn the_group_id_depends_on_key_and_machine() {
        let id = GroupKey::from_bytes(&[7; 32]).group_id("example.map");
        assert_ne!(id, GroupKey::from_bytes(&[8; 32]).group_id("example.map"));
        assert_ne!(id, GroupKey::from_bytes(&[7; 32]).group_id("example.queue"));
        assert_ne!(id, GroupKey::from_bytes(&[7; 32]).group_id(""));
    }

    #[test]
    fn whitespace_around_a_key_is_skipped() {
        let key = GroupKey::generate();
        let text = Zeroizing::new(format!("\n  {}\r\n\t", *key.expose()));
        assert_eq!(text.parse::<GroupKey>(), Ok(key));
    }

    #[test]
    fn a_mistyped_key_is_told_from_another_text() {
        let text = GroupKey::generate().expose();
        let longer = [
            format!("{}a", *text),
            text.replace("quoratekey1", "quoratekey1a"),
        ];
        for damaged in [&text[..68], longer[0].as_str(), longer[1].as_str()] {
            assert_eq!(
                damaged.parse::<GroupKey>(),
                Err(ParseGroupKeyError::Damaged)
            );
        }
        for other in [
            "",
            " ",
            "quorate1",
            "quoratekey",
            &text.to_uppercase(),
            &text[1..],
        ] {
            assert_eq!(other.parse::<GroupKey>(), Err(ParseGroupKeyError::NotAKey));
        }
    }

    #[test]
    fn debug_and_errors_show_nothing_of_the_key() {
        let key = GroupKey::generate();
        let text = key.expose();
        let secret = &text[GroupKey::PREFIX.len()..];
        let error = text[..60].parse::<GroupKey>().expect_err("cut off");
        for shown in [format!("{key:?}"), format!("{error:?}"), error.to_string()] {
            // Six digits in a row would be no accident.
            assert!((0..secret.len() - 6).all(|at| !shown.contains(&secret[at..at + 6])));
        }
    }

    proptest! {
        #[test]
        fn any_changed_digit_is_refused(
            bytes: [u8; 32],
            at in 0usize..69,
            digit in prop::char::range(' ', '~'),
        ) {
            let text = GroupKey::from_bytes(&bytes).expose();
            prop_assert_eq!(text.parse::<GroupKey>(), Ok(GroupKey::from_bytes(&bytes)));
            let mut changed: Vec<char> = text.chars().collect();
            prop_assume!(changed[at] != digit);
            changed[at] = digit;
            prop_assert!(changed.into_iter().collect::<String>().parse::<GroupKey>().is_err());
        }

        #[test]
        fn random_text_is_refused(text: String, prefixed: bool) {
            let text = if prefixed { format!("{}{text}", GroupKey::PREFIX) } else { text };
            prop_assert!(text.parse::<GroupKey>().is_err());
            prop_assert!(text.parse::<GroupId>().is_err() || text.len() == 64);
        }
    }

    const KEY_OF_SEVENS: &str =
        "quoratekey1a4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dubwogjq";
    const GROUP_OF_SEVENS: &str =
        "5bf7e4f058a537b568888e24603781f2085c9a94a643b527c64599e289aa1d58";
}
