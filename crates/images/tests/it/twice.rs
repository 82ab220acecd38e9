//! The same input gives the same digest.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use crate::bed::{self, EPOCH, Inputs, run};

#[test]
fn two_runs_make_the_same_images() {
    if !bed::can_run(&["strip", "debootstrap", "dpkg-deb"]) {
        return;
    }
    let inputs = Inputs::new();
    let packages = inputs.path("packages").join(bed::here().name());
    fs::create_dir_all(packages.join("var/cache/apt")).unwrap();
    std::os::unix::fs::symlink(bed::packages(), packages.join("var/cache/apt/archives")).unwrap();
    let make = |out: &str, change: &dyn Fn()| {
        change();
        let flag = |name: &str, value: String| format!("--{name}={value}");
        let at = |name: &str| inputs.path(name).display().to_string();
        let mut images = Command::new(env!("CARGO_BIN_EXE_zeropod-images"));
        // What someone commits meanwhile makes other images, as it should.
        images.env("SOURCE_DATE_EPOCH", EPOCH.to_string()).env("ZEROPOD_REVISION", "0123456789ab");
        images.args([
            flag("arch", bed::here().to_string()),
            flag("binaries", at("binaries")),
            flag("shim", at("shim")),
            flag("criu", at("criu")),
            flag("packages", at("packages")),
            flag("out", at(out)),
        ]);
        let said = run(&mut images);
        assert!(said.contains("gzipped") && said.contains("zeropod-manager sha256:"), "{said}");
        files(&inputs.path(out))
    };
    let first = make("first", &|| {});
    // As after a fresh clone: other times, and files in another order.
    let second = make("second", &|| {
        let shim = inputs.path("shim");
        fs::copy(&shim, inputs.path("copy")).unwrap();
        fs::rename(inputs.path("copy"), shim).unwrap();
    });
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (path, content) in &first {
        assert!(second[path] == *content, "{path} differs");
    }
    let names: Vec<_> = first.keys().filter(|path| !path.contains("/blobs/")).collect();
    let arch = bed::here();
    for name in ["zeropod-manager", "zeropod-installer"] {
        for file in
            ["/index.json", "/oci-layout", &format!("-{arch}.tar"), &format!("-{arch}.spdx.json")]
        {
            assert!(names.iter().any(|path| **path == format!("{name}{file}")), "{names:?}");
        }
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}
