//! What tests of `deploy/` share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kube::api::DynamicObject;
use serde_json::{Value, json};
use zeropod_testkit::kube::{kustomize, parse_manifests};

/// The directory itself.
pub(crate) fn deploy() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy")).canonicalize().unwrap()
}

/// The objects of a directory in it.
pub(crate) fn overlay(name: &str) -> Vec<DynamicObject> {
    built(&deploy().join(name))
}

/// The objects of a kustomization of the user's own.
pub(crate) fn customized(
    resource: &str,
    components: &[&str],
    images: &Value,
) -> Vec<DynamicObject> {
    let dir = tempfile::tempdir().unwrap();
    // Kustomize takes no absolute paths.
    let up = "../".repeat(dir.path().canonicalize().unwrap().components().count() - 1);
    let path =
        |name: &&str| format!("{up}{}", deploy().join(name).strip_prefix("/").unwrap().display());
    let components: Vec<_> = components.iter().map(path).collect();
    let kustomization =
        json!({"resources": [path(&resource)], "components": components, "images": images});
    fs::write(dir.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    built(dir.path())
}

fn built(dir: &Path) -> Vec<DynamicObject> {
    parse_manifests(&kustomize(dir).unwrap()).unwrap()
}
