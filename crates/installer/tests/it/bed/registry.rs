//! An image of CRIU, and Debian's registry to pull it from.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{
    find,
    node::{Node, wait_for},
};

/// What the registry calls the image.
pub(crate) const REFERENCE: &str = "127.0.0.1:5000/criu:v1";

/// Makes an image with one layer, in which `bin/criu` is this text.
pub(crate) fn image(dir: &Path, criu: &str) {
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

/// Whether a test with a registry can run.
pub(crate) fn has_registry(test: &str) -> bool {
    let missing = ["docker-registry", "skopeo"].into_iter().find(|tool| find(tool).is_none());
    super::all_there(test, missing)
}

/// Debian's registry on the loopback interface of a node.
pub(crate) struct Registry(Child);

impl Registry {
    /// Starts it with an image from a directory that [`image`] made.
    pub(crate) fn start(node: &Node, dir: &Path) -> Self {
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
            let pushed = copy.args([&layout, &format!("docker://{REFERENCE}")]).output().unwrap();
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
