//! Whatever valid TOML a node has for a configuration, the result is valid
//! TOML, says the same about everything that is not ours, and goes back to the
//! same bytes (I7 to I10, F-A8).

use std::{collections::BTreeSet, fmt::Write as _};

use crate::bed::case::apply;
use proptest::{prelude::*, test_runner::TestCaseResult};
use toml_edit::{DocumentMut, Item, TableLike};
use zeropod_installer::{
    Error,
    config::Files,
    distribution::Distribution,
    facts::Facts,
    plan::{Options, Plan, desired_config, undo},
};

/// `PROPTEST_CASES` asks for more.
fn cases() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    ProptestConfig { cases: config.cases.max(400), ..config }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_configuration_survives(text in configuration(), containerd in version()) {
        prop_assume!(text.parse::<DocumentMut>().is_ok());
        survives(&text, containerd)?;
    }
}

fn survives(text: &str, containerd: &str) -> TestCaseResult {
    let layout = Distribution::Containerd.layout();
    let config = layout.config.clone();
    let mut files = Files::default();
    files.insert(config.clone(), text.as_bytes().to_vec());
    files.insert("/etc/containerd/other.toml".into(), b"[metrics]\naddress = ''\n".to_vec());
    let containerd =
        containerd.parse().map_err(|error: Error| TestCaseError::fail(error.to_string()))?;
    let facts = Facts { layout, containerd, files, read_only: BTreeSet::new() };
    let options = Options { host_opt_path: "/opt/zeropod".into(), systemd_cgroup: None };
    let plan = match desired_config(&facts, &options) {
        Ok(plan) => plan,
        // What cannot be extended is left alone.
        Err(Error::Refused { .. }) => return Ok(()),
        Err(error) => return Err(TestCaseError::fail(error.to_string())),
    };
    let mut after = facts.clone();
    apply(&mut after.files, &plan);

    let root = String::from_utf8_lossy(after.files.get(&config).unwrap_or_default()).into_owned();
    let changed: Result<DocumentMut, _> = root.parse();
    prop_assert!(changed.is_ok(), "{changed:?}\n{root}");
    let (Ok(mut changed), Ok(mut original)) = (changed, text.parse::<DocumentMut>()) else {
        return Err(TestCaseError::fail("not TOML"));
    };
    let was_empty = original.is_empty();
    forget_ours(&mut changed, was_empty);
    forget_ours(&mut original, was_empty);
    prop_assert_eq!(plain(changed.as_item()), plain(original.as_item()), "\n{}", root);

    let again = desired_config(&after, &options);
    prop_assert!(again.as_ref().is_ok_and(Plan::is_empty), "{again:?}");
    let undone = undo(&after).map_err(|error| TestCaseError::fail(error.to_string()))?;
    apply(&mut after.files, &undone);
    prop_assert_eq!(after.files, facts.files);
    Ok(())
}

/// Removes what may be ours: the tables, the import, and what fills an empty
/// root.
fn forget_ours(document: &mut DocumentMut, was_empty: bool) {
    if was_empty {
        document.remove("version");
    }
    if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) {
        imports.retain(|entry| !entry.as_str().is_some_and(|entry| entry.contains("/conf.d/")));
        if imports.is_empty() {
            document.remove("imports");
        }
    }
    if let Some(plugins) = document.get_mut("plugins").and_then(Item::as_table_like_mut) {
        forget_tables(plugins);
    }
    drop_empty(document.as_table_mut());
}

fn forget_tables(plugins: &mut dyn TableLike) {
    for id in ["io.containerd.internal.v1.opt", "opt"] {
        plugins.remove(id);
    }
    for id in ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
        let Some(cri) = plugins.get_mut(id).and_then(Item::as_table_like_mut) else { continue };
        let containerd = cri.get_mut("containerd").and_then(Item::as_table_like_mut);
        if let Some(runtimes) =
            containerd.and_then(|it| it.get_mut("runtimes")?.as_table_like_mut())
        {
            runtimes.remove("zeropod");
            runtimes.remove("runc");
        }
    }
}

