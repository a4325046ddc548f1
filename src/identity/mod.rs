//! Who is who: peers, members, groups, and the key that makes a group.

mod key;
mod peer;
mod secret;
mod ticket;

pub use self::{
    key::{GroupId, GroupKey},
    peer::{MemberId, PeerAddr, PeerId},
    ticket::GroupTicket,
};
pub(crate) use self::{
    peer::{BootId, Genesis},
    secret::NodeSecret,
};
