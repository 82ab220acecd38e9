//! Which objects a list or watch is about.

use serde_json::Value;

use super::refusal::Refusal;

/// Fields that the real server lets clients select by, for the kinds served here.
const FIELDS: [&str; 10] = [
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
    "metadata.name",
    "metadata.namespace",
    "reason",
    "spec.nodeName",
    "status.phase",
    "type",
];

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector(Vec<Condition>);

#[derive(Clone, Debug)]
struct Condition {
    path: Vec<String>,
    /// None asks whether there is any.
    value: Option<String>,
    wanted: bool,
}

impl Selector {
    /// Reads the two selectors of a query, either of which may be empty.
    pub(super) fn parse(fields: &str, labels: &str) -> Result<Self, Refusal> {
        let mut conditions = Vec::new();
        for term in terms(fields) {
            let (name, value, wanted) = comparison(term)
                .ok_or_else(|| Refusal::bad_request(format!("invalid field selector: {term}")))?;
            if !FIELDS.contains(&name) {
                return Err(Refusal::bad_request(format!("field label not supported: {name}")));
            }
            let path = name.split('.').map(str::to_owned).collect();
            conditions.push(Condition { path, value: Some(value.to_owned()), wanted });
        }
        for term in terms(labels) {
            if term.contains([' ', '(']) {
                return Err(Refusal::bad_request(format!(
                    "the in-process API has no sets in label selectors: {term}"
                )));
            }
            let (name, value, wanted) = match comparison(term) {
                Some((name, value, wanted)) => (name, Some(value.to_owned()), wanted),
                None => (term.trim_start_matches('!'), None, !term.starts_with('!')),
            };
            let path = ["metadata", "labels", name].map(str::to_owned).to_vec();
            conditions.push(Condition { path, value, wanted });
        }
        Ok(Self(conditions))
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|condition| {
            let found = condition
                .path
                .iter()
                .try_fold(object, |at, part| at.get(part))
                .and_then(Value::as_str);
            let holds = match &condition.value {
                // A field that is not set is empty; a label that is not set is not.
                Some(value) if condition.path[0] != "metadata" => {
                    found.unwrap_or_default() == value
                }
                Some(value) => found == Some(value),
                None => found.is_some(),
            };
            holds == condition.wanted
        })
    }
}

fn terms(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|term| !term.is_empty())
}

fn comparison(term: &str) -> Option<(&str, &str, bool)> {
    let (name, value) = term.split_once('=')?;
    let value = value.strip_prefix('=').unwrap_or(value);
    Some(name.strip_suffix('!').map_or((name, value, true), |name| (name, value, false)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects_by_fields_and_labels() {
        let pod =
            json!({"metadata": {"name": "a", "labels": {"app": "x"}}, "spec": {"nodeName": "n"}});
        let cases = [
            ("spec.nodeName=n", "", true),
            ("spec.nodeName==m", "", false),
            ("spec.nodeName!=m,metadata.name=a", "app=x", true),
            ("status.phase=", "", true),
            ("", "app", true),
            ("", "!app", false),
            ("", "app!=x", false),
            ("", "other!=x", true),
        ];
        for (fields, labels, expected) in cases {
            assert_eq!(
                Selector::parse(fields, labels).unwrap().matches(&pod),
                expected,
                "{fields} {labels}"
            );
        }
        assert!(Selector::parse("spec.color=red", "").is_err());
    }
}
