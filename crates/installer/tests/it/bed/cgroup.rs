//! A control group for each booted node. Without one the systemds of all nodes
//! would manage the same groups, and one could remove the group in which
//! another is just starting its containerd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Where version 2 is mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Where systemd-nspawn makes the same groups again on hosts of version 1.
const MIRROR: &str = "/sys/fs/cgroup/systemd";

/// Removed, with everything below, when it is dropped.
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    pub(super) fn create(name: &str) -> Self {
        let is_v2 = |mount: &&str| Path::new(mount).join("cgroup.procs").exists();
        let mount = MOUNTS.into_iter().find(is_v2).expect("control groups of version 2");
        let path = Path::new(mount).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A command whose process is in the group from the start.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
            .arg(&self.0)
            .arg(program);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let end = Instant::now() + Duration::from_secs(30);
        while self.0.exists() && Instant::now() < end {
            remove(&self.0);
            std::thread::sleep(Duration::from_millis(10));
        }
        remove(&Path::new(MIRROR).join(self.0.file_name().unwrap_or_default()));
    }
}

/// Removes groups from the leaves up; one with processes stays.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
