//! An image for one architecture, packed into what a registry holds of it.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Error,
    arch::Arch,
    oci::{
        self, Annotations, Blob, CONFIG, Descriptor, History, ImageConfig, MANIFEST, Manifest,
        Platform, RootFs, RunConfig,
    },
    tree::Tree,
};

/// Media type of a statement about an image, in the form of in-toto.
pub const STATEMENT: &str = "application/vnd.in-toto+json";
/// Type of an artifact that holds statements. It is Docker's, which is what
/// scanners look for.
const ATTESTATION: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Media type of nothing, for artifacts.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// An image for one architecture.
#[derive(Debug, Clone)]
pub struct Image {
    /// Name without registry and tag.
    pub name: &'static str,
    /// What it runs on.
    pub arch: Arch,
    /// Program with its first arguments.
    pub entrypoint: Vec<String>,
    /// User and group that it runs as.
    pub user: &'static str,
    /// Labels.
    pub labels: Annotations,
    /// Its files, the lowest layer first, each with what made it.
    pub layers: Vec<(&'static str, Tree)>,
    /// What is stated about it: type of the predicate, and the predicate.
    pub predicates: Vec<(&'static str, Value)>,
}

/// What a registry holds of an [`Image`].
#[derive(Debug, Clone)]
pub struct Packed {
    /// Refers to the manifest.
    pub manifest: Descriptor,
    /// Refers to the manifest of the statements about it.
    pub attestation: Option<Descriptor>,
    /// Digest of the configuration.
    pub config: String,
    /// Digests of the layers, the lowest first.
    pub layers: Vec<String>,
    /// Every blob, each manifest after what it refers to.
    pub blobs: Vec<Blob>,
}

impl Image {
    /// Packs it. The same image at the same `epoch` (seconds since 1970) gives
    /// the same bytes.
    ///
    /// # Errors
    /// When the epoch is no time, or a path is too long for an archive.
    pub fn pack(&self, epoch: u64) -> Result<Packed, Error> {
        let created = time(epoch)?;
        let mut blobs = Vec::new();
        let mut diff_ids = Vec::new();
        let mut history = Vec::new();
        let mut layers = Vec::new();
        for (created_by, tree) in self.layers.iter().filter(|(_, tree)| !tree.is_empty()) {
            let layer = tree.layer(epoch)?;
            diff_ids.push(layer.diff_id);
            history.push(History { created: created.clone(), created_by: (*created_by).into() });
            layers.push(layer.blob.descriptor());
            blobs.push(layer.blob);
        }
        let config = Blob::json(
            CONFIG,
            &ImageConfig {
                created,
                architecture: self.arch.name().into(),
                os: "linux".into(),
                config: RunConfig {
                    user: self.user.into(),
                    env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
                    entrypoint: self.entrypoint.clone(),
                    working_dir: "/".into(),
                    labels: self.labels.clone(),
                },
                rootfs: RootFs { r#type: "layers".into(), diff_ids },
                history,
            },
        )?;
        let manifest = Blob::json(
            MANIFEST,
            &Manifest {
                schema_version: 2,
                media_type: MANIFEST.into(),
                artifact_type: None,
                config: config.descriptor(),
                layers: layers.clone(),
                subject: None,
                annotations: self.labels.clone(),
            },
        )?;
        let config_digest = config.descriptor().digest;
        let subject = manifest.descriptor();
        blobs.extend([config, manifest]);
        let attestation = match &self.predicates[..] {
            [] => None,
            predicates => Some(self.attest(predicates, &subject, &mut blobs)?),
        };
        let platform = Platform { architecture: self.arch.name().into(), os: "linux".into() };
        Ok(Packed {
            manifest: Descriptor { platform: Some(platform), ..subject },
            attestation,
            config: config_digest,
            layers: layers.into_iter().map(|layer| layer.digest).collect(),
            blobs,
        })
    }

    /// A manifest of statements. The index lists it as `BuildKit` would, so that
    /// scanners find it in any registry, and it names its subject, so that
    /// registries list it as a referrer.
    fn attest(
        &self,
        predicates: &[(&str, Value)],
        subject: &Descriptor,
        blobs: &mut Vec<Blob>,
    ) -> Result<Descriptor, Error> {
        let sha256 = subject.digest.trim_start_matches("sha256:");
        let mut layers = Vec::new();
        for (predicate_type, predicate) in predicates {
            let statement = Blob::json(
                STATEMENT,
                &json!({
                    "_type": "https://in-toto.io/Statement/v1",
                    "subject": [{
                        "name": format!("pkg:oci/{}?arch={}", self.name, self.arch),
                        "digest": { "sha256": sha256 },
                    }],
                    "predicateType": predicate_type,
                    "predicate": predicate,
                }),
            )?;
            let kind = ("in-toto.io/predicate-type".into(), (*predicate_type).into());
            layers.push(Descriptor { annotations: [kind].into(), ..statement.descriptor() });
            blobs.push(statement);
        }
        let empty = Blob::new(EMPTY, b"{}".to_vec());
        let manifest = Blob::json(
            MANIFEST,
            &Manifest {
                schema_version: 2,
                media_type: MANIFEST.into(),
                artifact_type: Some(ATTESTATION.into()),
                config: empty.descriptor(),
                layers,
                subject: Some(subject.clone()),
                annotations: Annotations::new(),
            },
        )?;
        let descriptor = Descriptor {
            artifact_type: Some(ATTESTATION.into()),
            annotations: [
                ("vnd.docker.reference.digest".to_owned(), subject.digest.clone()),
                ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
            ]
            .into(),
            // Nothing runs it: engines that look for their platform pass it by.
            platform: Some(Platform { architecture: "unknown".into(), os: "unknown".into() }),
            ..manifest.descriptor()
        };
        blobs.extend([empty, manifest]);
        Ok(descriptor)
    }
}

/// A time by RFC 3339.
pub(crate) fn time(epoch: u64) -> Result<String, Error> {
    i64::try_from(epoch)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map(|time| time.to_string())
        .ok_or_else(|| Error::unusable(oci::EPOCH, format!("{epoch} is no time")))
}
