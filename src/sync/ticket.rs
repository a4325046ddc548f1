//! Where outsiders find a group's logs, as one line of text.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use super::member_addr::MemberAddr;
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Line, Topic},
};

/// What an outsider needs to read a group's topics, or to push into them: their names and lines,
/// and the doors of several members. It holds no key of the group; who knows a topic's
/// name can ask for it, so hand it on with that in mind.
///
/// ```
/// use quorate::{PeerAddr, PeerId, log_store::{Line, Topic}, sync::LogTicket};
///
/// let member = PeerAddr::new(PeerId::from_bytes([1; 32]), ["192.0.2.1:4040".parse()?]);
/// let ticket = LogTicket::new([0; 32], [(Topic::named("cats"), Line::V07)], [member]);
/// let text = ticket.to_string();              // "quoratelogs1..."
/// assert_eq!(text.parse::<LogTicket>()?, ticket);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The text
///
/// ```text
/// quoratelogs1 ‖ base32(body ‖ first 4 bytes of BLAKE3("quoratelogs1" ‖ body))
/// body = version (1 byte) ‖ postcard { network: 32 bytes, topics: [(topic: 32 bytes,
///            line: 0 for 0.6, 1 for 0.7)], members: [
///            { peer: 32 bytes, addrs: [SocketAddr], relay: Option<String>,
///              in version 2 alone: ways: [(transport: String, addr: String)] }, ... ] }
/// ```
///
/// The version is 1 where all members are reached by QUIC alone, so that older programs read it,
/// and otherwise 2.
///
/// base32 is RFC 4648's in lower case without padding.
///
/// # Invariants
/// - At most [`LogTicket::TOPICS_MAX`] topics and [`LogTicket::MEMBERS_MAX`] members with at most
///   [`PeerAddr::ADDRS_MAX`] addresses each, and never a text longer than
///   [`LogTicket::TEXT_BYTES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTicket {
    network: [u8; 32],
    topics: BTreeMap<Topic, Line>,
    members: Vec<MemberAddr>,
}

impl LogTicket {
    /// What the text form starts with.
    pub const PREFIX: &'static str = "quoratelogs1";
    /// The most topics that a ticket names.
    pub const TOPICS_MAX: usize = 64;
    /// The most members that a ticket names.
    pub const MEMBERS_MAX: usize = 64;
    /// The longest text form, in bytes; longer ones are refused unread.
    pub const TEXT_BYTES_MAX: usize = 16 * 1024;

    /// A ticket to `topics`, which any of `members` serves in the network with this id.
    ///
    /// What exceeds the limits is left out: topics and members after the first 64, addresses of a
    /// member after 16. Where the whole would not fit into 16 KiB of text, each member keeps fewer
    /// addresses, then fewer ways besides QUIC, and only then are members left out, the last first.
    #[must_use]
    pub fn new(
        network: [u8; 32],
        topics: impl IntoIterator<Item = (Topic, Line)>,
        members: impl IntoIterator<Item = impl Into<MemberAddr>>,
    ) -> Self {
        let members = members.into_iter().take(Self::MEMBERS_MAX);
        let members = members.map(|it| portable(it.into()));
        let mut ticket = Self {
            network,
            topics: topics.into_iter().take(Self::TOPICS_MAX).collect(),
            members: members.collect(),
        };
        let mut addrs_max = PeerAddr::ADDRS_MAX;
        while ticket.to_string().len() > Self::TEXT_BYTES_MAX {
            if addrs_max > 1 {
                addrs_max -= 1;
                for member in &mut ticket.members {
                    let addrs = &mut member.quic_mut().addrs;
                    while addrs.len() > addrs_max {
                        addrs.pop_last();
                    }
                }
            } else if ticket.pop_way() {
                // One way less, of the member that has the most.
            } else if ticket.members.pop().is_none() {
                break;
            }
        }
        ticket
    }

