//! An image from a registry, pulled by the node's own containerd: with its
//! mirrors and credentials, and removed by the kubelet's garbage collection
//! like any other image (I6). The unpacked files are kept, so that a registry
//! that is away later is of no concern.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    layout,
    manifest::{Document, MAX_DEPTH, MAX_JSON, hash_of, no_image},
};
use crate::{Error, containerd::Containerd};

/// Says which image the files are from.
const REFERENCE: &str = "reference";

/// The directory with `bin` and `lib` of an image that was pulled before.
pub fn kept(reference: &str, store: &Path) -> Option<PathBuf> {
    let known = fs::read_to_string(store.join(REFERENCE)).ok()?;
    (known == reference).then(|| store.to_path_buf())
}

/// Pulls an image and keeps what CRIU needs of it in `store`, until another
/// one is pulled.
///
/// # Errors
/// When it cannot be pulled within `limit`, or is no image for this machine.
pub async fn pulled(
    reference: &str,
    socket: &Path,
    store: &Path,
    limit: Duration,
) -> Result<PathBuf, Error> {
    let containerd = Containerd::connect_for(socket, limit).await?;
    let digest = containerd.pull(reference).await?;
    let blobs =
        tempfile::tempdir().map_err(Error::io("make a directory in", std::env::temp_dir()))?;
    copy(&containerd, reference, &digest, blobs.path()).await?;

    let draft = store.with_extension("draft");
    for dir in [&draft, &store.to_path_buf()] {
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(Error::io("remove", dir))?;
        }
    }
    fs::create_dir_all(&draft).map_err(Error::io("create", &draft))?;
    layout::unpack(blobs.path(), &draft)?;
    fs::write(draft.join(REFERENCE), reference).map_err(Error::io("write", &draft))?;
    fs::rename(&draft, store).map_err(Error::io("rename", &draft))?;
    Ok(store.to_path_buf())
}

/// Copies the blobs of the image for this machine into an OCI layout, whose
/// reader checks them.
async fn copy(
    containerd: &Containerd,
    reference: &str,
    digest: &str,
    layout: &Path,
) -> Result<(), Error> {
    let refuse = |reason: String| Error::Refused { path: reference.into(), reason };
    let dir = layout.join("blobs/sha256");
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    let path_of = |digest: &str| match hash_of(digest) {
        Some(hash) => Ok(dir.join(hash)),
        None => Err(refuse(format!("{digest:?} is no SHA-256 digest"))),
    };
    let mut next = digest.to_owned();
    let manifest = 'search: {
        for _ in 0..MAX_DEPTH {
            let path = path_of(&next)?;
            save(containerd, &next, &path, MAX_JSON).await?;
            let content = fs::read(&path).map_err(Error::io("read", &path))?;
            let document =
                Document::parse(&content).map_err(|error| refuse(format!("{next}: {error}")))?;
            if document.manifests.is_empty() {
                break 'search document;
            }
            let Some(chosen) = document.for_this_machine() else { return Err(refuse(no_image())) };
            next.clone_from(&chosen.digest);
        }
        return Err(refuse(no_image()));
    };
    for layer in &manifest.layers {
        save(containerd, &layer.digest, &path_of(&layer.digest)?, u64::MAX).await?;
    }
    let index = serde_json::json!({"manifests": [{"digest": digest}]}).to_string();
    fs::write(layout.join("index.json"), index).map_err(Error::io("write", layout))
}

async fn save(containerd: &Containerd, digest: &str, path: &Path, limit: u64) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    containerd.read(digest, limit, &mut file).await
}
