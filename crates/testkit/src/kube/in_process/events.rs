//! What the server checks in events that come as `core/v1`.

use k8s_openapi::api::core::v1::Event;
use serde_json::Value;

use super::refusal::{Refusal, Wrong};

/// Longest text of some fields, in bytes.
const LIMITS: [(&str, usize); 4] =
    [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)];

/// Completes and checks an event that is being made.
pub(super) fn complete(event: &mut Value, name: &str) -> Result<(), Refusal> {
    let typed: Event = serde_json::from_value(event.clone()).map_err(|error| {
        Refusal::bad_request(format!(
            "Event in version \"v1\" cannot be handled as a Event: {error}"
        ))
    })?;
    *event = serde_json::to_value(typed)
        .map_err(|error| Refusal::new(500, "InternalError", error.to_string()))?;
    let wrong = check(event);
    if wrong.is_empty() { Ok(()) } else { Err(Refusal::invalid("Event", name, &wrong)) }
}

fn check(event: &Value) -> Vec<Wrong> {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let involved = event["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let mut wrong = Vec::new();
    let mut mismatch = || {
        wrong.push(Wrong::invalid(
            "involvedObject.namespace",
            involved,
            "does not match event.namespace",
        ));
    };
    // Only events that say when they happened are checked for the rest.
    if event["eventTime"].is_null() {
        if involved != namespace && !(involved.is_empty() && namespace == "default") {
            mismatch();
        }
        return wrong;
    }
    if involved.is_empty() && !matches!(namespace, "default" | "kube-system") {
        mismatch();
    }
    for field in ["reportingComponent", "reportingInstance", "action", "reason"] {
        if text(field).is_empty() {
            wrong.push(Wrong::required(field));
        }
    }
    for (field, limit) in LIMITS {
        if text(field).len() > limit {
            wrong.push(Wrong::invalid(field, "", &format!("can have at most {limit} characters")));
        }
    }
    wrong
}
