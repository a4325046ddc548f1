//! The groups a node holds: made, given their genesis, and removed so that a crash cannot leave
//! half of one.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::{
    Store,
    engine::{Batch, Family},
    flusher::Flusher,
    keys::{self, NODE, StoredGroup, Tag},
};
use crate::identity::{Genesis, GroupId, MemberId};

/// A group's number on this node: dense, from 1, never used twice. Means nothing elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct LocalGroup(u64);

impl LocalGroup {
    pub(super) const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LocalGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Debug for LocalGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalGroup({})", self.0)
    }
}

/// A group that this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRecord {
    pub(crate) local: LocalGroup,
    pub(crate) id: GroupId,
    /// The machine's `NAME`.
    pub(crate) name: String,
    /// Whether this node founded the group, and so may initialize it again after a crash.
    pub(crate) founder: bool,
    pub(crate) member: MemberId,
    /// Not yet known to one that joins.
    pub(crate) genesis: Option<Genesis>,
}

/// A group to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewGroup {
    pub(crate) id: GroupId,
    pub(crate) name: String,
    pub(crate) founder: bool,
    pub(crate) member: MemberId,
    pub(crate) genesis: Option<Genesis>,
}

impl Store {
    /// All groups, by id.
    ///
    /// # Errors
    /// `InvalidData` if a record is damaged.
    #[cfg(test)]
    pub(crate) fn groups(&self) -> io::Result<Vec<GroupRecord>> {
        let flusher = self.flusher();
        let mut groups = Vec::new();
        for local in numbers(flusher)? {
            if !is_removing(flusher, local)? {
                groups.push(group_record(flusher, local)?);
            }
        }
        Ok(groups)
    }

    /// The group with this id, if this node holds it.
    ///
    /// # Errors
    /// `InvalidData` if its record is damaged.
    pub(crate) fn group(&self, id: &GroupId) -> io::Result<Option<GroupRecord>> {
        let flusher = self.flusher();
        match number_of(flusher, id)? {
            Some(local) if !is_removing(flusher, local)? => group_record(flusher, local).map(Some),
            _ => Ok(None),
        }
    }

