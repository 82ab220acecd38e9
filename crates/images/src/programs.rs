//! The workspace's own programs: built, weighed, started, and their crates.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use serde::Deserialize;

use crate::{
    Error,
    arch::Arch,
    error::{output, read},
    sbom::Package,
};

/// Most bytes of a program, gzipped: what a node has to pull for it. The Go
/// implementation's take 16.6 MB each.
pub const LIMIT: usize = 5_000_000;

/// The programs, which are named like their crates.
pub const PROGRAMS: [&str; 2] = ["zeropod-manager", "zeropod-installer"];

/// A program of one architecture.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// What it runs on.
    pub arch: Arch,
    /// The program.
    pub content: Vec<u8>,
    /// Its size when gzipped, in bytes.
    pub gzipped: usize,
}

/// Builds the programs for an architecture, linked statically, and returns the
/// directory they are in.
///
/// # Errors
/// When they do not build.
pub fn build(workspace: &Path, arch: Arch) -> Result<PathBuf, Error> {
    let target = arch.target();
    output(Command::new("rustup").current_dir(workspace).args(["target", "add", &target]))?;
    let mut build = cargo(workspace);
    build.args(["build", "--quiet", "--locked", "--release", "--target", &target]);
    for program in PROGRAMS {
        build.args(["--package", program]);
    }
    let upper = target.to_uppercase().replace('-', "_");
    // The same program wherever it is built: panics tell where in the source they are.
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| home + "/.cargo"));
    let remaps =
        [(workspace.display().to_string(), "/zeropod"), (home.unwrap_or_default(), "/cargo")];
    let mut flags = Vec::new();
    for (from, to) in remaps.iter().filter(|(from, _)| !from.is_empty()) {
        flags.push(format!("--remap-path-prefix={from}={to}"));
    }
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if !arch.is_here() {
        // ring is partly in C. What is linked, musl and all, comes with Rust.
        let lower = target.replace('-', "_");
        let cross = format!("{}-linux-gnu-gcc", arch.machine());
        build.env(format!("CC_{lower}"), &cross).env(format!("CARGO_TARGET_{upper}_LINKER"), cross);
    }
    output(&mut build)?;
    let dir = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    Ok(dir.join(target).join("release"))
}

/// Reads a program, weighs it, and starts it to see that it is what it should
/// be, under QEMU if it is for another machine.
///
/// # Errors
/// When it is absent, for another architecture, or does not tell its version.
pub fn load(dir: &Path, name: &'static str, arch: Arch) -> Result<Program, Error> {
    let path = dir.join(name);
    let content = read(&path)?;
    arch.check(&path.display().to_string(), &content)?;
    let mut start = if arch.is_here() {
        Command::new(&path)
    } else {
        let mut qemu = Command::new(format!("qemu-{}", arch.machine()));
        qemu.arg(&path);
        qemu
    };
    let said = output(start.arg("-version"))?;
    let said = String::from_utf8_lossy(&said);
    if !said.contains(&format!("version: {}", zeropod_build_info::VERSION)) {
        return Err(Error::unusable(
            path.display().to_string(),
            format!("it says about itself: {said}"),
        ));
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    let gzipped = gzip.write_all(&content).and_then(|()| gzip.finish());
    let gzipped = gzipped.map_err(Error::io("compress", path))?.len();
    Ok(Program { name, arch, content, gzipped })
}

impl Program {
    /// Says when it is too large to be shipped.
    ///
    /// # Errors
    /// When it takes more than [`LIMIT`].
    pub fn check_size(&self) -> Result<(), Error> {
        let &Self { name: program, arch, gzipped: size, .. } = self;
        if size <= LIMIT {
            return Ok(());
        }
        Err(Error::TooLarge { program, arch: arch.name(), size, limit: LIMIT })
    }
}

/// The crates that a program is made of.
///
/// # Errors
/// When cargo does not tell.
pub fn crates(workspace: &Path, program: &str, arch: Arch) -> Result<Vec<Package>, Error> {
    let mut metadata = cargo(workspace);
    metadata.args(["metadata", "--locked", "--format-version=1"]);
    let said = output(metadata.arg("--filter-platform").arg(arch.target()))?;
    let metadata: Metadata =
        serde_json::from_slice(&said).map_err(Error::json("what cargo metadata says"))?;
    Ok(metadata.of(program))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Listed>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Resolved>,
}

#[derive(Deserialize)]
struct Resolved {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Metadata {
    fn of(self, program: &str) -> Vec<Package> {
        let nodes: BTreeMap<&str, &[Dependency]> =
            self.resolve.nodes.iter().map(|node| (node.id.as_str(), &node.deps[..])).collect();
        let first = self.packages.iter().find(|package| package.name == program);
        let mut wanted: Vec<&str> = first.iter().map(|package| package.id.as_str()).collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = wanted.pop() {
            if !seen.insert(id) {
                continue;
            }
            for dependency in nodes.get(id).copied().unwrap_or_default() {
                // Neither what builds it nor what tests it is in it.
                if dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                    wanted.push(&dependency.pkg);
                }
            }
        }
        self.packages
            .iter()
            .filter(|package| seen.contains(package.id.as_str()))
            .map(|package| Package {
                name: package.name.clone(),
                version: package.version.clone(),
                // As older crates write "or".
                licence: package.license.as_ref().map(|licence| licence.replace('/', " OR ")),
                purl: format!("pkg:cargo/{}@{}", package.name, package.version),
                sha256: None,
            })
            .collect()
    }
}

fn cargo(workspace: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_builds_or_tests_a_program_is_not_in_it() {
        let metadata: Metadata = serde_json::from_value(serde_json::json!({
            "packages": (["p", "used", "deep", "test", "build"].map(|name| serde_json::json!({
                "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
            }))),
            "resolve": { "nodes": [
                { "id": "p", "deps": [
                    { "pkg": "used", "dep_kinds": [{ "kind": "build" }, { "kind": null }] },
                    { "pkg": "test", "dep_kinds": [{ "kind": "dev" }] },
                    { "pkg": "build", "dep_kinds": [{ "kind": "build" }] },
                ] },
                { "id": "used", "deps": [{ "pkg": "deep", "dep_kinds": [{ "kind": null }] }] },
            ] },
        }))
        .unwrap();
        let packages = metadata.of("p");
        let names: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["p", "used", "deep"]);
        assert_eq!(packages[0].licence.as_deref(), Some("MIT OR Apache-2.0"));
        assert_eq!(packages[0].purl, "pkg:cargo/p@1.0.0");
    }

    #[test]
    fn a_large_program_is_refused() {
        let mut program =
            Program { name: "p", arch: Arch::Arm64, content: Vec::new(), gzipped: LIMIT };
        program.check_size().unwrap();
        program.gzipped += 1;
        let said = program.check_size().unwrap_err().to_string();
        assert_eq!(
            said,
            "p for arm64 takes 5000001 bytes gzipped, more than the 5000000 that are allowed"
        );
    }
}
