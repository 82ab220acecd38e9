//! Where CRIU comes from, if not from the installer's own image: from files on
//! the node, for who builds their own without a registry at install time, or by
//! way of containerd from a registry.

mod archive;
mod layout;
mod manifest;
mod pull;
mod unpack;

use std::path::{Path, PathBuf};

pub use pull::{kept, pulled};

use crate::Error;

/// The directory with `bin` and `lib` that a reference to a file means: the
/// one it names, or `into` with what was unpacked from an image. `None` if it
/// means an image in a registry.
///
/// # Errors
/// When it cannot be read or is no image for this machine.
pub fn local(reference: &str, into: &Path) -> Result<Option<PathBuf>, Error> {
    let Some((scheme @ ("file" | "oci"), path)) = reference.split_once(':') else {
        return Ok(None);
    };
    let path = Path::new(path);
    if scheme == "oci" || path.join("index.json").exists() {
        layout::unpack(path, into)?;
    } else if path.is_dir() {
        return Ok(Some(path.to_path_buf()));
    } else {
        archive::unpack(path, into)?;
    }
    Ok(Some(into.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use sha2::{Digest as _, Sha256};
    use tar::EntryType;
    use tempfile::TempDir;

    use super::*;
    use crate::files::hex;

    struct Layout {
        dir: TempDir,
    }

    impl Layout {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
            Self { dir }
        }

        fn blob(&self, content: &[u8]) -> String {
            let hash = hex(&Sha256::digest(content));
            fs::write(self.dir.path().join("blobs/sha256").join(&hash), content).unwrap();
            format!("sha256:{hash}")
        }

        /// Writes an index with one image of these layers.
        fn image(&self, layers: &[(&str, Vec<u8>)], architecture: &str) {
            let layers: Vec<_> = layers
                .iter()
                .map(|(kind, content)| serde_json::json!({"mediaType": kind, "digest": self.blob(content)}))
                .collect();
            let manifest = serde_json::json!({"layers": layers}).to_string();
            let index = serde_json::json!({"manifests": [{
                "digest": self.blob(manifest.as_bytes()),
                "platform": {"os": "linux", "architecture": architecture},
            }]});
            fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
        }

        fn unpacked(&self) -> Result<TempDir, String> {
            let into = tempfile::tempdir().unwrap();
            layout::unpack(self.dir.path(), into.path()).map_err(|error| error.to_string())?;
            Ok(into)
        }
    }

    fn here() -> &'static str {
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
    }

    fn layer(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(0o6755);
            let body = if *kind == EntryType::Symlink {
                header.set_link_name(content).unwrap();
                ""
            } else {
                content
            };
            header.set_size(body.len() as u64);
            // Not set_path, which refuses what an attacker would write.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn layers_are_applied_one_after_the_other() {
        use EntryType::{Directory, Regular, Symlink};
        let layout = Layout::new();
        let first = layer(&[
            ("bin/", Directory, ""),
            ("bin/criu", Regular, "old"),
            ("./lib/gone.so", Regular, "x"),
            ("/lib/libnet.so.9.1", Regular, "net"),
            ("lib/libnet.so.9", Symlink, "libnet.so.9.1"),
            ("usr/bin/other", Regular, "x"),
        ]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&layer(&[("bin/criu", Regular, "new"), ("lib/.wh.gone.so", Regular, "")]))
            .unwrap();
        layout.image(&[(TAR, first), (GZIP, gzip.finish().unwrap())], here());
        let into = layout.unpacked().unwrap();
        let at = |path: &str| into.path().join(path);
        assert_eq!(fs::read_to_string(at("bin/criu")).unwrap(), "new");
        assert_eq!(fs::read_to_string(at("lib/libnet.so.9")).unwrap(), "net");
        assert!(!at("lib/gone.so").exists() && !at("usr").exists() && !at("bin/other").exists());
    }

    #[test]
    fn nothing_leads_out_of_the_directory() {
        use EntryType::{Regular, Symlink};
        let layout = Layout::new();
        let evil = layer(&[
            ("bin/../../evil", Regular, "x"),
            ("../bin/evil", Regular, "x"),
            ("lib/up", Symlink, "../../../etc"),
            ("lib/absolute", Symlink, "/etc/passwd"),
            ("lib/..", Regular, "x"),
        ]);
        layout.image(&[(TAR, evil)], here());
        let into = layout.unpacked().unwrap();
        for dir in ["bin", "lib"] {
            assert_eq!(fs::read_dir(into.path().join(dir)).unwrap().count(), 0, "{dir}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let layout = Layout::new();
        layout.image(&[(TAR, Vec::new())], "riscv32");
        assert!(layout.unpacked().unwrap_err().contains("no image for linux/"));
        layout.image(&[(TAR, vec![0x28, 0xb5, 0x2f, 0xfd])], here());
        assert!(layout.unpacked().unwrap_err().contains("use gzip or none"));
        layout.image(&[(TAR, layer(&[("bin/criu", EntryType::Link, "x")]))], here());
        assert!(layout.unpacked().unwrap_err().contains("is of the kind Link"));
        let content = layer(&[("bin/criu", EntryType::Regular, "x")]);
        let blob = layout.blob(&content);
        layout.image(&[(TAR, content)], here());
        let hash = blob.strip_prefix("sha256:").unwrap();
        fs::write(layout.dir.path().join("blobs/sha256").join(hash), "forged").unwrap();
        assert!(layout.unpacked().unwrap_err().contains("is another"));
    }

    /// What `bin/criu` says after unpacking a reference.
    fn criu_of(reference: &str) -> Result<String, String> {
        let into = tempfile::tempdir().unwrap();
        let from = local(reference, into.path()).map_err(|error| error.to_string())?;
        Ok(fs::read_to_string(from.unwrap().join("bin/criu")).unwrap())
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn directories_layouts_and_archives_are_local() {
        let plain = tempfile::tempdir().unwrap();
        fs::create_dir(plain.path().join("bin")).unwrap();
        fs::write(plain.path().join("bin/criu"), "plain").unwrap();
        let layout = Layout::new();
        layout.image(&[(TAR, layer(&[("bin/criu", EntryType::Regular, "layout")]))], here());
        let at = |dir: &TempDir| dir.path().display().to_string();
        assert_eq!(criu_of(&format!("file:{}", at(&plain))).unwrap(), "plain");
        for scheme in ["file", "oci"] {
            assert_eq!(criu_of(&format!("{scheme}:{}", at(&layout.dir))).unwrap(), "layout");
        }

        // As `skopeo copy .. oci-archive:FILE` and `docker save` make them.
        let mut oci = tar::Builder::new(Vec::new());
        oci.append_dir_all("", layout.dir.path()).unwrap();
        let layers = layer(&[("bin/criu", EntryType::Regular, "docker")]);
        let manifest = r#"[{"Config": "c.json", "Layers": ["a/layer.tar"]}]"#.as_bytes();
        let docker = archive(&[("manifest.json", manifest), ("a/layer.tar", &layers)]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&docker).unwrap();
        for (content, expected) in [
            (oci.into_inner().unwrap(), "layout"),
            (docker, "docker"),
            (gzip.finish().unwrap(), "docker"),
        ] {
            let file = plain.path().join("image.tar");
            fs::write(&file, content).unwrap();
            assert_eq!(criu_of(&format!("file:{}", file.display())).unwrap(), expected);
        }
        let into = tempfile::tempdir().unwrap();
        assert!(local("registry.example/criu:v4", into.path()).unwrap().is_none());
    }

    #[test]
    fn archives_that_are_none_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.tar");
        for (content, needle) in [
            (archive(&[("other", b"x")]), "neither index.json nor manifest.json"),
            (archive(&[("manifest.json", b"[]")]), "lists no image"),
            (
                archive(&[("manifest.json", br#"[{"Layers": ["../../etc/passwd"]}]"#)]),
                "leads out of it",
            ),
            (b"nothing of that kind, but long enough".repeat(40), "broken"),
        ] {
            fs::write(&file, content).unwrap();
            let said = criu_of(&format!("file:{}", file.display())).unwrap_err();
            assert!(said.contains(needle), "{said}");
        }
        assert!(criu_of("file:/nowhere/at/all").unwrap_err().contains("cannot open /nowhere"));
    }
}
