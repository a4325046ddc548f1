//! Who is who: peers, members, groups, and the key that makes a group.

mod armor;
mod key;
mod peer;
mod secret;
mod ticket;

pub use self::{
    key::{GroupId, GroupKey, ParseGroupIdError, ParseGroupKeyError},
    peer::{MemberId, ParseMemberIdError, ParsePeerIdError, PeerAddr, PeerId},
    ticket::{GroupTicket, ParseTicketError},
};
pub(crate) use self::{
    peer::{BootId, Genesis},
    secret::NodeSecret,
};
