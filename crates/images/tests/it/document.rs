//! What the manager's image says about itself.

use serde_json::Value;
use zeropod_images::{
    image::{Image, STATEMENT},
    layout::Layout,
    sbom::{SLSA, SPDX},
};

use crate::bed;

/// Labels and statements tell what is in an image.
pub(crate) fn look_at(image: &Image, layout: &Layout) {
    let packed = &layout.images()[0];
    let statements: Vec<Value> = layout
        .blobs()
        .filter(|blob| blob.media_type == STATEMENT)
        .map(|blob| serde_json::from_slice(&blob.content).unwrap())
        .collect();
    let digest = packed.manifest.digest.trim_start_matches("sha256:");
    for statement in &statements {
        assert_eq!(statement["subject"][0]["digest"]["sha256"], digest);
    }
    let of = |kind: &str| {
        let found = statements.iter().find(|statement| statement["predicateType"] == kind);
        &found.unwrap()["predicate"]
    };
    look_at_sbom(image, of(SPDX));
    look_at_provenance(image, of(SLSA));
    let index: Value = serde_json::from_slice(&layout.index().content).unwrap();
    assert_eq!(index["annotations"]["org.opencontainers.image.title"], image.name);
    assert_eq!(index["annotations"]["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
    assert_eq!(index["manifests"][0]["platform"]["architecture"], bed::here().name());
    let about = &index["manifests"][1]["annotations"]["vnd.docker.reference.digest"];
    assert_eq!(about, packed.manifest.digest.as_str());
}

fn look_at_sbom(image: &Image, document: &Value) {
    let packages = document["packages"].as_array().unwrap();
    let find = |name: &str| packages.iter().find(|package| package["name"] == name);
    let tokio = find("tokio").unwrap();
    let purl = &tokio["externalRefs"][0]["referenceLocator"];
    assert!(purl.as_str().unwrap().starts_with("pkg:cargo/tokio@1."), "{purl}");
    assert_eq!(tokio["licenseDeclared"], "MIT");
    assert!(find(image.name).is_some() && find("zeropod-testkit").is_none());
    let is_manager = image.name == "zeropod-manager";
    for name in ["criu", "libc6", "libnl-3-200", "libnet9"] {
        assert_eq!(find(name).is_some(), is_manager, "{name}");
        if let Some(package) = find(name) {
            assert_eq!(package["checksums"][0]["checksumValue"].as_str().unwrap().len(), 64);
            let (_, base) = &image.layers[0];
            assert!(base.get(&format!("usr/share/doc/{name}/copyright")).is_some(), "{name}");
        }
    }
}

fn look_at_provenance(image: &Image, provenance: &Value) {
    let build = &provenance["buildDefinition"];
    let from = build["resolvedDependencies"].as_array().unwrap();
    assert_eq!(from[0]["digest"]["gitCommit"], "0".repeat(40));
    let has = |part: &str| from.iter().any(|it| it["uri"].as_str().unwrap().contains(part));
    assert_eq!(has("pkg:deb/debian/criu@"), image.name == "zeropod-manager");
    assert_eq!(has("asset:bin/containerd-shim-zeropod-v2"), image.name == "zeropod-installer");
    assert_eq!(provenance["runDetails"]["builder"]["id"], "urn:test");
}
