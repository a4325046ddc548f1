//! Our own outside client: pulls a topic from a group's members, or pushes into it, with no key and
//! no vote.
//!
//! ```text
//!  pull, push     the handles: tasks that go from member to member and never give up silently
//!  transport      what carries it, by name: a trait for each side, in quic and http
//!  dial           the way to a member, and what can go wrong with one
//!  reach          whom a client asks and how, for both
//!  chain, retry   what is checked of what comes, and who is asked next: no I/O, no clock
//!  quiet          how often a member may say that there is no news
//!  frames, stream the messages as bytes, and whole messages over any byte stream
//!  server         the member's half; log_server is that half alone, on sockets of its own
//! ```

mod chain;
mod dial;
mod frames;
mod have;
#[cfg(feature = "http")]
mod http;
mod log_server;
mod outcome;
mod pull;
mod push;
mod quic;
mod quiet;
mod reach;
mod retry;
mod server;
mod settings;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod transport;

#[cfg(feature = "http")]
pub use self::http::Http;
pub use self::{
    chain::{BadRun, RunFault},
    dial::{Dial, DialError, DialFuture, Dialled, MemberError, MemberFault},
    have::Have,
    log_server::{AdmitPeer, LogServer, LogServerOptions, ServerError},
    outcome::{Denied, PushOutcome, PushRefused, PushRule},
    pull::{NotSynced, Pull, PullHandle, Puller, pull},
    push::{Push, PushHandle, Pushed, Pusher, push},
    quic::{Quic, QuicDial},
    server::{Access, Admit, ServeError, ServeLimits, serve_logs},
    status::{ClientWatch, PullStatus, PushStatus},
    transport::{
        AcceptFuture, Caller, Identity, Knock, ListenError, ListenFuture, Listener, Place, Secret,
        Transport, Transports,
    },
};
pub(crate) use self::{
    frames::{FRAME_MAX, OWED_MAX},
    log_server::Listeners,
    quic::{FORMER_PORT_WAIT, alpn},
    server::{AtDoor, PUSHED_MIN, serve_carried},
    settings::Settings,
};
