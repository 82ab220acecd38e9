//! Nodes whose image has the handler already, by the static file that we
//! publish (F-R10, F-B7).

use std::{fs, path::Path};

use zeropod_installer::{
    distribution::detect,
    facts::Facts,
    host::HostRoot,
    plan::{Options, Plan, desired_config, undo},
};

use crate::bed::{
    can_run,
    node::{Node, wait_for},
    root,
};

const STATIC: &str = include_str!("../../../../deploy/static/zeropod.toml");

fn plan(host: &[(&str, &str)]) -> Result<(Plan, Plan), String> {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in host {
        let path = dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let root = HostRoot::new(dir.path());
    let options = Options { host_opt_path: "/elsewhere".into(), systemd_cgroup: None };
    let plans = || {
        let facts = Facts::gather(&root, detect(&root, None, &[])?, "2.1.4".parse()?)?;
        Ok((desired_config(&facts, &options)?, undo(&facts)?))
    };
    plans().map_err(|error: zeropod_installer::Error| error.to_string())
}

const TALOS: [(&str, &str); 2] = [
    ("/etc/os-release", "ID=talos\n"),
    ("/etc/cri/containerd.toml", "version = 3\nimports = [\"/etc/cri/conf.d/cri.toml\"]\n"),
];

#[test]
fn the_static_file_is_enough() {
    let baked = [&TALOS[..], &[("/etc/cri/conf.d/cri.toml", STATIC)]].concat();
    let (install, uninstall) = plan(&baked).unwrap();
    assert!(install.is_empty() && install.baked, "{install}");
    assert_eq!(install.opt_path, Path::new("/opt/zeropod"));
    assert!(uninstall.is_empty() && uninstall.baked, "{uninstall}");

    let bare = [&TALOS[..], &[("/etc/cri/conf.d/cri.toml", "")]].concat();
    let said = plan(&bare).unwrap_err();
    assert!(said.contains("talos does not let a pod change"), "{said}");
}

#[test]
fn a_static_file_that_would_not_work_is_refused() {
    for (from, to, needle) in [
        (
            "  \"zeropod.ctrox.dev/migrate\",\n",
            "",
            "its pod_annotations lack zeropod.ctrox.dev/migrate.",
        ),
        ("shim-zeropod-v2", "shim-other-v2", "its runtime_path is not"),
        ("io.containerd.runc.v2\"\n", "io.other.v2\"\n", "its runtime_type is not"),
        ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "does not read these tables"),
    ] {
        let text = STATIC.replace(from, to);
        assert_ne!(text, STATIC, "{from}");
        let said =
            plan(&[&TALOS[..], &[("/etc/cri/conf.d/cri.toml", &text)]].concat()).unwrap_err();
        assert!(said.contains(needle), "{said}");
    }
}

#[test]
fn the_static_file_is_what_the_installer_writes() {
    let config = "version = 3
imports = [\"/etc/containerd/conf.d/*.toml\"]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
options = { SystemdCgroup = true }
";
    let (install, _) = plan(&[("/etc/containerd/config.toml", config)]).unwrap();
    let lines = |text: &str| {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let [drop_in] = install.changes.as_slice() else { panic!("{install}") };
    let written = String::from_utf8(drop_in.after.clone().unwrap()).unwrap();
    assert_eq!(lines(&written.replace("/elsewhere", "/opt/zeropod")), lines(STATIC));
}

#[test]
fn a_node_with_everything_in_its_image_is_left_alone() {
    if !can_run("a_node_with_everything_in_its_image_is_left_alone") {
        return;
    }
    let node = Node::boot(&root::debian("sid"), &[]);
    let shim = "/opt/zeropod/bin/containerd-shim-zeropod-v2";
    node.run(&["mkdir", "-p", "/etc/containerd/conf.d", "/opt/zeropod/bin"]).ok();
    fs::write(
        node.path("/etc/containerd/config.toml"),
        "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
    )
    .unwrap();
    fs::write(node.path("/etc/containerd/conf.d/baked.toml"), STATIC).unwrap();
    node.run(&["cp", "/usr/bin/containerd-shim-runc-v2", shim]).ok();
    node.run(&["mount", "--bind", "/opt", "/opt"]).ok();
    node.run(&["mount", "-o", "remount,ro,bind", "/opt"]).ok();
    let said = node.installer(&[]).refused();
    assert!(said.contains("/opt/zeropod/bin/criu: it is missing"), "{said}");
    node.run(&["mount", "-o", "remount,rw,bind", "/opt"]).ok();
    node.run(&["cp", "/usr/bin/true", "/opt/zeropod/bin/criu"]).ok();
    node.run(&["mount", "-o", "remount,ro,bind", "/opt"]).ok();

    node.run(&["systemctl", "restart", "containerd"]).ok();
    wait_for("the baked handler", || node.handlers()?.remove("zeropod"));
    let (before, start) = (node.snapshot(&["/etc", "/opt"]), node.containerd_start());
    assert_eq!(node.installer(&["-dry-run"]).code, Some(0));
    let said = node.installer(&[]).ok();
    assert!(said.contains("the handler zeropod is served"), "{said}");
    let said = node.installer(&["-uninstall"]).ok();
    assert!(said.contains("baked.toml defines the handler; it is not the installer's"), "{said}");
    assert_eq!(node.snapshot(&["/etc", "/opt"]), before);
    assert_eq!(node.containerd_start(), start);
}
