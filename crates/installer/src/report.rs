//! Whether the cluster knows of the handler: kubelet copies the handlers of
//! containerd 2.x into the node's status (KEP-4216), which is the last proof.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use zeropod_shim_api::names::RUNTIME_CLASS;

use crate::chain;

/// What the node object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// It lists the handler.
    Yes,
    /// It lists other handlers only.
    No,
    /// It lists none at all, as with containerd 1.x and old kubelets, or it
    /// cannot be asked. That proves nothing (F-C3).
    Unknown(String),
}

/// How long kubelet may take: it updates the status every ten seconds.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Waits until the node lists the handler, at most until `deadline`.
pub async fn reported(client: &Client, node: &str, deadline: Instant) -> Reported {
    let nodes: Api<Node> = Api::all(client.clone());
    loop {
        let answer = match tokio::time::timeout(ANSWER, nodes.get(node)).await {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => return Reported::Unknown(chain(&error)),
            Err(_) => return Reported::Unknown(format!("no answer in {ANSWER:?}")),
        };
        let reported = of(&answer);
        if reported != Reported::No || Instant::now() >= deadline {
            return reported;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn of(node: &Node) -> Reported {
    let handlers = node.status.as_ref().and_then(|status| status.runtime_handlers.as_deref());
    match handlers {
        None | Some([]) => Reported::Unknown("its status lists no handlers".into()),
        Some(handlers) => {
            let ours = |name: &Option<String>| name.as_deref() == Some(RUNTIME_CLASS);
            if handlers.iter().any(|handler| ours(&handler.name)) {
                Reported::Yes
            } else {
                Reported::No
            }
        }
    }
}
