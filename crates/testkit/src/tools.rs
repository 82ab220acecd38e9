//! Programs that the stand-ins need and that a machine may lack or have too
//! old: CRIU, from Debian sid into the [cache](mod@crate::cache), runc, from the
//! machine's own packages, and a ttrpc peer in Go.
//!
//! Neither Debian 12's nor 13's CRIU dumps a process with a socket on kernels
//! from 6.16 on, so that its version matters; runc's does not, and runc starts
//! its own executable again, which rules out the wrapper that CRIU gets.

use std::{
    collections::BTreeSet,
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use thiserror::Error;

use crate::{
    cache::{self, CacheError},
    go_module::GoModule,
};

/// Debian and Ubuntu packages that [`criu`] and [`runc`] need.
pub const APT_PACKAGES: [&str; 4] = ["debootstrap", "debian-archive-keyring", "gpgv", "runc"];

/// Oldest CRIU that works on current kernels.
pub const MINIMUM_CRIU: (u32, u32, u32) = (4, 2, 1);

/// Why a tool cannot be used.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{tool} is not in PATH; install the package {package}")]
    Missing {
        /// The program.
        tool: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// It could not be built.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It is there, but cannot work on this machine.
    #[error("CRIU cannot work on this machine: {0}")]
    Unusable(String),
}

/// Directory that holds a working `criu`, to be put first in the `PATH` of
/// whoever starts it. The first call takes some 20 s and 110 MB of downloads.
///
/// # Errors
/// When Debian's packages cannot be had, or this kernel or this container
/// forbids what CRIU does (`criu check`, which needs root).
pub fn criu() -> Result<PathBuf, ToolError> {
    let key = format!("sid-{}-1", env::consts::ARCH);
    if !cache::dir()?.join(format!("criu-{key}")).exists() {
        find("debootstrap", "debootstrap")?;
    }
    let bin = cache::entry("criu", &key, build_criu, check_criu_version)?.join("bin");
    output(Command::new(bin.join("criu")).arg("check")).map_err(ToolError::Unusable)?;
    Ok(bin)
}

/// A peer that speaks the shim protocol by Go's own ttrpc; its source says how
/// to run it.
///
/// # Errors
/// When there is no Go, or the module does not build.
pub fn ttrpc_peer() -> Result<PathBuf, ToolError> {
    Ok(TTRPC_PEER.program()?)
}

const TTRPC_PEER: GoModule = GoModule {
    name: "ttrpc-peer",
    sources: &[
        ("go.mod", include_str!("../go/ttrpc-peer/go.mod")),
        ("go.sum", include_str!("../go/ttrpc-peer/go.sum")),
        ("main.go", include_str!("../go/ttrpc-peer/main.go")),
    ],
    package: ".",
    check: &["-h"],
};

/// The real containerd-shim-zeropod-v2, of zeropod 0.12.1.
///
/// # Errors
/// When there is no Go, or the module does not build.
pub fn zeropod_shim() -> Result<PathBuf, ToolError> {
    Ok(ZEROPOD_SHIM.program()?)
}

const ZEROPOD_SHIM: GoModule = GoModule {
    name: "containerd-shim-zeropod-v2",
    sources: &[
        ("go.mod", include_str!("../go/zeropod-shim/go.mod")),
        ("go.sum", include_str!("../go/zeropod-shim/go.sum")),
        ("tools.go", include_str!("../go/zeropod-shim/tools.go")),
    ],
    package: "github.com/ctrox/zeropod/cmd/shim",
    check: &["-v"],
};

/// Path of `kubectl`: the machine's own, or one built from its Go module, since
/// not every distribution packages it.
///
/// # Errors
/// When there is none and it cannot be built.
pub fn kubectl() -> Result<PathBuf, ToolError> {
    match find("kubectl", "kubectl") {
        Ok(path) => Ok(path),
        Err(_) => Ok(KUBECTL.program()?),
    }
}

const KUBECTL: GoModule = GoModule {
    name: "kubectl",
    sources: &[
        ("go.mod", include_str!("../go/kubectl/go.mod")),
        ("go.sum", include_str!("../go/kubectl/go.sum")),
        ("main.go", include_str!("../go/kubectl/main.go")),
    ],
    package: ".",
    check: &["version", "--client"],
};

/// A program that renders charts as Helm does; its source says how to run it.
///
/// # Errors
/// When there is no Go, or the module does not build.
pub fn helm_template() -> Result<PathBuf, ToolError> {
    Ok(HELM_TEMPLATE.program()?)
}

const HELM_TEMPLATE: GoModule = GoModule {
    name: "helm-template",
    sources: &[
        ("go.mod", include_str!("../go/helm-template/go.mod")),
        ("go.sum", include_str!("../go/helm-template/go.sum")),
        ("main.go", include_str!("../go/helm-template/main.go")),
    ],
    package: ".",
    check: &["-h"],
};

/// A checker of workflows of GitHub Actions.
///
/// # Errors
/// When there is no Go, or the module does not build.
pub fn actionlint() -> Result<PathBuf, ToolError> {
    Ok(ACTIONLINT.program()?)
}

const ACTIONLINT: GoModule = GoModule {
    name: "actionlint",
    sources: &[
        ("go.mod", include_str!("../go/actionlint/go.mod")),
        ("go.sum", include_str!("../go/actionlint/go.sum")),
        ("main.go", include_str!("../go/actionlint/main.go")),
    ],
    package: ".",
    check: &["-version"],
};

/// Path of `runc`.
///
/// # Errors
/// When it is not in `PATH`.
pub fn runc() -> Result<PathBuf, ToolError> {
    find("runc", "runc")
}

fn find(tool: &'static str, package: &'static str) -> Result<PathBuf, ToolError> {
    // Administrators' directories are missing from some users' PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|path| path.is_file())
        .ok_or(ToolError::Missing { tool, package })
}

/// Unpacks CRIU and the libraries it needs below `root`, without touching the
/// machine's own, and puts a wrapper into `bin`.
fn build_criu(dir: &Path) -> Result<(), String> {
    let download = dir.join("download");
    let debootstrap = find("debootstrap", "debootstrap").map_err(|error| error.to_string())?;
    output(
        Command::new(debootstrap)
            .args(["--variant=minbase", "--include=criu", "--download-only", "sid"])
            .arg(&download),
    )?;
    let root = dir.join("root");
    unpack("criu", &download.join("var/cache/apt/archives"), &root)?;
    for left_over in [download, root.join("usr/share")] {
        fs::remove_dir_all(&left_over).map_err(|error| at(&left_over, &error))?;
    }

    let (lib, loader) = loader(&root.join("usr/lib"))?;
    let bin = dir.join("bin");
    fs::create_dir(&bin).map_err(|error| at(&bin, &error))?;
    // By its own loader, since sid's C library is newer than the machine's. By
    // a path of its own, since the cache entry is built beside its place.
    let script = format!(
        "#!/bin/sh\nroot=${{0%/*}}/../root/usr\n\
         exec \"$root/lib/{lib}/{loader}\" --library-path \"$root/lib/{lib}\" \"$root/sbin/criu\" \"$@\"\n"
    );
    let wrapper = bin.join("criu");
    fs::write(&wrapper, script).map_err(|error| at(&wrapper, &error))?;
    make_executable(&wrapper).map_err(|error| at(&wrapper, &error))
}

/// Unpacks a package and, recursively, the libraries it depends on.
fn unpack(package: &str, archives: &Path, root: &Path) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    let mut wanted = vec![package.to_owned()];
    while let Some(package) = wanted.pop() {
        if !seen.insert(package.clone()) {
            continue;
        }
        let deb = find_deb(&package, archives)?;
        output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(root))?;
        let depends = output(Command::new("dpkg-deb").arg("-f").arg(&deb).arg("Depends"))?;
        wanted.extend(libraries(&String::from_utf8_lossy(&depends.stdout)));
    }
    Ok(())
}

