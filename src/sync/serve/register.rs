//! Tells the group how it went with peers: seldom, since each word costs a command.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::Shared;
use crate::{
    identity::{PeerAddr, PeerId},
    log_store::{Expected, LogError, Note, NoteError, NoteRefused},
    sync::outsiders::{self, Entry, Noted, REGISTER_MAX, Went},
};

/// Between two looks at what is to be told.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two words about a peer with which it goes as before, and where it goes another way.
const SAME: Duration = Duration::from_secs(60);
const OTHER: Duration = Duration::from_secs(5);
/// Words at each look, so twice as many a second.
const WORDS_MAX: usize = 8;
/// Peers about whom there is something to tell, or was lately.
const PEERS_MAX: usize = 4_096;
/// A peer without a name that was not heard of for this long gives way to another one.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);
/// For a quorum to hear it.
const WRITE_MAX: Duration = Duration::from_secs(2);
const TRIES: usize = 3;

/// What is to be told about peers.
#[derive(Default)]
pub(super) struct Register {
    peers: Mutex<BTreeMap<PeerId, Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Not told yet.
    news: Option<News>,
    /// What was told last, and when.
    told: Option<(Instant, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    addr: PeerAddr,
    went: Went,
    at_ms: u64,
}

impl Register {
    /// A session with a peer went well, or did not.
    pub(super) fn saw(&self, addr: PeerAddr, went: Went, at_ms: u64) {
        let mut peers = self.locked();
        if !peers.contains_key(&addr.peer) && peers.len() >= PEERS_MAX {
            return;
        }
        let seen = peers.entry(addr.peer).or_default();
        seen.news = Some(News { addr, went, at_ms });
    }

