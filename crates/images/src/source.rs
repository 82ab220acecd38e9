//! Where the shim and CRIU come from: both are other projects', and are handed
//! in.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    Error,
    arch::Arch,
    error::read,
    oci::digest,
    registry::Repository,
    tree::{Node, Tree},
    unpack,
};

/// The name of the shim's program, by which containerd finds it.
pub const SHIM: &str = "containerd-shim-zeropod-v2";

/// Where a program is, for one architecture or for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The architecture that it is for.
    pub arch: Option<Arch>,
    /// A file, a directory or a reference.
    pub place: String,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (arch, place) = match text.split_once('=') {
            Some((arch, place)) if !arch.contains(['/', ':', '.']) => (Some(arch.parse()?), place),
            _ => (None, text),
        };
        if place.is_empty() {
            return Err("it is empty".into());
        }
        Ok(Self { arch, place: place.to_owned() })
    }
}

/// The shim below `bin`, out of the first source for an architecture.
///
/// # Errors
/// When there is no source, or no shim for this architecture in it.
pub fn shim(sources: &[Source], arch: Arch) -> Result<Tree, Error> {
    let source = find(sources, "--shim", arch)?;
    let program = match open(&source.place, arch)? {
        Found::File(program) => program,
        Found::Tree(tree) => tree
            .iter()
            .find_map(|(path, node)| match node {
                Node::File { content, .. } if name(path) == SHIM => Some(content.clone()),
                _ => None,
            })
            .ok_or_else(|| Error::unusable(&source.place, format!("it holds no {SHIM}")))?,
    };
    arch.check(&source.place, &program)?;
    let mut tree = Tree::default();
    tree.insert(&format!("bin/{SHIM}"), Node::program(program));
    Ok(tree)
}

/// CRIU below `bin` with its libraries below `lib`, out of the first source
/// for an architecture: a program that needs no libraries but the host's, or
/// an image or directory with `bin` and `lib`.
///
/// # Errors
/// When there is no source, or no CRIU for this architecture in it.
pub fn criu(sources: &[Source], arch: Arch) -> Result<Tree, Error> {
    let source = find(sources, "--criu", arch)?;
    let mut assets = Tree::default();
    match open(&source.place, arch)? {
        Found::File(program) => assets.insert("bin/criu", Node::program(program)),
        Found::Tree(tree) => {
            for (path, node) in tree.iter() {
                if let Some(("bin" | "lib", _)) =
                    path.split_once('/').filter(|(_, name)| !name.contains('/'))
                {
                    assets.insert(path, node.clone());
                }
            }
        }
    }
    match assets.get("bin/criu") {
        // A script is how CRIU is started with libraries of its own.
        Some(Node::File { content, .. }) if content.starts_with(b"#!") => {}
        Some(Node::File { content, .. }) => arch.check(&source.place, content)?,
        _ => return Err(Error::unusable(&source.place, "it holds no bin/criu")),
    }
    Ok(assets)
}

/// What a source says about itself: where it was and the digests of what was
/// taken, for the provenance.
pub fn digests(tree: &Tree) -> Vec<(String, String)> {
    tree.iter()
        .filter_map(|(path, node)| match node {
            Node::File { content, .. } => Some((path.to_owned(), digest(content))),
            Node::Link { .. } => None,
        })
        .collect()
}

fn find<'a>(sources: &'a [Source], flag: &str, arch: Arch) -> Result<&'a Source, Error> {
    let without = flag.replacen("--", "--without-", 1);
    sources
        .iter()
        .find(|source| source.arch == Some(arch))
        .or_else(|| sources.iter().find(|source| source.arch.is_none()))
        .ok_or_else(|| {
            Error::Missing(format!(
                "the installer's image for {arch} needs {flag} [ARCH=]FILE|DIR|REFERENCE, or {without} to be built without it"
            ))
        })
}

enum Found {
    File(Vec<u8>),
    Tree(Tree),
}

fn open(place: &str, arch: Arch) -> Result<Found, Error> {
    let path = PathBuf::from(place);
    if path.is_dir() {
        return directory(&path, arch).map(Found::Tree);
    }
    if path.is_file() {
        let content = read(&path)?;
        let is_archive = content.get(257..262) == Some(b"ustar");
        return if is_archive {
            unpack::archive(&path, arch).map(Found::Tree)
        } else {
            Ok(Found::File(content))
        };
    }
    if place.starts_with(['/', '.']) {
        return Err(Error::unusable(place, "there is no such file"));
    }
    Repository::open(place)?.pull(arch).map(Found::Tree)
}

fn directory(path: &Path, arch: Arch) -> Result<Tree, Error> {
    if path.join("oci-layout").exists() {
        return unpack::layout(path, arch);
    }
    let mut tree = Tree::default();
    for dir in ["bin", "lib"] {
        tree.insert_dir(dir, &path.join(dir))?;
    }
    Ok(tree)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_may_stand_before_the_place() {
        let source = |text: &str| text.parse::<Source>();
        let place = |text: &str| text.to_owned();
        assert_eq!(
            source("arm64=/a/shim"),
            Ok(Source { arch: Some(Arch::Arm64), place: place("/a/shim") })
        );
        assert_eq!(source("/a=b/shim"), Ok(Source { arch: None, place: place("/a=b/shim") }));
        assert_eq!(
            source("registry.example/shim:v1"),
            Ok(Source { arch: None, place: place("registry.example/shim:v1") })
        );
        assert!(source("riscv=/a").unwrap_err().contains("neither amd64 nor arm64"));
        assert!(source("amd64=").is_err());
    }

    #[test]
    fn what_is_missing_is_told_with_the_flag() {
        let said = shim(&[], Arch::Amd64).unwrap_err().to_string();
        assert!(said.contains("--shim") && said.contains("--without-shim"), "{said}");
        let sources = [Source { arch: Some(Arch::Arm64), place: "/nowhere".into() }];
        let said = criu(&sources, Arch::Amd64).unwrap_err().to_string();
        assert!(said.contains("--criu") && said.contains("amd64"), "{said}");
        let said = criu(&sources, Arch::Arm64).unwrap_err().to_string();
        assert_eq!(said, "/nowhere: there is no such file");
    }
}
