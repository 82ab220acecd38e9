//! A node whose containerd is the child of another unit that renders its
//! configuration at every start, as k3s and RKE2 do: with a drop-in directory,
//! with a template only, after the Go installer froze the template (F-B1, F-B2,
//! I12), and without systemd, as in k3d.

use std::fs;

use crate::bed::{
    can_run,
    node::{Node, wait_for},
    root,
};

/// Renders like k3s: the newest template that is there, in it the built-in one
/// where it is called for.
const PROGRAM: &str = r#"#!/bin/sh
data=@DATA@
cd $data/agent/etc/containerd || exit 1
base="version = 3
$(cat /etc/imports)
root = \"$data/agent/containerd\"
state = \"/run/k3s/containerd\"
[grpc]
  address = \"/run/k3s/containerd/containerd.sock\"
[plugins.'io.containerd.internal.v1.opt']
  path = \"$data/agent/containerd\"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = \"$(cat /etc/sandbox)\"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = \"$data/agent/etc/containerd/certs.d\"
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
ExecStart=/usr/local/bin/program
KillMode=process
Restart=always
RestartSec=1
Delegate=yes
[Install]
WantedBy=multi-user.target
";

/// A node of k3s or RKE2.
struct Rancher {
    node: Node,
    unit: &'static str,
    /// Directory of containerd's configuration.
    dir: String,
    /// containerd's own, where our files go, too.
    agent: String,
}

impl Rancher {
    fn new(
        name: &str,
        unit: &'static str,
        containerd: &str,
        imports: impl Fn(&str) -> String,
    ) -> Self {
        let node = Node::boot(&root::debian("sid"), &[]);
        let data = format!("/var/lib/rancher/{name}");
        let dir = format!("{data}/agent/etc/containerd");
        node.run(&["systemctl", "stop", "containerd"]).ok();
        let program = format!("{data}/{containerd}");
        node.run(&["mkdir", "-p", &dir, program.rsplit_once('/').unwrap().0]).ok();
        node.run(&["ln", "-s", "/usr/bin/containerd", &program]).ok();
        let text = PROGRAM.replace("@DATA@", &data);
        for (path, text) in [
            ("/etc/imports", imports(&dir).as_str()),
            ("/etc/sandbox", "localhost/pause:1"),
            ("/usr/local/bin/program", text.as_str()),
            (&format!("/etc/systemd/system/{unit}.service"), UNIT),
        ] {
            fs::write(node.path(path), text).unwrap();
        }
        node.run(&["chmod", "755", "/usr/local/bin/program"]).ok();
        Self { node, unit, dir, agent: format!("{data}/agent/containerd") }
    }

    fn k3s(imports: impl Fn(&str) -> String) -> Self {
        Self::new("k3s", "k3s", "data/current/bin/containerd", imports)
    }

    fn start(&self) {
        self.node.run(&["systemctl", "daemon-reload"]).ok();
        self.node.run(&["systemctl", "start", self.unit]).ok();
        wait_for("it to render and start containerd", || {
            self.node.installer(&["-dry-run"]).code.filter(|code| *code != 1)
        });
    }

    fn read(&self, file: &str) -> String {
        self.node.read(&format!("{}/{file}", self.dir))
    }

    fn has(&self, file: &str) -> bool {
        self.node.path(&format!("{}/{file}", self.dir)).exists()
    }

    fn installs_and_uninstalls(&self, file: &str) {
        let node = &self.node;
        // Pending, as after an upgrade or an edit: our restart brings it along.
        fs::write(node.path("/etc/sandbox"), "localhost/pause:2").unwrap();
        let said = node.installer(&[]).ok();
        assert!(said.contains("containerd is restarted"), "{said}");
        assert!(said.contains("sandbox image was \"localhost/pause:1\""), "{said}");
        let ours = self.read(file);
        assert!(ours.contains("runtimes.zeropod"), "{ours}");
        assert!(self.read("config.toml").contains("runtime_type"));
        assert!(!node.installer(&[]).ok().contains("restart"), "nothing is left to do");
        let said = node.installer(&["-uninstall"]).ok();
        assert!(!said.contains("sandbox"), "{said}");
        assert!(!self.has(file));
        assert_eq!(node.installer(&["-dry-run", "-uninstall"]).code, Some(0));
        // Its own directories are as they were: the opt directory is
        // containerd's root here (I2).
        let database = format!("{}/io.containerd.metadata.v1.bolt", self.agent);
        assert!(node.path(&database).exists());
    }
}

