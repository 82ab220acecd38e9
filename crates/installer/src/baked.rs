//! A handler that somebody else put into the configuration, such as the static
//! file that we publish for images of nodes (F-R10): if it is as it should be,
//! there is nothing to add.

use std::path::{Path, PathBuf};

use zeropod_shim_api::names::{POD_ANNOTATIONS, RUNTIME_CLASS};

use crate::{
    config::{
        ConfigFile, Family,
        effective::Effective,
        wanted::{RUNTIME_TYPE, SHIM},
    },
    containerd::Handler,
};

/// A usable handler of somebody else's.
#[derive(Debug, Clone)]
pub(crate) struct Baked {
    /// The directory that has `bin` and `lib`.
    pub(crate) opt_path: PathBuf,
    pub(crate) handler: Handler,
}

impl Baked {
    /// Takes the handler as containerd has it.
    ///
    /// # Errors
    /// When pods would not work with it; with the reason.
    pub(crate) fn of(effective: &Effective) -> Result<Self, String> {
        let runtime =
            effective.runtime(RUNTIME_CLASS).ok_or("containerd does not read these tables")?;
        let handler = Handler::of_table(runtime);
        let path = Path::new(&handler.runtime_path);
        if handler.runtime_type != RUNTIME_TYPE {
            return Err(format!("its runtime_type is not {RUNTIME_TYPE}"));
        }
        let opt_path = path
            .parent()
            .and_then(Path::parent)
            .filter(|_| path.is_absolute() && path.ends_with(Path::new("bin").join(SHIM)));
        let Some(opt_path) = opt_path else {
            return Err(format!("its runtime_path is not that of {SHIM} in a directory bin"));
        };
        let missing = handler.annotations_missing();
        if !missing.is_empty() {
            return Err(format!("its pod_annotations lack {}", missing.join(", ")));
        }
        Ok(Self { opt_path: opt_path.to_path_buf(), handler })
    }
}

impl Handler {
    /// The annotations that a pod may have and that it would not pass on.
    pub(crate) fn annotations_missing(&self) -> Vec<&'static str> {
        let passed = |annotation: &&str| {
            self.pod_annotations.iter().flatten().any(|pattern| {
                // containerd matches them as paths; a star at the end is what
                // people write.
                pattern == annotation
                    || pattern.strip_suffix('*').is_some_and(|start| annotation.starts_with(start))
            })
        };
        POD_ANNOTATIONS.into_iter().filter(|it| !passed(it)).collect()
    }
}

/// Whether a file defines the handler, in any generation of names.
pub(crate) fn defines(file: &ConfigFile) -> bool {
    [Family::Short, Family::Legacy, Family::Split].iter().any(|family| {
        file.table(&["plugins", family.plugin(), "containerd", "runtimes", RUNTIME_CLASS]).is_some()
    })
}
