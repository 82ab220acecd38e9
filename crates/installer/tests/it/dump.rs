//! What real releases of containerd make of every case of the matrix, before
//! the plan, after it and after its undoing: `containerd config dump` is the
//! judge of the merge model and of the acceptance check (F-C22).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::bed::{
    can_run,
    case::{Case, all, apply},
    root,
};
use zeropod_installer::{acceptance::accept, config::Files, plan::undo};

#[test]
fn containerd_1_7_agrees_with_every_plan() {
    if can_run("containerd_1_7_agrees_with_every_plan") {
        Judge::new("1.7.24", &root::debian("trixie"), None).judge_all();
    }
}

#[test]
fn containerd_2_1_agrees_with_every_plan() {
    if can_run("containerd_2_1_agrees_with_every_plan") {
        Judge::new("2.1.9", &root::debian("sid"), None).judge_all();
    }
}

#[test]
fn containerd_2_3_4_agrees_with_every_plan() {
    // The release that refuses a drop-in of a higher version than the root's
    // (F-A4).
    if can_run("containerd_2_3_4_agrees_with_every_plan") {
        Judge::new("2.3.4", &root::debian("trixie"), Some(&root::released("2.3.4"))).judge_all();
    }
}

struct Judge {
    version: &'static str,
    /// Directories that make up the root, the upper ones first.
    layers: Vec<PathBuf>,
}

impl Judge {
    fn new(version: &'static str, root: &Path, release: Option<&Path>) -> Self {
        let layers = release.into_iter().chain([root]).map(Path::to_path_buf).collect();
        Self { version, layers }
    }

    fn judge_all(&self) {
        let mut judged = 0;
        for case in all() {
            let applies = case.strings("containerd").contains(&self.version);
            // k0s merges by itself, and what others render is rendered later.
            let plain = !["k0s", "k3s", "rke2", "microk8s"].iter().any(|it| case.name.contains(it));
            if applies && plain && case.string("refused").is_none() {
                self.judge(&case);
                judged += 1;
            }
        }
        assert!(judged > 10, "{judged} cases");
    }

    fn judge(&self, case: &Case) {
        let at = format!("{} on containerd {}", case.name, self.version);
        let facts = case.facts(self.version).unwrap();
        let plan = case.plan(&facts).unwrap();
        let mut after = facts.clone();
        apply(&mut after.files, &plan);
        let dump = |files: &Files| self.dump(files, &facts.layout.config, &at);
        let (one, two) = (dump(&facts.files), dump(&after.files));
        if case.settings.get("takes_over").is_none() {
            // 1.x does not show anything for a root that it ignores or lacks.
            accept(&one, &two, &plan.expected).unwrap_or_else(|error| {
                panic!("{at}: {error}\n--- before\n{one}\n--- after\n{two}")
            });
        } else {
            accept(&two, &two, &plan.expected)
                .unwrap_or_else(|error| panic!("{at}: {error}\n{two}"));
        }
        let undone = undo(&after).unwrap();
        apply(&mut after.files, &undone);
        let three = dump(&after.files);
        accept(&two, &three, &undone.expected).unwrap_or_else(|error| panic!("{at}: {error}"));
    }

    fn dump(&self, files: &Files, config: &Path, at: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (upper, merged) = (dir.path().join("upper"), dir.path().join("merged"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&merged).unwrap();
        // Hides the package's own file where the case has none.
        if files.get(config).is_none() {
            let hidden = upper.join("etc/containerd/config.toml");
            fs::create_dir_all(hidden.parent().unwrap()).unwrap();
            fs::write(hidden, "").unwrap();
        }
        for (path, content) in files.iter() {
            let path = upper.join(path.strip_prefix("/").unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let layers: Vec<_> =
            [&upper].into_iter().chain(&self.layers).map(|it| it.to_str().unwrap()).collect();
        let script = "mount -t overlay overlay -o \"lowerdir=$1\" \"$2\" && exec chroot \"$2\" containerd -c \"$3\" config dump";
        let output = Command::new("unshare")
            .args(["--mount", "--propagation=private", "sh", "-c", script, "sh"])
            .args([&layers.join(":"), merged.to_str().unwrap(), config.to_str().unwrap()])
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{at}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}
