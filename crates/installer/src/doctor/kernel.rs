//! The kernel that this runs on, which is the host's.

use std::path::Path;

use super::{Check, Status, fail, ok, unknown};
use crate::{
    bpffs::{BPF_FS, is_bpf_fs},
    config::Source as _,
    host::HostRoot,
};

/// Looks at what zeropod needs of the kernel.
pub fn kernel(host: &HostRoot) -> Vec<Check> {
    let release = read(host, "/proc/sys/kernel/osrelease");
    let version = release.as_deref().and_then(major_minor);
    let exists = |path: &str| host.exists(Path::new(path)).unwrap_or(false);
    let bpf_fs = host.resolve(Path::new(BPF_FS)).and_then(|path| is_bpf_fs(&path));
    vec![
        match (&release, version) {
            (Some(release), Some(version)) if version >= (6, 6) => {
                ok("kernel", format!("{release}: redirects by TCX"))
            }
            (Some(release), Some(version)) if version >= (5, 17) => Check {
                name: "kernel",
                status: Status::Warn,
                detail: format!("{release}: redirects by the older clsact hook"),
                hint: "TCX, which shares an interface with other programs, needs 6.6",
            },
            (release, _) => Check {
                name: "kernel",
                status: Status::Fail,
                detail: release.clone().unwrap_or_else(|| "its release is unknown".into()),
                hint: "the redirector needs bpf_strncmp, so Linux 5.17 or later",
            },
        },
        if exists("/sys/kernel/btf/vmlinux") {
            ok("kernel BTF", "present")
        } else {
            fail("kernel BTF", "absent", "a kernel with CONFIG_DEBUG_INFO_BTF is needed")
        },
        match bpf_fs {
            Ok(true) => ok("bpffs", format!("mounted on {BPF_FS}")),
            Ok(false) => fail(
                "bpffs",
                format!("{BPF_FS} is another file system"),
                "run `zeropod-installer prepare-bpf-fs` with bidirectional propagation",
            ),
            Err(error) => unknown("bpffs", error.to_string()),
        },
        if exists("/proc/sys/vm/unprivileged_userfaultfd") || exists("/dev/userfaultfd") {
            ok("userfaultfd", "present")
        } else {
            Check {
                name: "userfaultfd",
                status: Status::Warn,
                detail: "absent".into(),
                hint: "live migration needs CONFIG_USERFAULTFD; everything else works",
            }
        },
        security(host),
    ]
}

fn security(host: &HostRoot) -> Check {
    let selinux = read(host, "/sys/fs/selinux/enforce");
    let apparmor = read(host, "/sys/module/apparmor/parameters/enabled");
    match (selinux.as_deref(), apparmor.as_deref()) {
        (Some("1"), _) => Check {
            name: "security module",
            status: Status::Warn,
            detail: "SELinux enforces".into(),
            hint: "if containerd has enable_selinux, see docs/containerd.md",
        },
        (_, Some("Y")) => ok("security module", "AppArmor"),
        _ => ok("security module", "none that restricts"),
    }
}

fn read(host: &HostRoot, path: &str) -> Option<String> {
    let content = host.read(Path::new(path)).ok()??;
    Some(String::from_utf8_lossy(&content).trim().to_owned())
}

fn major_minor(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn old_kernels_are_told() {
        // F-B8.
        for (release, status) in [
            ("6.18.5", Status::Ok),
            ("6.6.0-rc1", Status::Ok),
            ("5.17.0-100-generic", Status::Warn),
            ("5.10.210-201.852.amzn2.x86_64", Status::Fail),
            ("unknown", Status::Fail),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("proc/sys/kernel");
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("osrelease"), format!("{release}\n")).unwrap();
            let checks = kernel(&HostRoot::new(dir.path()));
            assert_eq!((checks[0].name, checks[0].status), ("kernel", status), "{release}");
        }
    }
}
