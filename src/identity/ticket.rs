//! An invitation into a group, as one line of text.

use std::{collections::BTreeSet, fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{
    armor::{self, ArmorError},
    key::{GroupId, GroupKey},
    peer::{PeerAddr, PeerId},
};

/// What a node needs to join a group: its key, its name, and where its members can be reached.
///
/// **It holds the key: treat it as a password.** `Debug` shows neither key nor text; the only way
/// to the text is [`GroupTicket::expose`]. All of its addresses are tried, so a dead member in it
/// costs nothing but its own attempt.
///
/// ```
/// use quorate::{GroupKey, GroupTicket, PeerAddr, PeerId};
///
/// let key = GroupKey::generate();
/// let group = key.group_id("example.map");
/// let member = PeerAddr::new(PeerId::from_bytes([1; 32]), ["192.0.2.1:4040".parse()?]);
///
/// let ticket = GroupTicket::new(key, group, vec![member]);
/// let text = ticket.expose();              // "quorate1..." to hand over, secretly
/// assert_eq!(text.parse::<GroupTicket>()?, ticket);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The text
///
/// ```text
/// quorate1 ‖ base32(body ‖ first 4 bytes of SHA-256("quorate1" ‖ body))
/// body = version (1 byte, now 1) ‖ postcard { key: 32 bytes, group: 32 bytes, members: [
///            { peer: 32 bytes, addrs: [SocketAddr], relay: Option<String> }, ... ] }
/// ```
///
/// base32 is RFC 4648's in lower case without padding. Addresses carry no IPv6 scope: what is
/// link-local on one machine means nothing on another.
///
/// # Invariants
/// - At most [`GroupTicket::MEMBERS_MAX`] members with at most [`PeerAddr::ADDRS_MAX`] addresses
///   each, and never a text longer than [`GroupTicket::TEXT_BYTES_MAX`].
#[derive(Clone, PartialEq, Eq)]
pub struct GroupTicket {
    key: GroupKey,
    group: GroupId,
    members: Vec<PeerAddr>,
}

impl GroupTicket {
    /// What the text form starts with.
    pub const PREFIX: &'static str = "quorate1";
    /// The most members that a ticket names.
    pub const MEMBERS_MAX: usize = 64;
    /// The longest text form, in bytes; longer ones are refused unread.
    pub const TEXT_BYTES_MAX: usize = 16 * 1024;

    /// A ticket into `group` through any of `members`.
    ///
    /// What exceeds the limits is left out: members after the first 64, addresses of a member
    /// after 16. Where the whole would not fit into 16 KiB of text, each member keeps fewer
    /// addresses, and only then are members left out, the last first.
    ///
    /// ```
    /// use quorate::{GroupKey, GroupTicket};
    ///
    /// let key = GroupKey::generate();
    /// let ticket = GroupTicket::new(key.clone(), key.group_id("example.map"), vec![]);
    /// assert!(ticket.expose().parse::<GroupTicket>().is_err(), "nobody to join through");
    /// ```
    #[must_use]
    pub fn new(key: GroupKey, group: GroupId, members: Vec<PeerAddr>) -> Self {
        let members = members
            .into_iter()
            .take(Self::MEMBERS_MAX)
            .map(portable)
            .collect();
        let mut ticket = Self {
            key,
            group,
            members,
        };
        let mut addrs_max = PeerAddr::ADDRS_MAX;
        while ticket.text_bytes() > Self::TEXT_BYTES_MAX {
            if addrs_max > 1 {
                addrs_max -= 1;
                for member in &mut ticket.members {
                    while member.addrs.len() > addrs_max {
                        member.addrs.pop_last();
                    }
                }
            } else {
                ticket.members.pop();
            }
        }
        ticket
    }

    /// The group's key.
    ///
    /// ```
    /// # use quorate::{GroupKey, GroupTicket};
    /// let key = GroupKey::generate();
    /// let ticket = GroupTicket::new(key.clone(), key.group_id("example.map"), vec![]);
    /// assert_eq!(ticket.key(), &key);
    /// ```
    #[must_use]
    pub fn key(&self) -> &GroupKey {
        &self.key
    }

    /// The group's name.
    ///
    /// ```
    /// # use quorate::{GroupKey, GroupTicket};
    /// let key = GroupKey::generate();
    /// let ticket = GroupTicket::new(key.clone(), key.group_id("example.map"), vec![]);
    /// assert_eq!(ticket.group(), key.group_id("example.map"));
    /// ```
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The members to join through.
    ///
    /// ```
    /// # use quorate::{GroupKey, GroupTicket, PeerAddr, PeerId};
    /// let key = GroupKey::generate();
    /// let member = PeerAddr::new(PeerId::from_bytes([1; 32]), []);
    /// let ticket = GroupTicket::new(key.clone(), key.group_id("example.map"), vec![member.clone()]);
    /// assert_eq!(ticket.members(), [member]);
    /// ```
    #[must_use]
    pub fn members(&self) -> &[PeerAddr] {
        &self.members
    }

    /// The text form, which holds the key. Wiped when dropped; copies of it are the caller's.
    ///
    /// ```
    /// # use quorate::{GroupKey, GroupTicket};
    /// let key = GroupKey::generate();
    /// let ticket = GroupTicket::new(key.clone(), key.group_id("example.map"), vec![]);
    /// assert!(ticket.expose().starts_with("quorate1"));
    /// assert!(!format!("{ticket:?}").contains(&ticket.expose()[8..20]));
    /// ```
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        armor::encode(Self::PREFIX, &self.body())
    }

    fn text_bytes(&self) -> usize {
        armor::text_bytes(Self::PREFIX, self.body().len())
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let inside = Inside {
            key: *self.key.bytes(),
            group: self.group,
            members: self.members.iter().map(Line::from).collect(),
        };
        // Room for everything at once: a buffer that grows would leave copies of the key behind.
        let members: usize = self.members.iter().map(line_bytes_max).sum();
        let mut body = Zeroizing::new(vec![0; 1 + 64 + 5 + members]);
        body[0] = VERSION;
        let written = postcard::to_slice(&inside, &mut body[1..])
            .expect("the buffer has room for the longest encoding")
            .len();
        body.truncate(1 + written);
        body
    }
}