    /// The network that the members' sync endpoints are in.
    #[must_use]
    pub fn network(&self) -> [u8; 32] {
        self.network
    }

    /// The topics, and the line that each belongs to.
    #[must_use]
    pub fn topics(&self) -> &BTreeMap<Topic, Line> {
        &self.topics
    }

    /// The doors of the members: their names there are not those of the nodes.
    #[must_use]
    pub fn members(&self) -> &[MemberAddr] {
        &self.members
    }
}

/// Members are reached by QUIC alone. Frozen format.
const QUIC_ALONE: u8 = 1;
/// Members are reached in other ways, too. Frozen format.
const MANY_WAYS: u8 = 2;
/// Bytes of the checksum. Frozen format.
const CHECK_BYTES: usize = 4;

/// What the body holds after the version. The order of the fields is format.
#[derive(Serialize, Deserialize)]
struct Inside<M> {
    network: [u8; 32],
    topics: Vec<(Topic, Line)>,
    members: Vec<M>,
}

/// One member as it is written. The order of the fields is format.
#[derive(Serialize, Deserialize)]
struct MemberLine {
    peer: PeerId,
    addrs: Vec<SocketAddr>,
    relay: Option<String>,
}

/// One member in version 2: what was before, and the ways besides QUIC.
type ManyWaysLine = (MemberLine, Vec<(String, String)>);

/// The text form, without a secret in it.
impl fmt::Display for LogTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many_ways = self.members.iter().any(|it| it.ways().next().is_some());
        let mut body = vec![if many_ways { MANY_WAYS } else { QUIC_ALONE }];
        let inside = match many_ways {
            true => postcard::to_stdvec(&self.inside(|it| (line(it), ways(it)))),
            false => postcard::to_stdvec(&self.inside(line)),
        };
        body.extend(inside.map_err(|_| fmt::Error)?);
        let check = check(&body);
        body.extend(check);
        f.write_str(Self::PREFIX)?;
        f.write_str(&BASE32_NOPAD.encode(&body).to_ascii_lowercase())
    }
}

impl LogTicket {
    fn pop_way(&mut self) -> bool {
        let members = self.members.iter_mut();
        let most = members.max_by_key(|it| it.ways().count());
        most.is_some_and(MemberAddr::pop_way)
    }

    fn inside<M>(&self, member: impl Fn(&MemberAddr) -> M) -> Inside<M> {
        Inside {
            network: self.network,
            topics: self.topics.iter().map(|(it, line)| (*it, *line)).collect(),
            members: self.members.iter().map(member).collect(),
        }
    }
}

fn line(member: &MemberAddr) -> MemberLine {
    let quic = member.quic();
    MemberLine {
        peer: quic.peer,
        addrs: quic.addrs.iter().copied().collect(),
        relay: quic.relay.clone(),
    }
}

fn ways(member: &MemberAddr) -> Vec<(String, String)> {
    let ways = member.ways();
    ways.map(|(name, addr)| (name.to_owned(), addr.to_owned()))
        .collect()
}

impl FromStr for LogTicket {
    type Err = ParseLogTicketError;

