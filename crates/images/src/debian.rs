//! CRIU for the manager's image, out of Debian's packages: with the libraries
//! it needs and their C library, for whichever architecture, without running
//! any of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use object::{
    Endianness,
    elf::DT_NEEDED,
    read::elf::{Dyn as _, ElfFile64},
};

use crate::{
    Error,
    arch::Arch,
    error::{output, read},
    oci::digest,
    sbom::Package,
    tree::{Node, Tree},
    unpack::Unpacking,
};

/// The suite with CRIU 4.2.1 or newer: older ones cannot dump a process with a
/// socket on Linux 6.16 and newer.
const SUITE: &str = "sid";
/// Where Debian has the program.
const CRIU: &str = "usr/sbin/criu";
/// Opened at run time, so that no file says that it is needed: without it the
/// C library ends a program that ends a thread.
const UNWINDER: &str = "libgcc_s.so.1";

/// CRIU and what it needs.
#[derive(Debug, Clone, Default)]
pub struct Criu {
    /// The files, at Debian's paths.
    pub tree: Tree,
    /// The packages that they are from.
    pub packages: Vec<Package>,
}

/// Downloads the packages into a directory, unless they are there. Takes
/// debootstrap and root, and some 60 MB.
///
/// # Errors
/// When they cannot be had.
pub fn download(arch: Arch, dir: &Path) -> Result<PathBuf, Error> {
    let archives = dir.join("var/cache/apt/archives");
    if archives.is_dir() {
        return Ok(archives);
    }
    let parent = dir.parent().unwrap_or(dir);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    // Renamed when complete, so that a download that was cut short is not taken for one.
    let draft = dir.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(Error::io("remove", &draft))?;
    }
    let mut debootstrap = as_root("debootstrap");
    debootstrap.args(["--variant=minbase", "--include=criu", "--download-only"]);
    output(debootstrap.arg(format!("--arch={arch}")).arg(SUITE).arg(&draft))?;
    fs::rename(&draft, dir).map_err(Error::io("rename to", dir))?;
    Ok(archives)
}

/// Takes CRIU and what it needs out of a directory of packages.
///
/// # Errors
/// When one is missing or broken.
pub fn criu(arch: Arch, archives: &Path) -> Result<Criu, Error> {
    let available = available(archives)?;
    let mut unpacked = BTreeMap::new();
    let mut wanted = vec!["criu".to_owned()];
    while let Some(name) = wanted.pop() {
        if unpacked.contains_key(&name) {
            continue;
        }
        let path = available.get(&name).ok_or_else(|| {
            Error::unusable(archives.display().to_string(), format!("it holds no package {name}"))
        })?;
        let deb = Deb::unpack(path)?;
        wanted.extend(deb.libraries.iter().cloned());
        unpacked.insert(name, deb);
    }
    select(arch, &unpacked)
}

/// Of all files of the packages, the program, the libraries that it needs, and
/// the licences.
fn select(arch: Arch, debs: &BTreeMap<String, Deb>) -> Result<Criu, Error> {
    let lib = format!("usr/lib/{}-linux-gnu", arch.machine());
    let at = |path: &str| debs.iter().find_map(|(name, deb)| Some((name, deb.tree.get(path)?)));
    let mut criu = Criu::default();
    let mut used = BTreeSet::new();
    let mut wanted = vec![CRIU.to_owned(), format!("{lib}/{UNWINDER}")];
    while let Some(path) = wanted.pop() {
        if criu.tree.get(&path).is_some() {
            continue;
        }
        let Some((package, node)) = at(&path) else {
            return Err(Error::unusable("CRIU's packages", format!("they hold no {path}")));
        };
        used.insert(package.clone());
        match node {
            Node::Link { target } => wanted.push(beside(&path, target)),
            Node::File { content, .. } => {
                let needed = needed(&path, content, arch)?;
                wanted.extend(needed.iter().map(|name| format!("{lib}/{name}")));
            }
        }
        criu.tree.insert(&path, node.clone());
    }
    // Where a program says its loader is: since the merge of /usr these are links.
    let loader = criu
        .tree
        .iter()
        .find_map(|(path, _)| {
            path.rsplit_once('/').filter(|(_, name)| name.starts_with("ld-linux"))
        })
        .map(|(_, name)| name.to_owned())
        .ok_or_else(|| Error::unusable("CRIU's packages", "they hold no loader"))?;
    let (dir, up) = if arch == Arch::Amd64 { ("lib64", "../") } else { ("lib", "../") };
    let target = format!("{up}{lib}/{loader}");
    criu.tree.insert(&format!("{dir}/{loader}"), Node::Link { target });
    for name in used {
        let Some(deb) = debs.get(&name) else { continue };
        let copyright = format!("usr/share/doc/{name}/copyright");
        if let Some(node @ Node::File { .. }) = deb.tree.get(&copyright) {
            criu.tree.insert(&copyright, node.clone());
        }
        // What scanners read in images without a package manager.
        let status = format!("var/lib/dpkg/status.d/{name}");
        criu.tree.insert(&status, Node::data(deb.control.clone()));
        criu.packages.push(deb.package.clone());
    }
    Ok(criu)
}

