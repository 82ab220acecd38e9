//! What of the CRI plugin's settings must survive a change of ours: by the
//! running daemon's own account, or by a dump of what it would load.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use toml_edit::{DocumentMut, Item, TableLike};
use zeropod_shim_api::names::RUNTIME_CLASS;

use super::Handler;
use crate::config::{Family, wanted::RUNTIME_TYPE};

/// The settings. What cannot be told is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CriSettings {
    /// The runtime handlers by name.
    pub handlers: BTreeMap<String, Handler>,
    /// The runtime of pods without a runtime class.
    pub default_runtime: Option<String>,
    /// The image of sandboxes. A daemon of 2.x does not tell.
    pub sandbox_image: Option<String>,
    /// The directory with the settings of registries. A daemon of 2.x does not
    /// tell.
    pub registries: Option<String>,
    /// Whether the cgroup driver is systemd's.
    pub systemd_cgroup: Option<bool>,
}

impl CriSettings {
    /// Reads the output of `containerd config dump`.
    pub(crate) fn of_dump(dump: &str) -> Self {
        let Ok(document) = dump.parse::<DocumentMut>() else { return Self::default() };
        let plugin = |id: &str| document.get("plugins")?.get(id)?.as_table_like();
        let split = plugin(Family::Split.plugin());
        let images = plugin("io.containerd.cri.v1.images");
        let legacy = plugin(Family::Legacy.plugin());
        let containerd = split.or(legacy).and_then(|cri| cri.get("containerd")?.as_table_like());
        let text = |table: Option<&dyn TableLike>, path: [&str; 2]| {
            let item = table?.get(path[0])?;
            let item = if path[1].is_empty() { item } else { item.get(path[1])? };
            Some(item.as_str()?.to_owned())
        };
        let handlers: BTreeMap<_, _> = containerd
            .and_then(|table| table.get("runtimes")?.as_table_like())
            .into_iter()
            .flat_map(TableLike::iter)
            .filter_map(|(name, item)| {
                Some((name.to_owned(), Handler::of_table(item.as_table_like()?)))
            })
            .collect();
        let default_runtime = text(containerd, ["default_runtime_name", ""]);
        Self {
            systemd_cgroup: option(&handlers, default_runtime.as_deref()),
            handlers,
            default_runtime,
            sandbox_image: text(images, ["pinned_images", "sandbox"])
                .or_else(|| text(legacy, ["sandbox_image", ""])),
            registries: text(images.or(legacy), ["registry", "config_path"]),
        }
    }

    /// What of these is no longer so in `now`, besides our own handler.
    pub(crate) fn lost(&self, now: &Self) -> Option<String> {
        for (name, handler) in self.handlers.iter().filter(|(name, _)| *name != RUNTIME_CLASS) {
            let Some(there) = now.handlers.get(name) else {
                return Some(format!("it no longer serves the handler {name}"));
            };
            for (what, before, after) in [
                ("runtime_type", &handler.runtime_type, &there.runtime_type),
                ("runtime_path", &handler.runtime_path, &there.runtime_path),
            ] {
                if before != after {
                    return Some(format!("the {what} of {name} was {before:?} and is {after:?}"));
                }
            }
        }
        let texts = [
            ("default runtime", &self.default_runtime, &now.default_runtime),
            ("sandbox image", &self.sandbox_image, &now.sandbox_image),
            ("registry directory", &self.registries, &now.registries),
        ];
        for (what, before, after) in texts {
            if let (Some(before), Some(after)) = (before, after)
                && before != after
            {
                return Some(format!("its {what} was {before:?} and is {after:?}"));
            }
        }
        match (self.systemd_cgroup, now.systemd_cgroup) {
            (Some(before), Some(after)) if before != after => {
                let name = |systemd| if systemd { "systemd" } else { "cgroupfs" };
                let (before, after) = (name(before), name(after));
                Some(format!("its cgroup driver was {before} and is {after}"))
            }
            _ => None,
        }
    }

    /// What is different about images, where the file was rendered anew in
    /// between: the distribution may have had changes of its own pending.
    ///
    /// # Errors
    /// When a setting is gone altogether.
    pub(crate) fn images_changed(&self, now: &Self) -> Result<Vec<String>, String> {
        let mut notes = Vec::new();
        for (what, before, after) in [
            ("sandbox image", &self.sandbox_image, &now.sandbox_image),
            ("registry directory", &self.registries, &now.registries),
        ] {
            let before = before.as_deref().unwrap_or_default();
            let after = after.as_deref().unwrap_or_default();
            if !before.is_empty() && after.is_empty() {
                return Err(format!("its {what} was {before:?} and is gone"));
            }
            if before != after {
                notes.push(format!(
                    "the restart brought a change of others along: the {what} was {before:?} and is {after:?}"
                ));
            }
        }
        Ok(notes)
    }
}

