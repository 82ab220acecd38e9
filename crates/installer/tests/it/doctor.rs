//! What the doctor says of a node before, during and after.

use std::{fs, path::PathBuf};

use zeropod_installer::{
    doctor::{Status, quick},
    host::HostRoot,
};

use crate::bed::{can_run, node::Node, root};

#[test]
fn the_doctor_finds_what_is_wrong() {
    if !can_run("the_doctor_finds_what_is_wrong") {
        return;
    }
    finds_what_is_wrong(Vec::new());
}

#[test]
fn the_doctor_finds_what_is_wrong_with_containerd_2_3_4() {
    if !can_run("the_doctor_finds_what_is_wrong_with_containerd_2_3_4") {
        return;
    }
    let release = root::released("2.3.4").join("usr/local/bin/containerd");
    finds_what_is_wrong(vec![(release, "/usr/bin/containerd")]);
}

fn finds_what_is_wrong(mut binds: Vec<(PathBuf, &str)>) {
    let mount_point = tempfile::tempdir().unwrap();
    binds.push((mount_point.path().to_path_buf(), "/sys/fs/bpf"));
    let node = Node::boot(&root::debian("sid"), &binds);
    fs::copy(node.path("/usr/sbin/criu"), node.criu_asset()).unwrap();
    node.run(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"]).ok();
    let files = ["/etc/containerd", "/var/lib/containerd/opt"];
    let before = node.snapshot(&files);
    assert_eq!(
        failures(&node),
        ["configuration", "handler", "files", "shim", "criu", "checkpoint"]
    );
    assert_eq!(quick_failures(&node), [""; 0], "it cannot know");
    assert_eq!(node.snapshot(&files), before, "it changes nothing");

    node.installer(&[]).ok();
    assert_eq!(failures(&node), [""; 0], "{}", node.installer(&["doctor"]).stdout);
    assert_eq!(quick_failures(&node), [""; 0]);
    let table = node.installer(&["doctor"]);
    assert_eq!(table.code, Some(0), "{table:?}");
    for line in ["ok    handler", "dumped and restored", "Version: 4."] {
        assert!(table.stdout.contains(line), "{}", table.stdout);
    }

    fs::remove_file(node.path("/var/lib/containerd/opt/bin/criu")).unwrap();
    assert_eq!(failures(&node), ["files", "criu", "checkpoint"]);
    node.run(&["umount", "/sys/fs/bpf"]).ok();
    node.run(&["systemctl", "stop", "containerd"]).ok();
    assert_eq!(failures(&node), ["bpffs", "containerd"]);
    assert_eq!(quick_failures(&node), ["bpffs", "handler"]);
}

/// What the manager asks every now and then.
fn quick_failures(node: &Node) -> Vec<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let checks = runtime.block_on(quick(&HostRoot::new(node.path("/"))));
    checks.iter().filter(|it| it.status == Status::Fail).map(|it| it.name).collect()
}

#[test]
fn the_doctor_finds_a_criu_that_is_too_old_for_the_kernel() {
    if !can_run("the_doctor_finds_a_criu_that_is_too_old_for_the_kernel") {
        return;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|it| it.parse().unwrap_or(0));
    let kernel: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    let node = Node::boot(&root::debian("trixie"), &[]);
    fs::copy(node.path("/usr/sbin/criu"), node.criu_asset()).unwrap();
    node.installer(&[]).ok();
    let failures = failures(&node);
    // Trixie has CRIU 4.1.
    let too_old = kernel >= (6, 16);
    assert_eq!(failures.contains(&"checkpoint".to_owned()), too_old, "{failures:?}");
    assert!(!failures.contains(&"criu".to_owned()), "its version can be told: {failures:?}");
}

/// Names of the checks that failed.
fn failures(node: &Node) -> Vec<String> {
    let outcome = node.installer(&["doctor", "-o", "json"]);
    let checks: Vec<serde_json::Value> = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    assert!(checks.len() >= 6, "{outcome:?}");
    let failed = checks.iter().filter(|check| check["status"] == "fail");
    let names: Vec<_> = failed.map(|check| check["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcome.code, Some(i32::from(!names.is_empty())));
    names
}
