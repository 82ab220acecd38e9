//! CRIU from an image: in files, and from Debian's registry by way of the
//! node's containerd (I6).

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::bed::{
    can_run, find,
    node::{Node, wait_for},
    root,
};

const CRIU: &str = "/var/lib/containerd/opt/bin/criu";

/// Makes an image with one layer, in which `bin/criu` is this text.
fn image(dir: &Path, criu: &str) {
    fs::create_dir_all(dir.join("root/bin")).unwrap();
    fs::write(dir.join("root/bin/criu"), criu).unwrap();
    let script = r#"
cd "$1"
tar -C root -cf layer.tar bin
sum() { sha256sum "$1" | cut -d ' ' -f 1; }
mkdir -p layout/blobs/sha256
blob() { cp "$1" "layout/blobs/sha256/$(sum "$1")"; printf '"digest": "sha256:%s", "size": %s' "$(sum "$1")" "$(stat -c %s "$1")"; }
case $(uname -m) in aarch64) arch=arm64 ;; *) arch=amd64 ;; esac
printf '{"architecture": "%s", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' $arch "$(sum layer.tar)" >config.json
oci=application/vnd.oci.image
printf '{"schemaVersion": 2, "mediaType": "%s", "config": {"mediaType": "%s", %s}, "layers": [{"mediaType": "%s", %s}]}' \
  $oci.manifest.v1+json $oci.config.v1+json "$(blob config.json)" $oci.layer.v1.tar "$(blob layer.tar)" >manifest.json
printf '{"schemaVersion": 2, "manifests": [{"mediaType": "%s", %s, "platform": {"architecture": "%s", "os": "linux"}}]}' \
  $oci.manifest.v1+json "$(blob manifest.json)" $arch >layout/index.json
echo '{"imageLayoutVersion": "1.0.0"}' >layout/oci-layout
"#;
    let made = Command::new("sh").args(["-ec", script, "sh"]).arg(dir).status().unwrap();
    assert!(made.success());
}

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
    const REFERENCE: &str = "127.0.0.1:5000/criu:v1";
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

fn has_registry(test: &str) -> bool {
    let missing = ["docker-registry", "skopeo"].into_iter().find(|tool| find(tool).is_none());
    crate::bed::all_there(test, missing)
}

/// Debian's registry on the loopback interface of a node.
struct Registry(Child);

impl Registry {
    fn start(node: &Node, dir: &Path) -> Self {
        let config = dir.join("registry.yml");
        let data = dir.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:5000}}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let inside = |program: &str| {
            let mut command = Command::new("nsenter");
            command.args(["--target", &node.init.to_string(), "--net", "--", program]);
            command
        };
        let mut registry = inside("docker-registry");
        registry.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self(registry.spawn().unwrap());
        let layout = format!("oci:{}", dir.join("layout").display());
        wait_for("the registry to take the image", || {
            let mut copy = inside("skopeo");
            copy.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]);
            let pushed = copy.args([&layout, "docker://127.0.0.1:5000/criu:v1"]).output().unwrap();
            pushed.status.success().then_some(())
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
