//! Where our tables go, in which names, and under which `version`: the table
//! of `docs/containerd.md` in code.

use super::{Family, Loaded};
use crate::version::{ContainerdVersion, MergeRules};

/// The decision for one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Which file gets our tables.
    pub place: Place,
    /// The `version` to state there.
    pub version: Option<i64>,
    /// The names of the tables.
    pub family: Family,
}

/// Which file gets our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file of our own that the root imports.
    DropIn,
    /// The end of a loaded file, by its place in [`Loaded::files`].
    Append(usize),
    /// The root, which states nothing yet or does not exist. In it goes
    /// everything, or on containerd 2.x an import of our file.
    FillRoot,
}

/// What is wrong with a configuration that cannot be extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Index into [`Loaded::files`], if a file is to blame.
    pub file: Option<usize>,
    /// Why, and what to do.
    pub reason: String,
}

/// Decides from what the files hold, without our own tables in them.
pub(crate) fn decide(containerd: &ContainerdVersion, loaded: &Loaded) -> Result<Decision, Refusal> {
    if let Some(missing) = loaded.missing.first() {
        return refuse(
            loaded.root_file().map(|_| 0),
            format!(
                "it imports {}, which does not exist: containerd will not start with it. Remove the import or restore the file.",
                missing.display()
            ),
        );
    }
    if let Some(file) = loaded.cri_disabled_in() {
        return refuse(
            loaded.files.iter().position(|other| other.path == file.path),
            "disabled_plugins switches the CRI plugin off, so Kubernetes cannot be using this containerd. Remove the entry if it should.".into(),
        );
    }
    let root = loaded.root_file();
    let empty = root.is_none_or(super::ConfigFile::is_empty);
    let version = root.and_then(|root| root.version).unwrap_or(1);
    match containerd.merge_rules() {
        MergeRules::Replace => decide_1(containerd, loaded, empty, version),
        MergeRules::MergeThenMigrate | MergeRules::MigrateThenMerge => {
            Ok(decide_2(loaded, empty, version))
        }
    }
}

/// containerd 1.x: an import with our tables would replace everything that the
/// files before it say about CRI (F-A1), so they go to the end of the last
/// file that says something.
fn decide_1(
    containerd: &ContainerdVersion,
    loaded: &Loaded,
    empty: bool,
    version: i64,
) -> Result<Decision, Refusal> {
    if empty {
        return Ok(Decision { place: Place::FillRoot, version: Some(2), family: Family::Legacy });
    }
    let last_with = |family| loaded.files.iter().rposition(|file| file.has(family));
    // The last file that states a version decides for all.
    let merged = loaded.files.iter().rev().find_map(|file| file.version).unwrap_or(1);
    if merged > 2 {
        return refuse(
            loaded.files.iter().rposition(|file| file.version == Some(merged)),
            format!(
                "it states version {merged}, but containerd {containerd} knows versions up to 2."
            ),
        );
    }
    if version == 2 {
        let place = Place::Append(last_with(Family::Legacy).unwrap_or(0));
        return Ok(Decision { place, version: None, family: Family::Legacy });
    }
    if let Some(file) = last_with(Family::Legacy) {
        return refuse(
            Some(file),
            "it has CRI tables of version 2 without stating `version = 2` in the main file, so containerd ignores them today. Add `version = 2` if they should count.".into(),
        );
    }
    let place = Place::Append(last_with(Family::Short).unwrap_or(0));
    Ok(Decision { place, version: None, family: Family::Short })
}

/// containerd 2.x: a file of our own. The names of the tables must be those
/// that are read in the end; without a `version` key it never changes how the
/// other files are read (F-A2 to F-A5).
fn decide_2(loaded: &Loaded, empty: bool, version: i64) -> Decision {
    let place = if empty { Place::FillRoot } else { Place::DropIn };
    let split_is_read = loaded
        .files
        .iter()
        .any(|file| file.has(Family::Split) || file.version.is_some_and(|version| version >= 3));
    if version == 2 && !split_is_read {
        Decision { place, version: Some(2), family: Family::Legacy }
    } else {
        Decision { place, version: None, family: Family::Split }
    }
}

