//! What this installer put into a node's configuration, and taking it out.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use toml_edit::{DocumentMut, TableLike};
use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::{
    Error,
    config::{ConfigFile, Family, Files, Loaded, OPT_PLUGIN, block, glob, imports, normalize},
    distribution::Distribution,
    facts::Facts,
};

/// Name of our file in a directory of imports. Whatever sorts after it can
/// override it (F-A18).
pub(crate) const DROP_IN: &str = "50-zeropod.toml";

/// First line of our file.
const HEADER: &str = "# Written by zeropod-installer, which overwrites changes. To override it, use a\n# file that sorts after it, such as 90-local.toml.\n";

/// Starts the line that names the import which was added for our file.
const IMPORTED_BY: &str = "# Imported by an entry added to ";

/// The whole template that k3s and rke2 use when there is none.
pub(crate) const BASE_TEMPLATE: &str = "{{ template \"base\" . }}\n";

/// The content of our file; `added` is the import that it needed, if any.
pub(crate) fn drop_in(tables: &str, added: Option<(&Path, &str)>) -> String {
    let mut text = HEADER.to_owned();
    if let Some((file, entry)) = added {
        let _ = writeln!(text, "{IMPORTED_BY}{}: {entry}", file.display());
    }
    text.push('\n');
    text.push_str(tables);
    text
}

/// The import that was added for our file, by the file's own account.
pub(crate) fn added_import(drop_in: &[u8]) -> Option<(PathBuf, String)> {
    let text = std::str::from_utf8(drop_in).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(IMPORTED_BY))?;
    let (file, entry) = line.split_once(": ")?;
    Some((file.into(), entry.to_owned()))
}

fn is_drop_in(path: &Path, content: &[u8]) -> bool {
    path.file_name().is_some_and(|name| name == DROP_IN) && content.starts_with(HEADER.as_bytes())
}

/// The files that have something of ours in them.
pub(crate) fn files(facts: &Facts) -> Vec<PathBuf> {
    let rendered = crate::plan::is_rendered(facts.layout.distribution);
    facts
        .files
        .iter()
        .filter(|(path, _)| !rendered || *path != facts.layout.config)
        .filter(|(path, content)| {
            is_drop_in(path, content)
                || std::str::from_utf8(content).is_ok_and(|text| block::body(text).is_some())
        })
        .map(|(path, _)| path.to_path_buf())
        .collect()
}

/// The files as containerd would see them without us. Imports that we added
/// stay: without our file they add nothing.
pub(crate) fn removed(files: &Files, facts: &Facts) -> Files {
    let mut bare = Files::default();
    for (path, content) in files.iter() {
        if is_drop_in(path, content) {
            continue;
        }
        // k0s makes one file of the CRI tables of all others, ours included.
        if facts.layout.distribution == Distribution::K0s && path.starts_with("/run/k0s") {
            bare.insert(path.to_path_buf(), without_tables(content));
            continue;
        }
        match std::str::from_utf8(content) {
            Ok(text) => {
                if let Some(text) = block::remove(text) {
                    bare.insert(path.to_path_buf(), text.into_bytes());
                }
            }
            Err(_) => bare.insert(path.to_path_buf(), content.to_vec()),
        }
    }
    bare
}

/// A file that somebody else made of our tables and others, without ours. It
/// is never written, so it may lose its form.
fn without_tables(content: &[u8]) -> Vec<u8> {
    let parsed = std::str::from_utf8(content).ok().and_then(|text| text.parse().ok());
    let Some(mut document): Option<DocumentMut> = parsed else { return content.to_vec() };
    let mut remove = |parents: &[&str], key: &str| {
        let mut table: Option<&mut dyn TableLike> = Some(document.as_table_mut());
        for parent in parents {
            table = table.and_then(|table| table.get_mut(parent)?.as_table_like_mut());
        }
        table.and_then(|table| table.remove(key));
    };
    for family in [Family::Legacy, Family::Split] {
        remove(&["plugins", family.plugin(), "containerd", "runtimes"], RUNTIME_CLASS);
    }
    remove(&["plugins"], OPT_PLUGIN);
    document.to_string().into_bytes()
}