    /// Makes a group: written and synced when this returns. The member id in it is thereby minted:
    /// before that, nothing may be sent in its name.
    ///
    /// # Errors
    /// `AlreadyExists` if this node holds the group (or is still removing it).
    pub(crate) fn create_group(&self, new: NewGroup) -> io::Result<GroupRecord> {
        let _changing = self.changing_groups();
        let flusher = self.flusher();
        if number_of(flusher, &new.id)?.is_some() {
            let text = "this node holds the group already";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let next_key = keys::meta(NODE, Tag::NextLocal);
        let number = body(flusher, &next_key)?.map_or(Ok(1), |body| number(&next_key, &body))?;
        let NewGroup {
            id,
            name,
            founder,
            member,
            genesis,
        } = new;
        let record = GroupRecord {
            local: LocalGroup(number),
            id,
            name,
            founder,
            member,
            genesis,
        };
        let mut batch = Batch::new();
        batch.put(Family::Meta, &next_key, &[&(number + 1).to_be_bytes()]);
        batch.put(
            Family::Meta,
            &keys::group_of_id(&id),
            &[&number.to_be_bytes()],
        );
        put_record(&mut batch, &record)?;
        fail::fail_point!("group::create::before_write");
        flusher.write(&batch)?;
        fail::fail_point!("group::create::before_sync");
        flusher.sync()?;
        fail::fail_point!("group::create::after_sync");
        Ok(record)
    }

    /// Gives a group the genesis it learned; synced when this returns. The same one again is fine.
    ///
    /// # Errors
    /// `AlreadyExists` if it has another.
    pub(crate) fn set_genesis(&self, local: LocalGroup, genesis: Genesis) -> io::Result<()> {
        let _changing = self.changing_groups();
        let flusher = self.flusher();
        let mut record = group_record(flusher, local)?;
        match record.genesis {
            Some(known) if known == genesis => return flusher.sync(),
            Some(_) => {
                let text = format!("group {local} has another genesis");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            None => record.genesis = Some(genesis),
        }
        let mut batch = Batch::new();
        put_record(&mut batch, &record)?;
        fail::fail_point!("group::genesis::before_write");
        flusher.write(&batch)?;
        fail::fail_point!("group::genesis::before_sync");
        flusher.sync()
    }

    /// Removes a group: a synced mark first, then its data and snapshots, its mapping last. A crash
    /// in between is finished at the next open. Handles to its journal fail from here on.
    ///
    /// # Errors
    /// `NotFound` if there is no such group.
    pub(crate) fn remove_group(&self, local: LocalGroup) -> io::Result<()> {
        let _changing = self.changing_groups();
        let flusher = self.flusher();
        group_record(flusher, local)?;
        let mut batch = Batch::new();
        batch.put(
            Family::Meta,
            &keys::meta(local.number(), Tag::Removing),
            &[],
        );
        fail::fail_point!("group::remove::before_mark");
        flusher.write_freeing(&batch)?;
        flusher.sync()?;
        fail::fail_point!("group::remove::after_mark");
        self.forget(local);
        self.finish_removal(local)
    }

    /// Carries on with what a crash interrupted.
    #[cfg(feature = "rocksdb")]
    pub(super) fn finish_removals(&self) -> io::Result<()> {
        let _changing = self.changing_groups();
        for local in numbers(self.flusher())? {
            if is_removing(self.flusher(), local)? {
                self.finish_removal(local)?;
            }
        }
        Ok(())
    }

    /// Every step may be done twice.
    fn finish_removal(&self, local: LocalGroup) -> io::Result<()> {
        let flusher = self.flusher();
        let group = local.number();
        let record = group_record(flusher, local)?;
        self.shelf().remove_group(local)?;
        fail::fail_point!("group::remove::after_snapshots");
        let mut data = Batch::new();
        data.delete_range(
            Family::Journal,
            &keys::journal(group, 0),
            &keys::journal_end(group),
        );
        let (from, to) = keys::state_range(group);
        data.delete_range(Family::State, &from, &to);
        flusher.write_freeing(&data)?;
        flusher.sync()?;
        fail::fail_point!("group::remove::after_data");
        let (from, to) = keys::meta_range(group);
        let mut mapping = Batch::new();
        mapping.delete_range(Family::Meta, &from, &to);
        mapping.delete(Family::Meta, &keys::group_of_id(&record.id));
        flusher.write_freeing(&mapping)?;
        fail::fail_point!("group::remove::after_mapping");
        flusher.sync()
    }

    /// Keeps where the door for outsiders was last: a hint, not synced.
    ///
    /// # Errors
    /// Any error but `StorageFull` is final.
    pub(crate) fn put_door(&self, local: LocalGroup, settings: &[u8]) -> io::Result<()> {
        self.put_hint(local, Tag::Door, settings)
    }

    /// What was kept by [`Store::put_door`]; none if it is damaged.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn door(&self, local: LocalGroup) -> io::Result<Option<bytes::Bytes>> {
        self.hint(local, Tag::Door)
    }

    /// Keeps the last known addresses of a group's members: a hint, not synced.
    ///
    /// # Errors
    /// Any error but `StorageFull` is final.
    pub(crate) fn put_roster(&self, local: LocalGroup, roster: &[u8]) -> io::Result<()> {
        self.put_hint(local, Tag::Roster, roster)
    }

    /// The last roster that survived; none if it is damaged, for it is only a hint.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn roster(&self, local: LocalGroup) -> io::Result<Option<bytes::Bytes>> {
        self.hint(local, Tag::Roster)
    }

    fn put_hint(&self, local: LocalGroup, tag: Tag, hint: &[u8]) -> io::Result<()> {
        let _changing = self.changing_groups();
        // Not behind a removal: it would leave a record of a group that is gone.
        expect_group(self.flusher(), local)?;
        let mut batch = Batch::new();
        batch.put(Family::Meta, &keys::meta(local.number(), tag), &[hint]);
        self.flusher().write(&batch)
    }

