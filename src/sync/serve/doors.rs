//! Which members' doors are open, and where: each member says so in a note that the group shares,
//! and says it again every few seconds while it serves somebody.
//!
//! A door is heard of through the log, so one whose member has lost the quorum falls silent. A bond
//! alone says less: a member may be bonded and have no door, or none that serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::Shared;
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Expected, Line, LogError, Note, NoteError, NoteVersion},
    sync::{discovery::TransportInfo, member_addr::MemberAddr, ticket::within_limits},
};

const PREFIX: &[u8] = b"sync/door/";
/// Before a word that did not get through is said again.
const AGAIN: Duration = Duration::from_millis(500);
/// For a quorum to hear it.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// Doors that are remembered; a group has far fewer members.
const DOORS_MAX: usize = 256;

/// What a door says of itself. Frozen format, in postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Door {
    /// Its endpoint, and where it can be dialled.
    addr: PeerAddr,
    /// The same in the form that stock nodes pass on, signed by the door, for each line.
    infos: Vec<(Line, Bytes)>,
    /// The ways to it besides its endpoint, for our own clients: transports, and addresses.
    ways: Vec<(String, String)>,
}

impl Door {
    fn member(&self) -> MemberAddr {
        let quic = MemberAddr::from(self.addr.clone());
        let ways = self.ways.iter();
        ways.fold(quic, |it, (name, addr)| it.with(name, addr))
    }
}

/// A door as this member has last heard of it.
struct Heard {
    door: Door,
    version: NoteVersion,
    /// When it was seen to change, by this member's clock.
    at: Instant,
}

pub(super) struct Doors {
    /// A door that was not heard of for this long serves nobody.
    silence: Duration,
    known: Mutex<BTreeMap<PeerId, Heard>>,
    own: Mutex<Own>,
    /// Where all doors are, as our own clients are told.
    told: watch::Sender<Vec<MemberAddr>>,
}

/// What this member's own door has said.
#[derive(Default)]
struct Own {
    said: Option<(MemberAddr, Instant)>,
}

impl Doors {
    pub(super) fn new(silence: Duration) -> Self {
        Self {
            silence,
            known: Mutex::default(),
            own: Mutex::default(),
            told: watch::Sender::default(),
        }
    }

    /// Whether a member's door was heard of lately.
    pub(super) fn is_open(&self, member: PeerId) -> bool {
        let known = self.known();
        known
            .get(&member)
            .is_some_and(|it| it.at.elapsed() < self.silence)
    }

    /// Whether this endpoint is the door of another member, so no peer to be served.
    pub(super) fn is_door(&self, endpoint: PeerId) -> bool {
        let known = self.known();
        known.values().any(|it| it.door.addr.peer == endpoint)
    }

    /// Where the doors of these nodes are, those heard of lately first.
    fn of(&self, nodes: &BTreeSet<PeerId>) -> Vec<MemberAddr> {
        let known = self.known();
        let known = known.iter().filter(|(node, _)| nodes.contains(node));
        let mut doors: Vec<&Heard> = known.map(|(_, it)| it).collect();
        doors.sort_by_key(|it| it.at.elapsed() >= self.silence);
        doors.into_iter().map(|it| it.door.member()).collect()
    }

    /// Watches where all doors are: as many as a ticket has room for, sorted.
    pub(super) fn watch(&self) -> watch::Receiver<Vec<MemberAddr>> {
        self.told.subscribe()
    }

    /// What the doors of these nodes say of themselves, for stock nodes of a line to hear; one that
    /// was closed in good order says nothing. One that is invalid would make them forget ours.
    fn infos(&self, nodes: &BTreeSet<PeerId>, line: Line) -> BTreeMap<PeerId, TransportInfo> {
        let known = self.known();
        let known = known.iter().filter(|(node, _)| nodes.contains(node));
        let infos = known.filter_map(|(_, it)| {
            let peer = it.door.addr.peer;
            let (_, bytes) = it.door.infos.iter().find(|(of, _)| *of == line)?;
            let info = TransportInfo::from_bytes(line, bytes)?;
            info.verify(line, &peer).ok()?;
            Some((peer, info))
        });
        infos.collect()
    }

    /// Nobody was heard while there was no quorum: that is no silence of theirs.
    pub(super) fn forgive(&self) {
        let now = Instant::now();
        self.known().values_mut().for_each(|it| it.at = now);
    }

