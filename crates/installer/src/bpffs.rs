//! Mounting the BPF file system: pins live in it, and have to outlive the pod
//! (F-D4).

use std::path::Path;

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::Error;

/// Where it is on every host.
pub const BPF_FS: &str = "/sys/fs/bpf";

/// Mounts a BPF file system on a directory, unless it is one already. Returns
/// whether it mounted it.
///
/// # Errors
/// When it is neither one nor can become one. In a pod that needs privileges,
/// and bidirectional propagation of the mount.
pub fn prepare(dir: &Path) -> Result<bool, Error> {
    if is_bpf_fs(dir)? {
        return Ok(false);
    }
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| Error::io("mount the BPF file system on", dir)(errno.into()))?;
    Ok(true)
}

/// Whether a directory is on a BPF file system.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_bpf_fs(dir: &Path) -> Result<bool, Error> {
    let kind = statfs(dir).map_err(|errno| Error::io("look at", dir)(errno.into()))?;
    Ok(kind.filesystem_type() == BPF_FS_MAGIC)
}
