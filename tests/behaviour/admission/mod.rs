//! Who of the peers that are no members reads what, and who pushes into it.

mod ground;
mod lists;
mod quotas;
mod register;
mod requests;
mod settings;
