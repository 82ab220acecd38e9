//! The host's file system, as seen from a container that has it mounted
//! somewhere, or from the host itself.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::{Error, config::Source};

/// The host's root directory. Every path given to it is one of the host.
///
/// Symbolic links are followed as the host would: an absolute one starts at
/// the host's root again, not at the container's.
#[derive(Debug, Clone)]
pub struct HostRoot(PathBuf);

impl HostRoot {
    /// The host's root, mounted at `root`; `/` on the host itself.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Where to find a path of the host, all links followed. Parts that do not
    /// exist are kept as they are.
    ///
    /// # Errors
    /// When a link cannot be read or links go round in a circle.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, Error> {
        // Components still to walk, the next one last.
        let mut rest: Vec<OsString> = reversed(path);
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            match fs::read_link(self.join(&next)) {
                Ok(target) => {
                    links += 1;
                    // The limit of Linux, path_resolution(7).
                    if links > 40 {
                        return Err(Error::TooManyLinks { path: path.to_path_buf() });
                    }
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    rest.extend(reversed(&target));
                }
                // Not a link, or not there.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidInput
                            | io::ErrorKind::NotFound
                            | io::ErrorKind::NotADirectory
                    ) =>
                {
                    real = next;
                }
                Err(source) => {
                    return Err(Error::Io { action: "follow", path: path.to_path_buf(), source });
                }
            }
        }
        Ok(self.join(&real))
    }

    /// Whether there is a file, directory or socket at the path.
    pub fn exists(&self, path: &Path) -> Result<bool, Error> {
        let real = self.resolve(path)?;
        real.try_exists().map_err(Error::io("look for", path))
    }

    /// Whether files can be made in a directory, or in the nearest one above
    /// it that exists.
    pub fn is_writable(&self, dir: &Path) -> Result<bool, Error> {
        let mut real = self.resolve(dir)?;
        while !real.try_exists().map_err(Error::io("look for", dir))? {
            if !real.pop() {
                return Ok(false);
            }
        }
        Ok(access(&real, AccessFlags::W_OK).is_ok())
    }

    fn join(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Source for HostRoot {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(self.resolve(path)?) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(Error::Io { action: "read", path: path.to_path_buf(), source }),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<OsString>, Error> {
        let entries = match fs::read_dir(self.resolve(dir)?) {
            Ok(entries) => entries,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Vec::new());
            }
            Err(source) => {
                return Err(Error::Io { action: "list", path: dir.to_path_buf(), source });
            }
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::io("list", dir))?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(names)
    }
}

/// The names in a path, last first, without those that mean nothing.
fn reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::new(dir.path());
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("etc/containerd")).unwrap();
        fs::create_dir_all(at("data")).unwrap();
        fs::write(at("data/config.toml"), "x").unwrap();
        symlink("/data/config.toml", at("etc/containerd/config.toml")).unwrap();
        symlink("../../../../../data", at("etc/up")).unwrap();
        symlink("loop", at("etc/loop")).unwrap();

        let read = |path: &str| host.read(Path::new(path));
        assert_eq!(read("/etc/containerd/config.toml").unwrap().unwrap(), b"x");
        assert_eq!(read("/etc/up/config.toml").unwrap().unwrap(), b"x");
        assert_eq!(read("/../etc/containerd/../up/config.toml").unwrap().unwrap(), b"x");
        assert_eq!(read("/etc/containerd/none").unwrap(), None);
        assert_eq!(read("/data/config.toml/none").unwrap(), None);
        assert!(matches!(read("/etc/loop"), Err(Error::TooManyLinks { .. })));
        assert_eq!(host.list(Path::new("/etc")).unwrap(), ["containerd", "loop", "up"]);
        assert_eq!(host.list(Path::new("/none")).unwrap(), [""; 0]);
        assert!(host.is_writable(Path::new("/etc/containerd/conf.d/x")).unwrap());
    }
}
