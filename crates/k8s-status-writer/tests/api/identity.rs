//! Which pod a container belongs to, and who else writes to it.

use kube::api::{Patch, PatchParams};
use serde_json::json;
use zeropod_shim_api::status::Phase;
use zeropod_testkit::kube::{Cluster, create_pod, delete_pod, run_pod};

use crate::bed::{Bed, Look, running, scaled_down};

pub(crate) async fn s11_the_next_pod_of_the_same_name_starts_afresh(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "s11_the_next_pod").await;
    bed.run_app("db-0", "old").await;
    bed.event("db-0", "old", Phase::ScaledDown);
    bed.becomes("db-0", scaled_down()).await;
    delete_pod(&bed.admin, &bed.namespace, "db-0").await.unwrap();
    let next = bed.pod("db-0").container("app", &[("cpu", "100m"), ("memory", "128Mi")], &[]);
    let next = create_pod(&bed.admin, &next.build()).await.unwrap();
    // The last words of the old one.
    bed.event("db-0", "old", Phase::ScaledDown);
    bed.event_of("db-0", "app", "new", Phase::Running, None);
    run_pod(&bed.admin, &next, &[("app", "new")]).await.unwrap();
    bed.becomes("db-0", running()).await;
    let events = bed.events("db-0").await;
    let of_next = events.iter().filter(|event| event.involved_object.uid == next.metadata.uid);
    assert_eq!(of_next.count(), 0);
}

/// Another pod can take the name between our last look and our write. The uid
/// in the patches makes the server refuse them then.
pub(crate) async fn s11_the_uid_guards_every_write(cluster: &dyn Cluster) {
    let bed = Bed::new(cluster, "s11_the_uid_guards_every_write").await;
    bed.run_app("web", "c1").await;
    let params = PatchParams::default();
    let merge = Patch::Merge(json!({ "metadata": { "uid": "other", "labels": { "a": "b" } } }));
    let resize = Patch::Strategic(json!({
        "metadata": { "uid": "other" },
        "spec": { "containers": [
            { "name": "app", "resources": { "requests": { "cpu": "1m" } } },
        ]},
    }));
    let pods = bed.pods();
    for result in [
        pods.patch("web", &params, &merge).await,
        pods.patch_subresource("resize", "web", &params, &resize).await,
    ] {
        match result {
            Err(kube::Error::Api(status)) => {
                assert_eq!(status.code, 422, "{status:?}");
                assert!(status.message.contains("metadata.uid"), "{status:?}");
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

pub(crate) async fn running_waits_for_the_kubelet(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "running_waits_for_the_kubelet").await;
    let pod = bed.pod("web").container("app", &[("cpu", "100m"), ("memory", "128Mi")], &[]);
    let pod = create_pod(&bed.admin, &pod.build()).await.unwrap();
    bed.run_app("other", "o1").await;
    bed.event_of("web", "app", "c1", Phase::Running, None);
    bed.event("other", "o1", Phase::ScaledDown);
    bed.becomes("other", scaled_down()).await;
    bed.becomes("web", Look::new("", "100m", "128Mi")).await;
    run_pod(&bed.admin, &pod, &[("app", "c1")]).await.unwrap();
    bed.becomes("web", running()).await;
}

/// Two containers change while status writes race with ours.
pub(crate) async fn s5_two_containers_and_a_kubelet_write_at_once(cluster: &dyn Cluster) {
    let bed = Bed::started(cluster, "s5_two_containers").await;
    let requests = [("cpu", "100m"), ("memory", "128Mi")];
    let pod = bed.pod("web").container("app", &requests, &[]).container("b", &requests, &[]);
    bed.run(pod, &[("app", "c1"), ("b", "c2")]).await;
    for round in 0..40 {
        let phase = if round % 2 == 0 { Phase::ScaledDown } else { Phase::Running };
        bed.event("web", "c1", phase);
        bed.event_of("web", "b", "c2", phase, None);
        bed.patch_status("web", json!({ "message": format!("round {round}") })).await;
    }
    bed.becomes("web", running()).await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.event_of("web", "b", "c2", Phase::ScaledDown, None);
    bed.becomes("web", scaled_down()).await;
    crate::bed::eventually(async || {
        let pod = bed.pods().get("web").await.unwrap();
        let label = pod.metadata.labels.unwrap().remove("status.zeropod.ctrox.dev/b");
        if label.as_deref() == Some("SCALED_DOWN") { Ok(()) } else { Err(format!("{label:?}")) }
    })
    .await;
}
