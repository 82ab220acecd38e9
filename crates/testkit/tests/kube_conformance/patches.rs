use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use zeropod_testkit::kube::{create_pod, pod, run_pod};

use super::{Bed, refusal};

async fn web(bed: &Bed) -> Pod {
    let web = pod(&bed.namespace, "web")
        .on_node(&bed.node)
        .label("app", "web")
        .annotation("note", "kept")
        .container("app", &[("cpu", "0.1"), ("memory", "128Mi")], &[("memory", "0.5Gi")])
        .build();
    create_pod(&bed.client, &web).await.unwrap()
}

async fn merge(bed: &Bed, patch: Value) -> kube::Result<Pod> {
    bed.pods().patch("web", &PatchParams::default(), &Patch::Merge(patch)).await
}

pub(super) async fn the_server_completes_a_pod(bed: Bed) {
    let mut web = serde_json::to_value(web(&bed).await).unwrap();
    let metadata = web["metadata"].take();
    assert!(metadata["uid"].is_string() && metadata["creationTimestamp"].is_string());
    assert_eq!(metadata["generation"], 1);
    assert_eq!(web["status"]["phase"], "Pending");
    assert_eq!(web["status"]["qosClass"], "Burstable");
    assert_eq!(web["spec"]["restartPolicy"], "Always");
    assert_eq!(web["spec"]["terminationGracePeriodSeconds"], 30);
    let container = &web["spec"]["containers"][0];
    let resources =
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}});
    assert_eq!(container["resources"], resources);

    let limits = [("cpu", "100m"), ("memory", "1Gi")];
    let limited = pod(&bed.namespace, "limited").container("app", &[], &limits).build();
    let limited = serde_json::to_value(create_pod(&bed.client, &limited).await.unwrap()).unwrap();
    assert_eq!(limited["status"]["qosClass"], "Guaranteed");
    assert_eq!(
        limited["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "100m", "memory": "1Gi"})
    );
    let modest = pod(&bed.namespace, "modest").container("app", &[], &[]).build();
    let modest = serde_json::to_value(create_pod(&bed.client, &modest).await.unwrap()).unwrap();
    assert_eq!(modest["status"]["qosClass"], "BestEffort");
    let policies = |pod: &Value| pod["spec"]["containers"][0]["resizePolicy"].clone();
    // Absent means NotRequired.
    assert_eq!((policies(&modest), policies(&limited)), (Value::Null, Value::Null));
}

pub(super) async fn a_merge_patch_changes_just_its_keys(bed: Bed) {
    web(&bed).await;
    let patch = json!({"metadata": {
        "labels": {"status.zeropod.ctrox.dev/app": "RUNNING", "app": null},
        "annotations": {"new": "{\"a\":\"100m\"}"},
    }});
    let patched = merge(&bed, patch).await.unwrap();
    let metadata = serde_json::to_value(patched.metadata).unwrap();
    assert_eq!(metadata["labels"], json!({"status.zeropod.ctrox.dev/app": "RUNNING"}));
    assert_eq!(metadata["annotations"], json!({"note": "kept", "new": "{\"a\":\"100m\"}"}));
    assert_eq!(metadata["generation"], 1);
    let strategic = Patch::Strategic(json!({"metadata": {"labels": {"b": "c"}}}));
    let patched = bed.pods().patch("web", &PatchParams::default(), &strategic).await.unwrap();
    assert_eq!(patched.metadata.labels.unwrap().len(), 2);
}

pub(super) async fn a_patch_that_changes_nothing_makes_no_version(bed: Bed) {
    let before = web(&bed).await;
    let after =
        merge(&bed, json!({"metadata": {"labels": {"app": "web", "absent": null}}})).await.unwrap();
    assert_eq!(before.metadata.resource_version, after.metadata.resource_version);
}

pub(super) async fn a_stale_version_conflicts(bed: Bed) {
    let version = web(&bed).await.metadata.resource_version;
    let patch =
        |value: &str| json!({"metadata": {"resourceVersion": version, "labels": {"app": value}}});
    merge(&bed, patch("new")).await.unwrap();
    let (code, reason, _) = refusal(merge(&bed, patch("newer")).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
}

pub(super) async fn labels_are_checked(bed: Bed) {
    web(&bed).await;
    for (key, value) in [("app", "has space"), ("app", &*"x".repeat(64)), ("a/-b", "c")] {
        let (code, reason, _) =
            refusal(merge(&bed, json!({"metadata": {"labels": {key: value}}})).await);
        assert_eq!((code, reason.as_str()), (422, "Invalid"), "{key}={value}");
    }
}

pub(super) async fn the_spec_of_a_pod_stays(bed: Bed) {
    web(&bed).await;
    let requests = json!({"resources": {"requests": {"cpu": "1m"}}, "name": "app"});
    let patch = Patch::Strategic(json!({"spec": {"containers": [requests]}}));
    let (code, reason, message) =
        refusal(bed.pods().patch("web", &PatchParams::default(), &patch).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.contains("pod updates may not change fields other than"), "{message}");
    // A status on the side is ignored.
    let patched =
        merge(&bed, json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Failed"}}))
            .await
            .unwrap();
    assert_eq!(patched.status.unwrap().phase.as_deref(), Some("Pending"));
}

pub(super) async fn a_status_patch_changes_status_and_metadata(bed: Bed) {
    let created = web(&bed).await;
    let id = "ab".repeat(32);
    let running = run_pod(&bed.client, &created, &[("app", &id)]).await.unwrap();
    let status = serde_json::to_value(running.status).unwrap();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["qosClass"], "Burstable");
    assert_eq!(status["containerStatuses"][0]["containerID"], format!("containerd://{id}"));
    assert_eq!(status["containerStatuses"][0]["resources"]["requests"]["cpu"], "100m");

    let patch = json!({
        "metadata": {"labels": {"from": "status"}},
        "spec": {"nodeName": "other"},
        "status": {"conditions": [{"type": "PodResizePending", "status": "True", "reason": "Deferred"}]},
    });
    let patch = Patch::Strategic(patch);
    let patched = bed.pods().patch_status("web", &PatchParams::default(), &patch).await.unwrap();
    let patched = serde_json::to_value(patched).unwrap();
    assert_eq!(patched["metadata"]["labels"]["from"], "status");
    assert_eq!(patched["spec"]["nodeName"], bed.node);
    let types: Vec<_> = patched["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["type"].as_str().unwrap())
        .collect();
    assert_eq!(types.len(), 2, "{types:?}");
    assert!(types.contains(&"Ready") && types.contains(&"PodResizePending"));
}

pub(super) async fn an_unknown_media_type_is_refused(bed: Bed) {
    web(&bed).await;
    let request =
        axum::http::Request::patch(format!("/api/v1/namespaces/{}/pods/web", bed.namespace))
            .header("content-type", "text/plain")
            .body(b"{}".to_vec())
            .unwrap();
    let (code, reason, _) = refusal(bed.client.request::<Value>(request).await);
    assert_eq!((code, reason.as_str()), (415, "UnsupportedMediaType"));
}