/// Takes everything of ours out of `files`, except for what is at `keep` and
/// the import of it, and returns what could not go.
///
/// # Errors
/// When a file with an import of ours cannot be parsed.
pub(crate) fn undo(
    files: &mut Files,
    facts: &Facts,
    keep: Option<&Path>,
) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    let snapshot = files.clone();
    for (path, content) in snapshot.iter() {
        if is_drop_in(path, content) && Some(path) != keep {
            files.remove(path);
            if let Some((importer, entry)) = added_import(content) {
                notes.extend(remove_import(files, &importer, &entry)?);
            }
        }
    }
    let importer = keep.and_then(|path| added_import(snapshot.get(path)?)).map(|(file, _)| file);
    let rendered = crate::plan::is_rendered(facts.layout.distribution);
    let snapshot = files.clone();
    for (path, content) in snapshot.iter() {
        let spared = Some(path) == keep
            || importer.as_deref() == Some(path)
            || (rendered && path == facts.layout.config);
        let Ok(text) = std::str::from_utf8(content) else { continue };
        if spared || block::body(text).is_none() {
            continue;
        }
        match block::remove(text) {
            Some(rest) if rest == BASE_TEMPLATE && is_template(path) => files.remove(path),
            Some(rest) => files.insert(path.to_path_buf(), rest.into_bytes()),
            None => files.remove(path),
        }
    }
    Ok(notes)
}

fn is_template(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tmpl")
}

/// Removes an entry that we added, unless others have come to rely on it.
fn remove_import(files: &mut Files, importer: &Path, entry: &str) -> Result<Option<String>, Error> {
    let Some(content) = files.get(importer) else { return Ok(None) };
    let file = ConfigFile::parse(importer.to_path_buf(), content)?;
    // It is part of a block, and goes with it.
    let in_block = block::body(file.text())
        .is_some_and(|body| body.lines().any(|line| line.starts_with("imports")));
    let pattern = normalize(&file.dir().join(entry));
    let others = glob::expand(files, &pattern)?;
    if let Some(other) = others.first() {
        if in_block {
            keep_block(files, importer, &file);
        }
        return Ok(Some(format!(
            "{}: the import of {entry} stays, because {} is in there",
            importer.display(),
            other.display()
        )));
    }
    if !in_block {
        let text = imports::remove(&file, entry)?;
        files.insert(importer.to_path_buf(), text.into_bytes());
    } else if file.imports.iter().any(|import| import != entry) {
        let text = imports::remove(&file, entry)?;
        let file = ConfigFile::parse(importer.to_path_buf(), text.as_bytes())?;
        keep_block(files, importer, &file);
    }
    Ok(None)
}

/// Makes the lines of our block the user's own.
fn keep_block(files: &mut Files, path: &Path, file: &ConfigFile) {
    files.insert(path.to_path_buf(), block::unmark(file.text()).into_bytes());
}

/// Whether the root file of `loaded` imports a directory that our file can go
/// into, and which.
pub(crate) fn drop_in_dir(root: &ConfigFile, facts: &Facts) -> Option<PathBuf> {
    root.imports
        .iter()
        .map(|entry| normalize(&root.dir().join(entry)))
        .filter(|entry| glob::is_pattern(entry))
        .filter(|entry| entry.file_name().is_some_and(|name| glob::matches(name, DROP_IN.as_ref())))
        .filter_map(|entry| entry.parent().map(Path::to_path_buf))
        .find(|dir| !glob::is_pattern(dir) && !facts.read_only.contains(dir))
}

/// The entry to add for our file in `dir`. A directory with files in it that
/// containerd does not read today gets a pattern that matches only ours.
pub(crate) fn new_import(dir: &Path, files: &Files, loaded: &Loaded) -> String {
    let unread = files.iter().any(|(path, content)| {
        path.parent() == Some(dir)
            && path.extension().is_some_and(|extension| extension == "toml")
            && !is_drop_in(path, content)
            && !loaded.files.iter().any(|file| file.path == path)
    });
    let pattern = if unread { "50-zeropod*.toml" } else { "*.toml" };
    dir.join(pattern).to_string_lossy().into_owned()
}