fn find_deb(package: &str, archives: &Path) -> Result<PathBuf, String> {
    let prefix = format!("{package}_");
    fs::read_dir(archives)
        .map_err(|error| at(archives, &error))?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .ok_or_else(|| format!("debootstrap downloaded no package {package}"))
}

/// Names of the library packages of a `Depends` field.
fn libraries(depends: &str) -> impl Iterator<Item = String> {
    depends
        .split(',')
        .filter_map(|one| one.trim().split([' ', ':', '|']).next())
        .filter(|name| name.starts_with("lib"))
        .map(str::to_owned)
}

/// Finds `<triplet>` and the dynamic loader in it.
fn loader(lib: &Path) -> Result<(String, String), String> {
    for triplet in fs::read_dir(lib).map_err(|error| at(lib, &error))?.filter_map(Result::ok) {
        let Ok(files) = fs::read_dir(triplet.path()) else { continue };
        for file in files.filter_map(Result::ok) {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with("ld-linux") {
                return Ok((triplet.file_name().to_string_lossy().into_owned(), name));
            }
        }
    }
    Err(format!("no dynamic loader in {}", lib.display()))
}

fn check_criu_version(dir: &Path) -> Result<(), String> {
    let output = output(Command::new(dir.join("bin/criu")).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = criu_version(&text).ok_or_else(|| format!("unknown version: {text:?}"))?;
    if version < MINIMUM_CRIU {
        return Err(format!("version {version:?} is older than {MINIMUM_CRIU:?}"));
    }
    Ok(())
}

/// Reads `Version: 4.2.1`; a missing last number counts as 0.
fn criu_version(text: &str) -> Option<(u32, u32, u32)> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version:"))?;
    let mut numbers = version.trim().split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    let patch = numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Some((major, minor, patch))
}

fn output(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    // debootstrap says what went wrong on stdout, others on stderr.
    let both = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<_> = text.lines().rev().take(5).collect();
    let last = lines.into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(format!("{name} ended with {}: {last}", output.status))
}

fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(criu_version("Version: 4.2.1\n"), Some((4, 2, 1)));
        assert_eq!(criu_version("Version: 3.17\nGitID: x"), Some((3, 17, 0)));
        assert_eq!(criu_version("criu 4"), None);
        assert!((4, 10, 0) > MINIMUM_CRIU && (4, 1, 1) < MINIMUM_CRIU);
    }

    #[test]
    fn only_libraries_are_followed() {
        let depends = "libc6 (>= 2.38), python3:any, libnl-3-200, libfoo1:amd64 | libbar1\n";
        assert_eq!(libraries(depends).collect::<Vec<_>>(), ["libc6", "libnl-3-200", "libfoo1"]);
    }
}
