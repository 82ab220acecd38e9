//! What the pod network may ask: health, metrics and the kubelet's probe. It
//! is not trusted: nothing here tells more than names.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::USER_AGENT},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::{Board, Liveness, Peer};

/// Hears of a request for `/probe`: the address it comes from, and the program
/// if it says. Anyone can ask, and say anything.
pub type Probed = Arc<dyn Fn(IpAddr, Option<&str>) + Send + Sync>;

/// What answers the public endpoints.
#[derive(Clone)]
pub struct Public {
    /// Answers `/healthz`.
    pub liveness: Liveness,
    /// Answers `/readyz`.
    pub board: Board,
    /// Answers `/metrics` to the headers of the request. Must not wait for
    /// anything.
    pub metrics: Arc<dyn Fn(&HeaderMap) -> Response + Send + Sync>,
    /// Hears of each request for `/probe`.
    pub probed: Probed,
}

/// Routes for `/healthz`, `/readyz`, `/metrics` and `/probe`; to be served by
/// [`crate::serve`].
///
/// - `/healthz`: 200 while every loop of the process turns, else 503: a
///   restart is needed. `{"alive":false,"stuck":["shim events ended"]}`
/// - `/readyz`: 200 while the node can do its job, 503 while something that is
///   [`unready`](crate::api::Degraded::unready) is wrong. Both name everything
///   that is wrong: `{"ready":true,"degraded":["shim-disconnected"]}`
pub fn public(public: Public) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/probe", get(probe))
        .with_state(public)
}

async fn healthz(State(public): State<Public>) -> impl IntoResponse {
    let stuck = public.liveness.stuck();
    let alive = stuck.is_empty();
    (status(alive), Json(json!({ "alive": alive, "stuck": stuck })))
}

async fn readyz(State(public): State<Public>) -> impl IntoResponse {
    let degraded = public.board.degraded();
    let ready = !degraded.iter().any(|degraded| degraded.unready);
    let mut names: Vec<_> = degraded.into_iter().map(|degraded| degraded.name).collect();
    names.sort();
    names.dedup();
    (status(ready), Json(json!({ "ready": ready, "degraded": names })))
}

async fn metrics(State(public): State<Public>, headers: HeaderMap) -> Response {
    (public.metrics)(&headers)
}

async fn probe(State(public): State<Public>, Extension(peer): Extension<Peer>, headers: HeaderMap) {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    (public.probed)(peer.remote.ip(), agent);
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
