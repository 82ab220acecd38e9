//! Writing to the host so that nobody ever sees half a file: not a pod that
//! starts in between, not containerd after a power cut (I7, F-C13).

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink},
    },
    path::{Path, PathBuf},
};

use crate::{Error, config::Source as _, host::HostRoot, selinux};

impl HostRoot {
    /// Makes a file have this content: written beside its place, synced, and
    /// renamed into it. A file that exists keeps its mode and owner; a new one
    /// gets `mode`. Through a symbolic link the file behind it is replaced,
    /// not the link.
    ///
    /// # Errors
    /// When the content cannot be written; then the old file is still there.
    pub fn replace(&self, path: &Path, content: &mut dyn Read, mode: u32) -> Result<(), Error> {
        self.replace_as(path, content, mode, None)
    }

    /// The same with a label for hosts that have `SELinux`. Without one a file
    /// that exists keeps its label, and a new one gets that of its directory.
    pub(crate) fn replace_as(
        &self,
        path: &Path,
        content: &mut dyn Read,
        mode: u32,
        label: Option<&str>,
    ) -> Result<(), Error> {
        let real = self.resolve(path)?;
        let draft = draft_of(&real);
        let label = if selinux::is_on(self) {
            let kept = || selinux::get(&real).ok().flatten().filter(|label| !label.is_empty());
            label.map(str::to_owned).or_else(kept)
        } else {
            None
        };
        let result = write_draft(&draft, &real, content, mode, label.as_deref())
            .and_then(|()| fs::rename(&draft, &real))
            .and_then(|()| sync_parent(&real));
        if result.is_err() {
            let _ = fs::remove_file(&draft);
        }
        result.map_err(Error::io("write", path))
    }

    /// Makes a symbolic link with this target, in place of what was there.
    ///
    /// # Errors
    /// When it cannot be made; then the old one is still there.
    pub fn replace_link(&self, path: &Path, target: &Path) -> Result<(), Error> {
        let real = self.resolve_parent(path)?;
        let draft = draft_of(&real);
        remove_draft(&draft)
            .and_then(|()| symlink(target, &draft))
            .and_then(|()| fs::rename(&draft, &real))
            .and_then(|()| sync_parent(&real))
            .map_err(Error::io("link", path))
    }

    /// The target of a symbolic link; `None` if the path is none.
    ///
    /// # Errors
    /// When its directory cannot be followed.
    pub fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        Ok(fs::read_link(self.resolve_parent(path)?).ok())
    }

    /// Removes a file or link. One that is absent is no error.
    ///
    /// # Errors
    /// When it is there and stays there.
    pub fn remove(&self, path: &Path) -> Result<(), Error> {
        let real = self.resolve_parent(path)?;
        match fs::remove_file(&real).and_then(|()| sync_parent(&real)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { action: "remove", path: path.to_path_buf(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Makes a directory and those above it, and returns the ones that were
    /// not there, the highest first.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make_dirs(&self, path: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut missing = Vec::new();
        for dir in path.ancestors() {
            if self.exists(dir)? {
                break;
            }
            missing.push(dir.to_path_buf());
        }
        missing.reverse();
        for dir in &missing {
            let real = self.resolve(dir)?;
            match fs::create_dir(&real) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::Io { action: "create", path: dir.clone(), source: error });
                }
                _ => {}
            }
            fs::set_permissions(&real, Permissions::from_mode(0o755))
                .map_err(Error::io("set the mode of", dir))?;
        }
        Ok(missing)
    }

    /// Removes a directory if nothing is in it.
    pub fn remove_empty_dir(&self, path: &Path) {
        if let Ok(real) = self.resolve(path) {
            // Not empty, or a mount point: somebody else needs it.
            let _ = fs::remove_dir(real);
        }
    }

    /// Removes what runs that were killed left of files that they were writing
    /// into a directory.
    ///
    /// # Errors
    /// When the directory cannot be listed or a file stays.
    pub fn sweep(&self, dir: &Path) -> Result<(), Error> {
        for name in self.list(dir)? {
            let name_bytes = name.as_bytes();
            if name_bytes.starts_with(b".") && name_bytes.ends_with(DRAFT.as_bytes()) {
                self.remove(&dir.join(name))?;
            }
        }
        Ok(())
    }

    fn resolve_parent(&self, path: &Path) -> Result<PathBuf, Error> {
        let parent = self.resolve(path.parent().unwrap_or(Path::new("/")))?;
        Ok(parent.join(path.file_name().unwrap_or_default()))
    }
}

