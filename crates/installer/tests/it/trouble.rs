//! Nodes on which installing must fail, and leave everything as it was.

use std::fs;

use crate::bed::{
    can_run,
    node::{Node, Outcome, wait_for},
    root,
};

const DIRS: [&str; 3] = ["/etc/containerd", "/etc/criu", "/var/lib/containerd/opt"];
const CONFIG: &str = "/etc/containerd/config.toml";

const CUSTOM: &str = "
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.custom]
runtime_type = \"io.containerd.runc.v2\"
";

#[test]
fn a_node_in_trouble_is_left_as_it_was_by_containerd_1_7() {
    if can_run("a_node_in_trouble_is_left_as_it_was_by_containerd_1_7") {
        trouble(&Node::boot(&root::debian("trixie"), &[]));
    }
}

#[test]
fn a_node_in_trouble_is_left_as_it_was_by_containerd_2_1() {
    if can_run("a_node_in_trouble_is_left_as_it_was_by_containerd_2_1") {
        trouble(&Node::boot(&root::debian("sid"), &[]));
    }
}

#[test]
fn a_node_in_trouble_is_left_as_it_was_by_containerd_2_3_4() {
    if can_run("a_node_in_trouble_is_left_as_it_was_by_containerd_2_3_4") {
        trouble(&root::node_2_3_4());
    }
}

/// I7, I13, I18, F-B7, F-C22.
fn trouble(node: &Node) {
    for trouble in [
        broken_configuration,
        read_only_configuration,
        full_disk_for_binaries,
        full_disk_for_configuration,
        configuration_that_containerd_rejects,
        configuration_that_containerd_does_not_start_with,
        silent_systemd,
    ] {
        trouble(node);
        assert!(!node.handlers().unwrap().contains_key("zeropod"));
        node.installer(&["-uninstall"]).ok();
    }
    // After all that it still can be done.
    node.installer(&[]).ok();
    assert!(node.handlers().unwrap().contains_key("zeropod"));
}

#[test]
fn a_moment_without_resources_is_waited_out() {
    // systemd could not start containerd just then: no reason to take anything
    // back (I13).
    if !can_run("a_moment_without_resources_is_waited_out") {
        return;
    }
    let node = Node::boot(&root::debian("sid"), &[]);
    let units = "/etc/systemd/system";
    node.run(&["mkdir", &format!("{units}/containerd.service.d")]).ok();
    // A missing file of that kind counts as a lack of resources; it comes with
    // the first failure.
    for (path, text) in [
        (
            "containerd.service.d/moment.conf",
            "[Unit]\nOnFailure=moment.service\n[Service]\nRestart=no\nEnvironmentFile=/run/moment\n",
        ),
        ("moment.service", "[Service]\nType=oneshot\nExecStart=/usr/bin/touch /run/moment\n"),
    ] {
        fs::write(node.path(&format!("{units}/{path}")), text).unwrap();
    }
    node.run(&["systemctl", "daemon-reload"]).ok();
    node.installer(&[]).ok();
    assert!(node.path("/run/moment").exists(), "the first attempt failed");
    assert!(node.handlers().unwrap().contains_key("zeropod"));

    // What does not pass is told after all.
    fs::remove_file(node.path("/run/moment")).unwrap();
    node.run(&["rm", &format!("{units}/moment.service")]).ok();
    node.run(&["systemctl", "daemon-reload"]).ok();
    let said = node.installer(&["-systemd-cgroup=true"]).refused();
    assert!(said.contains("the unit with \"resources\""), "{said}");
}

/// Runs the installer, and sees to it that it fails, says why, changes nothing
/// and restarts nothing.
fn fails(node: &Node, why: &str) {
    let (before, start) = (node.snapshot(&DIRS), node.containerd_start());
    assert_complains(node.installer(&["-timeout=20s"]), why);
    let after = node.snapshot(&DIRS);
    let configs = |files: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>| {
        let mut files = files.clone();
        // The runtime's own files may be there already; nobody uses them.
        files.retain(|path, _| path.starts_with("/etc/containerd"));
        files
    };
    assert_eq!(configs(&after), configs(&before), "{why}");
    assert_eq!(node.containerd_start(), start, "{why}");
}

fn assert_complains(outcome: Outcome, why: &str) {
    let said = outcome.refused();
    assert!(said.contains(why), "{said:?} says nothing of {why:?}");
}

fn broken_configuration(node: &Node) {
    let good = node.read(CONFIG);
    fs::write(node.path(CONFIG), format!("{good}\n[plugins\n")).unwrap();
    fails(node, "/etc/containerd/config.toml is not valid TOML: TOML parse error at line 11");
    fs::write(node.path(CONFIG), good).unwrap();
}

fn read_only_configuration(node: &Node) {
    node.run(&["mount", "--bind", "/etc/containerd", "/etc/containerd"]).ok();
    node.run(&["mount", "-o", "remount,ro,bind", "/etc/containerd"]).ok();
    fails(node, "it cannot be written, and it imports no directory that can");
    node.run(&["umount", "/etc/containerd"]).ok();
}