/// The version of the text form that this code writes and reads. Frozen format.
const VERSION: u8 = 1;

/// What the body holds after the version. The order of the fields is format.
#[derive(Serialize, Deserialize)]
struct Inside {
    key: [u8; 32],
    group: GroupId,
    members: Vec<Line>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// One member as it is written. The order of the fields is format.
#[derive(Serialize, Deserialize)]
struct Line {
    peer: PeerId,
    addrs: Vec<SocketAddr>,
    relay: Option<String>,
}

impl From<&PeerAddr> for Line {
    fn from(addr: &PeerAddr) -> Self {
        Self {
            peer: addr.peer,
            addrs: addr.addrs.iter().copied().collect(),
            relay: addr.relay.clone(),
        }
    }
}

/// At least as many bytes as the encoded line has: an address takes up to 20, a length 5.
fn line_bytes_max(addr: &PeerAddr) -> usize {
    32 + 5 + 20 * addr.addrs.len() + 1 + 5 + addr.relay.as_ref().map_or(0, String::len)
}

/// Within the limits, and without what only this machine understands.
fn portable(addr: PeerAddr) -> PeerAddr {
    let plain = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port());
    PeerAddr {
        addrs: addr.addrs.into_iter().map(plain).collect::<BTreeSet<_>>(),
        ..addr
    }
    .capped()
}

impl fmt::Debug for GroupTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupTicket")
            .field("key", &self.key)
            .field("group", &self.group)
            .field("members", &self.members.len())
            .finish()
    }
}

impl FromStr for GroupTicket {
    type Err = ParseTicketError;

    /// Reads what [`GroupTicket::expose`] wrote; whitespace and line ends around it are skipped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseTicketError::Empty);
        }
        if text.starts_with(Self::PREFIX) && text.len() > Self::TEXT_BYTES_MAX {
            return Err(ParseTicketError::TooLong { bytes: text.len() });
        }
        let body = armor::decode(Self::PREFIX, text).map_err(|error| match error {
            ArmorError::Prefix => ParseTicketError::NotATicket,
            ArmorError::Damaged => ParseTicketError::Damaged,
        })?;
        let (version, rest) = body.split_first().ok_or(ParseTicketError::Malformed)?;
        match *version {
            VERSION => {}
            0 => return Err(ParseTicketError::Malformed),
            found => {
                return Err(ParseTicketError::Newer {
                    found,
                    known: VERSION,
                });
            }
        }
        let (mut inside, trailing) =
            postcard::take_from_bytes::<Inside>(rest).map_err(|_| ParseTicketError::Malformed)?;
        if !trailing.is_empty() || inside.members.len() > Self::MEMBERS_MAX {
            return Err(ParseTicketError::Malformed);
        }
        if inside.members.is_empty() {
            return Err(ParseTicketError::NoMembers);
        }
        let members = std::mem::take(&mut inside.members)
            .into_iter()
            .map(|line| {
                let Line { peer, addrs, relay } = line;
                let many = addrs.len() > PeerAddr::ADDRS_MAX;
                let addr = PeerAddr {
                    peer,
                    addrs: addrs.into_iter().collect(),
                    relay,
                };
                if many || !addr.is_within_limits() {
                    Err(ParseTicketError::Malformed)
                } else {
                    Ok(addr)
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            key: GroupKey::from_bytes(&inside.key),
            group: inside.group,
            members,
        })
    }
}

/// The text is not a usable [`GroupTicket`]. It never holds any of the text, so it can be logged.
///
/// ```
/// use quorate::{GroupTicket, identity::ParseTicketError};
///
/// let pasted = "quorate1 lost the rest".parse::<GroupTicket>();
/// assert_eq!(pasted, Err(ParseTicketError::Damaged));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTicketError {
    /// There is no text.
    #[error("the ticket is empty")]
    Empty,
    /// It does not start as a ticket does. Is it a group key, which starts with `quoratekey1`?
    #[error("this is no ticket: one starts with \"quorate1\"")]
    NotATicket,
    /// It starts as a ticket does, but characters are missing, added or changed: copy it again.
    #[error("this ticket is damaged: its checksum does not match; copy it again, whole")]
    Damaged,
    /// It was made by a newer release: update this program.
    #[error("this ticket has format {found}, newer than this program's {known}: update it")]
    Newer {
        /// The ticket's format version.
        found: u8,
        /// The newest one that this program reads.
        known: u8,
    },
    /// It is longer than any ticket.
    #[error("this is {bytes} bytes long, and a ticket at most 16384")]
    TooLong {
        /// The length of the text, in bytes.
        bytes: usize,
    },
    /// Its checksum is right and its content is not: trailing bytes, or counts above the limits.
    #[error("this ticket was not made by quorate: its content breaks the format")]
    Malformed,
    /// It names no member that one could join through.
    #[error("this ticket names no member to join through")]
    NoMembers,
}
