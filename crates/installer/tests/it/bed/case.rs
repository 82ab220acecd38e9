//! The cases of `tests/matrix`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use toml_edit::DocumentMut;
use zeropod_installer::{
    config::Files,
    distribution::{Distribution, detect},
    facts::Facts,
    host::HostRoot,
    plan::{Options, Plan, desired_config},
};

/// All cases by name.
pub(crate) fn all() -> Vec<Case> {
    let matrix = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix");
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(matrix).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() > 60, "the cases are there");
    dirs.iter().map(|dir| Case::load(dir)).collect()
}

/// A host, the versions of containerd it may run, and what is expected.
pub(crate) struct Case {
    pub(crate) dir: PathBuf,
    pub(crate) name: String,
    pub(crate) settings: DocumentMut,
}

impl Case {
    pub(crate) fn load(dir: &Path) -> Self {
        let settings = fs::read_to_string(dir.join("case.toml")).unwrap().parse().unwrap();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        Self { dir: dir.to_path_buf(), name, settings }
    }

    pub(crate) fn strings(&self, key: &str) -> Vec<&str> {
        self.settings
            .get(key)
            .and_then(|item| item.as_array())
            .into_iter()
            .flatten()
            .map(|value| value.as_str().unwrap())
            .collect()
    }

    pub(crate) fn string(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(|item| item.as_str().unwrap())
    }

    pub(crate) fn facts(&self, containerd: &str) -> Result<Facts, String> {
        let host = HostRoot::new(self.dir.join("host"));
        let gather = || {
            let mut layout = match self.string("config") {
                Some(_) => Distribution::Containerd.layout(),
                None => detect(&host, None, &[])?,
            };
            if let Some(config) = self.string("config") {
                layout.config = config.into();
            }
            Facts::gather(&host, layout, containerd.parse()?)
        };
        let mut facts = gather().map_err(|error| error.to_string())?;
        facts.read_only =
            self.strings("read_only").into_iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        Ok(facts)
    }

    pub(crate) fn plan(&self, facts: &Facts) -> Result<Plan, String> {
        let options = Options {
            host_opt_path: self.string("opt_path").unwrap_or("/opt/zeropod").into(),
            systemd_cgroup: None,
        };
        desired_config(facts, &options).map_err(|error| error.to_string())
    }
}

/// Changes the files as a plan says.
pub(crate) fn apply(files: &mut Files, plan: &Plan) {
    for change in &plan.changes {
        assert_eq!(files.get(&change.path), change.before.as_deref());
        match &change.after {
            Some(content) => files.insert(change.path.clone(), content.clone()),
            None => files.remove(&change.path),
        }
    }
}