fn drop_empty(table: &mut dyn TableLike) {
    let keys: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys {
        let Some(child) = table.get_mut(&key).and_then(Item::as_table_like_mut) else { continue };
        drop_empty(child);
        if child.is_empty() {
            table.remove(&key);
        }
    }
}

fn plain(item: &Item) -> String {
    match item.as_table_like() {
        Some(table) => {
            let mut entries: Vec<String> =
                table.iter().map(|(key, item)| format!("{key}={}", plain(item))).collect();
            entries.sort_unstable();
            format!("{{{}}}", entries.join(","))
        }
        None => match item.as_array() {
            Some(array) => {
                let entries: Vec<_> =
                    array.iter().map(|value| plain(&Item::Value(value.clone()))).collect();
                format!("[{}]", entries.join(","))
            }
            None => item
                .as_str()
                .map_or_else(|| item.to_string().trim().to_owned(), |text| format!("{text:?}")),
        },
    }
}

fn version() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["1.6.36", "1.7.24", "2.0.14", "2.1.9", "2.3.4", "2.4.2"])
}

/// Texts that are TOML, in all the forms that people and tools write.
fn configuration() -> impl Strategy<Value = String> {
    let version = prop::sample::select(vec![
        "",
        "version = 1\n",
        "version = 2\n",
        "version=3 # comment\n",
        "'version' = 2\n",
    ]);
    let imports = prop::sample::select(vec![
        "",
        "imports = []\n",
        "imports = [ # none\n]\n",
        "imports = [\"other.toml\"] # ]\n",
        "imports = [\n  'other.toml', # one\n  # two\n]\n",
        "imports = [ '/etc/none/*.toml' , ]\n",
    ]);
    let sections = prop::collection::vec(section(), 0..6);
    (comment(), version, comment(), imports, sections, any::<bool>(), any::<bool>()).prop_map(
        |(one, version, two, imports, sections, crlf, open_end)| {
            let mut text = format!("{one}{version}{two}{imports}");
            let mut seen = BTreeSet::new();
            for (name, body) in sections {
                if seen.insert(name) {
                    let _ = write!(text, "[{name}]\n{body}");
                }
            }
            let text = if open_end { text.trim_end().to_owned() } else { text };
            if crlf { text.replace('\n', "\r\n") } else { text }
        },
    )
}

fn section() -> impl Strategy<Value = (&'static str, String)> {
    let name = prop::sample::select(vec![
        "grpc",
        "plugins",
        "plugins.cri",
        "plugins.\"io.containerd.grpc.v1.cri\".registry",
        "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.custom",
        "plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options",
        "plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.custom",
        "plugins.\"io.containerd.cri.v1.images\"",
        "proxy_plugins.x",
    ]);
    let line = prop_oneof![
        comment(),
        "[a-z]{3,8}".prop_map(|key| format!("  k_{key} = 1 # imports = []\n")),
        "[a-z]{3,8}"
            .prop_map(|key| format!("l_{key}.\"x.y\" = '''\n[not a table]\nversion = 9\n'''\n")),
        "[a-z]{3,8}".prop_map(|key| format!("m_{key} = [\n  1, # ]\n  2,\n]\n\n")),
        "[a-z]{3,8}".prop_map(|key| format!("n_{key} = {{ a = 'b', c = [\"]\"] }}\n")),
    ];
    let body = prop::collection::vec(line, 0..4).prop_map(|lines| {
        let mut seen = BTreeSet::new();
        lines
            .into_iter()
            .filter(|line| !line.contains(" = ") || seen.insert(line.clone()))
            .collect::<String>()
    });
    (name, body)
}

fn comment() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "\n", "# version = 2\n", "# imports = [\n", "   # [plugins]\n"])
        .prop_map(str::to_owned)
}
