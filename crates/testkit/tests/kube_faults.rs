//! What only the in-process API server can do: tell what it was asked, and
//! fail on command.
#![expect(clippy::unwrap_used, reason = "tests fail by it")]

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};
use zeropod_testkit::{
    kube::{Cluster, Fault, InProcessApi, On, create_pod, pod},
    skip::skip,
    tools,
};

const DEADLINE: Duration = Duration::from_secs(30);

async fn with_pod() -> (InProcessApi, Api<Pod>) {
    let api = InProcessApi::start().unwrap();
    let client = api.client();
    let web = pod("default", "web").on_node("n").container("app", &[("cpu", "100m")], &[]).build();
    create_pod(&client, &web).await.unwrap();
    api.forget_requests();
    (api, Api::default_namespaced(client))
}

async fn label(pods: &Api<Pod>, value: &str) -> kube::Result<Pod> {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": value}}}));
    pods.patch("web", &PatchParams::default(), &patch).await
}

fn code(result: kube::Result<Pod>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(_) => 0,
    }
}

#[tokio::test]
async fn requests_are_recorded() {
    let (api, pods) = with_pod().await;
    label(&pods, "b").await.unwrap();
    pods.get_opt("none").await.unwrap();
    let requests = api.requests();
    let short =
        |i: usize| (requests[i].method.as_str(), requests[i].path.as_str(), requests[i].status);
    assert_eq!(short(0), ("PATCH", "/api/v1/namespaces/default/pods/web", 200));
    assert_eq!(short(1), ("GET", "/api/v1/namespaces/default/pods/none", 404));
    assert_eq!(requests[0].content_type, "application/merge-patch+json");
    assert_eq!(requests[0].body, json!({"metadata": {"labels": {"a": "b"}}}));
    assert_eq!(api.writes(), requests[..1]);
    api.forget_requests();
    assert_eq!(api.requests(), []);
}

#[tokio::test]
async fn faults_happen_as_often_as_ordered() {
    let (api, pods) = with_pod().await;
    let patches = || On::method("PATCH").path("/pods/web");
    for failure in [409, 410, 422, 500, 503] {
        api.inject(patches(), 1, Fault::Status(failure));
    }
    api.inject(patches(), 1, Fault::TooManyRequests { retry_after_seconds: 7 });
    // Other requests use up nothing.
    pods.get("web").await.unwrap();
    let mut codes = Vec::new();
    for _ in 0..7 {
        codes.push(code(label(&pods, "b").await));
    }
    assert_eq!(codes, [409, 410, 422, 500, 503, 429, 200]);
    api.inject(On::any(), usize::MAX, Fault::Status(500));
    assert_eq!(code(pods.get("web").await), 500);
    api.clear_faults();
    pods.get("web").await.unwrap();
}

#[tokio::test]
async fn broken_connections_hide_whether_it_was_done() {
    let (api, pods) = with_pod().await;
    for (fault, expected) in [(Fault::Close, None), (Fault::ApplyThenClose, Some("b"))] {
        api.inject(On::method("PATCH"), 1, fault);
        assert_eq!(code(label(&pods, "b").await), 0);
        let web = pods.get("web").await.unwrap();
        assert_eq!(web.labels().get("a").map(String::as_str), expected, "{fault:?}");
    }
}

#[tokio::test]
async fn answers_come_late_or_never() {
    let (api, pods) = with_pod().await;
    api.inject(On::method("GET"), 1, Fault::Delay(Duration::from_millis(100)));
    pods.get("web").await.unwrap();
    api.inject(On::method("GET"), 1, Fault::Hang);
    timeout(Duration::from_millis(200), pods.get("web")).await.unwrap_err();
    assert_eq!(api.requests().last().unwrap().status, 0);
    pods.get("web").await.unwrap();
}

#[tokio::test]
async fn watches_break_and_expire() {
    let (api, pods) = with_pod().await;
    let version =
        pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let watch = async || pods.watch(&WatchParams::default(), &version).await.unwrap();

    let mut cut = pin!(watch().await);
    api.cut_watches();
    while let Some(event) = timeout(DEADLINE, cut.next()).await.unwrap() {
        assert!(event.is_err(), "{event:?}");
    }

    let mut open = pin!(watch().await);
    api.expire_history();
    let expired = |event| match event {
        Some(Ok(WatchEvent::Error(status))) => (status.code, status.reason.clone()),
        other => panic!("{other:?}"),
    };
    let gone = (410, "Expired".to_owned());
    assert_eq!(expired(timeout(DEADLINE, open.next()).await.unwrap()), gone);
    let mut new = pin!(watch().await);
    assert_eq!(expired(timeout(DEADLINE, new.next()).await.unwrap()), gone);
    pods.list(&ListParams::default()).await.unwrap();
}

// F-K4: before 1.32 resources are changed on the pod itself.
#[tokio::test]
async fn an_old_server_has_no_resize() {
    let (api, pods) = with_pod().await;
    api.serve_resize(false);
    let patch = Patch::Strategic(json!({"spec": {"containers": [
        {"name": "app", "resources": {"requests": {"cpu": "1m"}}},
    ]}}));
    assert_eq!(code(pods.patch_resize("web", &PatchParams::default(), &patch).await), 404);
    pods.patch("web", &PatchParams::default(), &patch).await.unwrap();
    let resources = api.client().list_core_api_resources("v1").await.unwrap().resources;
    assert!(resources.iter().all(|resource| resource.name != "pods/resize"));
}

#[tokio::test]
async fn other_processes_reach_it_by_its_kubeconfig() {
    let (api, _) = with_pod().await;
    let kubectl = match tools::kubectl() {
        Ok(kubectl) => kubectl,
        Err(error) => return skip(&error.to_string()),
    };
    let output = Command::new(kubectl)
        .args(["get", "pods", "--all-namespaces", "--output=json"])
        .env("KUBECONFIG", api.kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["items"][0]["metadata"]["name"], "web");

    let config = kube::config::Kubeconfig::read_from(api.kubeconfig()).unwrap();
    let client = Client::try_from(config).unwrap();
    Api::<Pod>::default_namespaced(client).get("web").await.unwrap();
}