impl From<CriConfig> for CriSettings {
    fn from(config: CriConfig) -> Self {
        let handlers: BTreeMap<_, _> = config.containerd.runtimes.into_iter().collect();
        let default_runtime = config.containerd.default_runtime_name;
        Self {
            systemd_cgroup: option(&handlers, default_runtime.as_deref()),
            handlers,
            default_runtime,
            sandbox_image: config.sandbox_image,
            registries: config.registry.map(|registry| registry.config_path),
        }
    }
}

impl Handler {
    /// A runtime's table as the handler that containerd makes of it.
    pub(crate) fn of_table(runtime: &dyn TableLike) -> Self {
        let text =
            |key: &str| runtime.get(key).and_then(Item::as_str).unwrap_or_default().to_owned();
        let annotations = runtime.get("pod_annotations").and_then(Item::as_array);
        let options = runtime.get("options").and_then(Item::as_table_like);
        Self {
            runtime_path: text("runtime_path"),
            runtime_type: text("runtime_type"),
            pod_annotations: annotations.map(|array| {
                array.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
            }),
            options: options.map(|table| {
                let json = crate::acceptance::to_json;
                table.iter().map(|(key, item)| (key.to_owned(), json(item))).collect()
            }),
        }
    }
}

/// The cgroup driver by the option of a runtime, which only runc's shim has.
fn option(handlers: &BTreeMap<String, Handler>, name: Option<&str>) -> Option<bool> {
    let handler = handlers.get(name?).filter(|handler| handler.runtime_type == RUNTIME_TYPE)?;
    handler.options.as_ref()?.get("SystemdCgroup")?.as_bool()
}

/// `info["config"]` of the CRI plugin's status.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct CriConfig {
    pub(super) containerd: CriContainerd,
    sandbox_image: Option<String>,
    registry: Option<CriRegistry>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct CriContainerd {
    default_runtime_name: Option<String>,
    pub(super) runtimes: HashMap<String, Handler>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CriRegistry {
    config_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP_1_7: &str = "version = 2
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = 'pause:1'
[plugins.'io.containerd.grpc.v1.cri'.registry]
config_path = '/certs'
[plugins.'io.containerd.grpc.v1.cri'.containerd]
default_runtime_name = 'runc'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.zeropod]
runtime_type = 'io.containerd.runc.v2'
";
    const DUMP_2: &str = "version = 3
[plugins.'io.containerd.grpc.v1.cri']
stream_server_port = '0'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'pause:1'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/certs'
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = true
";
    const STATUS: &str = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc":
        {"runtimeType": "io.containerd.runc.v2", "options": {"SystemdCgroup": true}}}},
        "sandboxImage": "pause:1", "registry": {"configPath": "/certs", "mirrors": null}}"#;

    #[test]
    fn dumps_and_the_daemon_say_the_same() {
        let daemon = CriSettings::from(serde_json::from_str::<CriConfig>(STATUS).unwrap());
        assert_eq!(daemon.sandbox_image.as_deref(), Some("pause:1"));
        assert_eq!(daemon.systemd_cgroup, Some(true));
        for dump in [DUMP_1_7, DUMP_2] {
            let files = CriSettings::of_dump(dump);
            assert_eq!(files.lost(&daemon), None);
            assert_eq!(daemon.lost(&files), None);
            assert_eq!(files.images_changed(&files), Ok(Vec::new()));
            assert_eq!(files.registries, daemon.registries);
        }
        // 2.x does not tell of images.
        let silent = CriSettings { sandbox_image: None, registries: None, ..daemon.clone() };
        assert_eq!(daemon.lost(&silent), None);
    }

    #[test]
    fn what_is_lost_is_named() {
        let before = CriSettings::of_dump(DUMP_1_7);
        for (from, to, needle) in [
            ("runtimes.runc", "runtimes.other", "no longer serves the handler runc"),
            ("'io.containerd.runc.v2'", "'x'", "runtime_type of runc"),
            ("'runc'", "'zeropod'", "default runtime was \"runc\""),
            ("pause:1", "pause:2", "sandbox image was \"pause:1\" and is \"pause:2\""),
            ("/certs", "", "registry directory"),
            ("= true", "= false", "cgroup driver was systemd and is cgroupfs"),
        ] {
            let now = CriSettings::of_dump(&DUMP_1_7.replace(from, to));
            let lost = before.lost(&now).unwrap_or_else(|| panic!("{needle}"));
            assert!(lost.contains(needle), "{lost}");
        }
        let other = CriSettings::of_dump(&DUMP_1_7.replace("/certs", "/other"));
        assert!(before.images_changed(&other).unwrap()[0].contains("a change of others"));
        let gone = CriSettings::of_dump(&DUMP_1_7.replace("/certs", ""));
        assert!(before.images_changed(&gone).unwrap_err().contains("is gone"));
    }
}
