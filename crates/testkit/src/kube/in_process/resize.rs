//! The `resize` subresource of pods (KEP-1287, as of Kubernetes 1.34).

use serde_json::Value;

use super::{
    pods::{MIRROR_ANNOTATION, check, name, normal, qos, refuse},
    quantity::Amount,
    refusal::{Refusal, Wrong},
};

/// A pod after a resize; anything but the resources of its containers is left as it was.
pub(super) fn resized(old: &Value, new: &Value) -> Result<Value, Refusal> {
    let new = only_resources(old, normal(new)?);
    if !old["metadata"]["annotations"][MIRROR_ANNOTATION].is_null() {
        return refuse(name(old), &[Wrong::forbidden("", "static pods cannot be resized")])
            .map(|()| new);
    }
    let mut wrong = check(&new);
    let class = old["status"]["qosClass"].as_str().unwrap_or_default();
    if class != qos(&new["spec"]) {
        wrong.push(Wrong::invalid(
            "spec",
            class,
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    if !node_can_resize(old) {
        wrong.push(Wrong::forbidden("spec", "Pod running on node without support for resize"));
    }
    let misplaced = misplaced(old, &new);
    if misplaced.is_empty() {
        for list in ["initContainers", "containers"] {
            for (index, (old, new)) in pairs(&old["spec"][list], &new["spec"][list]).enumerate() {
                compare(old, new, list, index, &mut wrong);
            }
        }
    }
    wrong.extend(misplaced);
    refuse(name(old), &wrong)?;
    Ok(new)
}

/// The old pod with the new resources, unless the containers are not the same ones:
/// then the new pod, for validation to find that.
fn only_resources(old: &Value, new: Value) -> Value {
    if !misplaced(old, &new).is_empty() {
        return new;
    }
    let mut result = old.clone();
    for field in ["uid", "resourceVersion"] {
        result["metadata"][field] = new["metadata"][field].clone();
    }
    for list in ["containers", "initContainers"] {
        let target = result["spec"][list].as_array_mut();
        for (target, new) in
            target.into_iter().flatten().zip(new["spec"][list].as_array().into_iter().flatten())
        {
            for field in ["resources", "resizePolicy"] {
                match new.get(field) {
                    Some(value) => target[field] = value.clone(),
                    None => drop(target.as_object_mut().and_then(|target| target.remove(field))),
                }
            }
        }
    }
    result
}

fn misplaced(old: &Value, new: &Value) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for list in ["containers", "initContainers"] {
        let (old, new) = (&old["spec"][list], &new["spec"][list]);
        let count = |list: &Value| list.as_array().map_or(0, Vec::len);
        if count(old) != count(new) {
            let why = format!("{list} may not be added or removed on resize");
            wrong.push(Wrong::forbidden(format!("spec.{list}"), &why));
        }
        for (index, (old, new)) in pairs(old, new).enumerate() {
            if old["name"] != new["name"] {
                let why = format!("{list} may not be renamed or reordered on resize");
                wrong.push(Wrong::forbidden(format!("spec.{list}[{index}].name"), &why));
            }
        }
    }
    wrong
}

/// A kubelet that can resize reports resources for the containers it runs.
fn node_can_resize(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let running =
        statuses.into_iter().flatten().find(|status| status["state"]["running"].is_object());
    running.is_none_or(|status| status["resources"].is_object())
}

fn compare(old: &Value, new: &Value, list: &str, index: usize, wrong: &mut Vec<Wrong>) {
    let resizable = list == "containers" || old["restartPolicy"] == "Always";
    if !resizable {
        if old != new {
            wrong.push(Wrong::forbidden(
                "spec",
                "resources for non-sidecar init containers are immutable",
            ));
        }
        return;
    }
    for amounts in ["requests", "limits"] {
        let names = |container: &Value| {
            container["resources"][amounts].as_object().cloned().unwrap_or_default()
        };
        let (old, new) = (names(old), names(new));
        if old.keys().any(|resource| !new.contains_key(resource)) {
            let why = format!("resource {amounts} cannot be removed");
            wrong.push(Wrong::forbidden(format!("spec.{list}[{index}].resources.{amounts}"), &why));
        }
        let other = |resource: &&String| !matches!(resource.as_str(), "cpu" | "memory");
        let differs = |resource: &String| {
            new.get(resource).and_then(Amount::of) != old.get(resource).and_then(Amount::of)
        };
        if old.keys().chain(new.keys()).filter(other).any(differs) {
            wrong.push(Wrong::forbidden("spec", "only cpu and memory resources are mutable"));
        }
    }
    if old["resizePolicy"] != new["resizePolicy"] {
        wrong.push(Wrong::forbidden("spec", "only cpu and memory resources are mutable"));
    }
}

fn pairs<'a>(old: &'a Value, new: &'a Value) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    old.as_array().into_iter().flatten().zip(new.as_array().into_iter().flatten())
}
