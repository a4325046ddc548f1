//! How a replica stands to other members: being admitted, admitting, whom to dial, whom to hear.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use super::{FORMAT, Replica, lock};
use crate::{
    bond::{Introduction, MeshEvent, Proven, Refusal},
    error::Cause,
    identity::{Genesis, MemberId, PeerAddr, PeerId},
    raft::{
        Role,
        membership::{MembershipError, Request},
    },
};

/// How long one request to be admitted may take before it is made again.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

impl Replica {
    /// What a member says of us after the proof: that this one was removed, or is a copy, ends the
    /// group here; that another group was founded with our key is shown.
    pub(super) async fn heed_refusals(self: Arc<Self>) {
        let mut refusals = self.mesh().refusals();
        loop {
            let refused = *refusals.borrow_and_update();
            match refused {
                Some((peer, why @ (Refusal::RemovedMember | Refusal::ClonedMember))) => {
                    self.tell(|it| it.removed = why == Refusal::RemovedMember);
                    let cause = Cause::new(format!("{} refuses it: {why}", peer.short()));
                    return self.stop_from_within(cause);
                }
                Some((_, Refusal::OtherGenesis)) => self.tell(|it| it.rival = true),
                _ => {}
            }
            if refusals.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks to be admitted until the membership names us.
    pub(super) async fn seek_admission(self: Arc<Self>) {
        if self.record.founder {
            return;
        }
        let mut watch = self.told.subscribe();
        loop {
            if watch.wait_for(|it| it.role == Role::Joining).await.is_err() {
                return;
            }
            if self.genesis.borrow().is_none() || self.raft().is_none() {
                tokio::time::sleep(self.config.timing.heartbeat).await;
                continue;
            }
            let request = Request::Join {
                member: self.record.member,
                addr: self.links.addr(),
            };
            match self.ask_leader(request, JOIN_PATIENCE).await {
                // The membership comes with the journal, a moment later.
                Ok(()) => tokio::time::sleep(self.config.timing.heartbeat).await,
                Err(MembershipError::Refused(why)) => {
                    return self.stop_from_within(Cause::new(why));
                }
                Err(MembershipError::NoQuorum) => {}
                Err(MembershipError::Stopped(_)) => return,
            }
        }
    }

    /// Keeps the mesh looking for exactly the members: new ones are dialled, removed ones not.
    pub(super) async fn keep_contacts(self: Arc<Self>) {
        use std::collections::btree_map::Entry;
        let mut applied = self.applied.clone();
        let mut known: BTreeMap<PeerId, PeerAddr> = BTreeMap::new();
        loop {
            let mesh = self.mesh();
            let membership = applied.borrow_and_update().membership.clone();
            let mut gone: BTreeSet<PeerId> = known.keys().copied().collect();
            for (_, node) in membership.nodes() {
                gone.remove(&node.peer());
                if let Entry::Vacant(new) = known.entry(node.peer()) {
                    mesh.learn(node.addr.clone());
                    new.insert(node.addr.clone());
                }
            }
            for peer in gone {
                known.remove(&peer);
                mesh.forget(peer);
            }
            self.part_with_removed();
            let seen = membership;
            loop {
                if applied.changed().await.is_err() {
                    return;
                }
                if applied.borrow_and_update().membership != seen {
                    break;
                }
            }
        }
    }

    /// Ends the bonds with removed members. They dial again and are told why that is in vain.
    fn part_with_removed(self: &Arc<Self>) {
        let of_removed = |it: &Self| {
            let bonds = it.mesh().bonds().snapshot();
            let removed = it.applied.borrow().removed.clone();
            bonds
                .into_iter()
                .map(|(_, bond)| bond)
                .filter(move |it| removed.contains(&it.member()))
        };
        if of_removed(self).next().is_none() {
            return;
        }
        self.spawn(|it| async move {
            // Who leaves by itself still waits for the answer to its request.
            tokio::time::sleep(it.config.timing.election_timeout_max).await;
            of_removed(&it).for_each(|bond| bond.close("the member was removed from the group"));
        });
    }
}

/// What bonds ask and tell.
impl Replica {
    pub(in crate::raft) fn introduction(&self) -> Introduction {
        Introduction {
            genesis: *self.genesis.borrow(),
            member: self.record.member,
            format: FORMAT,
            machine: self.record.name.clone(),
        }
    }

    /// Judges a peer that has proven the key.
    pub(in crate::raft) async fn admit(
        &self,
        peer: PeerId,
        theirs: &Introduction,
    ) -> Result<(), Refusal> {
        if self.stopped().is_some() {
            return Err(Refusal::Stopped);
        }
        if theirs.format != FORMAT {
            return Err(Refusal::Newer {
                ours: FORMAT,
                theirs: theirs.format,
            });
        }
        let ours = *self.genesis.borrow();
        match (ours, theirs.genesis) {
            (None, None) => return Err(Refusal::NotFounded),
            (Some(ours), Some(theirs)) if ours != theirs => {
                self.tell(|it| it.rival = true);
                return Err(Refusal::OtherGenesis);
            }
            _ => {}
        }
        if self.is_removed(theirs.member) {
            return Err(Refusal::RemovedMember);
        }
        self.check_copy(peer, theirs.member)?;
        if let (None, Some(genesis)) = (ours, theirs.genesis) {
            self.adopt(genesis).await?;
        }
        Ok(())
    }

    /// A member is one process on one node: its data under another node's name is a copy. (A copy
    /// under the same name shows at the links, by its boot id.)
    fn check_copy(&self, peer: PeerId, member: MemberId) -> Result<(), Refusal> {
        let applied = self.applied.borrow();
        let named = applied.membership.get_node(&member);
        if member == self.record.member || named.is_some_and(|it| it.peer() != peer) {
            tracing::error!(%peer, %member, "another node runs with a copy of a member's data");
            return Err(Refusal::ClonedMember);
        }
        Ok(())
    }

    /// Syncs the genesis that the group told us, before anything of Raft is sent or taken.
    async fn adopt(&self, genesis: Genesis) -> Result<(), Refusal> {
        let (store, local) = (self.store.clone(), self.record.local);
        let writing = tokio::task::spawn_blocking(move || store.set_genesis(local, genesis));
        match writing.await {
            Ok(Ok(())) => {
                self.genesis.send_replace(Some(genesis));
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the group's genesis cannot be kept");
                Err(Refusal::Stopped)
            }
            Err(_) => Err(Refusal::Stopped),
        }
    }

    pub(in crate::raft) fn mesh_event(&self, event: MeshEvent) {
        match event {
            MeshEvent::Formed(bond) => {
                lock(&self.departed).remove(&bond.member());
                let (raft, member) = (self.raft(), bond.member());
                if let Some(raft) = raft {
                    // The member is there again: do not sit out a backoff from when it was not.
                    self.tasks.spawn(async move {
                        let _ = raft.trigger().reset_backoff([member]).await;
                    });
                }
            }
            MeshEvent::Silent(bond) => {
                self.lost_member(bond.member());
                self.told.send_modify(|_| {}); // whoever watches the status looks again
            }
            MeshEvent::Ended(bond, why) => {
                tracing::debug!(peer = ?bond.peer(), %why, "a bond has ended");
                self.lost_member(bond.member());
            }
            MeshEvent::Heard(bond) => {
                tracing::debug!(peer = ?bond.peer(), "heard again");
                self.told.send_modify(|_| {});
            }
            MeshEvent::Departed(Proven { member, .. }) => {
                lock(&self.departed).insert(member);
                self.lost_member(member);
            }
        }
    }

    pub(in crate::raft) fn lost_member(&self, member: MemberId) {
        if self.leader() == Some(member) {
            self.lost.send_replace(Some(member));
        }
    }

    pub(in crate::raft) fn keep_roster(&self, roster: Vec<PeerAddr>) {
        self.roster.send_replace(roster);
    }

    /// Writes the latest roster, one write at a time and off the async threads.
    pub(super) async fn store_roster(self: Arc<Self>) {
        let mut roster = self.roster.subscribe();
        while roster.changed().await.is_ok() {
            let latest = roster.borrow_and_update().clone();
            let (store, local) = (self.store.clone(), self.record.local);
            let writing = tokio::task::spawn_blocking(move || {
                let bytes = postcard::to_stdvec(&latest).map_err(io::Error::other)?;
                store.put_roster(local, &bytes)
            });
            if let Ok(Err(error)) = writing.await {
                tracing::warn!(%error, "the members' addresses cannot be kept");
            }
        }
    }
}
