//! Pushing images to a registry, and pulling what goes into them.

use std::{env, net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    Error,
    arch::Arch,
    error::read,
    layout::Layout,
    oci::{Annotations, Blob, Descriptor, INDEX, Index, MANIFEST},
    tree::Tree,
    unpack::{Blobs, resolve},
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(20);
/// Longest silence within an answer.
const READ: Duration = Duration::from_mins(2);

/// What is accepted in place of an image manifest, besides one.
const MANIFESTS: [&str; 4] = [
    INDEX,
    MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A repository of a registry.
pub struct Repository {
    runtime: Runtime,
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Repository {
    /// Makes ready for a reference, `registry/repository:tag`. Registries on
    /// loopback are talked to without TLS, as by Docker. Who is logged in is
    /// read from `config.json` of `docker login`.
    ///
    /// # Errors
    /// When it is no reference, or the login cannot be read.
    pub fn open(reference: &str) -> Result<Self, Error> {
        let parsed: Reference = reference
            .parse()
            .map_err(|error| Error::unusable(reference, format!("it is no reference: {error}")))?;
        // Fails when one is set, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = parsed.resolve_registry();
        let plain = if is_loopback(registry) { vec![registry.to_owned()] } else { Vec::new() };
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(READ),
            ..ClientConfig::default()
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start", "the async runtime"))?;
        let auth = login(registry)?;
        Ok(Self { runtime, client, reference: parsed, auth })
    }

    /// Pushes an image with everything about it, what it refers to first, so
    /// that the tag never names something that is not there.
    ///
    /// # Errors
    /// When the registry refuses or is not there.
    pub fn push(&self, layout: &Layout) -> Result<(), Error> {
        self.authenticate(RegistryOperation::Push)?;
        for blob in layout.blobs() {
            self.push_blob(blob)?;
        }
        self.push_manifest(&self.reference, layout.index())?;
        for image in layout.images() {
            if let Some(attestation) = &image.attestation {
                self.push_referrer(&image.manifest.digest, attestation)?;
            }
        }
        Ok(())
    }

    /// The files of the image for an architecture.
    ///
    /// # Errors
    /// When it cannot be pulled or is broken.
    pub fn pull(&self, arch: Arch) -> Result<Tree, Error> {
        self.authenticate(RegistryOperation::Pull)?;
        let content = self.manifest_of(&self.reference)?;
        resolve(self, &content, arch, 0)
    }

    fn authenticate(&self, operation: RegistryOperation) -> Result<(), Error> {
        let authenticated = self.client.auth(&self.reference, &self.auth, operation);
        let registry = self.reference.resolve_registry();
        self.runtime.block_on(async {
            authenticated.await.map_err(self.error("log in for"))?;
            self.client.store_auth_if_needed(registry, &self.auth).await;
            Ok(())
        })
    }

    fn push_blob(&self, blob: &Blob) -> Result<(), Error> {
        let digest = blob.descriptor().digest;
        if blob.media_type == MANIFEST {
            return self.push_manifest(&self.reference.clone_with_digest(digest), blob);
        }
        self.runtime.block_on(async {
            let exists = self.client.blob_exists(&self.reference, &digest).await;
            if exists.map_err(self.error("look for a blob of"))? {
                return Ok(());
            }
            let content = blob.content.clone();
            let pushed = self.client.push_blob(&self.reference, content, &digest).await;
            pushed.map(drop).map_err(self.error("push a blob of"))
        })
    }

    fn push_manifest(&self, to: &Reference, blob: &Blob) -> Result<(), Error> {
        let media_type = blob
            .media_type
            .parse()
            .map_err(|_| Error::unusable(blob.media_type, "it is no media type"))?;
        let pushed = self.client.push_manifest_raw(to, blob.content.clone(), media_type);
        self.runtime.block_on(pushed).map(drop).map_err(self.error("push a manifest of"))
    }

    /// Makes a manifest findable by its subject, where the registry has not
    /// done so by itself: by the tag that the distribution specification names
    /// for registries before version 1.1.
    fn push_referrer(&self, subject: &str, referrer: &Descriptor) -> Result<(), Error> {
        let image = self.reference.clone_with_digest(subject.to_owned());
        let known = self.runtime.block_on(self.client.pull_referrers(&image, None));
        let known = known.map_err(self.error("list the referrers of"))?;
        if known.manifests.iter().any(|manifest| manifest.digest == referrer.digest) {
            return Ok(());
        }
        // The annotations and the platform are for the index of the image.
        let listed =
            Descriptor { annotations: Annotations::new(), platform: None, ..referrer.clone() };
        let index = Blob::json(INDEX, &Index::new(vec![listed], Annotations::new()))?;
        let tag = Reference::with_tag(
            self.reference.registry().to_owned(),
            self.reference.repository().to_owned(),
            subject.replace(':', "-"),
        );
        self.push_manifest(&tag, &index)
    }

    fn manifest_of(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let pulled = self.client.pull_manifest_raw(reference, &self.auth, &MANIFESTS);
        let (content, _) = self.runtime.block_on(pulled).map_err(self.error("pull"))?;
        Ok(content.to_vec())
    }

    fn error(&self, action: &'static str) -> impl FnOnce(OciDistributionError) -> Error {
        let reference = self.reference.whole();
        move |source| Error::Registry { action, reference, source: Box::new(source) }
    }
}

impl Blobs for Repository {
    fn name(&self) -> String {
        self.reference.whole()
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        let pulled = self.client.pull_blob(&self.reference, digest, &mut content);
        self.runtime.block_on(pulled).map_err(self.error("pull a blob of"))?;
        Ok(content)
    }

    fn manifest(&self, digest: &str) -> Result<Vec<u8>, Error> {
        self.manifest_of(&self.reference.clone_with_digest(digest.to_owned()))
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Who is logged in, from Docker's file.
fn login(registry: &str) -> Result<RegistryAuth, Error> {
    let dir = env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".docker")));
    let Some(path) = dir.map(|dir| dir.join("config.json")).filter(|path| path.exists()) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let what = path.display().to_string();
    let config: Value = serde_json::from_slice(&read(&path)?).map_err(Error::json(&what))?;
    login_in(&config, registry).map_err(|reason| Error::unusable(what, reason))
}

fn login_in(config: &Value, registry: &str) -> Result<RegistryAuth, String> {
    if config["credHelpers"][registry].is_string() {
        return Err(format!(
            "the login for {registry} is with a credential helper; only those in the file are read"
        ));
    }
    let Some(auth) = config["auths"][registry]["auth"].as_str() else {
        return Ok(RegistryAuth::Anonymous);
    };
    STANDARD
        .decode(auth)
        .ok()
        .and_then(|auth| String::from_utf8(auth).ok())
        .and_then(|auth| {
            auth.split_once(':')
                .map(|(name, password)| RegistryAuth::Basic(name.to_owned(), password.to_owned()))
        })
        .ok_or_else(|| format!("the login for {registry} is not base64 of name:password"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_loopback_goes_without_tls() {
        for (registry, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost", true),
            ("registry.example", false),
            ("localhost.example:5000", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(registry), plain, "{registry}");
        }
    }

    #[test]
    fn logins_are_those_of_docker() {
        let config = json!({
            "auths": { "a.example": { "auth": "bmFtZTpwYXNzOndvcmQ=" }, "b.example": { "auth": "!" } },
            "credHelpers": { "c.example": "helper" },
        });
        let basic = RegistryAuth::Basic("name".into(), "pass:word".into());
        assert_eq!(login_in(&config, "a.example"), Ok(basic));
        assert!(login_in(&config, "b.example").unwrap_err().contains("base64"));
        assert!(login_in(&config, "c.example").unwrap_err().contains("helper"));
        assert_eq!(login_in(&config, "d.example"), Ok(RegistryAuth::Anonymous));
    }
}
