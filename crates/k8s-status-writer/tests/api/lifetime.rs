//! Pods from their start to their end.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use serde_json::json;
use zeropod_k8s_status_writer::Features;
use zeropod_shim_api::{change::Update, status::Phase};
use zeropod_testkit::kube::{Cluster, create_pod, run_pod};

use crate::bed::{Bed, Look, eventually, running, scaled_down, state};

pub(crate) async fn a_scaling_and_back(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "a_scaling_and_back").await;
    bed.run_app("web", "c1").await;
    bed.event_of("web", "app", "c1", Phase::Running, None);
    bed.becomes("web", running()).await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    let pod = bed.pods().get("web").await.unwrap();
    let annotations = pod.metadata.annotations.unwrap();
    assert_eq!(annotations["zeropod.ctrox.dev/cpu-requests"], r#"{"app":"100m"}"#);
    assert_eq!(annotations["zeropod.ctrox.dev/memory-requests"], r#"{"app":"128Mi"}"#);
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
    let messages = bed.messages("web", 2).await;
    assert_eq!(messages, ["Scaled down container app in 120ms", "Restored container app in 120ms"]);
}

pub(crate) async fn events_as_contracted(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "events_as_contracted").await;
    let pod = bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.event_of("web", "app", "c1", Phase::RestoreFailed, None);
    bed.messages("web", 2).await;
    let events = bed.events("web").await;
    let event = &events[0];
    let meta = &event.metadata;
    assert!(meta.name.as_ref().unwrap().starts_with("zeropod-status-event-"));
    assert_eq!(meta.generate_name.as_deref(), Some("zeropod-status-event-"));
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    assert_eq!(event.reason.as_deref(), Some("Scaled down"));
    assert_eq!(event.action.as_deref(), Some("Scaled down"));
    assert_eq!(event.reporting_component.as_deref(), Some("zeropod.ctrox.dev/manager"));
    assert_eq!(event.reporting_instance.as_deref(), Some("manager-x"));
    let source = event.source.as_ref().unwrap();
    assert_eq!(source.component.as_deref(), Some("zeropod.ctrox.dev/manager"));
    assert_eq!(source.host.as_deref(), Some(&*bed.node));
    let object = &event.involved_object;
    assert_eq!(object.uid, pod.metadata.uid);
    assert_eq!(object.field_path.as_deref(), Some("spec.containers{app}"));
    assert!(event.event_time.is_some() && event.first_timestamp.is_some());
    // S14
    assert_eq!(events[1].type_.as_deref(), Some("Warning"));
    assert_eq!(events[1].reason.as_deref(), Some("Restore failed"));
}

pub(crate) async fn labels_only_touches_nothing_else(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "labels_only_touches_nothing_else").await;
    bed.start(|config| config.features = Features { labels: true, ..Features::default() });
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
    let pod = bed.pods().get("web").await.unwrap();
    assert_eq!(pod.metadata.annotations, None);
    assert_eq!(bed.events("web").await.len(), 0);
}

/// Ten events and the end of a queue that overflowed come before the first
/// pod is known.
pub(crate) async fn s1_nothing_taken_before_the_pods_are_known_is_lost(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "s1_nothing_taken_before").await;
    bed.run_app("web", "c1").await;
    bed.run_app("db", "d1").await;
    bed.start(|_| ());
    // Taken at once, before a list can have been answered.
    bed.update(Update::Snapshot(Vec::new()));
    for _ in 0..5 {
        bed.event("web", "c1", Phase::ScaledDown);
        bed.event("web", "c1", Phase::Running);
    }
    for phase in [Phase::ScaledDown, Phase::Running, Phase::ScaledDown] {
        bed.event("db", "d1", phase);
    }
    bed.becomes("web", running()).await;
    bed.becomes("db", scaled_down()).await;
    bed.messages("web", 10).await;
    bed.messages("db", 3).await;
}

