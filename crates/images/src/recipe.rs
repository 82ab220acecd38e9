//! What is in the two images.
//!
//! Both run as root. The manager has to: `CAP_SYS_ADMIN`, `CAP_NET_ADMIN` and
//! `CAP_SYS_PTRACE`, which it needs to enter the network namespaces of pods and
//! to attach programs there, reach a process that is not root only as ambient
//! capabilities, which Kubernetes cannot give (KEP-2763), or as capabilities of
//! the file, which `allowPrivilegeEscalation: false` takes away. The installer
//! writes files of root into directories of root. Which capabilities they keep
//! is up to the manifests in `deploy/`.

use serde_json::json;

use crate::{
    Error,
    debian::Criu,
    image::Image,
    oci::Annotations,
    programs::Program,
    sbom::{Origin, Package, SLSA, SPDX, provenance, spdx},
    source,
    tree::{Node, Tree},
};

/// What all images of a release have in common.
#[derive(Debug, Clone)]
pub struct Release {
    /// Version, and tag without its `v`.
    pub version: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Time that everything bears, in seconds since 1970.
    pub epoch: u64,
}

impl Release {
    /// The manager's image: the program, and CRIU with its libraries for lazy
    /// pages.
    ///
    /// # Errors
    /// When the time of the release is none.
    pub fn manager(
        &self,
        program: Program,
        crates: &[Package],
        criu: Option<Criu>,
    ) -> Result<Image, Error> {
        let criu = criu.unwrap_or_default();
        let mut base = base();
        base.extend(criu.tree);
        let packages = [crates, &criu.packages].concat();
        let title = "The zeropod node daemon";
        self.image(title, program, &packages, &[], ("Debian's CRIU", base))
    }

    /// The installer's image: the program, and the shim and CRIU that it puts
    /// on the host, as it wants them below `/assets`.
    ///
    /// # Errors
    /// When the time of the release is none.
    pub fn installer(
        &self,
        program: Program,
        crates: &[Package],
        assets: &Tree,
    ) -> Result<Image, Error> {
        let mut base = base();
        for (path, node) in assets.iter() {
            base.insert(&format!("assets/{path}"), node.clone());
        }
        let inputs: Vec<_> = source::digests(assets)
            .into_iter()
            .map(|(path, digest)| (format!("urn:zeropod:asset:{path}"), digest))
            .collect();
        let title = "Puts the zeropod runtime on a node and configures containerd";
        self.image(title, program, crates, &inputs, ("Shim and CRIU", base))
    }

    fn image(
        &self,
        title: &str,
        program: Program,
        packages: &[Package],
        inputs: &[(String, String)],
        base: (&'static str, Tree),
    ) -> Result<Image, Error> {
        let Program { name, arch, content, .. } = program;
        let mut origin = self.origin.clone();
        origin.inputs.extend_from_slice(inputs);
        let settings =
            json!({ "image": name, "platform": format!("linux/{arch}"), "version": self.version });
        let predicates = vec![
            (SPDX, spdx(&format!("{name}-{arch}"), &self.version, packages, self.epoch)?),
            (SLSA, provenance(&origin, &settings, packages)),
        ];
        let mut own = Tree::default();
        own.insert(name, Node::program(content));
        Ok(Image {
            name,
            arch,
            entrypoint: vec![format!("/{name}")],
            user: "0:0",
            labels: self.labels(name, title)?,
            // The program last: it changes most often, and the rest need not be pulled again.
            layers: vec![base, ("The program", own)],
            predicates,
        })
    }

    /// Labels of an image, and annotations of its index.
    ///
    /// # Errors
    /// When the time of the release is none.
    pub fn labels(&self, name: &str, title: &str) -> Result<Annotations, Error> {
        let label =
            |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
        let mut labels = Annotations::from([
            label("title", name),
            label("description", title),
            label("version", &self.version),
            label("revision", &self.origin.revision),
            label("created", &crate::image::time(self.epoch)?),
            label("licenses", "Apache-2.0"),
        ]);
        labels.extend(self.origin.source.iter().map(|source| label("source", source)));
        Ok(labels)
    }
}

/// Who is root, for programs that ask. No certificate authorities: the only
/// TLS peers are the API server and other nodes, whose authorities are mounted.
fn base() -> Tree {
    let mut tree = Tree::default();
    tree.insert("etc/passwd", Node::data("root:x:0:0:root:/:/sbin/nologin\n"));
    tree.insert("etc/group", Node::data("root:x:0:\n"));
    tree
}
