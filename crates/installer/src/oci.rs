//! CRIU out of an image in the OCI image layout, a directory with `index.json`
//! and `blobs`: for who builds their own, without a registry at install time.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};

use crate::{Error, files::hex};

/// Most bytes that are unpacked; CRIU and its libraries are a few MiB.
const MAX_BYTES: u64 = 1 << 30;
/// Most bytes of an index or manifest.
const MAX_JSON: u64 = 4 << 20;
/// How deep an index may lie in another.
const MAX_DEPTH: usize = 4;

/// Puts the files that lie directly in `bin` and `lib` of the image for this
/// machine into `bin` and `lib` of a directory. Later layers win.
///
/// # Errors
/// When the layout is incomplete, a blob is not what its digest says, or
/// there is no image for this machine.
pub fn unpack(layout: &Path, into: &Path) -> Result<(), Error> {
    let image = Image { layout };
    for dir in ["bin", "lib"] {
        let dir = into.join(dir);
        fs::create_dir_all(&dir).map_err(Error::io("create", dir))?;
    }
    let index = layout.join("index.json");
    let content = read(&index)?;
    let manifest = image.manifest(&index, &content, 0)?;
    let mut budget = MAX_BYTES;
    for layer in &manifest.layers {
        let blob = image.blob(&layer.digest)?;
        let file = File::open(&blob).map_err(Error::io("open", &blob))?;
        // Docker's types end in `.tar.gzip`, OCI's in `.tar+gzip`.
        let reader: Box<dyn Read> = match layer.media_type.rsplit(['.', '+']).next() {
            Some("gzip") => Box::new(MultiGzDecoder::new(io::BufReader::new(file))),
            Some("tar") => Box::new(file),
            _ => {
                let kind = &layer.media_type;
                return image
                    .refuse(format!("its layers are of the type {kind:?}; use gzip or none"));
            }
        };
        image.unpack_layer(reader, into, &mut budget)?;
    }
    Ok(())
}

struct Image<'a> {
    layout: &'a Path,
}

/// An index or a manifest.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Image<'_> {
    /// Finds the manifest for this machine.
    fn manifest(&self, path: &Path, content: &[u8], depth: usize) -> Result<Document, Error> {
        let document: Document = serde_json::from_slice(content)
            .map_err(|error| self.error(format!("{}: {error}", path.display())))?;
        if document.manifests.is_empty() {
            return Ok(document);
        }
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let fits =
            |platform: &Platform| platform.os == "linux" && platform.architecture == architecture;
        let chosen = document
            .manifests
            .iter()
            .find(|manifest| manifest.platform.as_ref().is_some_and(fits))
            .or_else(|| document.manifests.iter().find(|manifest| manifest.platform.is_none()));
        let Some(chosen) = chosen.filter(|_| depth < MAX_DEPTH) else {
            return self.refuse(format!("it has no image for linux/{architecture}"));
        };
        let blob = self.blob(&chosen.digest)?;
        self.manifest(&blob, &read(&blob)?, depth + 1)
    }

    /// The file of a blob, once its content has been checked.
    fn blob(&self, digest: &str) -> Result<PathBuf, Error> {
        let hash = digest.strip_prefix("sha256:").filter(|hash| {
            hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        let Some(hash) = hash else {
            return self.refuse(format!("{digest:?} is no SHA-256 digest"));
        };
        let path = self.layout.join("blobs/sha256").join(hash);
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", &path))? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        if hex(&hasher.finalize()) == hash {
            Ok(path)
        } else {
            self.refuse(format!("the content of blob {hash} is another"))
        }
    }

    fn unpack_layer(&self, layer: impl Read, into: &Path, budget: &mut u64) -> Result<(), Error> {
        let mut archive = Archive::new(layer);
        let broken = |error: io::Error| self.error(format!("a layer is broken: {error}"));
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = entry.path().map_err(broken)?.into_owned();
            let Some(place) = place_of(&path) else { continue };
            let size = entry.size();
            let Some(rest) = budget.checked_sub(size) else {
                return self.refuse("it is larger than 1 GiB".into());
            };
            *budget = rest;
            put(&mut entry, into, &place).map_err(broken)?;
        }
        Ok(())
    }

    fn error(&self, reason: String) -> Error {
        Error::Refused { path: self.layout.to_path_buf(), reason }
    }

    fn refuse<T>(&self, reason: String) -> Result<T, Error> {
        Err(self.error(reason))
    }
}

/// `bin/NAME` or `lib/NAME`; `None` for everything else in a layer, also for
/// what would lead out of the directory.
fn place_of(path: &Path) -> Option<PathBuf> {
    let mut names =
        path.components().filter(|it| !matches!(it, Component::CurDir | Component::RootDir));
    match (names.next()?, names.next()?, names.next()) {
        (Component::Normal(dir), Component::Normal(name), None) if dir == "bin" || dir == "lib" => {
            Some(Path::new(dir).join(name))
        }
        _ => None,
    }
}

fn put(entry: &mut Entry<'_, impl Read>, into: &Path, place: &Path) -> io::Result<()> {
    let path = into.join(place);
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(removed) = name.strip_prefix(".wh.") {
        return remove(&path.with_file_name(removed));
    }
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => {
            remove(&path)?;
            let mode = entry.header().mode()? & 0o755;
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(mode).open(&path)?;
            io::copy(entry, &mut file).map(|_| ())
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.unwrap_or_default().into_owned();
            // To a neighbour, as libraries have them; anything else means
            // another file on the host.
            if target.components().count() != 1 || target.file_name().is_none() {
                return Ok(());
            }
            remove(&path)?;
            symlink(target, &path)
        }
        EntryType::Directory => Ok(()),
        kind => Err(io::Error::other(format!("{} is of the kind {kind:?}", place.display()))),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut content = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut content).map_err(Error::io("read", path))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Layout {
        dir: tempfile::TempDir,
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

        fn unpacked(&self) -> Result<tempfile::TempDir, String> {
            let into = tempfile::tempdir().unwrap();
            unpack(self.dir.path(), into.path()).map_err(|error| error.to_string())?;
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
        layout.image(&[("application/vnd.oci.image.layer.v1.tar+zstd", Vec::new())], here());
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
}
