//! CRIU from an image: in files, and from Debian's registry by way of the
//! node's containerd (I6).

use std::{fs, process::Command};

use crate::bed::{
    can_run,
    node::{Node, wait_for},
    registry::{REFERENCE, Registry, has_registry, image},
    root,
};

const CRIU: &str = "/var/lib/containerd/opt/bin/criu";

#[test]
fn criu_comes_from_files() {
    if !can_run("criu_comes_from_files") {
        return;
    }
    let node = Node::boot(&root::debian("sid"), &[]);
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path).display().to_string();
    image(dir.path(), "layout");
    node.installer(&[&format!("-criu-image=file:{}", at("layout"))]).ok();
    assert_eq!(node.read(CRIU), "layout");

    image(dir.path(), "archive");
    let tar = ["tar", "-C", &at("layout"), "-cf", &at("image.tar"), "."];
    assert!(Command::new(tar[0]).args(&tar[1..]).status().unwrap().success());
    node.installer(&[&format!("-criu-image=file:{}", at("image.tar"))]).ok();
    assert_eq!(node.read(CRIU), "archive");

    let said = node.installer(&[&format!("-criu-image=file:{}", at("none"))]).refused();
    assert!(said.contains("cannot open"), "{said}");
    // What upstream's manifests say: CRIU is that of the installer's image.
    let said = node.installer(&["-criu-image=registry.example/criu:v4.2"]).ok();
    assert!(said.contains("not from registry.example/criu:v4.2"), "{said}");
    assert_eq!(fs::read(node.path(CRIU)).unwrap(), fs::read(node.criu_asset()).unwrap());
}

#[test]
fn criu_comes_from_a_registry_if_asked_to() {
    if !can_run("criu_comes_from_a_registry_if_asked_to")
        || !has_registry("criu_comes_from_a_registry_if_asked_to")
    {
        return;
    }
    for suite in ["trixie", "sid"] {
        let node = Node::boot(&root::debian(suite), &[]);
        // Images are unpacked to where overlays can be mounted.
        node.run(&["systemctl", "stop", "containerd"]).ok();
        node.run(&["mount", "-t", "tmpfs", "tmpfs", "/var/lib/containerd"]).ok();
        node.run(&["systemctl", "start", "containerd"]).ok();
        wait_for("containerd", || node.handlers());
        let dir = tempfile::tempdir().unwrap();
        image(dir.path(), "pulled");
        let arguments = ["-criu-pull", &format!("-criu-image={REFERENCE}")];

        let said = node.installer(&arguments).refused();
        assert!(said.contains("cannot ask containerd") && said.contains("CRIU image"), "{said}");
        assert!(!node.path(CRIU).exists(), "{suite}: nothing was touched");

        let registry = Registry::start(&node, dir.path());
        let said = node.installer(&[&arguments[..], &["-dry-run"]].concat());
        assert!(said.stdout.contains("would be pulled"), "{said:?}");
        let said = node.installer(&arguments).ok();
        assert!(said.contains(&format!("{REFERENCE}: pulled")), "{said}");
        assert_eq!(node.read(CRIU), "pulled", "{suite}");
        drop(registry);

        // Without the registry nothing is missing later, not even on a node
        // that has lost the file.
        assert!(!node.installer(&arguments).ok().contains("pulled"));
        fs::remove_file(node.path(CRIU)).unwrap();
        node.installer(&arguments).ok();
        assert_eq!(node.read(CRIU), "pulled", "{suite}");
        node.installer(&["-uninstall"]).ok();
        assert!(!node.path("/var/lib/zeropod").exists());
    }
}
