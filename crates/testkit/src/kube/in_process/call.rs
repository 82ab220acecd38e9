//! What a request does to the store.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::Query,
    http::{HeaderMap, Method, Uri, header},
};
use serde_json::{Value, json};

use super::{
    events,
    http::Server,
    limits, patch, pods,
    refusal::Refusal,
    resize,
    resources::{self, Document, Key, Resource, Target},
    selector::Selector,
    store::Store,
    watch::{Wish, version},
};

/// How long a watch lasts whose client does not say.
const WATCH_TIMEOUT: Duration = Duration::from_mins(30);

/// One request, whole.
pub(super) struct Call<'a> {
    pub(super) server: &'a Arc<Server>,
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
}

/// What is sent back: a document, or what will still happen.
pub(super) enum Answer {
    Json(u16, Value),
    Text(String),
    Watch(Wish),
}

impl Call<'_> {
    /// Does what is asked, or says why not.
    pub(super) fn answer(&self) -> Result<Answer, Refusal> {
        let target = resources::target(self.uri.path(), self.resize_served())
            .ok_or_else(Refusal::no_such_path)?;
        match (self.method.as_str(), target) {
            ("GET", Target::Document(Document::Healthy)) => Ok(Answer::Text("ok".into())),
            ("GET", Target::Document(document)) => {
                Ok(Answer::Json(200, resources::document(document, self.resize_served())))
            }
            ("GET", Target::Collection(resource, namespace)) => {
                self.list_or_watch(resource, namespace)
            }
            ("POST", Target::Collection(resource, namespace)) => self.create(resource, namespace),
            ("GET", Target::Object(resource, key, _)) => {
                Ok(found(self.server.store().get(resource, &key)?.as_ref()))
            }
            ("PATCH" | "PUT", Target::Object(resource, key, part)) => {
                self.update(resource, &key, part)
            }
            ("DELETE", Target::Object(resource, key, None)) => self.delete(resource, &key),
            _ => Err(Refusal::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )),
        }
    }

    fn list_or_watch(
        &self,
        resource: &'static Resource,
        namespace: Option<String>,
    ) -> Result<Answer, Refusal> {
        let selector = Selector::parse(&self.query("fieldSelector"), &self.query("labelSelector"))?;
        let since = version(&self.query("resourceVersion"))?;
        if is_true(&self.query("watch")) {
            let timeout =
                self.query("timeoutSeconds").parse().map_or(WATCH_TIMEOUT, Duration::from_secs);
            let mark_initial = is_true(&self.query("sendInitialEvents"));
            let since = since.filter(|_| !mark_initial);
            let bookmarks = is_true(&self.query("allowWatchBookmarks"));
            return Ok(Answer::Watch(Wish {
                resource,
                namespace,
                selector,
                since,
                mark_initial,
                bookmarks,
                timeout,
            }));
        }
        let limit =
            self.query("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let after = self.query("continue");
        let store = self.server.store();
        let place = |key: &Key| format!("{}/{}", key.namespace, key.name);
        let mut all = store
            .list(resource, namespace.as_deref())
            .filter(|(key, object)| place(key) > after && selector.matches(object));
        let page: Vec<_> = all.by_ref().take(limit).collect();
        let rest = all.count();
        let mut metadata = json!({"resourceVersion": store.version().to_string()});
        if let (Some((last, _)), 1..) = (page.last(), rest) {
            metadata["continue"] = place(last).into();
            metadata["remainingItemCount"] = rest.into();
        }
        let items: Vec<_> = page.into_iter().map(|(_, object)| without_type(object)).collect();
        let kind = format!("{}List", resource.kind);
        Ok(Answer::Json(
            200,
            json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}),
        ))
    }

    fn create(
        &self,
        resource: &'static Resource,
        namespace: Option<String>,
    ) -> Result<Answer, Refusal> {
        let object = self.json()?;
        let namespace = match (namespace, resource.namespaced) {
            (Some(namespace), true) => namespace,
            (None, false) => String::new(),
            _ => {
                return Err(Refusal::new(
                    405,
                    "MethodNotAllowed",
                    "objects are created in their namespace",
                ));
            }
        };
        let mut store = self.server.store();
        if let (true, Some(namespaces)) = (resource.namespaced, resources::find("namespaces")) {
            store.get(namespaces, &Key { namespace: String::new(), name: namespace.clone() })?;
        }
        let ranges = limit_ranges(&store, &namespace);
        let object =
            store.create(resource, namespace, object, |object, name| match resource.plural {
                "pods" => {
                    pods::complete(object, name)?;
                    limits::admit(object, ranges.iter())
                }
                "events" => events::complete(object, name),
                "namespaces" => {
                    object["status"] = json!({"phase": "Active"});
                    Ok(())
                }
                _ => Ok(()),
            })?;
        self.changed();
        Ok(Answer::Json(201, Value::clone(&object)))
    }

    fn update(
        &self,
        resource: &'static Resource,
        key: &Key,
        part: Option<&str>,
    ) -> Result<Answer, Refusal> {
        let body = self.json()?;
        let media_type =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let mut store = self.server.store();
        let ranges = limit_ranges(&store, &key.namespace);
        let object = store.update(resource, key, |old| {
            let mut new = old.clone();
            if self.method == Method::PUT {
                if body["metadata"]["name"] != old["metadata"]["name"] {
                    return Err(Refusal::bad_request(
                        "the name of the object does not match the name on the URL",
                    ));
                }
                new = body;
                if new["metadata"]["uid"].is_null() {
                    new["metadata"]["uid"] = old["metadata"]["uid"].clone();
                }
            } else {
                patch::apply(&mut new, &body, media_type.unwrap_or_default())?;
            }
            match (resource.plural, part) {
                ("pods", None) => pods::updated(old, &new, !self.resize_served()),
                ("pods", Some("status")) => pods::status_updated(old, &new),
                ("pods", Some("resize")) => {
                    let new = resize::resized(old, &new)?;
                    limits::admit(&new, ranges.iter())?;
                    Ok(new)
                }
                (_, Some(_)) => {
                    let mut result = old.clone();
                    result["status"] = new["status"].clone();
                    Ok(result)
                }
                (_, None) => {
                    new["status"] = old["status"].clone();
                    Ok(new)
                }
            }
        })?;
        self.changed();
        Ok(found(&object))
    }

    fn delete(&self, resource: &'static Resource, key: &Key) -> Result<Answer, Refusal> {
        let options = if self.body.is_empty() { Value::Null } else { self.json()? };
        let wanted_grace = options["gracePeriodSeconds"]
            .as_u64()
            .or_else(|| self.query("gracePeriodSeconds").parse().ok());
        let mut store = self.server.store();
        let object = store.get(resource, key)?;
        for field in ["uid", "resourceVersion"] {
            let (wanted, is) = (&options["preconditions"][field], &object["metadata"][field]);
            if wanted.is_string() && wanted != is {
                let why = format!(
                    "Precondition failed: {field} in precondition: {wanted}, in object meta: {is}"
                );
                return Err(Refusal::conflict(resource.plural, &key.name, &why));
            }
        }
        let is_pod = resource.plural == "pods";
        let mut grace = 0;
        if is_pod {
            // Also one that goes at once is marked first, which watches see.
            grace = pods::grace(&object, wanted_grace);
            store.mark_deleted(resource, key, grace)?;
        }
        let object =
            if grace > 0 { store.get(resource, key)? } else { store.delete(resource, key)? };
        self.changed();
        if is_pod {
            return Ok(found(&object));
        }
        let details =
            json!({"name": key.name, "kind": resource.plural, "uid": object["metadata"]["uid"]});
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        Ok(Answer::Json(200, status))
    }

    fn json(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(self.body)
            .map_err(|error| Refusal::bad_request(format!("the body is no JSON: {error}")))
    }

    fn query(&self, name: &str) -> String {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(self.uri)
            .map(|query| query.0)
            .unwrap_or_default();
        pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value).unwrap_or_default()
    }

    fn resize_served(&self) -> bool {
        self.server.resize_served.load(Ordering::SeqCst)
    }

    fn changed(&self) {
        self.server.signal.send_modify(|signal| signal.changes += 1);
    }
}

fn found(object: &Value) -> Answer {
    Answer::Json(200, object.clone())
}

fn limit_ranges(store: &Store, namespace: &str) -> Vec<Arc<Value>> {
    let ranges = resources::find("limitranges").map(|ranges| store.list(ranges, Some(namespace)));
    ranges.into_iter().flatten().map(|(_, range)| Arc::clone(range)).collect()
}

/// Items of a list do not repeat what the list says.
fn without_type(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    object
}

fn is_true(text: &str) -> bool {
    matches!(text, "true" | "1")
}
