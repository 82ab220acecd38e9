//! An image in one file: a tar archive of an OCI image layout, or what `docker
//! save` writes.

use std::{
    fs,
    io::{self, Read as _},
    path::{Component, Path},
};

use serde::Deserialize;
use tar::{Archive, EntryType};

use super::{
    layout,
    unpack::{Unpacker, open},
};
use crate::Error;

/// Most bytes of an archive that are looked at.
const MAX_BYTES: u64 = 2 << 30;

/// An entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    layers: Vec<String>,
}

/// Puts CRIU's files out of an archive into a directory.
///
/// # Errors
/// When it is broken, or no image.
pub(super) fn unpack(archive: &Path, into: &Path) -> Result<(), Error> {
    let refuse = |reason: String| Error::Refused { path: archive.to_path_buf(), reason };
    let image =
        tempfile::tempdir().map_err(Error::io("make a directory in", std::env::temp_dir()))?;
    let content = open(archive)?
        .ok_or_else(|| refuse("it is compressed by zstd; use gzip or none".into()))?;
    extract(&mut Archive::new(content.take(MAX_BYTES)), image.path())
        .map_err(|cause| refuse(format!("it is broken: {cause}")))?;
    // docker save writes both since version 25.
    if image.path().join("index.json").exists() {
        return layout::unpack(image.path(), into);
    }
    let manifest = image.path().join("manifest.json");
    let Ok(content) = fs::read(&manifest) else {
        return Err(refuse("there is neither index.json nor manifest.json in it".into()));
    };
    let images: Vec<DockerImage> = serde_json::from_slice(&content)
        .map_err(|error| refuse(format!("manifest.json: {error}")))?;
    let Some(first) = images.first() else {
        return Err(refuse("its manifest.json lists no image".into()));
    };
    let mut unpacker = Unpacker::new(archive, into)?;
    for layer in &first.layers {
        let layer = Path::new(layer);
        if !is_inside(layer) {
            return Err(refuse(format!("its layer {} leads out of it", layer.display())));
        }
        unpacker.apply(&image.path().join(layer))?;
    }
    Ok(())
}

/// Files only: nobody needs links in an archive of an image.
fn extract(archive: &mut Archive<impl io::Read>, into: &Path) -> io::Result<()> {
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) || !is_inside(&path) {
            continue;
        }
        let path = into.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        io::copy(&mut entry, &mut fs::File::create_new(path)?)?;
    }
    Ok(())
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|it| matches!(it, Component::Normal(_) | Component::CurDir))
}
