//! containerd's configuration: reading it as containerd does, and changing it
//! without touching what is not ours.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    path::{Path, PathBuf},
};

use toml_edit::{Document, Item, TableLike};

use crate::Error;

pub(crate) mod block;
pub(crate) mod decide;
pub(crate) mod effective;
pub(crate) mod glob;
pub(crate) mod imports;
pub(crate) mod tables;
pub(crate) mod wanted;

/// Where configuration files come from: the host, or a set of files in
/// memory, so that a change can be looked at before it is made.
pub trait Source {
    /// The content of a file, `None` if it is absent.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error>;

    /// The names in a directory, sorted by bytes; none if it is absent.
    fn list(&self, dir: &Path) -> Result<Vec<OsString>, Error>;
}

/// Files by their path on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<PathBuf, Vec<u8>>);

impl Files {
    /// Adds or replaces a file.
    pub fn insert(&mut self, path: PathBuf, content: Vec<u8>) {
        self.0.insert(path, content);
    }

    /// Removes a file, if it is there.
    pub fn remove(&mut self, path: &Path) {
        self.0.remove(path);
    }

    /// The content of a file.
    pub fn get(&self, path: &Path) -> Option<&[u8]> {
        self.0.get(path).map(Vec::as_slice)
    }

    /// All files in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.0.iter().map(|(path, content)| (path.as_path(), content.as_slice()))
    }
}

impl Source for Files {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(path).cloned())
    }

    fn list(&self, dir: &Path) -> Result<Vec<OsString>, Error> {
        let mut names: Vec<OsString> = self
            .0
            .keys()
            .filter_map(|path| path.strip_prefix(dir).ok()?.iter().next().map(OsString::from))
            .collect();
        names.dedup();
        Ok(names)
    }
}

/// One configuration file.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Its path on the host.
    pub path: PathBuf,
    /// The schema version it states.
    pub version: Option<i64>,
    /// Its `imports` as written.
    pub imports: Vec<String>,
    document: Document<String>,
}

/// The two generations of table names, and the oldest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `plugins.cri`, schema 1.
    Short,
    /// `plugins."io.containerd.grpc.v1.cri"`, schema 2.
    Legacy,
    /// `plugins."io.containerd.cri.v1.runtime"`, from schema 3 on.
    Split,
}

impl Family {
    /// The id of the plugin that holds the runtimes.
    pub fn plugin(self) -> &'static str {
        match self {
            Self::Short => "cri",
            Self::Legacy => "io.containerd.grpc.v1.cri",
            Self::Split => "io.containerd.cri.v1.runtime",
        }
    }

    /// The id of the plugin that names the opt directory.
    pub fn opt_plugin(self) -> &'static str {
        match self {
            Self::Short => "opt",
            Self::Legacy | Self::Split => OPT_PLUGIN,
        }
    }
}

/// Id of the plugin whose `bin` and `lib` containerd adds to its `PATH` and
/// `LD_LIBRARY_PATH`.
pub(crate) const OPT_PLUGIN: &str = "io.containerd.internal.v1.opt";

/// The other half of [`Family::Split`].
const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";

impl ConfigFile {
    /// Parses a file.
    ///
    /// # Errors
    /// When it is not TOML, or when `version` or `imports` have a type that
    /// containerd would not take.
    pub fn parse(path: PathBuf, content: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(content).map_err(|_| Error::Type {
            path: path.clone(),
            key: "the content",
            expected: "UTF-8 text",
        })?;
        let document = Document::parse(text.to_owned())
            .map_err(|error| Error::Toml { path: path.clone(), source: Box::new(error) })?;
        let wrong = |key, expected| Error::Type { path: path.clone(), key, expected };
        let version = match document.get("version") {
            None => None,
            Some(item) => {
                Some(item.as_integer().ok_or_else(|| wrong("version", "a whole number"))?)
            }
        };
        let imports = match document.get("imports") {
            None => Vec::new(),
            Some(item) => item
                .as_array()
                .and_then(|array| {
                    array.iter().map(|entry| entry.as_str().map(str::to_owned)).collect()
                })
                .ok_or_else(|| wrong("imports", "an array of strings"))?,
        };
        Ok(Self { path, version, imports, document })
    }

    /// The text it was parsed from.
    pub fn text(&self) -> &str {
        self.document.raw()
    }

    /// Whether it states anything at all.
    pub fn is_empty(&self) -> bool {
        self.document.is_empty()
    }

    /// Whether it has the CRI tables of a family.
    pub fn has(&self, family: Family) -> bool {
        self.table(&["plugins", family.plugin()]).is_some()
            || (family == Family::Split && self.table(&["plugins", IMAGES_PLUGIN]).is_some())
    }

    /// The directory that relative imports start from.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The table at a path of keys, however it is written.
    pub(crate) fn table(&self, path: &[&str]) -> Option<&dyn TableLike> {
        let mut table: &dyn TableLike = self.document.as_table();
        for key in path {
            table = table.get(key)?.as_table_like()?;
        }
        Some(table)
    }

