//! What registries show of each package, and what is in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
};

#[test]
fn published_crates_introduce_themselves() {
    let mut published = 0;
    for dir in crates() {
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        let readme = fs::read_to_string(dir.join("README.md")).unwrap();
        assert!(readme.lines().count() > 3, "{}: README", dir.display());
        if manifest.lines().any(|line| line == "publish = false") {
            continue;
        }
        published += 1;
        for field in ["description", "license", "keywords", "categories", "documentation", "readme"]
        {
            let has = manifest.lines().any(|line| {
                line.strip_prefix(field).is_some_and(|rest| rest.starts_with([' ', '.']))
            });
            assert!(has, "{}: {field}", dir.display());
        }
        assert!(manifest.contains("[package.metadata.docs.rs]"), "{}: docs.rs", dir.display());
        // The example of the README compiles.
        let library = fs::read_to_string(dir.join("src/lib.rs")).unwrap_or_default();
        let tested = library.contains("include_str!(\"../README.md\")");
        assert!(tested || !readme.contains("```rust"), "{}: README", dir.display());
    }
    assert!(published > 10, "{published}");
}

/// A package is made of its own directory only.
#[test]
fn packages_include_nothing_from_beside_them() {
    for dir in crates() {
        for path in sources(&dir.join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            // Tests are not run from packages.
            let shipped = text.split("#[cfg(test)]").next().unwrap();
            let depth = path.strip_prefix(&dir).unwrap().components().count() - 1;
            for line in shipped.lines().filter(|line| line.contains("include_")) {
                assert!(line.matches("../").count() <= depth, "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn the_loader_brings_its_objects() {
    let dir = root().join("crates/ebpf-loader/src");
    for object in ["redirector.o", "connections.o"] {
        assert!(fs::metadata(dir.join(object)).unwrap().len() > 1000, "{object}");
    }
}

fn crates() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("crates")).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|dir| dir.join("Cargo.toml").exists())
        .collect()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
