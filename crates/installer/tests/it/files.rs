//! The runtime's own files on hosts that have something there already.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeropod_installer::{
    files::{Action, FilesPlan, Runtime, remove_all},
    host::HostRoot,
    state::{Owned, State},
};

const OPT: &str = "/opt/zeropod";
const SHIM: &str = "/opt/zeropod/bin/containerd-shim-zeropod-v2";
const CRIU: &str = "/opt/zeropod/bin/criu";
const CRIU_CONFIG: &str = "/etc/criu/default.conf";

struct Host {
    dir: tempfile::TempDir,
    assets: Vec<PathBuf>,
    root: HostRoot,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path().join("host"));
        let host = Self { assets: vec![dir.path().join("assets")], dir, root };
        host.asset("bin/containerd-shim-zeropod-v2", "shim 1");
        host.asset("bin/criu", "criu 1");
        host.asset("lib/libnet.so.9.1", "libnet 1");
        std::os::unix::fs::symlink("libnet.so.9.1", host.dir.path().join("assets/lib/libnet.so.9"))
            .unwrap();
        host
    }

    fn asset(&self, path: &str, content: &str) {
        put(&self.assets[0].join(path), content);
    }

    fn put(&self, path: &str, content: &str) {
        put(&self.at(path), content);
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("host").join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn plan(&self, state: &State, link_tar: bool) -> Result<FilesPlan, String> {
        let runtime = Runtime {
            assets: &self.assets,
            probe_binary_name: "kubelet",
            tracker_ignore_localhost: true,
            link_tar,
        };
        runtime.plan(&self.root, Path::new(OPT), state).map_err(|error| error.to_string())
    }

    fn install(&self, state: &State) -> State {
        let plan = self.plan(state, false).unwrap();
        for step in &plan.steps {
            self.root.make_dirs(step.path.parent().unwrap()).unwrap();
            step.run(&self.root).unwrap();
        }
        State { files: plan.owned, ..State::default() }
    }
}

fn put(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn files_are_put_once_and_replaced_when_they_differ() {
    let host = Host::new();
    let state = host.install(&State::default());
    assert_eq!(host.read(SHIM), "shim 1");
    assert_eq!(fs::metadata(host.at(SHIM)).unwrap().mode() & 0o777, 0o755);
    assert_eq!(host.read("/opt/zeropod/lib/libnet.so.9"), "libnet 1");
    assert!(fs::symlink_metadata(host.at("/opt/zeropod/lib/libnet.so.9")).unwrap().is_symlink());
    let shim_json = "/opt/zeropod/etc/shim.json";
    assert_eq!(
        host.read(shim_json),
        "{\n  \"probeBinaryName\": \"kubelet\",\n  \"trackerIgnoreLocalhost\": true\n}\n"
    );
    assert_eq!(fs::metadata(host.at(shim_json)).unwrap().mode() & 0o777, 0o600);
    assert_eq!(host.read(CRIU_CONFIG), "tcp-close\nskip-in-flight\nnetwork-lock skip\n");
    assert_eq!(host.plan(&state, false).unwrap().steps, []);

    // An upgrade: one file differs, one is gone.
    host.asset("bin/criu", "criu 2");
    fs::remove_file(host.assets[0].join("lib/libnet.so.9")).unwrap();
    let plan = host.plan(&state, false).unwrap();
    let paths: Vec<_> = plan.steps.iter().map(|step| step.path.to_str().unwrap()).collect();
    assert_eq!(paths, [CRIU, "/opt/zeropod/lib/libnet.so.9"]);
    assert_eq!(plan.steps[1].action, Action::Remove);
    let state = host.install(&state);

    // F-C10, I2: what the user put beside ours stays, and what was changed.
    host.put("/opt/zeropod/bin/other", "theirs");
    host.put(CRIU, "changed by hand");
    let notes = remove_all(&host.root, &state).unwrap();
    assert!(!host.at(SHIM).exists() && !host.at(CRIU_CONFIG).exists());
    assert_eq!(host.read("/opt/zeropod/bin/other"), "theirs");
    assert_eq!(notes, ["/opt/zeropod/bin/criu stays: it was changed since it was installed"]);
}

#[test]
fn foreign_files_are_not_overwritten() {
    // F-C15.
    let host = Host::new();
    host.put(CRIU, "somebody's");
    let error = host.plan(&State::default(), false).unwrap_err();
    assert!(
        error.starts_with("/opt/zeropod/bin/criu: it exists and is not the installer's"),
        "{error}"
    );
    // Beside a shim it is the Go installer's.
    host.put(SHIM, "shim 0");
    host.install(&State::default());
    assert_eq!((host.read(CRIU), host.read(SHIM)), ("criu 1".into(), "shim 1".into()));
}

#[test]
fn a_file_that_was_being_replaced_is_ours_whichever_it_is() {
    let host = Host::new();
    let state = host.install(&State::default());
    let Some(Owned::File(old)) = state.files.get(Path::new(CRIU)).cloned() else { panic!() };
    let mut both = state.clone();
    both.files.insert(CRIU.into(), Owned::File([old, vec!["other".into()]].concat()));
    assert_eq!(remove_all(&host.root, &both).unwrap(), [""; 0]);
    assert!(!host.at(CRIU).exists());
}

#[test]
fn the_options_of_other_criu_users_stay() {
    // I16, F-R8.
    let host = Host::new();
    host.put(CRIU_CONFIG, "tcp-close\n# of podman\nlink-remap\n");
    let plan = host.plan(&State::default(), false).unwrap();
    assert!(plan.notes[0].ends_with("need: skip-in-flight, network-lock skip"), "{:?}", plan.notes);
    let state = host.install(&State::default());
    assert_eq!(host.read(CRIU_CONFIG), "tcp-close\n# of podman\nlink-remap\n");
    remove_all(&host.root, &state).unwrap();
    assert!(host.at(CRIU_CONFIG).exists());
}

#[test]
fn k3s_gets_a_tar_that_criu_can_use() {
    // F-B5, I17: in the directory that containerd really has.
    let host = Host::new();
    assert!(
        host.plan(&State::default(), true)
            .unwrap()
            .steps
            .iter()
            .all(|step| !step.path.ends_with("tar"))
    );
    host.put("/bin/tar", "tar");
    let plan = host.plan(&State::default(), true).unwrap();
    let link =
        plan.steps.iter().find(|step| step.path == Path::new("/opt/zeropod/bin/tar")).unwrap();
    assert_eq!(link.action, Action::Link { target: "/bin/tar".into() });
}

#[test]
fn a_running_program_is_replaced_without_text_busy() {
    // F-C13.
    let host = Host::new();
    fs::copy("/bin/sleep", host.assets[0].join("bin/containerd-shim-zeropod-v2")).unwrap();
    let state = host.install(&State::default());
    let mut running = std::process::Command::new(host.at(SHIM)).arg("1000").spawn().unwrap();
    host.asset("bin/containerd-shim-zeropod-v2", "shim 2");
    host.install(&state);
    assert_eq!(host.read(SHIM), "shim 2");
    assert!(running.try_wait().unwrap().is_none(), "the old one runs on");
    running.kill().unwrap();
    running.wait().unwrap();
}

#[test]
fn an_image_without_a_shim_is_refused() {
    let host = Host::new();
    fs::remove_file(host.assets[0].join("bin/criu")).unwrap();
    let error = host.plan(&State::default(), false).unwrap_err();
    assert!(error.contains("there is no criu in bin of"), "{error}");
}
