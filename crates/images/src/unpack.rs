//! The files of an image: of a layout, of an archive or of a registry.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, de::DeserializeOwned};
use tar::{Archive, EntryType};

use crate::{
    Error,
    arch::Arch,
    error::read,
    oci::{Index, digest},
    tree::{Node, Tree},
};

/// Most bytes that an image may have, unpacked.
const MAX_BYTES: u64 = 1 << 30;
/// How deep an index may lie in another.
const MAX_DEPTH: usize = 4;

/// Where the blobs of an image are.
pub trait Blobs {
    /// For messages.
    fn name(&self) -> String;
    /// Content of a blob; whoever asks checks it.
    ///
    /// # Errors
    /// When it cannot be had.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, Error>;
    /// Content of a manifest or index.
    ///
    /// # Errors
    /// When it cannot be had.
    fn manifest(&self, digest: &str) -> Result<Vec<u8>, Error> {
        self.blob(digest)
    }
}

/// A directory in the OCI image layout.
pub struct Dir<'a>(pub &'a Path);

impl Blobs for Dir<'_> {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        read(&self.0.join("blobs").join(digest.replace(':', "/")))
    }
}

/// The files of a layout or of `docker save`, in one archive.
pub struct Files {
    name: String,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Blobs for Files {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        self.file(&format!("blobs/{}", digest.replace(':', "/")))
    }
}

/// Files of the image for an architecture in a layout.
///
/// # Errors
/// When the layout is incomplete or broken.
pub fn layout(dir: &Path, arch: Arch) -> Result<Tree, Error> {
    resolve(&Dir(dir), &read(&dir.join("index.json"))?, arch, 0)
}

/// Files of the image for an architecture in an archive: of a layout, or by
/// `docker save`.
///
/// # Errors
/// When it is neither, or broken.
pub fn archive(path: &Path, arch: Arch) -> Result<Tree, Error> {
    let content = read(path)?;
    let broken = |error| Error::unusable(path.display().to_string(), format!("{error}"));
    let mut files = BTreeMap::new();
    for entry in Archive::new(content.as_slice()).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.components().as_path().to_path_buf();
        if entry.header().entry_type() == EntryType::Regular {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(broken)?;
            files.insert(name.strip_prefix(".").unwrap_or(&name).to_path_buf(), content);
        }
    }
    let files = Files { name: path.display().to_string(), files };
    if files.files.contains_key(Path::new("index.json")) {
        return resolve(&files, &files.file("index.json")?, arch, 0);
    }
    let saved: Vec<Saved> = parse(&files.file("manifest.json")?, "manifest.json")?;
    let [saved] = &saved[..] else {
        return Err(Error::unusable(files.name, "it holds not exactly one image"));
    };
    let mut tree = Unpacking::new(&files.name);
    for layer in &saved.layers {
        tree.layer(&files.file(layer)?)?;
    }
    Ok(tree.tree)
}

impl Files {
    fn file(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.files
            .get(Path::new(path))
            .cloned()
            .ok_or_else(|| Error::unusable(&self.name, format!("it has no {path}")))
    }
}

/// An image in an archive by `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    layers: Vec<String>,
}

/// An index or a manifest.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    layers: Vec<LayerOf>,
}

#[derive(Deserialize)]
struct LayerOf {
    digest: String,
}

/// Files of the image for an architecture that an index or manifest leads to.
pub(crate) fn resolve(
    blobs: &dyn Blobs,
    content: &[u8],
    arch: Arch,
    depth: usize,
) -> Result<Tree, Error> {
    let name = blobs.name();
    // A manifest has no manifests.
    let index: Index = match parse::<Index>(content, &name) {
        Ok(index) if !index.manifests.is_empty() => index,
        _ => {
            let document: Document = parse(content, &name)?;
            let mut tree = Unpacking::new(&name);
            for LayerOf { digest } in document.layers {
                tree.layer(&checked(&name, &digest, blobs.blob(&digest)?)?)?;
            }
            return Ok(tree.tree);
        }
    };
    let fits = index
        .manifests
        .iter()
        .find(|manifest| {
            let platform = manifest.platform.as_ref();
            platform.is_some_and(|at| at.os == "linux" && at.architecture == arch.name())
        })
        .or_else(|| index.manifests.iter().find(|manifest| manifest.platform.is_none()));
    let Some(manifest) = fits.filter(|_| depth < MAX_DEPTH) else {
        return Err(Error::unusable(name, format!("it has no image for linux/{arch}")));
    };
    let content = checked(&name, &manifest.digest, blobs.manifest(&manifest.digest)?)?;
    resolve(blobs, &content, arch, depth + 1)
}

fn checked(name: &str, expected: &str, content: Vec<u8>) -> Result<Vec<u8>, Error> {
    if digest(&content) == expected {
        return Ok(content);
    }
    Err(Error::unusable(name, format!("the content of {expected} is another")))
}

fn parse<T: DeserializeOwned>(content: &[u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(content).map_err(Error::json(what))
}

/// Layers, put one over the other.
pub(crate) struct Unpacking<'a> {
    name: &'a str,
    left: u64,
    pub(crate) tree: Tree,
}

impl<'a> Unpacking<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        Self { name, left: MAX_BYTES, tree: Tree::default() }
    }

    /// Unpacks an archive, compressed by gzip or not.
    pub(crate) fn layer(&mut self, content: &[u8]) -> Result<(), Error> {
        let reader: Box<dyn Read> = match content {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(content)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                return Err(Error::unusable(
                    self.name,
                    "its layers are compressed by zstd; use gzip",
                ));
            }
            _ => Box::new(content),
        };
        let name = self.name.to_owned();
        let broken = |error| Error::unusable(&name, format!("a layer is broken: {error}"));
        for entry in Archive::new(reader).entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let Some(path) = normal(&entry.path().map_err(broken)?) else { continue };
            let link = entry.link_name().map_err(broken)?.map(std::borrow::Cow::into_owned);
            if let Some((above, removed)) = path
                .rsplit_once('/')
                .map_or(Some(("", path.as_str())), Some)
                .and_then(|(above, name)| Some((above, name.strip_prefix(".wh.")?)))
            {
                self.remove(above, removed);
                continue;
            }
            let node = match (entry.header().entry_type(), link) {
                (EntryType::Regular | EntryType::Continuous, _) => {
                    self.left = self
                        .left
                        .checked_sub(entry.size())
                        .ok_or_else(|| Error::unusable(self.name, "it is larger than 1 GiB"))?;
                    let mode = entry.header().mode().map_err(broken)?;
                    let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).map_err(broken)?;
                    Node::File { content, mode }
                }
                (EntryType::Symlink, Some(target)) => {
                    Node::Link { target: target.to_string_lossy().into_owned() }
                }
                (EntryType::Link, Some(target)) => {
                    let original = normal(&target).and_then(|path| self.tree.get(&path));
                    match original {
                        Some(node) => node.clone(),
                        None => continue,
                    }
                }
                // Directories are made of the paths, devices are not for images.
                _ => continue,
            };
            self.tree.insert(&path, node);
        }
        Ok(())
    }

    fn remove(&mut self, above: &str, name: &str) {
        let path = match (above, name) {
            (above, ".wh..opq") => above.to_owned(),
            ("", name) => name.to_owned(),
            (above, name) => format!("{above}/{name}"),
        };
        self.tree.remove(&path);
    }
}

/// A path below the root; `None` for one that leads out of it.
fn normal(path: &Path) -> Option<String> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    if names.is_empty() { None } else { Some(names.join("/")) }
}