    /// Reads what `Display` wrote; whitespace and line ends around it are skipped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text
            .strip_prefix(Self::PREFIX)
            .ok_or(ParseLogTicketError::NotATicket)?;
        if text.len() > Self::TEXT_BYTES_MAX {
            return Err(ParseLogTicketError::TooLong { bytes: text.len() });
        }
        let body = unseal(digits).ok_or(ParseLogTicketError::Damaged)?;
        let (version, rest) = body.split_first().ok_or(ParseLogTicketError::Malformed)?;
        let inside = match *version {
            QUIC_ALONE => {
                let inside = read::<MemberLine>(rest)?;
                let members = inside.members.into_iter().map(|it| (it, Vec::new()));
                Inside {
                    members: members.collect(),
                    network: inside.network,
                    topics: inside.topics,
                }
            }
            MANY_WAYS => {
                let inside = read::<ManyWaysLine>(rest)?;
                // A ticket has one text: the older one, where that is enough.
                if inside.members.iter().all(|(_, ways)| ways.is_empty()) {
                    return Err(ParseLogTicketError::Malformed);
                }
                inside
            }
            0 => return Err(ParseLogTicketError::Malformed),
            found => return Err(ParseLogTicketError::Newer { found }),
        };
        let topics: BTreeMap<Topic, Line> = inside.topics.iter().copied().collect();
        if inside.members.len() > Self::MEMBERS_MAX
            || inside.topics.len() > Self::TOPICS_MAX
            || topics.len() != inside.topics.len()
        {
            return Err(ParseLogTicketError::Malformed);
        }
        if inside.members.is_empty() {
            return Err(ParseLogTicketError::NoMembers);
        }
        let members = inside.members.into_iter().map(|(line, ways)| {
            let member = member(line, ways);
            member.ok_or(ParseLogTicketError::Malformed)
        });
        Ok(Self {
            network: inside.network,
            topics,
            members: members.collect::<Result<_, _>>()?,
        })
    }
}

fn read<'a, M: Deserialize<'a>>(bytes: &'a [u8]) -> Result<Inside<M>, ParseLogTicketError> {
    match postcard::take_from_bytes(bytes) {
        Ok((inside, [])) => Ok(inside),
        _ => Err(ParseLogTicketError::Malformed),
    }
}

/// What of these members a ticket has room for.
pub(crate) fn within_limits(members: Vec<MemberAddr>) -> Vec<MemberAddr> {
    LogTicket::new([0; 32], [], members).members
}

/// Members as a ticket of version 2 lists them.
pub(crate) fn members_to_bytes(members: &[MemberAddr]) -> Vec<u8> {
    let lines: Vec<ManyWaysLine> = members.iter().map(|it| (line(it), ways(it))).collect();
    // Plain values into memory cannot fail to encode.
    postcard::to_stdvec(&lines).unwrap_or_default()
}

/// Reads that. `None` if it is damaged, or no ticket would have them.
pub(crate) fn members_from_bytes(bytes: &[u8]) -> Option<Vec<MemberAddr>> {
    let (lines, rest) = postcard::take_from_bytes::<Vec<ManyWaysLine>>(bytes).ok()?;
    let fits = rest.is_empty() && (1..=LogTicket::MEMBERS_MAX).contains(&lines.len());
    let mut members = lines.into_iter().map(|(line, ways)| member(line, ways));
    fits.then(|| members.by_ref().collect())?
}

/// `None` if it is over the limits, or names a way twice.
fn member(line: MemberLine, ways: Vec<(String, String)>) -> Option<MemberAddr> {
    let many = line.addrs.len() > PeerAddr::ADDRS_MAX;
    let mut quic = PeerAddr::new(line.peer, line.addrs);
    quic.relay = line.relay;
    let sound = !many && quic.is_within_limits();
    let mut member = MemberAddr::from(quic);
    let mut ways = ways.into_iter();
    let sound = sound && ways.all(|(name, addr)| member.insert(name, addr));
    sound.then_some(member)
}

/// Within the limits, and without what only this machine understands.
fn portable(mut member: MemberAddr) -> MemberAddr {
    let plain = |addr: &SocketAddr| SocketAddr::new(addr.ip(), addr.port());
    let addrs = &mut member.quic_mut().addrs;
    *addrs = addrs.iter().map(plain).collect();
    member
}

/// The body of a text in which every bit counts, so that a ticket has one text.
fn unseal(digits: &str) -> Option<Vec<u8>> {
    if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return None;
    }
    let digits = digits.to_ascii_uppercase();
    let mut body = BASE32_NOPAD.decode(digits.as_bytes()).ok()?;
    let length = body.len().checked_sub(CHECK_BYTES)?;
    if body[length..] != check(&body[..length]) {
        return None;
    }
    body.truncate(length);
    Some(body)
}

