//! Whether a changed configuration means what it should, judged by what
//! containerd itself makes of it: `containerd config dump` before and after.
//!
//! Exit code 0 alone proves little: 1.x exits with 0 when the CRI plugin will
//! not load, 2.x when a literal import is missing (F-C22).

use toml_edit::{DocumentMut, Item, TableLike};
use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::{
    config::{Family, OPT_PLUGIN},
    containerd::Handler,
};

/// What a change is meant to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// The handler as it should be loaded; `None` if it should be gone.
    pub handler: Option<Handler>,
    /// Whether the opt directory changes along with it.
    pub moves_opt: bool,
    /// Whether the built-in runtime is spelled out, which changes how it is
    /// shown but not what it is.
    pub spells_out_runc: bool,
}

/// Compares two dumps. The error says what is wrong with the second.
///
/// # Errors
/// When the handler is not as expected, when anything else has changed, or
/// when the daemon would come up without a usable CRI plugin.
pub fn accept(before: &str, after: &str, expected: &Expectation) -> Result<(), String> {
    let parse = |text: &str| {
        text.parse::<DocumentMut>().map_err(|error| format!("the dump is not TOML: {error}"))
    };
    let (mut before, mut after) = (parse(before)?, parse(after)?);
    let family = if cri(&after, Family::Split).is_some() { Family::Split } else { Family::Legacy };
    check_cri(&after, family)?;
    check_handler(&after, family, expected)?;
    for dump in [&mut before, &mut after] {
        forget(dump, family, expected);
    }
    match first_difference(before.as_table(), after.as_table(), "") {
        None => Ok(()),
        Some(path) => Err(format!("the change affects {path}, too")),
    }
}

fn cri(dump: &DocumentMut, family: Family) -> Option<&dyn TableLike> {
    dump.get("plugins")?.get(family.plugin())?.as_table_like()
}

fn check_cri(dump: &DocumentMut, family: Family) -> Result<(), String> {
    let disabled = dump.get("disabled_plugins").and_then(Item::as_array);
    let ids = disabled.into_iter().flatten().filter_map(|id| id.as_str());
    for id in ids {
        if id == "cri" || id == Family::Legacy.plugin() || id.starts_with("io.containerd.cri.v1.") {
            return Err(format!("the plugin {id} is disabled"));
        }
    }
    let containerd = cri(dump, family).and_then(|cri| cri.get("containerd"));
    let default = containerd
        .and_then(|table| table.get("default_runtime_name")?.as_str())
        .ok_or("there is no default runtime")?;
    let runtimes = containerd.and_then(|table| table.get("runtimes")?.as_table_like());
    if runtimes.is_some_and(|runtimes| runtimes.contains_key(default)) {
        Ok(())
    } else {
        Err(format!("the default runtime {default} is not defined: the CRI plugin would not load"))
    }
}

fn check_handler(dump: &DocumentMut, family: Family, expected: &Expectation) -> Result<(), String> {
    let runtime = cri(dump, family)
        .and_then(|cri| cri.get("containerd")?.get("runtimes")?.get(RUNTIME_CLASS))
        .and_then(Item::as_table_like);
    let (handler, runtime) = match (&expected.handler, runtime) {
        (None, None) => return Ok(()),
        (None, Some(_)) => return Err("the runtime zeropod is still defined".into()),
        (Some(_), None) => return Err("the runtime zeropod is not defined".into()),
        (Some(handler), Some(runtime)) => (handler, runtime),
    };
    let text = |key: &str| runtime.get(key).and_then(Item::as_str).unwrap_or_default();
    let annotations: Option<Vec<String>> = runtime
        .get("pod_annotations")
        .and_then(Item::as_array)
        .map(|array| array.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect());
    for (key, same) in [
        ("runtime_type", text("runtime_type") == handler.runtime_type),
        ("runtime_path", text("runtime_path") == handler.runtime_path),
        ("pod_annotations", annotations == handler.pod_annotations),
    ] {
        if !same {
            return Err(format!("{key} of the runtime zeropod is another"));
        }
    }
    let options = runtime.get("options").and_then(Item::as_table_like);
    for (key, value) in handler.options.iter().flatten() {
        let loaded = options.and_then(|options| options.get(key)).map(to_json);
        if loaded.as_ref() != Some(value) {
            return Err(format!("option {key} of the runtime zeropod is another"));
        }
    }
    Ok(())
}

