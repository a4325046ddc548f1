//! The member's half of our own client's protocol, over any byte stream.
//!
//! ```text
//! Pull   read index -> Heads -> Run ... -> CaughtUp -> follow: on each commit  Run ... -> CaughtUp
//!        after Heads, and whenever it changes: Members
//! Push   read index -> Batch -> committed by a quorum -> Committed -> Batch ... -> End
//!        meanwhile, every few seconds: Wait; first, and whenever it changes: Members
//! ```
//!
//! One page of a log is in memory while the one before it is being written; the stream's own window
//! is the only queue. The disk is read on blocking threads.

mod pull;
mod push;
mod told;

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use self::told::Told;
pub(crate) use self::{push::PUSHED_MIN, told::AtDoor};
use super::{
    frames::{FRAME_MAX, Frame, LOGS_MAX, Opening, STRANGER_FRAME_MAX},
    outcome::Denied,
    stream::{self, FrameReader, StreamFault, at_slowest},
};
use crate::log_store::{LogError, Logs, Topic};

/// What one session may cost, and how long it may keep still.
///
/// A slow link is no fault: these times are about something moving, be it a byte. Only who moves
/// less than 8 KiB a second of one message for longer than such a time is taken for one that keeps
/// still.
///
/// ```
/// use std::time::Duration;
/// use quorate::sync::{LogServerOptions, ServeLimits};
///
/// let limits = ServeLimits {
///     stalled_after: Duration::from_secs(20),
///     pushed_per_second: 1_000,
///     ..ServeLimits::default()
/// };
/// let options = LogServerOptions { limits, ..LogServerOptions::default() };
/// assert_eq!(options.limits.logs_max, 65_536);
/// ```
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// How long a client that says what it wants may pause. Default 10 s.
    pub request_within: Duration,
    /// How long the group may take to confirm what is committed. Default 2 s.
    pub confirm_within: Duration,
    /// How long a client may take nothing of what is sent. It resumes where it was, so this may be
    /// short. Default 60 s.
    pub stalled_after: Duration,
    /// How long a pushing client may send nothing. Default 60 s.
    pub silent_after: Duration,
    /// How often a follower is told that there is no news, and who pushes that it is being served.
    /// Default 5 s; at least 1 s and at most 10 s, whatever is given: who hears it more often takes
    /// it for an attack, and who hears nothing for 15 s asks another member.
    pub heartbeat: Duration,
    /// The most logs that a request may name, at most 65,536. Default 65,536.
    pub logs_max: usize,
    /// Operations a second that one session may push; more wait. Default 100,000; at least 8,
    /// whatever is given: a client waits for its turn for ten minutes at the most.
    pub pushed_per_second: u32,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            request_within: Duration::from_secs(10),
            confirm_within: Duration::from_secs(2),
            stalled_after: Duration::from_secs(60),
            silent_after: Duration::from_secs(60),
            heartbeat: Duration::from_secs(5),
            logs_max: LOGS_MAX,
            pushed_per_second: 100_000,
        }
    }
}

impl ServeLimits {
    fn heartbeat(&self) -> Duration {
        self.heartbeat.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX)
    }
}

/// Within these, clients put up with it.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
const HEARTBEAT_MAX: Duration = Duration::from_secs(10);

/// What a client wants with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// To read it.
    Pull,
    /// To append to it.
    Push,
}

/// Which logs hold a topic, if this client may have that access to it.
pub type Admit = Arc<dyn Fn(Topic, Access) -> Result<Logs, Denied> + Send + Sync>;

/// Serves one stream that a client has opened with [`pull()`](super::pull()) or
/// [`push()`](super::push()), to its end. Dropping it ends the session.
///
/// For who carries the streams: [`LogServer`](super::LogServer) does it over QUIC.
///
/// # Errors
/// Why it ended early. The client has been told, where that was still possible.
pub async fn serve_logs<R, W>(
    stream: (R, W),
    logs: &Admit,
    limits: &ServeLimits,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    serve_at(stream, logs, limits, None).await
}

/// As [`serve_logs`], at a door, and until the client has what was said last. `gone` is ready once
/// it has that, and before only if it will never be heard of again: then the session ends.
pub(crate) async fn serve_carried<R, W>(
    stream: (R, W),
    logs: &Admit,
    limits: &ServeLimits,
    door: Option<&AtDoor>,
    gone: impl Future<Output = ()> + Send,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    tokio::pin!(gone);
    let served = tokio::select! {
        biased;
        served = serve_at(stream, logs, limits, door) => served,
        () = &mut gone => return Err(ServeError::Lost {
            why: "it has closed the connection".to_owned(),
        }),
    };
    if let Some(within) = goodbye_within(&served) {
        let _ = timeout(within, gone).await;
    }
    served
}

/// How long the client may take to read what was said last, and to leave; `None` if it is not
/// waited for.
fn goodbye_within(served: &Result<(), ServeError>) -> Option<Duration> {
    match served {
        Ok(()) => Some(GOODBYE.saturating_add(at_slowest(ON_ITS_WAY))),
        Err(ServeError::Stalled | ServeError::Lost { .. } | ServeError::QuorumLost) => None,
        Err(_) => Some(GOODBYE),
    }
}

/// Turns a client away whose stream there is no place to serve.
pub(crate) async fn refuse<R, W: AsyncWrite + Unpin>(
    (read, mut write): (R, W),
    why: Denied,
    gone: impl Future<Output = ()>,
) {
    tell(&mut write, &ServeError::denied(why)).await;
    drop((read, write));
    let _ = timeout(GOODBYE, gone).await;
}

/// How long a client's goodbye may take, once it has all that was sent.
const GOODBYE: Duration = Duration::from_secs(5);
/// What a stream may have taken that the client has not: what the windows of a transport hold.
pub(crate) const ON_ITS_WAY: usize = 4 * 1024 * 1024;

