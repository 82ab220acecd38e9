//! What the account of the daemon may do: its roles and the admission policies
//! of the production overlay, on a real API server.
//!
//! F-D6: the Go implementation may update every pod of the cluster from every
//! node.
#![expect(clippy::unwrap_used, reason = "tests fail by it")]

use std::{fmt::Debug, path::Path};

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{Event, Pod, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use zeropod_testkit::{
    kube::{
        Cluster, RealApi, apply_manifests, create_namespace, create_pod, kustomize,
        parse_manifests, pod, run_pod, service_account_config,
    },
    skip::skip,
};

/// A cluster with the production overlay, and a client for the daemon of node `own-<case>`.
struct Bed {
    admin: Client,
    daemon: Client,
    namespace: String,
    node: String,
}

impl Bed {
    async fn new(case: &str) -> Option<Self> {
        static APPLIED: OnceCell<Option<()>> = OnceCell::const_new();
        let api = RealApi::shared().map_err(|error| skip(&error)).ok()?;
        (*APPLIED.get_or_init(|| apply_production(api)).await)?;
        let (admin, node) = (api.client(), format!("own-{case}"));
        create_namespace(&admin, case).await.unwrap();
        let config =
            service_account_config(api, "zeropod-system", "zeropod-node", &node).await.unwrap();
        let daemon = Client::try_from(config).unwrap();
        Some(Self { admin, daemon, namespace: case.into(), node })
    }

    /// A pod of a node, with a container that runs.
    async fn pod(&self, name: &str, node: &str) -> Api<Pod> {
        let amounts = [("cpu", "100m"), ("memory", "128Mi")];
        let pod = pod(&self.namespace, name)
            .on_node(node)
            .label("app", "web")
            .annotation("note", "kept")
            .init_container("sidecar", true, &amounts)
            .container("app", &amounts, &[("memory", "1Gi")])
            .build();
        let created = create_pod(&self.admin, &pod).await.unwrap();
        run_pod(&self.admin, &created, &[("app", "0123"), ("sidecar", "4567")]).await.unwrap();
        self.pods()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.daemon.clone(), &self.namespace)
    }
}

async fn apply_production(api: &RealApi) -> Option<()> {
    let production = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/production");
    let rendered = match kustomize(&production) {
        Ok(rendered) => rendered,
        Err(error) => return skip_none(&error.to_string()),
    };
    apply_manifests(&api.client(), &parse_manifests(&rendered).unwrap()).await.unwrap();
    // Policies count as soon as the server has compiled them.
    let admin = api.client();
    let config =
        service_account_config(api, "zeropod-system", "zeropod-node", "probe").await.unwrap();
    let daemon = Client::try_from(config).unwrap();
    let elsewhere = pod("default", "probe").on_node("elsewhere").container("app", &[], &[]).build();
    create_pod(&admin, &elsewhere).await.unwrap();
    let pods = Api::<Pod>::default_namespaced(daemon);
    for attempt in 0.. {
        let label =
            json!({"metadata": {"labels": {"status.zeropod.ctrox.dev/app": attempt.to_string()}}});
        if merge(&pods, "probe", label).await.is_err() {
            break;
        }
        assert!(attempt < 1000, "no policy in force");
    }
    Some(())
}

fn skip_none(reason: &str) -> Option<()> {
    skip(reason);
    None
}

