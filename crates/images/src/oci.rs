//! The documents of the OCI image specification, as far as images are made
//! here. The types of the crates for it keep annotations in hash maps, so that
//! each run would write other bytes; these are sorted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Media type of an image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Annotations and labels.
pub type Annotations = BTreeMap<String, String>;

/// Content with its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Media type.
    pub media_type: &'static str,
    /// The content.
    pub content: Vec<u8>,
}

impl Blob {
    /// Content of a type.
    pub fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        Self { media_type, content }
    }

    /// A document as JSON.
    ///
    /// # Errors
    /// Never for the documents of this crate.
    pub fn json(media_type: &'static str, document: &impl Serialize) -> Result<Self, Error> {
        let content = serde_json::to_vec(document).map_err(Error::json(media_type))?;
        Ok(Self::new(media_type, content))
    }

    /// What refers to it.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.to_owned(),
            digest: digest(&self.content),
            size: self.content.len() as u64,
            ..Descriptor::default()
        }
    }
}

/// `sha256:` and the digest in hex.
pub fn digest(content: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(content) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Refers to a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Type of the blob.
    #[serde(default)]
    pub media_type: String,
    /// Type of the artifact, if the blob is the manifest of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Digest of the blob.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Free text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Annotations,
    /// What the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Architecture by Go's names.
    pub architecture: String,
    /// Operating system by Go's names.
    pub os: String,
}

/// An image index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`INDEX`].
    #[serde(default)]
    pub media_type: String,
    /// What it holds.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// Free text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Annotations,
}

impl Index {
    /// An index of some manifests.
    pub fn new(manifests: Vec<Descriptor>, annotations: Annotations) -> Self {
        Self { schema_version: 2, media_type: INDEX.to_owned(), manifests, annotations }
    }
}

/// An image manifest, also of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST`].
    #[serde(default)]
    pub media_type: String,
    /// Type of the artifact, if it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// What an artifact is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Annotations,
}

/// Configuration of an image.
#[derive(Debug, Clone, Serialize)]
pub struct ImageConfig {
    /// When it was made, by RFC 3339.
    pub created: String,
    /// Architecture by Go's names.
    pub architecture: String,
    /// Operating system by Go's names.
    pub os: String,
    /// How to run it.
    pub config: RunConfig,
    /// Its layers.
    pub rootfs: RootFs,
    /// How each layer came to be.
    pub history: Vec<History>,
}

/// How to run an image.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User and group.
    pub user: String,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Directory that it starts in.
    pub working_dir: String,
    /// Labels.
    pub labels: Annotations,
}

/// Layers of an image, before they were compressed.
#[derive(Debug, Clone, Serialize)]
pub struct RootFs {
    /// Always `layers`.
    pub r#type: String,
    /// Digests, the lowest layer first.
    pub diff_ids: Vec<String>,
}

/// How a layer came to be.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    /// When, by RFC 3339.
    pub created: String,
    /// By whom.
    pub created_by: String,
}

/// Environment variable with the time that everything in an image bears, in
/// seconds since 1970: <https://reproducible-builds.org/specs/source-date-epoch/>.
pub const EPOCH: &str = "SOURCE_DATE_EPOCH";
