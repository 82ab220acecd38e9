//! Putting our tables where the decision and the distribution want them.

use std::path::{Path, PathBuf};

use crate::{
    Error,
    config::{
        ConfigFile, Family, Files, Loaded, block,
        decide::{Decision, Place},
        imports,
    },
    distribution::Distribution,
    facts::Facts,
    ours::{self, BASE_TEMPLATE},
    plan::Tables,
    takeover,
};

/// Changes `files` so that they have our tables once, and nothing old of ours.
///
/// `loaded` is the configuration without us, `files` has us where we are now.
///
/// # Errors
/// When the place cannot be used.
pub(crate) fn put(
    files: &mut Files,
    facts: &Facts,
    loaded: &Loaded,
    decision: Decision,
    tables: &Tables<'_>,
) -> Result<(), Error> {
    // What an older containerd or another layout wanted in another place goes,
    // maybe with the import that the first choice relied on.
    let first_choice = choose(files, facts, loaded, decision)?.path();
    ours::undo(files, facts, Some(&first_choice))?;
    match choose(files, facts, loaded, decision)? {
        Target::DropIn { dir, decision, import } => {
            let path = dir.join(ours::DROP_IN);
            let before = files.get(&path).and_then(ours::added_import);
            if let Some(Import { file, entry, create }) = &import {
                add_import(files, file, entry, *create)?;
            }
            // Of an import added by an earlier run the old file tells.
            let added = import
                .map(|import| (import.file, import.entry))
                .or(before.filter(|(file, entry)| imports_entry(files, file, entry)));
            let added = added.as_ref().map(|(file, entry)| (file.as_path(), entry.as_str()));
            files.insert(path, ours::drop_in(&tables.text(decision), added).into_bytes());
        }
        Target::Block { path, decision } => {
            let text = files.get(&path).map(|content| utf8(&path, content)).transpose()?;
            let text = if text.is_none() && path.extension().is_some_and(|it| it == "tmpl") {
                Some(BASE_TEMPLATE.to_owned())
            } else {
                text
            };
            let text = block::set(text.as_deref(), &tables.text(decision));
            files.insert(path, text.into_bytes());
        }
    }
    Ok(())
}

/// Where our tables go in the end.
enum Target {
    /// Our own file in a directory, and the import it needs.
    DropIn { dir: PathBuf, decision: Decision, import: Option<Import> },
    /// Our block in a file of others.
    Block { path: PathBuf, decision: Decision },
}

impl Target {
    /// The file that gets our tables.
    fn path(&self) -> PathBuf {
        match self {
            Self::DropIn { dir, .. } => dir.join(ours::DROP_IN),
            Self::Block { path, .. } => path.clone(),
        }
    }
}

/// An import to add.
struct Import {
    file: PathBuf,
    entry: String,
    /// The file states nothing yet: it needs a version, too.
    create: bool,
}

fn choose(
    files: &Files,
    facts: &Facts,
    loaded: &Loaded,
    decision: Decision,
) -> Result<Target, Error> {
    match facts.layout.distribution {
        Distribution::Containerd => plain(files, facts, loaded, decision),
        Distribution::K3s | Distribution::Rke2 => Ok(rancher(files, facts, loaded, decision)),
        Distribution::K0s => k0s(facts, loaded, decision),
        Distribution::Microk8s => microk8s(files, facts, decision),
    }
}

fn plain(
    files: &Files,
    facts: &Facts,
    loaded: &Loaded,
    decision: Decision,
) -> Result<Target, Error> {
    let config = &facts.layout.config;
    match decision.place {
        Place::Append(index) => {
            let path = loaded.files.get(index).map_or(config, |file| &file.path);
            writable(facts, path)?;
            Ok(Target::Block { path: path.clone(), decision })
        }
        // On 1.x everything goes into the root.
        Place::FillRoot if decision.version == Some(2) => {
            writable(facts, config)?;
            Ok(Target::Block { path: config.clone(), decision })
        }
        Place::FillRoot | Place::DropIn => {
            let root = files
                .get(config)
                .map(|content| ConfigFile::parse(config.clone(), content))
                .transpose()?;
            if let Some(dir) = root.as_ref().and_then(|root| ours::drop_in_dir(root, facts)) {
                return Ok(Target::DropIn { dir, decision, import: None });
            }
            writable(facts, config)?;
            let dir = config.with_file_name("conf.d");
            let entry = ours::new_import(&dir, files, loaded);
            let create = decision.place == Place::FillRoot;
            let import = Some(Import { file: config.clone(), entry, create });
            Ok(Target::DropIn { dir, decision, import })
        }
    }
}