/// Removes what is meant to differ.
fn forget(dump: &mut DocumentMut, family: Family, expected: &Expectation) {
    // 1.x lists the files that were loaded, 2.2 and later one that was not;
    // the version is the daemon's own.
    dump.remove("imports");
    dump.remove("version");
    let Some(plugins) = dump.get_mut("plugins").and_then(Item::as_table_like_mut) else { return };
    if expected.moves_opt {
        plugins.remove(OPT_PLUGIN);
    }
    let runtimes = plugins
        .get_mut(family.plugin())
        .and_then(|cri| cri.get_mut("containerd")?.get_mut("runtimes")?.as_table_like_mut());
    if let Some(runtimes) = runtimes {
        runtimes.remove(RUNTIME_CLASS);
        if expected.spells_out_runc {
            runtimes.remove("runc");
        }
    }
}

fn first_difference(one: &dyn TableLike, other: &dyn TableLike, path: &str) -> Option<String> {
    let mut keys: Vec<&str> = one.iter().chain(other.iter()).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().find_map(|key| {
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let (one, other) = (one.get(key), other.get(key));
        let tables =
            one.zip(other).and_then(|(one, other)| one.as_table_like().zip(other.as_table_like()));
        match tables {
            Some((one, other)) => first_difference(one, other, &path),
            None if one.map(to_json) == other.map(to_json) => None,
            None => Some(path),
        }
    })
}

/// An item without its form.
pub(crate) fn to_json(item: &Item) -> serde_json::Value {
    use serde_json::Value;
    if let Some(table) = item.as_table_like() {
        return table.iter().map(|(key, item)| (key.to_owned(), to_json(item))).collect();
    }
    if let Some(array) = item.as_array() {
        return array.iter().map(|value| to_json(&Item::Value(value.clone()))).collect();
    }
    if let Some(array) = item.as_array_of_tables() {
        return array.iter().map(|table| to_json(&Item::Table(table.clone()))).collect();
    }
    match item {
        Item::Value(toml_edit::Value::String(text)) => text.value().as_str().into(),
        Item::Value(toml_edit::Value::Integer(number)) => (*number.value()).into(),
        Item::Value(toml_edit::Value::Float(number)) => (*number.value()).into(),
        Item::Value(toml_edit::Value::Boolean(truth)) => (*truth.value()).into(),
        Item::Value(toml_edit::Value::Datetime(time)) => time.value().to_string().into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "version = 2
imports = ['/a']
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = 'p'
[plugins.'io.containerd.grpc.v1.cri'.containerd]
default_runtime_name = 'runc'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins.'io.containerd.internal.v1.opt']
path = '/opt/containerd'
";
    const OURS: &str = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.zeropod]
runtime_type = 't'
runtime_path = '/shim'
pod_annotations = ['a']
extra = ''
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.zeropod.options]
SystemdCgroup = true
More = ''
";

    fn expected() -> Expectation {
        let options = serde_json::json!({"SystemdCgroup": true});
        Expectation {
            handler: Some(Handler {
                runtime_path: "/shim".into(),
                runtime_type: "t".into(),
                pod_annotations: Some(vec!["a".into()]),
                options: options.as_object().cloned(),
            }),
            moves_opt: false,
            spells_out_runc: false,
        }
    }

    #[test]
    fn only_the_handler_may_change() {
        let good = BEFORE.replace("imports = ['/a']", "imports = []") + OURS;
        assert_eq!(accept(BEFORE, &good, &expected()), Ok(()));
        let gone = Expectation { handler: None, ..expected() };
        assert_eq!(accept(&good, BEFORE, &gone), Ok(()));
        for (bad, expected, message) in [
            (BEFORE.to_owned(), expected(), "the runtime zeropod is not defined"),
            (good.clone(), gone, "the runtime zeropod is still defined"),
            (
                good.replace("'p'", "'q'"),
                expected(),
                "the change affects plugins.io.containerd.grpc.v1.cri.sandbox_image, too",
            ),
            (
                good.replace("/shim", "/other"),
                expected(),
                "runtime_path of the runtime zeropod is another",
            ),
            (
                good.replace("['a']", "['b']"),
                expected(),
                "pod_annotations of the runtime zeropod is another",
            ),
            (
                good.replace("More", "SystemdCgroup2")
                    .replace("SystemdCgroup = true\nS", "SystemdCgroup = false\nS"),
                expected(),
                "option SystemdCgroup of the runtime zeropod is another",
            ),
            (
                good.replace("'runc'", "'gone'"),
                expected(),
                "the default runtime gone is not defined: the CRI plugin would not load",
            ),
            (
                format!("disabled_plugins = ['cri']\n{good}"),
                expected(),
                "the plugin cri is disabled",
            ),
        ] {
            assert_eq!(accept(BEFORE, &bad, &expected), Err(message.to_owned()));
        }
    }

    #[test]
    fn what_comes_along_with_the_handler_is_allowed() {
        let after =
            BEFORE.replace("/opt/containerd", "/opt/zeropod").replace("true", "false") + OURS;
        let expected = Expectation { moves_opt: true, spells_out_runc: true, ..expected() };
        assert_eq!(accept(BEFORE, &after, &expected), Ok(()));
    }
}
