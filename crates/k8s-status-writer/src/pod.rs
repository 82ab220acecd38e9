//! What is kept of a pod: the few fields that decisions need. Everything else
//! is skipped while reading, so that a node full of pods costs little memory.

use std::borrow::Cow;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::Deserialize;
use zeropod_shim_api::{
    id::{ContainerId, PodRef},
    names,
};

use crate::{quantity::Quantity, wire};

/// Pod annotation by which a user keeps a pod's requests from being touched.
pub(crate) const OPT_OUT_ANNOTATION: &str = "zeropod.ctrox.dev/disable-in-place-scaling";

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) uid: Box<str>,
    pub(crate) resource_version: Box<str>,
    /// Counts changes of the spec; 0 on servers that don't.
    pub(crate) generation: i64,
    /// Our labels, by container name.
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// The annotations of the original requests, as they stand.
    pub(crate) recorded: Requests<Option<Box<str>>>,
    pub(crate) containers: Box<[Container]>,
    pub(crate) life: Life,
    /// Its user opted out of in-place scaling.
    pub(crate) opted_out: bool,
    /// Why no resize of it can ever be valid, if so.
    pub(crate) unresizable: Option<Unresizable>,
    /// The kubelet has not reported the resources of running containers: the
    /// API server refuses resizes until it has.
    pub(crate) unreported: bool,
    /// A resize that the kubelet has not carried out.
    pub(crate) pending: Option<Pending>,
}

/// How far a pod has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Life {
    #[default]
    Live,
    /// None of its containers will run again.
    Finished,
    /// It is being deleted.
    Terminating,
}

/// A container of any kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) name: Box<str>,
    pub(crate) kind: ContainerKind,
    /// Its id now, once the kubelet has reported it.
    pub(crate) id: Option<ContainerId>,
    /// The id of its previous run.
    pub(crate) previous_id: Option<ContainerId>,
    pub(crate) resources: Requests<Request>,
}

/// Where a container stands in the pod's spec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ContainerKind {
    #[default]
    Main,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    /// Any other init container. It is labelled but never scaled.
    Init,
}

impl ContainerKind {
    /// Its list in the spec.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::Main => "containers",
            Self::Sidecar | Self::Init => "initContainers",
        }
    }
}

/// One value for each of the two resources that are scaled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests<T> {
    pub(crate) cpu: T,
    pub(crate) memory: T,
}

impl<T> Requests<T> {
    pub(crate) fn get(&self, resource: Scaled) -> &T {
        match resource {
            Scaled::Cpu => &self.cpu,
            Scaled::Memory => &self.memory,
        }
    }

    pub(crate) fn get_mut(&mut self, resource: Scaled) -> &mut T {
        match resource {
            Scaled::Cpu => &mut self.cpu,
            Scaled::Memory => &mut self.memory,
        }
    }
}

/// A resource whose requests are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scaled {
    Cpu,
    Memory,
}

impl Scaled {
    pub(crate) const BOTH: [Self; 2] = [Self::Cpu, Self::Memory];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }

    /// The request of a scaled-down container.
    pub(crate) fn sentinel(self) -> &'static str {
        match self {
            Self::Cpu => names::SCALED_DOWN_CPU,
            Self::Memory => names::SCALED_DOWN_MEMORY,
        }
    }

    /// The annotation of the original requests.
    pub(crate) fn annotation(self) -> &'static str {
        match self {
            Self::Cpu => names::CPU_REQUESTS_ANNOTATION,
            Self::Memory => names::MEMORY_REQUESTS_ANNOTATION,
        }
    }

    pub(crate) fn is_sentinel(self, quantity: &Quantity) -> bool {
        Quantity::parse(self.sentinel()).as_ref() == Some(quantity)
    }

    /// Whether a kubelet reports this of a container that has the sentinel. It
    /// reads CPU requests back from shares, of which 2m are the fewest.
    pub(crate) fn is_lowered(self, actual: &Quantity) -> bool {
        let most = match self {
            Self::Cpu => "2m",
            Self::Memory => self.sentinel(),
        };
        Quantity::parse(most).is_some_and(|most| *actual <= most)
    }
}

/// The request of one resource of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// What the spec says. A zero request is as good as none.
    pub(crate) now: Option<Quantity>,
    /// What it was before scaling down, as far as known: from the annotation,
    /// or remembered since before the annotation was lost. Never a sentinel.
    pub(crate) original: Option<Quantity>,
    /// `resizePolicy: RestartContainer`.
    pub(crate) restarts: bool,
    /// The kubelet reports that the container has no more than the sentinel,
    /// whatever the spec says.
    pub(crate) lowered: bool,
}

/// Why a pod can't be resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unresizable {
    /// Its `QoS` class would change.
    Guaranteed,
    /// It is the mirror of a pod from a file.
    Static,
    /// It has resources of its own, beside its containers'.
    PodLevel,
}

/// What became of a resize that the kubelet has not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Pending {
    /// The node is full; the kubelet tries again.
    Deferred,
    /// The node can never fit it.
    Infeasible,
    /// It failed while being carried out.
    Error,
}

impl Pending {
    pub(crate) const ALL: [Self; 3] = [Self::Deferred, Self::Infeasible, Self::Error];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::Infeasible => "infeasible",
            Self::Error => "error",
        }
    }
}

impl Pod {
    /// The value of our label of a container.
    pub(crate) fn label(&self, container: &str) -> Option<&str> {
        let label = self.labels.iter().find(|(name, _)| **name == *container);
        label.map(|(_, value)| &**value)
    }

    pub(crate) fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| &*container.name == name)
    }

    /// Takes over what `older` remembers of the same pod and the annotations
    /// no longer tell.
    pub(crate) fn remember(&mut self, older: &Self) {
        if self.uid != older.uid {
            return;
        }
        for container in &mut self.containers {
            let Some(known) = older.container(&container.name) else { continue };
            for resource in Scaled::BOTH {
                let request = container.resources.get_mut(resource);
                if request.original.is_none() {
                    let known = known.resources.get(resource);
                    // What it was when last not scaled down, before what was recorded.
                    let seen = known.now.clone().filter(|now| !resource.is_sentinel(now));
                    request.original = seen.or_else(|| known.original.clone());
                }
            }
        }
    }

    /// Whether `other` is certainly an older state of the same pod. The order
    /// of resource versions is promised since Kubernetes 1.35 (KEP-5504) and
    /// has always held with etcd.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        let version = |pod: &Self| pod.resource_version.parse::<u64>().ok();
        self.uid == other.uid && version(self).zip(version(other)).is_some_and(|(a, b)| a > b)
    }
}

/// A pod as it comes from the API server: its name and what is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "wire::Pod")]
pub(crate) struct Received {
    /// Holds only what the watch itself needs.
    meta: ObjectMeta,
    pub(crate) pod: Pod,
}

impl Received {
    pub(crate) fn new(meta: ObjectMeta, pod: Pod) -> Self {
        Self { meta, pod }
    }

    /// Namespace and name. `None` for names that the API can't have sent.
    pub(crate) fn into_parts(self) -> Option<(PodRef, Pod)> {
        let namespace = self.meta.namespace.as_deref()?;
        let name = self.meta.name.as_deref()?;
        Some((PodRef::new(namespace, name).ok()?, self.pod))
    }
}

/// Makes the client ask for pods when it is told to get this.
impl Resource for Received {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
