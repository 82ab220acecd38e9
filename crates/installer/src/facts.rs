//! What the installer has to know of a node before it decides anything.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    config::{Files, Loaded, Source, glob, normalize},
    distribution::Layout,
    host::HostRoot,
    version::ContainerdVersion,
};

/// The state of a node, as far as the configuration of containerd goes.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where things are.
    pub layout: Layout,
    /// The version of the running containerd.
    pub containerd: ContainerdVersion,
    /// Every file that the configuration is made of, or could be affected by
    /// a change.
    pub files: Files,
    /// Directories among those of `files` that cannot be written.
    pub read_only: BTreeSet<PathBuf>,
}

impl Facts {
    /// Reads the configuration: the root, everything it imports, and what lies
    /// beside it and in the directories that it imports patterns from.
    ///
    /// # Errors
    /// When a file cannot be read or is not TOML.
    pub fn gather(
        host: &HostRoot,
        layout: Layout,
        containerd: ContainerdVersion,
    ) -> Result<Self, Error> {
        let recorder = Recorder { source: host, files: RefCell::default() };
        let loaded = Loaded::load(&recorder, &layout.config)?;
        let mut dirs: BTreeSet<PathBuf> = loaded
            .files
            .iter()
            .flat_map(|file| file.imports.iter().map(|entry| normalize(&file.dir().join(entry))))
            .filter(|entry| glob::is_pattern(entry))
            .filter_map(|entry| entry.parent().map(Path::to_path_buf))
            .filter(|dir| !glob::is_pattern(dir))
            .collect();
        let own = layout.config.parent().unwrap_or(Path::new("/")).to_path_buf();
        dirs.insert(own.join("conf.d"));
        dirs.insert(own);
        let mut read_only = BTreeSet::new();
        for dir in dirs {
            for name in recorder.list(&dir)? {
                let relevant = [".toml", ".tmpl", ".original"]
                    .iter()
                    .any(|ending| name.to_string_lossy().ends_with(ending));
                // An unreadable neighbour is none of our business.
                if relevant {
                    let _ = recorder.read(&dir.join(name));
                }
            }
            if !host.is_writable(&dir)? {
                read_only.insert(dir);
            }
        }
        Ok(Self { layout, containerd, files: recorder.files.into_inner(), read_only })
    }
}

/// Keeps what was read.
struct Recorder<'a> {
    source: &'a dyn Source,
    files: RefCell<Files>,
}

impl Source for Recorder<'_> {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let content = self.source.read(path)?;
        if let Some(content) = &content {
            self.files.borrow_mut().insert(path.to_path_buf(), content.clone());
        }
        Ok(content)
    }

    fn list(&self, dir: &Path) -> Result<Vec<OsString>, Error> {
        self.source.list(dir)
    }
}
