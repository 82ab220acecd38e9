//! Builds the eBPF objects that `ebpf-loader` embeds, or compares a fresh build
//! with them, so that nobody else needs a BPF toolchain.
//!
//! An object is the same whoever builds it: rustc and the linker are pinned,
//! paths are remapped, and what only a debugger reads is taken out.

mod object;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use zeropod_testkit::cache;

use crate::say;

/// The last version that works with rustc's own LLVM; later ones want LLVM's
/// development packages.
const LINKER_VERSION: &str = "0.10.3";
const PACKAGE: &str = "zeropod-redirector-ebpf";
const TARGET: &str = "bpfel-unknown-none";
/// Cargo features, name and place in the repository of each object. The last
/// one is for tests.
const OBJECTS: [(&[&str], &str, &str); 3] = [
    (&[], "redirector", "crates/ebpf-loader/src/redirector.o"),
    (&[], "connections", "crates/ebpf-loader/src/connections.o"),
    (TRACE, "redirector", "crates/ebpf-loader/tests/traced.o"),
];
const TRACE: &[&str] = &["--features", "trace"];

/// What to build, and what to do with it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only compare with the committed objects.
    #[arg(long)]
    check: bool,
    /// Build a redirector that logs what it does with each packet, and put it
    /// there, for `zeropod_ebpf_loader::Redirectors::traced`.
    #[arg(long, value_name = "PATH", conflicts_with = "check")]
    trace: Option<PathBuf>,
}

/// Writes the objects, or with `check` only compares: instructions,
/// relocations, map definitions and read-only data.
///
/// # Errors
/// When they cannot be built, or are not the committed ones.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let Args { check, trace } = args;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    if let Some(path) = trace {
        let built = build(&root, TRACE)?.join("redirector");
        fs::write(path, object::stripped(&fs::read(built)?)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        say(&format!("{}: a redirector that logs", path.display()));
        return Ok(());
    }
    for (features, name, committed) in OBJECTS {
        let built = build(&root, features)?.join(name);
        let built = object::stripped(&fs::read(built)?)?;
        let path = root.join(committed);
        if !*check {
            fs::write(path, &built)?;
            say(&format!("{committed}: {} bytes", built.len()));
            continue;
        }
        let there = fs::read(path).map_err(|error| format!("{committed}: {error}"))?;
        let differences = object::differences(&there, &built)?;
        if !differences.is_empty() {
            let differences = differences.join("\n  ");
            let message = format!("{committed} is not what the sources build:\n  {differences}");
            return Err(message.into());
        }
        say(&format!("{committed} is what the sources build"));
    }
    Ok(())
}

/// Runs cargo for the BPF target and returns the directory of what it linked.
fn build(root: &Path, features: &[&str]) -> Result<PathBuf, Box<dyn Error>> {
    let linker = linker()?;
    let sysroot = sysroot()?;

    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // memcpy and its like are for these programs, not for others that link
        // the object.
        "-Clink-arg=--disable-memory-builtins".to_owned(),
        // Headers are read in words rather than byte by byte. The kernel takes
        // that where the processor does (x86-64, arm64).
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        // No host build looks at the programs.
        "-Dwarnings".to_owned(),
        // Instruction set of Linux 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        // aya-ebpf would take that of the machine; only tracing of system call
        // arguments depends on it.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("--remap-path-prefix={}=/rust", sysroot.display()),
        format!("--remap-path-prefix={}=/zeropod", root.display()),
    ];
    for registry in registries()? {
        flags.push(format!("--remap-path-prefix={}=/crates", registry.display()));
    }

    let target_dir = target_dir(root);
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--locked", "--release", "--package", PACKAGE, "--bins"])
        .args(features)
        .args(["--target", TARGET, "-Zbuild-std=core"])
        .args(["--config", "profile.release.opt-level=3"])
        .args(["--config", "profile.release.strip=false"])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // build-std is not stable; this makes the pinned stable compiler take it.
        .env("RUSTC_BOOTSTRAP", "1");
    succeed(&mut cargo)?;
    Ok(target_dir.join(TARGET).join("release"))
}

/// A directory of its own below the workspace's, so that host builds and this
/// one do not lock each other out.
fn target_dir(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root.join(target.unwrap_or_else(|| "target".into())).join("ebpf")
}

/// The directories in which cargo keeps sources, one per registry.
fn registries() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let default = std::env::home_dir().map(|home| home.join(".cargo"));
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(default);
    let sources = cargo_home.ok_or("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let entries =
        fs::read_dir(&sources).map_err(|error| format!("{}: {error}", sources.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Directory of the compiler, with the sources of `core` in it.
fn sysroot() -> Result<PathBuf, Box<dyn Error>> {
    let printed = Command::new("rustc").args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(printed.stdout)?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        say("installing the sources of the standard library (rustup component rust-src)");
        succeed(Command::new("rustup").args(["component", "add", "rust-src"]))?;
    }
    Ok(sysroot)
}

/// Path of bpf-linker, built once per user.
fn linker() -> Result<PathBuf, Box<dyn Error>> {
    let path = |dir: &Path| dir.join("bin/bpf-linker");
    let build = |draft: &Path| {
        say(&format!("building bpf-linker {LINKER_VERSION}, once"));
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--root"])
            .arg(draft);
        succeed(&mut cargo).map_err(|error| error.to_string())
    };
    let works = |dir: &Path| {
        let version = Command::new(path(dir)).arg("--version").output();
        let version = version.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&version.stdout).into_owned();
        if said.trim().ends_with(LINKER_VERSION) {
            Ok(())
        } else {
            Err(format!("it says {said:?}"))
        }
    };
    Ok(path(&cache::entry("bpf-linker", LINKER_VERSION, build, works)?))
}

fn succeed(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
