//! Every case of `tests/matrix`: a host, the versions of containerd it may
//! run, and the plan that is right for it (`plan.txt`; rewritten when
//! `UPDATE_GOLDEN` is set). Covers I4, I5, I8 to I12, I15 and F-A1 to F-A18.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use toml_edit::DocumentMut;
use zeropod_installer::{
    config::{Files, Loaded},
    distribution::detect,
    facts::Facts,
    host::HostRoot,
    plan::{Options, Plan, desired_config, undo},
};

#[test]
fn every_case_plans_what_is_right_for_it() {
    let mut cases: Vec<PathBuf> =
        fs::read_dir(matrix()).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() > 60, "the cases are there");
    for dir in cases {
        Case::load(&dir).check();
    }
}

fn matrix() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix")
}

struct Case {
    dir: PathBuf,
    name: String,
    settings: DocumentMut,
}

impl Case {
    fn load(dir: &Path) -> Self {
        let settings = fs::read_to_string(dir.join("case.toml")).unwrap().parse().unwrap();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        Self { dir: dir.to_path_buf(), name, settings }
    }

    fn strings(&self, key: &str) -> Vec<&str> {
        self.settings
            .get(key)
            .and_then(|item| item.as_array())
            .into_iter()
            .flatten()
            .map(|value| value.as_str().unwrap())
            .collect()
    }

    fn string(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(|item| item.as_str().unwrap())
    }

    fn facts(&self, containerd: &str) -> Result<Facts, String> {
        let host = HostRoot::new(self.dir.join("host"));
        let gather = || {
            let mut layout = match self.string("config") {
                Some(_) => zeropod_installer::distribution::Distribution::Containerd.layout(),
                None => detect(&host, None)?,
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

    fn plan(&self, facts: &Facts) -> Result<Plan, String> {
        let options = Options {
            host_opt_path: self.string("opt_path").unwrap_or("/opt/zeropod").into(),
            systemd_cgroup: None,
        };
        desired_config(facts, &options).map_err(|error| error.to_string())
    }

    fn check(&self) {
        let mut first: Option<Plan> = None;
        for containerd in self.strings("containerd") {
            let at = format!("{} on containerd {containerd}", self.name);
            let result = self.facts(containerd).and_then(|facts| Ok((self.plan(&facts)?, facts)));
            if let Some(needle) = self.string("refused") {
                let error = result.map(|(plan, _)| plan.to_string()).expect_err(&at);
                assert!(error.contains(needle), "{at}: {error}");
                continue;
            }
            let (plan, facts) = result.unwrap_or_else(|error| panic!("{at}: {error}"));
            assert!(!plan.is_empty(), "{at}");
            self.installs_once_and_leaves_no_trace(&at, &facts, &plan);
            match &first {
                Some(first) => {
                    assert!(first.changes == plan.changes, "{at}: another plan\n{plan}");
                }
                None => first = Some(plan),
            }
        }
        if let Some(plan) = first {
            self.compare(&plan.to_string());
        }
    }

    fn installs_once_and_leaves_no_trace(&self, at: &str, facts: &Facts, plan: &Plan) {
        let mut after = facts.clone();
        apply(&mut after.files, plan);
        let loaded = Loaded::load(&after.files, &after.layout.config).unwrap();
        assert_eq!(loaded.missing, [""; 0].map(PathBuf::from), "{at}");

        let again = self.plan(&after).unwrap();
        assert!(again.is_empty(), "{at}: planned again\n{again}");

        // I5, F-A16: an upgrade rewrites what is there.
        let mut outdated = after.clone();
        for change in &plan.changes {
            let Some(text) = &change.after else { continue };
            let text = String::from_utf8(text.clone()).unwrap();
            let old = text.replace("  \"zeropod.ctrox.dev/disable-migrate-data\",\n", "");
            outdated.files.insert(change.path.clone(), old.into_bytes());
        }
        let upgrade = self.plan(&outdated).unwrap();
        if outdated.files != after.files {
            apply(&mut outdated.files, &upgrade);
            assert!(outdated.files == after.files, "{at}: upgraded\n{upgrade}");
        }

        let undone = undo(&after).unwrap();
        apply(&mut after.files, &undone);
        assert!(undo(&after).unwrap().is_empty(), "{at}: undone twice");
        if self.settings.get("takes_over").is_none() {
            assert!(after.files == facts.files, "{at}: a trace is left\n{undone}");
        } else {
            for (path, content) in after.files.iter() {
                // The next start of k3s renders it anew, without the import.
                let rendered = path.starts_with("/var/lib/rancher");
                let text = String::from_utf8_lossy(content);
                assert!(rendered || !text.contains("zeropod"), "{at}: {}", path.display());
            }
        }
    }

    fn compare(&self, plan: &str) {
        let path = self.dir.join("plan.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, plan).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert!(golden == plan, "{}: the plan is now\n{plan}\nand was\n{golden}", self.name);
    }
}

fn apply(files: &mut Files, plan: &Plan) {
    for change in &plan.changes {
        assert_eq!(files.get(&change.path), change.before.as_deref());
        match &change.after {
            Some(content) => files.insert(change.path.clone(), content.clone()),
            None => files.remove(&change.path),
        }
    }
}
