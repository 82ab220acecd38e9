//! What the server fills in and checks in pods.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    quantity::{Amount, spell},
    refusal::{Refusal, Wrong},
};

/// The static pods of a kubelet carry it.
pub(super) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Completes and checks a pod that is being made.
pub(super) fn complete(pod: &mut Value, name: &str) -> Result<(), Refusal> {
    *pod = normal(pod)?;
    let containers = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    if containers == 0 {
        return Err(Refusal::invalid("Pod", name, &[Wrong::required("spec.containers")]));
    }
    let spec = &mut pod["spec"];
    for (field, default) in
        [("restartPolicy", json!("Always")), ("terminationGracePeriodSeconds", json!(30))]
    {
        if spec[field].is_null() {
            spec[field] = default;
        }
    }
    for list in ["containers", "initContainers"] {
        spec[list].as_array_mut().into_iter().flatten().for_each(request_limits);
    }
    pod["metadata"]["generation"] = json!(1);
    pod["status"] = json!({"phase": "Pending", "qosClass": qos(&pod["spec"])});
    refuse(name, &check(pod))
}

/// A pod after an update of all but its status.
pub(super) fn updated(
    old: &Value,
    new: &Value,
    resources_may_change: bool,
) -> Result<Value, Refusal> {
    let mut new = normal(new)?;
    new["status"] = old["status"].clone();
    let mut wrong = check(&new);
    if comparable(&new["spec"], resources_may_change)
        != comparable(&old["spec"], resources_may_change)
    {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,\
            `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
            existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        wrong.push(Wrong::forbidden("spec", why));
    }
    refuse(name(old), &wrong)?;
    Ok(new)
}

/// A pod after an update of its status.
pub(super) fn status_updated(old: &Value, new: &Value) -> Result<Value, Refusal> {
    let mut new = normal(new)?;
    new["spec"] = old["spec"].clone();
    if new["status"]["qosClass"].is_null() {
        new["status"]["qosClass"] = old["status"]["qosClass"].clone();
    }
    let mut wrong = check_labels(&new);
    if new["status"]["qosClass"] != old["status"]["qosClass"] {
        let given = new["status"]["qosClass"].as_str().unwrap_or_default();
        wrong.push(Wrong::invalid("status.qosClass", given, "field is immutable"));
    }
    refuse(name(old), &wrong)?;
    Ok(new)
}

/// Seconds that a deleted pod waits for its kubelet, if it has one and still runs.
pub(super) fn grace(pod: &Value, wanted: Option<u64>) -> u64 {
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if over || !pod["spec"]["nodeName"].is_string() {
        return 0;
    }
    wanted.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or_default()
}

/// The quality of service of a pod, from its spec.
pub(super) fn qos(spec: &Value) -> &'static str {
    let amount = |container: &Value, list: &str, resource: &str| {
        Amount::of(&container["resources"][list][resource]).filter(|amount| *amount > Amount::ZERO)
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in containers(spec) {
        for resource in ["cpu", "memory"] {
            let (request, limit) =
                (amount(container, "requests", resource), amount(container, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A pod as the server reads it: known fields only, quantities in its own spelling.
pub(super) fn normal(pod: &Value) -> Result<Value, Refusal> {
    let typed: Pod = serde_json::from_value(pod.clone()).map_err(|error| {
        Refusal::bad_request(format!("Pod in version \"v1\" cannot be handled as a Pod: {error}"))
    })?;
    let mut pod = serde_json::to_value(typed)
        .map_err(|error| Refusal::new(500, "InternalError", error.to_string()))?;
    for list in [
        "/spec/containers",
        "/spec/initContainers",
        "/status/containerStatuses",
        "/status/initContainerStatuses",
    ] {
        for item in pod.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for amounts in ["/resources/requests", "/resources/limits", "/allocatedResources"] {
                if let Some(amounts) = item.pointer_mut(amounts) {
                    spell(amounts)?;
                }
            }
        }
    }
    Ok(pod)
}

/// What is wrong with labels and resources.
pub(super) fn check(pod: &Value) -> Vec<Wrong> {
    let mut wrong = check_labels(pod);
    for list in ["containers", "initContainers"] {
        for (index, container) in pod["spec"][list].as_array().into_iter().flatten().enumerate() {
            check_resources(
                &container["resources"],
                &format!("spec.{list}[{index}].resources"),
                &mut wrong,
            );
        }
    }
    wrong
}

/// A 422 if anything is wrong.
pub(super) fn refuse(name: &str, wrong: &[Wrong]) -> Result<(), Refusal> {
    if wrong.is_empty() { Ok(()) } else { Err(Refusal::invalid("Pod", name, wrong)) }
}

pub(super) fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

/// All containers that count for the quality of service.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array()).flatten()
}

/// A limit without a request is the request, too.
fn request_limits(container: &mut Value) {
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for (resource, limit) in limits {
        let request = &mut container["resources"]["requests"][resource];
        if request.is_null() {
            *request = limit;
        }
    }
}

fn check_resources(resources: &Value, field: &str, wrong: &mut Vec<Wrong>) {
    for list in ["requests", "limits"] {
        for (resource, value) in resources[list].as_object().into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            if Amount::of(value).is_some_and(|amount| amount < Amount::ZERO) {
                wrong.push(Wrong::invalid(
                    format!("{field}.{list}[{resource}]"),
                    text,
                    "must be greater than or equal to 0",
                ));
            }
            let limit = &resources["limits"][resource];
            if list == "requests"
                && Amount::of(limit).is_some_and(|limit| Amount::of(value) > Some(limit))
            {
                let why = format!(
                    "must be less than or equal to {resource} limit of {}",
                    limit.as_str().unwrap_or_default()
                );
                wrong.push(Wrong::invalid(format!("{field}.requests"), text, &why));
            }
        }
    }
}

fn check_labels(pod: &Value) -> Vec<Wrong> {
    let labels = pod["metadata"]["labels"].as_object();
    let mut wrong = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        let name = key.split_once('/').map_or(key.as_str(), |(_, name)| name);
        let value = value.as_str().unwrap_or_default();
        let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
            and must start and end with an alphanumeric character; must be no more than 63 bytes";
        for text in [name, value] {
            if !is_label(text) {
                wrong.push(Wrong::invalid("metadata.labels", text, why));
            }
        }
    }
    wrong
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.chars().all(inner)
        && (text.is_empty() || (text.starts_with(ends) && text.ends_with(ends)))
}

/// A spec without what an update may change.
fn comparable(spec: &Value, resources_may_change: bool) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["image"] = Value::Null;
            if resources_may_change {
                container["resources"] = Value::Null;
            }
        }
    }
    spec["activeDeadlineSeconds"] = Value::Null;
    spec["tolerations"] = Value::Null;
    spec
}