/// A package, unpacked.
struct Deb {
    tree: Tree,
    control: String,
    libraries: Vec<String>,
    package: Package,
}

impl Deb {
    fn unpack(path: &Path) -> Result<Self, Error> {
        let what = path.display().to_string();
        let archive = output(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(path))?;
        let mut unpacking = Unpacking::new(&what);
        unpacking.layer(&archive)?;
        let control = output(Command::new("dpkg-deb").arg("--field").arg(path))?;
        let control = String::from_utf8_lossy(&control).into_owned();
        let field = |name: &str| {
            control
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .unwrap_or_default()
        };
        let (name, version, arch) = (field("Package"), field("Version"), field("Architecture"));
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: None,
            purl: format!(
                "pkg:deb/debian/{name}@{}?arch={arch}",
                version.replace('+', "%2B").replace(':', "%3A").replace('~', "%7E")
            ),
            sha256: Some(digest(&read(path)?).trim_start_matches("sha256:").to_owned()),
        };
        let libraries = ["Depends", "Pre-Depends"].iter().flat_map(|name| libraries(field(name)));
        let libraries = libraries.collect();
        Ok(Self { tree: unpacking.tree, libraries, package, control })
    }
}

/// Packages in a directory by name.
fn available(archives: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(archives).map_err(Error::io("list", archives))? {
        let path = entry.map_err(Error::io("list", archives))?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.split_once('_')).map(|(name, _)| name.to_owned());
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.extend(name.map(|name| (name, path)));
        }
    }
    Ok(found)
}

/// Names of the library packages of a `Depends` field.
fn libraries(depends: &str) -> impl Iterator<Item = String> {
    depends
        .split(',')
        .filter_map(|one| one.trim().split([' ', ':', '|']).next())
        .filter(|name| name.starts_with("lib"))
        .map(str::to_owned)
}

/// Names of the libraries that a program or library says it needs.
fn needed(path: &str, content: &[u8], arch: Arch) -> Result<Vec<String>, Error> {
    arch.check(path, content)?;
    let broken = |error: object::Error| Error::unusable(path, format!("it is broken: {error}"));
    let file = ElfFile64::<Endianness>::parse(content).map_err(broken)?;
    let endian = file.endian();
    let sections = file.elf_section_table();
    let Some((entries, strings)) = sections.dynamic(endian, content).map_err(broken)? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(endian, content, strings).map_err(broken)?;
    entries
        .iter()
        .filter(|entry| entry.d_tag(endian) == DT_NEEDED)
        .map(|entry| {
            let name = u32::try_from(entry.d_val(endian)).ok().and_then(|at| strings.get(at).ok());
            name.map(|name| String::from_utf8_lossy(name).into_owned())
                .ok_or_else(|| Error::unusable(path, "it is broken: a name lies outside of it"))
        })
        .collect()
}

/// Path of what a link points to.
fn beside(path: &str, target: &str) -> String {
    if let Some(absolute) = target.strip_prefix('/') {
        return absolute.to_owned();
    }
    let mut names: Vec<&str> = path.split('/').collect();
    names.pop();
    for name in target.split('/') {
        match name {
            ".." => drop(names.pop()),
            "." | "" => {}
            name => names.push(name),
        }
    }
    names.join("/")
}

/// debootstrap wants to be root even where it only downloads.
fn as_root(program: &str) -> Command {
    if fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_are_followed() {
        let depends = "libc6 (>= 2.38), python3:any, libnl-3-200, libfoo1:amd64 | libbar1\n";
        assert_eq!(libraries(depends).collect::<Vec<_>>(), ["libc6", "libnl-3-200", "libfoo1"]);
    }

    #[test]
    fn links_are_followed_from_where_they_are() {
        assert_eq!(beside("usr/lib/a/liba.so.1", "liba.so.1.2"), "usr/lib/a/liba.so.1.2");
        assert_eq!(beside("usr/lib/a/liba.so.1", "../b/./libb.so"), "usr/lib/b/libb.so");
        assert_eq!(beside("usr/lib/a/liba.so.1", "/lib/c.so"), "lib/c.so");
    }

    #[test]
    fn a_program_says_what_it_needs() {
        let own = std::env::current_exe().unwrap();
        let arch = Arch::ALL.into_iter().find(|arch| arch.is_here()).unwrap();
        let names = needed("self", &read(&own).unwrap(), arch).unwrap();
        assert!(names.contains(&"libc.so.6".to_owned()), "{names:?}");
    }
}
