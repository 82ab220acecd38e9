use k8s_openapi::api::core::v1::{LimitRange, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use zeropod_testkit::kube::{PodBuilder, act_on_resize, create_pod, pod, run_pod};

use super::{Bed, refusal};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn web(bed: &Bed, name: &str) -> PodBuilder {
    pod(&bed.namespace, name).on_node(&bed.node)
}

async fn resize(bed: &Bed, name: &str, spec: Value) -> kube::Result<Pod> {
    let patch = Patch::Strategic(json!({ "spec": spec }));
    bed.pods().patch_resize(name, &PatchParams::default(), &patch).await
}

fn requests(amounts: &Value) -> Value {
    json!({"containers": [{"name": "app", "resources": {"requests": amounts}}]})
}

pub(super) async fn requests_go_down_and_up_again(bed: Bed) {
    let two = web(&bed, "web")
        .label("app", "web")
        .container("app", &[("cpu", "100m"), ("memory", "128Mi")], &[("memory", "1Gi")])
        .container("side", &[("cpu", "1")], &[])
        .build();
    let created = create_pod(&bed.client, &two).await.unwrap();
    run_pod(&bed.client, &created, &[("app", ID), ("side", ID)]).await.unwrap();
    let down = resize(&bed, "web", requests(&json!({"cpu": "1m", "memory": "1Ki"}))).await.unwrap();
    let down = serde_json::to_value(down).unwrap();
    let resources =
        |pod: &Value, index: usize| pod["spec"]["containers"][index]["resources"].clone();
    let expected = json!({"requests": {"cpu": "1m", "memory": "1Ki"}, "limits": {"memory": "1Gi"}});
    assert_eq!(resources(&down, 0), expected);
    assert_eq!(resources(&down, 1), json!({"requests": {"cpu": "1"}}));
    assert_eq!(down["metadata"]["generation"], 2);
    assert_eq!(down["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"], "100m");

    let acted = act_on_resize(&bed.client, &bed.namespace, "web").await.unwrap();
    let acted = serde_json::to_value(acted).unwrap();
    assert_eq!(acted["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"], "1m");

    // Once more is no change, however it is spelled.
    let same =
        resize(&bed, "web", requests(&json!({"cpu": "0.001", "memory": "1Ki"}))).await.unwrap();
    assert_eq!(
        serde_json::to_value(&same).unwrap()["metadata"]["resourceVersion"],
        acted["metadata"]["resourceVersion"]
    );
    let up =
        resize(&bed, "web", requests(&json!({"cpu": "100m", "memory": "128Mi"}))).await.unwrap();
    assert_eq!(resources(&serde_json::to_value(up).unwrap(), 0)["requests"]["memory"], "128Mi");

    // Anything else in the patch is ignored.
    let patch = Patch::Strategic(
        json!({"metadata": {"labels": {"app": "other"}}, "spec": {"nodeName": "x"}}),
    );
    let ignored = bed.pods().patch_resize("web", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(ignored.metadata.labels.unwrap()["app"], "web");
    assert_eq!(ignored.spec.unwrap().node_name.as_deref(), Some(&*bed.node));
}

pub(super) async fn the_kubelet_has_to_report_resources_first(bed: Bed) {
    let web = web(&bed, "web").container("app", &[("cpu", "100m")], &[]).build();
    let created = create_pod(&bed.client, &web).await.unwrap();
    run_pod(&bed.client, &created, &[("app", ID)]).await.unwrap();
    let mut statuses = json!([{"name": "app", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
        "containerID": format!("containerd://{ID}"), "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]);
    let report =
        |statuses: &Value| Patch::Merge(json!({"status": {"containerStatuses": statuses}}));
    bed.pods().patch_status("web", &PatchParams::default(), &report(&statuses)).await.unwrap();
    let down = || resize(&bed, "web", requests(&json!({"cpu": "1m"})));
    let (code, reason, message) = refusal(down().await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.contains("Pod running on node without support for resize"), "{message}");
    statuses[0]["resources"] = json!({});
    bed.pods().patch_status("web", &PatchParams::default(), &report(&statuses)).await.unwrap();
    down().await.unwrap();
}

// F-K1, F-K2: a resize never changes the class of service.
pub(super) async fn the_class_of_service_stays(bed: Bed) {
    let limits = [("cpu", "100m"), ("memory", "128Mi")];
    let pods = [
        (
            "guaranteed",
            web(&bed, "guaranteed").container("app", &limits, &limits),
            json!({"cpu": "1m"}),
        ),
        ("best-effort", web(&bed, "best-effort").container("app", &[], &[]), json!({"cpu": "1m"})),
        (
            "burstable",
            web(&bed, "burstable").container("app", &[("cpu", "1m"), ("memory", "128Mi")], &limits),
            json!({"cpu": "100m"}),
        ),
        (
            "to-zero",
            web(&bed, "to-zero").container("app", &[("cpu", "1m")], &[]),
            json!({"cpu": "0"}),
        ),
    ];
    for (name, pod, amounts) in pods {
        create_pod(&bed.client, &pod.build()).await.unwrap();
        let (code, reason, message) = refusal(resize(&bed, name, requests(&amounts)).await);
        assert_eq!((code, reason.as_str()), (422, "Invalid"), "{name}");
        assert!(
            message.contains("Pod QOS Class may not change as a result of resizing"),
            "{name}: {message}"
        );
    }
}

// F-K2.
pub(super) async fn what_may_not_be_resized(bed: Bed) {
    let amounts = [("cpu", "100m"), ("memory", "128Mi"), ("ephemeral-storage", "1Gi")];
    let mixed = || {
        web(&bed, "web")
            .init_container("setup", false, &[("cpu", "100m")])
            .init_container("sidecar", true, &[("cpu", "100m")])
            .container("app", &amounts, &[("cpu", "1")])
            .resize_policy("memory", "RestartContainer")
    };
    create_pod(&bed.client, &mixed().build()).await.unwrap();
    let resources =
        |resources: Value| json!({"containers": [{"name": "app", "resources": resources}]});
    let cases = [
        (resources(json!({"requests": {"memory": null}})), "resource requests cannot be removed"),
        (resources(json!({"limits": {"cpu": null}})), "resource limits cannot be removed"),
        (
            resources(json!({"requests": {"ephemeral-storage": "2Gi"}})),
            "only cpu and memory resources are mutable",
        ),
        (
            resources(json!({"requests": {"cpu": "2"}})),
            "must be less than or equal to cpu limit of 1",
        ),
        (resources(json!({"requests": {"cpu": "-1m"}})), "must be greater than or equal to 0"),
        (
            json!({"containers": [{"name": "other", "image": "i"}]}),
            "containers may not be added or removed on resize",
        ),
        (
            json!({"initContainers": [{"name": "setup", "resources": {"requests": {"cpu": "1m"}}}]}),
            "resources for non-sidecar init containers are immutable",
        ),
        (
            json!({"containers": [{"name": "app", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            "only cpu and memory resources are mutable",
        ),
    ];
    for (spec, expected) in cases {
        let (code, reason, message) = refusal(resize(&bed, "web", spec.clone()).await);
        assert_eq!((code, reason.as_str()), (422, "Invalid"), "{spec}");
        assert!(message.contains(expected), "{spec}: {message}");
    }
    let sidecar =
        json!({"initContainers": [{"name": "sidecar", "resources": {"requests": {"cpu": "1m"}}}]});
    resize(&bed, "web", sidecar).await.unwrap();

    let mirror = web(&bed, "static")
        .annotation("kubernetes.io/config.mirror", "x")
        .container("app", &[("cpu", "100m")], &[])
        .build();
    create_pod(&bed.client, &mirror).await.unwrap();
    let (code, reason, message) =
        refusal(resize(&bed, "static", requests(&json!({"cpu": "1m"}))).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.contains("static pods cannot be resized"), "{message}");
}

// F-K8.
pub(super) async fn limit_ranges_apply(bed: Bed) {
    let web =
        web(&bed, "web").container("app", &[("cpu", "100m"), ("memory", "128Mi")], &[]).build();
    create_pod(&bed.client, &web).await.unwrap();
    let range: LimitRange = serde_json::from_value(json!({
        "metadata": {"name": "minimum"},
        "spec": {"limits": [{"type": "Container", "min": {"cpu": "10m"}}]},
    }))
    .unwrap();
    let ranges: Api<LimitRange> = Api::namespaced(bed.client.clone(), &bed.namespace);
    ranges.create(&PostParams::default(), &range).await.unwrap();
    let down = || resize(&bed, "web", requests(&json!({"cpu": "1m"})));
    // The real server learns of the range by a watch of its own.
    let mut answer = down().await;
    for _ in 0..1000 {
        if answer.is_err() {
            break;
        }
        resize(&bed, "web", requests(&json!({"cpu": "100m"}))).await.unwrap();
        answer = down().await;
    }
    let (code, reason, message) = refusal(answer);
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert!(
        message.contains("minimum cpu usage per Container is 10m, but request is 1m"),
        "{message}"
    );
}

// F-K4.
pub(super) async fn discovery_lists_it(bed: Bed) {
    let resources = bed.client.list_core_api_resources("v1").await.unwrap();
    let resize =
        resources.resources.iter().find(|resource| resource.name == "pods/resize").unwrap();
    assert!(resize.verbs.iter().any(|verb| verb == "patch"));
    assert_eq!((resize.kind.as_str(), resize.namespaced), ("Pod", true));
}
