//! What is in an image, as an SPDX 2.3 document, and how it was made, as a
//! SLSA 1.0 provenance. Neither holds anything that differs between two runs
//! with the same input.

use serde_json::{Value, json};

use crate::{Error, image::time, oci::digest};

/// Type of the predicate that is an SPDX document.
pub const SPDX: &str = "https://spdx.dev/Document";
/// Type of the predicate that is a provenance.
pub const SLSA: &str = "https://slsa.dev/provenance/v1";

/// Something that went into an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression, if it declares one.
    pub licence: Option<String>,
    /// Its package URL.
    pub purl: String,
    /// SHA-256 of the package as it was downloaded, in hex.
    pub sha256: Option<String>,
}

/// The SPDX document of an image with these packages.
///
/// # Errors
/// When the epoch is no time.
pub fn spdx(image: &str, version: &str, packages: &[Package], epoch: u64) -> Result<Value, Error> {
    let mut packages = packages.to_vec();
    packages.sort();
    packages.dedup();
    let id = |index: usize| format!("SPDXRef-Package-{index}");
    let listed = packages.iter().enumerate().map(|(index, package)| {
        let licence = package.licence.as_deref().unwrap_or("NOASSERTION");
        let mut listed = json!({
            "SPDXID": id(index),
            "name": package.name,
            "versionInfo": package.version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": licence,
            "copyrightText": "NOASSERTION",
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package.purl,
            }],
        });
        if let Some(sha256) = &package.sha256 {
            listed["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
        }
        listed
    });
    let whole = json!({
        "SPDXID": "SPDXRef-Image",
        "name": image,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "CONTAINER",
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    });
    let listed: Vec<Value> = std::iter::once(whole).chain(listed).collect();
    let contains = (0..packages.len()).map(|index| {
        json!({
            "spdxElementId": "SPDXRef-Image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": id(index),
        })
    });
    let describes = json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-Image",
    });
    let relationships: Vec<Value> = std::iter::once(describes).chain(contains).collect();
    // Has to be another one for each document, and the same for the same one.
    let content = serde_json::to_vec(&listed).map_err(Error::json("the SPDX document"))?;
    let namespace = format!("urn:zeropod:sbom:{image}:{}", digest(&content));
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": image,
        "documentNamespace": namespace,
        "creationInfo": {
            "created": time(epoch)?,
            "creators": [format!("Tool: zeropod-images-{}", zeropod_build_info::VERSION)],
        },
        "packages": listed,
        "relationships": relationships,
    }))
}

/// What an image was made from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Who made it, a URI.
    pub builder: String,
    /// Where the source is, if that is known, a URI.
    pub source: Option<String>,
    /// Git revision of the source.
    pub revision: String,
    /// What else went in: URI or name, and digest as `sha256:` and hex.
    pub inputs: Vec<(String, String)>,
}

/// The provenance of an image with these settings.
pub fn provenance(origin: &Origin, settings: &Value, packages: &[Package]) -> Value {
    let source = origin.source.as_deref().unwrap_or("urn:zeropod:source");
    let mut dependencies = vec![json!({
        "uri": source,
        "digest": { "gitCommit": origin.revision },
    })];
    let inputs = origin.inputs.iter().map(|(name, digest)| (name.clone(), digest.as_str()));
    let downloads = packages.iter().filter_map(|it| Some((it.purl.clone(), it.sha256.as_deref()?)));
    dependencies.extend(inputs.chain(downloads).map(|(uri, digest)| {
        json!({ "uri": uri, "digest": { "sha256": digest.trim_start_matches("sha256:") } })
    }));
    json!({
        "buildDefinition": {
            "buildType": "urn:zeropod:cargo-xtask-images:1",
            "externalParameters": settings,
            "internalParameters": { "rustc": zeropod_build_info::RUSTC },
            "resolvedDependencies": dependencies,
        },
        "runDetails": { "builder": { "id": origin.builder } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_contained_once() {
        let package = |name: &str| Package {
            name: name.into(),
            version: "1".into(),
            licence: Some("MIT".into()),
            purl: format!("pkg:cargo/{name}@1"),
            sha256: None,
        };
        let packages = [package("b"), package("a"), package("b")];
        let document = spdx("image", "1", &packages, 0).unwrap();
        let names: Vec<_> =
            document["packages"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
        assert_eq!(names, ["image", "a", "b"]);
        assert_eq!(document["relationships"].as_array().unwrap().len(), 3);
        assert_eq!(document["creationInfo"]["created"], "1970-01-01T00:00:00Z");
        assert_eq!(document, spdx("image", "1", &[package("a"), package("b")], 0).unwrap());
    }
}
