//! From requests to answers.

use std::{
    future::pending,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{self, Body, Bytes},
    extract::{Query, Request as HttpRequest, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{
    events,
    faults::{Fault, Journal, Request},
    limits, patch, pods,
    refusal::Refusal,
    resize,
    resources::{self, Document, Key, Resource, Target},
    selector::Selector,
    store::Store,
    watch::{Signal, Wish, version},
};

/// Largest body, as in the real server.
const BODY_LIMIT: usize = 3 << 20;
/// How long a watch lasts whose client does not say.
const WATCH_TIMEOUT: Duration = Duration::from_mins(30);

/// What all requests share.
#[derive(Debug)]
pub(super) struct Server {
    store: Mutex<Store>,
    journal: Mutex<Journal>,
    pub(super) signal: watch::Sender<Signal>,
    pub(super) resize_served: AtomicBool,
}

/// What is sent back: a document, or what will still happen.
enum Answer {
    Json(u16, Value),
    Text(String),
    Watch(Wish),
}

/// Answers one request, or breaks as a test ordered.
pub(super) async fn handle(State(server): State<Arc<Server>>, request: HttpRequest) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::to_bytes(body, BODY_LIMIT).await else {
        return respond(
            Err(Refusal::new(413, "RequestEntityTooLarge", "the request is too large")),
            &server,
        );
    };
    let number = server.journal().note(noted(&parts.method, &parts.uri, &parts.headers, &body));
    let fault = server.journal().fault(parts.method.as_str(), parts.uri.path());
    let answer = || {
        let call = Call {
            server: &server,
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            body: &body,
        };
        call.answer()
    };
    let response = match fault {
        None => respond(answer(), &server),
        Some(Fault::Status(code)) => respond(Err(Refusal::injected(code)), &server),
        Some(Fault::TooManyRequests { retry_after_seconds }) => {
            let mut response = respond(Err(Refusal::injected(429)), &server);
            response.headers_mut().insert(header::RETRY_AFTER, retry_after_seconds.into());
            response
        }
        Some(Fault::Delay(time)) => {
            sleep(time).await;
            respond(answer(), &server)
        }
        Some(Fault::Hang) => pending().await,
        Some(Fault::Close) => return broken(),
        Some(Fault::ApplyThenClose) => {
            drop(answer());
            return broken();
        }
    };
    server.journal().answered(number, response.status().as_u16());
    response
}

impl Server {
    /// A server with what every cluster has.
    pub(super) fn new() -> Self {
        let mut store = Store::default();
        let initial = [
            ("namespaces", "", "default"),
            ("namespaces", "", "kube-system"),
            ("serviceaccounts", "default", "default"),
        ];
        for (plural, namespace, name) in initial {
            if let Some(resource) = resources::find(plural) {
                // Nothing is refused in an empty store.
                let _ = store.create(
                    resource,
                    namespace.into(),
                    json!({"metadata": {"name": name}}),
                    |_, _| Ok(()),
                );
            }
        }
        Self {
            store: Mutex::new(store),
            journal: Mutex::default(),
            signal: watch::Sender::new(Signal::default()),
            resize_served: AtomicBool::new(true),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, whole.
struct Call<'a> {
    server: &'a Arc<Server>,
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    body: &'a Bytes,
}

impl Call<'_> {
    fn answer(&self) -> Result<Answer, Refusal> {
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

fn noted(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Request {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        content_type: content_type.unwrap_or_default().to_owned(),
        body: serde_json::from_slice(body).unwrap_or_default(),
        status: 0,
    }
}

fn respond(answer: Result<Answer, Refusal>, server: &Arc<Server>) -> Response {
    let (code, media_type, body) = match answer {
        Ok(Answer::Json(code, value)) => (code, "application/json", value.to_string().into()),
        Ok(Answer::Text(text)) => (200, "text/plain", text.into()),
        Ok(Answer::Watch(wish)) => {
            (200, "application/json", super::watch::body(Arc::clone(server), wish))
        }
        Err(refusal) => (refusal.code, "application/json", refusal.to_status().to_string().into()),
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A body that fails at once, which makes the server drop the connection.
fn broken() -> Response {
    let failure = stream::iter([Err::<Bytes, _>(io::Error::other("closed by the test"))]);
    Response::new(Body::from_stream(failure))
}
