//! What the Go installer of zeropod left on a node, and how to take it over.
//!
//! It wrote, beside containerd's configuration file: `runtime_zeropod.toml`
//! and an import of it (containerd 2.x), or tables at the end of the file
//! (1.x); a backup `config.toml.original`; on k3s and rke2 a copy of the
//! rendered file as template, which freezes it (F-B1, I12).

use std::path::{Path, PathBuf};

use toml_edit::{Item, TableLike};

use crate::{
    Error,
    config::{ConfigFile, Family, Files, OPT_PLUGIN, block, imports, tables, wanted},
    distribution::{Distribution, Layout},
};

/// File name of the Go installer's drop-in.
const DROP_IN: &str = "runtime_zeropod.toml";

/// Removes what the Go installer left from `files`, and returns in words what
/// it did.
///
/// # Errors
/// When a file that has to be changed is not TOML.
pub(crate) fn remove_go(files: &mut Files, layout: &Layout) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    let drop_in = layout.config.with_file_name(DROP_IN);
    let rendered = matches!(layout.distribution, Distribution::K3s | Distribution::Rke2);
    if rendered {
        for template in templates(layout) {
            if files.get(&template).is_some_and(is_frozen) {
                notes.push(format!(
                    "{} is a frozen copy made by the Go installer: removed, so that updates of {} reach containerd again",
                    template.display(),
                    layout.distribution
                ));
                files.remove(&template);
                files.remove(&backup(&layout.config));
            }
        }
    }
    let Some(text) = cleaned_root(files, layout)? else {
        // A run was killed between the two steps of a takeover, or the
        // configuration has been rendered anew since.
        if files.get(&drop_in).is_some_and(is_go_drop_in) {
            notes.push(format!(
                "{} of the Go installer is no longer imported: removed",
                drop_in.display()
            ));
            files.remove(&drop_in);
        }
        return Ok(notes);
    };
    if rendered {
        // It is rendered anew at the next start; until then the drop-in that
        // it imports must stay (F-A9).
        return Ok(notes);
    }
    notes.push(format!("{}: the Go installer's changes are taken over", layout.config.display()));
    let backup = backup(&layout.config);
    match files.get(&backup) {
        // Only if nobody changed anything since, and then to the byte.
        Some(original) if means_the_same(&layout.config, original, text.as_bytes()) => {
            let original = original.to_vec();
            files.insert(layout.config.clone(), original);
            files.remove(&backup);
        }
        Some(_) => {
            notes.push(format!(
                "{} stays: the configuration has changed since that backup was made",
                backup.display()
            ));
            files.insert(layout.config.clone(), text.into_bytes());
        }
        None => files.insert(layout.config.clone(), text.into_bytes()),
    }
    files.remove(&drop_in);
    Ok(notes)
}

/// The root file without what the Go installer put into it; `None` if there is
/// nothing of it.
///
/// # Errors
/// When the file is not TOML.
pub(crate) fn cleaned_root(files: &Files, layout: &Layout) -> Result<Option<String>, Error> {
    let Some(content) = files.get(&layout.config) else { return Ok(None) };
    let root = ConfigFile::parse(layout.config.clone(), content)?;
    let drop_in = layout.config.with_file_name(DROP_IN);
    let mut text = root.text().to_owned();
    for entry in root.imports.iter().filter(|entry| root.dir().join(entry) == drop_in) {
        text = imports::remove(&parse(&root.path, &text)?, entry)?;
    }
    text = without_tables(&parse(&root.path, &text)?).unwrap_or(text);
    Ok((text != root.text()).then_some(text))
}

/// The templates that k3s and rke2 render the configuration from, in the order
/// in which containerd 2.x releases of theirs look for them.
pub(crate) fn templates(layout: &Layout) -> [PathBuf; 2] {
    ["config-v3.toml.tmpl", "config.toml.tmpl"].map(|name| layout.config.with_file_name(name))
}

fn backup(config: &Path) -> PathBuf {
    let mut name = config.as_os_str().to_owned();
    name.push(".original");
    name.into()
}

fn parse(path: &Path, text: &str) -> Result<ConfigFile, Error> {
    ConfigFile::parse(path.to_path_buf(), text.as_bytes())
}

