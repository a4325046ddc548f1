//! The client against members that are played by a script: liars, the dying, the silent.

mod member;
mod pulls;
mod pushes;
mod runs;
mod strangers;