async fn serve_at<R, W>(
    (read, mut write): (R, W),
    logs: &Admit,
    limits: &ServeLimits,
    door: Option<&AtDoor>,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let mut reader = FrameReader::new(read, STRANGER_FRAME_MAX);
    let served = session(&mut reader, &mut write, (logs, door), limits).await;
    match &served {
        // Much of what was sent last may still be before it.
        Ok(()) => drop(timeout(at_slowest(ON_ITS_WAY), write.shutdown()).await),
        Err(error) => tell(&mut write, error).await,
    }
    served
}

/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Says why it ends, where that is still possible.
async fn tell<W: AsyncWrite + Unpin>(write: &mut W, error: &ServeError) {
    if let Some((why, text)) = error.told() {
        let refused = Frame::Refused { why, text }.encode();
        let _ = timeout(FAREWELL, stream::write(write, &refused, FAREWELL)).await;
    }
    let _ = timeout(FAREWELL, write.shutdown()).await;
}

async fn session<R, W>(
    reader: &mut FrameReader<R>,
    write: &mut W,
    (admit, door): (&Admit, Option<&AtDoor>),
    limits: &ServeLimits,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let mut admitted = None;
    // Whoever is not let in has no more than that held for it, whatever it sends.
    if let Opening::Pull(topic) = reader.opening(limits.request_within).await? {
        admitted = Some(admit(topic, Access::Pull).map_err(ServeError::denied)?);
        reader.limit(FRAME_MAX);
    }
    match reader.next_frame(limits.request_within).await? {
        None => Ok(()),
        Some(Frame::Pull(request)) => {
            if request.have.len() > limits.logs_max {
                return Err(ServeError::denied(Denied::TooManyLogs));
            }
            let logs = match admitted {
                Some(logs) => logs,
                None => admit(request.topic, Access::Pull).map_err(ServeError::denied)?,
            };
            reader.limit(FRAME_MAX);
            pull::serve(reader, write, (logs, Told::of(door)), request, limits).await
        }
        Some(Frame::Push { topic, line }) => {
            let logs = admit(topic, Access::Push).map_err(ServeError::denied)?;
            reader.limit(FRAME_MAX);
            push::serve(reader, write, (logs, door), (topic, line), limits).await
        }
        Some(other) => Err(ServeError::unexpected(other.name())),
    }
}

/// Writes a frame, unless the client takes nothing for too long.
async fn send<W: AsyncWrite + Unpin>(
    write: &mut W,
    frame: &[u8],
    limits: &ServeLimits,
) -> Result<(), ServeError> {
    match stream::write(write, frame, limits.stalled_after).await {
        Err(StreamFault::Still { .. }) => Err(ServeError::Stalled),
        written => Ok(written?),
    }
}

/// Reads the store on a blocking thread.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ServeError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(io::Error::other)
        .flatten()
        .map_err(|it| ServeError::Logs(it.into()))
}

/// Why a session ended early.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It was refused.
    #[error("refused: {why}: {text}")]
    Denied {
        /// Why.
        why: Denied,
        /// What the client was told to do about it.
        text: String,
    },
    /// The client sent nothing for too long.
    #[error("the client sent nothing for too long")]
    Silent,
    /// The client took nothing for too long.
    #[error("the client took nothing for too long")]
    Stalled,
    /// The quorum was lost in the middle of a message.
    #[error("the quorum was lost")]
    QuorumLost,
    /// The client sent what is no message, or a message that has no place there.
    #[error("the client broke the protocol: {what}")]
    Protocol {
        /// In words.
        what: String,
    },
    /// The stream broke, or ended within a message.
    #[error("the client is gone: {why}")]
    Lost {
        /// In words.
        why: String,
    },
    /// The group's store did not answer.
    #[error(transparent)]
    Logs(#[from] LogError),
}

impl ServeError {
    fn denied(why: Denied) -> Self {
        let text = match why {
            Denied::UnknownTopic => "open it, or ask for access",
            Denied::OtherLine => "take the line from a new ticket",
            Denied::NoQuorum => "ask another member, or try again later",
            Denied::OverQuota => "try again later",
            Denied::NotYet => "it is served once a member lets it in",
            Denied::TooManyLogs => "split the topic",
            _ => "try again later",
        };
        let text = text.to_owned();
        Self::Denied { why, text }
    }

    fn unexpected(what: &str) -> Self {
        let what = format!("{what} has no place there");
        Self::Protocol { what }
    }

    /// What the client is told, if there is a use in it.
    fn told(&self) -> Option<(Denied, String)> {
        match self {
            Self::Denied { why, text } => Some((*why, text.clone())),
            Self::Silent => Some((Denied::Silent, self.to_string())),
            Self::Protocol { .. } => Some((Denied::Malformed, self.to_string())),
            Self::Logs(LogError::NoQuorum) => {
                Some((Denied::NoQuorum, "ask another member".to_owned()))
            }
            Self::Logs(LogError::Storage(_) | LogError::Stopped(_)) => {
                Some((Denied::Stopping, "ask another member".to_owned()))
            }
            Self::Logs(error) => Some((Denied::Other, error.to_string())),
            // In the middle of a frame there is no place for another.
            Self::Stalled | Self::QuorumLost | Self::Lost { .. } => None,
        }
    }
}

impl From<StreamFault> for ServeError {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Wire(fault) => Self::Protocol {
                what: fault.to_string(),
            },
            StreamFault::Broken(_) | StreamFault::CutOff => Self::Lost {
                why: fault.to_string(),
            },
            StreamFault::Still { .. } => Self::Silent,
        }
    }
}
