//! What the node object says of the handler, on a real API server.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use zeropod_installer::report::{Reported, reported};
use zeropod_testkit::kube::{Cluster as _, RealApi};

async fn status(client: &Client, handlers: &[&str]) {
    let handlers: Vec<_> = handlers.iter().map(|name| serde_json::json!({"name": name})).collect();
    let patch = serde_json::json!({"status": {"runtimeHandlers": handlers}});
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch_status("n", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn the_node_object_is_the_last_proof() {
    let api = RealApi::start().unwrap();
    let client = api.client();
    let soon = || Instant::now() + Duration::from_secs(1);
    assert!(matches!(reported(&client, "n", soon()).await, Reported::Unknown(_)));
    let node = Node {
        metadata: ObjectMeta { name: Some("n".into()), ..ObjectMeta::default() },
        ..Node::default()
    };
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &node).await.unwrap();
    assert!(matches!(reported(&client, "n", soon()).await, Reported::Unknown(_)));
    status(&client, &["", "runc"]).await;
    assert_eq!(reported(&client, "n", soon()).await, Reported::No);
    // Kubelet takes a while.
    let (answer, ()) = tokio::join!(
        reported(&client, "n", Instant::now() + Duration::from_mins(1)),
        status(&client, &["", "runc", "zeropod"])
    );
    assert_eq!(answer, Reported::Yes);
}
