//! What a kubelet, and a cluster's controllers, would do, done with any client.

use k8s_openapi::api::core::v1::{Container, Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client, Result,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Makes a namespace and the service account that pods in it need.
pub async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = named::<Namespace>(name);
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    create_default_account(client, name).await
}

/// Makes the account that pods have if they name none.
pub(super) async fn create_default_account(client: &Client, namespace: &str) -> Result<()> {
    let account = named::<ServiceAccount>("default");
    Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &account).await?;
    Ok(())
}

/// Makes a pod; returns it as the server completed it.
pub async fn create_pod(client: &Client, pod: &Pod) -> Result<Pod> {
    api(client, pod).create(&PostParams::default(), pod).await
}

/// Reports that the pod runs: each container of the list, name and id, is
/// ready with the id `containerd://<id>` and has the resources of the spec.
/// Also tells of new ids after a container was started anew.
pub async fn run_pod(client: &Client, pod: &Pod, containers: &[(&str, &str)]) -> Result<Pod> {
    let id = |name: &str| containers.iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
    report(client, pod, |container| id(&container.name).map(|id| format!("containerd://{id}")))
        .await
}

/// Reports that the requests and limits in the spec are what the containers
/// have now, as a kubelet does some time after a resize.
pub async fn act_on_resize(client: &Client, namespace: &str, name: &str) -> Result<Pod> {
    let pod = Api::<Pod>::namespaced(client.clone(), namespace).get(name).await?;
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.clone())
        .unwrap_or_default();
    let id = |name: &str| statuses.iter().find(|status| status.name == name)?.container_id.clone();
    report(client, &pod, |container| id(&container.name)).await
}

/// Deletes a pod at once.
pub async fn delete_pod(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    Api::<Pod>::namespaced(client.clone(), namespace).delete(name, &now).await?;
    Ok(())
}

async fn report(
    client: &Client,
    pod: &Pod,
    id: impl Fn(&Container) -> Option<String>,
) -> Result<Pod> {
    let spec = pod.spec.as_ref();
    let started = "2026-01-01T00:00:00Z";
    let status = |container: &Container| -> Option<Value> {
        let requests =
            container.resources.as_ref().and_then(|resources| resources.requests.clone());
        Some(json!({
            "name": container.name,
            "containerID": id(container)?,
            "image": container.image,
            "imageID": "example.invalid/app@sha256:0",
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": { "running": { "startedAt": started } },
            "allocatedResources": requests,
            "resources": container.resources.clone().unwrap_or_default(),
        }))
    };
    let of = |list: Option<&Vec<Container>>| -> Vec<Value> {
        list.into_iter().flatten().filter_map(&status).collect()
    };
    let status = json!({
        "phase": "Running",
        "startTime": started,
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": started }],
        "containerStatuses": of(spec.map(|spec| &spec.containers)),
        "initContainerStatuses": of(spec.and_then(|spec| spec.init_containers.as_ref())),
    });
    // A merge patch replaces lists, which is what the full status of a kubelet amounts to.
    let patch = Patch::Merge(json!({ "status": status }));
    api(client, pod).patch_status(name(pod), &PatchParams::default(), &patch).await
}

fn api(client: &Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"))
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn named<K: kube::Resource + Default>(name: &str) -> K {
    let mut object = K::default();
    object.meta_mut().name = Some(name.to_owned());
    object
}