/// k3s and rke2 render containerd's file at every start. New releases import a
/// directory; the others get our tables by way of the template (F-B1, F-B2).
fn rancher(files: &Files, facts: &Facts, loaded: &Loaded, decision: Decision) -> Target {
    let [v3, v2] = takeover::templates(&facts.layout);
    let has_block = |path: &Path| {
        files
            .get(path)
            .is_some_and(|content| block::body(&String::from_utf8_lossy(content)).is_some())
    };
    let in_template = has_block(&v3) || has_block(&v2);
    if decision.place == Place::DropIn
        && !in_template
        && let Some(dir) = loaded.root_file().and_then(|root| ours::drop_in_dir(root, facts))
    {
        return Target::DropIn { dir, decision, import: None };
    }
    // The template states the version itself.
    let decision = Decision { version: None, ..decision };
    if !facts.containerd.merges_imports() {
        return Target::Block { path: v2, decision };
    }
    if files.get(&v3).is_none() && files.get(&v2).is_some() {
        return Target::Block { path: v2, decision };
    }
    Target::Block { path: v3, decision: Decision { family: Family::Split, ..decision } }
}

/// k0s merges what lies in its directory, by itself with containerd 1.7 and as
/// imports since (F-A5).
fn k0s(facts: &Facts, loaded: &Loaded, decision: Decision) -> Result<Target, Error> {
    let managed = loaded
        .root_file()
        .is_some_and(|root| root.text().lines().any(|line| line.trim() == "# k0s_managed=true"));
    if !managed {
        return Err(Error::Refused {
            path: facts.layout.config.clone(),
            reason: "it is not managed by k0s (the line `# k0s_managed=true` is missing), so k0s does not wire in files of containerd.d. Restore the line, or add the tables by hand.".into(),
        });
    }
    let dir = facts.layout.config.with_file_name("containerd.d");
    let decision = if facts.containerd.merges_imports() {
        decision
    } else {
        Decision { place: Place::DropIn, version: Some(2), family: Family::Legacy }
    };
    Ok(Target::DropIn { dir, decision, import: None })
}

/// `MicroK8s` renders containerd's file from a template that is TOML itself.
fn microk8s(files: &Files, facts: &Facts, decision: Decision) -> Result<Target, Error> {
    let path = facts.layout.config.with_file_name("containerd-template.toml");
    if files.get(&path).is_none() {
        return Err(Error::Refused {
            path,
            reason: "the template of MicroK8s is missing, and what it renders is overwritten at every start".into(),
        });
    }
    Ok(Target::Block { path, decision: Decision { version: None, ..decision } })
}

fn add_import(files: &mut Files, path: &Path, entry: &str, create: bool) -> Result<(), Error> {
    let text = if create {
        let text = files.get(path).map(|content| utf8(path, content)).transpose()?;
        let entry = crate::config::wanted::string(entry);
        block::set(text.as_deref(), &format!("version = 3\nimports = [{entry}]\n"))
    } else {
        let content = files.get(path).unwrap_or_default();
        imports::add(&ConfigFile::parse(path.to_path_buf(), content)?, entry)?
    };
    files.insert(path.to_path_buf(), text.into_bytes());
    Ok(())
}

fn imports_entry(files: &Files, path: &Path, entry: &str) -> bool {
    files
        .get(path)
        .and_then(|content| ConfigFile::parse(path.to_path_buf(), content).ok())
        .is_some_and(|file| file.imports.iter().any(|import| import == entry))
}

fn writable(facts: &Facts, path: &Path) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if facts.read_only.contains(dir) {
        return Err(Error::Refused {
            path: path.to_path_buf(),
            reason: "it cannot be written, and it imports no directory that can. Start containerd with a configuration file of your own that imports one (docs/containerd.md), or bake the tables into the image.".into(),
        });
    }
    Ok(())
}

fn utf8(path: &Path, content: &[u8]) -> Result<String, Error> {
    String::from_utf8(content.to_vec()).map_err(|_| Error::Type {
        path: path.to_path_buf(),
        key: "the content",
        expected: "UTF-8 text",
    })
}
