//! The client against members.