async fn merge(pods: &Api<Pod>, name: &str, patch: Value) -> kube::Result<Pod> {
    pods.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn resize(pods: &Api<Pod>, name: &str, list: &str, container: Value) -> kube::Result<Pod> {
    let patch = Patch::Strategic(json!({"spec": {list: [container]}}));
    pods.patch_resize(name, &PatchParams::default(), &patch).await
}

/// Asserts that something is forbidden, and why.
#[track_caller]
fn forbidden<T: Debug>(result: kube::Result<T>, why: &str) {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => {
            assert!(status.message.contains(why), "{:?} instead of {why:?}", status.message);
        }
        other => panic!("not forbidden: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_names_its_node() {
    let Some(bed) = Bed::new("names").await else { return };
    let review = Api::<SelfSubjectReview>::all(bed.daemon.clone());
    let review =
        review.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    let user = review.status.unwrap().user_info.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:zeropod-system:zeropod-node"));
    assert_eq!(user.extra.unwrap()["authentication.kubernetes.io/node-name"], [bed.node]);
}

#[tokio::test]
async fn the_daemon_can_do_its_work() {
    let Some(bed) = Bed::new("work").await else { return };
    let pods = bed.pod("web", &bed.node).await;
    let own = ListParams::default().fields(&format!("spec.nodeName={}", bed.node));
    let everywhere = Api::<Pod>::all(bed.daemon.clone());
    // Its own pod is there, too.
    assert_eq!(everywhere.list(&own).await.unwrap().items.len(), 2);
    let patch = json!({"metadata": {
        "labels": {"status.zeropod.ctrox.dev/app": "SCALED_DOWN"},
        "annotations": {
            "zeropod.ctrox.dev/cpu-requests": "{\"app\":\"100m\"}",
            "zeropod.ctrox.dev/memory-requests": "{\"app\":\"128Mi\"}",
        },
    }});
    merge(&pods, "web", patch).await.unwrap();
    for (list, name) in [("containers", "app"), ("initContainers", "sidecar")] {
        let down = json!({"name": name, "resources": {"requests": {"cpu": "1m", "memory": "1Ki"}}});
        resize(&pods, "web", list, down).await.unwrap();
    }
    let gone = json!({"metadata": {"labels": {"status.zeropod.ctrox.dev/app": null}}});
    merge(&pods, "web", gone).await.unwrap();
    event(&bed, &bed.node, "web").await.unwrap();
}

#[tokio::test]
async fn pods_of_other_nodes_are_out_of_reach() {
    let Some(bed) = Bed::new("reach").await else { return };
    let pods = bed.pod("other", "other-node").await;
    let why = "the pod is not on the node of this token";
    let label = json!({"metadata": {"labels": {"status.zeropod.ctrox.dev/app": "RUNNING"}}});
    forbidden(merge(&pods, "other", label).await, why);
    let down = json!({"name": "app", "resources": {"requests": {"cpu": "1m"}}});
    forbidden(resize(&pods, "other", "containers", down).await, why);
    forbidden(
        event(&bed, "other-node", "other").await,
        "the event is not from the node of this token",
    );
}

#[tokio::test]
async fn of_its_own_pods_it_changes_only_what_is_ours() {
    let Some(bed) = Bed::new("ours").await else { return };
    let pods = bed.pod("web", &bed.node).await;
    let metadata = [
        (json!({"labels": {"app": "db"}}), "only labels"),
        (json!({"labels": {"app": null}}), "only labels"),
        (json!({"labels": {"new": "x"}}), "only labels"),
        (json!({"annotations": {"note": "x"}}), "only the annotations"),
        (json!({"annotations": {"note": null}}), "only the annotations"),
        (
            json!({"annotations": {"zeropod.ctrox.dev/scaledown-duration": "0"}}),
            "only the annotations",
        ),
        (json!({"finalizers": ["example.com/x"]}), "finalizers and owners"),
    ];
    for (metadata, why) in metadata {
        forbidden(merge(&pods, "web", json!({ "metadata": metadata })).await, why);
    }
    let image =
        json!({"spec": {"containers": [{"name": "app", "image": "example.invalid/evil:1"}]}});
    let image = pods.patch("web", &PatchParams::default(), &Patch::Strategic(image)).await;
    forbidden(image, "only the requests of containers");
    forbidden(
        merge(&pods, "web", json!({"spec": {"activeDeadlineSeconds": 1}})).await,
        "only the requests",
    );
    let limits = json!({"name": "app", "resources": {"limits": {"memory": "2Gi"}}});
    forbidden(resize(&pods, "web", "containers", limits).await, "only the requests of containers");
}

#[tokio::test]
async fn everything_else_is_forbidden() {
    let Some(bed) = Bed::new("else").await else { return };
    let pods = bed.pod("web", &bed.node).await;
    let new = pod(&bed.namespace, "new").container("app", &[], &[]).build();
    forbidden(pods.create(&PostParams::default(), &new).await, "cannot create resource");
    forbidden(pods.delete("web", &DeleteParams::default()).await, "cannot delete resource");
    let status = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    forbidden(
        pods.patch_status("web", &PatchParams::default(), &status).await,
        "cannot patch resource",
    );
    let secrets = Api::<Secret>::namespaced(bed.daemon.clone(), "zeropod-system");
    forbidden(secrets.list(&ListParams::default()).await, "cannot list resource");
    forbidden(secrets.get("other").await, "cannot get resource");
    // I1: the certificate authority of the node API.
    assert_eq!(secrets.get_opt("ca-cert").await.unwrap(), None);
    let ca: Secret = serde_json::from_value(json!({"metadata": {"name": "ca-cert"}})).unwrap();
    secrets.create(&PostParams::default(), &ca).await.unwrap();
    secrets.get("ca-cert").await.unwrap();
}

/// An event about a pod, as the manager of a node makes it.
async fn event(bed: &Bed, node: &str, pod: &str) -> kube::Result<Event> {
    let event = json!({
        "metadata": {"generateName": "zeropod-status-event-"},
        "type": "Normal",
        "reason": "Running",
        "action": "Running",
        "eventTime": "2026-01-02T03:04:05.678901Z",
        "reportingComponent": "zeropod.ctrox.dev/manager",
        "reportingInstance": node,
        "source": {"component": "zeropod.ctrox.dev/manager", "host": node},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": bed.namespace, "name": pod},
    });
    let event = serde_json::from_value(event).unwrap();
    Api::namespaced(bed.daemon.clone(), &bed.namespace).create(&PostParams::default(), &event).await
}