fn full_disk_for_binaries(node: &Node) {
    // Room for the directories and the library, not for the programs.
    node.run(&["mkdir", "-p", "/var/lib/containerd/opt"]).ok();
    let mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", "/var/lib/containerd/opt"];
    node.run(&mount).ok();
    fails(node, "No space left on device");
    let shim = node.path("/var/lib/containerd/opt/bin/containerd-shim-zeropod-v2");
    assert!(!shim.exists(), "no half of a program");
    node.installer(&["-uninstall"]).ok();
    node.run(&["umount", "/var/lib/containerd/opt"]).ok();
}

fn full_disk_for_configuration(node: &Node) {
    let config = node.read(CONFIG);
    // One page: room for the file as it is.
    node.run(&["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/etc/containerd"]).ok();
    fs::write(node.path(CONFIG), config).unwrap();
    fails(node, "cannot write /etc/containerd/conf");
    node.run(&["umount", "/etc/containerd"]).ok();
}

fn configuration_that_containerd_rejects(node: &Node) {
    let restore =
        replace_containerd(node, "case \"$*\" in *dump*) echo 'no such thing' >&2; exit 1;; esac");
    fails(
        node,
        "containerd rejects the changed configuration, so it was taken back: no such thing",
    );
    restore();
}

fn configuration_that_containerd_does_not_start_with(node: &Node) {
    let restore = replace_containerd(node, "case \"$*\" in *dump*) ;; *) exit 1;; esac");
    let before = node.snapshot(&["/etc/containerd"]);
    let said = node.installer(&["-timeout=20s"]).refused();
    assert!(
        said.contains("did not work with the changed configuration, so it was taken back"),
        "{said}"
    );
    assert_eq!(node.snapshot(&["/etc/containerd"]), before);
    assert!(node.handlers().is_some(), "it runs with the old one");
    restore();
}

#[test]
fn what_the_daemon_loads_besides_the_handler_is_proven() {
    // F-C3, F-C22: the files are right and judged so, but the daemon that comes
    // up has lost something of the user's.
    if !can_run("what_the_daemon_loads_besides_the_handler_is_proven") {
        return;
    }
    for (suite, edit, why) in [
        (
            "trixie",
            r#"s|^  \[plugins."io.containerd.grpc.v1.cri"\]|&\n    sandbox_image = "localhost/other:1"|"#,
            r#"and is "localhost/other:1""#,
        ),
        ("trixie", "/runtimes.custom/,+1d", "it no longer serves the handler custom"),
        ("sid", "/runtimes.custom/,+1d", "it no longer serves the handler custom"),
        (
            "sid",
            r#"$a [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nSystemdCgroup = true"#,
            "its cgroup driver was cgroupfs and is systemd",
        ),
    ] {
        let node = Node::boot(&root::debian(suite), &[]);
        let with_custom = node.read(CONFIG) + CUSTOM;
        fs::write(node.path(CONFIG), &with_custom).unwrap();
        node.run(&["systemctl", "restart", "containerd"]).ok();
        wait_for("the custom handler", || node.handlers()?.remove("custom"));
        let restore = replace_containerd(
            &node,
            &format!(
                "case \"$*\" in *dump*) ;; *) sed '{edit}' {CONFIG} >/etc/other.toml; exec /usr/bin/containerd.real --config /etc/other.toml;; esac"
            ),
        );
        let said = node.installer(&[]).refused();
        assert!(said.contains("so it was taken back") && said.contains(why), "{said}");
        assert_eq!(node.read(CONFIG), with_custom);
        assert!(!node.handlers().unwrap().contains_key("zeropod"));
        assert!(node.handlers().unwrap().contains_key("custom"));
        restore();
        node.installer(&[]).ok();
        let handlers = node.handlers().unwrap();
        assert!(handlers.contains_key("zeropod") && handlers.contains_key("custom"));
    }
}

/// Makes containerd do something else when our handler is configured. Returns
/// how to undo it.
fn replace_containerd<'a>(node: &'a Node, instead: &str) -> impl FnOnce() + use<'a> {
    let script = format!(
        "#!/bin/sh\nif grep -qr runtimes.zeropod /etc/containerd; then {instead}; fi\nexec /usr/bin/containerd.real \"$@\"\n"
    );
    node.run(&["cp", "/usr/bin/containerd", "/usr/bin/containerd.real"]).ok();
    node.run(&["rm", "/usr/bin/containerd"]).ok();
    fs::write(node.path("/usr/bin/containerd"), script).unwrap();
    node.run(&["chmod", "755", "/usr/bin/containerd"]).ok();
    || {
        node.run(&["mv", "/usr/bin/containerd.real", "/usr/bin/containerd"]).ok();
    }
}

fn silent_systemd(node: &Node) {
    // A socket that takes connections and never answers (F-C7).
    node.run(&["mv", "/run/systemd/private", "/run/systemd/private.real"]).ok();
    let _silent =
        std::os::unix::net::UnixListener::bind(node.path("/run/systemd/private")).unwrap();
    fails(node, "systemd cannot connect to /run/systemd/private: it did not answer in time");
    node.run(&["mv", "/run/systemd/private.real", "/run/systemd/private"]).ok();
}
