//! The directory of the pins, and the sandboxes in it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use zeropod_shim_api::names::managed_by_shim_dir;

use crate::{Degraded, Error, ManagedBy};

/// Makes the directory if it is missing, and looks whether pins can be made
/// in it. Never mounts anything: a mount of ours would vanish with our pod,
/// and hide the host's.
pub(crate) fn prepare(maps_dir: &Path) -> Result<(), (Degraded, Error)> {
    let unusable =
        |action| move |source| (Degraded::MapsDirUnusable, Error::io(action, maps_dir)(source));
    let parent = maps_dir.parent().unwrap_or(maps_dir);
    let existing = if maps_dir.exists() { maps_dir } else { parent };
    let kind = statfs(existing).map_err(|errno| unusable("examine")(errno.into()))?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        let source = io::Error::other("it is on no BPF file system");
        return Err((Degraded::BpffsMissing, Error::io("keep pins in", maps_dir)(source)));
    }
    match fs::create_dir(maps_dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(unusable("create")(error))
        }
        _ => Ok(()),
    }
}

/// The sandboxes that have a directory and still run, and who attaches them.
pub(crate) fn list(maps_dir: &Path, host_proc: &Path) -> Result<BTreeMap<u32, ManagedBy>, Error> {
    let failed = || Error::io("read", maps_dir);
    let mut sandboxes = BTreeMap::new();
    for entry in fs::read_dir(maps_dir).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        let Some(pid) = name.to_str().and_then(pid) else { continue };
        if !host_proc.join(pid.to_string()).join("ns/net").exists() {
            continue;
        }
        // Such a shim makes the marker before the directory, so that it
        // cannot be missed here.
        let managed_by = if managed_by_shim_dir(maps_dir, pid).exists() {
            ManagedBy::Shim
        } else {
            ManagedBy::Manager
        };
        sandboxes.insert(pid, managed_by);
    }
    Ok(sandboxes)
}

/// A directory name that is a pid as the shims write it.
fn pid(name: &str) -> Option<u32> {
    let pid: u32 = name.parse().ok()?;
    (pid != 0 && pid.to_string() == name).then_some(pid)
}

/// Notices when the directory changes.
pub(crate) struct Watch {
    maps_dir: PathBuf,
    events: EventStream<[u8; 1024]>,
}

impl Watch {
    /// Begins to watch. What is listed after this cannot be missed.
    pub(crate) fn new(maps_dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(maps_dir, mask)?;
        let events = inotify.into_event_stream([0; 1024])?;
        Ok(Self { maps_dir: maps_dir.to_owned(), events })
    }

    /// Waits for the next change. `false`: the watch is over, because the
    /// directory is gone or the kernel reports an error. What changed is of
    /// no interest, and neither is an overflow: the directory is listed anew.
    pub(crate) async fn changed(&mut self) -> bool {
        match self.events.next().await {
            Some(Ok(_)) => self.maps_dir.exists(),
            Some(Err(_)) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pids_are_sandboxes() {
        assert_eq!(pid("4711"), Some(4711));
        for name in
            ["0", "007", "+7", "-7", "7_managed_by_shim", "socket_tracker", "", "4294967296"]
        {
            assert_eq!(pid(name), None, "{name}");
        }
    }
}
