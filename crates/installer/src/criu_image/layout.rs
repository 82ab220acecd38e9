//! An image in the OCI image layout, a directory with `index.json` and
//! `blobs`.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{
    manifest::{Document, MAX_DEPTH, MAX_JSON, hash_of, no_image},
    unpack::Unpacker,
};
use crate::{Error, files::hex};

/// Puts the files that lie directly in `bin` and `lib` of the image for this
/// machine into `bin` and `lib` of a directory. Later layers win.
///
/// # Errors
/// When the layout is incomplete, a blob is not what its digest says, or
/// there is no image for this machine.
pub(super) fn unpack(layout: &Path, into: &Path) -> Result<(), Error> {
    let image = Image { layout };
    let mut unpacker = Unpacker::new(layout, into)?;
    let index = layout.join("index.json");
    let content = read(&index)?;
    let manifest = image.manifest(&index, &content, 0)?;
    for layer in &manifest.layers {
        unpacker.apply(&image.blob(&layer.digest)?)?;
    }
    Ok(())
}

struct Image<'a> {
    layout: &'a Path,
}

impl Image<'_> {
    /// Finds the manifest for this machine.
    fn manifest(&self, path: &Path, content: &[u8], depth: usize) -> Result<Document, Error> {
        let document = Document::parse(content)
            .map_err(|error| self.error(format!("{}: {error}", path.display())))?;
        if document.manifests.is_empty() {
            return Ok(document);
        }
        let Some(chosen) = document.for_this_machine().filter(|_| depth < MAX_DEPTH) else {
            return self.refuse(no_image());
        };
        let blob = self.blob(&chosen.digest)?;
        self.manifest(&blob, &read(&blob)?, depth + 1)
    }

    /// The file of a blob, once its content has been checked.
    fn blob(&self, digest: &str) -> Result<PathBuf, Error> {
        let Some(hash) = hash_of(digest) else {
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

    fn error(&self, reason: String) -> Error {
        Error::Refused { path: self.layout.to_path_buf(), reason }
    }

    fn refuse<T>(&self, reason: String) -> Result<T, Error> {
        Err(self.error(reason))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut content = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut content).map_err(Error::io("read", path))?;
    Ok(content)
}
