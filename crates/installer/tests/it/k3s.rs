//! A node whose containerd is the child of another unit that renders its
//! configuration at every start, as k3s does: with a drop-in directory, with a
//! template only, and after the Go installer froze the template (F-B1, F-B2,
//! I12).

use std::fs;

use crate::bed::{can_run, node::Node, root};

const DIR: &str = "/var/lib/rancher/k3s/agent/etc/containerd";

/// Renders like k3s: the newest template that is there, in it the built-in one
/// where it is called for.
const K3S: &str = r#"#!/bin/sh
cd /var/lib/rancher/k3s/agent/etc/containerd || exit 1
imports=$(cat /etc/k3s-imports)
base="version = 3
$imports
root = \"/var/lib/rancher/k3s/agent/containerd\"
state = \"/run/k3s/containerd\"
[grpc]
  address = \"/run/k3s/containerd/containerd.sock\"
[plugins.'io.containerd.internal.v1.opt']
  path = \"/var/lib/rancher/k3s/agent/containerd\"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true
"
template='{{ template "base" . }}'
for name in config.toml.tmpl config-v3.toml.tmpl; do
  if [ -f "$name" ]; then template=$(cat "$name"); fi
done
printf '%s\n' "$template" | while IFS= read -r line; do
  case "$line" in
    '{{ template "base" . }}') printf '%s\n' "$base" ;;
    *) printf '%s\n' "$line" ;;
  esac
done > config.toml
exec containerd -c "$PWD/config.toml"
"#;

const UNIT: &str = "[Service]
ExecStart=/usr/local/bin/k3s
KillMode=process
Restart=always
RestartSec=1
Delegate=yes
[Install]
WantedBy=multi-user.target
";

fn node(imports: &str) -> Node {
    let node = Node::boot(&root::debian("sid"), &[]);
    node.run(&["systemctl", "stop", "containerd"]).ok();
    node.run(&["mkdir", "-p", DIR]).ok();
    fs::write(node.path("/etc/k3s-imports"), imports).unwrap();
    fs::write(node.path("/usr/local/bin/k3s"), K3S).unwrap();
    node.run(&["chmod", "755", "/usr/local/bin/k3s"]).ok();
    fs::write(node.path("/etc/systemd/system/k3s.service"), UNIT).unwrap();
    node
}

fn start(node: &Node) {
    node.run(&["systemctl", "daemon-reload"]).ok();
    node.run(&["systemctl", "start", "k3s"]).ok();
    crate::bed::node::wait_for("k3s to render and start containerd", || {
        node.installer(&["-dry-run"]).code.filter(|code| *code != 1)
    });
}

fn installs_and_uninstalls(node: &Node, file: &str) {
    let said = node.installer(&[]).ok();
    assert!(said.contains("containerd is restarted"), "{said}");
    let ours = node.read(&format!("{DIR}/{file}"));
    assert!(ours.contains("runtimes.zeropod"), "{ours}");
    assert!(node.read(&format!("{DIR}/config.toml")).contains("runtime_type"));
    assert!(!node.installer(&[]).ok().contains("restart"), "nothing is left to do");
    node.installer(&["-uninstall"]).ok();
    assert!(!node.path(&format!("{DIR}/{file}")).exists());
    assert_eq!(node.installer(&["-dry-run", "-uninstall"]).code, Some(0));
    // Its own directories are as they were: the opt directory is containerd's
    // root here (I2).
    assert!(
        node.path("/var/lib/rancher/k3s/agent/containerd/io.containerd.metadata.v1.bolt").exists()
    );
}

#[test]
fn k3s_gets_a_drop_in_or_a_template() {
    if !can_run("k3s_gets_a_drop_in_or_a_template") {
        return;
    }
    let new = node(&format!("imports = [\"{DIR}/config-v3.toml.d/*.toml\"]"));
    start(&new);
    installs_and_uninstalls(&new, "config-v3.toml.d/50-zeropod.toml");

    let old = node("");
    start(&old);
    installs_and_uninstalls(&old, "config-v3.toml.tmpl");
}

#[test]
fn a_template_that_the_go_installer_froze_thaws() {
    if !can_run("a_template_that_the_go_installer_froze_thaws") {
        return;
    }
    let node = node("");
    let matrix = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix");
    let host = matrix.join("takeover-k3s-2.x/host").join(DIR.trim_start_matches('/'));
    for name in ["config.toml.tmpl", "config.toml.original", "runtime_zeropod.toml"] {
        fs::copy(host.join(name), node.path(&format!("{DIR}/{name}"))).unwrap();
    }
    node.run(&["mkdir", "-p", "/var/lib/rancher/k3s/agent/containerd/bin"]).ok();
    let shim = "/var/lib/rancher/k3s/agent/containerd/bin/containerd-shim-zeropod-v2";
    fs::write(node.path(shim), "Go's").unwrap();
    start(&node);
    node.installer(&[]).ok();
    assert!(!node.path(&format!("{DIR}/config.toml.tmpl")).exists());
    let rendered = node.read(&format!("{DIR}/config.toml"));
    assert!(rendered.contains("BEGIN zeropod-installer"), "{rendered}");
    assert!(!rendered.contains("runtime_zeropod.toml"), "{rendered}");
    // What was still imported until that start goes now.
    node.installer(&[]).ok();
    assert!(!node.path(&format!("{DIR}/runtime_zeropod.toml")).exists());
    assert_eq!(node.installer(&["-dry-run"]).code, Some(0));
}
