//! This machine: its tools, and what it takes to be root on it.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use crate::say;

/// Something that a task needs of the machine, with the Debian and Ubuntu
/// package that brings it.
pub(crate) struct Need {
    /// A program, or a file when it starts with `/`.
    pub(crate) what: &'static str,
    /// Its package.
    pub(crate) package: &'static str,
}

/// What every node in a box needs.
pub(crate) const NODE: [Need; 5] = [
    Need { what: "ip", package: "iproute2" },
    Need { what: "debootstrap", package: "debootstrap" },
    Need { what: "gpgv", package: "gpgv" },
    Need { what: "runc", package: "runc" },
    Need {
        what: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
    },
];

/// What the real kube-apiserver needs, to be built.
pub(crate) const KUBERNETES: [Need; 1] = [Need { what: "go", package: "golang" }];

/// What the tests need on top.
pub(crate) const TESTS: [Need; 12] = [
    Need { what: "bpftool", package: "bpftool" },
    Need { what: "ethtool", package: "ethtool" },
    Need { what: "tcpdump", package: "tcpdump" },
    Need { what: "systemd-nspawn", package: "systemd-container" },
    Need { what: "promtool", package: "prometheus" },
    Need { what: "chromium", package: "chromium" },
    Need { what: "chromedriver", package: "chromium-driver" },
    Need { what: "strace", package: "strace" },
    Need { what: "docker-registry", package: "docker-registry" },
    Need { what: "skopeo", package: "skopeo" },
    Need { what: "containerd", package: "containerd" },
    Need { what: "strip", package: "binutils" },
];

/// Installs what is missing, after saying so.
///
/// # Errors
/// When something is missing and apt is not there or fails.
pub(crate) fn install(needs: &[&[Need]]) -> Result<(), Box<dyn Error>> {
    let mut missing: Vec<_> = needs
        .iter()
        .flat_map(|needs| needs.iter())
        .filter(|need| !exists(need.what))
        .map(|need| need.package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        return Err(format!("missing on this machine: {list} (Debian package names)").into());
    }
    say(&format!("Installing with apt-get: {list}"));
    let apt = |arguments: &[&str]| {
        // Through `env`, since sudo drops the environment.
        let quiet = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"];
        run(as_root("env").args(quiet).args(arguments))
    };
    apt(&["update"])?;
    apt(&["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(missing)
        .collect::<Vec<_>>())
}

/// A command that runs as root: itself, or through sudo with this environment.
pub(crate) fn as_root(program: impl AsRef<Path>) -> Command {
    if is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program.as_ref());
    command
}

/// Whether this process is root. Its effective user id is the owner of its
/// directory in `/proc`.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

/// Runs a command to its end and returns how it ended.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, Box<dyn Error>> {
    command.status().map_err(|error| format!("cannot start {command:?}: {error}").into())
}

/// A `cargo` command in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Builds the programs of a node in a box, and returns the directory that they
/// are in.
///
/// # Errors
/// When they do not build.
pub(crate) fn build_box() -> Result<PathBuf, Box<dyn Error>> {
    let package = ["--package", "zeropod-testkit", "--features", "box", "--bins"];
    run(cargo().args(["build", "--quiet"]).args(package))?;
    Ok(target("debug"))
}

/// The workspace's root directory.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where cargo puts what it builds with the given profile directory name.
pub(crate) fn target(profile: &str) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
        .join(profile)
}

fn exists(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { find(what).is_some() }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // The system directories are not on every user's PATH.
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
