//! What a `LimitRange` forbids: too small or too large requests and limits of containers.

use std::sync::Arc;

use serde_json::Value;

use super::{pods::name, quantity::Amount, refusal::Refusal};

/// Refuses a pod that some limit range of its namespace forbids.
pub(super) fn admit<'a>(
    pod: &Value,
    ranges: impl Iterator<Item = &'a Arc<Value>>,
) -> Result<(), Refusal> {
    let mut wrong = Vec::new();
    let limits = ranges.filter_map(|range| range["spec"]["limits"].as_array()).flatten();
    for limit in limits.filter(|limit| limit["type"] == "Container") {
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            bound(limit, &container["resources"], &mut wrong);
        }
    }
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(Refusal::forbidden("pods", name(pod), one)),
        many => Err(Refusal::forbidden("pods", name(pod), &format!("[{}]", many.join(", ")))),
    }
}

fn bound(limit: &Value, resources: &Value, wrong: &mut Vec<String>) {
    for (end, list, what) in [
        ("min", "requests", "request"),
        ("min", "limits", "limit"),
        ("max", "requests", "request"),
        ("max", "limits", "limit"),
    ] {
        for (resource, bound) in limit[end].as_object().into_iter().flatten() {
            let (given, text) =
                (Amount::of(&resources[list][resource]), bound.as_str().unwrap_or_default());
            let (word, outside) = match end {
                "min" => ("minimum", given < Amount::of(bound)),
                _ => ("maximum", given > Amount::of(bound)),
            };
            match given {
                Some(_) if outside => wrong.push(format!(
                    "{word} {resource} usage per Container is {text}, but {what} is {}",
                    resources[list][resource].as_str().unwrap_or_default()
                )),
                None if (end, what) == ("min", "request") || (end, what) == ("max", "limit") => {
                    wrong.push(format!(
                        "{word} {resource} usage per Container is {text}.  No {what} is specified"
                    ));
                }
                _ => {}
            }
        }
    }
}
