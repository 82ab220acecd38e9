use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use zeropod_testkit::kube::{create_pod, delete_pod, pod};

use super::{Bed, refusal};

pub(super) async fn absent_objects_are_not_found(bed: Bed) {
    let expected = (404, "NotFound".to_owned(), "pods \"web\" not found".to_owned());
    let merge = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    assert_eq!(refusal(bed.pods().get("web").await), expected);
    assert_eq!(refusal(bed.pods().patch("web", &PatchParams::default(), &merge).await), expected);
    let strategic = Patch::Strategic(json!({"spec": {}}));
    assert_eq!(
        refusal(bed.pods().patch_resize("web", &PatchParams::default(), &strategic).await),
        expected
    );
    assert_eq!(refusal(bed.pods().delete("web", &DeleteParams::default()).await), expected);
}

pub(super) async fn a_name_is_taken_once(bed: Bed) {
    let web = pod(&bed.namespace, "web").container("app", &[], &[]).build();
    let first = create_pod(&bed.client, &web).await.unwrap();
    let (code, reason, _) = refusal(create_pod(&bed.client, &web).await);
    assert_eq!((code, reason.as_str()), (409, "AlreadyExists"));
    // Free again, for another object.
    delete_pod(&bed.client, &bed.namespace, "web").await.unwrap();
    let second = create_pod(&bed.client, &web).await.unwrap();
    assert_ne!(first.metadata.uid, second.metadata.uid);
}

pub(super) async fn a_pod_needs_its_namespace(bed: Bed) {
    let stray = pod("no-such-namespace", "web").container("app", &[], &[]).build();
    let (code, reason, _) = refusal(create_pod(&bed.client, &stray).await);
    assert_eq!((code, reason.as_str()), (404, "NotFound"));
    let elsewhere = Pod {
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            ..pod("", "web").build().metadata
        },
        ..pod("", "web").container("app", &[], &[]).build()
    };
    let (code, reason, _) = refusal(bed.pods().create(&PostParams::default(), &elsewhere).await);
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
}

pub(super) async fn malformed_pods_are_refused(bed: Bed) {
    let empty = pod(&bed.namespace, "web").build();
    let (code, reason, _) = refusal(create_pod(&bed.client, &empty).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    let greedy =
        pod(&bed.namespace, "web").container("app", &[("cpu", "2")], &[("cpu", "1")]).build();
    let (code, reason, message) = refusal(create_pod(&bed.client, &greedy).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.contains("must be less than or equal to cpu limit"), "{message}");
    let odd = pod(&bed.namespace, "web").container("app", &[("cpu", "much")], &[]).build();
    let (code, reason, _) = refusal(create_pod(&bed.client, &odd).await);
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
}

pub(super) async fn deleting_waits_for_the_kubelet_of_a_bound_pod(bed: Bed) {
    let bound = pod(&bed.namespace, "bound").on_node(&bed.node).container("app", &[], &[]).build();
    create_pod(&bed.client, &bound).await.unwrap();
    bed.pods().delete("bound", &DeleteParams::default()).await.unwrap();
    let going = bed.pods().get("bound").await.unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    // As its kubelet does in the end.
    delete_pod(&bed.client, &bed.namespace, "bound").await.unwrap();
    assert_eq!(refusal(bed.pods().get("bound").await).0, 404);

    let free = pod(&bed.namespace, "free").container("app", &[], &[]).build();
    create_pod(&bed.client, &free).await.unwrap();
    bed.pods().delete("free", &DeleteParams::default()).await.unwrap();
    assert_eq!(refusal(bed.pods().get("free").await).0, 404);
}

pub(super) async fn another_uid_is_not_the_object(bed: Bed) {
    let web = pod(&bed.namespace, "web").container("app", &[], &[]).build();
    create_pod(&bed.client, &web).await.unwrap();
    let uid = "11111111-2222-4333-8444-555555555555";
    let patch = Patch::Merge(json!({"metadata": {"uid": uid, "labels": {"a": "b"}}}));
    let (code, reason, message) =
        refusal(bed.pods().patch("web", &PatchParams::default(), &patch).await);
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(
        message.contains("metadata.uid") && message.contains("field is immutable"),
        "{message}"
    );
    let preconditions = Some(Preconditions { uid: Some(uid.into()), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    let (code, reason, _) = refusal(bed.pods().delete("web", &params).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
}
