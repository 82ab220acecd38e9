//! Nodes whose containerd belongs to somebody else, by units that behave as
//! k0s and `MicroK8s` do.

use std::fs;

use crate::bed::{
    can_run,
    node::{Node, wait_for},
    root,
};

fn node(unit: &str, script: &str, files: &[(&str, &str)]) -> Node {
    let node = Node::boot(&root::debian("sid"), &[]);
    node.run(&["systemctl", "stop", "containerd"]).ok();
    for (path, content) in files.iter().chain(&[("/usr/local/bin/other", script)]) {
        node.run(&["mkdir", "-p", path.rsplit_once('/').unwrap().0]).ok();
        fs::write(node.path(path), content).unwrap();
    }
    node.run(&["chmod", "755", "/usr/local/bin/other"]).ok();
    let text = "[Service]\nExecStart=/usr/local/bin/other\nKillMode=process\nDelegate=yes\n";
    fs::write(node.path(&format!("/etc/systemd/system/{unit}")), text).unwrap();
    node.run(&["systemctl", "daemon-reload"]).ok();
    node.run(&["systemctl", "start", unit]).ok();
    wait_for("its containerd", || node.installer(&["-dry-run"]).code.filter(|code| *code != 1));
    node
}

#[test]
fn k0s_reloads_by_itself() {
    // F-A5, F-C6: it watches its directory and restarts containerd.
    if !can_run("k0s_reloads_by_itself") {
        return;
    }
    let script = r#"#!/bin/sh
while true; do
  containerd --config=/etc/k0s/containerd.toml --root=/var/lib/k0s/containerd --state=/run/k0s/containerd --address=/run/k0s/containerd.sock &
  seen=$(cat /etc/k0s/containerd.d/*.toml 2>/dev/null)
  while [ "$(cat /etc/k0s/containerd.d/*.toml 2>/dev/null)" = "$seen" ]; do sleep 0.2; done
  kill -HUP $!
  wait
done
"#;
    let config = "# k0s_managed=true
imports = [\"/etc/k0s/containerd.d/*.toml\"]
version = 3
[plugins.'io.containerd.cri.v1.runtime']
";
    let node = node("k0sworker.service", script, &[("/etc/k0s/containerd.toml", config)]);
    let start = |node: &Node| node.run(&["systemctl", "show", "-p", "MainPID", "k0sworker"]).ok();
    let before = start(&node);
    let said = node.installer(&[]).ok();
    assert!(said.contains("not validated beforehand"), "{said}");
    let drop_in = node.read("/etc/k0s/containerd.d/50-zeropod.toml");
    // Any other version than the root's would stop k0s' worker.
    assert!(!drop_in.contains("version ="), "{drop_in}");
    assert!(!node.installer(&[]).ok().contains("restart"));
    node.installer(&["-uninstall"]).ok();
    assert!(!node.path("/etc/k0s/containerd.d/50-zeropod.toml").exists());
    assert_eq!(node.read("/etc/k0s/containerd.toml"), config);
    assert_eq!(start(&node), before, "k0s itself is never restarted");
}

#[test]
fn microk8s_renders_from_its_template() {
    if !can_run("microk8s_renders_from_its_template") {
        return;
    }
    let script = "#!/bin/sh
cd /var/snap/microk8s/current/args
sed -e 's/${RUNTIME}/runc/g' -e 's/${SNAPSHOTTER}/native/g' -e 's/${RUNTIME_TYPE}/io.containerd.runc.v2/g' \\
  -e 's@${SNAP_DATA}@/var/snap/microk8s/current@g' containerd-template.toml > containerd.toml
exec containerd --config $PWD/containerd.toml --address /var/snap/microk8s/common/run/containerd.sock
";
    let matrix =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix/microk8s/host");
    let path = "/var/snap/microk8s/current/args/containerd-template.toml";
    let template = fs::read_to_string(matrix.join(path.trim_start_matches('/'))).unwrap();
    let run = "/var/snap/microk8s/common/run/keep";
    let unit = "snap.microk8s.daemon-containerd.service";
    let node = node(unit, script, &[(path, &template), (run, "")]);
    node.installer(&[]).ok();
    assert!(node.read(path).contains("runtimes.zeropod"));
    let rendered = node.read("/var/snap/microk8s/current/args/containerd.toml");
    assert!(rendered.contains("runtimes.zeropod"), "{rendered}");
    assert!(!node.installer(&[]).ok().contains("restart"));
    node.installer(&["-uninstall"]).ok();
    assert_eq!(node.read(path), template);
}
