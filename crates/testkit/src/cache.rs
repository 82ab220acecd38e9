//! Test tools that take long to get and are not ours, such as an API server or
//! CRIU, built once and kept in the user's cache directory, so that a fresh
//! clone does not build them again.
//!
//! An entry is a directory `<name>-<key>`. It is built beside its place and
//! renamed into it, so that it is whole or absent, and checked before every
//! use, so that one that broke later is built anew.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why a cache entry could not be had.
#[derive(Debug, Error)]
pub enum CacheError {
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("no cache directory: set XDG_CACHE_HOME or HOME")]
    NoDirectory,
    /// The cache directory cannot be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The tool could not be built.
    #[error("cannot build {entry}: {reason}")]
    Build {
        /// Name and key of the entry.
        entry: String,
        /// What the build said.
        reason: String,
    },
    /// The tool was built but does not work.
    #[error("{entry} was built but does not work: {reason}")]
    Broken {
        /// Name and key of the entry.
        entry: String,
        /// What the check said.
        reason: String,
    },
}

/// The cache directory of this project, made if absent.
///
/// # Errors
/// When the environment names none or it cannot be made.
pub fn dir() -> Result<PathBuf, CacheError> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .ok_or(CacheError::NoDirectory)?;
    let dir = base.join("zeropod");
    fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
    Ok(dir)
}

/// Returns the directory of the entry `name-key`, building it if it is absent
/// or fails its check. The key holds everything that decides the content:
/// versions, architecture, settings.
///
/// `build` fills an empty directory; `check` looks whether a filled one works.
/// Two processes that want the same entry build it once.
///
/// # Errors
/// When the build fails, or when what it built fails the check.
pub fn entry(
    name: &str,
    key: &str,
    build: impl FnOnce(&Path) -> Result<(), String>,
    check: impl Fn(&Path) -> Result<(), String>,
) -> Result<PathBuf, CacheError> {
    entry_in(&dir()?, name, key, build, check)
}

fn entry_in(
    dir: &Path,
    name: &str,
    key: &str,
    build: impl FnOnce(&Path) -> Result<(), String>,
    check: impl Fn(&Path) -> Result<(), String>,
) -> Result<PathBuf, CacheError> {
    let entry = format!("{name}-{key}");
    let place = dir.join(&entry);
    // Unlocked when dropped, also by a crash.
    let lock_path = dir.join(format!("{entry}.lock"));
    let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
    lock.lock().map_err(io_error("lock", &lock_path))?;

    if place.exists() {
        if check(&place).is_ok() {
            return Ok(place);
        }
        remove(&place)?;
    }
    let draft = dir.join(format!("{entry}.draft"));
    remove(&draft)?;
    fs::create_dir(&draft).map_err(io_error("create", &draft))?;
    build(&draft).map_err(|reason| CacheError::Build { entry: entry.clone(), reason })?;
    check(&draft).map_err(|reason| CacheError::Broken { entry, reason })?;
    fs::rename(&draft, &place).map_err(io_error("rename to", &place))?;
    Ok(place)
}

fn remove(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |source| CacheError::Io { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn tool(dir: &Path) -> Result<(), String> {
        fs::write(dir.join("tool"), "works").map_err(|error| error.to_string())
    }

    fn works(dir: &Path) -> Result<(), String> {
        match fs::read_to_string(dir.join("tool")) {
            Ok(text) if text == "works" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn an_entry_is_built_once_and_again_when_it_breaks() {
        let dir = tempfile::tempdir().unwrap();
        let builds = Cell::new(0);
        let get = || {
            let build = |draft: &Path| {
                builds.set(builds.get() + 1);
                tool(draft)
            };
            entry_in(dir.path(), "tool", "1", build, works).unwrap()
        };
        let place = get();
        assert_eq!((get(), builds.get()), (place.clone(), 1));
        fs::write(place.join("tool"), "broken").unwrap();
        assert_eq!((get(), builds.get()), (place, 2));
    }

    #[test]
    fn a_failed_build_leaves_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let failed = entry_in(dir.path(), "tool", "1", |_| Err("no network".into()), works);
        assert_eq!(failed.unwrap_err().to_string(), "cannot build tool-1: no network");
        let broken = entry_in(dir.path(), "tool", "1", |_| Ok(()), works);
        assert!(matches!(broken, Err(CacheError::Broken { .. })));
        assert!(!dir.path().join("tool-1").exists());
    }
}