/// Ends the name of a file that is being written.
const DRAFT: &str = ".zeropod-draft";

/// The name under which a file is written: hidden, not matched by any pattern
/// for the file's own ending, and the same every time, so that a run that was
/// killed leaves at most one.
fn draft_of(real: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(real.file_name().unwrap_or(std::ffi::OsStr::from_bytes(b"file")));
    name.push(DRAFT);
    real.with_file_name(name)
}

fn write_draft(
    draft: &Path,
    real: &Path,
    content: &mut dyn Read,
    mode: u32,
    label: Option<&str>,
) -> io::Result<()> {
    remove_draft(draft)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    if let Some(label) = label {
        selinux::set(&file, label)?;
    }
    io::copy(content, &mut file)?;
    file.flush()?;
    let mode = match fs::metadata(real) {
        Ok(old) => {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
            old.mode()
        }
        Err(_) => mode,
    };
    file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    file.sync_all()
}

fn remove_draft(draft: &Path) -> io::Result<()> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A rename is only safe once the directory is on disk.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        dir: tempfile::TempDir,
        root: HostRoot,
    }

    fn host() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        Host { dir, root }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_behind_its_link_with_its_mode() {
        let Host { dir, root } = host();
        let real = dir.path().join("real");
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        symlink("/real", dir.path().join("link")).unwrap();
        let before = fs::metadata(&real).unwrap().ino();
        root.replace(Path::new("/link"), &mut &b"new"[..], 0o600).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        let after = fs::metadata(&real).unwrap();
        assert_eq!(after.mode() & 0o7777, 0o640);
        // Another file: whoever runs the old one keeps it.
        assert_ne!(after.ino(), before);
        assert_eq!(names(dir.path()), ["link", "real"]);
    }

    #[test]
    fn what_fails_leaves_the_old_file_and_nothing_else() {
        // I7: a source that ends with an error, like a full disk would.
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let Host { dir, root } = host();
        fs::write(dir.path().join("file"), "old").unwrap();
        let mut source = b"half".chain(Broken);
        let error = root.replace(Path::new("/file"), &mut source, 0o644).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /file");
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_draft_of_a_killed_run_is_no_obstacle() {
        let Host { dir, root } = host();
        fs::write(dir.path().join(".file.zeropod-draft"), "half").unwrap();
        fs::write(dir.path().join(".other.zeropod-draft"), "half").unwrap();
        root.replace(Path::new("/file"), &mut &b"whole"[..], 0o755).unwrap();
        let metadata = fs::metadata(dir.path().join("file")).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o755);
        root.sweep(Path::new("/")).unwrap();
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn directories_come_and_go() {
        let Host { dir, root } = host();
        fs::create_dir(dir.path().join("opt")).unwrap();
        let made = root.make_dirs(Path::new("/opt/zeropod/bin")).unwrap();
        assert_eq!(made, [Path::new("/opt/zeropod"), Path::new("/opt/zeropod/bin")]);
        assert!(root.make_dirs(Path::new("/opt/zeropod")).unwrap().is_empty());
        root.remove_empty_dir(Path::new("/opt/zeropod"));
        assert!(dir.path().join("opt/zeropod/bin").exists());
        root.remove_empty_dir(Path::new("/opt/zeropod/bin"));
        assert!(!dir.path().join("opt/zeropod/bin").exists());
    }

    #[test]
    fn links_are_replaced_and_read() {
        let Host { root, dir: _dir } = host();
        let link = Path::new("/tar");
        assert_eq!(root.link_target(link).unwrap(), None);
        root.replace_link(link, Path::new("/bin/a")).unwrap();
        root.replace_link(link, Path::new("/bin/b")).unwrap();
        assert_eq!(root.link_target(link).unwrap().as_deref(), Some(Path::new("/bin/b")));
        root.remove(link).unwrap();
        root.remove(link).unwrap();
    }
}
