//! Our own outside client against real members: groups, servers, and streams between them.

pub(crate) mod ground;
mod pulls;
mod pushes;
mod serves;
