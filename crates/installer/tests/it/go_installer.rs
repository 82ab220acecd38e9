//! The real Go installer, before ours and after: a node can be switched over,
//! back, and over again.

use std::fs;

use crate::bed::{
    can_run,
    node::{Node, Outcome, wait_for},
    registry::{REFERENCE, Registry, has_registry, image},
    root, skip,
};

const CONFIG: &str = "/etc/containerd/config.toml";
const OPT: &str = "/var/lib/containerd/opt";

const RUNC: &str = "
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
";

#[test]
fn the_go_installer_and_ours_take_turns_on_containerd_1_7() {
    take_turns("the_go_installer_and_ours_take_turns_on_containerd_1_7", "trixie");
}

#[test]
fn the_go_installer_and_ours_take_turns_on_containerd_2_1() {
    take_turns("the_go_installer_and_ours_take_turns_on_containerd_2_1", "sid");
}

fn take_turns(test: &str, suite: &str) {
    if !can_run(test) || !has_registry(test) {
        return;
    }
    let go = match root::go_installer() {
        Ok(go) => go,
        // Not every machine reaches a proxy for Go modules.
        Err(error) => {
            skip(test, &error.to_string());
            return;
        }
    };
    let node = Node::boot(&root::debian(suite), &[]);
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), "Go's");
    let _registry = Registry::start(&node, dir.path());
    fs::copy(go, node.path("/usr/local/bin/go-installer")).unwrap();
    // Without a runtime in Debian's file, Go's makes containerd 1.7 lose its
    // CRI plugin (F-A1).
    let original = node.read(CONFIG) + RUNC;
    fs::write(node.path(CONFIG), &original).unwrap();
    node.run(&["systemctl", "restart", "containerd"]).ok();
    wait_for("containerd", || node.handlers());

    for round in ["first", "second"] {
        // Go's, then ours: no restart is forgotten, nothing of Go's is left.
        run_go(&node).ok();
        let served = wait_for("Go's handler", || node.handlers()?.remove("zeropod"));
        assert_eq!(served.runtime_path, format!("{OPT}/bin/containerd-shim-zeropod-v2"));
        assert_eq!(node.read(&format!("{OPT}/bin/criu")), "Go's");
        node.installer(&[]).ok();
        assert_ours(&node, round);
        // Ours, then Go's: still a served node, whose pods find everything.
        run_go(&node).ok();
        let handlers = wait_for("Go's handler over ours", || {
            node.handlers().filter(|handlers| handlers.contains_key("zeropod"))
        });
        assert!(handlers.contains_key("runc"), "{handlers:?}");
        node.installer(&[]).ok();
        assert_ours(&node, round);
        node.installer(&["-uninstall"]).ok();
        assert!(!node.handlers().unwrap().contains_key("zeropod"));
        assert_eq!(node.read(CONFIG), original, "{round}");
        for left in ["runtime_zeropod.toml", "config.toml.original", "conf.d/50-zeropod.toml"] {
            assert!(!node.path(&format!("/etc/containerd/{left}")).exists(), "{round}: {left}");
        }
    }
}

fn assert_ours(node: &Node, round: &str) {
    let handlers = node.handlers().unwrap();
    assert_eq!(handlers["zeropod"].pod_annotations.as_ref().unwrap().len(), 13, "{round}");
    assert!(handlers.contains_key("runc"), "{round}: {handlers:?}");
    for (program, asset) in
        [("containerd-shim-zeropod-v2", node.shim_asset()), ("criu", node.criu_asset())]
    {
        let installed = fs::read(node.path(&format!("{OPT}/bin/{program}"))).unwrap();
        assert_eq!(installed, fs::read(asset).unwrap(), "{round}: {program}");
    }
    assert!(!node.path("/etc/containerd/runtime_zeropod.toml").exists(), "{round}");
    assert_eq!(node.installer(&["-dry-run"]).code, Some(0), "{round}");
}

/// Runs it as in its pod: the host below /host, the shim in /build. It does
/// without the API server, since it swallows that error (I1).
fn run_go(node: &Node) -> Outcome {
    const IN_POD: &str = r#"
secrets=/var/run/secrets/kubernetes.io/serviceaccount
mkdir -p /host /build /tls $secrets
mount -t tmpfs tmpfs /build
mount -t tmpfs tmpfs /tls
echo "Go's shim" >/build/containerd-shim-zeropod-v2
echo token >$secrets/token
mount --rbind / /host
exec go-installer "$@"
"#;
    node.run(&[
        "env",
        "KUBERNETES_SERVICE_HOST=127.0.0.1",
        "KUBERNETES_SERVICE_PORT=1",
        "PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin",
        "unshare",
        "--mount",
        "sh",
        "-ec",
        IN_POD,
        "sh",
        &format!("-criu-image={REFERENCE}"),
    ])
}
