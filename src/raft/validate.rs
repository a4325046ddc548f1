//! Asking the machine about commands before they are taken from another member: beside the apply
//! loop, off the runtime's threads unless the machine says that it is not long, and once for each
//! command.
//!
//! ```text
//! follower   append  -> decoded -> validated, two ahead -> openraft -> journal -> answered
//! leader     forward -> decoded -> validated, many at once -> in the order they came -> proposed
//! proposer   execute -> validated -> packed into an entry, whose hash is remembered
//! ```
//!
//! What has been found good is remembered by the hash of the whole entry: an entry that was
//! proposed here comes back as an append, and one whose stream broke comes again.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use openraft::{EntryPayload, raft::AppendEntriesRequest};
use tokio::sync::{Semaphore, oneshot};

use super::{Batch, Types, Vote, replica::Replica};
use crate::{
    identity::MemberId,
    machine::{InvalidCommand, ValidateCommand},
};

/// Appends of one stream that are validated while the one before is taken.
pub(super) const APPENDS_AHEAD: usize = 2;
/// Threads of a group that validate at a time. The machine may start more, one a core.
const RUNNING_MAX: usize = 4;
/// Of those, how many validate what is to be proposed here. Callers wait for each other, however
/// many there are, and not in the way of what a leader or a follower sends.
const PROPOSING_MAX: usize = RUNNING_MAX / 2;
/// Entries whose hash is remembered: some times what one member may have under way.
const REMEMBERED_MAX: usize = 1_024;

/// What asks the machine of one group. Clones share what is remembered.
#[derive(Clone)]
pub(crate) struct Validator {
    ask: ValidateCommand,
    good: Arc<Mutex<Good>>,
    running: Arc<Semaphore>,
    proposing: Arc<Semaphore>,
}

/// The hashes of entries found good, and the order they came in.
///
/// # Invariants
/// - Both hold the same, at most [`REMEMBERED_MAX`].
#[derive(Default)]
struct Good {
    hashes: HashSet<blake3::Hash>,
    order: VecDeque<blake3::Hash>,
}

impl Validator {
    pub(super) fn new(ask: ValidateCommand) -> Self {
        Self {
            ask,
            good: Arc::default(),
            running: Arc::new(Semaphore::new(RUNNING_MAX)),
            proposing: Arc::new(Semaphore::new(PROPOSING_MAX)),
        }
    }

    /// Validates commands that are to be proposed here, in one go: says which is the first that is
    /// refused, and why. Those behind it are not asked about.
    pub(crate) async fn commands(&self, commands: Vec<Bytes>) -> Option<(usize, InvalidCommand)> {
        let bytes = commands.iter().map(Bytes::len).sum();
        if commands.is_empty() {
            return None;
        }
        let ask = self.ask.ask;
        let first = move || {
            let mut answers = commands.iter().map(|it| ask(it)).enumerate();
            answers.find_map(|(at, valid)| Some((at, valid.err()?)))
        };
        let asked = self.run(Some(&self.proposing), bytes, first).await;
        asked.unwrap_or_else(|why| Some((0, why)))
    }

    /// Notes an entry whose commands were validated here before they were packed.
    pub(super) fn vouch(&self, entry: &Bytes) {
        self.good().insert(blake3::hash(entry));
    }

    /// Validates entries that another member sent, unless that was done before.
    pub(super) async fn entries(&self, entries: Vec<Bytes>) -> Result<(), InvalidCommand> {
        let bytes = entries.iter().map(Bytes::len).sum();
        let validator = self.clone();
        let all = move || entries.iter().try_for_each(|it| validator.entry(it));
        self.run(None, bytes, all).await?
    }

    fn entry(&self, entry: &Bytes) -> Result<(), InvalidCommand> {
        // The form of an entry is equal at all members that let each other in: whatever program it
        // is, none proposes one that another cannot read. Were it taken, all would stop over it.
        let commands = match Batch::decode(entry) {
            Ok(Batch::Commands { commands, .. }) => commands,
            Ok(Batch::Open) => return Ok(()),
            Err(error) => return Err(InvalidCommand::new(error.to_string())),
        };
        let hash = blake3::hash(entry);
        if self.good().hashes.contains(&hash) {
            return Ok(());
        }
        commands.iter().try_for_each(|it| (self.ask.ask)(it))?;
        self.good().insert(hash);
        Ok(())
    }