pub(crate) async fn s2_a_restart_is_a_non_event(cluster: &dyn Cluster) {
    let mut bed = Bed::started(cluster, "s2_a_restart_is_a_non_event").await;
    for name in ["slept", "woke"] {
        bed.run_app(name, name).await;
        bed.event(name, name, Phase::ScaledDown);
        bed.becomes(name, scaled_down()).await;
    }
    bed.stop().await;
    // One wakes up while nobody looks.
    let before = bed.pods().get("slept").await.unwrap().metadata.resource_version;
    bed.start(|_| ());
    bed.update(Update::Snapshot(vec![
        (bed.key("slept", "app", "slept"), state("slept", Phase::ScaledDown)),
        (bed.key("woke", "app", "woke"), state("woke", Phase::Running)),
    ]));
    bed.becomes("woke", running()).await;
    let after = bed.pods().get("slept").await.unwrap().metadata.resource_version;
    assert_eq!(before, after, "written without need");
}

pub(crate) async fn s12_a_terminating_pod_is_left_alone(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "s12_a_terminating_pod").await;
    bed.run_app("web", "c1").await;
    bed.run_app("other", "o1").await;
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
    let grace = DeleteParams { grace_period_seconds: Some(60), ..DeleteParams::default() };
    let deleted = bed.pods().delete("web", &grace).await.unwrap().left().unwrap();
    bed.removed("web", "c1", Phase::Stopping);
    // What comes later for another pod is done, so this was looked at.
    bed.event("other", "o1", Phase::ScaledDown);
    bed.becomes("other", scaled_down()).await;
    let pod = bed.pods().get("web").await.unwrap();
    assert_eq!(pod.metadata.resource_version, deleted.metadata.resource_version);
}

pub(crate) async fn a_label_goes_with_its_container(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "a_label_goes_with_its_container").await;
    bed.start(|config| config.gone_after = Duration::from_secs(1));
    bed.update(Update::Snapshot(Vec::new()));
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    bed.removed("web", "c1", Phase::ScaledDown);
    bed.becomes("web", Look::new("", "100m", "128Mi")).await;
}

pub(crate) async fn s7_a_terminating_namespace_refuses_events_only(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "s7_a_terminating_namespace").await;
    bed.run_app("web", "c1").await;
    bed.event_of("web", "app", "c1", Phase::Running, None);
    bed.becomes("web", running()).await;
    let namespaces = Api::<Namespace>::all(bed.admin.clone());
    namespaces.delete(&bed.namespace, &DeleteParams::default()).await.unwrap();
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    assert_eq!(bed.events("web").await.len(), 0);
}

/// kill -9 after each of the writes that a scaling takes.
pub(crate) async fn killed_at_any_step_the_next_writer_finishes(cluster: &dyn Cluster) {
    let mut bed = Bed::new(cluster, "killed_at_any_step").await;
    let patched = json!({ "metadata": {
        "labels": { "status.zeropod.ctrox.dev/app": "SCALED_DOWN" },
        "annotations": {
            "zeropod.ctrox.dev/cpu-requests": r#"{"app":"100m"}"#,
            "zeropod.ctrox.dev/memory-requests": r#"{"app":"128Mi"}"#,
        },
    }});
    for (name, after) in [("nothing", None), ("metadata", Some(patched))] {
        let pod = bed.pod(name).container("app", &[("cpu", "100m"), ("memory", "128Mi")], &[]);
        let pod = create_pod(&bed.admin, &pod.build()).await.unwrap();
        if let Some(after) = after {
            bed.patch(name, after).await;
        }
        run_pod(&bed.admin, &pod, &[("app", name)]).await.unwrap();
        bed.start(|_| ());
        let snapshot = |bed: &Bed, phase| {
            Update::Snapshot(vec![(bed.key(name, "app", name), state(name, phase))])
        };
        bed.update(snapshot(&bed, Phase::ScaledDown));
        bed.becomes(name, scaled_down()).await;
        bed.kill().await;
        // Down as a whole; the next writer finds it awake, and is killed as
        // soon as anything of that has been written.
        bed.start(|_| ());
        bed.update(snapshot(&bed, Phase::Running));
        eventually(async || {
            let look = Look::of(&bed.pods().get(name).await.unwrap());
            if look == scaled_down() { Err("still down".into()) } else { Ok(()) }
        })
        .await;
        bed.kill().await;
        bed.start(|_| ());
        bed.update(snapshot(&bed, Phase::Running));
        bed.becomes(name, running()).await;
        bed.kill().await;
    }
}
