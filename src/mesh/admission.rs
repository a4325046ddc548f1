//! From the proof to the bond: both introduce themselves, both judge, the lower peer id decides.
//!
//! ```text
//!   both      Introduce ->                  then each asks its own group: admit?
//!   higher    Agree or Refuse ->            what it holds already
//!   lower     <- Accept, Redundant or Refuse
//! ```

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    group::Group,
    link::{Link, code},
};
use crate::{
    bond::{Bond, Introduce, MESSAGE_BYTES_MAX, Message, Proof, Proven, Refusal},
    net::BondStream,
};

/// How long it may take from the proof to the bond. Admitting may sync a genesis to the disk.
const ADMISSION_TIME: Duration = Duration::from_secs(5);

/// How long a refusal may take to reach the peer.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What the higher peer id holds already with the lower one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) link: Option<[u8; 16]>,
    pub(super) bond: Option<[u8; 16]>,
}

/// What the lower peer id finds too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redundant {
    /// The bond: there is one over this link.
    Bond,
    /// The link: another is kept.
    Link,
}

/// A peer that has proven the key and that both sides would bond with.
pub(super) struct Candidate {
    pub(super) proven: Proven,
    pub(super) theirs: Introduce,
    pub(super) stream: BondStream,
}

/// Takes a proven stream to its bond, or to the reason why there is none.
pub(super) async fn settle(
    group: &Arc<Group>,
    link: &Arc<Link>,
    proof: Proof,
    stream: BondStream,
) -> Result<Bond, NotBonded> {
    let settling = Settling {
        group,
        link,
        proof,
        stream,
    };
    let settled = timeout(ADMISSION_TIME, settling.run())
        .await
        .unwrap_or(Err(NotBonded::Slow));
    match &settled {
        Ok(_) | Err(NotBonded::Redundant) => {}
        Err(error) => {
            group.counters().handshakes_refused.add(1);
            tracing::info!(
                peer = %link.peer().short(),
                group = ?proof.group,
                %error,
                "a peer that holds the key is not bonded with"
            );
        }
    }
    settled
}

struct Settling<'a> {
    group: &'a Arc<Group>,
    link: &'a Arc<Link>,
    proof: Proof,
    stream: BondStream,
}

impl Settling<'_> {
    async fn run(mut self) -> Result<Bond, NotBonded> {
        self.say(&Message::Introduce(self.group.introduce())).await;
        let Message::Introduce(theirs) = self.hear().await? else {
            return Err(NotBonded::Unexpected);
        };
        if theirs.addr.peer != self.link.peer() {
            return Err(NotBonded::Unexpected);
        }
        let judged = self.judge(&theirs).await;
        if self.link.channel.local < self.link.peer() {
            self.decide(theirs, judged).await
        } else {
            self.follow(theirs, judged).await
        }
    }

    async fn judge(&self, theirs: &Introduce) -> Result<(), Refusal> {
        if !self.group.links().note_boot(self.link, theirs.boot) {
            return Err(Refusal::ClonedMember);
        }
        self.group
            .service()
            .admit(self.link.peer(), &theirs.member)
            .await
    }

    /// We are the lower peer id.
    async fn decide(
        mut self,
        theirs: Introduce,
        judged: Result<(), Refusal>,
    ) -> Result<Bond, NotBonded> {
        if let Err(refusal) = judged {
            return Err(self.refuse_and_hear(refusal).await);
        }
        let standing = match self.hear().await? {
            Message::Agree { link, bond } => Standing { link, bond },
            Message::Refuse(refusal) => return Err(self.refused(refusal)),
            _ => return Err(NotBonded::Unexpected),
        };
        let proven = self.proven(&theirs);
        let candidate = Candidate {
            proven,
            theirs,
            stream: self.stream,
        };
        match self.group.decide(self.link, standing, candidate) {
            Ok(bond) => Ok(bond),
            Err((no, stream)) => {
                self.stream = stream;
                let link = no == Redundant::Link;
                self.last(&Message::Redundant { link }).await;
                Err(NotBonded::Redundant)
            }
        }
    }

    /// We are the higher peer id.
    async fn follow(
        mut self,
        theirs: Introduce,
        judged: Result<(), Refusal>,
    ) -> Result<Bond, NotBonded> {
        if let Err(refusal) = judged {
            return Err(self.refuse_and_hear(refusal).await);
        }
        let Standing { link, bond } = self.group.standing(self.link.peer());
        self.say(&Message::Agree { link, bond }).await;
        match self.hear().await? {
            Message::Accept => {
                let proven = self.proven(&theirs);
                let candidate = Candidate {
                    proven,
                    theirs,
                    stream: self.stream,
                };
                self.group
                    .follow(self.link, candidate)
                    .ok_or(NotBonded::Closed)
            }
            Message::Refuse(refusal) => Err(self.refused(refusal)),
            Message::Redundant { link } => {
                if link {
                    self.link
                        .connection
                        .close(code::REDUNDANT, "another link is kept");
                }
                Err(NotBonded::Redundant)
            }
            _ => Err(NotBonded::Unexpected),
        }
    }

    fn proven(&self, theirs: &Introduce) -> Proven {
        Proven {
            peer: self.link.peer(),
            member: theirs.member.member,
            bond: self.proof.bond,
        }
    }

    fn refused(&self, refusal: Refusal) -> NotBonded {
        self.group.note_refusal(self.link.peer(), refusal);
        NotBonded::Refused(refusal)
    }

    /// Both sides tell their reasons: the people of each want to read the other's.
    async fn refuse_and_hear(&mut self, refusal: Refusal) -> NotBonded {
        self.last(&Message::Refuse(refusal)).await;
        match timeout(LAST_WORD, self.hear()).await {
            Ok(Ok(Message::Refuse(theirs))) => self.refused(theirs),
            _ => NotBonded::Refusing(refusal),
        }
    }

    async fn last(&mut self, message: &Message) {
        let _ = timeout(LAST_WORD, self.say(message)).await;
        self.stream.send.finish();
    }

    /// A message that cannot be sent is found out by the next one that should come.
    async fn say(&mut self, message: &Message) {
        match message.encode() {
            Ok(frame) => {
                let _ = self.stream.send.write_frame(frame).await;
            }
            Err(error) => tracing::error!(%error, "a message of our own is beyond its limits"),
        }
    }

    async fn hear(&mut self) -> Result<Message, NotBonded> {
        match self.stream.recv.read_frame(MESSAGE_BYTES_MAX).await {
            Ok(Some(frame)) if frame == crate::bond::REFUSAL => Err(NotBonded::ProofRefused),
            Ok(Some(frame)) => Message::decode(&frame).map_err(|_| NotBonded::Unexpected),
            Ok(None) => Err(NotBonded::Left("the peer ended the stream".into())),
            Err(error) => Err(NotBonded::Left(error.to_string())),
        }
    }
}

/// Why a proof did not lead to a bond.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotBonded {
    /// There is another bond, or is about to be.
    #[error("there is a bond already")]
    Redundant,
    #[error("we refused: {0}")]
    Refusing(Refusal),
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    #[error("the peer did not accept our proof of the key")]
    ProofRefused,
    #[error("the peer broke the protocol")]
    Unexpected,
    #[error("the peer left: {0}")]
    Left(String),
    #[error("it took too long from the proof to the bond")]
    Slow,
    #[error("the group is closed here")]
    Closed,
}
