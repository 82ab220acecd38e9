//! The pod of a sandbox, for whoever wants to tell it something.

use std::{fs, path::Path};

/// UID of the pod that a sandbox's process belongs to, by the name of its
/// control group. `None` when there is no such process, or none of a pod.
pub fn pod_uid(host_proc: &Path, pid: u32) -> Option<String> {
    let groups = fs::read_to_string(host_proc.join(pid.to_string()).join("cgroup")).ok()?;
    groups.lines().find_map(uid_of_group)
}

/// The kubelet's cgroup drivers name a pod's group `pod<uid>` (cgroupfs) or
/// `kubepods-burstable-pod<uid>.slice` with underscores (systemd).
fn uid_of_group(group: &str) -> Option<String> {
    group.split('/').rev().find_map(|name| {
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let (before, uid) = name.rsplit_once("pod")?;
        let uid = uid.replace('_', "-");
        ((before.is_empty() || before.ends_with('-')) && is_uid(&uid)).then_some(uid)
    })
}

/// A UUID, or the hash that stands for one in static pods.
fn is_uid(uid: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lengths: Vec<_> = uid.split('-').map(str::len).collect();
    uid.split('-').all(is_hex) && (lengths == [8, 4, 4, 4, 12] || lengths == [32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drivers_and_both_versions_tell() {
        let uid = "3b1f0c52-7a1e-4c0e-9c8b-0d5a3a1f9e77";
        for group in [
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-\
             pod3b1f0c52_7a1e_4c0e_9c8b_0d5a3a1f9e77.slice/cri-containerd-4711.scope",
            "0::/kubepods.slice/kubepods-pod3b1f0c52_7a1e_4c0e_9c8b_0d5a3a1f9e77.slice",
            "11:memory:/kubepods/besteffort/pod3b1f0c52-7a1e-4c0e-9c8b-0d5a3a1f9e77/4711",
            "0::/../../pod3b1f0c52-7a1e-4c0e-9c8b-0d5a3a1f9e77/4711",
        ] {
            assert_eq!(uid_of_group(group).as_deref(), Some(uid), "{group}");
        }
        let hash = "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/4711";
        assert_eq!(uid_of_group(hash).as_deref(), Some("0123456789abcdef0123456789abcdef"));
    }

    #[test]
    fn other_groups_are_no_pods() {
        for group in [
            "0::/",
            "",
            "0::/system.slice/podman.service",
            "0::/kubepods/besteffort/podx",
            "0::/tripod3b1f0c52-7a1e-4c0e-9c8b-0d5a3a1f9e77",
            "0::/kubepods/pod3b1f0c52-7a1e-4c0e-9c8b",
        ] {
            assert_eq!(uid_of_group(group), None, "{group}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_of_no_pod() {
        assert_eq!(pod_uid(Path::new("/proc"), u32::MAX), None);
    }
}
