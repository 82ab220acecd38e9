//! What the cluster says of the node.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Node, node::v1::RuntimeClass};
use kube::Api;
use zeropod_shim_api::names::RUNTIME_CLASS;

use super::{Check, fail, ok, unknown};
use crate::{Error, chain};

/// The label that puts the `DaemonSet` and zeropods on a node.
const NODE_LABEL: &str = "zeropod.ctrox.dev/node";

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// Looks at what the cluster says of the node, if it can be asked.
pub async fn cluster(client: Result<kube::Client, Error>, node_name: Option<&str>) -> Vec<Check> {
    let client = match client {
        Ok(client) => client,
        Err(error) => return vec![unknown("cluster", chain(&error))],
    };
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    let class = match within(classes.get_opt(RUNTIME_CLASS)).await {
        Ok(Some(class)) if class.handler == RUNTIME_CLASS => ok("RuntimeClass", "present"),
        Ok(Some(class)) => fail(
            "RuntimeClass",
            format!("its handler is {}", class.handler),
            "its handler has to be zeropod",
        ),
        Ok(None) => fail("RuntimeClass", "absent", "apply the one in deploy/base"),
        Err(reason) => unknown("RuntimeClass", reason),
    };
    let nodes: Api<Node> = Api::all(client);
    let label = match node_name {
        None => unknown("node label", "NODE_NAME is not set".into()),
        Some(name) => match within(nodes.get_opt(name)).await {
            Ok(node) => {
                let labels = node.and_then(|node| node.metadata.labels).unwrap_or_default();
                if labels.get(NODE_LABEL).is_some_and(|value| value == "true") {
                    ok("node label", format!("{NODE_LABEL}=true"))
                } else {
                    fail(
                        "node label",
                        "absent",
                        "kubectl label node NAME zeropod.ctrox.dev/node=true",
                    )
                }
            }
            Err(reason) => unknown("node label", reason),
        },
    };
    vec![class, label]
}

async fn within<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer in {ANSWER:?}")),
    }
}
