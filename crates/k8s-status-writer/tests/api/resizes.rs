//! In-place resizing as production taught it (field lessons F-K1 to F-K12).

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{LimitRange, ResourceQuota},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use zeropod_shim_api::{change::Update, id::PodRef, status::Phase};
use zeropod_testkit::kube::{Cluster, act_on_resize, create_pod, run_pod};

use crate::bed::{Bed, Look, eventually, running, scaled_down, state};

const REQUESTS: [(&str, &str); 2] = [("cpu", "100m"), ("memory", "128Mi")];

/// The label is right, the requests are left, and nothing is recorded.
async fn left_alone(bed: &Bed, name: &str) {
    bed.becomes(name, Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
    bed.event(name, name, Phase::Running);
    bed.becomes(name, running()).await;
    assert_eq!(bed.pods().get(name).await.unwrap().metadata.annotations, None);
}

pub(crate) async fn f_k1_guaranteed_pods_are_not_resized(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k1_guaranteed").await;
    bed.run(bed.pod("web").container("app", &REQUESTS, &REQUESTS), &[("app", "web")]).await;
    bed.event("web", "web", Phase::ScaledDown);
    left_alone(&bed, "web").await;
}

pub(crate) async fn f_k2_best_effort_pods_gain_no_requests(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k2_best_effort").await;
    bed.run(bed.pod("web").container("app", &[], &[]), &[("app", "web")]).await;
    bed.event("web", "web", Phase::ScaledDown);
    bed.becomes("web", Look::new("SCALED_DOWN", "", "")).await;
    // K5: nor annotations.
    assert_eq!(bed.pods().get("web").await.unwrap().metadata.annotations, None);
}

pub(crate) async fn f_k3_restart_policy_is_respected(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k3_restart_policy").await;
    let pod =
        bed.pod("web").container("app", &REQUESTS, &[]).resize_policy("memory", "RestartContainer");
    bed.run(pod, &[("app", "c1")]).await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", Look::new("SCALED_DOWN", "1m", "128Mi")).await;
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
}

/// Limits are never touched (F-K6), and a patch of two fields leaves what this
/// program does not know of (S8).
pub(crate) async fn f_k5_limits_and_other_requests_stay(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k5_limits").await;
    let requests = [("cpu", "100m"), ("memory", "128Mi"), ("ephemeral-storage", "1Gi")];
    let limits = [("cpu", "1"), ("memory", "256Mi"), ("ephemeral-storage", "2Gi")];
    bed.run(bed.pod("web").container("app", &requests, &limits), &[("app", "c1")]).await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    let pod = bed.pods().get("web").await.unwrap();
    let resources = pod.spec.unwrap().containers[0].resources.clone().unwrap();
    let texts = |list: Option<std::collections::BTreeMap<String, Quantity>>| {
        list.unwrap().into_iter().map(|(name, q)| format!("{name}={}", q.0)).collect::<Vec<_>>()
    };
    assert_eq!(texts(resources.limits), ["cpu=1", "ephemeral-storage=2Gi", "memory=256Mi"]);
    assert_eq!(texts(resources.requests), ["cpu=1m", "ephemeral-storage=1Gi", "memory=1Ki"]);
}

pub(crate) async fn f_k7_pending_resizes_are_shown(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k7_pending_resizes").await;
    bed.run_app("web", "c1").await;
    bed.event_of("web", "app", "c1", Phase::Running, None);
    bed.becomes("web", running()).await;
    bed.patch_status(
        "web",
        json!({ "conditions": [{
            "type": "PodResizePending", "status": "True", "reason": "Deferred",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}),
    )
    .await;
    bed.messages("web", 1).await;
    let events = bed.events("web").await;
    assert_eq!(events[0].reason.as_deref(), Some("Resize deferred"));
    assert_eq!(events[0].type_.as_deref(), Some("Warning"));
}

/// K4: the kubelet never looks again at what it found infeasible.
pub(crate) async fn f_k7_an_infeasible_restore_is_asked_for_again(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "f_k7_an_infeasible").await;
    bed.start(|config| config.infeasible_rest = Duration::from_millis(1));
    bed.update(Update::Snapshot(Vec::new()));
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    act_on_resize(&bed.admin, &bed.namespace, "web").await.unwrap();
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
    let condition = |status: &str| {
        json!({ "conditions": [{
            "type": "PodResizePending", "status": status, "reason": "Infeasible",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]})
    };
    for _ in 0..2 {
        bed.patch_status("web", condition("True")).await;
        // Taken back, for the kubelet to see.
        bed.becomes("web", Look { label: Some("RUNNING".into()), ..scaled_down() }).await;
        bed.patch_status("web", condition("False")).await;
        bed.becomes("web", running()).await;
    }
    act_on_resize(&bed.admin, &bed.namespace, "web").await.unwrap();
    // Told once.
    let messages = bed.messages("web", 3).await;
    assert!(messages.iter().any(|message| message.contains("is asked for again")), "{messages:?}");
    bed.stop().await;
    bed.becomes("web", running()).await;
}

pub(crate) async fn f_k8_a_limit_range_is_met_once(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k8_a_limit_range").await;
    let range: LimitRange = serde_json::from_value(json!({
        "metadata": { "name": "minimum" },
        "spec": { "limits": [{ "type": "Container", "min": { "cpu": "10m" } }] },
    }))
    .unwrap();
    let ranges = Api::<LimitRange>::namespaced(bed.admin.clone(), &bed.namespace);
    ranges.create(&PostParams::default(), &range).await.unwrap();
    bed.run_app("web", "c1").await;
    for _ in 0..3 {
        bed.event("web", "c1", Phase::ScaledDown);
        bed.becomes("web", Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
        bed.event("web", "c1", Phase::Running);
        bed.becomes("web", running()).await;
    }
}

/// Real server only: its quota counts what the resize asks for.
pub(crate) async fn f_k8_a_quota_that_forbids_waking_up_is_tried_again(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k8_a_quota").await;
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    // A quota counts what the kubelet has allocated as long as that is more.
    act_on_resize(&bed.admin, &bed.namespace, "web").await.unwrap();
    let hard = json!({ "requests.cpu": "50m" });
    let quota = |status: bool| {
        let status = if status {
            json!({ "hard": hard, "used": { "requests.cpu": "1m" } })
        } else {
            json!({})
        };
        serde_json::from_value::<ResourceQuota>(json!({
            "metadata": { "name": "small" }, "spec": { "hard": hard }, "status": status,
        }))
        .unwrap()
    };
    let quotas = Api::<ResourceQuota>::namespaced(bed.admin.clone(), &bed.namespace);
    quotas.create(&PostParams::default(), &quota(false)).await.unwrap();
    let status = Patch::Merge(quota(true));
    quotas.patch_status("small", &PatchParams::default(), &status).await.unwrap();
    // Until the server's own watch of quotas knows.
    let wake_up = Patch::Strategic(json!({ "spec": { "containers": [
        { "name": "app", "resources": { "requests": { "cpu": "100m" } } },
    ]}}));
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    eventually(async || {
        match bed.pods().patch_subresource("resize", "web", &dry_run, &wake_up).await {
            Err(error) if error.to_string().contains("exceeded quota") => Ok(()),
            other => Err(format!("{:?}", other.map(|pod| Look::of(&pod)))),
        }
    })
    .await;
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", Look::new("RUNNING", "1m", "1Ki")).await;
    // Room again: some seconds later it has what it asked for.
    quotas.delete("small", &kube::api::DeleteParams::default()).await.unwrap();
    bed.becomes("web", running()).await;
}

pub(crate) async fn f_k9_opting_out_restores(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k9_opting_out").await;
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    let opt_out = |value: serde_json::Value| {
        json!({ "metadata": { "annotations": {
            "zeropod.ctrox.dev/disable-in-place-scaling": value,
        }}})
    };
    bed.patch("web", opt_out(json!("true"))).await;
    bed.becomes("web", Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
    bed.patch("web", opt_out(json!(null))).await;
    bed.becomes("web", scaled_down()).await;
}

/// Sentinels never become originals (K3).
pub(crate) async fn f_k10_lost_and_broken_annotations(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k10_annotations").await;
    for (name, value) in [("lost", json!(null)), ("broken", json!("{"))] {
        bed.run_app(name, name).await;
        bed.event(name, name, Phase::ScaledDown);
        bed.becomes(name, scaled_down()).await;
        let annotations = json!({
            "zeropod.ctrox.dev/cpu-requests": value,
            "zeropod.ctrox.dev/memory-requests": value,
        });
        bed.patch(name, json!({ "metadata": { "annotations": annotations } })).await;
        bed.event(name, name, Phase::Running);
        bed.becomes(name, running()).await;
        eventually(async || {
            let pod = bed.pods().get(name).await.unwrap();
            let recorded = pod.metadata.annotations.unwrap_or_default();
            match recorded.get("zeropod.ctrox.dev/cpu-requests").map(String::as_str) {
                Some(r#"{"app":"100m"}"#) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

pub(crate) async fn f_k11_a_restarted_container_gets_its_requests_first(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "f_k11_restarted").await;
    let pod = bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    // It crashed while scaled down; the kubelet still shows the old id.
    bed.removed("web", "c1", Phase::ScaledDown);
    bed.event_of("web", "app", "c2", Phase::Running, None);
    bed.becomes("web", Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
    run_pod(&bed.admin, &pod, &[("app", "c2")]).await.unwrap();
    bed.becomes("web", running()).await;
}

/// An offline migration's target: claimed before its container is there (K7).
pub(crate) async fn f_k12_a_preset_covers_migrated_containers_only(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "f_k12_a_preset").await;
    let handles = bed.start(|_| ());
    bed.update(Update::Snapshot(Vec::new()));
    let pod = bed.pod("web").container("app", &REQUESTS, &[]).container("side", &REQUESTS, &[]);
    let pod = create_pod(&bed.admin, &pod.build()).await.unwrap();
    let name = PodRef::new(&bed.namespace, "web").unwrap();
    handles.handle.preset_scaled_down(name, ["app"]).await.unwrap();
    bed.becomes("web", scaled_down()).await;
    let side = bed.pods().get("web").await.unwrap();
    let requests = side.spec.unwrap().containers[1].resources.clone().unwrap().requests.unwrap();
    assert_eq!(requests["cpu"].0, "100m");
    assert_eq!(side.metadata.labels.unwrap().len(), 1);
    run_pod(&bed.admin, &pod, &[("app", "c1"), ("side", "c2")]).await.unwrap();
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
    assert!(handles.state.borrow().ready(), "{:?}", handles.state.borrow());
}

pub(crate) async fn k3_a_change_while_running_is_kept(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "k3_a_change_while_running").await;
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
    // As an autoscaler does.
    let resize = Patch::Strategic(json!({ "spec": { "containers": [
        { "name": "app", "resources": { "requests": { "cpu": "250m" } } },
    ]}}));
    let params = PatchParams::default();
    bed.pods().patch_subresource("resize", "web", &params, &resize).await.unwrap();
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", Look::new("RUNNING", "250m", "128Mi")).await;
}

pub(crate) async fn k5_sidecars_are_scaled(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "k5_sidecars").await;
    let pod = bed
        .pod("web")
        .container("app", &REQUESTS, &[])
        .init_container("setup", false, &[("cpu", "50m")])
        .init_container("side", true, &[("cpu", "50m")]);
    bed.run(pod, &[("app", "c1"), ("setup", "c0"), ("side", "c2")]).await;
    bed.event_of("web", "side", "c2", Phase::ScaledDown, None);
    bed.event_of("web", "setup", "c0", Phase::ScaledDown, None);
    eventually(async || {
        let pod = bed.pods().get("web").await.unwrap();
        let init = pod.spec.unwrap().init_containers.unwrap();
        let cpu = |index: usize| {
            init[index].resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0.clone()
        };
        let labels = pod.metadata.labels.unwrap_or_default().len();
        match (cpu(0).as_str(), cpu(1).as_str(), labels) {
            ("50m", "1m", 2) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let paths: Vec<_> = {
        bed.messages("web", 2).await;
        let events = bed.events("web").await.into_iter();
        events.map(|event| event.involved_object.field_path.unwrap()).collect()
    };
    assert_eq!(paths, ["spec.initContainers{side}", "spec.initContainers{setup}"]);
}

/// The kubelet reports the id of a container before its resources.
pub(crate) async fn unreported_resources_are_waited_for(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "unreported_resources").await;
    bed.start(|_| ());
    let pod = bed.pod("web").container("app", &REQUESTS, &[]);
    let pod = create_pod(&bed.admin, &pod.build()).await.unwrap();
    bed.patch_status(
        "web",
        json!({ "phase": "Running", "containerStatuses": [{
            "name": "app", "containerID": "containerd://c1", "image": "i", "imageID": "i",
            "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
        }]}),
    )
    .await;
    bed.update(Update::Snapshot(vec![(
        bed.key("web", "app", "c1"),
        state("c1", Phase::ScaledDown),
    )]));
    bed.becomes("web", Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    run_pod(&bed.admin, &pod, &[("app", "c1")]).await.unwrap();
    bed.becomes("web", scaled_down()).await;
}
