//! A topic in two files: `log`, to which operations are appended, and `heights`, which says how far
//! it is valid and where each author's log ends. A third one, `members`, is a ticket to the members
//! that were heard of last.
//!
//! ```text
//! log      record*, record = header length u32 BE ‖ body length u32 BE, all ones for none ‖ bytes
//! heights  valid length of `log` u64 BE ‖ operations u64 BE ‖ (author ‖ log ‖ seq u32 BE ‖ id)*
//! ```
//!
//! `log` is synced before `heights` names it, and `heights` is replaced whole, by rename: a kill
//! leaves either the old one or the new one, and bytes of `log` behind what it names are cut off.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use quorate::{
    log_store::{Line, Operation, Topic, verify_all},
    sync::{Have, LogTicket},
};

const NO_BODY: u32 = u32::MAX;
/// The largest header or body that is believed when a file is read.
const PART_MAX: u32 = 16 * 1024 * 1024;

pub(crate) struct Copy {
    folder: PathBuf,
    log: File,
    length: u64,
    operations: u64,
    have: Have,
}

impl Copy {
    /// Opens or makes a copy. Everything in it is verified: chains, bodies, signatures.
    pub(crate) fn open(folder: &Path, topic: Topic, line: Line) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("log");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut log = options.open(&path)?;
        let (length, operations, kept) = match fs::read(folder.join("heights")) {
            Ok(bytes) => read_heights(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (0, 0, Vec::new()),
            Err(error) => return Err(error.into()),
        };
        ensure!(
            log.metadata()?.len() >= length,
            "the log is shorter than its heights say"
        );
        log.set_len(length)?; // what was not reported
        let mut copy = Self {
            folder: folder.to_owned(),
            log: log.try_clone()?,
            length,
            operations: 0,
            have: Have::new(),
        };
        copy.verify(&mut log, topic, line)?;
        ensure!(copy.operations == operations, "the log lacks operations");
        ensure!(
            copy.heights()[16..] == kept[..],
            "heights and log do not belong together"
        );
        copy.log.seek(SeekFrom::Start(length))?;
        sync_folder(folder)?;
        Ok(copy)
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    pub(crate) fn have(&self) -> &Have {
        &self.have
    }

    /// Appends operations. They are on disk when it returns; after an error the copy is to be
    /// opened again.
    pub(crate) fn append(&mut self, run: &[Operation]) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        for operation in run {
            let body = operation.body();
            let body_length = body.map_or(NO_BODY, |it| it.len() as u32);
            bytes.extend((operation.header().len() as u32).to_be_bytes());
            bytes.extend(body_length.to_be_bytes());
            bytes.extend_from_slice(operation.header());
            bytes.extend_from_slice(body.map_or(&[], |it| it));
            self.have.advance(operation);
        }
        self.log.write_all(&bytes)?;
        self.log.sync_data()?;
        self.length += bytes.len() as u64;
        self.operations += run.len() as u64;

        self.replace("heights", &self.heights())
    }

    /// The members that were heard of when the copy was followed last.
    pub(crate) fn members(&self) -> anyhow::Result<Option<LogTicket>> {
        match fs::read_to_string(self.folder.join("members")) {
            // What is damaged is heard again.
            Ok(text) => Ok(text.parse().ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn keep_members(&self, ticket: &LogTicket) -> anyhow::Result<()> {
        self.replace("members", ticket.to_string().as_bytes())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let new = self.folder.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&new, self.folder.join(name))?;
        sync_folder(&self.folder)
    }

    fn heights(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.length.to_be_bytes());
        bytes.extend(self.operations.to_be_bytes());
        for (author, log, seq, id) in self.have.iter() {
            bytes.extend(author.as_bytes());
            bytes.extend(log.as_bytes());
            bytes.extend(seq.to_be_bytes());
            bytes.extend(id.as_bytes());
        }
        bytes
    }

    fn verify(&mut self, log: &mut File, topic: Topic, line: Line) -> anyhow::Result<()> {
        log.rewind()?;
        let mut reader = BufReader::with_capacity(1024 * 1024, log).take(self.length);
        let mut batch = Vec::new();
        while reader.limit() > 0 {
            let (header, body) = (read_u32(&mut reader)?, read_u32(&mut reader)?);
            let header = read_part(&mut reader, header)?;
            let body = match body {
                NO_BODY => None,
                length => Some(read_part(&mut reader, length)?.into()),
            };
            let operation = Operation::decode(line, header.into(), body)?;
            ensure!(
                operation.log_id() == topic.log_id(),
                "an operation of another topic"
            );
            let newest = self.have.newest(operation.author(), operation.log_id());
            let follows = match newest {
                Some((seq, id)) => {
                    Some(operation.seq()) == seq.checked_add(1) && operation.backlink() == Some(id)
                        || operation.prune() && operation.seq() > seq
                }
                None => operation.seq() == 0 || operation.prune(),
            };
            ensure!(
                follows,
                "operation {} does not follow in its log",
                operation.id()
            );
            self.have.advance(&operation);
            self.operations += 1;
            batch.push(operation);
            if batch.len() == 4_096 || reader.limit() == 0 {
                for verified in verify_all(&batch) {
                    verified?;
                }
                batch.clear();
            }
        }
        Ok(())
    }
}

fn read_heights(bytes: &[u8]) -> anyhow::Result<(u64, u64, Vec<u8>)> {
    let (length, rest) = bytes
        .split_first_chunk()
        .context("the heights are cut off")?;
    let (operations, rest) = rest
        .split_first_chunk()
        .context("the heights are cut off")?;
    Ok((
        u64::from_be_bytes(*length),
        u64::from_be_bytes(*operations),
        rest.to_vec(),
    ))
}

fn read_u32(reader: &mut impl Read) -> anyhow::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_part(reader: &mut impl Read, length: u32) -> anyhow::Result<Vec<u8>> {
    ensure!(
        length <= PART_MAX,
        "the log is damaged: a part of {length} bytes"
    );
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A renamed file is there after a power cut only once its folder is synced.
fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    Ok(File::open(folder)?.sync_all()?)
}
