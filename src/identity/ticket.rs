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
    /// let group = key.group_id("example.map");
    /// let ticket = GroupTicket::new(key, group, vec![member.clone()]);
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
/// use quorate::{GroupTicket, ParseTicketError};
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket_of(key: u8, members: Vec<PeerAddr>) -> GroupTicket {
        let key = GroupKey::from_bytes(&[key; 32]);
        let group = key.group_id("example.map");
        GroupTicket::new(key, group, members)
    }

    fn member(peer: u8, addrs: &[&str], relay: Option<&str>) -> PeerAddr {
        let addrs = addrs.iter().map(|addr| addr.parse().expect("an address"));
        let mut addr = PeerAddr::new(PeerId::from_bytes([peer; 32]), addrs);
        addr.relay = relay.map(str::to_owned);
        addr
    }

    fn small() -> GroupTicket {
        let addrs = ["192.0.2.1:4040", "[2001:db8::1]:4040"];
        ticket_of(7, vec![member(1, &addrs, Some("https://r.example"))])
    }

    /// The text of a body, right or wrong, under a checksum that is right.
    fn sealed(body: &[u8]) -> Result<GroupTicket, ParseTicketError> {
        armor::encode(GroupTicket::PREFIX, body).parse()
    }

    #[test]
    fn the_text_is_frozen() {
        // Computed by an independent implementation of the type's documentation.
        let text = concat!(
            "quorate1aedqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqow7x4tyfrjjx",
            "wvuirdrema3yd4qilsnjjjsdwut4mrmz4ke2uhkyaeaqcaibaeaqcaibaeaqcaibaeaqcaib",
            "aeaqcaibaeaqcaibaeaqcaqayaaaeaoid4asaainxaaaaaaaaaaaaaaaaaaadsa7aeiwq5du",
            "obztulzpoixgk6dbnvygyzn4oyxmw",
        );
        assert_eq!(small().expose().as_str(), text);
        assert_eq!(text.parse(), Ok(small()));
    }

    #[test]
    fn whitespace_around_is_skipped_and_inside_refused() {
        let text = small().expose();
        assert_eq!(format!("\r\n \t{}\n\n", *text).parse(), Ok(small()));
        let broken = format!("{} {}", &text[..40], &text[40..]);
        assert_eq!(
            broken.parse::<GroupTicket>(),
            Err(ParseTicketError::Damaged)
        );
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = small().expose();
        let parse = |text: &str| text.parse::<GroupTicket>().expect_err("not a ticket");
        assert_eq!(parse(""), ParseTicketError::Empty);
        assert_eq!(parse(" \n"), ParseTicketError::Empty);
        assert_eq!(parse("hello"), ParseTicketError::NotATicket);
        assert_eq!(parse(&text.to_uppercase()), ParseTicketError::NotATicket);
        assert_eq!(parse(&small().key().expose()), ParseTicketError::NotATicket);
        assert_eq!(parse("quorate1"), ParseTicketError::Damaged);
        assert_eq!(parse(&text[..text.len() - 1]), ParseTicketError::Damaged);
        assert_eq!(
            parse(&text.replacen('a', "A", 2)),
            ParseTicketError::NotATicket
        );
        let long = format!("quorate1{}", "a".repeat(16 * 1024));
        assert_eq!(
            parse(&long),
            ParseTicketError::TooLong {
                bytes: 8 + 16 * 1024
            }
        );
    }

    #[test]
    fn a_newer_version_is_named_before_its_content_is_read() {
        let newer = Err(ParseTicketError::Newer { found: 2, known: 1 });
        assert_eq!(sealed(&[2]), newer);
        assert_eq!(sealed(&[2, 1, 2, 3]), newer);
        assert_eq!(sealed(&[0]), Err(ParseTicketError::Malformed));
        assert_eq!(sealed(&[]), Err(ParseTicketError::Malformed));
    }

    #[test]
    fn content_beyond_the_format_is_refused_under_a_right_checksum() {
        let body = small().body();
        assert_eq!(sealed(&body), Ok(small()));
        let trailing = [&body[..], &[0]].concat();
        assert_eq!(sealed(&trailing), Err(ParseTicketError::Malformed));
        for length in 1..body.len() {
            assert_eq!(
                sealed(&body[..length]),
                Err(ParseTicketError::Malformed),
                "{length}"
            );
        }
        let with = |members: Vec<PeerAddr>| {
            let mut ticket = small();
            ticket.members = members;
            sealed(&ticket.body())
        };
        assert_eq!(with(vec![]), Err(ParseTicketError::NoMembers));
        let plain = || member(1, &["192.0.2.1:1"], None);
        assert!(with(vec![plain(); 64]).is_ok());
        assert_eq!(with(vec![plain(); 65]), Err(ParseTicketError::Malformed));
        let relay = |length: usize| member(1, &[], Some(&"r".repeat(length)));
        assert!(with(vec![relay(256)]).is_ok());
        assert_eq!(with(vec![relay(257)]), Err(ParseTicketError::Malformed));
        let many = |count: u16| {
            let mut member = plain();
            member.addrs = (1..=count)
                .map(|port| ([192, 0, 2, 1], port).into())
                .collect();
            member
        };
        assert!(with(vec![many(16)]).is_ok());
        assert_eq!(with(vec![many(17)]), Err(ParseTicketError::Malformed));
        // A length bomb: a count of members with nothing behind it.
        let bomb = [&body[..65], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
        assert_eq!(sealed(&bomb), Err(ParseTicketError::Malformed));
    }

    #[test]
    fn the_largest_ticket_fits_and_names_as_many_members_as_can_be() {
        let crowd = |relay: Option<&str>| {
            let addrs: Vec<String> = (0..20).map(|n| format!("[2001:db8::{n}]:65535")).collect();
            let addrs: Vec<&str> = addrs.iter().map(String::as_str).collect();
            (0..80).map(|peer| member(peer, &addrs, relay)).collect()
        };
        let ticket = ticket_of(7, crowd(None));
        assert_eq!(ticket.members().len(), GroupTicket::MEMBERS_MAX);
        assert!(
            ticket
                .members()
                .iter()
                .all(|member| member.addrs.len() >= 4),
            "{ticket:?}"
        );
        assert!(ticket.expose().len() <= GroupTicket::TEXT_BYTES_MAX);
        assert_eq!(ticket.expose().parse(), Ok(ticket));

        let relay = "r".repeat(PeerAddr::RELAY_BYTES_MAX);
        let ticket = ticket_of(7, crowd(Some(&relay)));
        assert!(ticket.members().len() >= 30, "{ticket:?}");
        assert!(ticket.expose().len() <= GroupTicket::TEXT_BYTES_MAX);
        assert_eq!(ticket.expose().parse(), Ok(ticket));
    }

    #[test]
    fn debug_and_errors_show_nothing_of_the_key() {
        let ticket = small();
        let text = ticket.expose();
        let error = text[..100].parse::<GroupTicket>().expect_err("cut off");
        let key = ticket.key().expose();
        for shown in [
            format!("{ticket:?}"),
            format!("{error:?}"),
            error.to_string(),
        ] {
            for secret in [&text["quorate1".len()..], &key["quoratekey1".len()..]] {
                assert!((0..secret.len() - 8).all(|at| !shown.contains(&secret[at..at + 8])));
            }
            assert!(!shown.contains("7, 7"), "{shown}");
        }
    }

    fn any_member() -> impl Strategy<Value = PeerAddr> {
        let addr = prop_oneof![
            any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
            any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
        ];
        let addrs = prop::collection::btree_set(addr, 0..=PeerAddr::ADDRS_MAX);
        let relay = prop::option::of("[ -~]{0,64}");
        (any::<[u8; 32]>(), addrs, relay).prop_map(|(peer, addrs, relay)| PeerAddr {
            peer: PeerId::from_bytes(peer),
            addrs,
            relay,
        })
    }

    fn any_ticket(members: usize) -> impl Strategy<Value = GroupTicket> {
        let members = prop::collection::vec(any_member(), 1..=members);
        (any::<[u8; 32]>(), any::<[u8; 32]>(), members).prop_map(|(key, group, members)| {
            GroupTicket::new(
                GroupKey::from_bytes(&key),
                GroupId::from_bytes(group),
                members,
            )
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(ticket in any_ticket(GroupTicket::MEMBERS_MAX)) {
            let text = ticket.expose();
            prop_assert!(text.len() <= GroupTicket::TEXT_BYTES_MAX);
            prop_assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
            prop_assert_eq!(text.parse(), Ok(ticket));
        }

        #[test]
        fn any_changed_character_is_refused(
            ticket in any_ticket(3),
            at: prop::sample::Index,
            to in prop_oneof![prop::char::range('2', 'z'), any::<char>()],
        ) {
            let mut text: Vec<char> = ticket.expose().chars().collect();
            let at = at.index(text.len());
            prop_assume!(text[at] != to);
            text[at] = to;
            let text: String = text.into_iter().collect();
            // Whitespace at an end is skipped, so it cuts a character off: refused as well.
            prop_assert!(text.parse::<GroupTicket>().is_err());
        }

        #[test]
        fn random_text_is_refused(text in "\\PC*", prefixed: bool) {
            let text = if prefixed { format!("quorate1{text}") } else { text };
            prop_assert!(text.parse::<GroupTicket>().is_err());
        }

        #[test]
        fn random_content_under_a_right_checksum_never_panics(
            mut body: Vec<u8>,
            right_version: bool,
        ) {
            if let (Some(version), true) = (body.first_mut(), right_version) {
                *version = VERSION;
            }
            if let Ok(ticket) = sealed(&body) {
                prop_assert!(ticket.members().iter().all(PeerAddr::is_within_limits));
            }
        }

        #[test]
        fn changed_content_under_a_right_checksum_never_panics(
            ticket in any_ticket(4),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut body = ticket.body();
            for (at, to) in changes {
                let at = at.index(body.len());
                body[at] = to;
            }
            if let Ok(ticket) = sealed(&body) {
                prop_assert!(ticket.members().iter().all(PeerAddr::is_within_limits));
            }
        }
    }
}
