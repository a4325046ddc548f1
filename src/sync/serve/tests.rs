//! The door from outside: guests that speak the protocol of stock nodes, honest and not.

mod catch_up;
mod claims;
mod decisions;
mod doors;
mod guest;
mod hostile;
mod keeper;
#[cfg(feature = "failpoints")]
mod looks;
mod overlay;
mod quorum;
mod watched;
