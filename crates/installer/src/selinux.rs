//! Labels of `SELinux`: a file that a pod writes inherits the label of the
//! directory that it is written into, and from /opt or /var/lib the host may
//! run nothing (F-C23). On hosts without `SELinux` nothing of this happens.

use std::{fs::File, io, path::Path};

use rustix::{
    fs::{XattrFlags, fsetxattr, getxattr},
    io::Errno,
};

use crate::{Error, host::HostRoot};

const XATTR: &str = "security.selinux";

/// What every policy lets containerd and systemd run.
pub(crate) const PROGRAM: &str = "system_u:object_r:bin_t:s0";
/// What every policy lets programs load.
pub(crate) const LIBRARY: &str = "system_u:object_r:lib_t:s0";

/// Longest label that is looked at.
const MAX_LABEL: usize = 4096;

/// Whether the host has `SELinux`, enforcing or not.
pub(crate) fn is_on(host: &HostRoot) -> bool {
    host.exists(Path::new("/sys/fs/selinux/enforce")).unwrap_or(false)
}

/// Whether a file of the host has this label, or needs none.
pub(crate) fn is_labelled(host: &HostRoot, path: &Path, label: &str) -> Result<bool, Error> {
    if !is_on(host) {
        return Ok(true);
    }
    let real = host.resolve(path)?;
    match get(&real) {
        Ok(found) => Ok(found.as_deref().is_none_or(|found| found == label)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at the SELinux label of", path)(error)),
    }
}

/// The label of a file; `None` where the file system has none.
pub(crate) fn get(path: &Path) -> io::Result<Option<String>> {
    let mut label = vec![0; MAX_LABEL];
    match getxattr(path, XATTR, &mut label) {
        Ok(length) => {
            label.truncate(length);
            let text = String::from_utf8_lossy(&label);
            Ok(Some(text.trim_end_matches('\0').to_owned()))
        }
        // No label at all: what the policy makes of that it says itself.
        Err(Errno::NODATA) => Ok(Some(String::new())),
        Err(Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file a label, where the file system has labels.
pub(crate) fn set(file: &File, label: &str) -> io::Result<()> {
    match fsetxattr(file, XATTR, format!("{label}\0").as_bytes(), XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn labels_are_set_kept_and_compared_where_there_is_selinux() {
        // F-C23. Real attributes: without SELinux the kernel stores them for
        // root as they are.
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::new(dir.path());
        let path = Path::new("/shim");
        let write = |label| host.replace_as(path, &mut &b"x"[..], 0o755, label);
        let label = || get(&dir.path().join("shim")).unwrap();

        write(Some(PROGRAM)).unwrap();
        assert_ne!(label().as_deref(), Some(PROGRAM), "there is no SELinux");
        assert!(is_labelled(&host, path, PROGRAM).unwrap());

        fs::create_dir_all(dir.path().join("sys/fs/selinux")).unwrap();
        fs::write(dir.path().join("sys/fs/selinux/enforce"), "1").unwrap();
        let written = write(Some(PROGRAM));
        if label().is_none() || !nix::unistd::geteuid().is_root() {
            // Neither labels nor the right to set them: it says so at worst.
            return;
        }
        written.unwrap();
        assert_eq!(label().as_deref(), Some(PROGRAM));
        assert!(is_labelled(&host, path, PROGRAM).unwrap());
        assert!(!is_labelled(&host, path, LIBRARY).unwrap());
        assert!(!is_labelled(&host, Path::new("/none"), LIBRARY).unwrap());

        // What is replaced without a label of its own keeps the one it had.
        write(None).unwrap();
        assert_eq!(label().as_deref(), Some(PROGRAM));
        write(Some(LIBRARY)).unwrap();
        assert_eq!(label().as_deref(), Some(LIBRARY));
    }
}
