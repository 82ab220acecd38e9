//! The installer on booted nodes with real systemd and real containerd.

use std::{fs, os::unix::fs::MetadataExt as _};

use crate::bed::{
    can_run,
    node::{Node, Outcome, wait_for},
    root,
};

const CONFIG: &str = "/etc/containerd/config.toml";
const SHIM: &str = "/var/lib/containerd/opt/bin/containerd-shim-zeropod-v2";
const CRIU: &str = "/var/lib/containerd/opt/bin/criu";

#[test]
fn installs_and_uninstalls_on_containerd_1_7() {
    if can_run("installs_and_uninstalls_on_containerd_1_7") {
        install_again_upgrade_uninstall(&Node::boot(&root::debian("trixie"), &[]));
    }
}

#[test]
fn installs_and_uninstalls_on_containerd_2_1() {
    if can_run("installs_and_uninstalls_on_containerd_2_1") {
        install_again_upgrade_uninstall(&Node::boot(&root::debian("sid"), &[]));
    }
}

#[test]
fn installs_and_uninstalls_on_containerd_2_3_4() {
    if can_run("installs_and_uninstalls_on_containerd_2_3_4") {
        install_again_upgrade_uninstall(&root::node_2_3_4());
    }
}

/// I2 to I8, I13, F-C1, F-C2, F-C6, F-C8, F-C10, F-C13, F-C22.
fn install_again_upgrade_uninstall(node: &Node) {
    let dirs =
        ["/etc/containerd", "/etc/criu", "/opt", "/var/lib/zeropod", "/var/lib/containerd/opt"];
    let before = node.snapshot(&dirs);
    assert_eq!(node.installer(&["-dry-run"]).code, Some(2));
    assert_eq!(node.snapshot(&dirs), before, "a dry run touches nothing");

    let start = node.containerd_start();
    let said = node.installer(&[]).ok();
    assert!(said.contains("containerd is restarted: its configuration has changed"), "{said}");
    assert_ne!(node.containerd_start(), start);
    let handlers = node.handlers().unwrap();
    assert_eq!(handlers["zeropod"].runtime_path, SHIM);
    assert_eq!(handlers["zeropod"].pod_annotations.as_ref().unwrap().len(), 13);
    assert!(handlers.contains_key("runc"), "{handlers:?}");
    assert_eq!(fs::read(node.path(CRIU)).unwrap(), fs::read(node.criu_asset()).unwrap());

    let (installed, start) = (node.snapshot(&dirs), node.containerd_start());
    let inode = |path| fs::metadata(node.path(path)).unwrap().ino();
    let (config, shim) = (inode(CONFIG), inode(SHIM));
    let said = node.installer(&[]).ok();
    assert!(!said.contains("restart"), "{said}");
    assert_eq!(node.snapshot(&dirs), installed);
    assert_eq!((inode(CONFIG), inode(SHIM)), (config, shim), "nothing is written again");
    assert_eq!(node.containerd_start(), start);
    assert_eq!(node.installer(&["-dry-run"]).code, Some(0));

    // An upgrade replaces what has changed, and needs no restart for it.
    fs::copy("/bin/true", node.criu_asset()).unwrap();
    let said = node.installer(&["-probe-binary-name=k3s"]).ok();
    assert!(!said.contains("restart") && said.contains(CRIU), "{said}");
    assert_eq!(inode(SHIM), shim);
    assert_eq!(fs::read(node.path(CRIU)).unwrap(), fs::read("/bin/true").unwrap());
    assert!(node.read("/var/lib/containerd/opt/etc/shim.json").contains("k3s"));
    assert_eq!(node.containerd_start(), start);

    let said = node.installer(&["-uninstall"]).ok();
    assert!(said.contains("containerd is restarted"), "{said}");
    assert!(!node.handlers().unwrap().contains_key("zeropod"));
    assert_eq!(node.snapshot(&dirs), before, "no trace is left");
    let start = node.containerd_start();
    node.installer(&["-uninstall"]).ok();
    assert_eq!(node.containerd_start(), start);
    assert_eq!(node.snapshot(&dirs), before);
}

#[test]
fn a_node_without_a_configuration_gets_one_and_loses_it() {
    // F-A12, I10.
    if !can_run("a_node_without_a_configuration_gets_one_and_loses_it") {
        return;
    }
    for suite in ["trixie", "sid"] {
        let node = Node::boot(&root::debian(suite), &[]);
        for empty in [false, true] {
            if empty {
                fs::write(node.path(CONFIG), "").unwrap();
            } else {
                fs::remove_file(node.path(CONFIG)).unwrap();
            }
            node.run(&["systemctl", "restart", "containerd"]).ok();
            wait_for("containerd with its defaults", || node.handlers());
            let before = node.snapshot(&["/etc/containerd", "/opt"]);
            node.installer(&[]).ok();
            let handlers = node.handlers().unwrap();
            assert!(handlers.contains_key("runc"), "{suite}: {handlers:?}");
            let path = &handlers["zeropod"].runtime_path;
            assert_eq!(path, "/opt/zeropod/bin/containerd-shim-zeropod-v2");
            assert!(!node.installer(&[]).ok().contains("restart"));
            node.installer(&["-uninstall"]).ok();
            assert_eq!(node.snapshot(&["/etc/containerd", "/opt"]), before, "{suite} {empty}");
            if !empty {
                assert!(!node.path(CONFIG).exists());
            }
        }
    }
}

