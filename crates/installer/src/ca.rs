//! The certificate authority of the node API: one Secret for all nodes, made
//! by whichever installer comes first, and handed to the manager as files.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};

use crate::{Error, host::HostRoot};

/// Name of the Secret.
const NAME: &str = "ca-cert";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// A certificate authority, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

/// Gets the authority from the Secret in the client's namespace, or makes it.
///
/// # Errors
/// Whatever keeps it from being got or made (I1); then there is none.
pub async fn get_or_create(client: &Client) -> Result<Authority, Error> {
    let namespace = client.default_namespace().to_owned();
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let failed = |reason: String| Error::Authority { namespace: namespace.clone(), reason };
    if let Some(secret) = get(&secrets).await.map_err(failed)? {
        return read(&secret).map_err(failed);
    }
    let authority = generate().map_err(|error| failed(error.to_string()))?;
    let (params, secret) = (PostParams::default(), secret(&authority));
    match within_deadline(secrets.create(&params, &secret)).await {
        Ok(_) => Ok(authority),
        // Another node was quicker; its authority is everyone's.
        Err(Refused { code: 409, .. }) => match get(&secrets).await.map_err(failed)? {
            Some(secret) => read(&secret).map_err(failed),
            None => Err(failed("it came and went while it was being made".into())),
        },
        Err(refused) => Err(failed(refused.reason)),
    }
}

/// Writes both files for the manager, readable by their owner only.
///
/// # Errors
/// When a file cannot be written.
pub fn write(authority: &Authority, dir: &Path) -> Result<(), Error> {
    let here = HostRoot::new("/");
    here.replace(&dir.join("ca.crt"), &mut authority.certificate.as_bytes(), 0o600)?;
    here.replace(&dir.join("ca.key"), &mut authority.key.as_bytes(), 0o600)
}

async fn get(secrets: &Api<Secret>) -> Result<Option<Secret>, String> {
    within_deadline(secrets.get_opt(NAME)).await.map_err(|refused| refused.reason)
}

/// An answer that is none.
struct Refused {
    /// HTTP status; 0 without one.
    code: u16,
    reason: String,
}

async fn within_deadline<T>(
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Refused> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => {
            Err(Refused { code: status.code, reason: status.message.clone() })
        }
        Ok(Err(error)) => Err(Refused { code: 0, reason: error.to_string() }),
        Err(_) => Err(Refused { code: 0, reason: format!("no answer in {ANSWER:?}") }),
    }
}

fn read(secret: &Secret) -> Result<Authority, String> {
    let text = |key: &str, kind: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.filter(|text| text.contains(&format!("-----BEGIN {kind}-----")))
            .ok_or_else(|| format!("{key} of the Secret {NAME} is no PEM {kind}"))
    };
    Ok(Authority { certificate: text(CERTIFICATE, "CERTIFICATE")?, key: text(KEY, "PRIVATE KEY")? })
}

fn secret(authority: &Authority) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(BTreeMap::from([
            (CERTIFICATE.into(), bytes(&authority.certificate)),
            (KEY.into(), bytes(&authority.key)),
        ])),
        ..Secret::default()
    }
}

/// An authority as the Go implementation makes it, because its nodes take part
/// too, but valid since an hour ago: clocks differ (F-L8).
fn generate() -> Result<Authority, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "ctrox.dev");
    params.distinguished_name.push(DnType::CountryName, "CH");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_hours(1)).into();
    params.not_after = (now + Duration::from_hours(87_600)).into();
    let certificate = params.self_signed(&key)?;
    Ok(Authority { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_without_a_key_is_an_error() {
        let authority = generate().unwrap();
        assert_eq!(read(&secret(&authority)), Ok(authority.clone()));
        let mut half = secret(&authority);
        half.data.as_mut().unwrap().insert(KEY.into(), ByteString(Vec::new()));
        assert_eq!(read(&half).unwrap_err(), "tls.key of the Secret ca-cert is no PEM PRIVATE KEY");
    }
}
