//! One proven relation between two members: the handshake, the messages, the heartbeat.

mod handshake;
mod heartbeat;
mod message;