#[test]
fn pins_of_nobody_are_gone_afterwards() {
    // I4.
    if !can_run("pins_of_nobody_are_gone_afterwards") {
        return;
    }
    let mount_point = tempfile::tempdir().unwrap();
    let binds = [(mount_point.path().to_path_buf(), "/sys/fs/bpf")];
    let node = Node::boot(&root::debian("sid"), &binds);
    node.run(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"]).ok();
    node.installer(&[]).ok();
    for dir in ["zeropod_node/42", "zeropod_maps/7", "zeropod_maps/7_managed_by_shim", "other"] {
        node.run(&["mkdir", "-p", &format!("/sys/fs/bpf/{dir}")]).ok();
    }
    node.installer(&["-uninstall"]).ok();
    let left: Vec<_> = fs::read_dir(node.path("/sys/fs/bpf"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // The kernel's own.
        .filter(|name| !["maps.debug", "progs.debug"].contains(&name.as_str()))
        .collect();
    assert_eq!(left, ["other"]);
}

#[test]
fn exact_mounts_are_enough() {
    // M3: as with deploy/exact-mounts, a root of its own that cannot be
    // written, and of the host just some directories.
    const IN_POD: &str = r#"
pod=/tmp/pod
mkdir -p $pod
mount -t tmpfs tmpfs $pod
for dir in "$@"; do
  [ "$dir" = -- ] && break
  mkdir -p "$dir" $pod"$dir"
  mount --bind "$dir" $pod"$dir"
done
while [ "$1" != -- ]; do shift; done
shift
# What the program is linked with; that of the image has nothing.
for dir in /usr /lib /lib64 /assets /proc; do
  mkdir -p $pod$dir
  mount --rbind $dir $pod$dir
done
mkdir $pod/tmp $pod/dev
mount -t tmpfs tmpfs $pod/tmp
touch $pod/dev/null
mount -o remount,ro,bind $pod
! touch $pod/etc/x 2>/dev/null
exec chroot $pod /assets/zeropod-installer -host-root=/ "$@"
"#;
    if !can_run("exact_mounts_are_enough") {
        return;
    }
    let node = Node::boot(&root::debian("sid"), &[]);
    node.run(&["mkdir", "-p", "/assets/bin"]).ok();
    for (from, to) in [
        (node.shim_asset(), "/assets/bin/containerd-shim-zeropod-v2"),
        (node.criu_asset(), "/assets/bin/criu"),
        (env!("CARGO_BIN_EXE_zeropod-installer").into(), "/assets/zeropod-installer"),
    ] {
        fs::copy(from, node.path(to)).unwrap();
    }
    let mounts = [
        "/etc/containerd",
        "/run/containerd",
        "/run/systemd",
        "/etc/criu",
        "/var/lib/zeropod",
        "/bin",
    ];
    let opt = "/var/lib/containerd/opt";
    let dirs = ["/etc", opt, "/var/lib/zeropod"];
    let before = node.snapshot(&dirs);
    let run = |opt: &[&str], args: &[&str]| {
        let pod = ["unshare", "--mount", "sh", "-ec", IN_POD, "sh"];
        node.run(&[&pod[..], &mounts, opt, &["--"], args].concat())
    };
    // Debian's containerd has an opt directory of its own, which has to be
    // mounted, too: otherwise it says so, and nothing is in the way.
    let said = run(&[], &[]).refused();
    assert!(said.contains("cannot create /var/lib/containerd"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");

    run(&[opt], &[]).ok();
    assert_eq!(node.handlers().unwrap()["zeropod"].runtime_path, SHIM);
    assert!(!run(&[opt], &[]).ok().contains("restart"));
    assert_eq!(run(&[opt], &["-dry-run"]).code, Some(0));
    run(&[opt], &["-uninstall"]).ok();
    assert!(!node.handlers().unwrap().contains_key("zeropod"));
    assert_eq!(node.snapshot(&dirs), before);
}

#[test]
fn without_systemd_somebody_else_restarts() {
    // I14, F-B4 (k3d, OpenRC).
    if !can_run("without_systemd_somebody_else_restarts") {
        return;
    }
    let node = Node::boot(&root::debian("trixie"), &[]);
    let socket = ["/run/systemd/private", "/run/systemd/private.hidden"];
    let hide = || node.run(&["mv", socket[0], socket[1]]).ok();
    let show = || node.run(&["mv", socket[1], socket[0]]).ok();
    hide();
    let outcome = node.installer(&[]);
    assert!(outcome.stderr.contains("the host has no systemd. Restart it"), "{outcome:?}");
    // The files are in place, so the next start of containerd loads them.
    assert!(node.read(CONFIG).contains("runtimes.zeropod"));
    assert!(node.installer(&[]).refused().contains("it does not serve the handler"));
    show();
    node.run(&["systemctl", "restart", "containerd"]).ok();
    hide();
    wait_for("the handler", || node.handlers()?.remove("zeropod"));
    assert!(!node.installer(&[]).ok().contains("restart"));
    assert_eq!(node.installer(&["-dry-run"]).code, Some(0));
    show();
    node.installer(&["-uninstall"]).ok();
}

#[test]
fn a_node_of_the_go_installer_is_taken_over() {
    // Both generations: tables at the end on 1.x, a drop-in on 2.x.
    if !can_run("a_node_of_the_go_installer_is_taken_over") {
        return;
    }
    let matrix = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix");
    for (suite, case) in [("trixie", "takeover-1.7"), ("sid", "takeover-2.x")] {
        let node = Node::boot(&root::debian(suite), &[]);
        let host = matrix.join(case).join("host");
        for name in ["config.toml", "config.toml.original", "runtime_zeropod.toml"] {
            let from = host.join("etc/containerd").join(name);
            if from.exists() {
                fs::copy(from, node.path(&format!("/etc/containerd/{name}"))).unwrap();
            }
        }
        fs::write(node.path("/etc/containerd/cri-base.json"), "{\"ociVersion\": \"1.1.0\"}")
            .unwrap();
        node.run(&["mkdir", "-p", "/opt/zeropod/bin"]).ok();
        for program in ["containerd-shim-zeropod-v2", "criu"] {
            fs::write(node.path(&format!("/opt/zeropod/bin/{program}")), "Go's").unwrap();
        }
        node.run(&["systemctl", "restart", "containerd"]).ok();
        let served = wait_for("the Go installer's handler", || node.handlers()?.remove("zeropod"));
        assert_eq!(served.pod_annotations.unwrap().len(), 3, "{case}");

        node.installer(&[]).ok();
        let handlers = node.handlers().unwrap();
        assert_eq!(handlers["zeropod"].pod_annotations.as_ref().unwrap().len(), 13);
        assert!(handlers.contains_key("test-handler"), "{case}: {handlers:?}");
        let shim = fs::read(node.path("/opt/zeropod/bin/containerd-shim-zeropod-v2")).unwrap();
        assert_eq!(shim, fs::read("/bin/true").unwrap());
        assert!(!node.path("/etc/containerd/runtime_zeropod.toml").exists());

        node.installer(&["-uninstall"]).ok();
        let original =
            fs::read_to_string(host.join("etc/containerd/config.toml.original")).unwrap();
        assert_eq!(node.read(CONFIG), original, "{case}");
        assert!(!node.handlers().unwrap().contains_key("zeropod"));
    }
}

#[test]
fn a_run_that_is_killed_anywhere_is_completed_by_the_next_on_containerd_1_7() {
    if can_run("a_run_that_is_killed_anywhere_is_completed_by_the_next_on_containerd_1_7") {
        kill_anywhere(&Node::boot(&root::debian("trixie"), &[]));
    }
}

#[test]
fn a_run_that_is_killed_anywhere_is_completed_by_the_next_on_containerd_2_1() {
    if can_run("a_run_that_is_killed_anywhere_is_completed_by_the_next_on_containerd_2_1") {
        kill_anywhere(&Node::boot(&root::debian("sid"), &[]));
    }
}

/// F-C2, F-C4: the kill comes at the n-th system call that changes something or
/// talks to somebody.
fn kill_anywhere(node: &Node) {
    let dirs = ["/etc/containerd", "/etc/criu", "/var/lib/zeropod", "/var/lib/containerd/opt"];
    let before = node.snapshot(&dirs);
    for args in [&[][..], &["-uninstall"]] {
        let installs = args.is_empty();
        let mut kills = 0;
        loop {
            if !installs {
                node.installer(&[]).ok();
            }
            if killed_at(node, kills + 1, args).code == Some(0) {
                break;
            }
            kills += 1;
            // containerd could start at any time.
            node.run(&["containerd", "config", "dump"]).ok();
            // The next run may want the same, or the opposite at once.
            if kills % 3 != 0 {
                node.installer(args).ok();
                let served = node.handlers().unwrap().contains_key("zeropod");
                assert_eq!(served, installs, "{args:?} killed at {kills}");
            }
            node.installer(&["-uninstall"]).ok();
            assert!(!node.handlers().unwrap().contains_key("zeropod"));
            let after = node.snapshot(&dirs);
            let left: Vec<_> =
                after.keys().filter(|path| before.get(*path) != after.get(*path)).collect();
            assert!(after == before, "{args:?} killed at {kills}: {left:?}");
        }
        assert!(kills > 10, "{kills} kills with {args:?}");
        node.installer(&["-uninstall"]).ok();
    }
}

/// Runs the installer and kills it at its n-th call.
fn killed_at(node: &Node, n: usize, args: &[&str]) -> Outcome {
    let calls = "rename,mkdir,unlink,rmdir,fsync,connect";
    let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
    let strace =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject];
    node.installer_under(&strace, args)
}
