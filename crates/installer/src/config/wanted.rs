//! The tables that containerd needs to know zeropod, as text.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use toml_edit::{Array, InlineTable, Item, TableLike, Value};
use zeropod_shim_api::names::{POD_ANNOTATIONS, RUNTIME_CLASS};

use super::{Family, effective::Effective};
use crate::{acceptance, containerd::Handler};

/// File name of the shim in `bin` of the opt directory.
pub(crate) const SHIM: &str = "containerd-shim-zeropod-v2";

/// The type of every runtime whose shim takes runc's options. The shim's own
/// name would do, but containerd detects the features of this type only.
pub(crate) const RUNTIME_TYPE: &str = "io.containerd.runc.v2";

/// Keys of a runtime that a pod expects to be the same in every runtime.
const INHERITED: [&str; 6] = [
    "base_runtime_spec",
    "snapshotter",
    "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
    "cni_conf_dir",
    "cni_max_conf_num",
];

/// What the runtime handler has to look like on this node.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Directory with `bin` and `lib`.
    pub opt_path: PathBuf,
    /// Whether another file sets the opt directory, to the same path.
    pub opt_is_set: bool,
    keys: Vec<(String, Value)>,
    options: Vec<(String, Value)>,
}

impl Wanted {
    /// Takes over the opt directory if one is set, and from the default
    /// runtime what pods expect of every runtime (F-A14, I15). Its `options`
    /// count only if its shim takes the same ones; else those of `runc` do.
    pub(crate) fn new(
        effective: &Effective,
        host_opt_path: &Path,
        systemd_cgroup: Option<bool>,
    ) -> Self {
        let takes_runc_options = |name: &str| {
            effective.runtime(name).filter(|runtime| {
                runtime
                    .get("runtime_type")
                    .and_then(|item| item.as_str())
                    .is_none_or(|runtime_type| runtime_type == RUNTIME_TYPE)
            })
        };
        let model =
            takes_runc_options(&effective.default_runtime).or_else(|| takes_runc_options("runc"));
        let value = |table: &dyn TableLike, key: &str| {
            Some((key.to_owned(), plain(table.get(key)?.as_value()?)))
        };
        let keys = model
            .iter()
            .flat_map(|runtime| INHERITED.iter().filter_map(|key| value(*runtime, key)))
            .filter(|(_, value)| !is_zero(value))
            .collect();
        let mut options: Vec<(String, Value)> = model
            .and_then(|runtime| runtime.get("options")?.as_table_like())
            .into_iter()
            .flat_map(|table| {
                table
                    .iter()
                    .filter_map(|(key, item)| Some((key.to_owned(), plain(item.as_value()?))))
            })
            .filter(|(key, value)| key == SYSTEMD_CGROUP || !is_zero(value))
            .collect();
        if let Some(systemd_cgroup) = systemd_cgroup {
            options.retain(|(key, _)| key != SYSTEMD_CGROUP);
            options.push((SYSTEMD_CGROUP.to_owned(), systemd_cgroup.into()));
        }
        let set = effective.opt_path.as_deref().map(Path::new);
        Self {
            opt_path: set.unwrap_or(host_opt_path).to_path_buf(),
            opt_is_set: set.is_some(),
            keys,
            options,
        }
    }

    /// Path of the shim on the host.
    pub(crate) fn runtime_path(&self) -> PathBuf {
        self.opt_path.join("bin").join(SHIM)
    }

    /// The handler as containerd has it when it has loaded the tables.
    pub(crate) fn handler(&self) -> Handler {
        let options = self
            .options
            .iter()
            .map(|(key, value)| (key.clone(), acceptance::to_json(&Item::Value(value.clone()))));
        Handler {
            runtime_path: self.runtime_path().to_string_lossy().into_owned(),
            runtime_type: RUNTIME_TYPE.to_owned(),
            pod_annotations: Some(POD_ANNOTATIONS.map(str::to_owned).to_vec()),
            options: Some(options.collect()),
        }
    }

    /// The tables in a family's names, with the opt table if nobody else has
    /// it.
    pub(crate) fn tables(&self, family: Family) -> String {
        let mut text = String::new();
        if !self.opt_is_set {
            let _ = write!(
                text,
                "[plugins.{}]\npath = {}\n\n",
                key(family.opt_plugin()),
                string(&self.opt_path.to_string_lossy())
            );
        }
        let table = runtime_table(family, RUNTIME_CLASS);
        let _ = write!(
            text,
            "[{table}]\nruntime_type = {}\nruntime_path = {}\npod_annotations = [\n",
            string(RUNTIME_TYPE),
            string(&self.runtime_path().to_string_lossy()),
        );
        for annotation in POD_ANNOTATIONS {
            let _ = writeln!(text, "  {},", string(annotation));
        }
        text.push_str("]\n");
        for (name, value) in &self.keys {
            let _ = writeln!(text, "{} = {value}", key(name));
        }
        if !self.options.is_empty() {
            let _ = write!(text, "\n[{table}.options]\n");
            for (name, value) in &self.options {
                let _ = writeln!(text, "{} = {value}", key(name));
            }
        }
        text
    }
}

