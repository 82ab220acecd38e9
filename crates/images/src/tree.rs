//! The files of a layer, and the archive made of them: the same bytes for the
//! same files, whenever and wherever it is made.

use std::{
    collections::BTreeMap, fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path,
};

use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

use crate::{Error, error::read, oci::Blob};

/// Files by path: relative to the root, without a leading slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// A file or a link. Directories are made of the paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A file.
    File {
        /// What is in it.
        content: Vec<u8>,
        /// Permission bits: 0o755 or 0o644.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it points to.
        target: String,
    },
}

impl Node {
    /// A program.
    pub fn program(content: Vec<u8>) -> Self {
        Self::File { content, mode: 0o755 }
    }

    /// A file that is not run.
    pub fn data(content: impl Into<Vec<u8>>) -> Self {
        Self::File { content: content.into(), mode: 0o644 }
    }
}

impl Tree {
    /// Adds a file or link; it takes the place of one with the same path.
    pub fn insert(&mut self, path: &str, node: Node) {
        self.nodes.insert(path.trim_start_matches('/').to_owned(), node);
    }

    /// Adds everything of another tree.
    pub fn extend(&mut self, other: Self) {
        self.nodes.extend(other.nodes);
    }

    /// Adds the files and links that lie directly in a directory of the
    /// machine, below a path of the tree. None if there is no such directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn insert_dir(&mut self, below: &str, dir: &Path) -> Result<(), Error> {
        if !dir.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let path = entry.map_err(Error::io("list", dir))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                return Err(Error::unusable(path.display().to_string(), "its name is not UTF-8"));
            };
            let metadata = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
            let node = if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(Error::io("read", &path))?;
                Node::Link { target: target.to_string_lossy().into_owned() }
            } else if metadata.is_file() {
                let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
                Node::File { content: read(&path)?, mode }
            } else {
                continue;
            };
            self.insert(&format!("{below}/{name}"), node);
        }
        Ok(())
    }

    /// The file or link at a path.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.trim_start_matches('/'))
    }

    /// Removes a file, a link, or a directory with everything in it.
    pub fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|node, _| node != path && !node.starts_with(&below));
    }

    /// All paths and what is there, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The layer with these files: sorted, all of root's, all changed at
    /// `epoch` (seconds since 1970).
    ///
    /// # Errors
    /// When a path is too long for an archive.
    pub fn layer(&self, epoch: u64) -> Result<Layer, Error> {
        let tar = self.archive(epoch).map_err(Error::io("archive", "the files of a layer"))?;
        let diff_id = crate::oci::digest(&tar);
        // Neither name, nor time, nor machine: what else differs is the compressor's version,
        // which Cargo.lock holds.
        let mut gzip =
            GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
        let compressed = gzip.write_all(&tar).and_then(|()| gzip.finish());
        let content = compressed.map_err(Error::io("compress", "a layer"))?;
        Ok(Layer { diff_id, blob: Blob::new(crate::oci::LAYER, content) })
    }

    fn archive(&self, epoch: u64) -> std::io::Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        let header = |kind, mode, size| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(size);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(epoch);
            header
        };
        let mut dirs = std::collections::BTreeSet::new();
        for (path, node) in &self.nodes {
            for (at, _) in path.match_indices('/') {
                if dirs.insert(&path[..at]) {
                    let mut dir = header(EntryType::Directory, 0o755, 0);
                    builder.append_data(&mut dir, format!("{}/", &path[..at]), &[][..])?;
                }
            }
            match node {
                Node::File { content, mode } => {
                    let mut file = header(EntryType::Regular, *mode, content.len() as u64);
                    builder.append_data(&mut file, path, content.as_slice())?;
                }
                Node::Link { target } => {
                    builder.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
                }
            }
        }
        builder.into_inner()
    }
}

/// A layer as it lies in a registry.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest of the archive before it was compressed.
    pub diff_id: String,
    /// The compressed archive.
    pub blob: Blob,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_insertion_and_the_machine_do_not_matter() {
        let mut one = Tree::default();
        one.insert("/usr/bin/a", Node::program(b"a".to_vec()));
        one.insert("etc/b", Node::data("b"));
        let mut other = Tree::default();
        other.insert("etc/b", Node::data("old"));
        other.insert("etc/b", Node::data("b"));
        other.insert("usr/bin/a", Node::program(b"a".to_vec()));
        let (one, other) = (one.layer(7).unwrap(), other.layer(7).unwrap());
        assert_eq!(one.blob, other.blob);
        assert_eq!(one.diff_id, other.diff_id);
    }

    #[test]
    fn entries_are_roots_and_have_their_directories_before_them() {
        let mut tree = Tree::default();
        tree.insert("usr/lib/libx.so", Node::Link { target: "libx.so.1".into() });
        tree.insert("usr/lib/libx.so.1", Node::data("x"));
        tree.insert(&format!("{}/long", "d".repeat(120)), Node::data("long"));
        let archive = tree.archive(1_700_000_000).unwrap();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 1_700_000_000);
            seen.push(entry.path().unwrap().to_string_lossy().into_owned());
        }
        let long = "d".repeat(120);
        let expected = [
            &format!("{long}/"),
            &format!("{long}/long"),
            "usr/",
            "usr/lib/",
            "usr/lib/libx.so",
            "usr/lib/libx.so.1",
        ];
        assert_eq!(seen, expected);
    }
}