    pub(crate) fn document(&self) -> &Document<String> {
        &self.document
    }

    /// Ids in `disabled_plugins`.
    fn disabled_plugins(&self) -> impl Iterator<Item = &str> {
        self.document
            .get("disabled_plugins")
            .and_then(Item::as_array)
            .into_iter()
            .flatten()
            .filter_map(|id| id.as_str())
    }
}

/// The root file and everything it imports, in the order in which containerd
/// loads it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The root file's path.
    pub root: PathBuf,
    /// The root file, if it exists, and what it imports.
    pub files: Vec<ConfigFile>,
    /// Imports that are no pattern and do not exist: containerd does not
    /// start.
    pub missing: Vec<PathBuf>,
}

impl Loaded {
    /// Loads breadth first: the root, its imports in the order of the list, a
    /// pattern's files in the order of their names, then what these import. A
    /// file is loaded once.
    ///
    /// # Errors
    /// When a file cannot be read or parsed.
    pub fn load(source: &dyn Source, root: &Path) -> Result<Self, Error> {
        let mut loaded = Self { root: root.to_path_buf(), files: Vec::new(), missing: Vec::new() };
        let mut seen = HashSet::new();
        let mut level = vec![root.to_path_buf()];
        while !level.is_empty() {
            let mut next = Vec::new();
            for path in std::mem::take(&mut level) {
                if !seen.insert(path.clone()) {
                    continue;
                }
                let Some(content) = source.read(&path)? else {
                    if path != root {
                        loaded.missing.push(path);
                    }
                    continue;
                };
                let file = ConfigFile::parse(path, &content)?;
                for entry in &file.imports {
                    let target = normalize(&file.dir().join(entry));
                    if glob::is_pattern(&target) {
                        next.extend(glob::expand(source, &target)?);
                    } else {
                        next.push(target);
                    }
                }
                loaded.files.push(file);
            }
            level = next;
        }
        Ok(loaded)
    }

    /// The root file; `None` if it does not exist.
    pub fn root_file(&self) -> Option<&ConfigFile> {
        self.files.first().filter(|file| file.path == self.root)
    }

    /// The file that switches CRI off, if any does.
    pub fn cri_disabled_in(&self) -> Option<&ConfigFile> {
        self.files.iter().find(|file| {
            file.disabled_plugins().any(|id| {
                [Family::Short, Family::Legacy, Family::Split]
                    .iter()
                    .any(|family| family.plugin() == id)
                    || id == IMAGES_PLUGIN
            })
        })
    }
}

/// Removes `.` and `..` as Go's `filepath.Clean` does, so that a file has one
/// name.
pub(crate) fn normalize(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let mut files = Files::default();
        for (path, text) in list {
            files.insert(path.into(), text.as_bytes().to_vec());
        }
        files
    }

    #[test]
    fn loads_breadth_first_and_each_file_once() {
        let files = files(&[
            (
                "/etc/containerd/config.toml",
                "version = 2\nimports = [\n  'b.toml', # first\n  \"conf.d/*.toml\",\n  '/etc/containerd/config.toml',\n]\n",
            ),
            ("/etc/containerd/b.toml", "imports = ['../other/c.toml', './b.toml']"),
            ("/etc/containerd/conf.d/2.toml", ""),
            ("/etc/containerd/conf.d/10.toml", ""),
            ("/etc/other/c.toml", "version = 3"),
        ]);
        let loaded = Loaded::load(&files, Path::new("/etc/containerd/config.toml")).unwrap();
        let order: Vec<_> = loaded.files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(
            order,
            [
                "/etc/containerd/config.toml",
                "/etc/containerd/b.toml",
                "/etc/containerd/conf.d/10.toml",
                "/etc/containerd/conf.d/2.toml",
                "/etc/other/c.toml",
            ]
        );
        assert_eq!(loaded.files.last().unwrap().version, Some(3));
        assert!(loaded.missing.is_empty());
    }

    #[test]
    fn missing_literals_are_told_apart_from_empty_patterns() {
        let files = files(&[("/c.toml", "imports = ['gone.toml', 'rt?.toml', 'none/*.toml']")]);
        let loaded = Loaded::load(&files, Path::new("/c.toml")).unwrap();
        assert_eq!(loaded.missing, [Path::new("/gone.toml"), Path::new("/rt?.toml")]);
    }

    #[test]
    fn errors_name_file_and_key() {
        for (text, message) in [
            ("version = '2'", "version in /c.toml is not a whole number"),
            ("imports = 'x'", "imports in /c.toml is not an array of strings"),
            ("imports = [1]", "imports in /c.toml is not an array of strings"),
            ("[", "/c.toml is not valid TOML"),
        ] {
            let error = ConfigFile::parse("/c.toml".into(), text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
