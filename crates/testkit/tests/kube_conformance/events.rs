use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::{Bed, refusal};

/// An event as zeropod's manager makes it.
fn event(namespace: &str) -> Value {
    json!({
        "metadata": {"generateName": "zeropod-status-event-"},
        "type": "Normal",
        "reason": "Scaled down",
        "action": "Scaled down",
        "message": "Scaled down container app in 1.5s",
        "eventTime": "2026-01-02T03:04:05.678901Z",
        "firstTimestamp": "2026-01-02T03:04:05Z",
        "lastTimestamp": "2026-01-02T03:04:05Z",
        "reportingComponent": "zeropod.ctrox.dev/manager",
        "reportingInstance": "node-1",
        "source": {"component": "zeropod.ctrox.dev/manager", "host": "node-1"},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": namespace,
            "name": "web",
            "uid": "11111111-2222-4333-8444-555555555555",
            "fieldPath": "spec.containers{app}",
        },
    })
}

async fn create(bed: &Bed, event: Value) -> kube::Result<Event> {
    let event = serde_json::from_value(event).unwrap();
    Api::namespaced(bed.client.clone(), &bed.namespace).create(&PostParams::default(), &event).await
}

pub(super) async fn events_get_generated_names(bed: Bed) {
    let first = create(&bed, event(&bed.namespace)).await.unwrap();
    let second = create(&bed, event(&bed.namespace)).await.unwrap();
    let names = [first.metadata.name.unwrap(), second.metadata.name.unwrap()];
    for name in &names {
        let suffix = name.strip_prefix("zeropod-status-event-").unwrap();
        assert_eq!(suffix.len(), 5, "{name}");
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(serde_json::to_value(second.event_time).unwrap(), "2026-01-02T03:04:05.678901Z");
}

// F-J1: an event with a time has to name who reports it, and has bounds.
pub(super) async fn events_with_a_time_need_their_reporter(bed: Bed) {
    let long = "x".repeat(129);
    let too_long = "x".repeat(1025);
    let cases = [
        ("/reportingComponent", ""),
        ("/reportingInstance", ""),
        ("/action", ""),
        ("/reason", ""),
        ("/reportingInstance", &*long),
        ("/action", &*long),
        ("/reason", &*long),
        ("/message", &*too_long),
        ("/involvedObject/namespace", ""),
    ];
    for (field, value) in cases {
        let mut event = event(&bed.namespace);
        *event.pointer_mut(field).unwrap() = value.into();
        let (code, reason, message) = refusal(create(&bed, event).await);
        assert_eq!((code, reason.as_str()), (422, "Invalid"), "{field}: {message}");
        let name = field.rsplit('/').next().unwrap();
        assert!(message.contains(name), "{field}: {message}");
    }
    let mut old = event(&bed.namespace);
    for field in ["eventTime", "reportingComponent", "reportingInstance", "action"] {
        old.as_object_mut().unwrap().remove(field);
    }
    create(&bed, old).await.unwrap();
}
