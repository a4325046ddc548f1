//! Our own outside client: pulls a topic from a group's members, or pushes into it, with no key and
//! no vote.
//!
//! ```text
//!  pull, push     the handles: tasks that go from member to member and never give up silently
//!  dial, quic     the way to a member: a trait, and QUIC
//!  chain, retry   what is checked of what comes, and who is asked next: no I/O, no clock
//!  frames, stream the messages as bytes, and whole messages over any byte stream
//!  server         the member's half
//! ```

mod chain;
mod dial;
mod frames;
mod have;
mod outcome;
mod pull;
mod push;
mod quic;
mod retry;
mod server;
mod status;
mod stream;
#[cfg(test)]
mod tests;

pub use self::{
    chain::{BadRun, RunFault},
    dial::{Dial, DialError, DialFuture, Dialled, MemberError, MemberFault},
    have::Have,
    outcome::{Denied, PushOutcome, PushRefused, PushRule},
    pull::{NotSynced, Pull, PullHandle, Puller, pull},
    push::{Push, PushHandle, Pushed, Pusher, push},
    quic::{LogServer, LogServerOptions, QuicDial, ServerError},
    server::{Access, Admit, ServeError, ServeLimits, serve_logs},
    status::{ClientWatch, PullStatus, PushStatus},
};
pub(crate) use self::{
    quic::alpn,
    server::{Meter, serve_metered},
};