/// A template without any template in it, but with our handler outside of a
/// block of ours.
fn is_frozen(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    let outside = block::remove(&text).unwrap_or_default();
    !outside.contains("{{")
        && (outside.contains(DROP_IN) || outside.contains("containerd.runtimes.zeropod"))
}

/// Whether a file holds the zeropod handler and nothing that others could have
/// put into it.
fn is_go_drop_in(content: &[u8]) -> bool {
    ConfigFile::parse(DROP_IN.into(), content).is_ok_and(|file| {
        file.imports.is_empty()
            && [Family::Legacy, Family::Split].iter().any(|family| {
                file.table(&["plugins", family.plugin(), "containerd", "runtimes"])
                    .is_some_and(|runtimes| runtimes.len() == 1 && runtimes.contains_key("zeropod"))
            })
    })
}

/// Takes out the tables that it appends on 1.x, if they stand outside of our
/// own block.
fn without_tables(file: &ConfigFile) -> Option<String> {
    let outside = parse(&file.path, &block::remove(file.text())?).ok()?;
    let runtime = ["plugins", Family::Legacy.plugin(), "containerd", "runtimes", "zeropod"];
    let table = outside.table(&runtime)?;
    let shim = table.get("runtime_path").and_then(Item::as_str)?;
    let opt = shim.strip_suffix(wanted::SHIM)?.strip_suffix("/bin/")?;
    let options = [&runtime[..], &["options"]].concat();
    let mut paths: Vec<&[&str]> = vec![&runtime];
    if table.contains_key("options") {
        paths.push(&options);
    }
    // Its own opt table stands below the runtime's. One that was there before
    // stands above, and stays.
    let opt_table = ["plugins", OPT_PLUGIN];
    let set = outside.table(&opt_table).and_then(|table| table.get("path")?.as_str());
    if set == Some(opt) && is_below(&outside, &opt_table, &runtime) {
        paths.push(&opt_table);
    }
    tables::remove(file, &paths)
}

fn is_below(file: &ConfigFile, lower: &[&str], upper: &[&str]) -> bool {
    let start = |path: &[&str]| {
        let mut item = file.document().as_item();
        for key in path {
            item = item.get(key)?;
        }
        Some(item.as_table()?.span()?.start)
    };
    start(lower).zip(start(upper)).is_some_and(|(lower, upper)| lower > upper)
}

/// Whether two files state the same; no `imports` is the same as an empty one.
fn means_the_same(path: &Path, one: &[u8], other: &[u8]) -> bool {
    let parsed = |content| ConfigFile::parse(path.to_path_buf(), content).ok();
    match (parsed(one), parsed(other)) {
        (Some(one), Some(other)) => {
            same_table(one.document().as_table(), other.document().as_table())
        }
        _ => false,
    }
}

fn same_table(one: &dyn TableLike, other: &dyn TableLike) -> bool {
    let keys = |table: &dyn TableLike| {
        let mut keys: Vec<String> = table
            .iter()
            .filter(|(_, item)| !is_nothing(item))
            .map(|(key, _)| key.to_owned())
            .collect();
        keys.sort_unstable();
        keys
    };
    keys(one) == keys(other)
        && one.iter().filter(|(_, item)| !is_nothing(item)).all(|(key, item)| {
            other.get(key).is_some_and(|other| {
                match (item.as_table_like(), other.as_table_like()) {
                    (Some(one), Some(other)) => same_table(one, other),
                    (None, None) => same_value(item, other),
                    _ => false,
                }
            })
        })
}

/// An empty array or a table of nothing else: a header alone adds no setting.
fn is_nothing(item: &Item) -> bool {
    item.as_array().is_some_and(toml_edit::Array::is_empty)
        || item.as_table_like().is_some_and(|table| table.iter().all(|(_, item)| is_nothing(item)))
}

fn same_value(one: &Item, other: &Item) -> bool {
    match (one.as_array(), other.as_array()) {
        (Some(one), Some(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|(one, other)| {
                    same_value(&Item::Value(one.clone()), &Item::Value(other.clone()))
                })
        }
        _ => {
            one.as_str() == other.as_str()
                && one.as_integer() == other.as_integer()
                && one.as_bool() == other.as_bool()
                && one.as_float() == other.as_float()
                && one.type_name() == other.type_name()
                && !one.is_array_of_tables()
                && !one.is_datetime()
        }
    }
}
