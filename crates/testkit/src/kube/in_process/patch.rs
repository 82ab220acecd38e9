//! Patches: JSON merge (RFC 7386), and the part of the strategic kind that
//! clients of pods use: maps are merged, some lists by the name of their items.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// Lists of pods that a strategic patch merges by a key; all others are replaced.
const MERGE_KEYS: [(&str, &str); 11] = [
    ("conditions", "type"),
    ("containers", "name"),
    ("env", "name"),
    ("ephemeralContainers", "name"),
    ("hostAliases", "ip"),
    ("imagePullSecrets", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
    ("volumes", "name"),
];

/// Applies a patch of the given media type.
pub(super) fn apply(target: &mut Value, patch: &Value, content_type: &str) -> Result<(), Refusal> {
    if !patch.is_object() {
        return Err(Refusal::bad_request("a patch must be an object"));
    }
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" => merge(target, patch),
        "application/strategic-merge-patch+json" => strategic(target, patch)?,
        other => {
            let message = format!("the body of the request was in an unknown format: {other}");
            return Err(Refusal::new(415, "UnsupportedMediaType", message));
        }
    }
    Ok(())
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn strategic(target: &mut Value, patch: &Value) -> Result<(), Refusal> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    let target = object(target);
    match patch.get("$patch").map(|directive| directive.as_str().unwrap_or_default()) {
        None => {}
        Some("replace") => {
            *target = patch
                .iter()
                .filter(|(key, _)| *key != "$patch")
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            return Ok(());
        }
        Some(other) => return Err(unsupported(&format!("$patch: {other}"))),
    }
    for (key, value) in patch {
        if key.starts_with("$setElementOrder/") {
            // What clients send along; the order they ask for is the one that merging keeps.
        } else if key.starts_with('$') {
            return Err(unsupported(key));
        } else if value.is_null() {
            target.remove(key);
        } else if let (Some((_, merge_key)), Value::Array(items)) =
            (MERGE_KEYS.iter().find(|(list, _)| list == key), value)
        {
            merge_items(
                target.entry(key).or_insert_with(|| Value::Array(Vec::new())),
                items,
                merge_key,
            )?;
        } else {
            strategic(target.entry(key).or_insert(Value::Null), value)?;
        }
    }
    Ok(())
}

fn merge_items(target: &mut Value, patches: &[Value], merge_key: &str) -> Result<(), Refusal> {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(items) = target else { return Ok(()) };
    for patch in patches {
        let Some(key) = patch.get(merge_key) else {
            return Err(Refusal::bad_request(format!(
                "an item of a list has no merge key {merge_key}"
            )));
        };
        let place = items.iter().position(|item| item.get(merge_key) == Some(key));
        match (place, patch.get("$patch").and_then(Value::as_str)) {
            (Some(place), Some("delete")) => drop(items.remove(place)),
            (None, Some("delete")) => {}
            (Some(place), _) => strategic(&mut items[place], patch)?,
            (None, _) => {
                let mut item = Value::Null;
                strategic(&mut item, patch)?;
                items.push(item);
            }
        }
    }
    Ok(())
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

fn unsupported(directive: &str) -> Refusal {
    Refusal::new(
        501,
        "NotImplemented",
        format!("the in-process API does not know the directive {directive}"),
    )
}
