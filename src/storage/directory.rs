//! The directory of a store: its lock, its format, and opening what is in it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use super::{
    OpenError, Store,
    engine::Engine,
    files::{FileShelf, sync_directory},
    flusher::Flusher,
    keys::{FORMAT, FORMAT_OLDEST},
    locked,
    rocks::Rocks,
    space::Space,
};
use crate::{config::Config, metrics::Counters};

const FORMAT_PREFIX: &str = "quorate store format ";

/// Held while the directory is in use; the operating system releases it with the process.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Store {
    /// Opens the store in a directory, which is made if it is not there, and finishes what a crash
    /// interrupted.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) fn open(
        dir: &Path,
        config: &Config,
        counters: Arc<Counters>,
    ) -> Result<Self, OpenError> {
        fs::create_dir_all(dir)?;
        let lock = Lock::take(dir)?;
        check_format(dir)?;
        let engine: Arc<dyn Engine> = Arc::new(Rocks::open(&dir.join("db"))?);
        let shelf = Arc::new(FileShelf::open(dir.join("snapshots"))?);
        // The database's directory itself must survive a power cut before anything in it counts.
        sync_directory(dir)?;
        let space = Space::of_disk(dir, config.disk_reserve_bytes);
        let flusher = Flusher::start(Arc::clone(&engine), space, Arc::clone(&counters))?;
        let store = Self::over(engine, Arc::new(flusher), shelf, counters);
        *locked(&store.inner.lock) = Some(lock);
        store
            .finish_removals()
            .map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => OpenError::Corrupt(error.to_string()),
                _ => OpenError::Io(error),
            })?;
        Ok(store)
    }
}

impl Lock {
    fn take(dir: &Path) -> Result<Self, OpenError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("LOCK"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
                dir: dir.display().to_string(),
            }),
            Err(TryLockError::Error(error)) => Err(OpenError::Io(error)),
        }
    }
}

/// The format stands in a file of its own, so that a newer one is refused before the engine, which
/// may not even know its families, touches anything.
fn check_format(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("FORMAT");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let found = text.trim_end().strip_prefix(FORMAT_PREFIX);
            match found.and_then(|number| number.parse().ok()) {
                Some(found) if found > FORMAT => Err(OpenError::Newer {
                    found,
                    known: FORMAT,
                }),
                Some(FORMAT) => Ok(()),
                // Before the engine adds what the older program must not meet.
                Some(FORMAT_OLDEST..FORMAT) => write_format(dir).map_err(OpenError::Io),
                _ => Err(OpenError::Corrupt(format!(
                    "{} reads {text:?}",
                    path.display()
                ))),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // It is written before the database is, so a database without it lost it.
            if dir.join("db").exists() {
                return Err(OpenError::Corrupt(format!("{} is missing", path.display())));
            }
            write_format(dir).map_err(OpenError::Io)
        }
        Err(error) => Err(OpenError::Io(error)),
    }
}

fn write_format(dir: &Path) -> io::Result<()> {
    let aside = dir.join("FORMAT.part");
    let mut file = File::create(&aside)?;
    writeln!(file, "{FORMAT_PREFIX}{FORMAT}")?;
    file.sync_all()?;
    fs::rename(&aside, dir.join("FORMAT"))?;
    sync_directory(dir)
}