    /// Runs it here if it is short, else on a blocking thread, once there is room: first among its
    /// like, then among all. An error if it panics there.
    async fn run<T: Send + 'static>(
        &self,
        alike: Option<&Arc<Semaphore>>,
        bytes: usize,
        ask: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, InvalidCommand> {
        if bytes < self.ask.inline_below {
            return Ok(ask());
        }
        // Never closed. Held until it is through, also if nobody waits for it any more.
        let first = match alike {
            Some(alike) => Some(Arc::clone(alike).acquire_owned().await),
            None => None,
        };
        let room = (first, Arc::clone(&self.running).acquire_owned().await);
        let asking = tokio::task::spawn_blocking(move || {
            let _room = room;
            ask()
        });
        match asking.await {
            Ok(valid) => Ok(valid),
            Err(error) if error.is_panic() => Err(InvalidCommand::panicked()),
            // The runtime is shutting down, and who waits here with it: nothing is decided.
            Err(_) => std::future::pending().await,
        }
    }

    fn good(&self) -> MutexGuard<'_, Good> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Good {
    fn insert(&mut self, hash: blake3::Hash) {
        if !self.hashes.insert(hash) {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }
}

/// The order of the entries that other members forward, while they are validated.
#[derive(Default)]
pub(super) struct Turns(Mutex<BTreeMap<MemberId, oneshot::Receiver<()>>>);

/// One entry's place behind the one before it; the next may go on when it is dropped.
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _next: oneshot::Sender<()>,
}

impl Turns {
    /// The place behind the last one of the same member.
    pub(super) fn take(&self, from: MemberId) -> Turn {
        let (next, waiting) = oneshot::channel();
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = turns.insert(from, waiting);
        // No more of them than members that have something under way.
        turns.retain(|_, it| matches!(it.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        Turn {
            before,
            _next: next,
        }
    }
}

impl Turn {
    /// Returns once the one before is through, or given up.
    pub(super) async fn come(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = before.await;
        }
    }
}

impl Replica {
    /// Validates what a leader sends; a refusal is noted, and the leader is heard no more.
    pub(super) async fn validate_append(
        &self,
        request: &AppendEntriesRequest<Types>,
    ) -> Result<(), InvalidCommand> {
        let Some(validator) = self.validator() else {
            return Ok(());
        };
        let commands = |it: &super::Entry| match &it.payload {
            EntryPayload::Normal(command) => Some(command.0.clone()),
            _ => None,
        };
        let entries: Vec<Bytes> = request.entries.iter().filter_map(commands).collect();
        if entries.is_empty() {
            return Ok(());
        }
        let valid = validator.entries(entries).await;
        if let Err(why) = &valid
            && self.stopped().is_none()
        {
            self.refuse_leader(&request.vote, why);
        }
        valid
    }

    /// Notes that a member sent what the machine refuses.
    pub(super) fn note_invalid(&self, from: MemberId, why: &InvalidCommand) {
        let group = self.record().id;
        tracing::error!(%group, member = %from, %why, "a member sent an invalid command");
        self.counters().invalid_commands.add(1);
        self.tell(|it| it.invalid_commands += 1);
    }

    /// Takes nothing more of a leader in its term, and has another one elected: if most others
    /// have met the same, what it sent is not committed and will be gone.
    fn refuse_leader(&self, vote: &Vote, why: &InvalidCommand) {
        let leader = vote.leader_id.voted_for;
        let state = self.state();
        let leading = state.leader.map(|it| (state.term, it));
        // Appends that were validated at once are refused at once: told once.
        if self
            .refused()
            .refuse((vote.leader_id.term, leader), leading)
        {
            self.note_invalid(leader, why);
            self.lost_member(leader);
        }
    }

    /// Whether this member, as the leader of this term, has sent what the machine refuses.
    pub(super) fn refuses_leader(&self, term: u64, leader: MemberId) -> bool {
        self.refused().refuses((term, leader))
    }
}

/// A vote by which a member leads, or says so: its term and the member.
type Leading = (u64, MemberId);

/// The leader that nothing more is taken from in its term.
///
/// Whoever has a bond may send an append under any vote of its own, before openraft judges whether
/// it leads. So the member is remembered with the term: what one claims silences nobody else.
#[derive(Debug, Default)]
pub(super) struct RefusedLeader(Mutex<Option<Leading>>);

impl RefusedLeader {
    /// Remembers what is refused, and says whether that is news. The one that is refused and leads
    /// stays so: neither another's word nor its own under another term has it heard again.
    fn refuse(&self, refused: Leading, leading: Option<Leading>) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *held != Some(refused);
        if held.is_none() || *held != leading {
            *held = Some(refused);
        }
        news
    }

