//! Which resources there are, what a path means, and discovery.

use serde_json::{Value, json};

/// A kind of object that is served.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    subresources: &'static [&'static str],
}

const fn resource(
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    subresources: &'static [&'static str],
) -> Resource {
    Resource { plural, kind, namespaced, subresources }
}

static RESOURCES: [Resource; 8] = [
    resource("configmaps", "ConfigMap", true, &[]),
    resource("events", "Event", true, &[]),
    resource("limitranges", "LimitRange", true, &[]),
    resource("namespaces", "Namespace", false, &[]),
    resource("nodes", "Node", false, &["status"]),
    resource("pods", "Pod", true, &["status", "resize"]),
    resource("secrets", "Secret", true, &[]),
    resource("serviceaccounts", "ServiceAccount", true, &[]),
];

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A document that describes the server itself.
    Document(Document),
    /// All objects of a kind, in one namespace or in all.
    Collection(&'static Resource, Option<String>),
    /// One object, or part of it.
    Object(&'static Resource, Key, Option<&'static str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Healthy,
    Version,
    CoreVersions,
    CoreResources,
    Groups,
}

/// Where an object is among those of its kind; no namespace is an empty one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

pub(super) fn find(plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| resource.plural == plural)
}

/// Reads a path; none if nothing is served there.
pub(super) fn target(path: &str, resize_served: bool) -> Option<Target> {
    let document = |document| Some(Target::Document(document));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (resource, namespace, rest) = match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => return document(Document::Healthy),
        ["version"] => return document(Document::Version),
        ["api"] => return document(Document::CoreVersions),
        ["apis"] => return document(Document::Groups),
        ["api", "v1"] => return document(Document::CoreResources),
        ["api", "v1", "namespaces", namespace, plural, rest @ ..]
            if find(plural).is_some_and(|r| r.namespaced) =>
        {
            (find(plural)?, Some((*namespace).to_owned()), rest)
        }
        ["api", "v1", plural, rest @ ..] => (find(plural)?, None, rest),
        _ => return None,
    };
    match rest {
        [] => Some(Target::Collection(resource, namespace)),
        [name, sub @ ..] if resource.namespaced == namespace.is_some() => {
            let sub = match sub {
                [] => None,
                [sub] => Some(*subresources(resource, resize_served).find(|known| known == &sub)?),
                _ => return None,
            };
            let key = Key { namespace: namespace.unwrap_or_default(), name: (*name).to_owned() };
            Some(Target::Object(resource, key, sub))
        }
        _ => None,
    }
}

/// Text of a document, which is JSON but for the health checks.
pub(super) fn document(document: Document, resize_served: bool) -> Value {
    match document {
        Document::Healthy => "ok".into(),
        Document::Version => {
            let minor = if resize_served { "34" } else { "31" };
            json!({"major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "platform": "linux/amd64"})
        }
        Document::CoreVersions => json!({"kind": "APIVersions", "versions": ["v1"]}),
        Document::Groups => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        Document::CoreResources => {
            let resources: Vec<_> =
                RESOURCES.iter().flat_map(|resource| described(resource, resize_served)).collect();
            json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": resources})
        }
    }
}

fn described(resource: &'static Resource, resize_served: bool) -> impl Iterator<Item = Value> {
    let entry = move |name: String, verbs: &[&str]| {
        json!({
            "name": name,
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": verbs,
        })
    };
    let object = entry(
        resource.plural.into(),
        &["create", "delete", "get", "list", "patch", "update", "watch"],
    );
    let part =
        move |sub: &&str| entry(format!("{}/{sub}", resource.plural), &["get", "patch", "update"]);
    std::iter::once(object).chain(subresources(resource, resize_served).map(part))
}

fn subresources(
    resource: &'static Resource,
    resize_served: bool,
) -> impl Iterator<Item = &'static &'static str> {
    resource.subresources.iter().filter(move |name| resize_served || **name != "resize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths() {
        let key =
            |namespace: &str, name: &str| Key { namespace: namespace.into(), name: name.into() };
        let (pods, namespaces) = (find("pods").unwrap(), find("namespaces").unwrap());
        let cases = [
            ("/api/v1", Some(Target::Document(Document::CoreResources))),
            ("/api/v1/pods", Some(Target::Collection(pods, None))),
            ("/api/v1/namespaces", Some(Target::Collection(namespaces, None))),
            ("/api/v1/namespaces/a", Some(Target::Object(namespaces, key("", "a"), None))),
            ("/api/v1/namespaces/a/pods", Some(Target::Collection(pods, Some("a".into())))),
            ("/api/v1/namespaces/a/pods/p", Some(Target::Object(pods, key("a", "p"), None))),
            (
                "/api/v1/namespaces/a/pods/p/resize",
                Some(Target::Object(pods, key("a", "p"), Some("resize"))),
            ),
            ("/api/v1/namespaces/a/pods/p/exec", None),
            ("/api/v1/pods/p", None),
            ("/api/v1/widgets", None),
            ("/metrics", None),
        ];
        for (path, expected) in cases {
            assert_eq!(target(path, true), expected, "{path}");
        }
        assert_eq!(target("/api/v1/namespaces/a/pods/p/resize", false), None);
    }
}
