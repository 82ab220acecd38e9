use serde_json::json;

use super::*;

fn read(json: serde_json::Value) -> pod::Pod {
    let received: Received = serde_json::from_value(json).unwrap();
    received.into_parts().unwrap().1
}

fn pod() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web", "namespace": "default", "uid": "u1", "resourceVersion": "7",
            "generation": 2,
            "managedFields": [{"manager": "x", "fieldsV1": {"f:a": {}}}],
            "labels": {"app": "web", "status.zeropod.ctrox.dev/app": "RUNNING"},
            "annotations": {
                "zeropod.ctrox.dev/cpu-requests": r#"{"app":"100m","side":"1m","other":"0"}"#,
                "unrelated": "x",
            },
        },
        "spec": {
            "volumes": [{"name": "v"}],
            "containers": [{
                "name": "app",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "128Mi", "ephemeral-storage": "1Gi"},
                    "limits": {"cpu": "1"},
                },
                "resizePolicy": [
                    {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                    {"resourceName": "memory", "restartPolicy": "RestartContainer"},
                ],
            }],
            "initContainers": [
                {"name": "setup", "resources": {"requests": {"cpu": "1"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "0"}}},
            ],
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable",
            "containerStatuses": [{
                "name": "app", "containerID": "containerd://c1", "resources": {},
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                "lastState": {"terminated": {"containerID": "containerd://c0"}},
            }],
        },
    })
}

#[test]
fn only_what_is_read_is_kept() {
    let pod = read(pod());
    let q = |text| Quantity::parse(text);
    let request =
        |now, original, restarts| pod::Request { now, original, restarts, lowered: false };
    assert_eq!(
        &*pod.containers,
        [
            pod::Container {
                name: "app".into(),
                kind: ContainerKind::Main,
                id: ContainerId::new("c1").ok(),
                previous_id: ContainerId::new("c0").ok(),
                resources: Requests {
                    cpu: request(q("1m"), q("100m"), false),
                    memory: request(q("128Mi"), None, true),
                },
            },
            pod::Container {
                name: "setup".into(),
                kind: ContainerKind::Init,
                resources: Requests { cpu: request(q("1"), None, false), ..Requests::default() },
                ..pod::Container::default()
            },
            // K3: neither a sentinel nor zero is an original.
            pod::Container {
                name: "side".into(),
                kind: ContainerKind::Sidecar,
                ..pod::Container::default()
            },
        ]
    );
    assert_eq!(pod.labels, [("app".into(), "RUNNING".into())].into());
    assert_eq!((&*pod.uid, &*pod.resource_version, pod.generation), ("u1", "7", 2));
    assert_eq!((pod.unresizable, pod.unreported, pod.life), (None, false, Life::Live));
}

#[test]
fn pods_that_cannot_be_resized() {
    for (path, value, expected) in [
        ("/status/qosClass", json!("Guaranteed"), Unresizable::Guaranteed),
        ("/spec/volumes", json!([]), Unresizable::PodLevel),
        ("/metadata/annotations/unrelated", json!(""), Unresizable::Static),
    ] {
        let mut pod = pod();
        *pod.pointer_mut(path).unwrap() = value;
        match expected {
            Unresizable::PodLevel => {
                pod["spec"]["resources"] = json!({"requests": {"cpu": "1"}});
            }
            Unresizable::Static => {
                pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("h");
            }
            Unresizable::Guaranteed => {}
        }
        assert_eq!(read(pod).unresizable, Some(expected));
    }
}

#[test]
fn resources_are_reported_when_the_first_running_container_has_them() {
    let mut running = pod();
    running["status"]["containerStatuses"][0]["resources"] = json!(null);
    assert!(read(running.clone()).unreported);
    running["status"]["containerStatuses"][0]["state"] = json!({"waiting": {}});
    assert!(!read(running.clone()).unreported);
    running["status"] = json!({});
    assert!(!read(running).unreported);
}

#[test]
fn resize_conditions_of_kubernetes_1_33() {
    let with = |r#type: &str, status: &str, reason: &str| {
        let mut pod = pod();
        pod["status"]["conditions"] = json!([{"type": r#type, "status": status, "reason": reason}]);
        read(pod).pending
    };
    assert_eq!(with("PodResizePending", "True", "Deferred"), Some(Pending::Deferred));
    assert_eq!(with("PodResizePending", "True", "Infeasible"), Some(Pending::Infeasible));
    assert_eq!(with("PodResizeInProgress", "True", "Error"), Some(Pending::Error));
    assert_eq!(with("PodResizeInProgress", "True", ""), None);
    assert_eq!(with("PodResizePending", "False", "Deferred"), None);
}

#[test]
fn lost_annotations_are_remembered_within_one_pod() {
    // K3, F-K10
    let before = read(pod());
    let mut json = pod();
    json["metadata"]["annotations"] = json!({"zeropod.ctrox.dev/cpu-requests": "{broken"});
    let mut lost = read(json.clone());
    assert_eq!(lost.containers[0].resources.cpu.original, None);
    lost.remember(&before);
    assert_eq!(lost.containers[0].resources.cpu.original, Quantity::parse("100m"));
    assert_eq!(lost.containers[0].resources.memory.original, Quantity::parse("128Mi"));
    json["metadata"]["uid"] = json!("u2");
    let mut other = read(json);
    other.remember(&before);
    assert_eq!(other.containers[0].resources.cpu.original, None);
}
