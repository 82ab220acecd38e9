//! Indexes and manifests of images, of OCI's and of Docker's making.

use serde::Deserialize;

/// Most bytes of an index or manifest.
pub(super) const MAX_JSON: u64 = 4 << 20;
/// How deep an index may lie in another.
pub(super) const MAX_DEPTH: usize = 4;

/// An index or a manifest.
#[derive(Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
pub(super) struct Descriptor {
    pub(super) digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Document {
    pub(super) fn parse(content: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(content)
    }

    /// The entry of an index that this machine can run.
    pub(super) fn for_this_machine(&self) -> Option<&Descriptor> {
        let fits = |it: &Platform| it.os == "linux" && it.architecture == architecture();
        let described = self.manifests.iter().find(|it| it.platform.as_ref().is_some_and(fits));
        described.or_else(|| self.manifests.iter().find(|it| it.platform.is_none()))
    }
}

pub(super) fn no_image() -> String {
    format!("it has no image for linux/{}", architecture())
}

/// The digits of a digest, which are safe as a file name.
pub(super) fn hash_of(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|hash| {
        hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
