//! Requests in, answers out, and the failures in between.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use axum::{
    body::{self, Body, Bytes},
    extract::{Request as HttpRequest, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use futures_util::stream;
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{
    call::{Answer, Call},
    faults::{Fault, Journal, Request},
    refusal::Refusal,
    resources,
    store::Store,
    watch::Signal,
};

/// Largest body, as in the real server.
const BODY_LIMIT: usize = 3 << 20;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Server {
    store: Mutex<Store>,
    journal: Mutex<Journal>,
    pub(super) signal: watch::Sender<Signal>,
    pub(super) resize_served: AtomicBool,
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