    fn refuses(&self, vote: Leading) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) == Some(vote)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use super::*;

    const INLINE_BELOW: usize = 1_024;

    fn validator(ask: fn(&[u8]) -> Result<(), InvalidCommand>) -> Validator {
        Validator::new(ValidateCommand {
            ask,
            inline_below: INLINE_BELOW,
        })
    }

    fn entry(first_seq: u64, command: &'static [u8]) -> Bytes {
        let commands = [&b"good"[..], command].map(Bytes::from_static);
        entry_of(first_seq, commands.to_vec())
    }

    fn entry_of(first_seq: u64, commands: Vec<Bytes>) -> Bytes {
        let batch = Batch::Commands {
            session: 1,
            first_seq,
            lowest_unanswered: 0,
            commands,
        };
        batch.encode()
    }

    /// A command longer than what is asked about where it arrives.
    fn long(first: &[u8]) -> Bytes {
        [first, &[7; 4 * INLINE_BELOW]].concat().into()
    }

    /// Refuses what is not good.
    fn ask(command: &[u8]) -> Result<(), InvalidCommand> {
        if command.starts_with(b"good") {
            return Ok(());
        }
        Err(InvalidCommand::new("bad"))
    }

    #[tokio::test]
    async fn entries_are_asked_about_once_and_refused_each_time() {
        let validator = validator(ask);
        let (good, bad) = (entry(0, b"good too"), entry(0, b"bad"));
        for _ in 0..2 {
            validator.entries(vec![good.clone()]).await.expect("good");
            let refused = validator.entries(vec![good.clone(), bad.clone()]).await;
            assert_eq!(refused, Err(InvalidCommand::new("bad")));
        }
        assert_eq!(validator.good().order.len(), 1);
        // What was validated before it was packed is not asked about: here, a lie shows it.
        validator.vouch(&bad);
        validator.entries(vec![bad]).await.expect("vouched for");
        // Only the very same bytes are known.
        let other = validator.entries(vec![entry(1, b"bad")]).await;
        assert_eq!(other, Err(InvalidCommand::new("bad")));
    }

    #[tokio::test]
    async fn an_entry_that_is_none_is_refused() {
        let validator = validator(ask);
        let good = entry(0, b"good too");
        let opens = Batch::Open.encode();
        validator
            .entries(vec![opens, good.clone()])
            .await
            .expect("good");
        for bad in [
            good.slice(..good.len() - 1),
            Bytes::new(),
            Bytes::from_static(b"good"),
        ] {
            let refused = validator.entries(vec![bad]).await;
            refused.expect_err("what no member could apply was taken");
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let validator = validator(ask);
        for seq in 0..3 * REMEMBERED_MAX as u64 {
            validator.vouch(&entry(seq, b"good"));
        }
        let good = validator.good();
        assert_eq!(good.hashes.len(), REMEMBERED_MAX);
        assert_eq!(good.order.len(), REMEMBERED_MAX);
    }

    #[tokio::test]
    async fn long_commands_are_asked_about_too() {
        let validator = validator(ask);
        let good = validator.commands(vec![long(b"good"); 3]).await;
        assert_eq!(good, None);
        let refused = validator.commands(vec![long(b"bad")]).await;
        assert_eq!(refused, Some((0, InvalidCommand::new("bad"))));
    }

    #[tokio::test]
    async fn the_runtime_is_held_up_only_by_what_the_machine_calls_short() {
        /// Whether the runtime was free while each was asked about: its one thread is the test's.
        static FREE: Mutex<Vec<bool>> = Mutex::new(Vec::new());
        thread_local! {
            static THE_RUNTIMES: Cell<bool> = const { Cell::new(false) };
        }
        THE_RUNTIMES.set(true);
        let ask = |_: &[u8]| {
            let free = !THE_RUNTIMES.get();
            FREE.lock().expect("nobody panicked").push(free);
            Ok(())
        };
        let short = Bytes::from_static(b"short");
        for (inline_below, free) in [(0, true), (5, true), (6, false)] {
            let validator = Validator::new(ValidateCommand { ask, inline_below });
            assert_eq!(validator.commands(vec![short.clone()]).await, None);
            let asked = std::mem::take(&mut *FREE.lock().expect("nobody panicked"));
            assert_eq!(asked, [free], "below {inline_below}");
        }
        // However short a command is, many of them are not.
        let many = vec![short; INLINE_BELOW / 5 + 1];
        assert_eq!(validator(ask).commands(many).await, None);
        let asked = std::mem::take(&mut *FREE.lock().expect("nobody panicked"));
        assert!(asked.iter().all(|it| *it));
        // Of nothing at all, too, if the machine has not said so.
        let validator = Validator::new(ValidateCommand {
            ask,
            inline_below: 0,
        });
        assert_eq!(validator.commands(vec![Bytes::new()]).await, None);
        assert_eq!(*FREE.lock().expect("nobody panicked"), [true]);
    }

    #[tokio::test]
    async fn commands_are_asked_about_up_to_the_first_that_is_refused() {
        static ASKED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let validator = validator(|command| {
            ASKED.lock().expect("nobody panicked").extend(command);
            ask(command)
        });
        let commands = [&b"good"[..], b"good too", b"bad", b"worse"];
        let commands = commands.map(Bytes::from_static).to_vec();
        let refused = validator.commands(commands).await;
        assert_eq!(refused, Some((2, InvalidCommand::new("bad"))));
        assert_eq!(*ASKED.lock().expect("nobody panicked"), b"goodgood toobad");
        assert_eq!(validator.commands(Vec::new()).await, None);
    }

    #[tokio::test]
    async fn what_others_send_does_not_wait_for_the_callers_here() {
        /// Held while the callers' checks are to last.
        static LAST: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let validator = validator(|command| {
            if command.starts_with(b"slow") {
                drop(LAST.blocking_lock());
            }
            Ok(())
        });
        let mut callers = Vec::new();
        {
            let _last = LAST.lock().await;
            for _ in 0..3 * RUNNING_MAX {
                callers.push(Box::pin(validator.commands(vec![long(b"slow")])));
                let waits = futures_util::poll!(callers.last_mut().expect("one"));
                assert!(waits.is_pending());
            }
            let sent = validator.entries(vec![entry_of(0, vec![long(b"quick")])]);
            let sent = tokio::time::timeout(Duration::from_secs(30), sent).await;
            sent.expect("stuck behind the callers").expect("good");
        }
        for caller in callers {
            assert_eq!(caller.await, None);
        }
    }

    #[tokio::test]
    async fn a_check_that_panics_on_its_thread_is_a_refusal_and_nobody_waits_for_ever() {
        let validator = validator(|_| panic!("as the test wants it"));
        let asking = async {
            let refused = validator.commands(vec![long(b"any")]).await;
            assert_eq!(refused, Some((0, InvalidCommand::panicked())));
            let refused = validator
                .entries(vec![entry_of(0, vec![long(b"any")])])
                .await;
            assert_eq!(refused, Err(InvalidCommand::panicked()));
        };
        let asked = tokio::time::timeout(Duration::from_secs(30), asking).await;
        asked.expect("nobody answered");
    }

    #[tokio::test]
    async fn turns_come_in_the_order_they_were_taken_whoever_is_ready_first() {
        let turns = Turns::default();
        let member = MemberId::from(1);
        let (mut first, mut second) = (turns.take(member), turns.take(member));
        let mut other = turns.take(MemberId::from(2));
        first.come().await;
        other.come().await;
        {
            let mut waiting = std::pin::pin!(second.come());
            assert!(futures_util::poll!(&mut waiting).is_pending());
            // Given up is through, too.
            drop(first);
            waiting.await;
        }
        drop((second, other));
        turns.take(member).come().await;
        // Its own place is the only one left.
        assert_eq!(turns.0.lock().expect("nobody panicked").len(), 1);
    }

    #[test]
    fn a_claim_silences_nobody_else_and_brings_back_nobody() {
        let refused = RefusedLeader::default();
        let (leader, liar) = (MemberId::from(1), MemberId::from(2));
        let leads = Some((7, leader));
        assert!(refused.refuse((7, liar), leads));
        assert!(!refused.refuse((7, liar), leads), "told once");
        assert!(refused.refuses((7, liar)) && !refused.refuses((7, leader)));
        // A term that nobody reaches is no shield against what comes later.
        assert!(refused.refuse((u64::MAX / 4, liar), leads));
        assert!(refused.refuse((7, leader), leads));
        // Nothing that is claimed has it heard again while it leads.
        for claimed in [(6, leader), (8, leader), (7, liar)] {
            assert!(refused.refuse(claimed, leads), "and each is told");
            assert!(refused.refuses((7, leader)), "{claimed:?}");
        }
        // Under the next one it is no matter any more.
        assert!(refused.refuse((8, liar), Some((8, liar))));
        assert!(refused.refuses((8, liar)) && !refused.refuses((7, leader)));
    }
}
