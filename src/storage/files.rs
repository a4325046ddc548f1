//! Snapshots in files: one directory a group, written aside, renamed, the directory synced.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    LocalGroup,
    shelf::{Aside, Body, Place, ReadAt, Shelf},
};

const SNAPSHOT: &str = "snapshot";
const PART: &str = "part";

/// A large file is written to the disk as it grows: one sync of all of it at the end would hold up
/// the journal's for as long as that takes.
const SYNC_EVERY_BYTES: u64 = 4 * 1024 * 1024;

/// A directory with one directory a group.
pub(super) struct FileShelf {
    root: PathBuf,
}

struct FilePlace {
    dir: PathBuf,
    /// Tells apart what several write aside at once.
    parts: AtomicU64,
}

struct FileAside {
    file: Arc<File>,
    path: PathBuf,
    unsynced: u64,
}

impl FileShelf {
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    fn dir(&self, local: LocalGroup) -> PathBuf {
        self.root.join(local.number().to_string())
    }
}

impl Shelf for FileShelf {
    fn place(&self, local: LocalGroup) -> io::Result<Box<dyn Place>> {
        let dir = self.dir(local);
        if !dir.is_dir() {
            fs::create_dir_all(&dir)?;
            sync_directory(&self.root)?;
        }
        Ok(Box::new(FilePlace {
            dir,
            parts: AtomicU64::new(0),
        }))
    }

    fn remove_group(&self, local: LocalGroup) -> io::Result<()> {
        match fs::remove_dir_all(self.dir(local)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_directory(&self.root),
        }
    }
}

impl FilePlace {
    fn path(&self, number: u64) -> PathBuf {
        snapshot_path(&self.dir, number)
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            match (number, path.extension().and_then(|it| it.to_str())) {
                (Some(number), Some(SNAPSHOT)) => numbers.push(number),
                // Left by a crash, and named by nothing.
                (_, Some(PART)) => fs::remove_file(&path)?,
                _ => tracing::warn!(path = %path.display(), "a file that is not ours"),
            }
        }
        Ok(numbers)
    }
}

impl Place for FilePlace {
    fn newest(&self) -> io::Result<Option<(u64, Body)>> {
        let Some(number) = self.numbers()?.into_iter().max() else {
            return Ok(None);
        };
        // A crash may have come between the rename and the sync of the directory.
        self.sync()?;
        self.remove_older(number)?;
        Ok(Some((
            number,
            file_body(Arc::new(File::open(self.path(number))?))?,
        )))
    }

    fn start_aside(&self) -> io::Result<Box<dyn Aside>> {
        let part = self.parts.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{part}.{PART}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Box::new(FileAside {
            file: Arc::new(file),
            path,
            unsynced: 0,
        }))
    }

    fn sync(&self) -> io::Result<()> {
        sync_directory(&self.dir)
    }

    fn remove_older(&self, number: u64) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let is_snapshot = path.extension().is_some_and(|it| it == SNAPSHOT);
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            if is_snapshot && stem.is_some_and(|it| it < number) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl Write for FileAside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&*self.file).write(bytes)?;
        self.unsynced += count as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Aside for FileAside {
    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.file.sync_all()
    }

    fn body(&self) -> io::Result<Body> {
        file_body(Arc::clone(&self.file))
    }

    fn put_in_place(self: Box<Self>, number: u64) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        // The drop that follows finds nothing to remove.
        fs::rename(&self.path, snapshot_path(dir, number))
    }
}

impl Drop for FileAside {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = self.path.display();
                tracing::warn!(%error, %path, "cannot remove; the next open does");
            }
            _ => {}
        }
    }
}

impl ReadAt for File {
    #[cfg(unix)]
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, out, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, out, offset)
    }
}

/// Makes creations, renames and removals in a directory survive a power cut.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    // Windows neither needs nor allows it.
    if cfg!(unix) {
        File::open(dir)?.sync_all()
    } else {
        Ok(())
    }
}

fn snapshot_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.{SNAPSHOT}"))
}

fn file_body(file: Arc<File>) -> io::Result<Body> {
    let len = file.metadata()?.len();
    Ok(Body::new(file, len))
}