    /// What is due to be told, of a few peers: those first that were not told of for the longest
    /// time.
    fn due(&self, now: Instant) -> Vec<(PeerId, News)> {
        let mut peers = self.locked();
        peers.retain(|_, it| it.news.is_some() || it.told.is_some_and(|(at, _)| now < at + SAME));
        let is_due = |seen: &Seen| {
            let Some(news) = &seen.news else {
                return false;
            };
            seen.told.is_none_or(|(at, well)| {
                let same = well == (news.went == Went::Well);
                now >= at + if same { SAME } else { OTHER }
            })
        };
        let mut due: Vec<_> = peers.iter_mut().filter(|it| is_due(it.1)).collect();
        due.sort_by_key(|(_, seen)| seen.told.map(|it| it.0));
        due.truncate(WORDS_MAX);
        let due = due.into_iter().filter_map(|(peer, seen)| {
            let news = seen.news.take()?;
            seen.told = Some((now, news.went == Went::Well));
            Some((*peer, news))
        });
        due.collect()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<PeerId, Seen>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Notes how a session with a peer went, for the group to know in a while.
    pub(super) fn registers(&self, peer: PeerId, wrong: Option<String>) {
        let addr = self.peers.addr(peer);
        let went = wrong.map_or(Went::Well, Went::Wrong);
        self.register.saw(addr, went, outsiders::now_ms());
    }

    /// Tells the group. If it fails the next session tells it again.
    async fn tell(&self, peer: PeerId, news: &News) -> Result<(), NoteError> {
        let name = outsiders::entry_name(peer);
        for _ in 0..TRIES {
            let notes = self.notes_of(name.clone()).await?;
            let held = notes.into_iter().next();
            let (mut entry, expected) = match held {
                Some(note) => {
                    let entry = match outsiders::decode::<Entry>(&note.value) {
                        Noted::Known(entry) => entry,
                        // Of a later version, maybe: it is not ours to replace.
                        Noted::Unreadable => return Ok(()),
                    };
                    (entry, Expected::Changed(note.version))
                }
                None if self.has_room().await? => (Entry::new(peer), Expected::Absent),
                None => return Ok(()),
            };
            entry.saw(&news.addr, &news.went, news.at_ms);
            let value = Some(outsiders::encode(&entry));
            let writing = self.logs.note(name.clone(), value, expected);
            let written = timeout(WRITE_MAX, writing).await;
            match written.unwrap_or(Err(NoteError::Logs(LogError::Unknown))) {
                Err(NoteError::Refused(NoteRefused::Changed { .. })) => {}
                written => return written.map(drop),
            }
        }
        Ok(())
    }

    async fn notes_of(&self, prefix: Bytes) -> Result<Vec<Note>, NoteError> {
        let logs = self.logs.clone();
        let reading = tokio::task::spawn_blocking(move || logs.notes(&prefix)).await;
        let notes = reading.map_err(io::Error::other).flatten();
        Ok(notes.map_err(LogError::from)?)
    }

    /// Whether one more peer fits, be it for the one that was not heard of for the longest time.
    async fn has_room(&self) -> Result<bool, NoteError> {
        let notes = self
            .notes_of(Bytes::from_static(outsiders::register_prefix()))
            .await?;
        if notes.len() < REGISTER_MAX {
            return Ok(true);
        }
        let entries = notes.into_iter().filter_map(|note| {
            let Noted::Known(entry) = outsiders::decode::<Entry>(&note.value) else {
                return None;
            };
            entry.name.is_none().then(|| (entry.last_ms(), note))
        });
        let oldest = entries.min_by_key(|(last, _)| *last);
        let long_ago = FORGOTTEN_AFTER.as_millis() as u64;
        let Some((last, note)) = oldest else {
            return Ok(false);
        };
        if last.saturating_add(long_ago) > outsiders::now_ms() {
            return Ok(false);
        }
        let expected = Expected::Changed(note.version);
        let removing = self.logs.note(note.name, None, expected);
        let removed = timeout(WRITE_MAX, removing).await;
        removed
            .unwrap_or(Err(NoteError::Logs(LogError::Unknown)))
            .map(|_| true)
    }
}

/// Tells the group what there is to tell, until the door closes.
pub(super) async fn tell(shared: Arc<Shared>) {
    let mut serving = shared.serving.subscribe();
    loop {
        sleep(PAUSE).await;
        if serving.wait_for(|it| *it).await.is_err() {
            return;
        }
        for (peer, news) in shared.register.due(Instant::now()) {
            if let Err(error) = shared.tell(peer, &news).await {
                tracing::debug!(peer = %peer.short(), %error, "the group does not know of a peer");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(at: usize) -> PeerAddr {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&at.to_be_bytes());
        PeerAddr::new(PeerId::from_bytes(id), [])
    }

    fn wrong() -> Went {
        Went::Wrong("no".to_owned())
    }

    #[test]
    fn a_peer_is_told_of_once_a_minute_unless_it_goes_another_way() {
        let register = Register::default();
        let start = Instant::now();
        let told = |after: u64, went: Went| {
            register.saw(addr(1), went, after);
            let due = register.due(start + Duration::from_secs(after));
            due.into_iter().map(|(_, it)| it.went).collect::<Vec<_>>()
        };
        assert_eq!(told(0, Went::Well), [Went::Well]);
        assert_eq!(told(1, Went::Well), []);
        assert_eq!(told(2, wrong()), [], "not that soon");
        assert_eq!(told(5, wrong()), [wrong()]);
        assert_eq!(told(6, wrong()), []);
        assert_eq!(told(64, wrong()), []);
        assert_eq!(told(65, wrong()), [wrong()]);
        assert_eq!(told(70, Went::Well), [Went::Well]);
        assert_eq!(register.due(start + Duration::from_secs(129)), []);
        assert_eq!(register.locked().len(), 1);
        assert_eq!(register.due(start + Duration::from_secs(130)), []);
        assert!(
            register.locked().is_empty(),
            "there is nothing left to tell"
        );
    }

    #[test]
    fn few_are_told_of_at_a_time_and_all_in_the_end() {
        let register = Register::default();
        let now = Instant::now();
        for at in 0..PEERS_MAX + 10 {
            register.saw(addr(at), Went::Well, 7);
        }
        let mut told = 0;
        loop {
            let due = register.due(now).len();
            assert!(due <= WORDS_MAX);
            told += due;
            if due == 0 {
                break;
            }
        }
        assert_eq!(told, PEERS_MAX);
    }

    #[test]
    fn nobody_waits_behind_those_who_were_told_of_already() {
        let register = Register::default();
        let start = Instant::now();
        for at in 0..3 * WORDS_MAX {
            register.saw(addr(at), Went::Well, 7);
        }
        let mut told = Vec::new();
        for round in 0..3 {
            // The first are due again before the last have had a turn.
            let due = register.due(start + SAME * round);
            told.extend(due.into_iter().map(|it| it.0));
            for at in 0..3 * WORDS_MAX {
                register.saw(addr(at), Went::Well, 8);
            }
        }
        let all: std::collections::BTreeSet<_> = told.iter().collect();
        assert_eq!(all.len(), told.len(), "each once before any twice");
    }
}
