//! The directory of the pins, and the sandboxes in it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask};
use nix::sys::{
    stat::{major, minor},
    statfs::{BPF_FS_MAGIC, statfs},
    statvfs::FsFlags,
};
use zeropod_shim_api::names::{managed_by_shim_dir, sandbox_maps_dir};

use crate::{Degraded, Error, ManagedBy, bpf, sandbox_id::SandboxId};

/// Makes the directory if it is missing, and looks whether pins can be made
/// in it. Never mounts anything: a mount of ours would vanish with our pod,
/// and hide the host's (F-D4).
pub(crate) fn prepare(maps_dir: &Path, host_proc: &Path) -> Result<(), (Degraded, Error)> {
    let failed = |action| {
        move |source: io::Error| {
            let forbidden = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
            let why = if forbidden.contains(&source.kind()) {
                Degraded::BpffsNotWritable
            } else {
                Degraded::MapsDirUnusable
            };
            (why, Error::io(action, maps_dir)(source))
        }
    };
    let parent = maps_dir.parent().unwrap_or(maps_dir);
    let existing = if maps_dir.exists() { maps_dir } else { parent };
    let mount = statfs(existing).map_err(|errno| failed("examine")(errno.into()))?;
    if mount.filesystem_type() != BPF_FS_MAGIC {
        let source = io::Error::other("it is on no BPF file system");
        return Err((Degraded::BpffsMissing, Error::io("keep pins in", maps_dir)(source)));
    }
    let device = fs::metadata(existing).map_err(failed("examine"))?.dev();
    if !is_the_hosts(device, host_proc) {
        let source = io::Error::other("its BPF file system is not one of the host's mounts");
        return Err((Degraded::BpffsNotTheHosts, Error::io("keep pins in", maps_dir)(source)));
    }
    if mount.flags().contains(FsFlags::ST_RDONLY) {
        return Err(failed("keep pins in")(io::ErrorKind::ReadOnlyFilesystem.into()));
    }
    match fs::create_dir(maps_dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create")(error)),
        _ => Ok(()),
    }
}

/// Whether the host's first process has mounted the BPF file system that is
/// this device. Where nobody may look at its mounts, it is believed to.
fn is_the_hosts(device: u64, host_proc: &Path) -> bool {
    match fs::read_to_string(host_proc.join("1/mountinfo")) {
        Ok(mounts) => bpf_mounts(&mounts).any(|mount| mount == (major(device), minor(device))),
        Err(_) => true,
    }
}

/// Devices of the BPF file systems in a `/proc/<pid>/mountinfo`, whose lines
/// are `36 35 98:0 /root /point options [fields] - type source options`.
fn bpf_mounts(mounts: &str) -> impl Iterator<Item = (u64, u64)> {
    mounts.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
        let is_bpf = file_system.split(' ').next() == Some("bpf");
        is_bpf.then_some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// The sandboxes that have a directory: those that run, with who attaches
/// them, and those that do not, as `None`.
pub(crate) fn list(
    maps_dir: &Path,
    host_proc: &Path,
) -> Result<BTreeMap<u32, Option<ManagedBy>>, Error> {
    let failed = || Error::io("read", maps_dir);
    let mut sandboxes = BTreeMap::new();
    for entry in fs::read_dir(maps_dir).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        let Some(pid) = name.to_str().and_then(pid) else { continue };
        // One that may not be looked at is there all the same.
        let namespace = fs::metadata(host_proc.join(pid.to_string()).join("ns/net"));
        let is_gone = namespace.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let managed_by = (!is_gone).then(|| {
            // Such a shim makes the marker before the directory, so that it
            // cannot be missed here.
            if managed_by_shim_dir(maps_dir, pid).exists() {
                ManagedBy::Shim
            } else {
                ManagedBy::Manager
            }
        });
        sandboxes.insert(pid, managed_by);
    }
    Ok(sandboxes)
}

/// Removes what is left of a sandbox whose process is gone (R2), unless it may
/// be that of another node which shares the BPF file system but not the
/// processes, as in kind. Returns whether it did.
///
/// A link whose interface is gone is proof. Without links (clsact, or never
/// attached) the recorded identity must be one of this node.
pub(crate) fn collect(maps_dir: &Path, host_proc: &Path, pid: u32) -> Result<bool, Error> {
    let pins = sandbox_maps_dir(maps_dir, pid);
    let mut dead = 0;
    for entry in fs::read_dir(&pins).map_err(Error::io("read", &pins))? {
        let entry = entry.map_err(Error::io("read", &pins))?;
        if !entry.file_name().to_string_lossy().starts_with("tcx_") {
            continue;
        }
        let path = entry.path();
        let link = bpf::open(&path).map_err(Error::io("open", &path))?;
        match bpf::link_info(link).map_err(Error::io("examine", &path))? {
            Some(link) if link.interface == 0 => dead += 1,
            _ => return Ok(false),
        }
    }
    let is_ours = || SandboxId::recorded(&pins).is_some_and(|id| id.is_of_node(host_proc));
    if dead == 0 && !is_ours() {
        return Ok(false);
    }
    for dir in [pins, managed_by_shim_dir(maps_dir, pid)] {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", dir)(error));
            }
            _ => {}
        }
    }
    Ok(true)
}

/// A directory name that is a pid as the shims write it.
fn pid(name: &str) -> Option<u32> {
    let pid: u32 = name.parse().ok()?;
    (pid != 0 && pid.to_string() == name).then_some(pid)
}

/// Changes that are taken for one, so that a storm of them ends in few looks
/// and yet in some.
const MOST_EVENTS: usize = 4096;

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

    /// Waits for changes, and takes all that came until then. `false`: the
    /// watch is over, because the directory is gone or the kernel reports an
    /// error. What changed is of no interest, and neither is an overflow: the
    /// directory is listed anew.
    pub(crate) async fn changed(&mut self) -> bool {
        let mut event = self.events.next().await;
        for _ in 0..MOST_EVENTS {
            if !matches!(event, Some(Ok(_))) {
                return false;
            }
            match self.events.next().now_or_never() {
                Some(next) => event = next,
                None => break,
            }
        }
        self.maps_dir.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bpf_file_systems_hold_pins() {
        let mounts = "\
            24 29 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n\
            31 24 0:28 / /sys/fs/bpf rw,relatime shared:9 master:1 - bpf bpf rw,mode=700\n\
            36 35 98:0 /a\\040b /mnt rw,noatime - ext3 /dev/root rw\n\
            broken\n";
        assert_eq!(bpf_mounts(mounts).collect::<Vec<_>>(), [(0, 28)]);
        assert_eq!(bpf_mounts("").count(), 0);
    }

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
