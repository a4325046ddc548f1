//! The standard sync protocol: what outsiders reach of a member, and how a member reaches them.
//!
//! ```text
//!  protocol    the trait of a sync protocol, for a program's own
//!  session/    one session of the log sync: no I/O, no clock
//!  discovery/  which topics two peers share, and where peers are: no I/O, no clock
//!  codec/      the messages of both lines as bytes
//!  client/     our own client: pull and push, and the half that serves them
//!  ticket      where outsiders find a group's logs
//! ```

mod client;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the server and the client come next")
)]
mod codec;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        unused_imports,
        reason = "the server and the client come next"
    )
)]
mod discovery;
mod protocol;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        unused_imports,
        reason = "the server and the client come next"
    )
)]
mod session;
mod ticket;

pub use self::{
    client::{
        Access, Admit, BadRun, ClientWatch, Denied, Dial, DialError, DialFuture, Dialled, Have,
        LogServer, LogServerOptions, MemberError, MemberFault, NotSynced, Pull, PullHandle,
        PullStatus, Puller, Push, PushHandle, PushOutcome, PushRefused, PushRule, PushStatus,
        Pushed, Pusher, QuicDial, RunFault, ServeError, ServeLimits, ServerError, pull, push,
        serve_logs,
    },
    protocol::{
        Cause, Fault, FromSync, SyncError, SyncFuture, SyncProtocol, SyncRead, SyncSink, SyncWrite,
        TopicMap, TopicQuery,
    },
    ticket::{LogTicket, ParseLogTicketError},
};
