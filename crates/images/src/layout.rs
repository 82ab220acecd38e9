//! An image for several architectures, as a directory in the OCI image layout
//! and as archives.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::json;

use crate::{
    Error,
    error::write,
    image::Packed,
    oci::{Annotations, Blob, INDEX, Index},
};

/// An image for several architectures, with all its blobs.
#[derive(Debug, Clone)]
pub struct Layout {
    name: String,
    tag: String,
    images: Vec<Packed>,
    index: Blob,
}

impl Layout {
    /// Puts images for different architectures together.
    ///
    /// # Errors
    /// Never in practice.
    pub fn new(
        name: &str,
        tag: &str,
        images: Vec<Packed>,
        annotations: Annotations,
    ) -> Result<Self, Error> {
        let manifests = images.iter().map(|image| &image.manifest);
        let attestations = images.iter().filter_map(|image| image.attestation.as_ref());
        let manifests = manifests.chain(attestations).cloned().collect();
        let index = Blob::json(INDEX, &Index::new(manifests, annotations))?;
        Ok(Self { name: name.into(), tag: tag.into(), images, index })
    }

    /// The image index: what a tag names.
    pub fn index(&self) -> &Blob {
        &self.index
    }

    /// The images in it.
    pub fn images(&self) -> &[Packed] {
        &self.images
    }

    /// All blobs but the index, each manifest after what it refers to.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.images.iter().flat_map(|image| &image.blobs)
    }

    /// Writes the layout into a directory, in the place of what was there.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(Error::io("remove", dir))?;
        }
        for (path, content) in self.files(&self.index)? {
            write(&dir.join(path), &content)?;
        }
        Ok(())
    }

    /// One image as an archive that both `docker load` and everything that
    /// reads the OCI image layout take.
    ///
    /// # Errors
    /// Never in practice.
    pub fn archive(&self, image: &Packed) -> Result<Vec<u8>, Error> {
        let index = Blob::json(INDEX, &Index::new(vec![image.manifest.clone()], [].into()))?;
        let alone = Self { images: vec![image.clone()], index, ..self.clone() };
        let mut files = alone.files(&alone.index)?;
        let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
        let docker = json!([{
            "Config": path(&image.config),
            "RepoTags": [format!("{}:{}", self.name, self.tag)],
            "Layers": image.layers.iter().map(|layer| path(layer)).collect::<Vec<_>>(),
        }]);
        let docker = serde_json::to_vec(&docker).map_err(Error::json("manifest.json"))?;
        files.insert("manifest.json".into(), docker);
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            builder
                .append_data(&mut header, path, content.as_slice())
                .map_err(Error::io("archive", self.name.as_str()))?;
        }
        builder.into_inner().map_err(Error::io("archive", self.name.as_str()))
    }

    /// The files of the layout by path.
    fn files(&self, index: &Blob) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let mut named = index.descriptor();
        // The first is the specification's; by the second containerd names what it imports, and
        // by such a name a kubelet asks it for an image without a registry.
        named.annotations = [
            ("org.opencontainers.image.ref.name".to_owned(), self.tag.clone()),
            (
                "io.containerd.image.name".to_owned(),
                format!("docker.io/library/{}:{}", self.name, self.tag),
            ),
        ]
        .into();
        let top = Blob::json(INDEX, &Index::new(vec![named], [].into()))?;
        let mut files = BTreeMap::from([
            ("index.json".to_owned(), top.content),
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ]);
        for blob in self.blobs().chain([index]) {
            let digest = blob.descriptor().digest.replace(':', "/");
            files.insert(format!("blobs/{digest}"), blob.content.clone());
        }
        Ok(files)
    }
}