fn check(body: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(LogTicket::PREFIX.as_bytes()).update(body);
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    [a, b, c, d]
}

/// The text is not a usable [`LogTicket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseLogTicketError {
    /// It does not start as a ticket to logs does.
    #[error("this is no ticket to logs: one starts with \"quoratelogs1\"")]
    NotATicket,
    /// Characters are missing, added or changed: copy it again.
    #[error("this ticket is damaged: its checksum does not match; copy it again, whole")]
    Damaged,
    /// It was made by a newer release: update this program.
    #[error("this ticket has format {found}, newer than this program's 2: update it")]
    Newer {
        /// The ticket's format version.
        found: u8,
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
    /// It names no member.
    #[error("this ticket names no member to ask")]
    NoMembers,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket(members: usize, addrs: usize) -> LogTicket {
        let member = |at: usize| {
            let addr = |port: usize| SocketAddr::from(([192, 0, 2, 1], port as u16 + 1));
            PeerAddr::new(PeerId::from_bytes([at as u8; 32]), (0..addrs).map(addr))
        };
        let topics = [
            (Topic::named("cats"), Line::V07),
            (Topic::named("dogs"), Line::V06),
        ];
        LogTicket::new([9; 32], topics, (0..members).map(member))
    }

    #[test]
    fn the_text_is_frozen() {
        let text = concat!(
            "quoratelogs1aeeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqsarldhsw",
            "exerynyvqr25rm5jatrmgmeyqjmamgips3bg4y2kyiqtpea5vflwa5z47w3hnfmiyolo4bfk",
            "emexdefseiczvl2ogfewhdc67caaaeaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "aaaaaaaaaaiayaaaeaibacekbdmq",
        );
        let made = ticket(1, 1);
        assert_eq!(made.to_string(), text);
        assert_eq!(text.parse(), Ok(made), "and those that are kept are read");
    }

    fn with_ways(ticket: &LogTicket, ways: usize) -> LogTicket {
        let member = |it: &MemberAddr| {
            let way = |it: MemberAddr, at| it.with("http", &format!("http://192.0.2.1:{at}"));
            (0..ways).fold(it.clone(), way)
        };
        LogTicket::new(
            [9; 32],
            ticket.topics.clone(),
            ticket.members.iter().map(member),
        )
    }

    #[test]
    fn the_text_with_other_ways_is_frozen_too() {
        let text = concat!(
            "quoratelogs1aieqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqsarldhsw",
            "exerynyvqr25rm5jatrmgmeyqjmamgips3bg4y2kyiqtpea5vflwa5z47w3hnfmiyolo4bfk",
            "emexdefseiczvl2ogfewhdc67caaaeaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "aaaaaaaaaaiayaaaeaibaaaqi2duorybe2duorydulzpge4telrqfyzc4mj2gcuosfrv",
        );
        let ticket = with_ways(&ticket(1, 1), 1);
        assert_eq!(ticket.to_string(), text);
        assert_eq!(text.parse(), Ok(ticket));
    }

    #[test]
    fn a_version_without_need_and_ways_over_the_limits_are_refused() {
        let ticket = ticket(1, 1);
        let sealed = |ways: Vec<(String, String)>| {
            let mut body = vec![MANY_WAYS];
            let inside = ticket.inside(|it| (line(it), ways.clone()));
            body.extend(postcard::to_stdvec(&inside).expect("it is plain data"));
            body.extend(check(&body));
            let digits = BASE32_NOPAD.encode(&body).to_ascii_lowercase();
            format!("{}{digits}", LogTicket::PREFIX).parse::<LogTicket>()
        };
        let way = |at: usize| ("http".to_owned(), format!("http://192.0.2.1:{at}"));
        assert!(sealed(vec![way(1)]).is_ok());
        let many = (0..9).map(way).collect();
        for ways in [Vec::new(), vec![way(1), way(1)], many] {
            assert_eq!(sealed(ways), Err(ParseLogTicketError::Malformed));
        }
        for (name, addr) in [("", "a"), ("http", ""), ("quic", "192.0.2.1:1")] {
            let ways = vec![(name.to_owned(), addr.to_owned())];
            assert_eq!(sealed(ways), Err(ParseLogTicketError::Malformed));
        }
    }

    #[test]
    fn a_ticket_is_read_as_it_was_written_and_keeps_its_limits() {
        for (members, addrs) in [(1, 0), (3, 16), (64, 16), (80, 20)] {
            let ticket = ticket(members, addrs);
            let text = ticket.to_string();
            assert!(text.len() <= LogTicket::TEXT_BYTES_MAX, "{}", text.len());
            assert_eq!(format!("\n {text}\n").parse(), Ok(ticket.clone()));
            let ticket = with_ways(&ticket, 9);
            let text = ticket.to_string();
            assert!(text.len() <= LogTicket::TEXT_BYTES_MAX, "{}", text.len());
            assert_eq!(ticket.members.len(), members.min(64));
            assert_eq!(text.parse(), Ok(ticket));
        }
    }

    #[test]
    fn what_is_no_ticket_is_named() {
        let text = ticket(2, 2).to_string();
        let parse = |text: &str| text.parse::<LogTicket>();
        assert_eq!(parse("quorate1abc"), Err(ParseLogTicketError::NotATicket));
        assert_eq!(
            parse(&text[..text.len() - 1]),
            Err(ParseLogTicketError::Damaged)
        );
        assert_eq!(
            parse(&ticket(0, 0).to_string()),
            Err(ParseLogTicketError::NoMembers)
        );
        let long = format!("{}{}", LogTicket::PREFIX, "a".repeat(20_000));
        assert_eq!(
            parse(&long),
            Err(ParseLogTicketError::TooLong { bytes: 20_012 })
        );
    }

    /// As a text whose checksum is right.
    fn text_of(body: &[u8]) -> String {
        let body = [body, &check(body)].concat();
        let digits = BASE32_NOPAD.encode(&body).to_ascii_lowercase();
        format!("{}{digits}", LogTicket::PREFIX)
    }

    #[test]
    fn fuzzed_tickets() {
        use crate::fuzz::{Fuzz, Shape, bounded_by_serde};
        let plain = ticket(3, 2);
        let tickets = [ticket(1, 1), with_ways(&plain, 2), plain];
        let texts = tickets.map(|it| it.to_string());
        let body = |text: &String| unseal(&text[LogTicket::PREFIX.len()..]).expect("it is sound");
        let bodies: Vec<Vec<u8>> = texts.iter().map(body).collect();
        let read = |text: &str| {
            let parsed = bounded_by_serde(text.as_bytes(), || text.parse::<LogTicket>());
            if let Ok(ticket) = parsed {
                assert_eq!(ticket.to_string().parse(), Ok(ticket));
            }
        };
        let fuzz = Fuzz::new("tickets under a right checksum", Shape::Postcard, bodies);
        fuzz.run(|bytes| read(&text_of(bytes)));
        let fuzz = Fuzz::new("texts of tickets", Shape::Text, texts);
        fuzz.run(|bytes| read(&String::from_utf8_lossy(bytes)));
    }

    proptest! {
        #[test]
        fn any_changed_character_is_refused(at: prop::sample::Index, to in "[a-z2-7]") {
            let text = ticket(2, 2).to_string();
            let at = at.index(text.len());
            let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
            prop_assume!(changed != text);
            prop_assert!(changed.parse::<LogTicket>().is_err());
        }

        #[test]
        fn garbage_under_a_right_checksum_never_panics(mut body: Vec<u8>) {
            if let Some(version) = body.first_mut() {
                *version = 1 + *version % 2;
            }
            let _ = text_of(&body).parse::<LogTicket>();
        }
    }
}
