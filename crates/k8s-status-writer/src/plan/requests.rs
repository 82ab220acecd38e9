//! Requests of containers: lowered while they are scaled down, put back when
//! they wake up, recorded in annotations in between.
//!
//! Only requests are ever touched, never limits: a memory limit can't be
//! lowered safely before Kubernetes 1.34 (kubernetes#130183), and limits
//! don't keep anyone else from scheduling.

use std::collections::BTreeMap;

use super::{ContainerResize, Refusal, RefusalReason, Resize, Seen, Writes};
use crate::{
    pod::{Container, ContainerKind, Pending, Pod, Scaled, Unresizable},
    quantity::Quantity,
};

/// What is due for one request.
enum Due {
    Nothing,
    Lower,
    Restore(String),
    Refused(RefusalReason),
}

pub(super) fn plan(
    pod: &Pod,
    seen: &BTreeMap<Box<str>, Seen>,
    writes: &mut Writes,
    annotations: &mut BTreeMap<&'static str, String>,
) {
    let mut restore = Resize::default();
    let mut scale_down = Resize::default();
    let mut withdraw = Resize::default();
    for container in scaled(pod) {
        let Some(&seen) = seen.get(&container.name) else { continue };
        let empty = ContainerResize {
            name: container.name.clone(),
            kind: container.kind,
            requests: BTreeMap::new(),
        };
        let (mut up, mut down, mut back) = (empty.clone(), empty.clone(), empty);
        for resource in Scaled::BOTH {
            match due(pod, container, resource, seen) {
                Due::Nothing => {}
                Due::Lower => down.set(resource, resource.sentinel().to_owned()),
                Due::Restore(quantity) => up.set(resource, quantity),
                Due::Refused(reason) => writes.refuse(&container.name, reason),
            }
            if infeasible(pod, container, resource, seen) {
                back.set(resource, resource.sentinel().to_owned());
            }
        }
        if !up.requests.is_empty() {
            restore.containers.push(up);
        }
        if !down.requests.is_empty() {
            scale_down.containers.push(down);
        }
        if !back.requests.is_empty() {
            withdraw.containers.push(back);
        }
    }
    // Until the kubelet has reported the resources, the API server says 422.
    if !pod.unreported {
        let some = |resize: Resize| (!resize.containers.is_empty()).then_some(resize);
        writes.restore = some(restore);
        writes.scale_down = some(scale_down);
        writes.withdraw = some(withdraw);
    }
    if !pod.opted_out && pod.unresizable.is_none() {
        *annotations = records(pod, seen);
    }
    writes.refusals.sort_unstable_by(Refusal::cmp);
}

/// The containers whose requests may be scaled. Ephemeral containers have
/// none, and a resize of an init container is never valid.
fn scaled(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.containers.iter().filter(|container| container.kind != ContainerKind::Init)
}

fn due(pod: &Pod, container: &Container, resource: Scaled, seen: Seen) -> Due {
    let request = container.resources.get(resource);
    // An absent request is never added, which also keeps BestEffort pods out.
    let Some(now) = &request.now else { return Due::Nothing };
    let sentinel = Quantity::parse(resource.sentinel());
    let lower = seen == Seen::ScaledDown && !pod.opted_out;
    let due = if lower {
        // Lowering never raises.
        if sentinel.is_some_and(|sentinel| *now > sentinel) { Due::Lower } else { Due::Nothing }
    } else if resource.is_sentinel(now) {
        // F-K11: a container that is stopped or gone is restored as well, so
        // that its next run starts with what it needs: its OOM score follows
        // from the memory request that it starts with.
        match &request.original {
            Some(original) => Due::Restore(original.to_string()),
            None if seen == Seen::Running => Due::Refused(RefusalReason::OriginalUnknown),
            None => Due::Nothing,
        }
    } else {
        Due::Nothing
    };
    match due {
        Due::Lower | Due::Restore(_) => match (pod.unresizable, request.restarts) {
            (Some(Unresizable::Guaranteed), _) => Due::Refused(RefusalReason::Guaranteed),
            (Some(Unresizable::Static), _) => Due::Refused(RefusalReason::StaticPod),
            (Some(Unresizable::PodLevel), _) => Due::Refused(RefusalReason::PodLevelResources),
            // K2: since Kubernetes 1.33 a change of a request alone restarts
            // the container (kubernetes#130657).
            (None, true) => Due::Refused(RefusalReason::RestartPolicy),
            (None, false) => due,
        },
        other => other,
    }
}

/// Whether the spec asks for what a running container had before it was scaled
/// down, and the kubelet says that the node can't fit it. Only what it reports
/// as lowered is taken back to that: a change of somebody else's never lowers
/// what a container has.
fn infeasible(pod: &Pod, container: &Container, resource: Scaled, seen: Seen) -> bool {
    let request = container.resources.get(resource);
    pod.pending == Some(Pending::Infeasible)
        && seen == Seen::Running
        && !pod.opted_out
        && pod.unresizable.is_none()
        && !request.restarts
        && request.lowered
        && request.original.is_some()
        && request.now.as_ref().is_some_and(|now| !resource.is_lowered(now))
}

/// Annotations to write: when one is missing, or when a request that isn't
/// scaled down has changed, which makes it the new original (K3).
fn records(pod: &Pod, seen: &BTreeMap<Box<str>, Seen>) -> BTreeMap<&'static str, String> {
    let followed = |container: &Container| {
        seen.get(&container.name).is_some_and(|seen| *seen != Seen::Gone)
            && Scaled::BOTH.iter().any(|resource| container.resources.get(*resource).now.is_some())
    };
    // K5: nothing to record when there is nothing to scale.
    if !scaled(pod).any(followed) {
        return BTreeMap::new();
    }
    Scaled::BOTH
        .into_iter()
        .filter_map(|resource| {
            let wanted = record(pod, seen, resource);
            let recorded = pod.recorded.get(resource).as_deref().and_then(read);
            (recorded.as_ref() != Some(&wanted)).then(|| (resource.annotation(), write(&wanted)))
        })
        .collect()
}

fn record(
    pod: &Pod,
    seen: &BTreeMap<Box<str>, Seen>,
    resource: Scaled,
) -> BTreeMap<Box<str>, Quantity> {
    let known =
        |container: &Container| seen.get(&container.name).is_some_and(|seen| *seen != Seen::Gone);
    scaled(pod)
        .filter_map(|container| {
            let request = container.resources.get(resource);
            let now = request.now.as_ref().filter(|now| !resource.is_sentinel(now));
            let original = request.original.as_ref();
            // Of a container that isn't ours to follow, what is recorded stays.
            let value = if known(container) { now.or(original) } else { original.or(now) };
            let value = value.cloned().or_else(|| Quantity::parse("0"))?;
            Some((container.name.clone(), value))
        })
        .collect()
}

fn read(json: &str) -> Option<BTreeMap<Box<str>, Quantity>> {
    let map: BTreeMap<Box<str>, String> = serde_json::from_str(json).ok()?;
    map.into_iter().map(|(name, text)| Some((name, Quantity::parse(&text)?))).collect()
}

/// A JSON object with sorted keys and no spaces, as the Go manager writes it.
fn write(record: &BTreeMap<Box<str>, Quantity>) -> String {
    let texts: BTreeMap<_, _> =
        record.iter().map(|(name, quantity)| (name, quantity.to_string())).collect();
    // A map from text to text is always JSON.
    serde_json::to_string(&texts).unwrap_or_default()
}
