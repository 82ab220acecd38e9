//! Pods as a scheduler leaves them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerResizePolicy, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

/// Starts the description of a pod.
pub fn pod(namespace: &str, name: &str) -> PodBuilder {
    let metadata = ObjectMeta {
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        ..ObjectMeta::default()
    };
    // Nobody makes tokens to mount where no controller manager runs.
    let spec = PodSpec { automount_service_account_token: Some(false), ..PodSpec::default() };
    PodBuilder { metadata, spec }
}

/// A pod being described.
#[derive(Clone, Debug)]
#[must_use]
pub struct PodBuilder {
    metadata: ObjectMeta,
    spec: PodSpec,
}

impl PodBuilder {
    /// Binds it to a node, which need not exist.
    pub fn on_node(mut self, node: &str) -> Self {
        self.spec.node_name = Some(node.into());
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    /// Adds a container with requests and limits such as `("cpu", "100m")`.
    pub fn container(
        mut self,
        name: &str,
        requests: &[(&str, &str)],
        limits: &[(&str, &str)],
    ) -> Self {
        self.spec.containers.push(container(name, requests, limits));
        self
    }

    /// Adds an init container; one that is `sidecar` restarts always.
    pub fn init_container(mut self, name: &str, sidecar: bool, requests: &[(&str, &str)]) -> Self {
        let restart_policy = sidecar.then(|| "Always".to_owned());
        let container = Container { restart_policy, ..container(name, requests, &[]) };
        self.spec.init_containers.get_or_insert_default().push(container);
        self
    }

    /// Says for the container added last what a resize of one resource does:
    /// `NotRequired` (default) or `RestartContainer`.
    pub fn resize_policy(mut self, resource: &str, restart_policy: &str) -> Self {
        if let Some(container) = self.spec.containers.last_mut() {
            container.resize_policy.get_or_insert_default().push(ContainerResizePolicy {
                resource_name: resource.into(),
                restart_policy: restart_policy.into(),
            });
        }
        self
    }

    /// The description, to be created.
    pub fn build(self) -> Pod {
        Pod { metadata: self.metadata, spec: Some(self.spec), status: None }
    }
}

fn container(name: &str, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
    Container {
        name: name.into(),
        image: Some("example.invalid/app:1".into()),
        resources: Some(ResourceRequirements {
            requests: quantities(requests),
            limits: quantities(limits),
            ..ResourceRequirements::default()
        }),
        ..Container::default()
    }
}

fn quantities(list: &[(&str, &str)]) -> Option<BTreeMap<String, Quantity>> {
    let quantity =
        |(name, amount): &(&str, &str)| ((*name).to_owned(), Quantity((*amount).to_owned()));
    (!list.is_empty()).then(|| list.iter().map(quantity).collect())
}
