//! Through Debian's registry, which is older than the referrers of the
//! distribution specification 1.1.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use zeropod_images::{
    arch::Arch,
    image::Image,
    layout::Layout,
    registry::Repository,
    run::assemble,
    source::{self, SHIM, Source},
    tree::{Node, Tree},
    unpack,
};

use crate::bed::{self, EPOCH};

#[test]
fn what_is_pushed_is_pulled_with_everything_about_it() {
    if !bed::can_run(&["docker-registry"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let images = Arch::ALL.map(image);
    let layout = assemble(&images.each_ref(), "v1", EPOCH).unwrap();
    let reference = format!("{}/some/where/example:v1", registry.address);
    Repository::open(&reference).unwrap().push(&layout).unwrap();
    // Nothing is missing, and nothing is in the way, when it is pushed again.
    Repository::open(&reference).unwrap().push(&layout).unwrap();

    for (arch, image) in Arch::ALL.into_iter().zip(&images) {
        let pulled = Repository::open(&reference).unwrap().pull(arch).unwrap();
        assert_eq!(pulled, image.layers[0].1);
    }
    let stored = dir.path().join("docker/registry/v2/repositories/some/where/example/_manifests");
    assert_eq!(tag(&stored, "v1"), layout.index().descriptor().digest);
    for packed in layout.images() {
        let referrers = tag(&stored, &packed.manifest.digest.replace(':', "-"));
        let index = blob(dir.path(), &referrers);
        let attestation = packed.attestation.as_ref().unwrap();
        assert_eq!(index["manifests"][0]["digest"], attestation.digest.as_str());
        let manifest = blob(dir.path(), &attestation.digest);
        assert_eq!(manifest["subject"]["digest"], packed.manifest.digest.as_str());
    }
}

#[test]
fn a_shim_comes_from_a_reference_a_layout_or_an_archive() {
    if !bed::can_run(&["docker-registry"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"));
    let arch = bed::here();
    let layout = assemble(&[&image(arch)], "v1", EPOCH).unwrap();
    let reference = format!("{}/example:v1", registry.address);
    Repository::open(&reference).unwrap().push(&layout).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    layout.write(at("layout").as_ref()).unwrap();
    fs::write(at("archive.tar"), layout.archive(&layout.images()[0]).unwrap()).unwrap();
    fs::write(at("saved.tar"), saved(&layout)).unwrap();
    for place in [reference, at("layout"), at("archive.tar"), at("saved.tar")] {
        let source = [Source { arch: None, place: place.clone() }];
        let shim = source::shim(&source, arch).unwrap();
        let own = fs::read("/bin/true").unwrap();
        assert_eq!(shim.get(&format!("bin/{SHIM}")), Some(&Node::program(own)), "{place}");
        let criu = source::criu(&source, arch).unwrap();
        let paths: Vec<_> = criu.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["bin/criu", "lib/liba.so", "lib/liba.so.1"], "{place}");
    }
}

#[test]
fn what_cannot_be_used_is_told() {
    if !bed::can_run(&["docker-registry"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"));
    let absent = format!("{}/absent:v1", registry.address);
    let pulled = Repository::open(&absent).unwrap().pull(bed::here());
    assert!(pulled.unwrap_err().to_string().contains(&absent));
    let other = Arch::ALL.into_iter().find(|arch| !arch.is_here()).unwrap();
    let layout = assemble(&[&image(bed::here())], "v1", EPOCH).unwrap();
    let path = dir.path().join("layout");
    layout.write(&path).unwrap();
    let said = unpack::layout(&path, other).unwrap_err().to_string();
    assert!(said.contains(&format!("no image for linux/{other}")), "{said}");
    for blob in fs::read_dir(path.join("blobs/sha256")).unwrap() {
        fs::write(blob.unwrap().path(), "forged").unwrap();
    }
    let said = unpack::layout(&path, bed::here()).unwrap_err().to_string();
    assert!(said.contains("is another"), "{said}");
    let program = [Source { arch: Some(other), place: "/bin/true".into() }];
    let said = source::shim(&program, other).unwrap_err().to_string();
    assert!(said.contains(&format!("not for {other}")), "{said}");
}

/// An image with a shim, CRIU, and statements.
fn image(arch: Arch) -> Image {
    let mut tree = Tree::default();
    let program = Node::program(fs::read("/bin/true").unwrap());
    tree.insert(&format!("opt/{SHIM}"), program.clone());
    tree.insert("bin/criu", program);
    tree.insert("lib/liba.so", Node::Link { target: "liba.so.1".into() });
    tree.insert("lib/liba.so.1", Node::data("a library"));
    tree.insert("etc/arch", Node::data(arch.name()));
    Image {
        name: "example",
        arch,
        entrypoint: vec!["/bin/criu".into()],
        user: "65532:65532",
        labels: [("org.opencontainers.image.title".into(), "Example".into())].into(),
        layers: vec![("A test", tree)],
        predicates: vec![("https://example.com/predicate", serde_json::json!({ "a": 1 }))],
    }
}

/// What older engines write: no index, and a layer that is not compressed.
fn saved(layout: &Layout) -> Vec<u8> {
    let layer = layout.blobs().next().unwrap();
    let mut plain = Vec::new();
    let mut gzip = flate2::read::GzDecoder::new(layer.content.as_slice());
    std::io::copy(&mut gzip, &mut plain).unwrap();
    let manifest = br#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]}]"#;
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in [("manifest.json", &manifest[..]), ("l/layer.tar", &plain)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The digest that a tag names in the registry's directory.
fn tag(manifests: &Path, tag: &str) -> String {
    let link = manifests.join("tags").join(tag).join("current/link");
    fs::read_to_string(&link).unwrap_or_else(|error| panic!("{}: {error}", link.display()))
}

fn blob(root: &Path, digest: &str) -> Value {
    let hash = digest.trim_start_matches("sha256:");
    let blobs = root.join("docker/registry/v2/blobs/sha256");
    let path = blobs.join(&hash[..2]).join(hash).join("data");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Debian's `docker-registry`, ended when dropped.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(root: &Path) -> Self {
        // Another process may take the port between the look and the start.
        (0..10).find_map(|_| Self::try_start(root)).expect("a registry that stays")
    }

    fn try_start(root: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        fs::create_dir_all(root).unwrap();
        let config = root.join("config.yml");
        let text = format!(
            "version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: '{}'}}}}
http: {{addr: '{address}'}}
",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let mut process = Command::new("docker-registry");
        process.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let mut registry = Self { process: process.spawn().unwrap(), address };
        let end = Instant::now() + Duration::from_mins(1);
        while Instant::now() < end {
            if registry.process.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
