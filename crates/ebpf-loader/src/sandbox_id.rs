//! Tells a sandbox from an earlier one with the same pid.
//!
//! What is pinned for a sandbox is named by its pid alone. So a symlink
//! beside the pins says which sandbox of that pid it was (bpffs takes no
//! regular files).

use std::{
    fmt, fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    str::FromStr,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// Name of the symlink.
const FILE: &str = "identity";

/// Which sandbox it is, among all that ever had its pid on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SandboxId {
    /// Device of the `/proc` that it is seen in: nodes that share a BPF file
    /// system but not their processes (kind) differ in it.
    node: u64,
    /// Inode of its network namespace.
    namespace: u64,
    /// When its process was started, in 1/100 s since the machine was.
    start: u64,
}

impl SandboxId {
    /// That of the sandbox that has this pid now.
    pub(crate) fn of(host_proc: &Path, pid: u32) -> io::Result<Self> {
        let process = host_proc.join(pid.to_string());
        let namespace = fs::metadata(process.join("ns/net"))?.ino();
        let about = fs::read_to_string(process.join("stat"))?;
        let start = start_time(&about).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { node: node(host_proc)?, namespace, start })
    }

    /// That of the sandbox that was recorded beside the pins, if one was.
    pub(crate) fn recorded(pins: &Path) -> Option<Self> {
        fs::read_link(pins.join(FILE)).ok()?.to_str()?.parse().ok()
    }

    /// Records it beside the pins.
    pub(crate) fn record(&self, pins: &Path) -> io::Result<()> {
        match fs::remove_file(pins.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(self.to_string(), pins.join(FILE))
    }

    /// Whether it was a sandbox of the node whose `/proc` this is.
    pub(crate) fn is_of_node(&self, host_proc: &Path) -> bool {
        node(host_proc).is_ok_and(|node| node == self.node)
    }

    /// When its process was started, on the clock of the activity tracker
    /// (`CLOCK_MONOTONIC`, which stands still while the machine sleeps).
    pub(crate) fn start(&self) -> io::Result<Duration> {
        let start = Duration::from_millis(self.start.saturating_mul(10));
        let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
        let awake = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        Ok(start.saturating_sub(since_boot.saturating_sub(awake)))
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, namespace, start } = self;
        write!(f, "node:{node} net:{namespace} start:{start}")
    }
}

impl FromStr for SandboxId {
    type Err = io::ErrorKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(' ');
        let mut number = |name: &str| {
            let word = words.next()?.strip_prefix(name)?;
            word.strip_prefix(':')?.parse().ok()
        };
        let id = (|| {
            Some(Self { node: number("node")?, namespace: number("net")?, start: number("start")? })
        })();
        id.ok_or(io::ErrorKind::InvalidData)
    }
}

fn node(host_proc: &Path) -> io::Result<u64> {
    Ok(fs::metadata(host_proc)?.dev())
}

/// Field 22 of `/proc/<pid>/stat`. The second is in parentheses and may hold
/// anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_being_written() {
        let id = SandboxId { node: 21, namespace: 4_026_532_281, start: 123_456 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for broken in ["", "node:1", "node:1 net:2 start:", "net:1 node:2 start:3"] {
            assert!(SandboxId::from_str(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_moves_no_field() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(&format!("17 (a) b (c) {fields}")), Some(4711));
        assert_eq!(start_time("17 (a) S 1"), None);
    }

    #[test]
    fn a_process_keeps_its_id() {
        let (proc, pid) = (Path::new("/proc"), std::process::id());
        let id = SandboxId::of(proc, pid).unwrap();
        assert_eq!(SandboxId::of(proc, pid).unwrap(), id);
        assert!(id.is_of_node(proc) && !id.is_of_node(Path::new("/dev")));
        assert!(id.start().unwrap() <= clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into());
    }
}
