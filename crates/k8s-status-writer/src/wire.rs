//! The pod's JSON, as far as it is read.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use zeropod_shim_api::{id::ContainerId, names};

use crate::{
    pod::{self, Life, OPT_OUT_ANNOTATION, Pending, Received, Requests, Scaled, Unresizable},
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
    resources: Option<IgnoredAny>,
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
        let sidecars = spec
            .init_containers
            .into_iter()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"))
            .map(|container| (container, true));
        let containers = spec
            .containers
            .into_iter()
            .map(|container| (container, false))
            .chain(sidecars)
            .map(|(container, sidecar)| {
                let status = statuses.get(&*container.name);
                keep(container, sidecar, status, &originals)
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
    sidecar: bool,
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
        restarts: resize_policy.iter().any(|policy| {
            policy.resource_name == resource.name() && policy.restart_policy == "RestartContainer"
        }),
    };
    let resources = Requests { cpu: request(Scaled::Cpu), memory: request(Scaled::Memory) };
    let id = |text: &str| ContainerId::from_pod_status(text);
    pod::Container {
        sidecar,
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

fn our_labels(labels: BTreeMap<String, Box<str>>) -> BTreeMap<Box<str>, Box<str>> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: serde_json::Value) -> pod::Pod {
        let received: Received = serde_json::from_value(json).unwrap();
        received.into_parts().unwrap().1
    }

    fn pod() -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "default", "uid": "u1", "resourceVersion": "7",
                "generation": 2,
                "managedFields": [{"manager": "x", "fieldsV1": {"f:a": {}}}],
                "labels": {"app": "web", "status.zeropod.ctrox.dev/app": "RUNNING"},
                "annotations": {
                    "zeropod.ctrox.dev/cpu-requests": r#"{"app":"100m","side":"1m","other":"0"}"#,
                    "unrelated": "x",
                },
            },
            "spec": {
                "volumes": [{"name": "v"}],
                "containers": [{
                    "name": "app",
                    "resources": {
                        "requests": {"cpu": "1m", "memory": "128Mi", "ephemeral-storage": "1Gi"},
                        "limits": {"cpu": "1"},
                    },
                    "resizePolicy": [
                        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                        {"resourceName": "memory", "restartPolicy": "RestartContainer"},
                    ],
                }],
                "initContainers": [
                    {"name": "setup", "resources": {"requests": {"cpu": "1"}}},
                    {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "0"}}},
                ],
            },
            "status": {
                "phase": "Running", "qosClass": "Burstable",
                "containerStatuses": [{
                    "name": "app", "containerID": "containerd://c1", "resources": {},
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                    "lastState": {"terminated": {"containerID": "containerd://c0"}},
                }],
            },
        })
    }

    #[test]
    fn only_what_is_read_is_kept() {
        let pod = read(pod());
        let q = |text| Quantity::parse(text);
        let request = |now, original, restarts| pod::Request { now, original, restarts };
        assert_eq!(
            &*pod.containers,
            [
                pod::Container {
                    name: "app".into(),
                    sidecar: false,
                    id: ContainerId::new("c1").ok(),
                    previous_id: ContainerId::new("c0").ok(),
                    resources: Requests {
                        cpu: request(q("1m"), q("100m"), false),
                        memory: request(q("128Mi"), None, true),
                    },
                },
                // K5: sidecars are containers, other init containers are not.
                // K3: neither a sentinel nor zero is an original.
                pod::Container { name: "side".into(), sidecar: true, ..pod::Container::default() },
            ]
        );
        assert_eq!(pod.labels, BTreeMap::from([("app".into(), "RUNNING".into())]));
        assert_eq!((&*pod.uid, &*pod.resource_version, pod.generation), ("u1", "7", 2));
        assert_eq!((pod.unresizable, pod.unreported, pod.life), (None, false, Life::Live));
    }

    #[test]
    fn pods_that_cannot_be_resized() {
        for (path, value, expected) in [
            ("/status/qosClass", json!("Guaranteed"), Unresizable::Guaranteed),
            ("/spec/volumes", json!([]), Unresizable::PodLevel),
            ("/metadata/annotations/unrelated", json!(""), Unresizable::Static),
        ] {
            let mut pod = pod();
            *pod.pointer_mut(path).unwrap() = value;
            match expected {
                Unresizable::PodLevel => {
                    pod["spec"]["resources"] = json!({"requests": {"cpu": "1"}});
                }
                Unresizable::Static => {
                    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("h");
                }
                Unresizable::Guaranteed => {}
            }
            assert_eq!(read(pod).unresizable, Some(expected));
        }
    }

    #[test]
    fn resources_are_reported_when_the_first_running_container_has_them() {
        let mut running = pod();
        running["status"]["containerStatuses"][0]["resources"] = json!(null);
        assert!(read(running.clone()).unreported);
        running["status"]["containerStatuses"][0]["state"] = json!({"waiting": {}});
        assert!(!read(running.clone()).unreported);
        running["status"] = json!({});
        assert!(!read(running).unreported);
    }

    #[test]
    fn resize_conditions_of_kubernetes_1_33() {
        let with = |r#type: &str, status: &str, reason: &str| {
            let mut pod = pod();
            pod["status"]["conditions"] =
                json!([{"type": r#type, "status": status, "reason": reason}]);
            read(pod).pending
        };
        assert_eq!(with("PodResizePending", "True", "Deferred"), Some(Pending::Deferred));
        assert_eq!(with("PodResizePending", "True", "Infeasible"), Some(Pending::Infeasible));
        assert_eq!(with("PodResizeInProgress", "True", "Error"), Some(Pending::Error));
        assert_eq!(with("PodResizeInProgress", "True", ""), None);
        assert_eq!(with("PodResizePending", "False", "Deferred"), None);
    }

    #[test]
    fn lost_annotations_are_remembered_within_one_pod() {
        // K3, F-K10
        let before = read(pod());
        let mut json = pod();
        json["metadata"]["annotations"] = json!({"zeropod.ctrox.dev/cpu-requests": "{broken"});
        let mut lost = read(json.clone());
        assert_eq!(lost.containers[0].resources.cpu.original, None);
        lost.remember(&before);
        assert_eq!(lost.containers[0].resources.cpu.original, Quantity::parse("100m"));
        assert_eq!(lost.containers[0].resources.memory.original, Quantity::parse("128Mi"));
        json["metadata"]["uid"] = json!("u2");
        let mut other = read(json);
        other.remember(&before);
        assert_eq!(other.containers[0].resources.cpu.original, None);
    }
}
