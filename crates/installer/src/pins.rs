//! What is left in the BPF file system of a node that has no zeropods any
//! more: pins outlive everyone who made them (I4).

use std::{fs, io, path::Path};

use zeropod_shim_api::names::MAPS_DIR;

use crate::{Error, bpffs::is_bpf_fs, host::HostRoot};

/// The manager's programs that watch the whole node, beside the pins of
/// sandboxes.
const NODE_DIR: &str = "/sys/fs/bpf/zeropod_node";

/// Removes the pins of the node and of sandboxes. Nobody else has any in these
/// directories. To be called when no zeropods are left: the redirectors of
/// running ones go by it.
///
/// # Errors
/// When something of it stays.
pub(crate) fn remove(host: &HostRoot) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    for dir in [NODE_DIR, MAPS_DIR].map(Path::new) {
        let real = host.resolve(dir)?;
        // Elsewhere than on a BPF file system it is not ours.
        if real.is_dir() && is_bpf_fs(&real)? {
            match fs::remove_dir_all(&real) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", dir)(error));
                }
                _ => lines.push(format!("{}: removed", dir.display())),
            }
        }
    }
    Ok(lines)
}