fn refuse<T>(file: Option<usize>, reason: String) -> Result<T, Refusal> {
    Err(Refusal { file, reason })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Files;

    const CRI: &str = "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'p'\n";
    const SHORT: &str = "[plugins.cri]\nsandbox_image = 'p'\n";
    const RUNTIME: &str = "[plugins.'io.containerd.cri.v1.runtime']\nenable_selinux = false\n";
    const IMAGES: &str = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'x'\n";

    fn decide_for(containerd: &str, root: Option<&str>, import: &str) -> Result<Decision, Refusal> {
        let mut files = Files::default();
        if let Some(root) = root {
            files.insert("/c.toml".into(), root.as_bytes().to_vec());
        }
        files.insert("/d/foreign.toml".into(), import.as_bytes().to_vec());
        let loaded = Loaded::load(&files, Path::new("/c.toml")).unwrap();
        decide(&containerd.parse().unwrap(), &loaded)
    }

    #[test]
    fn the_table() {
        use Family::{Legacy, Short, Split};
        use Place::{Append, DropIn, FillRoot};
        let import = "imports = ['d/*.toml']\n";
        let of = |version: &str, tables: &str| format!("{import}{version}\n{tables}");
        let rows: &[(&[&str], Option<String>, &str, Decision)] = &[
            (
                &["1.6.20", "1.7.24"],
                Some(of("version = 2", CRI)),
                "",
                decision(Append(0), None, Legacy),
            ),
            (&["1.7.24"], Some(of("version = 2", "")), "", decision(Append(0), None, Legacy)),
            (
                &["1.7.24"],
                Some(of("version = 2", CRI)),
                "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nx = 1",
                decision(Append(1), None, Legacy),
            ),
            (&["1.7.24"], Some(of("version = 1", SHORT)), "", decision(Append(0), None, Short)),
            (&["1.7.24"], Some(of("", SHORT)), "", decision(Append(0), None, Short)),
            (&["1.7.24"], None, "", decision(FillRoot, Some(2), Legacy)),
            (&["1.7.24"], Some("# comment\n".into()), "", decision(FillRoot, Some(2), Legacy)),
            (TWO, Some(of("version = 2", CRI)), "", decision(DropIn, Some(2), Legacy)),
            (TWO, Some(of("version = 2", "")), "", decision(DropIn, Some(2), Legacy)),
            // AKS.
            (TWO, Some(of("version = 2", RUNTIME)), "", decision(DropIn, None, Split)),
            (TWO, Some(of("version = 2", IMAGES)), "", decision(DropIn, None, Split)),
            (TWO, Some(of("version = 2", CRI)), RUNTIME, decision(DropIn, None, Split)),
            (TWO, Some(of("version = 2", CRI)), "version = 3", decision(DropIn, None, Split)),
            (TWO, Some(of("version = 3", RUNTIME)), "", decision(DropIn, None, Split)),
            (TWO, Some(of("version = 3", "")), "version = 2", decision(DropIn, None, Split)),
            (TWO, Some(of("version = 4", RUNTIME)), "", decision(DropIn, None, Split)),
            (TWO, Some(of("version = 1", SHORT)), "", decision(DropIn, None, Split)),
            (TWO, Some(of("", CRI)), "", decision(DropIn, None, Split)),
            (TWO, None, "", decision(FillRoot, None, Split)),
            (TWO, Some(String::new()), "", decision(FillRoot, None, Split)),
        ];
        for (containerds, root, import, expected) in rows {
            for containerd in *containerds {
                assert_eq!(
                    decide_for(containerd, root.as_deref(), import).as_ref(),
                    Ok(expected),
                    "{containerd} {root:?} {import}"
                );
            }
        }
    }

    const TWO: &[&str] = &["2.0.14", "2.1.9", "2.2.9", "2.3.4", "2.3.7", "2.4.2"];

    fn decision(place: Place, version: Option<i64>, family: Family) -> Decision {
        Decision { place, version, family }
    }

    #[test]
    fn what_is_refused() {
        for (containerd, root, import, needle) in [
            ("1.7.24", CRI, "", "without stating"),
            ("1.7.24", "version = 3", "", "versions up to 2"),
            ("1.7.24", "version = 2\nimports = ['/d/*']", "version = 3", "versions up to 2"),
            ("1.7.24", "disabled_plugins = ['cri']", "", "switches the CRI plugin off"),
            ("2.1.9", "disabled_plugins = ['io.containerd.cri.v1.images']", "", "switches"),
            ("2.1.9", "imports = ['/d/*']", "disabled_plugins = ['cri']", "switches"),
            ("2.1.9", "imports = ['/none.toml']", "", "/none.toml, which does not exist"),
        ] {
            let refusal = decide_for(containerd, Some(root), import).unwrap_err();
            assert!(refusal.reason.contains(needle), "{root} {refusal:?}");
        }
    }
}
