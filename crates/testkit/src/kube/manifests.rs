//! Manifests, given to a cluster as users do, and accounts to act as.

use std::{fs, path::Path, process::Command};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DynamicObject, Patch, PatchParams, PostParams, ValidationDirective},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
    runtime::wait::{await_condition, conditions::is_crd_established},
};
use serde_json::Value;

use super::{ApiError, Cluster, create_pod, io_error, pod};
use crate::tools;

/// Renders a kustomization by `kubectl`.
///
/// # Errors
/// When there is no `kubectl` and none can be built, or with what it said.
pub fn kustomize(dir: &Path) -> Result<String, ApiError> {
    let kubectl = tools::kubectl().map_err(|error| ApiError::Manifest(error.to_string()))?;
    let output = Command::new(kubectl).arg("kustomize").arg(dir).output();
    let output = output.map_err(io_error("run kubectl kustomize", dir))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(ApiError::Manifest(format!("{}: {said}", dir.display())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Renders a chart with values for a cluster of a version, such as `v1.34.0`.
///
/// # Errors
/// When the renderer cannot be built, or with what it said.
pub fn helm_template(chart: &Path, version: &str, values: &Value) -> Result<String, ApiError> {
    let helm = tools::helm_template().map_err(|error| ApiError::Manifest(error.to_string()))?;
    let dir = tempfile::tempdir().map_err(io_error("make a directory for", chart))?;
    let file = dir.path().join("values.yaml");
    fs::write(&file, values.to_string()).map_err(io_error("write", &file))?;
    let output = Command::new(helm).arg(version).args([chart, &file]).output();
    let output = output.map_err(io_error("run helm-template", chart))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(ApiError::Manifest(format!("{}: {said}", chart.display())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The objects in a stream of YAML documents.
///
/// # Errors
/// When it is no YAML, or something in it is no object.
pub fn parse_manifests(yaml: &str) -> Result<Vec<DynamicObject>, ApiError> {
    serde_saphyr::from_multiple(yaml).map_err(|error| ApiError::Manifest(error.to_string()))
}

/// Applies objects in their order, with strict validation of fields; returns
/// what the server made of them.
///
/// # Errors
/// When an object is refused; those before it stay.
pub async fn apply_manifests(
    client: &Client,
    objects: &[DynamicObject],
) -> Result<Vec<DynamicObject>, ApiError> {
    let mut applied = Vec::new();
    for object in objects {
        applied.push(apply(client, object, false).await?);
        if kind(object) == "CustomResourceDefinition" {
            let (definitions, name) = (Api::all(client.clone()), object.name_any());
            await_condition(definitions, &name, is_crd_established())
                .await
                .map_err(|error| ApiError::Manifest(error.to_string()))?;
        }
    }
    Ok(applied)
}

/// Like [`apply_manifests`], but asks only what would happen. Namespaces are
/// made in truth, since nothing can be tried in one that is not there.
///
/// # Errors
/// When an object is refused.
pub async fn dry_run_manifests(
    client: &Client,
    objects: &[DynamicObject],
) -> Result<Vec<DynamicObject>, ApiError> {
    let mut tried = Vec::new();
    for object in objects {
        tried.push(apply(client, object, kind(object) != "Namespace").await?);
    }
    Ok(tried)
}

/// How to reach a cluster as a service account whose token belongs to a pod on
/// `node`, as that of a daemon does. The account must exist; the pod, of the
/// name `<account>-<node>`, is made.
///
/// # Errors
/// When the API refuses the pod or the token.
pub async fn service_account_config(
    cluster: &dyn Cluster,
    namespace: &str,
    account: &str,
    node: &str,
) -> Result<Config, ApiError> {
    let client = cluster.client();
    let mut agent = pod(namespace, &format!("{account}-{node}"))
        .on_node(node)
        .container("agent", &[], &[])
        .build();
    agent.spec.get_or_insert_default().service_account_name = Some(account.into());
    let agent = create_pod(&client, &agent).await?;
    let bound_object_ref = BoundObjectReference {
        api_version: Some(Pod::api_version(&()).into_owned()),
        kind: Some(Pod::kind(&()).into_owned()),
        name: agent.metadata.name,
        uid: agent.metadata.uid,
    };
    let spec = TokenRequestSpec {
        bound_object_ref: Some(bound_object_ref),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts = Api::<ServiceAccount>::namespaced(client, namespace);
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    let mut config = cluster.config();
    config.auth_info.token = answer.status.map(|status| status.token.into());
    Ok(config)
}

async fn apply(
    client: &Client,
    object: &DynamicObject,
    dry_run: bool,
) -> Result<DynamicObject, ApiError> {
    let what = format!("{} {}", kind(object), object.name_any());
    let types =
        object.types.as_ref().ok_or_else(|| ApiError::Manifest(format!("{what} has no kind")))?;
    let type_of = GroupVersionKind::try_from(types)
        .map_err(|error| ApiError::Manifest(format!("{what}: {error}")))?;
    let (resource, capabilities) = pinned_kind(client, &type_of).await?;
    let api = match (&capabilities.scope, &object.metadata.namespace) {
        (Scope::Namespaced, namespace) => Api::namespaced_with(
            client.clone(),
            namespace.as_deref().unwrap_or("default"),
            &resource,
        ),
        (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
    };
    let mut params =
        PatchParams::apply("zeropod-testkit").force().validation(ValidationDirective::Strict);
    params.dry_run = dry_run;
    let answer = api.patch(&object.name_any(), &params, &Patch::Apply(object)).await;
    answer.map_err(|source| ApiError::Refused { what, source: Box::new(source) })
}

fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("object", |types| &types.kind)
}
