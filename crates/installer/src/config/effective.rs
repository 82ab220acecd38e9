//! What containerd makes of its files: a model of its merge and migration
//! rules, as far as runtimes and the opt directory are concerned.

use toml_edit::{Item, Table, TableLike};

use super::{Family, Loaded, OPT_PLUGIN};
use crate::version::MergeRules;

/// The settings that decide how a new runtime has to look.
#[derive(Debug, Clone)]
pub(crate) struct Effective {
    /// Name of the runtime of pods without a runtime class.
    pub default_runtime: String,
    /// `runtimes`, if any file defines it. Without it containerd has its
    /// built-in `runc` only.
    pub runtimes: Option<Table>,
    /// Path of the opt plugin, if any file sets it.
    pub opt_path: Option<String>,
}

impl Effective {
    /// Merges the files as containerd does.
    pub(crate) fn of(loaded: &Loaded, rules: MergeRules) -> Self {
        let mut plugins = Table::new();
        let mut version = 1;
        for file in &loaded.files {
            version = file.version.unwrap_or(version);
            let Some(table) = file.table(&["plugins"]) else { continue };
            match rules {
                MergeRules::Replace => {
                    for (id, section) in table.iter() {
                        plugins.insert(id, section.clone());
                    }
                }
                MergeRules::MergeThenMigrate => merge(&mut plugins, table),
                MergeRules::MigrateThenMerge => {
                    let mut own = Table::new();
                    merge(&mut own, table);
                    if file.version.unwrap_or(1) < 2 {
                        migrate(&mut own, Family::Short);
                    }
                    if file.version.unwrap_or(1) < 3 {
                        migrate(&mut own, Family::Legacy);
                    }
                    merge(&mut plugins, &own);
                }
            }
        }
        let family = match rules {
            MergeRules::Replace if version < 2 => Family::Short,
            MergeRules::Replace => Family::Legacy,
            MergeRules::MergeThenMigrate => {
                // A merged version of 1 leaves the tables of both old families
                // unread.
                if version == 2 {
                    migrate(&mut plugins, Family::Legacy);
                }
                Family::Split
            }
            MergeRules::MigrateThenMerge => Family::Split,
        };
        Self::from_plugins(&plugins, family)
    }

    fn from_plugins(plugins: &Table, family: Family) -> Self {
        let section = |id: &str| plugins.get(id).and_then(Item::as_table_like);
        let containerd = section(family.plugin())
            .and_then(|cri| cri.get("containerd"))
            .and_then(Item::as_table_like);
        let default_runtime = containerd
            .and_then(|table| table.get("default_runtime_name"))
            .and_then(Item::as_str)
            .filter(|name| !name.is_empty())
            .unwrap_or("runc");
        let runtimes = containerd
            .and_then(|table| table.get("runtimes"))
            .and_then(Item::as_table_like)
            .map(|runtimes| {
                let mut copy = Table::new();
                merge(&mut copy, runtimes);
                copy
            });
        let opt_path = section(family.opt_plugin())
            .or_else(|| section(OPT_PLUGIN))
            .and_then(|opt| opt.get("path"))
            .and_then(Item::as_str)
            .filter(|path| !path.is_empty());
        Self {
            default_runtime: default_runtime.to_owned(),
            runtimes,
            opt_path: opt_path.map(str::to_owned),
        }
    }

    /// A runtime by name.
    pub(crate) fn runtime(&self, name: &str) -> Option<&dyn TableLike> {
        self.runtimes.as_ref()?.get(name)?.as_table_like()
    }
}

/// Adds `from` to `into`, key by key; what is a table in both is merged.
fn merge(into: &mut dyn TableLike, from: &dyn TableLike) {
    for (key, item) in from.iter() {
        let both = into.get_mut(key).and_then(Item::as_table_like_mut).zip(item.as_table_like());
        match both {
            Some((into, from)) => merge(into, from),
            None => {
                into.insert(key, item.clone());
            }
        }
    }
}

/// Moves the tables of an old family to where the next one has them. What is
/// already there wins, and as a whole: `containerd.runtimes` is one key.
fn migrate(plugins: &mut Table, from: Family) {
    let to = if from == Family::Short { Family::Legacy } else { Family::Split };
    let Some(old) = plugins.remove(from.plugin()) else { return };
    let Some(old) = old.as_table_like() else { return };
    let target = plugins.entry(to.plugin()).or_insert_with(toml_edit::table);
    let Some(target) = target.as_table_like_mut() else { return };
    for (key, item) in old.iter() {
        if key == "containerd"
            && let Some(old) = item.as_table_like()
        {
            let containerd = target.entry(key).or_insert_with(toml_edit::table);
            if let Some(containerd) = containerd.as_table_like_mut() {
                for (key, item) in old.iter() {
                    if !containerd.contains_key(key) {
                        containerd.insert(key, item.clone());
                    }
                }
            }
        } else if !target.contains_key(key) {
            target.insert(key, item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Files;

    const LEGACY: &str = "version = 2
[plugins.'io.containerd.grpc.v1.cri'.containerd]
default_runtime_name = 'custom'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.custom]
runtime_type = 'x'
";
    const LEGACY_IMPORT: &str = "version = 2
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.zeropod]
runtime_type = 'y'
";
    const SPLIT_IMPORT: &str = "
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.zeropod]
runtime_type = 'y'
";

    fn names(root: &str, import: &str, rules: MergeRules) -> (String, Vec<String>) {
        let mut files = Files::default();
        files.insert("/c.toml".into(), format!("imports = ['d/*.toml']\n{root}").into());
        files.insert("/d/x.toml".into(), import.as_bytes().to_vec());
        let loaded = Loaded::load(&files, Path::new("/c.toml")).unwrap();
        let effective = Effective::of(&loaded, rules);
        let runtimes = effective
            .runtimes
            .iter()
            .flat_map(|runtimes| runtimes.iter().map(|(name, _)| name.to_owned()))
            .collect();
        (effective.default_runtime, runtimes)
    }

    #[test]
    fn an_import_replaces_or_merges_or_hides() {
        use MergeRules::{MergeThenMigrate, MigrateThenMerge, Replace};
        let both = ("custom".to_owned(), vec!["custom".to_owned(), "zeropod".to_owned()]);
        let ours = |default: &str| (default.to_owned(), vec!["zeropod".to_owned()]);
        for (import, rules, expected) in [
            // F-A1: the import's section is all that is left.
            (LEGACY_IMPORT, Replace, ours("runc")),
            (LEGACY_IMPORT, MergeThenMigrate, both.clone()),
            (LEGACY_IMPORT, MigrateThenMerge, both.clone()),
            // F-A2: the key `runtimes` is migrated as a whole or not at all.
            (SPLIT_IMPORT, MergeThenMigrate, ours("custom")),
            (SPLIT_IMPORT, MigrateThenMerge, both),
        ] {
            assert_eq!(names(LEGACY, import, rules), expected, "{import} {rules:?}");
        }
        // F-A3: the last file's version decides, so the root is never migrated.
        assert_eq!(
            names(LEGACY, &format!("version = 3\n{SPLIT_IMPORT}"), MergeThenMigrate),
            ours("runc")
        );
    }
}
