//! Debian root directories with containerd in them, and containerd releases
//! that Debian does not have, kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::node::{Node, wait_for};
use zeropod_testkit::cache::{self, CacheError};

/// What a booted node needs.
const PACKAGES: &str = "containerd,runc,criu,systemd,systemd-sysv,dbus,busybox-static";

/// A root directory of a Debian suite: `trixie` has containerd 1.7, `sid` 2.1.
pub(crate) fn debian(suite: &str) -> PathBuf {
    let build = |dir: &Path| {
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), suite]).arg(dir);
        run(&mut debootstrap)?;
        // Nobody installs anything into it later.
        for rest in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc"] {
            fs::remove_dir_all(dir.join(rest)).map_err(|error| format!("{rest}: {error}"))?;
        }
        Ok(())
    };
    cache::entry(&format!("debian-{suite}"), &key(PACKAGES), build, |dir| {
        works(dir, "/usr/bin/containerd")
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// A node with the release that starts with the least (F-A4).
pub(crate) fn node_2_3_4() -> Node {
    let release = released("2.3.4").join("usr/local/bin/containerd");
    let node = Node::boot(&debian("trixie"), &[]);
    node.run(&["systemctl", "stop", "containerd"]).ok();
    node.run(&["rm", "/usr/bin/containerd"]).ok();
    fs::copy(release, node.path("/usr/bin/containerd")).unwrap();
    node.run(&["systemctl", "start", "containerd"]).ok();
    wait_for("containerd 2.3.4", || node.handlers());
    assert!(node.run(&["containerd", "--version"]).ok().contains("2.3.4"));
    node
}

/// A directory with `usr/local/bin/containerd` of that version.
pub(crate) fn released(version: &str) -> PathBuf {
    let package = "github.com/containerd/containerd/v2/cmd/containerd";
    built("containerd", package, version, "--version")
        .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// The Go installer of zeropod 0.12.1.
///
/// # Errors
/// When it cannot be built here.
pub(crate) fn go_installer() -> Result<PathBuf, CacheError> {
    let package = "github.com/ctrox/zeropod/cmd/installer";
    Ok(built("installer", package, "0.12.1", "-version")?.join("usr/local/bin/installer"))
}

/// A directory with a program in `usr/local/bin`, statically linked, built from
/// its Go module.
fn built(name: &str, package: &str, version: &str, check: &str) -> Result<PathBuf, CacheError> {
    let build = |dir: &Path| {
        let module = dir.join("module");
        fs::create_dir_all(&module).map_err(|error| error.to_string())?;
        fs::write(module.join("go.mod"), "module built\n\ngo 1.25\n")
            .map_err(|error| error.to_string())?;
        let go = |args: &[&str]| {
            let mut go = Command::new("go");
            go.current_dir(&module).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").args(args);
            run(&mut go)
        };
        go(&["get", &format!("{package}@v{version}")])?;
        let program = dir.join("usr/local/bin").join(name);
        go(&["build", "-trimpath", "-ldflags=-s -w", "-o", &program.to_string_lossy(), package])?;
        fs::remove_dir_all(&module).map_err(|error| error.to_string())
    };
    cache::entry(name, &key(version), build, |dir| {
        run(Command::new(dir.join("usr/local/bin").join(name)).arg(check))
    })
}

fn works(root: &Path, program: &str) -> Result<(), String> {
    run(Command::new("chroot").arg(root).args([program, "--version"]))
}

fn key(settings: &str) -> String {
    let settings: String = settings
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    format!("{settings}-{}", std::env::consts::ARCH)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    };
    Err(format!(
        "{command:?}: {}: {} {}",
        output.status,
        last(&output.stderr),
        last(&output.stdout)
    ))
}
