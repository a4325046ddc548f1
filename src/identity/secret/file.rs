//! The node's secret in its file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use zeroize::Zeroizing;

use super::NodeSecret;

impl NodeSecret {
    /// The file's name in the data directory.
    pub(crate) const FILE: &str = "node.key";

    /// The one kept in `dir`; at the first call a new one, synced before this returns.
    ///
    /// Any number of processes may call this at once: all get the same secret. A file that
    /// others may read is tightened to its owner, with a warning.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the file is not exactly 32 bytes: it is left as it is,
    /// since a new secret would make this node a stranger to its own groups.
    pub(crate) fn load_or_create(dir: &Path) -> io::Result<Self> {
        match Self::load(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(dir),
            loaded => loaded,
        }
    }

    fn load(dir: &Path) -> io::Result<Self> {
        let path = dir.join(Self::FILE);
        let mut file = File::open(&path)?;
        tighten(&file, &path)?;
        // One byte more than wanted, so that a longer file shows.
        let mut bytes = Zeroizing::new([0; 33]);
        let mut read = 0;
        while read < bytes.len() {
            match file.read(&mut bytes[read..]) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if read != 32 {
            let length = file.metadata()?.len();
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} is {length} bytes long and a node's secret 32: restore it from a backup, \
                     or remove it to become a new peer",
                    path.display()
                ),
            ));
        }
        let mut secret = Self(Box::new(Zeroizing::new([0; 32])));
        secret.0.copy_from_slice(&bytes[..32]);
        Ok(secret)
    }

    fn create(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(Self::FILE);
        // One name for all, and its lock decides who writes: whoever renames it away has made
        // the real file appear in the same step, which the others look for once they hold a lock.
        let aside = dir.join("node.key.new");
        let mut file = open_private(&aside)?;
        file.lock()?;
        match Self::load(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            loaded => {
                // The name may be gone already, or be taken anew by another late comer.
                let _ = fs::remove_file(&aside);
                return loaded;
            }
        }
        let secret = Self::generate();
        tighten(&file, &aside)?;
        file.set_len(0)?;
        file.write_all(secret.bytes())?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        sync_dir(dir)?;
        Ok(secret)
    }
}

/// Opens for writing, created readable by its owner alone. What a crash left there is kept.
fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(unix)]
fn tighten(file: &File, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = %format_args!("{mode:03o}"),
            "others could read this node's secret; it is now its owner's alone"
        );
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn tighten(_: &File, _: &Path) -> io::Result<()> {
    Ok(())
}

/// Makes a rename inside `dir` survive a power cut.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory for the test")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("readable");
        entries
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_secret_is_created_once_and_found_again() {
        let dir = dir();
        let inside = dir.path().join("not/there/yet");
        let first = NodeSecret::load_or_create(&inside).expect("created");
        let again = NodeSecret::load_or_create(&inside).expect("loaded");
        assert_eq!(first.bytes(), again.bytes());
        assert_ne!(first.bytes(), NodeSecret::generate().bytes());
        assert_eq!(names(&inside), [NodeSecret::FILE]);
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;

        let dir = dir();
        let path = dir.path().join(NodeSecret::FILE);
        let mode = || fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        NodeSecret::load_or_create(dir.path()).expect("created");
        assert_eq!(mode(), 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("loosened");
        NodeSecret::load_or_create(dir.path()).expect("loaded");
        assert_eq!(mode(), 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn what_a_crash_left_aside_is_replaced_and_tightened() {
        use std::os::unix::fs::PermissionsExt;

        let dir = dir();
        let aside = dir.path().join("node.key.new");
        fs::write(&aside, [1; 40]).expect("left over");
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o666)).expect("loosened");
        let secret = NodeSecret::load_or_create(dir.path()).expect("created");
        assert_eq!(names(dir.path()), [NodeSecret::FILE]);
        let path = dir.path().join(NodeSecret::FILE);
        assert_eq!(fs::read(&path).expect("there"), secret.bytes());
        assert_eq!(
            fs::metadata(&path).expect("there").permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_wrong_length_is_refused_and_left_alone() {
        for length in [0, 31, 33, 4_096] {
            let dir = dir();
            let path = dir.path().join(NodeSecret::FILE);
            fs::write(&path, vec![7; length]).expect("written");
            let error = NodeSecret::load_or_create(dir.path()).expect_err("wrong length");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let text = error.to_string();
            assert!(
                text.contains("node.key") && text.contains(&length.to_string()),
                "{text}"
            );
            assert_eq!(fs::read(&path).expect("still there").len(), length);
        }
    }

    #[test]
    fn all_who_create_at_once_get_the_same() {
        for _ in 0..20 {
            let dir = dir();
            let start = Barrier::new(8);
            let secrets: Vec<_> = std::thread::scope(|scope| {
                let create = || {
                    start.wait();
                    NodeSecret::load_or_create(dir.path()).expect("created or loaded")
                };
                let all: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
                all.into_iter()
                    .map(|one| one.join().expect("no panic"))
                    .collect()
            });
            assert!(
                secrets
                    .iter()
                    .all(|secret| secret.bytes() == secrets[0].bytes())
            );
            let kept = NodeSecret::load_or_create(dir.path()).expect("loaded");
            assert_eq!(kept.bytes(), secrets[0].bytes());
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(
            format!("{:?}", NodeSecret::generate()),
            "NodeSecret([redacted])"
        );
    }
}
