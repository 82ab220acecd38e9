//! Who the writer is on the real API server: the manager's service account,
//! with the roles and the admission policies that are shipped, and a token
//! bound to a pod of its node. So every case also shows that these suffice.

use std::{path::Path, process::Command};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::OnceCell;
use zeropod_testkit::kube::{
    Cluster, apply_manifests, create_pod, kustomize, parse_manifests, pod, service_account_config,
};

use crate::bed::eventually;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/production");

/// Whether the manifests can be rendered here.
pub(crate) fn possible() -> Result<(), String> {
    match Command::new("kubectl").args(["version", "--client"]).output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("kubectl can't be run: {error}")),
    }
}

/// A client as the daemon of that node has it.
pub(crate) async fn client(cluster: &dyn Cluster, node: &str) -> Client {
    static SHIPPED: OnceCell<()> = OnceCell::const_new();
    SHIPPED.get_or_init(|| ship(cluster)).await;
    account(cluster, node).await
}

/// Applies what users apply, and waits until it is enforced.
async fn ship(cluster: &dyn Cluster) {
    let admin = cluster.client();
    let manifests = kustomize(Path::new(MANIFESTS)).unwrap();
    apply_manifests(&admin, &parse_manifests(&manifests).unwrap()).await.unwrap();
    let foreign = pod("default", "of-another-node").on_node("another").container("app", &[], &[]);
    create_pod(&admin, &foreign.build()).await.unwrap();
    let pods = Api::<Pod>::namespaced(account(cluster, "some-node").await, "default");
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let label = Patch::Merge(json!({ "metadata": {
        "labels": { "status.zeropod.ctrox.dev/app": "RUNNING" },
    }}));
    eventually(async || match pods.patch("of-another-node", &dry_run, &label).await {
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Ok(())
        }
        other => Err(format!("the policy is not enforced: {other:?}")),
    })
    .await;
}

async fn account(cluster: &dyn Cluster, node: &str) -> Client {
    let config = service_account_config(cluster, "zeropod-system", "zeropod-node", node).await;
    Client::try_from(config.unwrap()).unwrap()
}