    fn hint(&self, local: LocalGroup, tag: Tag) -> io::Result<Option<bytes::Bytes>> {
        let key = keys::meta(local.number(), tag);
        let Some(value) = self.flusher().value(Family::Meta, &key)? else {
            return Ok(None);
        };
        let hint = keys::unseal(&key, &value).map(bytes::Bytes::copy_from_slice);
        if hint.is_none() {
            let (group, record) = (local.number(), tag as u8 as char);
            tracing::warn!(group, %record, "a record of addresses is damaged and left out");
        }
        Ok(hint)
    }
}

#[cfg(any(test, feature = "rocksdb"))]
fn numbers(flusher: &Flusher) -> io::Result<Vec<LocalGroup>> {
    let (from, to) = keys::group_of_id_range();
    let mut numbers = Vec::new();
    let mut broken = Ok(());
    flusher.scan(
        Family::Meta,
        &from,
        &to,
        super::engine::Order::Ascending,
        &mut |key, value| {
            match keys::unseal(key, value)
                .ok_or_else(|| damaged(key))
                .and_then(|it| number(key, it))
            {
                Ok(number) => numbers.push(LocalGroup(number)),
                Err(error) => broken = Err(error),
            }
            if broken.is_ok() {
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            }
        },
    )?;
    broken.map(|()| numbers)
}

fn number_of(flusher: &Flusher, id: &GroupId) -> io::Result<Option<LocalGroup>> {
    let key = keys::group_of_id(id);
    body(flusher, &key)?
        .map(|body| number(&key, &body).map(LocalGroup))
        .transpose()
}

fn is_removing(flusher: &Flusher, local: LocalGroup) -> io::Result<bool> {
    body(flusher, &keys::meta(local.number(), Tag::Removing)).map(|mark| mark.is_some())
}

/// Fails unless the node holds the group and is not removing it.
pub(super) fn expect_group(flusher: &Flusher, local: LocalGroup) -> io::Result<()> {
    if is_removing(flusher, local)? {
        return Err(missing(local));
    }
    group_record(flusher, local).map(drop)
}

fn group_record(flusher: &Flusher, local: LocalGroup) -> io::Result<GroupRecord> {
    let key = keys::meta(local.number(), Tag::Group);
    let Some(body) = body(flusher, &key)? else {
        return Err(missing(local));
    };
    let StoredGroup {
        id,
        name,
        founder,
        member,
        genesis,
    } = postcard::from_bytes(&body).map_err(|_| damaged(&key))?;
    Ok(GroupRecord {
        local,
        id: GroupId::from_bytes(id),
        name,
        founder,
        member: MemberId::from_bytes(member),
        genesis,
    })
}

fn put_record(batch: &mut Batch, record: &GroupRecord) -> io::Result<()> {
    let stored = StoredGroup {
        id: *record.id.as_bytes(),
        name: record.name.clone(),
        founder: record.founder,
        member: record.member.to_bytes(),
        genesis: record.genesis,
    };
    let body = postcard::to_stdvec(&stored).map_err(io::Error::other)?;
    batch.put(
        Family::Meta,
        &keys::meta(record.local.number(), Tag::Group),
        &[&body],
    );
    Ok(())
}

/// The unsealed value under a meta key.
pub(super) fn body(flusher: &Flusher, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match flusher.value(Family::Meta, key)? {
        None => Ok(None),
        Some(value) => keys::unseal(key, &value)
            .map(|body| Some(body.to_vec()))
            .ok_or_else(|| damaged(key)),
    }
}

fn number(key: &[u8], body: &[u8]) -> io::Result<u64> {
    body.try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| damaged(key))
}

fn missing(local: LocalGroup) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("this node holds no group {local}"),
    )
}

fn damaged(key: &[u8]) -> io::Error {
    let key = data_encoding::HEXLOWER.encode(key);
    let text = format!("the store is damaged: the meta record {key} fails its checksum");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
