//! What the installer remembers on the host: which files are its own, and
//! whether what it configured has been seen to work.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{Error, config::Source as _, host::HostRoot};

/// Directory of the installer's own files on the host.
pub const DIR: &str = "/var/lib/zeropod/installer";

/// The installer's memory. It is written before anything else is, so that a
/// run that is killed leaves nothing that nobody owns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Version of the installer that wrote it.
    pub installer: String,
    /// What was put on the host, by path.
    pub files: BTreeMap<PathBuf, Owned>,
    /// Directories that were made for it.
    pub dirs: BTreeSet<PathBuf>,
    /// Whether the handler was served after the last change of the
    /// configuration. If not, a restart of containerd is owed.
    pub proven: bool,
    /// containerd's socket, for who only wants to ask it.
    pub socket: Option<PathBuf>,
}

/// Something of ours on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owned {
    /// A file with one of these SHA-256 digests in hex: while it is being
    /// replaced, the old and the new one.
    File(Vec<String>),
    /// A symbolic link to this target.
    Link(PathBuf),
}

impl State {
    /// Reads it from the host; a host without one has the empty state.
    ///
    /// # Errors
    /// When it cannot be read. One that is damaged is treated as absent: what
    /// it owned is then recognised by content only.
    pub fn load(host: &HostRoot) -> Result<Self, Error> {
        let content = host.read(&path())?;
        Ok(content.and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default())
    }

    /// Writes it to the host.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, host: &HostRoot) -> Result<(), Error> {
        host.make_dirs(Path::new(DIR))?;
        let mut text = serde_json::to_string_pretty(self).map_err(|error| Error::Io {
            action: "encode",
            path: path(),
            source: error.into(),
        })?;
        text.push('\n');
        if host.read(&path())?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        host.replace(&path(), &mut text.as_bytes(), 0o600)
    }

    /// Removes it and everything else of the installer's own from the host,
    /// also the lock, which the caller holds.
    ///
    /// # Errors
    /// When something of it is there and stays there.
    pub fn forget(host: &HostRoot) -> Result<(), Error> {
        let real = host.resolve(Path::new(DIR))?;
        match fs::remove_dir_all(&real) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", DIR)(error));
            }
            _ => {}
        }
        if let Some(parent) = Path::new(DIR).parent() {
            host.remove_empty_dir(parent);
        }
        Ok(())
    }
}

fn lock_path() -> PathBuf {
    Path::new(DIR).join("lock")
}

fn path() -> PathBuf {
    Path::new(DIR).join("state.json")
}

/// The lock that keeps two installers, such as of an old and a new pod, from
/// changing a node at the same time (F-C18). Released when dropped, also by a
/// crash.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for `patience`.
    ///
    /// # Errors
    /// When another installer still has it then, or it cannot be made.
    pub fn take(host: &HostRoot, patience: Duration) -> Result<Self, Error> {
        let path = lock_path();
        let start = Instant::now();
        loop {
            host.make_dirs(Path::new(DIR))?;
            let real = host.resolve(&path)?;
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&real)
                .map_err(Error::io("open", &path))?;
            match file.try_lock() {
                Ok(()) => {
                    let lock = Self { file };
                    // Unless it was of a run that removed it in the meantime.
                    if lock.is_at(&real) {
                        return Ok(lock);
                    }
                }
                Err(TryLockError::Error(source)) => {
                    return Err(Error::Io { action: "lock", path, source });
                }
                Err(TryLockError::WouldBlock) if start.elapsed() >= patience => {
                    return Err(Error::Busy { path });
                }
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Whether the lock file is still the one at this path.
    fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let (ours, there) = (self.file.metadata().map(identity), path.metadata().map(identity));
        ours.ok().zip(there.ok()).is_some_and(|(ours, there)| ours == there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_comes_back_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::new(dir.path());
        assert_eq!(State::load(&host).unwrap(), State::default());
        let state = State {
            installer: "1".into(),
            files: BTreeMap::from([
                ("/a".into(), Owned::File(vec!["0".into(), "1".into()])),
                ("/b".into(), Owned::Link("/c".into())),
            ]),
            dirs: BTreeSet::from(["/d".into()]),
            proven: true,
            socket: Some("/run/s".into()),
        };
        state.save(&host).unwrap();
        assert_eq!(State::load(&host).unwrap(), state);
        fs::write(dir.path().join("var/lib/zeropod/installer/state.json"), "{\"fil").unwrap();
        assert_eq!(State::load(&host).unwrap(), State::default());
        State::forget(&host).unwrap();
        State::forget(&host).unwrap();
    }

    #[test]
    fn only_one_installer_at_a_time() {
        // F-C18.
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::new(dir.path());
        let first = Lock::take(&host, Duration::ZERO).unwrap();
        assert!(matches!(Lock::take(&host, Duration::ZERO), Err(Error::Busy { .. })));
        drop(first);
        let second = Lock::take(&host, Duration::ZERO).unwrap();
        State::forget(&host).unwrap();
        let third = Lock::take(&host, Duration::ZERO).unwrap();
        assert!(!second.is_at(&dir.path().join("var/lib/zeropod/installer/lock")));
        drop(third);
    }
}
