//! What the doctor says of a node before, during and after.

use std::fs;

use crate::bed::{can_run, node::Node, root};

#[test]
fn the_doctor_finds_what_is_wrong() {
    if !can_run("the_doctor_finds_what_is_wrong") {
        return;
    }
    let mount_point = tempfile::tempdir().unwrap();
    let binds = [(mount_point.path().to_path_buf(), "/sys/fs/bpf")];
    let node = Node::boot(&root::debian("sid"), &binds);
    // A program that answers every question.
    fs::copy("/bin/true", node.criu_asset()).unwrap();
    node.run(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"]).ok();
    let files = ["/etc/containerd", "/var/lib/containerd/opt"];
    let before = node.snapshot(&files);
    assert_eq!(failures(&node), ["configuration", "handler", "files", "shim", "criu"]);
    assert_eq!(node.snapshot(&files), before, "it changes nothing");

    node.installer(&[]).ok();
    assert_eq!(failures(&node), [""; 0]);
    let table = node.installer(&["doctor"]);
    assert_eq!(table.code, Some(0), "{table:?}");
    assert!(table.stdout.contains("ok    handler"), "{table:?}");

    fs::remove_file(node.path("/var/lib/containerd/opt/bin/criu")).unwrap();
    assert_eq!(failures(&node), ["files", "criu"]);
    node.run(&["umount", "/sys/fs/bpf"]).ok();
    node.run(&["systemctl", "stop", "containerd"]).ok();
    assert_eq!(failures(&node), ["bpffs", "containerd"]);
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
