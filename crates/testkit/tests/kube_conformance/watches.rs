use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
    runtime::watcher::{self, Event, InitialListStrategy},
};
use serde_json::json;
use tokio::time::timeout;
use zeropod_testkit::kube::{create_pod, delete_pod, pod};

use super::Bed;

const DEADLINE: Duration = Duration::from_secs(30);

async fn create(bed: &Bed, name: &str, node: &str) -> Pod {
    let pod = pod(&bed.namespace, name).on_node(node).container("app", &[], &[]).build();
    create_pod(&bed.client, &pod).await.unwrap()
}

async fn label(bed: &Bed, name: &str, value: &str) -> Pod {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"seen": value}}}));
    bed.pods().patch(name, &PatchParams::default(), &patch).await.unwrap()
}

/// What a watch says next, without bookmarks: what happened to which pod, and its label.
async fn next(
    watch: &mut (impl Stream<Item = kube::Result<WatchEvent<Pod>>> + Unpin),
) -> (&'static str, String, String) {
    loop {
        let (what, pod) = match timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap() {
            WatchEvent::Added(pod) => ("ADDED", pod),
            WatchEvent::Modified(pod) => ("MODIFIED", pod),
            WatchEvent::Deleted(pod) => ("DELETED", pod),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => panic!("{status:?}"),
        };
        return (what, pod.name_any(), pod.labels().get("seen").cloned().unwrap_or_default());
    }
}

fn said(what: &'static str, name: &str, label: &str) -> (&'static str, String, String) {
    (what, name.into(), label.into())
}

pub(super) async fn a_node_sees_its_own_pods(bed: Bed) {
    let pods: Api<Pod> = Api::all(bed.client.clone());
    create(&bed, "first", &bed.node).await;
    create(&bed, "elsewhere", "node-elsewhere").await;
    let own = format!("spec.nodeName={}", bed.node);
    let list = pods.list(&ListParams::default().fields(&own)).await.unwrap();
    assert_eq!(list.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["first"]);
    let version = list.metadata.resource_version.unwrap();
    let mut watch = pin!(pods.watch(&WatchParams::default().fields(&own), &version).await.unwrap());
    label(&bed, "elsewhere", "no").await;
    create(&bed, "second", &bed.node).await;
    label(&bed, "first", "yes").await;
    delete_pod(&bed.client, &bed.namespace, "first").await.unwrap();
    assert_eq!(next(&mut watch).await, said("ADDED", "second", ""));
    assert_eq!(next(&mut watch).await, said("MODIFIED", "first", "yes"));
    // Marked, then gone.
    assert_eq!(next(&mut watch).await, said("MODIFIED", "first", "yes"));
    assert_eq!(next(&mut watch).await, said("DELETED", "first", "yes"));
}

pub(super) async fn a_watch_goes_on_from_a_version(bed: Bed) {
    create(&bed, "web", &bed.node).await;
    let version = label(&bed, "web", "1").await.metadata.resource_version.unwrap();
    label(&bed, "web", "2").await;
    label(&bed, "web", "3").await;
    let params = WatchParams::default().labels("seen!=3");
    let mut watch = pin!(bed.pods().watch(&params, &version).await.unwrap());
    assert_eq!(next(&mut watch).await, said("MODIFIED", "web", "2"));
    // Out of what the selector lets through is gone, with the state that took it out.
    assert_eq!(next(&mut watch).await.0, "DELETED");
    // A watch from any version begins with what there is.
    let mut watch = pin!(bed.pods().watch(&WatchParams::default(), "0").await.unwrap());
    assert_eq!(next(&mut watch).await, said("ADDED", "web", "3"));
}

pub(super) async fn lists_come_in_pages(bed: Bed) {
    for name in ["a", "b", "c"] {
        create(&bed, name, &bed.node).await;
    }
    let first = bed.pods().list(&ListParams::default().limit(2)).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest =
        bed.pods().list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    let names: Vec<_> = first.items.iter().chain(&rest.items).map(ResourceExt::name_any).collect();
    assert_eq!((first.items.len(), names), (2, vec!["a".into(), "b".into(), "c".into()]));
    assert_eq!(rest.metadata.continue_, None);
}

pub(super) async fn a_list_can_be_streamed(bed: Bed) {
    create(&bed, "web", &bed.node).await;
    for strategy in [InitialListStrategy::ListWatch, InitialListStrategy::StreamingList] {
        let config = watcher::Config {
            initial_list_strategy: strategy.clone(),
            ..watcher::Config::default()
        };
        let mut events = pin!(kube::runtime::watcher(bed.pods(), config));
        let mut seen = Vec::new();
        while !matches!(seen.last(), Some(Event::Apply(_))) {
            let event = timeout(DEADLINE, events.next()).await.unwrap().unwrap().unwrap();
            if matches!(event, Event::InitDone) {
                label(&bed, "web", &format!("{strategy:?}")).await;
            }
            seen.push(event);
        }
        let initial = seen.iter().filter(|event| matches!(event, Event::InitApply(_))).count();
        assert_eq!((initial, seen.len()), (1, 4), "{strategy:?}: {seen:?}");
    }
}
