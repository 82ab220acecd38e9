//! The pod's JSON, as far as it is read.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use zeropod_shim_api::{id::ContainerId, names};

use crate::{
    pod::{
        self, ContainerKind, Life, OPT_OUT_ANNOTATION, Pending, Received, Requests, Scaled,
        Unresizable,
    },
    quantity::Quantity,
};

#[derive(Deserialize)]
pub(crate) struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    generation: i64,
    #[serde(default)]
    labels: BTreeMap<String, Box<str>>,
    #[serde(default)]
    annotations: BTreeMap<String, Box<str>>,
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    resources: Option<Resources>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: Box<str>,
    #[serde(default)]
    resources: Resources,
    #[serde(default)]
    resize_policy: Vec<ResizePolicy>,
    restart_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    requests: BTreeMap<String, Box<str>>,
    /// Only whether there are any matters.
    #[serde(deserialize_with = "is_filled")]
    limits: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResizePolicy {
    resource_name: String,
    restart_policy: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    qos_class: String,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(default, rename = "containerID")]
    container_id: String,
    /// What the container has.
    resources: Option<Resources>,
    #[serde(default)]
    state: State,
    #[serde(default)]
    last_state: State,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct State {
    running: Option<IgnoredAny>,
    terminated: Option<Terminated>,
}

#[derive(Deserialize)]
struct Terminated {
    #[serde(default, rename = "containerID")]
    container_id: String,
}

impl From<Pod> for Received {
    fn from(Pod { metadata, spec, status }: Pod) -> Self {
        let unresizable = unresizable(&metadata, &spec, &status);
        let Metadata {
            name,
            namespace,
            uid,
            resource_version,
            generation,
            labels,
            mut annotations,
            deletion_timestamp,
        } = metadata;
        let opted_out = annotations.get(OPT_OUT_ANNOTATION).is_some_and(|text| go_true(text));
        let recorded = Requests {
            cpu: annotations.remove(Scaled::Cpu.annotation()),
            memory: annotations.remove(Scaled::Memory.annotation()),
        };
        let originals = Requests {
            cpu: originals(recorded.cpu.as_deref(), Scaled::Cpu),
            memory: originals(recorded.memory.as_deref(), Scaled::Memory),
        };
        let unreported = unreported(&status);
        let pending = pending(&status.conditions);
        let life = match &*status.phase {
            _ if deletion_timestamp.is_some() => Life::Terminating,
            "Succeeded" | "Failed" => Life::Finished,
            _ => Life::Live,
        };
        let statuses: BTreeMap<_, _> = status
            .container_statuses
            .into_iter()
            .chain(status.init_container_statuses)
            .map(|status| (status.name.clone(), status))
            .collect();
        let init = spec.init_containers.into_iter().map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            (container, if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init })
        });
        let main = spec.containers.into_iter().map(|container| (container, ContainerKind::Main));
        let containers = main
            .chain(init)
            .map(|(container, kind)| {
                let status = statuses.get(&*container.name);
                keep(container, kind, status, &originals)
            })
            .collect();

        let meta = ObjectMeta {
            name,
            namespace,
            resource_version: Some(resource_version.clone()),
            ..ObjectMeta::default()
        };
        let pod = pod::Pod {
            uid,
            resource_version: resource_version.into(),
            generation,
            labels: our_labels(labels),
            recorded,
            containers,
            life,
            opted_out,
            unresizable,
            unreported,
            pending,
        };
        Self::new(meta, pod)
    }
}

fn keep(
    container: Container,
    kind: ContainerKind,
    status: Option<&ContainerStatus>,
    originals: &Requests<BTreeMap<Box<str>, Quantity>>,
) -> pod::Container {
    let Container { name, resources, resize_policy, restart_policy: _ } = container;
    let request = |resource: Scaled| pod::Request {
        now: resources
            .requests
            .get(resource.name())
            .and_then(|text| Quantity::parse(text))
            .filter(|quantity| !quantity.is_zero()),
        original: originals.get(resource).get(&name).cloned(),
        lowered: status
            .and_then(|status| status.resources.as_ref()?.requests.get(resource.name()))
            .and_then(|text| Quantity::parse(text))
            .is_some_and(|actual| resource.is_lowered(&actual)),
        restarts: resize_policy.iter().any(|policy| {
            policy.resource_name == resource.name() && policy.restart_policy == "RestartContainer"
        }),
    };
    let resources = Requests { cpu: request(Scaled::Cpu), memory: request(Scaled::Memory) };
    let id = |text: &str| ContainerId::from_pod_status(text);
    pod::Container {
        kind,
        id: status.and_then(|status| id(&status.container_id)),
        previous_id: status
            .and_then(|status| status.last_state.terminated.as_ref())
            .and_then(|terminated| id(&terminated.container_id)),
        resources,
        name,
    }
}

/// The originals that an annotation tells. Zero stands for no request, and a
/// sentinel can only have got there by mistake.
fn originals(recorded: Option<&str>, resource: Scaled) -> BTreeMap<Box<str>, Quantity> {
    let map: BTreeMap<Box<str>, String> =
        recorded.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    map.into_iter()
        .filter_map(|(name, text)| Some((name, Quantity::parse(&text)?)))
        .filter(|(_, quantity)| !quantity.is_zero() && !resource.is_sentinel(quantity))
        .collect()
}

fn our_labels(labels: BTreeMap<String, Box<str>>) -> Box<[(Box<str>, Box<str>)]> {
    labels
        .into_iter()
        .filter_map(|(key, value)| {
            Some((key.strip_prefix(names::STATUS_LABEL_PREFIX)?.into(), value))
        })
        .collect()
}

/// Pods whose resize the API server always refuses (`ValidatePodResize`).
fn unresizable(metadata: &Metadata, spec: &Spec, status: &Status) -> Option<Unresizable> {
    let own = |resources: &Resources| !resources.requests.is_empty() || resources.limits;
    if metadata.annotations.contains_key("kubernetes.io/config.mirror") {
        Some(Unresizable::Static)
    } else if spec.resources.as_ref().is_some_and(own) {
        Some(Unresizable::PodLevel)
    } else if status.qos_class == "Guaranteed" {
        Some(Unresizable::Guaranteed)
    } else {
        None
    }
}

/// As the API server asks: the first running container decides
/// (`isPodResizeRequestSupported`).
fn unreported(status: &Status) -> bool {
    status
        .container_statuses
        .iter()
        .find(|status| status.state.running.is_some())
        .is_some_and(|status| status.resources.is_none())
}

/// Deferred and infeasible resizes are told by one condition, failed ones by
/// another (KEP-1287, since Kubernetes 1.33).
fn pending(conditions: &[Condition]) -> Option<Pending> {
    let reason = |r#type| {
        conditions
            .iter()
            .find(|condition| condition.r#type == r#type && condition.status == "True")
            .map(|condition| &*condition.reason)
    };
    match (reason("PodResizePending"), reason("PodResizeInProgress")) {
        (Some("Infeasible"), _) => Some(Pending::Infeasible),
        (Some(_), _) => Some(Pending::Deferred),
        (None, Some("Error")) => Some(Pending::Error),
        _ => None,
    }
}

fn is_filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let map = BTreeMap::<String, serde_json::Value>::deserialize(deserializer);
    map.map(|map| !map.is_empty())
}

/// What `strconv.ParseBool` takes for true.
fn go_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}
