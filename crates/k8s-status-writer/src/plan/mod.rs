//! What has to be written to a pod, given what it looks like and what its
//! containers do. Pure: no clock, no I/O, and the same answer until a fact
//! changes. A write that was carried out makes itself disappear from the next
//! plan, so that a pod for which nothing is planned is right.

mod requests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use zeropod_shim_api::{names, status::Phase};

use crate::{
    config::Features,
    pod::{ContainerKind, Life, Pod, Scaled},
};

/// What a container is known to do. A container that is not known, because
/// its id isn't confirmed, is not listed and nothing is written for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Running,
    ScaledDown,
    /// It is being stopped, perhaps to be started again.
    Stopping,
    /// No shim has had it for a while.
    Gone,
}

/// The writes that make a pod right, in the order in which they are to be
/// done: waking up is never slower than it has to be, and requests are
/// recorded before they are lowered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    pub(crate) restore: Option<Resize>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) scale_down: Option<Resize>,
    /// A restore that the kubelet has found infeasible, taken back: it looks
    /// at it again only when it is asked for anew.
    pub(crate) withdraw: Option<Resize>,
    /// Resizes that are due but can't be valid, or would hurt.
    pub(crate) refusals: Vec<Refusal>,
}

/// New requests for some containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resize {
    pub(crate) containers: Vec<ContainerResize>,
}

/// New requests of one container; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerResize {
    pub(crate) name: Box<str>,
    pub(crate) kind: ContainerKind,
    pub(crate) requests: BTreeMap<&'static str, String>,
}

/// Changes of labels and annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Status by container; `None` removes the label.
    pub(crate) labels: BTreeMap<Box<str>, Option<&'static str>>,
    /// Value by annotation key.
    pub(crate) annotations: BTreeMap<&'static str, String>,
}

/// A resize that is not tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    pub(crate) container: Box<str>,
    pub(crate) reason: RefusalReason,
}

/// Why a resize is not tried, or not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RefusalReason {
    /// The `QoS` class of a Guaranteed pod would change.
    Guaranteed,
    /// Static pods can't be resized.
    StaticPod,
    /// Pods with resources of their own can't be resized.
    PodLevelResources,
    /// The container's `resizePolicy` would restart it.
    RestartPolicy,
    /// It is scaled down, and what its requests were is lost.
    OriginalUnknown,
    /// The API server: below a `LimitRange`'s minimum.
    LimitRange,
    /// The API server: a `ResourceQuota` is used up.
    Quota,
    /// The API server: not valid.
    Invalid,
    /// The API server: an admission rule forbids it.
    Admission,
}

impl RefusalReason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed-qos",
            Self::StaticPod => "static-pod",
            Self::PodLevelResources => "pod-level-resources",
            Self::RestartPolicy => "restart-policy",
            Self::OriginalUnknown => "original-unknown",
            Self::LimitRange => "limit-range",
            Self::Quota => "quota",
            Self::Invalid => "invalid",
            Self::Admission => "admission",
        }
    }
}

/// What to write to `pod`, whose containers are known to do what `seen` says.
pub(crate) fn plan(pod: &Pod, seen: &BTreeMap<Box<str>, Seen>, features: Features) -> Writes {
    let Features { labels, events: _, in_place_scaling } = features;
    let mut writes = Writes::default();
    // S12: a pod on its way out is left alone.
    if pod.life == Life::Terminating {
        return writes;
    }
    let mut metadata = Metadata::default();
    if labels {
        metadata.labels = label_changes(pod, seen);
    }
    if in_place_scaling && pod.life == Life::Live {
        requests::plan(pod, seen, &mut writes, &mut metadata.annotations);
    }
    if metadata != Metadata::default() {
        writes.metadata = Some(metadata);
    }
    writes
}

fn label_changes(
    pod: &Pod,
    seen: &BTreeMap<Box<str>, Seen>,
) -> BTreeMap<Box<str>, Option<&'static str>> {
    seen.iter()
        .filter_map(|(name, seen)| {
            let wanted = match seen {
                Seen::Running => Some(Phase::Running.as_str()),
                Seen::ScaledDown => Some(Phase::ScaledDown.as_str()),
                Seen::Gone => None,
                Seen::Stopping => return None,
            };
            (pod.label(name) != wanted).then(|| (name.clone(), wanted))
        })
        .collect()
}

impl Resize {
    /// The body of a strategic merge patch, which finds containers by name.
    ///
    /// The uid makes the API server refuse it, as a change of an immutable
    /// field, when another pod has taken the name meanwhile (S11).
    pub(crate) fn patch(&self, uid: &str) -> Value {
        let mut spec = BTreeMap::<_, Vec<Value>>::new();
        for container in &self.containers {
            spec.entry(container.kind.field()).or_default().push(json!({
                "name": container.name,
                "resources": { "requests": container.requests },
            }));
        }
        json!({ "metadata": { "uid": uid }, "spec": spec })
    }
}

impl Metadata {
    /// The body of a JSON merge patch of only our keys, guarded by the uid as
    /// [`Resize::patch`].
    pub(crate) fn patch(&self, uid: &str) -> Value {
        let mut metadata = Map::new();
        metadata.insert("uid".to_owned(), uid.into());
        if !self.labels.is_empty() {
            let labels: BTreeMap<_, _> = self
                .labels
                .iter()
                .map(|(name, value)| (names::status_label(name), *value))
                .collect();
            metadata.insert("labels".to_owned(), json!(labels));
        }
        if !self.annotations.is_empty() {
            metadata.insert("annotations".to_owned(), json!(self.annotations));
        }
        json!({ "metadata": metadata })
    }
}

impl Writes {
    fn refuse(&mut self, container: &str, reason: RefusalReason) {
        let refusal = Refusal { container: container.into(), reason };
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }
}

impl ContainerResize {
    fn set(&mut self, resource: Scaled, quantity: String) {
        self.requests.insert(resource.name(), quantity);
    }
}