/// As new releases render it.
fn drop_ins(dir: &str) -> String {
    format!("imports = [\"{dir}/config-v3.toml.d/*.toml\"]")
}

#[test]
fn k3s_gets_a_drop_in_or_a_template() {
    if !can_run("k3s_gets_a_drop_in_or_a_template") {
        return;
    }
    let new = Rancher::k3s(drop_ins);
    new.start();
    new.installs_and_uninstalls("config-v3.toml.d/50-zeropod.toml");

    let old = Rancher::k3s(|_| String::new());
    old.start();
    old.installs_and_uninstalls("config-v3.toml.tmpl");
}

#[test]
fn rke2_gets_a_drop_in_or_a_template() {
    // The socket is that of k3s; the unit tells them apart (F-B4).
    if !can_run("rke2_gets_a_drop_in_or_a_template") {
        return;
    }
    let new = Rancher::new("rke2", "rke2-agent", "bin/containerd", drop_ins);
    new.start();
    let said = new.node.installer(&["-runtime=k3s"]).refused();
    assert!(said.contains("-runtime says k3s"), "{said}");
    assert!(new.node.installer(&["-dry-run", "-runtime=rke2"]).code == Some(2));
    new.installs_and_uninstalls("config-v3.toml.d/50-zeropod.toml");

    let old = Rancher::new("rke2", "rke2-server", "bin/containerd", |_| String::new());
    old.start();
    old.installs_and_uninstalls("config-v3.toml.tmpl");
}

#[test]
fn k3d_is_restarted_by_somebody_else() {
    // F-B4: no systemd that could be asked; whoever runs the container of the
    // node restarts it.
    if !can_run("k3d_is_restarted_by_somebody_else") {
        return;
    }
    let k3d = Rancher::k3s(drop_ins);
    k3d.start();
    let node = &k3d.node;
    node.run(&["mv", "/run/systemd/private", "/run/systemd/private.hidden"]).ok();
    let restart = || {
        node.run(&["mv", "/run/systemd/private.hidden", "/run/systemd/private"]).ok();
        node.run(&["systemctl", "restart", "k3s"]).ok();
        node.run(&["mv", "/run/systemd/private", "/run/systemd/private.hidden"]).ok();
        wait_for("containerd", || node.installer(&["-dry-run"]).code.filter(|code| *code != 1))
    };
    for args in [&[][..], &["-uninstall"]] {
        let said = node.installer(args).refused();
        assert!(said.contains("the host has no systemd. Restart it, then run"), "{said}");
        restart();
        let said = node.installer(args).ok();
        assert!(!said.contains("is restarted"), "{said}");
    }
    assert!(!k3d.has("config-v3.toml.d/50-zeropod.toml"));
}

#[test]
fn a_template_that_the_go_installer_froze_thaws() {
    if !can_run("a_template_that_the_go_installer_froze_thaws") {
        return;
    }
    let k3s = Rancher::k3s(|_| String::new());
    let (node, dir) = (&k3s.node, &k3s.dir);
    let matrix = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix");
    let host = matrix.join("takeover-k3s-2.x/host").join(dir.trim_start_matches('/'));
    for name in ["config.toml.tmpl", "config.toml.original", "runtime_zeropod.toml"] {
        fs::copy(host.join(name), node.path(&format!("{dir}/{name}"))).unwrap();
    }
    node.run(&["mkdir", "-p", "/var/lib/rancher/k3s/agent/containerd/bin"]).ok();
    let shim = "/var/lib/rancher/k3s/agent/containerd/bin/containerd-shim-zeropod-v2";
    fs::write(node.path(shim), "Go's").unwrap();
    k3s.start();
    node.installer(&[]).ok();
    assert!(!node.path(&format!("{dir}/config.toml.tmpl")).exists());
    let rendered = node.read(&format!("{dir}/config.toml"));
    assert!(rendered.contains("BEGIN zeropod-installer"), "{rendered}");
    assert!(!rendered.contains("runtime_zeropod.toml"), "{rendered}");
    // What was still imported until that start goes now.
    node.installer(&[]).ok();
    assert!(!node.path(&format!("{dir}/runtime_zeropod.toml")).exists());
    assert_eq!(node.installer(&["-dry-run"]).code, Some(0));
}