    /// When the next door falls silent, unless it is heard of before.
    pub(super) fn next_silence(&self) -> Option<Duration> {
        let known = self.known();
        let left = known
            .values()
            .filter_map(|it| self.silence.checked_sub(it.at.elapsed()));
        left.min()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<PeerId, Heard>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Takes in what doors have said since.
    pub(super) fn look_at_doors(&self) -> io::Result<()> {
        let of = |note: &Note| {
            let member = note.name.get(PREFIX.len()..)?;
            Some(PeerId::from_bytes(member.try_into().ok()?))
        };
        let (nodes, mut notes) = (self.nodes(), self.logs.notes(PREFIX)?);
        // What removed members have said does not crowd out what members say.
        notes.sort_by_key(|note| !of(note).is_some_and(|it| nodes.contains(&it)));
        let mut known = self.doors.known();
        let mut former = std::mem::take(&mut *known);
        for note in notes {
            let Some((member, door)) = of(&note).zip(decode(&note.value)) else {
                continue;
            };
            if member == self.here() || known.len() >= DOORS_MAX {
                continue;
            }
            let at = match former.remove(&member) {
                Some(heard) if heard.version == note.version => heard.at,
                _ => Instant::now(),
            };
            let version = note.version;
            known.insert(member, Heard { door, version, at });
        }
        drop(known);
        self.tell_of_doors();
        Ok(())
    }

    /// The doors of the other members that were heard of. What a member has said that was removed
    /// since stays in the notes.
    pub(super) fn other_doors(&self) -> Vec<MemberAddr> {
        self.doors.of(&self.nodes())
    }

    /// What they say of themselves, for stock nodes of a line.
    pub(super) fn other_infos(&self, line: Line) -> BTreeMap<PeerId, TransportInfo> {
        self.doors.infos(&self.nodes(), line)
    }

    /// The nodes of all members.
    fn nodes(&self) -> BTreeSet<PeerId> {
        let members = self.logs.group().status().members;
        members.iter().map(|it| it.peer).collect()
    }

    /// This member's door, and those of the others.
    pub(super) fn all_doors(&self) -> Vec<MemberAddr> {
        let others = self.other_doors().into_iter();
        std::iter::once(self.member_addr()).chain(others).collect()
    }

    /// Lets our own clients hear where the doors are, if that is news.
    fn tell_of_doors(&self) {
        let mut now = within_limits(self.all_doors());
        now.sort_by_key(MemberAddr::peer);
        self.doors.told.send_if_modified(|told| {
            let news = *told != now;
            *told = now;
            news
        });
    }

    /// Has the others hear of this door before they hear whom it serves. False if no quorum did.
    pub(super) async fn is_heard(&self) -> bool {
        let addr = self.member_addr();
        let fresh = {
            let own = self.doors.own();
            let said = own.said.as_ref();
            said.is_some_and(|(of, at)| *of == addr && at.elapsed() < self.patience.beat)
        };
        fresh || self.say(addr).await
    }

    async fn say(&self, addr: MemberAddr) -> bool {
        let infos = Line::ALL.map(|line| {
            let info = self.infos.of(line, addr.quic(), &self.secret);
            (line, info.to_bytes(line))
        });
        let ways = addr.ways();
        let door = Door {
            addr: addr.quic().clone(),
            infos: infos.into(),
            ways: ways
                .map(|(name, addr)| (name.into(), addr.into()))
                .collect(),
        };
        let at = Instant::now();
        // Plain values into memory cannot fail to encode.
        let value = postcard::to_stdvec(&door).unwrap_or_default();
        let said = self.write_door(Some(value.into())).await;
        match said {
            Ok(_) => self.doors.own().said = Some((addr, at)),
            Err(NoteError::Refused(why)) => {
                // No room: the others take its peers over, which costs them sessions, no data.
                tracing::warn!(%why, "the other members cannot be told of this door");
            }
            Err(NoteError::Logs(_)) => return false,
        }
        true
    }

    /// Tells the others that this door is closed.
    pub(super) async fn unsay(&self) {
        let said = self.doors.own().said.take().is_some();
        if said && let Err(error) = self.write_door(None).await {
            // They notice by themselves, later.
            tracing::debug!(%error, "the other members were not told that the door closes");
        }
    }

    async fn write_door(&self, value: Option<Bytes>) -> Result<NoteVersion, NoteError> {
        let name = [PREFIX, self.here().as_bytes()].concat();
        let writing = self.logs.note(name.into(), value, Expected::Any);
        let written = timeout(WRITE_MAX, writing).await;
        written.unwrap_or(Err(NoteError::Logs(LogError::Unknown)))
    }
}

/// Says that the door is open: once, when its address changes, and while it serves anybody.
pub(super) async fn beat(shared: Arc<Shared>) {
    let mut serving = shared.serving.subscribe();
    loop {
        if serving.wait_for(|it| *it).await.is_err() {
            return;
        }
        let addr = shared.member_addr();
        // Also where no note has changed: a member may have been removed.
        shared.tell_of_doors();
        let moved = shared.doors.own().said.as_ref().map(|it| &it.0) != Some(&addr);
        let said = !(moved || shared.claims.serve(shared.here())) || shared.say(addr).await;
        let beat = shared.patience.beat;
        sleep(if said { beat } else { AGAIN.min(beat) }).await;
    }
}

fn decode(value: &Bytes) -> Option<Door> {
    match postcard::take_from_bytes::<Door>(value) {
        Ok((door, [])) => Some(Door {
            addr: door.addr.capped(),
            ..door
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_read_as_it_was_written() {
        let door = Door {
            addr: PeerAddr::new(PeerId::from_bytes([1; 32]), [([127, 0, 0, 1], 4000).into()]),
            infos: vec![(Line::V07, Bytes::from_static(&[1, 2, 3]))],
            ways: vec![("http".into(), "http://127.0.0.1:80".into())],
        };
        let bytes = Bytes::from(postcard::to_stdvec(&door).expect("it is encodable"));
        assert_eq!(decode(&bytes), Some(door));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes.slice(..cut)), None);
        }
    }

    #[test]
    fn fuzzed_doors() {
        use crate::fuzz::{Fuzz, Shape, bounded_by_serde};
        let door = Door {
            addr: PeerAddr::new(PeerId::from_bytes([1; 32]), [([127, 0, 0, 1], 4000).into()]),
            infos: vec![(Line::V07, Bytes::from_static(&[1, 2, 3]))],
            ways: vec![("http".into(), "http://127.0.0.1:80".into())],
        };
        let bytes = postcard::to_stdvec(&door).expect("it is encodable");
        Fuzz::new("doors", Shape::Postcard, [bytes]).run(|bytes| {
            let value = Bytes::copy_from_slice(bytes);
            if let Some(it) = bounded_by_serde(bytes, || decode(&value)) {
                let again = postcard::to_stdvec(&it).expect("it is encodable");
                assert_eq!(decode(&again.into()), Some(it));
            }
        });
    }
}