/// The built-in `runc` of containerd 1.x, spelled out: a `runtimes` table in a
/// file replaces the built-in one, and without the default runtime the CRI
/// plugin does not load (F-A1).
pub(crate) fn built_in_runc(family: Family) -> String {
    let table = runtime_table(family, "runc");
    format!(
        "[{table}]\nruntime_type = {}\n\n[{table}.options]\n{SYSTEMD_CGROUP} = false\n",
        string(RUNTIME_TYPE)
    )
}

const SYSTEMD_CGROUP: &str = "SystemdCgroup";

fn runtime_table(family: Family, name: &str) -> String {
    format!("plugins.{}.containerd.runtimes.{}", key(family.plugin()), key(name))
}

fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare { name.to_owned() } else { string(name) }
}

/// A basic string. Not [`Value`]'s own form, which picks the quotes by content:
/// containerd 1.x and people's scripts know this one best.
pub(crate) fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether leaving a key out means the same; full dumps name every key.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.value().is_empty(),
        Value::Integer(number) => *number.value() == 0,
        Value::Boolean(truth) => !truth.value(),
        Value::Array(array) => array.is_empty(),
        _ => false,
    }
}

/// A value as we would write it, without the comments and blanks around it in
/// the file it comes from.
fn plain(value: &Value) -> Value {
    match value {
        Value::String(text) => text.value().as_str().into(),
        Value::Integer(number) => (*number.value()).into(),
        Value::Float(number) => (*number.value()).into(),
        Value::Boolean(truth) => (*truth.value()).into(),
        Value::Datetime(time) => (*time.value()).into(),
        Value::Array(array) => array.iter().map(plain).collect::<Array>().into(),
        Value::InlineTable(table) => {
            table.iter().map(|(key, value)| (key, plain(value))).collect::<InlineTable>().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use toml_edit::DocumentMut;

    use super::*;
    use crate::{
        config::{Files, Loaded},
        version::MergeRules,
    };

    fn wanted(text: &str, systemd_cgroup: Option<bool>) -> String {
        let mut files = Files::default();
        files.insert("/c.toml".into(), format!("version = 3\n{text}").into());
        let loaded = Loaded::load(&files, Path::new("/c.toml")).unwrap();
        let effective = Effective::of(&loaded, MergeRules::MigrateThenMerge);
        Wanted::new(&effective, Path::new("/opt/zeropod"), systemd_cgroup).tables(Family::Split)
    }

    const RUNTIMES: &str = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";

    #[test]
    fn a_node_without_settings_gets_the_plain_tables() {
        let text = wanted("", None);
        let parsed: DocumentMut = text.parse().unwrap();
        let plugins = &parsed["plugins"];
        assert_eq!(plugins[OPT]["path"].as_str(), Some("/opt/zeropod"));
        let runtime = &plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["zeropod"];
        assert_eq!(
            runtime["runtime_path"].as_str(),
            Some("/opt/zeropod/bin/containerd-shim-zeropod-v2")
        );
        // F-A15: always set.
        assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        // I5, F-A16: every annotation of the shim.
        assert_eq!(runtime["pod_annotations"].as_array().unwrap().len(), 13);
        assert!(runtime.get("options").is_none());
    }

    const OPT: &str = "io.containerd.internal.v1.opt";

    #[test]
    fn options_come_from_the_default_runtime() {
        // F-A14, I15.
        let text = wanted(
            &format!(
                "[{RUNTIMES}.runc]\nruntime_type = 'io.containerd.runc.v2'\nbase_runtime_spec = '/b.json' # x\n[{RUNTIMES}.runc.options]\nSystemdCgroup = true\nBinaryName = \"/usr/bin/runc\" # y\n"
            ),
            None,
        );
        assert!(text.contains("\nbase_runtime_spec = \"/b.json\"\n"), "{text}");
        assert!(
            text.ends_with("options]\nSystemdCgroup = true\nBinaryName = \"/usr/bin/runc\"\n"),
            "{text}"
        );
        let forced =
            wanted(&format!("[{RUNTIMES}.runc.options]\nSystemdCgroup = true"), Some(false));
        assert!(forced.ends_with("SystemdCgroup = false\n"), "{forced}");
    }

    #[test]
    fn a_default_runtime_of_another_kind_lends_nothing() {
        let text = wanted(
            &format!(
                "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'kata'\n[{RUNTIMES}.kata]\nruntime_type = 'io.containerd.kata.v2'\nsnapshotter = 'nydus'\n[{RUNTIMES}.kata.options]\nConfigPath = 'x'\n[{RUNTIMES}.runc.options]\nSystemdCgroup = true"
            ),
            None,
        );
        assert!(!text.contains("nydus") && !text.contains("ConfigPath"), "{text}");
        assert!(text.ends_with("SystemdCgroup = true\n"), "{text}");
    }

    #[test]
    fn a_configured_opt_directory_is_used() {
        // F-A17.
        let text = wanted(&format!("[plugins.'{OPT}']\npath = '/var/lib/containerd/opt'"), None);
        assert!(!text.contains("internal.v1.opt"), "{text}");
        assert!(text.contains("\"/var/lib/containerd/opt/bin/containerd-shim-zeropod-v2\""));
    }

    #[test]
    fn strings_are_escaped() {
        for text in ["plain", "a\"b\\c", "tab\tand\u{7f}"] {
            let document: DocumentMut = format!("x = {}", string(text)).parse().unwrap();
            assert_eq!(document["x"].as_str(), Some(text));
        }
    }
}
